"""Host settings are taken where the host knows them, and left out where it does not."""

import subprocess
import sys

import jax
import numpy as np

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


def test_compiler_options_leave_the_result_as_it_is():
  x = np.linspace(-3, 3, 1000, dtype=np.float32)
  double = lambda x: jax.nn.silu(x) * 2 + x
  plain, tuned = jax.jit(double)(x), jax.jit(double, compiler_options=host.step_compiler_options())(x)
  np.testing.assert_allclose(plain, tuned, rtol=1e-6, atol=1e-6)


def test_compiler_options_that_xla_does_not_know_are_left_out(monkeypatch):
  host.step_compiler_options.cache_clear()
  jit = jax.jit
  monkeypatch.setattr(jax, "jit", lambda f, compiler_options: jit(f, compiler_options={"xla_no_such_option": True}))
  assert host.step_compiler_options() == {}
  host.step_compiler_options.cache_clear()
