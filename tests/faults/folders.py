"""A folder of files as training and the commands see it."""

import os
import pathlib
import subprocess
import sys

import ml_collections

ROOT = pathlib.Path(__file__).resolve().parents[2]


def section(folder: str | pathlib.Path, **changes) -> ml_collections.ConfigDict:
  """The `data` section of a config for a folder."""
  plain = {"source": str(folder), "weights": (), "clips": 4, "sizes": ("8x8",), "frames": (1,)}
  return ml_collections.ConfigDict(plain | {"fps": 0.0, "max_frames": 4096} | changes)


def sora(*words: object) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "sora_jax.cli.main", *map(str, words)]
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  environment = {**os.environ, "PYTHONPATH": path}
  return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, check=False)
