"""Signals to real runs, in every phase: what is begun is finished and saved, the exit status is 75, and the same
command ends with the same bits as a run that was never preempted."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.runtime import preemption
from tests import several

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40
CHANGES = {
  "data.clips": 24,
  "autoencoder.steps": 20,
  "model.depth": 1,
  "train.steps": STEPS,
  "train.checkpoint_every": 10,
  "train.log_every": 1,
  "train.preview_every": 8,
  "train.keep": 9,
}
PATIENCE = 600  # seconds
GOES_ON = "the same command goes on from there"


def words(workdir: pathlib.Path, **changes: str) -> list[str]:
  config = f"--config={ROOT / 'configs' / 'dit.py'}:runlocal=1"
  settings = [f"--config.{key}={value}" for key, value in (CHANGES | changes).items()]
  return [sys.executable, "-m", "sora_jax.cli.main", "train", config, f"--workdir={workdir}", "--json", *settings]


def start(workdir: pathlib.Path, cold: bool = False, **changes: str) -> subprocess.Popen:
  """The run in a process group of its own; a `cold` one finds no compiled programs but those of its workdir."""
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  environ = {**os.environ, "PYTHONPATH": path}
  if cold:
    del environ["JAX_COMPILATION_CACHE_DIR"]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(words(workdir, **changes), env=environ, cwd=ROOT, start_new_session=True, **pipes)


def account(workdir: pathlib.Path) -> dict:
  path = workdir / "logs" / "goodput.json"
  return json.loads(path.read_text()) if path.exists() else {"phase": "", "models": {}}


def in_phase(phase: str, model: str = "transformer") -> Callable[[pathlib.Path], bool]:
  return lambda workdir: account(workdir)["phase"] == phase and model in account(workdir)["models"]


def reached(step: int, model: str = "transformer") -> Callable[[pathlib.Path], bool]:
  return lambda workdir: account(workdir)["models"].get(model, {"step": -1})["step"] >= step


def saving(workdir: pathlib.Path) -> bool:
  return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def encoding(workdir: pathlib.Path) -> bool:
  return (workdir / "latents" / "key.json").exists()


def tell(
  workdir: pathlib.Path, ready: Callable[[pathlib.Path], bool], signals: tuple[int, ...], cold: bool = False, **changes
) -> str:
  """Sends the signals to all processes of the run as soon as `ready`; returns the line that it ended with."""
  with start(workdir, cold, **changes) as process:
    try:
      deadline = time.monotonic() + PATIENCE
      while not ready(workdir):
        assert process.poll() is None, f"the run ended before it was preempted: {process.stderr.read()[-2000:]}"
        assert time.monotonic() < deadline, "the run never came so far"
        time.sleep(0.005)
      for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.05)
      out, err = process.communicate(timeout=PATIENCE)
    finally:
      process.kill()
  assert process.returncode == preemption.REQUEUE, err
  assert not out and "Traceback" not in err
  # Workers leave shared memory behind, which a process of Python's cleans up and tells of.
  said = [line for line in err.splitlines() if "resource_tracker" not in line and "warnings.warn" not in line]
  lines = [line for line in said if line.startswith("sora: ")]
  assert lines == said[-1:], err
  assert lines[0].endswith(GOES_ON)
  return lines[0]


def finish(workdir: pathlib.Path, **changes: str) -> dict:
  process = start(workdir, **changes)
  out, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == 0, err
  return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp("whole") / "w"
  finish(workdir)
  return workdir


def prepared(whole: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
  """A workdir with all that comes before the transformer's first step."""
  workdir.mkdir()
  for name in ("config.json", "autoencoder", "latents", "tokenizer.model"):
    (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, workdir / name)
  return workdir


def steps_of(workdir: pathlib.Path) -> list[int]:
  if not (workdir / "checkpoints").exists():
    return []
  with checkpoint.reader(workdir) as steps:
    return sorted(steps.all_steps())


def assert_goes_on(whole: pathlib.Path, workdir: pathlib.Path, saved: int | None, **changes: str) -> None:
  """The same command ends as a run that was never preempted, and has taken no step twice."""
  found = finish(workdir, **changes)
  assert (found["resumed_from"], found["steps_run"], found["step"]) == (saved, STEPS - (saved or 0), STEPS)
  assert found["goodput"]["lost_steps"] == 0
  assert checkpoint.digest(workdir, STEPS) == checkpoint.digest(whole, STEPS)
  assert checkpoint.digest(workdir / "autoencoder") == checkpoint.digest(whole / "autoencoder")


