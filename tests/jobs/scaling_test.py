"""Fits of sweeps: the law, sealed predictions and how they fared, the figures of the report."""

import copy
import json
import shutil

import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.jobs import scaling, sweep, sweep_report, sweep_runs
from sora_jax.runtime.goodput import DONE
from sora_jax.scaling import law, seal
from tests.jobs.sweep_runs_test import make
from tests.jobs.sweep_test import leave

TRUE = law.Law(0.2, 4.0, 0.3, 30.0, 0.4)
FILE = make(
  (("model.width,model.heads", ((16, 2), (32, 4), (64, 8))), ("flops", (2e9, 8e9, 3.2e10)), ("seed", (0, 1))),
  (("model.width,model.heads", ((32, 4), (64, 8))), ("flops", (3.2e11,)), ("seed", (0, 1))),
)


@pytest.fixture
def swept(tiny_config, tmp_path):
  """A sweep whose runs are done, its large ones waiting."""
  runs = sweep_runs.planned(FILE, tiny_config)
  sweep.begin(tmp_path, FILE, tiny_config, runs)
  for number, (name, each) in enumerate(runs.items()):
    if not each.sealed:
      loss = float(TRUE.loss(each.params, each.tokens)) * (1 + 0.002 * (number % 2))
      leave(tmp_path / name, each.steps, each.steps, [DONE], 10.0, loss)
  return tmp_path, runs


def test_predictions_are_sealed_before_the_large_runs_and_judged_after(swept):
  folder, runs = swept
  first = scaling.fit(folder, FILE, draws=20)
  assert (
    first["runs"] == 18
    and first["max_error"] is None
    and first["largest_fitted_flops"] == pytest.approx(3.2e10, rel=0.1)
  )
  assert len(first["backtest"]) == 3 and all(abs(error) < 0.02 for error in first["backtest"].values())
  sealed = seal.read(folder)
  assert sealed["sha256"] == first["sha256"] and len(sealed["points"]) == 18
  large = {name: each for name, each in runs.items() if each.sealed}
  for number, (name, each) in enumerate(large.items()):
    loss = float(TRUE.loss(each.params, each.tokens)) + 0.01 * (-1) ** number
    leave(folder / name, each.steps, each.steps, [DONE], 10.0, loss)
  second = scaling.fit(folder, FILE, draws=20)
  assert seal.read(folder) == sealed and second["law"] == first["law"]  # the large ones are no part of the fit
  assert [name for row in second["sealed"] for name in row["runs"]] == list(large) and len(second["sealed"]) == 2
  for row in second["sealed"]:
    assert {sealed["predictions"][name]["predicted"] for name in row["runs"]} == {row["predicted"]}
    assert row["measured"] == pytest.approx(np.mean(row["losses"])) and np.ptp(row["losses"]) == pytest.approx(0.02)
    assert row["error"] == pytest.approx(abs(row["predicted"] - row["measured"]) / row["measured"], abs=1e-5)
    assert row["naive"] == pytest.approx(min(point["loss"] for point in second["points"] if point["flops"] > 2e10))
    assert row["error"] < 0.02 and row["error"] < row["naive_error"] and 0 <= row["error_of_change"] < 1
  assert second["max_error"] == max(row["error"] for row in second["sealed"])
  assert second["seed_spread"] == pytest.approx(0.002 / np.sqrt(2), rel=0.1)


def test_after_sealing_the_grid_s_runs_may_be_gone(swept):
  folder, runs = swept
  first = scaling.fit(folder, FILE, draws=5)
  for name, each in runs.items():
    if not each.sealed:
      shutil.rmtree(folder / name)
  assert scaling.fit(folder, FILE, draws=5) == first


