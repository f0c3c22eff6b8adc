"""docs/launch.md: every command in it is taken by its launcher."""

import pathlib
import re
import shlex

import common
import pytest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "launch.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines()]


def test_every_launcher_is_shown():
  shown = {words[1] for words in COMMANDS}
  launchers = {path.name for path in (PAGE.parents[1] / "launch").glob("*.py")}
  assert shown == {f"launch/{name}" for name in launchers - {"common.py", "gcloud.py", "pod_run.py", "worker.py"}}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[1:3]))
def test_a_command_prints_what_it_would_run(sandbox, lines, words):
  python, script, *rest = words
  own, after = common.split_rest(rest)
  done = sandbox.run(script.removeprefix("launch/"), *own, "--dry_run", *(["--", *after] if after else []))
  assert (python, done.returncode, done.stderr) == ("python", 0, "")
  assert lines(done.stdout.splitlines()[-1])
  assert sandbox.calls() == []


@pytest.mark.parametrize("words", sorted({tuple(words[1:3]) for words in COMMANDS if words[2][0] != "-"}), ids=" ".join)
def test_help_is_printed(sandbox, words):
  for command in (words[:1], words):
    done = sandbox.run(command[0].removeprefix("launch/"), *command[1:], "--help")
    assert (done.returncode, done.stderr) == (0, "") and "usage: " in done.stdout


def test_the_numbers_in_it_are_those_of_the_code():
  text = PAGE.read_text(encoding="utf-8")
  assert f"| {common.REQUEUE} | preempted, or out of time; saved |" in text
  assert common.Restarts(3, 10.0).after(1) == 10