TERM, INTERRUPT, WARNING = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


@pytest.mark.slow
@pytest.mark.parametrize(
  ("ready", "signals"),
  [
    pytest.param(reached(13), (TERM,), id="step"),
    pytest.param(reached(13), (INTERRUPT, TERM, TERM, INTERRUPT, INTERRUPT, WARNING), id="again_and_again"),
    pytest.param(reached(3), (WARNING,), id="warning"),
    pytest.param(reached(4), (signal.SIGHUP,), id="terminal_gone"),
    pytest.param(in_phase("eval"), (TERM,), id="sample"),
    pytest.param(saving, (TERM, TERM), id="save"),
  ],
)
def test_preempted_while_the_transformer_trains(whole, tmp_path, ready, signals):
  """F12 and F13: in a step, a sample and a save, once and again."""
  workdir = prepared(whole, tmp_path / "w")
  said = tell(workdir, ready, signals)
  saved = int(re.search(r"transformer: step (\d+) of 40 is saved", said)[1])
  assert signal.Signals(signals[0]).name in said
  assert steps_of(workdir)[-1] == saved < STEPS and account(workdir)["models"]["transformer"]["step"] == saved
  assert_goes_on(whole, workdir, saved)


@pytest.mark.slow
def test_preempted_while_xla_compiles(whole, tmp_path):
  """F12."""
  workdir = prepared(whole, tmp_path / "w")
  said = tell(workdir, in_phase("compile"), (TERM, TERM), cold=True)
  assert "transformer: no step of 40 was taken" in said
  assert steps_of(workdir) == []
  assert_goes_on(whole, workdir, None)


@pytest.mark.slow
def test_preempted_while_the_autoencoder_trains_and_while_latents_are_made(whole, tmp_path):
  """F12: while clips are encoded."""
  workdir = tmp_path / "w"
  said = tell(workdir, reached(3, "autoencoder"), (TERM,))
  saved = int(re.search(r"autoencoder: step (\d+) of 20 is saved", said)[1])
  assert steps_of(workdir / "autoencoder") == [saved] and saved < 20
  said = tell(workdir, encoding, (TERM,))
  assert re.search(r"latents: [01] of 1 units are saved", said)
  assert steps_of(workdir / "autoencoder")[-1] == 20 and steps_of(workdir) == []
  assert_goes_on(whole, workdir, None)


@pytest.mark.slow
def test_workers_that_get_the_signal_too_go_on(whole, tmp_path):
  """F13."""
  workdir = prepared(whole, tmp_path / "w")
  workers = {"data.workers": "2"}
  said = tell(workdir, reached(5), (TERM, INTERRUPT, TERM), **workers)
  assert "transformer: step" in said
  assert_goes_on(whole, workdir, steps_of(workdir)[-1], **workers)


