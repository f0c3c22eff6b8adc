"""Sweeps: what a workdir refuses, what is launched, and what became of each run."""

import copy
import json
import math
import os
import pathlib

import pytest

from sora_jax.errors import InputError
from sora_jax.jobs import sweep, sweep_runs
from sora_jax.runtime import child
from sora_jax.runtime.goodput import DONE, KILLED
from sora_jax.scaling import seal
from sora_jax.settings import digest_of
from tests.jobs.sweep_runs_test import GRID, make

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_workdir_keeps_to_one_sweep_which_may_grow_and_shrink(tiny_config, tmp_path):
  file, more = make((("seed", (0, 1)),)), make((("seed", (0, 1, 2)),))
  for each in (file, more):
    sweep.begin(tmp_path, each, tiny_config, sweep_runs.planned(each, tiny_config))
  assert list(sweep.read(tmp_path)["runs"]) == ["seed=0", "seed=1", "seed=2"]
  sweep.begin(tmp_path, file, tiny_config, sweep_runs.planned(file, tiny_config))
  assert list(sweep.read(tmp_path)["runs"]) == ["seed=0", "seed=1"]
  other = make((("seed", (0, 1)),), **{"train.learning_rate": 0.5})
  with pytest.raises(InputError, match=r"holds another sweep \(its run seed=0 has other settings\)"):
    sweep.begin(tmp_path, other, tiny_config, sweep_runs.planned(other, tiny_config))
  apart = make((("data.framing", ("native", "square")),))
  with pytest.raises(InputError, match=r"holds another sweep \(none of its runs are these\)"):
    sweep.begin(tmp_path, apart, tiny_config, sweep_runs.planned(apart, tiny_config))
  changed = copy.deepcopy(tiny_config)
  changed.train.learning_rate = 0.5
  with pytest.raises(InputError, match="configs/tiny.py has changed since the sweep in .* began"):
    sweep.begin(tmp_path, file, changed, sweep_runs.planned(file, changed))
  renamed = make((("seed", (0, 1)),))
  renamed.config = "configs/other.py"
  with pytest.raises(InputError, match="holds a sweep of configs/tiny.py, not of configs/other.py"):
    sweep.read(tmp_path, renamed)


def leave(folder, steps: int, step: int, ends: list[str], seconds: float, held_out: float | None = None) -> None:
  """What a run of `sora train` leaves on disk."""
  logs = folder / "logs"
  logs.mkdir(parents=True)
  account = {
    "wall_seconds": seconds + 5, "starts": len(ends) or 1, "ends": ends, "lost_steps": 0,
    "seconds": dict.fromkeys(("init", "compile", "data", "step", "eval", "checkpoint", "other", "lost"), 0.0),
    "models": {"transformer": {"step": step, "seconds": seconds}},
  }  # fmt: skip
  (logs / "goodput.json").write_text(json.dumps(account))
  (logs / "metrics.jsonl").write_text(json.dumps({"step": step, "held_out": held_out}) + "\n")
  if step == steps:
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)


