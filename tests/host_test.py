"""Host settings are accepted where the machine has them, leave others alone, and asking twice does no harm."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

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


LEVEL = "--xla_backend_optimization_level"


@pytest.fixture
def environment(monkeypatch):
  """Sets (platforms, flags) and says which plugins of accelerators are installed."""

  def put(platforms: str | None, flags: str | None, plugins: tuple[str, ...] = ()):
    for name, value in (("JAX_PLATFORMS", platforms), ("XLA_FLAGS", flags)):
      monkeypatch.delenv(name, raising=False)
      if value is not None:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)

  return put


@pytest.mark.parametrize("platforms", [None, "cpu"])
def test_a_machine_with_a_cpu_alone_compiles_sooner_and_keeps_its_other_flags(environment, platforms):
  environment(platforms, "--xla_force_host_platform_device_count=2")
  assert host.compile_sooner() is True
  assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {LEVEL}=1"
  assert host.compile_sooner() is False  # it is set already


@pytest.mark.parametrize(
  ("platforms", "flags", "plugins"),
  [(None, None, ("xla_cuda12",)), ("cuda,cpu", None, ("xla_cuda12",)), ("tpu", None, ()), (None, f"{LEVEL}=3", ())],
)
def test_an_accelerator_and_a_level_that_is_named_are_left_alone(environment, platforms, flags, plugins):
  environment(platforms, flags, plugins)
  assert host.compile_sooner() is False
  assert os.environ.get("XLA_FLAGS") == flags


def test_the_cpu_is_asked_for_beside_an_accelerator(environment):
  environment("cpu", None, ("xla_cuda12",))
  assert host.compile_sooner() is True


def test_xla_takes_the_flag():
  code = "from sora_jax import host; print(host.compile_sooner()); import jax; print(jax.jit(lambda x: x + 1)(1))"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
  assert found.stdout.split() == ["True", "2"]
