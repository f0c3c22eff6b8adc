"""The train step compiled for pods: what it takes is written down, so that a change that makes it worse is seen.

Needs libtpu (`pip install -c constraints.txt -e '.[plan]'`) and about two minutes a step. SORA_GOLDEN=write remakes the
table; look at what changed before you commit it.
"""

import importlib.metadata
import json
import os
import pathlib
import runpy

import pytest

from sora_jax.plan import compile, plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = pathlib.Path(__file__).with_name("golden.json")
CHOSEN = {"jax": "0.10.2", "libtpu": "0.0.42.1"}  # another compiler makes another program
# A minute of 832 x 480 at 16 frames per second, 375,960 tokens.
LONG = {
  "train": {"rows": 4, "row_tokens": 376_832, "row_segments": 1},
  "data": {"sizes": ("832x480",), "frames": (961,), "max_frames": 961},
}
# (variant, slice, mesh, other settings)
STEPS = {
  "XL v5e-8": ("XL", "v5litepod-8", {"fsdp": 8}, {"train": {"rows": 32}}),
  "XL v5p-128": ("XL", "v5p-128", {"data": -1, "fsdp": 1}, {"train": {"rows": 64}}),
  "XL v6e-256": ("XL", "v6e-256", {"data": -1, "fsdp": 1}, {"train": {"rows": 256}}),
  "8B v5p-128": ("8B", "v5p-128", {"data": 2, "fsdp": 32}, {"train": {"rows": 64}}),
  "8B v5p-1024": ("8B", "v5p-1024", {"data": 16, "fsdp": 32}, {"train": {"rows": 512}}),
  "8B v6e-256": ("8B", "v6e-256", {"data": 8, "fsdp": 32}, {"train": {"rows": 512}}),
  "XL v5p-128, a minute of 480p": ("XL", "v5p-128", {"data": 4, "fsdp": 1, "context": 16, "ulysses": 16}, LONG),
}
# No step that anybody should want: adding up what each device has of a token takes a quarter of it and more. Other
# collectives than that would be a fault.
SHARED_HEADS = {
  "8B v5p-128, mesh.tensor=4": ("8B", "v5p-128", {"data": 2, "fsdp": 8, "tensor": 4}, {"train": {"rows": 64}})
}
TABLED = STEPS | SHARED_HEADS
KEPT = ("peak_hbm_gib", "hbm_gib", "hbm_traffic_gib", "clip_tokens", "seconds", "step_seconds", "mfu")


def planned(variant: str, topology: str, mesh: dict, settings: dict) -> dict:
  """What the compiler made of a step: the numbers that a change of the program moves."""
  config = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"](f"variant={variant}")
  config.mesh.update(mesh)
  for section, values in settings.items():
    config[section].update(values)
  found = plan.plan(config, topology, None, None)
  collectives = {kind: list(each.values()) for kind, each in sorted(found["collectives"].items())}
  return {name: found[name] for name in (*KEPT, "collective_share")} | {"collectives": collectives}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLED)
def test_a_pod_s_step_takes_what_it_took(name):
  if compile.missing():
    pytest.skip(f"no libtpu to compile with: {compile.missing()}")
  installed = {package: importlib.metadata.version(package) for package in CHOSEN}
  if installed != CHOSEN:
    pytest.skip(f"the table is of {CHOSEN}, not {installed}")
  found = planned(*TABLED[name])
  table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
  if os.environ.get("SORA_GOLDEN") == "write":
    table[name] = found
    TABLE.write_text(json.dumps({each: table[each] for each in TABLED if each in table}, indent=1) + "\n")
  assert found == table.get(name), f"{name} differs from {TABLE.name}: SORA_GOLDEN=write remakes it"


def test_every_step_of_the_table_fits_its_chips_and_seldom_waits_for_links():
  table = json.loads(TABLE.read_text())
  assert list(table) == list(TABLED)
  for name in STEPS:
    found = table[name]
    assert found["peak_hbm_gib"] < 0.9 * found["hbm_gib"], name
    assert found["collective_share"] < 0.15, name
