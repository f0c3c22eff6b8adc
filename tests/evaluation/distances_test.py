"""Distances between sets: against the plain formula, without bias, and with intervals that cover the truth."""

import numpy as np
import pytest
import scipy.linalg

from sora_jax.evaluation import distances


def sets(count=40, features=6, gap=0.0, seed=0):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(features, features))
  return rng.normal(size=(count, features)) @ mix, rng.normal(size=(count, features)) @ mix + gap


def test_frechet_is_the_formula_with_the_root_of_a_product():
  some, others = sets(gap=0.3)
  first, second = np.cov(some.T), np.cov(others.T)
  root = scipy.linalg.sqrtm(first @ second).real
  wanted = np.sum((some.mean(0) - others.mean(0)) ** 2) + np.trace(first + second - 2 * root)
  assert distances.frechet(some, others) == pytest.approx(wanted, rel=1e-8)


def test_frechet_of_fewer_clips_than_features_is_finite_and_zero_for_a_set_and_itself():
  some, others = sets(count=5, features=60, gap=1.0)
  assert distances.frechet(some, some) == pytest.approx(0.0, abs=1e-9)
  assert distances.frechet(some, others) > 60


def test_kernel_is_the_mean_over_pairs_and_has_no_bias():
  some, others = sets(count=4, features=3, gap=1.0)
  k = lambda x, y: (x @ y / 3 + 1) ** 3
  pairs = lambda a: np.mean([k(a[i], a[j]) for i in range(4) for j in range(4) if i != j])
  wanted = pairs(some) + pairs(others) - 2 * np.mean([k(x, y) for x in some for y in others])
  assert distances.kernel(some, others) == pytest.approx(wanted)
  alike = [distances.kernel(*sets(count=10, features=2, seed=seed)) for seed in range(200)]
  assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(200)


@pytest.mark.parametrize("name", distances.DISTANCES)
def test_a_distance_grows_with_the_gap_and_its_interval_holds_it(name):
  distance = distances.DISTANCES[name]
  near, far = (distances.estimate(distance, *sets(count=100, gap=gap)) for gap in (0.0, 2.0))
  assert near.low <= near.value <= near.high < far.low


@pytest.mark.parametrize("name", distances.DISTANCES)
def test_two_clips_or_more_and_the_same_features_are_needed(name):
  some, _ = sets()
  for others in (some[:1], some[:, :3]):
    with pytest.raises(ValueError, match="two or more clips with the same features"):
      distances.DISTANCES[name](some, others)


def test_features_are_scaled_by_the_reference_and_those_without_variance_only_shifted():
  some, others = sets(gap=5.0)
  some[:, 0] = 7.0
  reference, found = distances.standardised(some, others)
  np.testing.assert_allclose(reference.mean(0), 0, atol=1e-9)
  np.testing.assert_allclose(reference.std(0), [0, 1, 1, 1, 1, 1], atol=1e-9)
  np.testing.assert_allclose(found[:, 0], others[:, 0] - 7.0)
