"""Host settings are accepted where the C library has them, and asking twice does no harm."""

import subprocess
import sys

from sora_jax import host


def test_asking_twice_gives_the_same_answer():
  code = "from sora_jax import host; print(host.keep_freed_memory(), host.keep_freed_memory())"
  first, second = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  ).stdout.split()
  assert first == second


def test_other_systems_are_left_alone(monkeypatch):
  monkeypatch.setattr(sys, "platform", "darwin")
  assert host.keep_freed_memory() is False