def test_what_was_sealed_stays_whatever_joins_the_grid_or_diverged_in_it(swept, tiny_config, tmp_path_factory):
  folder, runs = swept
  gone = next(iter(runs))
  shutil.rmtree(folder / gone)
  leave(folder / gone, runs[gone].steps, 1, ["NonFiniteLoss: step 2"], 10.0)
  first = scaling.fit(folder, FILE, draws=5)
  assert first["runs"] == 17
  alone = tmp_path_factory.mktemp("alone")
  sweep.begin(alone, FILE, tiny_config, runs)
  shutil.copy(folder / "sealed.json", alone)
  assert scaling.fit(alone, FILE, draws=5) == first
  more = copy.deepcopy(FILE)
  more.grid = (*FILE.grid[:2], ("seed", (0, 1, 2)))
  sweep.begin(folder, more, tiny_config, sweep_runs.planned(more, tiny_config))
  assert scaling.fit(folder, more, draws=5)["law"] == first["law"]


def test_a_grid_that_diverged_has_no_law(tiny_config, tmp_path):
  runs = sweep_runs.planned(FILE, tiny_config)
  sweep.begin(tmp_path, FILE, tiny_config, runs)
  for name, each in runs.items():
    leave(tmp_path / name, each.steps, 1, ["NonFiniteLoss: step 2"], 10.0)
  with pytest.raises(InputError, match="can't be fitted to 0 runs"):
    scaling.fit(tmp_path, FILE)


def test_a_grid_of_one_size_has_no_law(tiny_config, tmp_path):
  file = make((("flops", (2e9, 3e9)), ("seed", (0, 1, 2))))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for name, each in runs.items():
    leave(tmp_path / name, each.steps, each.steps, [DONE], 10.0, 1.0)
  with pytest.raises(InputError, match="can't be fitted to runs of one size"):
    scaling.fit(tmp_path, file)
  assert not (tmp_path / "fit.json").exists()  # of which a report would be made


def test_what_has_begun_can_t_be_sealed(swept):
  folder, runs = swept
  name, each = next((name, each) for name, each in runs.items() if each.sealed)
  leave(folder / name, each.steps, 1, [], 1.0)
  with pytest.raises(InputError, match="has begun: what is predicted must not have been run"):
    scaling.fit(folder, FILE, draws=2)


def test_a_large_run_that_joins_later_has_no_prediction(swept, tiny_config):
  folder, _ = swept
  scaling.fit(folder, FILE, draws=5)
  more = copy.deepcopy(FILE)
  more.sealed = (*FILE.sealed[:2], ("seed", (0, 1, 2)))
  sweep.begin(folder, more, tiny_config, sweep_runs.planned(more, tiny_config))
  with pytest.raises(InputError, match="has no prediction of the run sealed_width=32_heads=4_seed=2"):
    scaling.fit(folder, more, draws=5)


def test_few_runs_seal_nothing(tiny_config, tmp_path):
  sizes = ("model.width,model.heads", ((16, 2), (32, 4)))
  file = make((sizes, ("flops", (2e9, 4e9, 8e9))), (("flops", (8e10,)),))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for number, (name, each) in enumerate(runs.items()):
    if not each.sealed:
      leave(tmp_path / name, each.steps, each.steps, [DONE], 10.0, 1.0 - 0.1 * number)
  with pytest.raises(InputError, match="6 runs are too few for intervals"):
    scaling.fit(tmp_path, file, draws=5)


def test_a_grid_that_is_not_done_is_not_fitted(tiny_config, tmp_path):
  sweep.begin(tmp_path, FILE, tiny_config, sweep_runs.planned(FILE, tiny_config))
  with pytest.raises(InputError, match="18 of 18 runs of the grid are not done or lack a held-out loss"):
    scaling.fit(tmp_path)


def test_scores_of_exams_are_fitted_too(swept):
  folder, runs = swept
  for name, each in list(runs.items())[:6]:
    mark = min(each.flops / 4e10, 1.0)
    figures = {"mean": mark, "ceiling": 1.0, "autoencoder": 1.0, "chance": 0.1}
    exam = {"suite": "worlds", "protocol": "p", "step": each.steps}
    exam |= {"scores": {"shapes.colour": figures}, "marks": {"shapes.colour": [mark, mark]}}
    (folder / name / "evaluations").mkdir()
    (folder / name / "evaluations" / "worlds.json").write_text(json.dumps(exam))
  assert scaling.fit(folder, FILE, draws=2)["scores"]["shapes"]["runs"] == 6