def children(process: subprocess.Popen) -> list[int]:
  """Those that any thread of it has started: workers, and a process of Python's that watches over shared memory."""
  found = [path.read_text() for path in pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")]
  assert len(" ".join(found).split()) >= 2
  return list(map(int, " ".join(found).split()))


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(whole, tmp_path):
  workdir = prepared(whole, tmp_path / "w")
  with start(workdir, **{"data.workers": "2"}) as process:
    while not reached(2)(workdir):
      assert process.poll() is None
      time.sleep(0.01)
    left = children(process)
    process.kill()
  deadline = time.monotonic() + 60
  while any(pathlib.Path(f"/proc/{child}").exists() for child in left):
    assert time.monotonic() < deadline
    time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_to_a_worker_alone_ends_nothing(whole, tmp_path):
  """F13."""
  workdir = prepared(whole, tmp_path / "w")
  with start(workdir, **{"data.workers": "1"}) as process:
    while not reached(2)(workdir):
      assert process.poll() is None
      time.sleep(0.01)
    for child in children(process):
      for number in (TERM, INTERRUPT):
        os.kill(child, number)
    _, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == 0, err
  assert checkpoint.digest(workdir, STEPS) == checkpoint.digest(whole, STEPS)


@pytest.mark.slow
def test_one_host_that_is_preempted_ends_all_after_the_same_step(whole, tmp_path):
  """F12, on two hosts."""
  workdir, saved = prepared(whole, tmp_path / "w"), 0
  (workdir / "config.json").unlink()
  longer = {"train.steps": "2000", "train.checkpoint_every": "500", "train.preview_every": "0"}
  for who, reason in ((1, "the preemption of another host"), (0, "SIGTERM")):
    with several.started([words(workdir, **longer)] * 2, tmp_path) as hosts:
      deadline = time.monotonic() + PATIENCE
      while not reached(saved + 3)(workdir):
        assert time.monotonic() < deadline and all(each.poll() is None for each in hosts)
        time.sleep(0.005)
      hosts[who].send_signal(TERM)
      found = several.ended(hosts, tmp_path, PATIENCE)
    assert [each.code for each in found] == [preemption.REQUEUE] * 2, found
    lines = [each.err.splitlines()[-1] for each in found]
    before, saved = saved, steps_of(workdir)[-1]
    assert before < saved < before + 200 and account(workdir)["lost_steps"] == 0
    assert lines[0] == f"sora: ended by {reason}: transformer: step {saved} of 2000 is saved; {GOES_ON}"
    assert lines[1].partition("transformer")[2] == lines[0].partition("transformer")[2]
    assert lines[who].startswith("sora: ended by SIGTERM: ")
  assert account(workdir)["starts"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("ready", "saved"),
  [
    pytest.param(encoding, r"latents: [01] of 1 units are saved", id="cache"),
    pytest.param(in_phase("compile"), r"transformer: (no step of 40 was taken|step \d+ of 40 is saved)", id="compile"),
    pytest.param(in_phase("eval"), r"transformer: step \d+ of 40 is saved", id="sample"),
    pytest.param(saving, r"transformer: step \d+ of 40 is saved", id="save"),
  ],
)
def test_one_host_that_is_preempted_in_any_phase_ends_all_alike(whole, tmp_path, ready, saved):
  """F12, on two hosts; in a step, see above."""
  workdir = prepared(whole, tmp_path / "w")
  (workdir / "config.json").unlink()
  if ready is encoding:
    shutil.rmtree(workdir / "latents")
  commands, cold = [words(workdir)] * 2, {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
  with several.started(commands, tmp_path, **cold) as hosts:
    deadline = time.monotonic() + PATIENCE
    while not ready(workdir):
      assert time.monotonic() < deadline and all(each.poll() is None for each in hosts)
      time.sleep(0.005)
    hosts[1].send_signal(TERM)
    found = several.ended(hosts, tmp_path, PATIENCE)
  assert [each.code for each in found] == [preemption.REQUEUE] * 2, found
  lines = [each.err.splitlines()[-1] for each in found]
  begin = ("sora: ended by the preemption of another host: ", "sora: ended by SIGTERM: ")
  assert all(line.startswith(words) for line, words in zip(lines, begin, strict=True)), lines
  said = [line.partition(": ")[2].partition(": ")[2] for line in lines]
  assert said[0] == said[1] and re.match(saved, said[0]), said
  before = max(steps_of(workdir), default=0)
  with several.started(commands, tmp_path, **cold) as hosts:
    found = several.ended(hosts, tmp_path, PATIENCE)
  assert [each.code for each in found] == [0, 0], found
  summaries = [json.loads(each.out.splitlines()[-1]) for each in found]
  assert [each["steps_run"] for each in summaries] == [STEPS - before] * 2
  assert account(workdir)["lost_steps"] == 0


@pytest.mark.slow
def test_the_time_limit_ends_it_as_a_signal_does(whole, tmp_path):
  """F31."""
  workdir = prepared(whole, tmp_path / "w")
  limit = {"train.max_minutes": "0.0001"}
  with start(workdir, **limit) as process:
    _, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == preemption.REQUEUE
  assert "ended by the time limit (train.max_minutes): transformer: no step of 40 was taken" in err.splitlines()[-1]
  assert_goes_on(whole, workdir, None)


@pytest.mark.slow
def test_an_error_is_still_an_error(tmp_path):
  with start(tmp_path / "w", **{"autoencoder.learning_rate": "10", "train.weight_decay": "10"}) as process:
    _, err = process.communicate(timeout=PATIENCE)
  assert process.returncode == 1 and "nothing was written" in err.splitlines()[-1]
  assert steps_of(tmp_path / "w" / "autoencoder") == []
