"""Runs a script in a process in which the CPU counts as several devices."""

import json
import os
import subprocess
import sys
from typing import Any

from sora_jax.runtime import process


def on_devices(count: int, script: str, seconds: int = 900) -> Any:
  """The JSON of the last line that `script` prints."""
  forced = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  forced["NPROC"] = str(process.THREADS * count)  # as `process.enough_threads` does for commands
  command = [sys.executable, "-c", script]
  done = subprocess.run(command, env=os.environ | forced, capture_output=True, text=True, timeout=seconds)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])
