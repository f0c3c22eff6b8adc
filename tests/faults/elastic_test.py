"""Row F11 of the fault table: a run that 8 devices began goes on with 4, 2 or 1, and on other meshes, as if on 8."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.train.metrics import read_metrics
from tests.conftest import make_tiny_config
from tests.faults.commands import Runs, summary

STEPS, SAVED = 24, 4
LONG = {"train.steps": STEPS, "train.checkpoint_every": SAVED, "train.log_every": 1, "train.keep": 9}


def run(runs: Runs, workdir: str, devices: int, **changes: object) -> dict:
  (found,) = runs.ended(
    runs.words(workdir, **LONG, **changes), XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}"
  )
  assert found.code == 0, found.err
  return summary(found)


@pytest.fixture(scope="module")
def of_eight(tmp_path_factory) -> Runs:
  """A run of 8 devices that nothing disturbed, in "w"."""
  config = make_tiny_config()
  config.train.update(rows=8, ranks=8)
  config.autoencoder.batch = 8
  runs = Runs(tmp_path_factory.mktemp("elastic"), config.to_dict())
  assert run(runs, "w", 8)["step"] == STEPS
  return runs


def stopped(runs: Runs, name: str) -> pathlib.Path:
  """A copy of the run, as it was when its first checkpoint was saved."""
  workdir = shutil.copytree(runs.folder / "w", runs.folder / name)
  for path in (workdir / "checkpoints").iterdir():
    if path.name.split(".")[0] not in (str(SAVED), "writer"):
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
  ("devices", "mesh"),
  [
    (8, {"mesh.data": 2}),
    (4, {}),
    (4, {"mesh.fsdp": 2, "mesh.context": 2}),
    (2, {"mesh.data": 2, "mesh.fsdp": 1}),
    (2, {"mesh.fsdp": 1, "mesh.tensor": 2}),
    (1, {}),
  ],
  ids=lambda value: (
    ".".join(f"{key.split('.')[1]}{number}" for key, number in value.items()) if isinstance(value, dict) else str(value)
  ),
)
def test_it_goes_on_with_the_same_batches_and_losses(of_eight, devices, mesh):
  """F11: twenty steps."""
  name = f"{devices}-{json.dumps(mesh, sort_keys=True)}".translate(str.maketrans("", "", ' "{}:.,'))
  workdir = stopped(of_eight, name)
  found = run(of_eight, name, devices, **mesh)
  assert (found["resumed_from"], found["steps_run"]) == (SAVED, STEPS - SAVED)
  found, wanted = (read_metrics(each / "logs") for each in (workdir, of_eight.folder / "w"))
  assert [line["step"] for line in found] == list(range(1, STEPS + 1))
  np.testing.assert_allclose([line["loss"] for line in found], [line["loss"] for line in wanted], rtol=1e-5)
  assert checkpoint.digest(workdir)["data"] == checkpoint.digest(of_eight.folder / "w")["data"]
  for name in ("rng", "step"):
    assert checkpoint.digest(workdir)[name] == checkpoint.digest(of_eight.folder / "w")[name]
