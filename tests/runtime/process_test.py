"""Host settings are accepted where the machine has them, leave others alone, and asking twice does no harm."""

import importlib.metadata
import os
import subprocess
import sys
import time

import pytest

from sora_jax.runtime import process


def test_asking_twice_gives_the_same_answer():
  code = "from sora_jax.runtime import process; print(process.keep_freed_memory(), process.keep_freed_memory())"
  first, second = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  ).stdout.split()
  assert first == second


def test_other_systems_are_left_alone(monkeypatch):
  monkeypatch.setattr(sys, "platform", "darwin")
  assert process.keep_freed_memory() is False


def test_a_process_knows_when_it_began():
  code = (
    "import time; time.sleep(0.5); from sora_jax.runtime import process; print(time.monotonic() - process.started())"
  )
  begin = time.monotonic()
  age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
  assert age < time.monotonic() - begin + 0.02
  if sys.platform.startswith("linux"):
    assert age > 0.5


def test_what_is_imported_is_never_looked_through_again_and_later_garbage_is():
  code = """
import gc, weakref
from sora_jax.runtime import process
with process.importing():
  during = gc.isenabled()
  import json.tool
class Ring: pass
ring = Ring(); ring.self = ring; gone = weakref.ref(ring); del ring
gc.collect()
print(during, gc.isenabled(), gc.get_freeze_count() > 1000, gone() is None)
"""
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  assert found.split() == ["False", "True", "True", "True"]


COMPILES = """
from sora_jax.runtime import process
process.keep_compiled({folder!r})
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x @ x)))(jnp.ones((50, 50)))
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def compiles(folder, **more: str) -> int:
  """Programs that a process found compiled; it keeps its own in `folder`."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **more}
  words = [sys.executable, "-c", COMPILES.format(folder=str(folder))]
  return int(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout)


def test_the_next_process_finds_what_this_one_compiled(tmp_path):
  assert compiles(tmp_path / "kept") == 0
  assert compiles(tmp_path / "other", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "kept")) >= 1
  assert not (tmp_path / "other").exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
  monkeypatch.setattr(process, "MAX_COMPILED", 25)
  for age, name in enumerate(("new", "middle", "old", "oldest")):
    path = tmp_path / f"{name}-cache"
    path.write_bytes(bytes(10))
    os.utime(path, (1e9 - age, 1e9 - age))
  (tmp_path / "another").write_bytes(bytes(100))
  process.keep_compiled(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "middle-cache", "new-cache"]
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


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
  assert process.compile_sooner() is True
  assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {LEVEL}=1"
  assert process.compile_sooner() is False  # it is set already


@pytest.mark.parametrize(
  ("platforms", "flags", "plugins"),
  [(None, None, ("xla_cuda12",)), ("cuda,cpu", None, ("xla_cuda12",)), ("tpu", None, ()), (None, f"{LEVEL}=3", ())],
)
def test_an_accelerator_and_a_level_that_is_named_are_left_alone(environment, platforms, flags, plugins):
  environment(platforms, flags, plugins)
  assert process.compile_sooner() is False
  assert os.environ.get("XLA_FLAGS") == flags


def test_the_cpu_is_asked_for_beside_an_accelerator(environment):
  environment("cpu", None, ("xla_cuda12",))
  assert process.compile_sooner() is True


def test_xla_takes_the_flag():
  code = "from sora_jax.runtime import process; print(process.compile_sooner()); "
  code += "import jax; print(jax.jit(lambda x: x + 1)(1))"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
  assert found.stdout.split() == ["True", "2"]
