"""launch/common.py: values, quoting, when to start again, and signals that reach what runs."""

import argparse
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import common
import pytest
from common import REQUEUE, LaunchError, Restarts, Supervisor
from hypothesis import given
from hypothesis import strategies as st

from tests.launch import fakes

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"))


def parsed(*words: str) -> argparse.Namespace:
  parser = common.Parser()
  common.add_training(parser)
  return parser.parse_args(["--config=c.py", "--workdir=w", *words])


class TestTraining:
  def test_settings_become_flags_of_the_config_in_their_order(self):
    args = parsed("--set", "train.steps=5", "--set=data.source=a,b")
    words = [
      "sora",
      "train",
      "--config=c.py",
      "--workdir=w",
      "--config.train.steps=5",
      "--config.data.source=a,b",
      "--json",
    ]
    assert common.training(args, "sora") == words

  def test_variables_are_set_by_env_and_the_users_come_last(self):
    words = common.training(parsed("--env=A=user", "--env=B="), "sora", ["A=ours"])
    assert words[:5] == ["env", "A=ours", "A=user", "B=", "sora"]

  def test_a_path_that_env_would_misread_is_refused(self):
    with pytest.raises(LaunchError, match="/a=b/sora: env"):
      common.training(parsed("--env=A=1"), "/a=b/sora")
    assert common.training(parsed(), "/a=b/sora")[0] == "/a=b/sora"

  @given(TEXT)
  def test_any_value_of_one_line_is_one_word(self, value):
    (word,) = [w for w in common.training(parsed(f"--set=a.b={value}"), "sora") if w.startswith("--config.")]
    assert word == f"--config.a.b={value}"
    assert shlex.split(shlex.join([word])) == [word]

  @pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x00", "a\x85b", "a\u2028b", "a\udc80b", "\x7f"])
  def test_ends_of_lines_and_control_characters_are_refused(self, value):
    with pytest.raises(LaunchError, match="on one line"):
      parsed(f"--set=a={value}")
    with pytest.raises(LaunchError, match="control characters"):
      parsed(f"--workdir={value}")

  def test_a_flag_is_not_guessed_from_its_beginning(self):
    with pytest.raises(LaunchError, match="unrecognized arguments: --dry"):
      parsed("--dry")


def test_the_words_after_the_first_two_dashes_are_kept_apart():
  assert common.split_rest(["a", "--", "b", "--", "c"]) == (["a"], ["b", "--", "c"])
  assert common.split_rest(["a"]) == (["a"], [])


class TestRestarts:
  def test_pauses_grow_and_have_an_end(self):
    restarts = Restarts(12, 10.0)
    pauses = [restarts.after(1) for _ in range(12)]
    assert pauses[:4] == [10, 20, 40, 80] and pauses[-1] == common.LONGEST_PAUSE and pauses == sorted(pauses)
    with pytest.raises(LaunchError, match="exit status 9: given up after 12 restarts") as error:
      restarts.after(9)
    assert error.value.status == 9

  def test_the_requeue_code_is_free(self):
    restarts = Restarts(0, 10.0)
    assert [restarts.after(REQUEUE) for _ in range(100)] == [0.0] * 100
    assert REQUEUE == os.EX_TEMPFAIL

  @pytest.mark.parametrize("code", [126, 127])
  def test_what_could_not_be_started_is_not_tried_again(self, code):
    with pytest.raises(LaunchError, match="could not be started"):
      Restarts(5, 0.0).after(code)


class TestResult:
  @pytest.mark.parametrize(
    ("out", "err", "reason"),
    [
      ("", "warning: x\nERROR: (gcloud) no right\n- '@type': y\n", "ERROR: (gcloud) no right"),
      ("", "one\ntwo\n\n", "two"),
      ("said\n", "", "said"),
      ("", "", "exit status 3"),
    ],
  )
  def test_the_reason_is_the_line_that_says_most(self, out, err, reason):
    assert common.Result(3, out, err).reason == reason


class TestCapture:
  def test_it_gives_what_the_command_wrote(self):
    result = common.capture(
      [sys.executable, "-c", "import sys; print('o'); print('e', file=sys.stderr); sys.exit(3)"], 60
    )
    assert result == (3, "o\n", "e\n")

  def test_a_command_without_an_end_is_ended_with_all_that_it_started(self, tmp_path):
    note = tmp_path / "pid"
    script = 'sleep 600 & echo $! > "$0"; wait'
    result = common.capture(["bash", "-c", script, str(note)], 0.5)
    assert (result.code, result.reason) == (common.NO_ANSWER, "no answer within 0.5 s")
    limit = time.monotonic() + 10
    while fakes.running(int(note.read_text())):
      assert time.monotonic() < limit
      time.sleep(0.01)

  def test_a_command_that_is_not_there_is_one_line(self):
    with pytest.raises(LaunchError, match="no-such-program can't be run .*: install it, or put it on PATH"):
      common.capture(["no-such-program"], 1)


