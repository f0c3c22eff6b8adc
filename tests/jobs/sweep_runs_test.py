"""From a sweep's file to runs with budgets of their own, and what is refused."""

import pathlib

import ml_collections
import pytest

from sora_jax.cli.config import load_config
from sora_jax.errors import InputError
from sora_jax.jobs import sweep_runs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make(grid=(), sealed=(), **settings) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {"config": "configs/tiny.py", "settings": tuple(settings.items()), "grid": grid, "sealed": sealed}
  )


GRID = (("model.width,model.heads", ((16, 2), (32, 4))), ("flops", (2e9, 4e9)), ("seed", (0, 1)))


def test_a_budget_becomes_steps_and_a_schedule_of_its_own(tiny_config):
  runs = sweep_runs.planned(make(GRID), tiny_config)
  assert len(runs) == 8 and not any(each.sealed for each in runs.values())
  small, large = runs["width=16_heads=2_flops=2e+09_seed=0"], runs["width=32_heads=4_flops=4e+09_seed=1"]
  for each, budget in ((small, 2e9), (large, 4e9)):
    assert each.flops == pytest.approx(budget, rel=0.5 / each.steps)
    assert each.settings["train.steps"] == each.settings["train.eval_every"] == each.steps
  assert large.params > small.params and small.settings["model.width"] == 16
  twice = runs["width=16_heads=2_flops=4e+09_seed=0"]
  assert twice.steps == pytest.approx(2 * small.steps, abs=1) and twice.tokens == pytest.approx(
    2 * small.tokens, rel=0.1
  )


@pytest.mark.parametrize(
  ("file", "runs", "sealed"),
  [
    ("sweep_isoflop.py", 60, 9),
    ("sweep_rates.py:part=muon", 24, 0),
    ("sweep_rates.py:part=adam,mup=0", 24, 0),
    ("sweep_compute.py", 2, 0),
    ("sweep_framing.py", 9, 0),
    ("sweep_framing.py:buckets", 3, 0),
  ],
)
def test_the_sweeps_that_come_along_can_be_run(file, runs, sealed):
  given = load_config(str(ROOT / "configs" / file))
  found = sweep_runs.planned(given, load_config(given.config))
  assert [sum(each.sealed == kind for each in found.values()) for kind in (False, True)] == [runs, sealed]
  if sealed:
    largest = max(each.flops for each in found.values() if not each.sealed)
    assert all(each.flops == pytest.approx(10 * largest, rel=0.05) for each in found.values() if each.sealed)


def test_the_large_runs_are_apart(tiny_config):
  runs = sweep_runs.planned(make((("flops", (2e9,)),), (("flops", (2e10,)),)), tiny_config)
  assert {name: each.sealed for name, each in runs.items()} == {"run": False, "sealed_run": True}


@pytest.mark.parametrize(
  ("file", "words"),
  [
    (make((("model.with", (1, 2)),)), "'model.with' is no setting: did you mean 'model.width'"),
    (make((("model.width", (1.5, 2)),)), "config.model.width=1.5: it is a whole number"),
    (make((("flops", (1.0,)),)), "1 FLOPs are 0 steps"),
    (make((("flops", ("1e12",)),)), "the run run: flops='1e12' is no number"),
    (make(()), "a sweep's grid has no runs"),
    (
      ml_collections.ConfigDict({"grid": ()}),
      "a sweep's file gives config, settings, grid, sealed: this one gives grid",
    ),
  ],
)
def test_what_is_no_sweep_is_refused(tiny_config, file, words):
  with pytest.raises(InputError, match=words):
    sweep_runs.planned(file, tiny_config)


def test_the_showcase_has_32_times_the_compute_of_base():
  file = load_config(str(ROOT / "configs" / "sweep_compute.py"))
  whole = sweep_runs.planned(make((("seed", (0,)),)), load_config(file.config))["run"].flops
  base, four = sweep_runs.planned(file, load_config(file.config)).values()
  assert (whole / base.flops, whole / four.flops) == pytest.approx((32, 8), rel=0.01)
