"""Preemption: a signal or a time limit asks a run to stop. It is noted here, and the run stops where nothing is lost.

Nothing is cut short. Long work asks between its pieces (a step, a unit) and stops there; what was made is on disk
then, and the program's exit status REQUEUE says that the same command resumes it. A signal that comes while XLA
compiles is noted when it has compiled.
"""

import contextlib
import math
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from sora_jax.errors import SoraError

REQUEUE = 75  # EX_TEMPFAIL, which launchers answer by running the command again
# SIGUSR1: Slurm's warning that the time is up. SIGHUP: the terminal is gone.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LIMIT, ELSEWHERE = 1000, 1001  # stand for the time limit and for another host where a signal has its number
IMPATIENT = 10.0  # seconds


class Preempted(SoraError, RuntimeError):
  """The run was asked to stop, and has; the message says what is saved."""


class Preemption:
  """What has asked this process to stop: the first signal after `listen`, or its time limit."""

  def __init__(self) -> None:
    self.signals: list[int] = []  # those that came
    self._deadline = math.inf  # time.monotonic()
    self._terminals: list[int] = []  # of standard output and error
    self._last_interrupt = -math.inf

  def listen(self) -> None:
    """From now on signals are noted and end nothing; one that is ignored stays so. For a program's main thread."""
    self._terminals = [number for number in (1, 2) if os.isatty(number)]
    for number in SIGNALS:
      if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, self._note)

  def end_after(self, minutes: float, started: float) -> None:
    """Sets a time limit, counted from `started` (time.monotonic()); 0 is none."""
    self._deadline = started + 60 * minutes if minutes else math.inf

  def reason(self) -> int:
    """Why this process is to stop: the first signal's number, LIMIT, or 0 where it is not."""
    return self.signals[0] if self.signals else LIMIT if time.monotonic() > self._deadline else 0

  def _note(self, number: int, _: Any) -> None:
    # A handler may run in the middle of anything, a print too: it only notes.
    self.signals.append(number)
    if number == signal.SIGINT and sys.stderr.isatty():
      self._note_impatience()
    if number == signal.SIGHUP:
      self._leave_terminal()

  def _leave_terminal(self) -> None:
    """A write to a terminal that is gone is an error, and would end what is still to be saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    while self._terminals:
      os.dup2(nowhere, self._terminals.pop())
    os.close(nowhere)

  def _note_impatience(self) -> None:
    """Ctrl-C three times ends a program at once."""
    now = time.monotonic()
    again, self._last_interrupt = now - self._last_interrupt < IMPATIENT, now
    if again:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    often = "once" if again else f"twice more within {IMPATIENT:g} s"
    os.write(2, f"\nsora: saves and ends after this step; Ctrl-C {often} ends it now, and nothing is saved\n".encode())


def ignore() -> None:
  """Nothing but SIGKILL disturbs what is left of this process."""
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)


def message(reason: int, what: str) -> str:
  """The last line of a preempted run."""
  others = {LIMIT: "the time limit (train.max_minutes)", ELSEWHERE: "the preemption of another host"}
  return f"ended by {others.get(reason) or signal.Signals(reason).name}: {what}; the same command goes on from there"


@contextlib.contextmanager
def shielded() -> Iterator[None]:
  """Processes that are started in here never get the signals that this one listens to: it ends them itself.

  A signal that comes meanwhile reaches this process afterwards.
  """
  noted = [number for number in SIGNALS if isinstance(getattr(signal.getsignal(number), "__self__", None), Preemption)]
  if not noted:
    yield
    return
  multiprocessing.resource_tracker.ensure_running()  # its own start would let the signals through again
  before = signal.pthread_sigmask(signal.SIG_BLOCK, noted)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
  """Ends this process, one of multiprocessing's, when the one that started it is gone, however that came."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
  multiprocessing.connection.wait([sentinel])
  os._exit(1)