# Writes that it is ready, and ends by the code given when it is told to.
WAITS = """
import pathlib, signal, sys, time
def end(number, _):
  pathlib.Path(sys.argv[1] + ".got").write_text(signal.Signals(number).name)
  sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGHUP, end)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(600)
"""
SUPERVISED = """
import sys, common
sys.exit(common.Supervisor(sys.argv[2:], common.Restarts(5, float(sys.argv[1]))).run())
"""


def supervised(*words: str, pause: float = 0.0, session: bool = False) -> subprocess.Popen:
  path = str(pathlib.Path(common.__file__).parent)
  return subprocess.Popen(
    [sys.executable, "-c", SUPERVISED, str(pause), *words],
    env=os.environ | {"PYTHONPATH": path},
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=session,
  )


def wait_for(path: pathlib.Path) -> None:
  limit = time.monotonic() + 30
  while not path.exists():
    assert time.monotonic() < limit, f"{path} does not appear"
    time.sleep(0.01)


class TestSupervisor:
  def count(self, path: pathlib.Path, codes: list[int]) -> list[str]:
    """A program that ends by the next of these codes each time."""
    path.write_text(" ".join(map(str, codes)))
    script = "import pathlib, sys\np = pathlib.Path(sys.argv[1])\nfirst, *rest = p.read_text().split()\n"
    return [sys.executable, "-IS", "-c", script + "p.write_text(' '.join(rest))\nsys.exit(int(first))", str(path)]

  def test_it_starts_again_until_it_succeeds(self, tmp_path):
    words = self.count(tmp_path / "codes", [75, 1, 75, 75, 2, 0, 9])
    assert Supervisor(words, Restarts(2, 0.0)).run() == 0
    assert (tmp_path / "codes").read_text() == "9"

  def test_it_gives_up(self, tmp_path):
    words = self.count(tmp_path / "codes", [1, 75, 1, 4, 0])
    with pytest.raises(LaunchError, match="exit status 4: given up after 2 restarts"):
      Supervisor(words, Restarts(2, 0.0)).run()

  def test_without_restarts_it_runs_once(self, tmp_path):
    assert Supervisor(self.count(tmp_path / "codes", [75, 0])).run() == 75

  def test_death_by_a_signal_has_the_code_of_a_shell(self):
    assert Supervisor([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).run() == 137

  def test_the_signal_handlers_are_put_back(self):
    before = signal.getsignal(signal.SIGTERM)
    Supervisor(["true"]).run()
    assert signal.getsignal(signal.SIGTERM) == before

  @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
  @pytest.mark.parametrize("code", [0, 75, 3])
  def test_a_signal_is_passed_on_and_the_child_waited_for_and_not_started_again(self, tmp_path, number, code):
    ready = tmp_path / "ready"
    parent = supervised(sys.executable, "-c", WAITS, str(ready), str(code))
    wait_for(ready)
    parent.send_signal(number)
    _, err = parent.communicate(timeout=60)
    assert (parent.returncode, err) == (code, "")
    assert (tmp_path / "ready.got").read_text() == number.name

  def test_a_signal_that_is_ignored_stays_so(self, tmp_path):
    """As nohup has it for SIGHUP."""
    ready = tmp_path / "ready"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
      parent = supervised(sys.executable, "-c", WAITS, str(ready), "0")
    finally:
      signal.signal(signal.SIGHUP, before)
    wait_for(ready)
    parent.send_signal(signal.SIGHUP)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=60)
    assert (tmp_path / "ready.got").read_text() == "SIGTERM"

  def test_ctrl_c_on_the_terminal_reaches_the_child_once(self, tmp_path):
    ready = tmp_path / "ready"
    script = (
      "import pathlib, signal, sys, time\ngot = []\nsignal.signal(signal.SIGINT, lambda *_: got.append(1))\n"
      "pathlib.Path(sys.argv[1]).touch()\nwhile not got: time.sleep(0.01)\ntime.sleep(0.5)\nsys.exit(len(got))"
    )
    parent = supervised(sys.executable, "-c", script, str(ready), session=True)
    wait_for(ready)
    os.killpg(parent.pid, signal.SIGINT)  # a terminal gives it to every process of the group
    parent.communicate(timeout=60)
    assert parent.returncode == 1

  def test_a_signal_ends_the_pause_between_two_starts(self, tmp_path):
    parent = supervised(*self.count(tmp_path / "codes", [3, 0]), pause=600)
    assert "exit status 3: starting it again in 600 s" in parent.stderr.readline()
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=60) == 3
    parent.stderr.close()
    assert (tmp_path / "codes").read_text() == "0"
