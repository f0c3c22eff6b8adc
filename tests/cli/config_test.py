"""Config files on the command line: what can't be loaded or set is told in one line, and bugs are not hidden."""

import ml_collections
import pytest

from sora_jax.cli.config import UsageError, check_keys, leaf_paths, load_config

ROOT = ml_collections.ConfigDict({"seed": 0, "train": {"steps": 1}, "sample": {"guidance": 2.5}})


class TestLoad:
  def test_the_config_is_locked(self, tmp_path):
    (tmp_path / "a.py").write_text("import ml_collections\nget_config = lambda: ml_collections.ConfigDict({'a': 1})")
    config = load_config(str(tmp_path / "a.py"))
    assert config.a == 1 and config.is_locked

  @pytest.mark.parametrize("name", ["a.py", "a.txt", "a"])
  def test_a_config_may_build_on_a_file_beside_it(self, tmp_path, name):
    (tmp_path / "b.py").write_text("value = 3")
    (tmp_path / name).write_text(
      "import pathlib, runpy, ml_collections\n"
      "b = runpy.run_path(str(pathlib.Path(__file__).with_name('b.py')))\n"
      "get_config = lambda arg='': ml_collections.ConfigDict({'b': b['value'], 'arg': arg})"
    )
    assert load_config(f"{tmp_path / name}:x=1:2").to_dict() == {"b": 3, "arg": "x=1:2"}

  @pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
      ("x = 1", "", "no function get_config"),
      ("get_config = lambda: 5", "", "gives int"),
      ("get_config = lambda: 5", ":S", "takes no argument.*':S'"),
      ("def get_config(:", "", "no Python: .*line 1"),
      ("def get_config(a):\n  raise ValueError(f'no variant {a}')", ":S", "a.py:S: no variant S"),
      ("\0", "", "a.py"),
      ("x = '\udcff'", "", "a.py"),
    ],
    ids=repr,
  )
  def test_what_is_no_config_is_named(self, tmp_path, text, argument, message):
    (tmp_path / "a.py").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=message):
      load_config(f"{tmp_path / 'a.py'}{argument}")

  def test_what_is_not_there_is_named(self, tmp_path):
    with pytest.raises(UsageError, match="absent.py: No such file"):
      load_config(str(tmp_path / "absent.py"))
    with pytest.raises(UsageError, match="Is a directory"):
      load_config(str(tmp_path))

  @pytest.mark.parametrize("error", ["AttributeError", "KeyError", "TypeError", "ZeroDivisionError"])
  def test_a_bug_of_the_file_keeps_its_traceback(self, tmp_path, error):
    (tmp_path / "a.py").write_text(f"def get_config():\n  raise {error}('config')")
    with pytest.raises(Exception, match="config") as caught:
      load_config(str(tmp_path / "a.py"))
    assert type(caught.value).__name__ == error


class TestKeys:
  def test_known_keys_pass(self):
    check_keys(["train", "--config.seed=3", "--noconfig.train.steps", "--config.sample.guidance", "3"], ROOT)

  @pytest.mark.parametrize(
    ("word", "message"),
    [
      ("--config.train.stepz=3", "config.train has no key 'stepz': did you mean 'steps'"),
      ("--config.trian.steps=3", "config has no key 'trian': did you mean 'train'"),
      ("--config.guidance=3", "did you mean 'config.sample.guidance'"),
      ("--config.zzz=3", "did you mean 'config."),
      ("--config.seed.x=3", "config.seed is a value"),
      ("--config.train={'steps': 3}", "config.train is a section: .*--config.train.steps=VALUE"),
      ("--config.train.steps[0]=3", r"no key 'steps\[0\]'"),
      ("--config.=3", "no key ''"),
    ],
  )
  def test_others_are_named_with_the_nearest(self, word, message):
    with pytest.raises(UsageError, match=message):
      check_keys([word], ROOT)


def test_leaf_paths_are_whole():
  assert sorted(leaf_paths(ROOT)) == ["sample.guidance", "seed", "train.steps"]