def test_of_a_sweep_of_rates_the_best_of_each_width_are_found(tiny_config, tmp_path):
  file = make((("model.width,model.heads", ((16, 2), (32, 4))), ("train.learning_rate", (0.01, 0.02, 0.04))))
  sweep.begin(tmp_path, file, tiny_config, sweep_runs.planned(file, tiny_config))
  steps = tiny_config.train.steps
  for name, loss in zip(sweep_runs.planned(file, tiny_config), (3.0, 1.0, 2.0, 1.0, 2.0, None), strict=True):
    ends = [DONE] if loss else ["NonFiniteLoss: step 2"]
    leave(tmp_path / name, steps, steps if loss else 1, ends, 10.0, loss)
  found = scaling.fit(tmp_path, file)["rates"]["train.learning_rate"]
  assert found["best"] == {"16": 0.02, "32": 0.01} and found["grid_steps"] == 1 and found["at_edge"] == [32]
  assert sweep_report.report(tmp_path, str(tmp_path / "out"))["train.learning_rate"] == 1
  assert ">width 32<" in (tmp_path / "out" / "learning_rate.svg").read_text()
  assert "Infinity" not in (tmp_path / "fit.json").read_text()


def test_a_sweep_of_rates_that_diverged_has_no_report(tiny_config, tmp_path):
  file = make((("model.width,model.heads", ((16, 2), (32, 4))), ("train.learning_rate", (0.01, 0.02))))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for name, each in runs.items():
    leave(tmp_path / name, each.steps, 1, ["NonFiniteLoss: step 2"], 10.0)
  assert scaling.fit(tmp_path, file)["rates"]["train.learning_rate"]["grid_steps"] is None
  with pytest.raises(InputError, match="all runs that vary train.learning_rate have diverged"):
    sweep_report.report(tmp_path, str(tmp_path / "out"))


def test_sweeps_of_rates_stand_beside_each_other_in_one_file(tiny_config, tmp_path):
  rates, out = ("train.learning_rate", (0.01, 0.02)), tmp_path / "out"
  for name, widths in {"mup": ((16, 2, 16), (32, 4, 16)), "plain": ((16, 2, 16), (32, 4, 32))}.items():
    file, folder = make((("model.width,model.heads,model.base_width", widths), rates)), tmp_path / name
    runs = sweep_runs.planned(file, tiny_config)
    sweep.begin(folder, file, tiny_config, runs)
    for run, loss in zip(runs, (1.0, 2.0, 2.0, 1.0), strict=True):
      leave(folder / run, tiny_config.train.steps, tiny_config.train.steps, [DONE], 10.0, loss)
    scaling.fit(folder, file)
    sweep_report.report(folder, str(out))
  found = json.loads((out / "rates.json").read_text())["rates"]
  assert list(found) == ["train.learning_rate", "train.learning_rate, standard parametrisation"]
  assert [each["runs"] for each in found.values()] == [4, 4]
  assert {path.name for path in out.glob("*.svg")} == {"learning_rate.svg", "learning_rate_standard.svg"}
  (out / "rates.json").write_text("[")
  with pytest.raises(InputError, match="is no report of another sweep"):
    sweep_report.report(folder, str(out))


def test_two_rates_in_one_sweep_are_refused_and_one_width_is_no_sweep_of_rates(tiny_config):
  models, rates = ("model.width,model.heads", ((16, 2), (32, 4))), ("train.learning_rate", (0.01, 0.02))
  both = sweep_runs.planned(make((models, rates, ("train.adam_learning_rate", (0.01, 0.02)))), tiny_config)
  with pytest.raises(InputError, match="varies one of train.learning_rate and train.adam_learning_rate"):
    scaling.rate_trials(both, dict.fromkeys(both, 1.0))
  alone = sweep_runs.planned(make((rates, ("seed", (0, 1)))), tiny_config)
  assert scaling.rate_trials(alone, dict.fromkeys(alone, 1.0)) == {}
