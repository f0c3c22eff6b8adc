"""Runs of several processes on this machine, as tests start them: one device each, joined by the variables of JAX."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
  """How a process ended."""

  code: int
  out: str
  err: str


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def environment(count: int, index: int, port: int, **more: str) -> dict[str, str]:
  place = {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
  }
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  return {**os.environ, **place, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **more}


@contextlib.contextmanager
def started(
  commands: Sequence[Sequence[str]], folder: pathlib.Path, absent: Sequence[int] = (), **more: str
) -> Iterator[list[subprocess.Popen]]:
  """The processes of a run, a command each but for those that are `absent`; all are killed when the context ends.

  Args:
    folder: where they run, and where host 1 leaves out-1 and err-1.
    more: environment variables.
  """
  port, found = free_port(), []
  for path in [*folder.glob("out-*"), *folder.glob("err-*")]:
    path.unlink()
  try:
    for index, words in enumerate(commands):
      if index not in absent:
        with open(folder / f"out-{index}", "w") as out, open(folder / f"err-{index}", "w") as err:
          env = environment(len(commands), index, port, **more)
          found.append(subprocess.Popen(words, stdout=out, stderr=err, env=env, cwd=folder))
    yield found
  except BaseException:  # what failed is a test, and pytest shows what it printed
    for path in sorted(folder.glob("err-*")):
      print(f"{path.name}: {path.read_text()[-2000:]}")
    raise
  finally:
    for process in found:
      process.kill()
      process.wait()


def ended(processes: Sequence[subprocess.Popen], folder: pathlib.Path, seconds: float) -> list[Ended]:
  """Waits for all of them."""
  limit = time.monotonic() + seconds
  for process in processes:
    process.wait(max(limit - time.monotonic(), 0.01))
  read = lambda name: [path.read_text(errors="replace") for path in sorted(folder.glob(f"{name}-*"))]
  codes = [process.returncode for process in processes]
  return [Ended(*each) for each in zip(codes, read("out"), read("err"), strict=True)]


def python(code: str, count: int) -> list[list[str]]:
  return [[sys.executable, "-c", code]] * count