def test_status_tells_what_became_of_each_run(tiny_config, tmp_path):
  file = make((("flops", (2e9,)), ("seed", (0, 1, 2, 3, 4))))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  steps = next(iter(runs.values())).steps
  preempted = "Preempted: SIGTERM"
  leave(tmp_path / "seed=0", steps, steps, [preempted, preempted, DONE], 10.0, 0.5)
  leave(tmp_path / "seed=1", steps, steps, [KILLED, DONE], 11.0, 0.6)
  leave(tmp_path / "seed=2", steps, steps, [DONE], 31.0, 0.7)
  leave(tmp_path / "seed=3", steps, steps // 2, [], 5.0)
  found = sweep.status(str(tmp_path))
  assert found["counts"] == {"waiting": 1, "begun": 1, "done": 3, "diverged": 0}
  states = {name: (each["state"], each["starts"], each["ends"], each["slow"]) for name, each in found["runs"].items()}
  assert states["seed=0"] == ("done", 3, [preempted, preempted, DONE], None)
  assert states["seed=1"] == ("done", 2, [KILLED, DONE], None)
  assert states["seed=2"][3] == pytest.approx(31 / 10.5, rel=0.1)  # the median of the others
  assert states["seed=3"][:2] == ("begun", 1) and states["seed=4"][0] == "waiting"
  assert found["runs"]["seed=1"]["held_out"] == 0.6 and found["runs"]["seed=3"]["held_out"] is None
  assert found["flops"] == pytest.approx(3 * runs["seed=0"].flops)


def test_a_start_that_was_killed_falls_silent(tiny_config, tmp_path):
  file = make((("flops", (2e9,)), ("seed", (0, 1, 2))))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for name, ends in (("seed=0", []), ("seed=1", []), ("seed=2", [KILLED])):
    leave(tmp_path / name, 9, 3, ends, 5.0)
  for name in ("seed=0", "seed=2"):
    path = tmp_path / name / "logs" / "goodput.json"
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
  silent = {name: each["silent"] for name, each in sweep.status(str(tmp_path))["runs"].items()}
  assert silent["seed=0"] == pytest.approx(3600, abs=60) and silent["seed=1"] is None and silent["seed=2"] is None


def test_there_is_no_status_without_a_sweep(tmp_path):
  with pytest.raises(InputError, match="holds no sweep"):
    sweep.status(str(tmp_path))
  (tmp_path / "sweep.json").write_text('{"runs": {"a": {}}}')
  with pytest.raises(InputError, match="is no sweep's file"):
    sweep.status(str(tmp_path))


class Launched:
  """Takes the place of the processes that a sweep starts."""

  def __init__(self, monkeypatch, codes=(0, 0, 0)):
    """`codes`: exit statuses of the launcher's dry run, of preparing and of the launcher."""
    self.calls, self.runs, self.codes = [], {}, list(codes)
    monkeypatch.setattr(child, "call", self.call)

  def call(self, words, **_) -> int:
    self.calls.append(words)
    for word in words:
      if word.startswith("--runs="):
        self.runs = json.loads(pathlib.Path(word.partition("=")[2]).read_text())
    return self.codes.pop(0)


def test_runs_that_are_left_are_given_to_the_launcher_with_what_is_prepared(tiny_config, tmp_path, monkeypatch):
  launched = Launched(monkeypatch)
  file = make((("flops", (2e9,)), ("seed", (0, 1))), **{"train.learning_rate": 0.02})
  steps = next(iter(sweep_runs.planned(file, tiny_config).values())).steps
  leave(tmp_path / "seed=1", steps, steps, [DONE], 10.0, 0.5)
  found = sweep.run(file, tiny_config, str(tmp_path), sweep.Where("slurm", flags=("--nodes=2",)))
  dry, prepared, launch = launched.calls
  assert dry[1:3] == [launch[1], "--dry_run"] and dry[-2:] == launch[-2:]
  (folder,) = tmp_path.glob("prepared-*")
  assert prepared[2:4] == ["sora_jax.cli", "precompute"] and f"--workdir={folder}" in prepared
  assert f"--config.seed={tiny_config.seed}" in prepared and "--config.train.eval_every=1" in prepared
  assert launch[1].endswith("launch/sweep.py") and launch[-2:] == ["--", "--nodes=2"] and "--on=slurm" in launch
  words = launched.runs
  assert list(words) == ["seed=0"] and f"data.prepared={folder}" in words["seed=0"]
  assert {"seed=0", f"data.seed={tiny_config.seed}", f"train.steps={steps}"} <= set(words["seed=0"])
  assert found["counts"] == {"waiting": 1, "begun": 0, "done": 1, "diverged": 0}


def test_runs_can_be_chosen_by_their_names(tiny_config, tmp_path, monkeypatch):
  launched, file = Launched(monkeypatch), make((("seed", (0, 1, 10)),))
  with pytest.raises(InputError, match="--only seed=2 fits none of the 3 runs: one of them is seed=0"):
    sweep.run(file, tiny_config, str(tmp_path), sweep.Where("slurm"), only=("seed=1", "seed=2"))
  assert not launched.calls
  found = sweep.run(file, tiny_config, str(tmp_path), sweep.Where("slurm"), only=("seed=0", "*=1?"))
  assert list(launched.runs) == ["seed=0", "seed=10"] and len(found["runs"]) == 3


def test_when_all_are_done_nothing_is_started(tiny_config, tmp_path, monkeypatch):
  launched, file = Launched(monkeypatch), make((("flops", (2e9,)),))
  steps = sweep_runs.planned(file, tiny_config)["run"].steps
  leave(tmp_path / "run", steps, steps, [DONE], 10.0, 0.5)
  assert sweep.run(file, tiny_config, str(tmp_path), sweep.Where())["counts"]["done"] == 1 and not launched.calls


def test_runs_that_don_t_end_are_named(tiny_config, tmp_path, monkeypatch):
  Launched(monkeypatch, (0, 0, 1))
  with pytest.raises(sweep.SweepFailed, match=r"2 of 2 runs did not end \(seed=0, seed=1\): `sora sweep status"):
    sweep.run(make((("seed", (0, 1)),)), tiny_config, str(tmp_path), sweep.Where())
  Launched(monkeypatch, (0, 3))
  with pytest.raises(sweep.SweepFailed, match="preparing .* ended with status 3"):
    sweep.run(make((("seed", (0, 1)),)), tiny_config, str(tmp_path / "other"), sweep.Where())


def test_what_the_launcher_refuses_is_not_prepared(tiny_config, tmp_path, monkeypatch):
  launched = Launched(monkeypatch, (2,))
  with pytest.raises(sweep.SweepFailed, match="launch/sweep.py --on slurm can't do this"):
    sweep.run(make((("seed", (0, 1)),)), tiny_config, str(tmp_path), sweep.Where("slurm", 2))
  assert len(launched.calls) == 1


def test_large_runs_don_t_start_without_sealed_predictions_of_them(tiny_config, tmp_path, monkeypatch):
  launched = Launched(monkeypatch)
  file = make((("flops", (2e9,)),), (("flops", (2e10,)),))
  with pytest.raises(InputError, match="no sealed predictions: run sora sweep fit"):
    sweep.run(file, tiny_config, str(tmp_path), sweep.Where(), "sealed")
  seal.write(tmp_path, {"predictions": {"sealed_run": {"flops": 1.0}}})
  with pytest.raises(InputError, match="has no prediction of the run sealed_run"):
    sweep.run(file, tiny_config, str(tmp_path), sweep.Where(), "sealed")
  assert not launched.calls


def test_large_runs_are_those_whose_loss_was_predicted(tiny_config, tmp_path, monkeypatch):
  launched, file = Launched(monkeypatch), make((("flops", (2e9,)),), (("flops", (2e10,)),))
  large = sweep_runs.planned(file, tiny_config)["sealed_run"]
  prediction = {"flops": large.flops, "settings": large.settings | {"train.log_every": 7}}
  seal.write(tmp_path, {"base": digest_of(tiny_config), "predictions": {"sealed_run": prediction}})
  with pytest.raises(InputError, match="predicts the run sealed_run with other settings"):
    sweep.run(file, tiny_config, str(tmp_path), sweep.Where(), "sealed")
  other = tmp_path / "other"
  other.mkdir()
  seal.write(other, {"base": "of another", "predictions": {"sealed_run": {"flops": large.flops}}})
  with pytest.raises(InputError, match="of another config: undo what changed"):
    sweep.run(file, tiny_config, str(other), sweep.Where(), "sealed")
  assert not launched.calls


def test_what_was_sealed_on_another_machine_may_differ_in_its_last_digit(tiny_config, tmp_path, monkeypatch):
  launched, file = Launched(monkeypatch, (0, 0, 0)), make((("flops", (2e9,)),), (("flops", (2e10,)),))
  large = sweep_runs.planned(file, tiny_config)["sealed_run"]
  seal.write(tmp_path, {"predictions": {"sealed_run": {"flops": math.nextafter(large.flops, 0.0)}}, "points": []})
  sweep.run(file, tiny_config, str(tmp_path), sweep.Where("slurm"), "sealed")
  assert list(launched.runs) == ["sealed_run"]


def test_a_line_that_is_half_written_and_a_loss_that_is_none_stop_no_sweep(tiny_config, tmp_path):
  file = make((("flops", (2e9,)), ("seed", (0, 1))))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for (name, each), loss in zip(runs.items(), (0.5, math.nan), strict=True):
    leave(tmp_path / name, each.steps, each.steps, [DONE], 10.0, loss)
  with (tmp_path / "seed=0" / "logs" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 1')
  found = sweep.status(str(tmp_path))["runs"]
  assert (found["seed=0"]["state"], found["seed=0"]["held_out"]) == ("done", 0.5)
  assert (found["seed=1"]["state"], found["seed=1"]["held_out"]) == ("diverged", None)


def test_a_run_that_diverged_has_ended(tiny_config, tmp_path, monkeypatch):
  """Another start would end the same way; the others go on."""
  launched, file = Launched(monkeypatch, (0, 0, 1)), make((("train.learning_rate", (0.1, 1.0)),))
  leave(tmp_path / "learning_rate=1", 2, 1, ["NonFiniteLoss: step 2: loss nan"], 3.0)
  with pytest.raises(sweep.SweepFailed, match=r"1 of 1 runs did not end \(learning_rate=0.1\)"):
    sweep.run(file, tiny_config, str(tmp_path), sweep.Where())
  assert list(launched.runs) == ["learning_rate=0.1"] and len(launched.calls) == 3
  leave(tmp_path / "learning_rate=0.1", tiny_config.train.steps, tiny_config.train.steps, [DONE], 3.0, 0.5)
  found = sweep.run(file, tiny_config, str(tmp_path), sweep.Where())
  assert found["counts"] == {"waiting": 0, "begun": 0, "done": 1, "diverged": 1}


def test_runs_of_other_data_are_prepared_apart_and_each_once(tiny_config, tmp_path, monkeypatch):
  launched = Launched(monkeypatch, (0,) * 6)
  file = make((("data.framing", ("native", "square")), ("seed", (0, 1))))
  for _ in range(2):
    sweep.run(file, tiny_config, str(tmp_path), sweep.Where())
  calls = [words for words in launched.calls if "--dry_run" not in words]
  assert ["precompute" in words for words in calls] == [True, True, False, False]
  assert ["--config.data.framing=square" in words for words in calls] == [False, True, False, False]
  words = launched.runs
  folder = {name: next(w for w in each if w.startswith("data.prepared=")) for name, each in words.items()}
  assert folder["framing=native_seed=0"] == folder["framing=native_seed=1"] != folder["framing=square_seed=0"]


def test_runs_of_data_that_is_prepared_have_its_seed(tiny_config, tmp_path, monkeypatch):
  launched = Launched(monkeypatch, (0, 0))
  file = make((("seed", (0, 1)),), **{"data.prepared": str(tmp_path / "there")})
  sweep.run(file, tiny_config, str(tmp_path / "w"), sweep.Where())
  assert not any("precompute" in words for words in launched.calls)
  assert all(f"data.seed={tiny_config.seed}" in words for words in launched.runs.values())


@pytest.mark.parametrize(
  ("seconds", "at_once", "time"),
  [(7200.0, 1, "about 2.00 hours"), (7200.0, 2, "about 1.00 hours"), (None, 1, "no run")],
)
def test_what_is_left_is_told_with_its_time(tiny_config, capsys, seconds, at_once, time):
  runs = sweep_runs.planned(make(GRID), tiny_config)
  sweep.tell(9, len(runs), sum(each.flops for each in runs.values()), seconds, at_once)
  said = capsys.readouterr().err
  assert said.startswith("sweep: 8 of 9 runs are left, 2.4") and time in said


def test_a_run_takes_as_long_as_others_of_its_model_or_as_all_others(tiny_config, tmp_path):
  runs = sweep_runs.planned(make(GRID), tiny_config)
  sweep.begin(tmp_path, make(GRID), tiny_config, runs)
  assert sweep.status(str(tmp_path))["seconds_left"] is None
  small, large = "width=16_heads=2_flops=2e+09_seed=0", "width=32_heads=4_flops=2e+09_seed=0"
  leave(tmp_path / small, runs[small].steps, runs[small].steps, [DONE], 10.0, 0.5)
  found = sweep.status(str(tmp_path))
  beside = 5.0  # seconds of a run that are not of its steps
  # Budgets of 1 + 2 x 2 and 2 x 1 + 2 x 2 times, in seven runs.
  assert found["seconds_left"] == pytest.approx(10.0 * 11 + 7 * beside, rel=0.1)
  assert found["flops_left"] == pytest.approx(2.2e10, rel=0.1)
  half = tmp_path / "half"
  sweep.begin(half, make(GRID), tiny_config, runs)
  leave(half / small, runs[small].steps, runs[small].steps // 2, [], 5.0)
  assert sweep.status(str(half))["flops_left"] == pytest.approx(2.3e10, rel=0.05)
  leave(tmp_path / large, runs[large].steps, runs[large].steps, [DONE], 30.0, 0.5)
  assert sweep.status(str(tmp_path))["seconds_left"] == pytest.approx(10.0 * 5 + 30.0 * 5 + 6 * beside, rel=0.1)
