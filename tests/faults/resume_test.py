"""A killed process, for real: the same command again ends with the same bits as a run that was never stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from sora_jax.checkpoints import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40


def command(workdir: pathlib.Path) -> list[str]:
  changes = {
    "data.clips": 24,
    "autoencoder.steps": 6,
    "model.depth": 1,
    "train.steps": STEPS,
    "train.checkpoint_every": 10,
    "train.log_every": 5,
    "train.keep": 9,
  }
  words = [f"--config.{key}={value}" for key, value in changes.items()]
  config = ROOT / "configs" / "dit.py"
  return [
    *(sys.executable, "-m", "sora_jax.cli.main", "train", "--config", f"{config}:runlocal=1"),
    *("--workdir", str(workdir), "--json", *words),
  ]


def environment() -> dict[str, str]:
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  return {**os.environ, "PYTHONPATH": path}


def finish(workdir: pathlib.Path) -> dict:
  done = subprocess.run(
    command(workdir), capture_output=True, text=True, timeout=900, env=environment(), cwd=workdir.parent, check=False
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def logged(workdir: pathlib.Path) -> list[int]:
  path = workdir / "logs" / "metrics.jsonl"
  return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def kill_when(workdir: pathlib.Path, ready) -> None:
  """Starts the run, and kills it without warning as soon as `ready()`; it must not have ended by itself."""
  with subprocess.Popen(
    command(workdir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), cwd=workdir.parent
  ) as process:
    deadline = time.monotonic() + 900
    while not ready():
      assert process.poll() is None, "the run ended before it could be killed"
      assert time.monotonic() < deadline, "the run never came so far"
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp("whole") / "w"
  found = finish(workdir)
  assert (found["step"], found["steps_run"], found["resumed_from"]) == (STEPS, STEPS, None)
  return workdir


def assert_same(whole: pathlib.Path, workdir: pathlib.Path):
  wanted, found = checkpoint.digest(whole, STEPS), checkpoint.digest(workdir, STEPS)
  assert found == wanted
  assert found["params"] != checkpoint.digest(workdir, STEPS - 10)["params"]
  assert logged(workdir) == logged(whole) == list(range(5, STEPS + 1, 5))


@pytest.mark.slow
def test_killed_while_the_transformer_trains(whole, tmp_path):
  """F01."""
  workdir = tmp_path / "w"
  saved = workdir / "checkpoints" / "20"
  kill_when(workdir, lambda: saved.is_dir() or max(logged(workdir), default=0) >= 25)
  with checkpoint.reader(workdir) as steps:
    newest = steps.latest_step()
  assert newest is not None and 10 <= newest < STEPS
  found = finish(workdir)
  assert (found["resumed_from"], found["steps_run"], found["step"]) == (newest, STEPS - newest, STEPS)
  assert_same(whole, workdir)


@pytest.mark.slow
def test_killed_again_and_again(whole, tmp_path):
  """F01, in other phases too."""
  workdir = tmp_path / "w"
  for path in ("autoencoder/checkpoints/6", "latents/index.json", "checkpoints/10"):
    kill_when(workdir, lambda wanted=workdir / path: wanted.exists())
  finish(workdir)
  assert_same(whole, workdir)


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_changes_nothing(whole):
  before = checkpoint.digest(whole)
  found = finish(whole)
  assert (found["steps_run"], found["resumed_from"], found["step"]) == (0, STEPS, STEPS)
  assert checkpoint.digest(whole) == before
