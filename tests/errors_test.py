"""Every error of ours is a SoraError, which is how a command tells them from faults of the program."""

import importlib
import inspect
import pkgutil

import pytest

import sora_jax
from sora_jax.errors import InputError, SoraError, path_errors


def test_every_exception_of_the_package_is_one():
  found = {}
  for module in pkgutil.walk_packages(sora_jax.__path__, "sora_jax."):
    if not module.name.endswith("__main__"):
      members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
      found |= {each.__qualname__: each for _, each in members if each.__module__.startswith("sora_jax")}
  errors = {name: each for name, each in found.items() if issubclass(each, Exception) and not name.startswith("_")}
  assert len(errors) > 10
  assert [name for name, each in errors.items() if not issubclass(each, SoraError)] == []


class TestPathErrors:
  def test_the_file_and_the_reason_are_told(self, tmp_path):
    with pytest.raises(InputError, match="absent.txt: No such file or directory"), path_errors("the run"):
      (tmp_path / "absent.txt").read_text()

  def test_a_file_in_the_place_of_a_folder_is_named(self, tmp_path):
    (tmp_path / "file").write_text("")
    for make in (lambda: (tmp_path / "file").mkdir(), lambda: (tmp_path / "file" / "below").mkdir()):
      with pytest.raises(InputError, match="file.*: a file stands where a folder must be"), path_errors("x"):
        make()

  def test_an_error_without_a_file_has_the_name(self):
    with pytest.raises(InputError, match="runs/a: No space left on device"), path_errors("runs/a"):
      raise OSError(28, "No space left on device")

  def test_a_bucket_without_its_client_is_told(self):
    with pytest.raises(InputError, match="gs://b/run: Please install gcsfs"), path_errors("gs://b/run"):
      raise ImportError("Please install gcsfs")

  @pytest.mark.parametrize("error", [ValueError("x"), ImportError("x"), KeyError("x"), InputError("x")], ids=repr)
  def test_any_other_error_stays(self, error):
    with pytest.raises(type(error)) as caught, path_errors("runs/a"):
      raise error
    assert caught.value is error
