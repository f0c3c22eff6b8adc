"""Sweeps of 40 runs on a stand-in of Slurm and of a TPU pod: some are preempted, one dies, one is slow, all end once.

The stand-ins (tests/launch/fakes.py) train by counting steps and leave what `sora train` leaves.
"""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.launch import fake_gcloud, fakes
from tests.launch.conftest import ROOT, Sandbox

pytestmark = pytest.mark.slow
STEPS = 6
NAMES = [f"learning_rate=0.00{rate}_seed={seed}" for rate in range(1, 9) for seed in range(5)]
PREEMPTED, DEAD, SLOW = (NAMES[3], NAMES[17], NAMES[30]), NAMES[8], NAMES[25]
FILE = f"""
import ml_collections

def get_config(arg=""):
  rates, seeds = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008), (0, 1, 2, 3, 4)
  return ml_collections.ConfigDict({{
    "config": "configs/dit.py:variant=S,runlocal=1",
    "settings": (("train.steps", {STEPS}), ("data.prepared", "prepared")),
    "grid": (("train.learning_rate", rates), ("seed", seeds)),
    "sealed": (),
  }})
"""


class Sweep:
  """`sora sweep` in a sandbox in which launchers find stand-ins."""

  def __init__(self, sandbox: Sandbox, *where: str):
    self.sandbox, self.where = sandbox, [f"--launch={each}" for each in where]
    self.config = sandbox.folder / "sweep_of_a_test.py"
    self.config.write_text(FILE)
    (self.folder(SLOW)).mkdir(parents=True)
    (self.folder(SLOW) / "slow").write_text("8")

  def folder(self, name: str):
    return self.sandbox.workdir / name

  def sora(self, *words: str) -> tuple[int, dict, str]:
    """(exit status, the JSON object that it prints, its messages)."""
    command = [sys.executable, "-m", "sora_jax.cli", "sweep", *words, f"--workdir={self.sandbox.workdir}", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=self.sandbox.env, capture_output=True, text=True, timeout=500)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}, done.stderr

  def run(self, on: str) -> tuple[int, dict, str]:
    return self.sora("run", f"--config={self.config}", f"--on={on}", *self.where)

  def must_have_ended_each_once(self, ends_of_dead: list[str], ends_of_preempted: list[str]) -> None:
    code, found, errors = self.sora("status")
    assert code == 0, errors
    assert found["counts"] == {"waiting": 0, "begun": 0, "done": 40, "diverged": 0}
    for name, run in found["runs"].items():
      special = {DEAD: ends_of_dead, **dict.fromkeys(PREEMPTED, ends_of_preempted)}
      assert run["ends"] == [*special.get(name, []), "done"], name
      assert bool(run["slow"]) == (name == SLOW), name
      starts = self.sandbox.starts(self.folder(name))
      assert len(starts) == run["starts"] and starts[0]["step"] == 0 and run["step"] == STEPS
      seen = next(word for word in starts[0]["argv"] if word.startswith("--config.train.learning_rate"))
      assert seen.endswith(name.partition("_seed")[0].partition("learning_rate")[2].lstrip("="))


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
  monkeypatch.setenv("FAKE_CLOUD", str(tmp_path / "cloud"))
  made = Sandbox(tmp_path)
  yield made
  fake_gcloud.wipe()
  for path in made.state().get("scripts", []):
    pathlib.Path(path).unlink()


def test_forty_runs_on_slurm(sandbox):
  sora = sandbox.folder / "bin" / "sora"
  sweep = Sweep(sandbox, "--gpus=1", "--time=1:00:00", f"--sora={sora}", "--pause=0.02")
  code, found, errors = sweep.run("slurm")
  assert code == 0 and found["counts"]["waiting"] == 40, errors
  scripts = sandbox.state()["queue"]
  sandbox.set(scripts=scripts)
  assert len(scripts) == 40
  for name, script in zip(NAMES, scripts, strict=True):
    sandbox.set(script=script, again=True)
    warn, dies = ([3] if name in PREEMPTED else []), (2 if name == DEAD else None)
    fakes.run_job(sandbox.env, warn, sweep.folder(name), dies)
  _, found, _ = sweep.sora("status")
  assert found["counts"] == {"waiting": 0, "begun": 1, "done": 39, "diverged": 0}
  assert found["runs"][DEAD]["step"] in range(2, STEPS) and found["runs"][DEAD]["ends"] == []
  sandbox.set(queue=[])
  assert sweep.run("slurm")[0] == 0
  (again,) = sandbox.state()["queue"]  # the others have ended, and are not queued
  sandbox.set(script=again, again=True)
  assert fakes.run_job(sandbox.env) == [0]
  sweep.must_have_ended_each_once(["killed"], ["Preempted: SIGTERM"])


def test_forty_runs_on_a_pod(sandbox):
  """They train one after another on one resource, which is taken away three times."""
  pod = ["my-pod", "--zone=us-central2-b", "--accelerator=v4-8", "--runtime=r", "--poll=0.02", "--max_restarts=0"]
  sweep = Sweep(sandbox, *pod)
  sandbox.set(path=[], taken={str(sweep.folder(name)): 3 for name in PREEMPTED})
  sweep.folder(DEAD).mkdir()
  (sweep.folder(DEAD) / "faults.json").write_text(json.dumps({"2": 9}))
  code, _, errors = sweep.run("tpu_pod")
  assert code == 1 and f"1 of 40 runs did not end ({DEAD})" in errors.splitlines()[-1]
  code, found, _ = sweep.run("tpu_pod")
  assert code == 0 and found["counts"]["done"] == 40
  sweep.must_have_ended_each_once(["SoraError: fault 9"], ["killed"])
  verbs = [call[4] for call in sandbox.calls("gcloud")]
  assert verbs.count("create") == 1 + len(PREEMPTED) + 1  # the last for the run that was left
  assert verbs[-1] == "delete" and not sandbox.state()["resource"]
