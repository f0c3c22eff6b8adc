"""`sora checkpoint`: lists, digests and pins, as JSON and as lines for people."""

import json
import re
import shutil

import pytest
from etils import epath

from sora_jax.checkpoints import checkpoint, manifest
from tests.cli.runs import complaint, result, run

FILES = {"commit_success.txt": b"", "_METADATA": b"{}", "meta/metadata": b'{"task": "dit"}', "ema/d/0": b"w" * 5000}


@pytest.fixture
def sora(capsys):
  return lambda *words: run(capsys, "checkpoint", *words)


@pytest.mark.parametrize(
  ("words", "parts"),
  [
    (("list",), ("DIR",)),
    (("list", "a", "b"), ("'b'",)),
    (("list", "a", "--step", "3"), ("--step",)),
    (("pin", "a"), ("--step",)),
    (("export", "a"), ("--out",)),
    (("export", "a", "--out", "x", "--item", "all"), ("--item",)),
  ],
  ids=str,
)
def test_a_wrong_command_line_is_named_in_one_line(sora, words, parts):
  said = complaint(sora(*words), 2)
  assert all(part in said for part in parts), said


@pytest.mark.parametrize("action", ["list", "verify", "digest"])
def test_a_folder_that_is_none_is_named(sora, tmp_path, action):
  assert str(tmp_path / "absent") in complaint(sora(action, tmp_path / "absent"), 1)


def test_list_and_digest_tell_what_a_run_has(sora, trained):
  assert result(sora("list", trained, "--json"))["steps"] == [3, 6]
  found = result(sora("digest", trained, "--step", "3", "--json"))
  assert found == checkpoint.digest(trained, 3)
  assert found.keys() == {"step", "params", "optimizer", "ema", "rng", "data"}


def test_without_json_the_answer_is_lines_for_people(sora, trained):
  done = sora("list", trained)
  assert done.returncode == 0 and done.stdout.splitlines()[-1] == "steps: [3, 6]"
  assert re.match(r"step 3: [\d,]+ bytes, 20\S+, complete\n", done.stdout)


def test_a_file_that_can_t_be_written_is_named(sora, trained, tmp_path):
  (tmp_path / "file").write_text("")
  said = complaint(sora("export", trained, "--out", tmp_path / "file" / "ema.safetensors"), 1)
  assert str(tmp_path / "file") in said


@pytest.fixture
def step(tmp_path):
  """The folder of a committed step 8 that has a manifest."""
  folder = manifest.root(epath.Path(tmp_path))
  for name, content in FILES.items():
    (folder / "8" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "8" / name).write_bytes(content)
  manifest.write(folder, 8)
  return folder / "8"


def test_verify_fails_where_a_file_is_damaged_or_nothing_could_be_checked(sora, step, tmp_path):
  assert result(sora("verify", tmp_path, "--json")) == {"checked": [8], "unchecked": [], "faults": []}
  (step / "ema" / "d" / "0").unlink()
  done = sora("verify", tmp_path, "--json")
  assert done.returncode == 1 and json.loads(done.stdout)["faults"] == ["8/ema/d/0 is missing"]
  assert done.stderr.splitlines()[-1].endswith("1 damaged files")
  (step.parent / "8.manifest.json").unlink()
  done = sora("verify", tmp_path, "--json")
  assert result(done)["unchecked"] == [8] and "step 8 has no manifest" in done.stderr
  done = sora("verify", tmp_path, "--step", "8")
  assert done.returncode == 1 and "nothing was checked" in done.stderr


def test_pins_and_steps_set_aside_are_listed(sora, step, tmp_path):
  shutil.copytree(step, step.parent / "9")
  manifest.write(step.parent, 9)
  manifest.set_aside(step.parent, 9)
  assert result(sora("pin", tmp_path, "--step", "8", "--json")) == {"step": 8, "pinned": True}
  done = sora("list", tmp_path)
  assert re.match(r"step 8: [\d,]+ bytes, 20\S+, complete, pinned\n", done.stdout)
  assert done.stdout.splitlines()[1:] == ["steps: [8]", "not_used: ['9.damaged']"]
  assert result(sora("list", tmp_path, "--json")) == manifest.listing(tmp_path)
  assert result(sora("unpin", tmp_path, "--step", "8", "--json")) == {"step": 8, "pinned": False}
