"""Where the time of a run went, for real: killed twice, its account still sums to what a clock beside it measures."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sora_jax.data.latents import LatentStore
from sora_jax.jobs.train import train
from sora_jax.runtime import goodput
from sora_jax.train.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 400


def start(workdir: pathlib.Path) -> subprocess.Popen:
  changes = {"data.clips": 24, "autoencoder.steps": 6, "model.depth": 1, "train.steps": STEPS, "train.keep": 2}
  changes |= {"train.checkpoint_every": 100, "train.log_every": 1, "train.preview_every": 150}
  settings = [f"--config.{key}={value}" for key, value in changes.items()]
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  config = f"--config={ROOT / 'configs' / 'dit.py'}:runlocal=1"
  words = [sys.executable, "-m", "sora_jax.cli.main", "train", config, f"--workdir={workdir}", "--json", *settings]
  return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


def last_step(workdir: pathlib.Path) -> int:
  return max((line["step"] for line in read_metrics(workdir / "logs")), default=0)


def kill_at(workdir: pathlib.Path, step: int) -> float:
  """Kills the run without warning when it has logged `step`; returns the seconds that it ran."""
  begin = time.monotonic()
  with start(workdir) as process:
    while last_step(workdir) < step:
      assert process.poll() is None and time.monotonic() - begin < 600
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    seconds = time.monotonic() - begin
  assert process.returncode == -signal.SIGKILL
  return seconds


@pytest.mark.slow
def test_two_kills_in_one_run(tmp_path):
  """F31."""
  workdir = tmp_path / "w"
  measured, reached, lost = 0.0, [], 0
  for step in (150, 290):
    measured += kill_at(workdir, step)
    found = goodput.read(workdir / "logs")
    assert sum(found["seconds"].values()) == pytest.approx(measured, rel=0.01)
    reached.append(found["models"]["transformer"]["step"])
    assert abs(reached[-1] - last_step(workdir)) <= 20  # the file is a little older
  begin = time.monotonic()
  with start(workdir) as process:
    result = json.loads(process.stdout.readline())  # before Python takes its time to end
    measured += time.monotonic() - begin
  found = result["goodput"]
  lost = (reached[0] - 100) + (reached[1] - 200)
  assert result["resumed_from"] == 200 and found["starts"] == 3
  assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"], rel=1e-6)
  assert found["wall_seconds"] == pytest.approx(measured, rel=0.01)
  assert found["lost_steps"] == lost > 0
  a_step = found["models"]["transformer"]["seconds"] / STEPS
  assert found["seconds"]["lost"] == pytest.approx(lost * a_step, rel=0.5)
  assert all(found["seconds"][phase] > 0 for phase in goodput.PHASES)


@pytest.mark.slow
def test_one_program_serves_a_thousand_mixed_steps(trained, tiny_config, tmp_path):
  shutil.copytree(trained / "autoencoder", tmp_path / "w" / "autoencoder")
  tiny_config.train.update(steps=1000, checkpoint_every=300, preview_every=500)
  compiled = []
  listen = lambda event, seconds, **about: compiled.append(about["fun_name"]) if event == goodput.COMPILED else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    summary = train(tiny_config, tmp_path / "w")
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert summary.steps_run == 1000
  assert compiled.count("jit(step)") == 1, compiled
  store = LatentStore(tmp_path / "w" / "latents")
  assert len(np.unique(store.shape_N4, axis=0)) >= 4  # sizes and durations share the rows
