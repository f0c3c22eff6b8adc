"""Which rows share a step, and which rank takes which: all wait for the slowest, so equal work for each. Pure numpy.

Rows hold equal numbers of tokens, but attention's work grows with the square of a clip's length: a row of one long
clip costs several times a row of images. A row can't be made cheaper than its longest clip, so rows of equal work go
into one step; where a rank takes several rows a step, each gets heavy and light ones.

Shape letters: R rows.
"""

import heapq
from typing import NamedTuple

import numpy as np

JITTER = 0.01  # of the work, so that rows of nearly equal work meet others in each epoch


class Work(NamedTuple):
  """Floating-point operations of one forward pass over a clip of n tokens: token * n + pair * n * n."""

  token: float
  pair: float

  @classmethod
  def of(cls, parameters: int, depth: int, width: int) -> "Work":
    """2 N n for the products with N weights, 4 layers width n^2 for those of attention, a multiply-add counted as 2.

    (Kaplan et al. 2020, table 1, with n^2 for full attention.)
    """
    return cls(2.0 * parameters, 4.0 * depth * width)

  def __call__(self, tokens: np.ndarray | float) -> np.ndarray | float:
    return self.token * tokens + self.pair * np.square(tokens)


def order_rows(work_R: np.ndarray, ranks: int, each: int, rng: np.random.Generator, begun: int = 0) -> np.ndarray:
  """An order of rows in which every ranks * each in a row are a step of equal work for each rank.

  Args:
    work_R: of each row.
    ranks: how many take part in a step.
    each: rows that a rank takes in a step; they lie side by side in the order.
    rng: which steps come first, and which of equal rows meet.
    begun: rows that a step begun before has already.

  Returns:
    The rows, each once. The lightest finish the step that was begun, and begin one that the next call finishes. For one
    rank, which nobody waits for, any order.
  """
  if ranks == 1:
    return rng.permutation(len(work_R))
  size = ranks * each
  ranked = np.argsort(-work_R * (1.0 + JITTER * rng.random(len(work_R))), kind="stable")
  head = min(-begun % size, len(ranked))
  whole = (len(ranked) - head) // size * size
  loose = rng.permutation(ranked[whole:])
  bundles = _bundles(ranked[:whole], work_R, each)
  by_work = np.argsort(-work_R[bundles].sum(1), kind="stable").reshape(-1, ranks)
  steps = bundles[rng.permuted(rng.permutation(by_work), axis=1)]
  return np.concatenate([loose[:head], steps.reshape(-1), loose[head:]])


def _bundles(ranked: np.ndarray, work_R: np.ndarray, each: int) -> np.ndarray:
  """Rows from the heaviest to the lightest -> (bundles, each) of nearly equal sums: longest processing time first."""
  if each == 1:
    return ranked[:, None]
  bundles: list[list[int]] = [[] for _ in range(len(ranked) // each)]
  open_bundles = [(0.0, number) for number in range(len(bundles))]
  for row in ranked.tolist():
    load, number = heapq.heappop(open_bundles)
    bundles[number].append(row)
    if len(bundles[number]) < each:
      heapq.heappush(open_bundles, (load + float(work_R[row]), number))
  return np.array(bundles, np.int64).reshape(-1, each)


def spread(work_R: np.ndarray, ranks: int, each: int) -> np.ndarray:
  """Mean over max of the ranks' work in every whole step of rows in order: 1 where no rank waits; (steps,)."""
  whole = len(work_R) // (ranks * each) * ranks * each
  load = work_R[:whole].reshape(-1, ranks, each).sum(2)
  return load.mean(1) / load.max(1)
