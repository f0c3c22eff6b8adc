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

from sora_jax.plan import chips, compile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = pathlib.Path(__file__).with_name("golden.json")
CHOSEN = {"jax": "0.10.2", "libtpu": "0.0.42.1"}  # another compiler makes another program
LONG = {"row_tokens": 376_832, "row_segments": 1}  # a minute of 832 x 480 at 16 frames per second, 375,960 tokens
# (variant, slice, mesh, train)
STEPS = {
  "XL v5p-128": ("XL", "v5p-128", {"data": -1, "fsdp": 1}, {"rows": 64}),
  "XL v6e-256": ("XL", "v6e-256", {"data": -1, "fsdp": 1}, {"rows": 256}),
  "8B v5p-128": ("8B", "v5p-128", {"data": 2, "fsdp": 32}, {"rows": 64}),
  "8B v6e-256": ("8B", "v6e-256", {"data": 8, "fsdp": 32}, {"rows": 256}),
  "XL v5p-128 long": ("XL", "v5p-128", {"fsdp": 4, "context": 16, "ulysses": 16}, {"rows": 4, **LONG}),
}


def compiled(variant: str, topology: str, mesh: dict, train: dict) -> dict:
  """What the compiler made of a step: the numbers that a change of the program moves."""
  config = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"](f"variant={variant}")
  config.mesh.update(mesh)
  config.train.update(train)
  found = compile.examine(config, 1.0, chips.parse(topology))["compiled"]
  return {
    "peak_gib": round(found["peak_bytes"] / chips.GIB, 2),
    "teraflops": round(found["flops"] / 1e12, 1),
    "hbm_traffic_gib": round(found["hbm_bytes"] / chips.GIB),
    "operation_seconds": round(found["seconds"]["operations"], 3),
    "collectives": {
      kind: [each["count"], round(each["bytes"] / chips.GIB, 2), round(each["seconds"], 4)]
      for kind, each in sorted(found["collectives"].items())
    },
  }


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_pod_s_step_takes_what_it_took(name):
  if compile.missing():
    pytest.skip(f"no libtpu to compile with: {compile.missing()}")
  installed = {package: importlib.metadata.version(package) for package in CHOSEN}
  if installed != CHOSEN:
    pytest.skip(f"the table is of {CHOSEN}, not {installed}")
  found = compiled(*STEPS[name])
  table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
  if os.environ.get("SORA_GOLDEN") == "write":
    table[name] = found
    TABLE.write_text(json.dumps({each: table[each] for each in STEPS if each in table}, indent=1) + "\n")
  assert found == table.get(name), f"{name} differs from {TABLE.name}: SORA_GOLDEN=write remakes it"


def test_every_step_of_the_table_fits_its_chips():
  table = json.loads(TABLE.read_text())
  assert list(table) == list(STEPS)
  for name, (_, topology, _, _) in STEPS.items():
    assert table[name]["peak_gib"] < 0.9 * chips.parse(topology).chip.hbm_bytes / chips.GIB, name
