"""A child process: its exit status, and signals that reach it through its parent."""

import signal
import subprocess
import sys
import textwrap

import pytest

from sora_jax.runtime import child

CHILD = """
  import signal, sys, time
  def end(number, _):
    time.sleep(0.2)  # it saves
    print("saved", flush=True)
    sys.exit(75)
  signal.signal(signal.SIGTERM, end)
  signal.signal(signal.SIGHUP, end)
  print("ready", flush=True)
  time.sleep(60)
"""
PARENT = """
  import sys
  from sora_jax.runtime import child
  code = child.call([sys.executable, "-c", sys.argv[1]])
  print("child ended with", code, flush=True)
  sys.exit(code)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_status_is_the_child_s(code):
  assert child.call([sys.executable, "-c", f"raise SystemExit({code})"]) == code


def test_death_by_a_signal_has_the_code_of_a_shell():
  assert child.call([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_what_it_prints_can_be_left_out(capfd):
  assert child.call([sys.executable, "-c", "print('x')"], stdout=subprocess.DEVNULL) == 0
  assert capfd.readouterr().out == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_child_is_waited_for(number):
  words = [sys.executable, "-c", textwrap.dedent(PARENT), textwrap.dedent(CHILD)]
  parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
  assert parent.stdout.readline() == "ready\n"
  parent.send_signal(number)
  out, _ = parent.communicate(timeout=30)
  assert out == "saved\nchild ended with 75\n" and parent.returncode == 75


def test_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  child.call([sys.executable, "-c", ""])
  assert signal.getsignal(signal.SIGTERM) == before
