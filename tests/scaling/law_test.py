"""Scaling laws: a known one is found again, also from noisy runs; the best size for a budget; rises of scores."""

import numpy as np
import pytest

from sora_jax.scaling import law

TRUE = law.Law(E=0.22, A=9.0, alpha=0.42, B=55.0, beta=0.36)
COST = law.Cost(0.0, 0.0, 6.0)


def runs(noise: float = 0.0, seeds: int = 3, seed: int = 0) -> law.Points:
  """Five sizes at four budgets, and so many seeds."""
  rng = np.random.default_rng(seed)
  params, budgets = np.array([3e4, 1e5, 2e5, 5e5, 1e6]), np.array([3e11, 1e12, 3e12, 1e13])
  params_N = np.repeat(params, len(budgets) * seeds)
  tokens_N = np.tile(np.repeat(budgets, seeds), len(params)) / (6 * params_N)
  loss_N = TRUE.loss(params_N, tokens_N) * np.exp(noise * rng.normal(size=len(params_N)))
  return law.Points(params_N, tokens_N, loss_N, np.ones_like(loss_N))


def test_a_law_without_noise_is_found():
  found = law.fit(runs(seeds=1))
  for name, value in TRUE._asdict().items():
    assert getattr(found, name) == pytest.approx(value, rel=0.02), name


def test_of_noisy_runs_larger_ones_are_predicted_and_the_interval_holds():
  hits, errors = 0, []
  for seed in range(2):
    points = runs(noise=0.004, seed=seed)
    found = law.fit(points)
    laws, gaps = law.resampled(points, found, 20, seed), law.spread(points, found)
    size, tokens = 2e6, 1e14 / (6 * 2e6)
    measured = float(TRUE.loss(size, tokens)) * np.exp(0.004 * np.random.default_rng(100 + seed).normal())
    low, high = law.interval(laws, gaps, size, tokens)
    hits += low <= measured <= high
    errors.append(abs(float(found.loss(size, tokens)) / measured - 1))
    assert low < float(found.loss(size, tokens)) < high
  assert hits == 2 and np.median(errors) < 0.02


def test_one_run_gone_wrong_hardly_changes_the_law():
  points = runs(seeds=1)
  points.loss[7] *= 3
  found, size = law.fit(points), 2e6
  assert float(found.loss(size, 8e6)) == pytest.approx(float(TRUE.loss(size, 8e6)), rel=0.02)


def test_runs_count_by_how_little_those_of_their_budget_and_size_differ_from_seed_to_seed():
  points = runs(seeds=200)
  flops = 6 * points.params * points.tokens * np.random.default_rng(0).uniform(1.0, 1.02, len(points.loss))
  rng, budgets, sizes = np.random.default_rng(1), np.unique(law.levels(flops)), np.unique(points.params)
  of_budget = np.array([0.08, 0.04, 0.02, 0.01])[np.searchsorted(budgets, law.levels(flops))]
  of_size = np.array([3.0, 2.0, 1.5, 1.0, 1.0])[np.searchsorted(sizes, points.params)]
  loss = points.loss * np.exp(of_budget * of_size * rng.normal(size=len(of_size)))
  np.testing.assert_allclose(law.weights(points.params, flops, loss), 0.01 / (of_budget * of_size), rtol=0.3)


def test_the_spread_over_seeds_is_pooled_over_kinds_that_have_two():
  kinds, log_loss = np.array([0, 0, 1, 1, 2]), np.array([0.0, 0.2, 5.0, 5.4, 9.0])
  assert law.seed_spread(kinds, log_loss) == pytest.approx(np.sqrt((0.02 + 0.08) / 2))
  assert law.seed_spread(np.arange(3), log_loss[:3]) == 0


def test_a_law_that_is_near_is_a_start_of_the_search():
  found = law.fit(runs(seeds=1), (), TRUE)
  assert (found.E, found.alpha, found.beta) == pytest.approx((TRUE.E, TRUE.alpha, TRUE.beta), rel=1e-3)


def test_without_seeds_all_runs_count_the_same():
  points = runs(seeds=1)
  assert (law.weights(points.params, 6 * points.params * points.tokens, points.loss) == 1).all()


def test_short_runs_that_went_wrong_hardly_change_the_law():
  points = runs(seeds=3)
  short = points.tokens * points.params < 1e11
  weight = np.where(short, 0.01, 1.0)
  bent = points._replace(loss=np.where(short, 1.1 * points.loss, points.loss), weight=weight)
  size, tokens = 2e6, 1e14 / (6 * 2e6)
  error = lambda found: abs(float(found.loss(size, tokens)) / float(TRUE.loss(size, tokens)) - 1)
  assert error(law.fit(bent)) < 0.003 < error(law.fit(bent._replace(weight=np.ones_like(weight))))


