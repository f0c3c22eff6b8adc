"""Signals are noted and end nothing, children are shielded from them, and an impatient user is let go."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from sora_jax.runtime import preemption


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noted_and_the_first_one_is_the_reason(listening, number):
  assert not listening.reason()
  os.kill(os.getpid(), number)
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)
  assert listening.reason() == number
  assert signal.Signals(number).name in preemption.message(listening.reason(), "step 3 is saved")


def test_a_signal_that_was_ignored_stays_so():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  others = {number: signal.getsignal(number) for number in preemption.SIGNALS}
  try:
    preemption.Preemption().listen()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  finally:
    for number, handler in (others | {signal.SIGINT: before}).items():
      signal.signal(number, handler)


def test_a_time_limit_counts_from_the_start_and_zero_is_none(listening):
  now = time.monotonic()
  listening.end_after(0.0, now - 1e6)
  assert not listening.reason()
  listening.end_after(1.0, now - 59)
  assert not listening.reason()
  listening.end_after(1.0, now - 61)
  assert listening.reason() == preemption.LIMIT
  assert "train.max_minutes" in preemption.message(preemption.LIMIT, "")


def test_children_that_are_started_shielded_live_on_and_others_do_not(listening):
  words = [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read(); print('there')"]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  with preemption.shielded():
    shielded = subprocess.Popen(words, **pipes)
    os.kill(os.getpid(), signal.SIGTERM)
  assert listening.reason() == signal.SIGTERM  # it came when the shield was gone
  with shielded, subprocess.Popen(words, **pipes) as bare:
    for child in (shielded, bare):
      assert child.stdout.readline() == "here\n"
      for number in preemption.SIGNALS:
        child.send_signal(number)
    assert bare.wait(30) < 0
    assert shielded.communicate("", 30)[0] == "there\n" and shielded.returncode == 0


def test_who_does_not_listen_shields_nobody():
  with preemption.shielded():
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


WAITS = """
import time
from sora_jax.runtime import preemption
found = preemption.Preemption()
found.listen()
print("here", flush=True)
while len(found.signals) < 9:
  time.sleep(0.01)
print("there")
"""


def noted(child: subprocess.Popen, number: int) -> None:
  child.send_signal(number)
  time.sleep(0.1)  # signals of one number that are not noted yet count as one


def test_ctrl_c_three_times_on_a_terminal_ends_it_and_says_so_before():
  ours, theirs = pty.openpty()
  with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=theirs, text=True) as child:
    assert child.stdout.readline() == "here\n"
    noted(child, signal.SIGTERM)
    noted(child, signal.SIGINT)
    assert b"Ctrl-C twice more" in os.read(ours, 4096)
    noted(child, signal.SIGINT)
    assert b"Ctrl-C once ends it now" in os.read(ours, 4096)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == -signal.SIGINT


def test_a_terminal_that_is_gone_is_noted_and_nothing_is_written_there(tmp_path):
  """As after a lost connection: what comes before the end of the run must not fail for its progress bar."""
  code = "import sys" + WAITS.replace("< 9", "< 1")
  code += f"print('saved', file=sys.stderr, flush=True)\nopen({str(tmp_path / 'a')!r}, 'x')"
  ours, theirs = pty.openpty()
  with subprocess.Popen(
    ["setsid", "--ctty", sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs
  ) as child:
    os.close(theirs)
    assert b"here" in os.read(ours, 4096)
    os.close(ours)
    assert child.wait(30) == 0
  assert (tmp_path / "a").exists()


def test_without_a_terminal_no_number_of_signals_ends_it():
  with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
    assert child.stdout.readline() == b"here\n"
    for number in 3 * preemption.SIGNALS[:3]:
      noted(child, number)
    assert child.communicate(timeout=30) == (b"there\n", b"") and child.returncode == 0


def test_what_ignores_signals_is_not_preempted():
  code = WAITS.replace("found.listen()", "preemption.ignore()").replace("len(found.signals) < 9", "not input()")
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
    assert child.stdout.readline() == "here\n"
    for number in preemption.SIGNALS:
      child.send_signal(number)
    assert child.communicate("yes\n", 30)[0] == "there\n" and child.returncode == 0
