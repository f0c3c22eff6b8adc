"""The command `sora train` as tests of faults start it: real processes, with a fault in some of them."""

import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests import several
from tests.several import Ended

PATIENCE = 300  # seconds, for a whole run

# The command, with a fault on host $HOST. A fault is a line that may call these functions.
FAULTY = """
import importlib, os, sys, time

def at(module, name, turn, happen):
  '''Has `happen` called before a function's `turn`th call.'''
  *owners, method = name.split(".")
  owner = importlib.import_module(module)
  for part in owners:
    owner = getattr(owner, part)
  real, turns = getattr(owner, method), []
  def wrapped(*args, **more):
    turns.append(1)
    if len(turns) == turn:
      happen()
    return real(*args, **more)
  setattr(owner, method, wrapped)

def sleep_in(module, name, turn=1):
  at(module, name, turn, lambda: time.sleep(1000))

def fail_in_step(step, error):
  from sora_jax.train import loop
  whole = loop._compile
  def compiled(*args):
    program, steps = whole(*args), []
    def run(*args):
      steps.append(1)
      if len(steps) == step:
        raise error
      return program(*args)
    return run
  loop._compile = compiled

if os.environ["HOST"] in ("all", os.environ["JAX_PROCESS_ID"]):
  {fault}
sys.argv[0] = "sora"
from sora_jax.cli import main
main.main()
"""


class Runs:
  """A config as commands."""

  def __init__(self, folder: pathlib.Path, config: dict):
    self.folder, self.whole = folder, config
    self.config = folder / "tiny.py"
    self.config.write_text(f"import ml_collections\n\nget_config = lambda: ml_collections.ConfigDict({config!r})\n")

  def words(self, workdir: str | pathlib.Path = "w", fault: str = "", **changes: object) -> list[str]:
    program = ["-c", FAULTY.replace("{fault}", fault)] if fault else ["-m", "sora_jax.cli.main"]
    settings = [f"--config.{key}={value}" for key, value in changes.items()]
    folder = self.folder / workdir
    return [sys.executable, *program, "train", f"--config={self.config}", f"--workdir={folder}", "--json", *settings]

  @contextlib.contextmanager
  def started(self, *commands: list[str], **env: str) -> Iterator[list[subprocess.Popen]]:
    """A host for each command."""
    env = {"SORA_HOST_SECONDS": str(PATIENCE), "HOST": "all", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **env}
    with several.started(commands, self.folder, **env) as processes:
      yield processes

  def ended(self, *commands: list[str], **env: str) -> list[Ended]:
    with self.started(*commands, **env) as processes:
      return several.ended(processes, self.folder, PATIENCE)

  def finished(self, count: int, workdir: str, fault: str = "", **changes: object) -> list[Ended]:
    """The hosts of a run that ends well."""
    found = self.ended(*[self.words(workdir, fault, **changes)] * count)
    assert [each.code for each in found] == [0] * count, "\n".join(each.err for each in found)
    return found

  def failed(self, workdir: str = "w", fault: str = "", **changes: object) -> str:
    """The one line that a run of one host ends with, when it ends with status 1 and says nothing else of it."""
    (found,) = self.ended(self.words(workdir, fault, **changes))
    said = [line for line in found.err.splitlines() if line.startswith("sora: ")]
    assert found.code == 1 and said == found.err.splitlines()[-1:] and "Traceback" not in found.err, found.err
    return said[0]


def summary(found: Ended) -> dict:
  return json.loads(found.out.splitlines()[-1])


def logged(workdir: pathlib.Path) -> int:
  """The last step in the transformer's log."""
  path = workdir / "logs" / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return json.loads(lines[-1])["step"] if lines else 0


def wait_for(ready: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
  limit = time.monotonic() + PATIENCE
  while not ready():
    assert all(process.poll() is None for process in processes), "the run ended too soon"
    assert time.monotonic() < limit, "the run never came so far"
    time.sleep(0.02)
