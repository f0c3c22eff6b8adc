"""Distances between two sets of clips by their features: none of them pairs clips, all ask whether sets look alike.

Shape letters: N and M clips of either set, D features.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GROUPS = 20  # of clips that are left out in turns
LEAST = 3  # clips of a set whose distance has an interval
Distance = Callable[[np.ndarray, np.ndarray], float]


def frechet(some_ND: np.ndarray, others_MD: np.ndarray) -> float:
  """The squared Frechet distance of two normal distributions that are fitted to the sets (Dowson and Landau 1982).

  tr sqrt(S1 S2) is the sum of the singular values of A B^T, for S1 = A^T A and S2 = B^T B, so fewer clips than features
  are no trouble; but they raise it, so sets are compared that have as many clips as each other.

  Raises:
    ValueError: a set has fewer than two clips.
  """
  _check(some_ND, others_MD)
  first, second = (np.asarray(each, np.float64) for each in (some_ND, others_MD))
  gap = first.mean(0) - second.mean(0)
  first, second = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (first, second))
  both = np.linalg.svd(first @ second.T, compute_uv=False).sum()
  return float(gap @ gap + np.square(first).sum() + np.square(second).sum() - 2 * both)


def kernel(some_ND: np.ndarray, others_MD: np.ndarray) -> float:
  """The squared maximum mean discrepancy for the kernel (x.y / D + 1)^3, without bias in either set's size.

  Binkowski et al. 2018 ("Demystifying MMD GANs", section 4 and 2.1); below zero where the sets are alike.

  Raises:
    ValueError: a set has fewer than two clips.
  """
  _check(some_ND, others_MD)
  first, second = (np.asarray(each, np.float64) for each in (some_ND, others_MD))
  alike = lambda a, b: np.power(a @ b.T / a.shape[1] + 1, 3)
  within = lambda a: (alike(a, a).sum() - np.trace(alike(a, a))) / (len(a) * (len(a) - 1))
  return float(within(first) + within(second) - 2 * alike(first, second).mean())


def _check(some_ND: np.ndarray, others_MD: np.ndarray) -> None:
  if min(len(some_ND), len(others_MD)) < 2 or some_ND.shape[1:] != others_MD.shape[1:]:
    raise ValueError(f"two sets of two or more clips with the same features: got {some_ND.shape}, {others_MD.shape}")


DISTANCES: dict[str, Distance] = {"frechet": frechet, "kernel": kernel}


class Estimate(NamedTuple):
  """A distance and its 95 % interval."""

  value: float
  low: float
  high: float


def estimate(distance: Distance, some_ND: np.ndarray, others_MD: np.ndarray) -> Estimate:
  """The distance, with the jackknife's standard error over groups of clips that both sets lack in turns.

  (Efron 1982; resampling with replacement would show clips twice, which both distances take for likeness.)

  Raises:
    ValueError: a set has fewer than LEAST clips.
  """
  groups = min(GROUPS, len(some_ND), len(others_MD))
  value = distance(some_ND, others_MD)
  without = lambda each, group: each[np.arange(len(each)) % groups != group]
  left = [distance(without(some_ND, group), without(others_MD, group)) for group in range(groups)]
  error = float(np.sqrt((groups - 1) * np.var(left)))
  return Estimate(value, value - 1.96 * error, value + 1.96 * error)


def standardised(reference_ND: np.ndarray, *others_MD: np.ndarray) -> list[np.ndarray]:
  """All sets in units in which the reference has mean 0 and variance 1 in each feature that varies in it."""
  mean, std = reference_ND.mean(0), reference_ND.std(0)
  scale = np.where(std > 1e-6, std, 1.0)
  return [(each - mean) / scale for each in (reference_ND, *others_MD)]
