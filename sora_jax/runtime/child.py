"""A command as a child of this one: what ends this process is passed on to it, and waited for."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

# Not SIGINT: Ctrl-C reaches the child by itself, and this process waits for it.
PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def call(words: Sequence[str], stdout: int | IO | None = None) -> int:
  """Runs a command to its end and gives its exit status, 128 + N where signal N ended it.

  A program that is asked to end by SIGTERM or SIGHUP would otherwise leave the child behind, which knows nothing of it.
  In other threads than the main one signals stay as they are.
  """
  child = subprocess.Popen(words, stdout=stdout)
  heard = [*PASSED_ON, signal.SIGINT] if threading.current_thread() is threading.main_thread() else []
  pass_on = lambda number, _: child.send_signal(number) if number != signal.SIGINT else None
  before = {number: signal.signal(number, pass_on) for number in heard if signal.getsignal(number) != signal.SIG_IGN}
  try:
    code = child.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return code if code >= 0 else 128 - code