def test_the_best_size_for_a_budget_is_where_the_law_is_lowest():
  for budget in (1e12, 1e15):
    params, tokens, loss = law.best_for(TRUE, COST, budget)
    assert 6 * params * tokens == pytest.approx(budget, rel=1e-6)
    sizes = np.geomspace(params / 3, params * 3, 101)
    assert loss <= TRUE.loss(sizes, budget / (6 * sizes)).min() * (1 + 1e-4)


@pytest.mark.parametrize("cost", [COST, law.Cost(2e5, 800.0, 6.0), law.Cost(0.0, 800.0, 0.0)])
def test_exponents_are_those_of_the_frontier(cost):
  found = law.exponents(TRUE, cost, 1e14)
  budgets = np.geomspace(5e13, 2e14, 41)
  best = np.array([law.best_for(TRUE, cost, budget) for budget in budgets])
  slope = lambda values: np.polyfit(np.log(budgets), np.log(values), 1)[0]
  assert slope(best[:, 0]) == pytest.approx(found["params"], abs=0.01)
  assert slope(best[:, 1]) == pytest.approx(found["tokens"], abs=0.01)
  assert -slope(best[:, 2] - TRUE.E) == pytest.approx(found["loss"], abs=0.01)


def test_the_cost_of_a_token_holds_beyond_the_sizes_that_it_is_fitted_to():
  params, cost = np.array([3e4, 1e5, 2e5, 5e5]), lambda size: 2e5 + 800 * size**0.5 + 6 * size
  found = law.Cost.of(params, cost(params))
  assert found == pytest.approx((2e5, 800, 6), rel=1e-6)
  assert found.per_token(1e8) == pytest.approx(cost(1e8), rel=1e-6)
  assert found.power(1e3)[0] < found.power(1e6)[0] < found.power(1e12)[0] == pytest.approx(1, rel=1e-3)
  assert min(law.Cost.of(params[:2], np.array([6e5, 5e5]))) >= 0


def test_losses_that_go_on_falling_have_no_end():
  endless = runs(seeds=1)
  found = law.fit(endless._replace(loss=law.Law(0.0, 9.0, 0.2, 55.0, 0.2).loss(endless.params, endless.tokens)))
  assert found.E == 0.0 and (found.alpha, found.beta) == pytest.approx((0.2, 0.2), rel=0.02)


def test_losses_that_fall_with_nothing_have_no_law():
  found = law.fit(runs(seeds=1)._replace(loss=np.full(20, 0.5)))
  with pytest.raises(ValueError, match="fall neither with parameters nor with tokens"):
    law.exponents(found, COST, 1e13)


def test_no_runs_have_no_weights():
  assert law.weights(np.zeros(0), np.zeros(0), np.zeros(0)).size == 0


@pytest.mark.parametrize("name", ["params", "tokens"])
def test_runs_of_one_size_or_of_one_length_have_no_law(name):
  points = runs(seeds=1)
  with pytest.raises(ValueError, match="can't be fitted to runs of one size, or of as many tokens each"):
    law.fit(points._replace(**{name: np.full_like(points.loss, 1e6)}))


def test_too_few_runs_are_refused():
  with pytest.raises(ValueError, match="5 numbers can't be fitted to 4 runs"):
    law.fit(runs(seeds=1).pick(np.arange(4)))
  with pytest.raises(ValueError, match="2 runs"):
    law.sigmoid(np.arange(2.0), np.arange(2.0), 0.1)


def test_a_score_s_rise_is_found():
  x = np.linspace(11, 15, 9)
  found = law.sigmoid(x, 0.1 + 0.9 / (1 + np.exp(-2.5 * (x - 13.2))), 0.1)
  assert (found["slope"], found["middle"], found["rms"]) == pytest.approx((2.5, 13.2, 0.0), abs=1e-3)
  assert found["floor"] == 0.1


def test_a_score_that_begins_below_chance_rises_from_nothing():
  x = np.linspace(11, 15, 9)
  found = law.sigmoid(x, 1 / (1 + np.exp(-2.5 * (x - 13.2))), 0.3)
  assert (found["floor"], found["rms"]) == pytest.approx((0.0, 0.0), abs=1e-3)
