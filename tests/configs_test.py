"""Every config, at a small size but by the command of a user, trains on several devices as on one."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sora_jax.train.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = {path.name: path for path in (ROOT / "configs").glob("*.py") if not path.name.startswith("sweep_")}
MESHES = {1: {}, 2: {}, 4: {"data": 2, "fsdp": 2}, 8: {"fsdp": 2, "context": 2, "tensor": 2}}
SMALL = {
  "data": {"clips": 24, "sizes": "('16x16','24x16')", "frames": "(1,3)", "max_frames": 3, "max_tokens": 64},
  "autoencoder": {"stages": "(((2,4,4),16,1),)", "channels": 8, "crop": "(3,16,16)", "batch": 8, "steps": 3},
  "model": {"width": 32, "depth": 2, "heads": 4, "text_width": 16, "text_depth": 1, "text_heads": 2, "vocabulary": 300},
  "train": {"steps": 4, "rows": 8, "ranks": 8, "row_tokens": 64, "row_text": 96, "row_segments": 8, "log_every": 1},
}
FLOAT = {
  "autoencoder": {"dtype": "float32"},
  "model": {"dtype": "float32", "pixels": "(16.0,1024.0)"},
  "train": {"preview_every": 0, "warmup": 1},
}


def losses(config: pathlib.Path, workdir: pathlib.Path, devices: int) -> list[float]:
  """Of every step of a run, the autoencoder's first."""
  sections = [*SMALL.items(), *FLOAT.items(), ("mesh", MESHES[devices])]
  settings = [f"--config.{section}.{key}={value}" for section, values in sections for key, value in values.items()]
  done = subprocess.run(
    [sys.executable, "-m", "sora_jax.cli.main", "train", f"--config={config}", f"--workdir={workdir}", *settings],
    env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
    capture_output=True,
    text=True,
    timeout=600,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  logs = [each for each in (workdir / "autoencoder" / "logs", workdir / "logs") if each.is_dir()]
  return [line["loss"] for each in logs for line in read_metrics(each)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_losses_are_those_of_one_device(name, tmp_path):
  one = losses(CONFIGS[name], tmp_path / "1", 1)
  assert len(one) == {"autoencoder.py": 4}.get(name, 7) and len(set(one)) == len(one)
  for devices in (2, 4, 8):
    found = losses(CONFIGS[name], tmp_path / str(devices), devices)
    np.testing.assert_allclose(found, one, rtol=1e-5, err_msg=f"{devices} devices")
