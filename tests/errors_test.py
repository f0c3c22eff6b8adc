"""Every error of ours is a SoraError, which is how a command tells them from faults of the program."""

import importlib
import inspect
import pkgutil

import sora_jax
from sora_jax.errors import SoraError


def test_every_exception_of_the_package_is_one():
  found = {}
  for module in pkgutil.walk_packages(sora_jax.__path__, "sora_jax."):
    if not module.name.endswith("__main__"):
      members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
      found |= {each.__qualname__: each for _, each in members if each.__module__.startswith("sora_jax")}
  errors = {name: each for name, each in found.items() if issubclass(each, Exception) and not name.startswith("_")}
  assert len(errors) > 10
  assert [name for name, each in errors.items() if not issubclass(each, SoraError)] == []
