"""Decoding in a process of its own: a file that crashes a decoder, hangs it or fills memory costs that process alone.

The process has no network to need, may write no file, and is killed when a file takes too long; the next file gets a
fresh one. Requests are lines of JSON, answers a line of JSON and raw frames: nothing is unpickled on either side.
`decode.py` and `io.py` do the work, in there.
"""

import contextlib
import errno
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from sora_jax.runtime import preemption
from sora_jax.video import io as video_io
from sora_jax.video.io import Probe, UnreadableFile

SECONDS = 120.0  # for one file
MEMORY = 6 * 2**30  # bytes of address space: an 8K video decodes in 2
MAX_HEADER = 2**20  # bytes
GRACE = 5.0  # seconds after the limit at which the process ends itself, should its parent be gone
FILES = 5000  # read by one process before a fresh one takes over, which frees what libraries leak
BUSY, ATTEMPTS = os.strerror(errno.EAGAIN), 3


class Decoder:
  """`video_io.probe` and `video_io.read` in a killable process, which is started at the first use.

  May be used from many threads (they take turns), forked and sent to other processes (which start their own).
  """

  def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
    """
    Args:
      seconds: a file that takes longer is unreadable.
      memory: bytes that the process may address.
    """
    self.seconds, self.memory = seconds, memory
    self._process: subprocess.Popen | None = None
    self._owner = self._served = 0
    self._lock = threading.Lock()

  def __reduce__(self):
    return Decoder, (self.seconds, self.memory)

  def probe(self, path: str | os.PathLike) -> Probe:
    """As `video_io.probe`; UnreadableFile also where the decoder dies, hangs or needs too much memory."""
    return Probe(**self._ask({"path": os.path.abspath(path)})[0])

  def read(self, path: str | os.PathLike, **how: Any) -> np.ndarray:
    """As `video_io.read`; UnreadableFile also where the decoder dies, hangs or needs too much memory."""
    header, body = self._ask({"path": os.path.abspath(path), "how": how})
    return np.frombuffer(body, np.uint8).reshape(header["shape"])

  def close(self) -> None:
    with self._lock:
      self._stop()

  def _ask(self, request: dict) -> tuple[dict, bytearray]:
    for _ in range(ATTEMPTS - 1):
      try:
        return self._ask_once(request)
      except UnreadableFile as error:
        if BUSY not in str(error):
          raise
      self.close()  # the machine had no thread or memory to spare, which is no fault of the file
      time.sleep(0.5)
    return self._ask_once(request)

  def _ask_once(self, request: dict) -> tuple[dict, bytearray]:
    with self._lock:
      if self._owner != os.getpid():  # a forked copy: the decoder belongs to the parent
        self._process, self._owner = None, os.getpid()
      if self._served >= FILES:
        self._stop()
      if self._process is None or self._process.poll() is not None:
        self._process, self._served = _start(self.memory), 0
      self._served += 1
      try:
        deadline = time.monotonic() + self.seconds
        answer, body = _exchange(self._process, request | {"seconds": self.seconds}, deadline)
      except UnreadableFile as error:
        status = self._stop()
        late = isinstance(error, _LateError)
        raise UnreadableFile(
          f"decoding took more than {self.seconds:g} s" if late else f"the decoder died ({_cause(status)})"
        ) from None
    for key, kind in (("unreadable", UnreadableFile), ("argument", ValueError)):
      if key in answer:
        raise kind(answer[key])
    return answer, body

  def _stop(self) -> int | None:
    """Ends the process; its exit status, negative where a signal ended it."""
    process, self._process = self._process, None
    if process is None or self._owner != os.getpid():
      return None
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(0.05)  # a process that died by itself has a status that says why
    with (
      contextlib.suppress(BrokenPipeError),
      process,
    ):  # closing a dead process's pipe fails
      process.kill()
    return process.returncode


@functools.lru_cache(maxsize=1)
def shared() -> Decoder:
  """This process's decoder."""
  return Decoder()


class _LateError(UnreadableFile):
  """No answer in time."""


def _start(memory: int) -> subprocess.Popen:
  command = [sys.executable, "-m", "sora_jax.video.isolated", str(memory)]
  # A session of its own too: an interrupt from the terminal is for the run, which ends this process itself.
  with preemption.shielded():
    return subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _cause(status: int | None) -> str:
  if status is not None and status < 0:
    with contextlib.suppress(ValueError):
      return signal.Signals(-status).name
  return f"exit status {status}"


def _exchange(process: subprocess.Popen, request: dict, deadline: float) -> tuple[dict, bytearray]:
  assert process.stdin is not None and process.stdout is not None  # both are pipes
  try:
    process.stdin.write(json.dumps(request, default=lambda number: number.item()).encode() + b"\n")  # numpy's too
    process.stdin.flush()
  except OSError as error:
    raise UnreadableFile("no decoder") from error
  answer = bytearray()
  while (end := answer.find(b"\n")) < 0:
    if len(answer) > MAX_HEADER:
      raise UnreadableFile("no answer")
    _receive(process.stdout, answer, deadline, 65536)
  header = json.loads(answer[:end])
  body = answer[end + 1 :]
  wanted = int(np.prod(header["shape"])) if "shape" in header else 0
  while len(body) < wanted:
    _receive(process.stdout, body, deadline, wanted - len(body))
  return header, body


def _receive(stream: IO[bytes], into: bytearray, deadline: float, most: int) -> None:
  """Waits for more bytes.

  Raises:
    _LateError: none came in time.
    UnreadableFile: the stream has ended.
  """
  if not select.select([stream], [], [], max(deadline - time.monotonic(), 0))[0]:
    raise _LateError
  part = os.read(stream.fileno(), min(most, 2**20))
  if not part:
    raise UnreadableFile("ended")
  into += part


# The process.


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
  """Answers requests until there are no more."""
  for line in requests:
    request = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE)  # its signal ends even a loop inside a library
    for part in _answer(request):
      answers.write(part)
    answers.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(request: dict) -> Iterator[bytes | memoryview]:
  try:
    if "how" not in request:
      yield json.dumps(vars(video_io.probe(request["path"]))).encode() + b"\n"
      return
    frames = np.ascontiguousarray(video_io.read(request["path"], **request["how"]))
  except UnreadableFile as error:
    memory = "MemoryError" in str(error) or "Cannot allocate memory" in str(error)
    yield json.dumps({"unreadable": "decoding needs too much memory" if memory else str(error)}).encode() + b"\n"
  except ValueError as error:
    yield json.dumps({"argument": str(error)}).encode() + b"\n"
  else:
    yield json.dumps({"shape": frames.shape}).encode() + b"\n"
    yield frames.data.cast("B")


def main(memory: int) -> None:
  """Gives up what decoding doesn't need, then serves."""
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  answers = os.fdopen(os.dup(1), "wb")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints must not look like an answer
  with contextlib.suppress(BrokenPipeError):
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
  main(int(sys.argv[1]))
