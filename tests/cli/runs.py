"""The `sora` command in this process, which takes no second for a mistake, and in one of its own."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from sora_jax.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Done(NamedTuple):
  returncode: int
  stdout: str
  stderr: str


def run(capsys: pytest.CaptureFixture, *words: object) -> Done:
  """Runs a command here."""
  capsys.readouterr()
  status = main.run([str(word) for word in words])
  return Done(status, *capsys.readouterr())


def process(*words: object, cwd: pathlib.Path = ROOT) -> Done:
  """Runs a command as a shell does."""
  command = [sys.executable, "-m", "sora_jax.cli", *map(str, words)]
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  environment = {**os.environ, "PYTHONPATH": path}
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False)
  return Done(done.returncode, done.stdout, done.stderr)


def result(done: Done) -> dict:
  """The JSON that a command ends with."""
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def complaint(done: Done, status: int) -> str:
  """The one line that a mistake is answered with."""
  assert done.returncode == status, done
  assert not done.stdout and "Traceback" not in done.stderr
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("sora: "), done.stderr
  return lines[0]
