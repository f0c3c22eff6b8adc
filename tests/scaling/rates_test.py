"""The best rate of each width, and how far it moves."""

import math

import pytest

from sora_jax.scaling.rates import Trial, transfer

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def bowl(width: int, best: float, seed: int = 0) -> list[Trial]:
  return [Trial(width, rate, 1 + abs(math.log2(rate / best)) + 0.01 * seed) for rate in RATES]


def test_a_best_rate_that_stays_and_one_that_moves():
  stays = transfer([*bowl(32, 2e-3), *bowl(64, 2e-3), *bowl(256, 4e-3)])
  assert stays["grid_steps"] == 1 and stays["best"] == {"32": 2e-3, "64": 2e-3, "256": 4e-3} and not stays["at_edge"]
  moves = transfer([*bowl(32, 8e-3), *bowl(64, 4e-3), *bowl(256, 1e-3)])
  assert moves["grid_steps"] == 3 and moves["at_edge"] == [32, 256]
  assert stays["transferred"] == {"32": 0, "64": 0, "256": 1.0} and moves["transferred"] == {"32": 0, "64": 1, "256": 3}


def test_seeds_are_averaged_and_a_run_that_diverged_is_no_best():
  lucky = [Trial(32, RATES[0], 0.5), Trial(32, RATES[0], math.inf)]
  rest = [trial for trial in bowl(32, 2e-3) if trial.rate != RATES[0]]
  found = transfer([*lucky, *rest, *rest, *bowl(64, 2e-3), *bowl(64, 2e-3, seed=1)])
  assert found["best"]["32"] == 2e-3 and found["losses"]["64"][1] == [2e-3, 1.005]
  assert found["losses"]["32"][0] == [RATES[0], None]


def test_a_width_whose_runs_have_all_diverged_has_no_best_rate():
  gone = [Trial(64, rate, math.inf) for rate in RATES]
  found = transfer([*bowl(32, 2e-3), *gone])
  assert found["best"] == {"32": 2e-3, "64": None} and found["grid_steps"] is None and found["at_edge"] == []
  assert transfer([*bowl(32, 2e-3), *gone, *bowl(128, 4e-3)])["grid_steps"] == 1
  assert transfer([*gone, *[Trial(32, rate, math.inf) for rate in RATES]])["transferred"] == {}
  wide = [trial if trial.rate != 2e-3 else Trial(64, 2e-3, math.inf) for trial in bowl(64, 4e-3)]
  assert transfer([*bowl(32, 2e-3), *wide])["transferred"] == {"32": 0, "64": None}


@pytest.mark.parametrize("trials", [[], bowl(32, 2e-3), [*bowl(32, 2e-3), *bowl(64, 2e-3)[1:]]])
def test_what_can_t_be_compared_is_refused(trials):
  with pytest.raises(ValueError, match="two widths or more are compared at the same two rates or more"):
    transfer(trials)
