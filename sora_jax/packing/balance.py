"""Which rows share a step, and which rank takes which: all wait for the slowest, so equal work for each. Pure numpy.

Rows hold equal numbers of tokens, but attention's work grows with the square of a clip's length: a row of one long
clip costs several times a row of images. A row can't be made cheaper than its longest clip, so rows of equal work go
into one step; where a rank takes several rows a step, each gets heavy and light ones.

Shape letters: R rows, P components of a mixture.
"""

import heapq
import math
from typing import NamedTuple

import numpy as np

CHOICE = 8  # times the root of all: among so many the next is chosen. A draw's excess of one kind grows like the root.
JITTER = 0.01  # of the work, so that rows of nearly equal work meet others in each epoch


class ClipFlops(NamedTuple):
  """Floating-point operations of one forward pass over a clip of n tokens: token * n + pair * n * n."""

  token: float
  pair: float

  @classmethod
  def of(cls, parameters: int, depth: int, width: int) -> "ClipFlops":
    """2 N n for the products with N weights, 4 layers width n^2 for those of attention, a multiply-add counted as 2.

    (Kaplan et al. 2020, table 1, with n^2 for full attention.)
    """
    return cls(2.0 * parameters, 4.0 * depth * width)

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    return self.token * tokens + self.pair * np.square(tokens)


def order_rows(
  flops_R: np.ndarray,
  ranks: int,
  each: int,
  rng: np.random.Generator,
  begun: int = 0,
  components_RP: np.ndarray | None = None,
) -> np.ndarray:
  """An order of rows in which every ranks * each in a row are a step of equal work for each rank.

  Args:
    flops_R: of each row.
    ranks: how many take part in a step.
    each: rows that a rank takes in a step; they lie side by side in the order.
    rng: which steps come first, and which of equal rows meet.
    begun: rows that a step begun before has already.
    components_RP: tokens of each component of a mixture in each row; any stretch of the order keeps their mix to a
      step or two.

  Returns:
    The rows, each once. The lightest finish the step that was begun, and begin one that the next call finishes. For one
    rank, which nobody waits for, any order.
  """
  if ranks == 1:
    return rng.permutation(len(flops_R)) if components_RP is None else even_order(components_RP, rng)
  size = ranks * each
  ranked = np.argsort(-flops_R * (1.0 + JITTER * rng.random(len(flops_R))), kind="stable")
  head = min(-begun % size, len(ranked))
  whole = (len(ranked) - head) // size * size
  loose = rng.permutation(ranked[whole:])
  bundles = _bundles(ranked[:whole], flops_R, each)
  by_work = np.argsort(-flops_R[bundles].sum(1), kind="stable").reshape(-1, ranks)
  by_work = rng.permutation(by_work)
  if components_RP is not None:
    by_work = by_work[even_order(components_RP[bundles[by_work]].sum((1, 2)), rng)]
  steps = bundles[rng.permuted(by_work, axis=1)]
  return np.concatenate([loose[:head], steps.reshape(-1), loose[head:]])


def even_order(components_NP: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """An order of N things in which the sums of their P components keep the same mix all the way.

  The next one is the first drawn after which the sums are no farther from the mix of all than one thing may be, or else
  the one after which they are nearest. (The nearest in any case would leave the most uneven things to the end.)
  """
  components_NP = np.asarray(components_NP, np.float64)
  mix_P = components_NP.sum(0) / max(components_NP.sum(), 1e-9)
  order = rng.permutation(len(components_NP))
  off_NP = (components_NP - components_NP.sum(1, keepdims=True) * mix_P)[order]
  squares_N, sums_P = np.square(off_NP).sum(1), np.zeros(len(mix_P))
  near, choice = squares_N.max(initial=0) * (1 + 1e-9), CHOICE * math.isqrt(len(order)) + CHOICE
  for n in range(len(order)):
    few = slice(n, n + choice)
    distance = squares_N[few] + off_NP[few] @ (2.0 * sums_P) + sums_P @ sums_P  # |sums + off|^2
    first = int(np.argmax(distance <= near))
    best = n + (first if distance[first] <= near else int(np.argmin(distance)))
    for each in (order, off_NP, squares_N):
      each[[n, best]] = each[[best, n]]
    sums_P += off_NP[n]
  return order


def _bundles(ranked: np.ndarray, flops_R: np.ndarray, each: int) -> np.ndarray:
  """Rows from the heaviest to the lightest -> (bundles, each) of nearly equal sums: longest processing time first."""
  if each == 1:
    return ranked[:, None]
  bundles: list[list[int]] = [[] for _ in range(len(ranked) // each)]
  open_bundles = [(0.0, number) for number in range(len(bundles))]
  for row in ranked.tolist():
    load, number = heapq.heappop(open_bundles)
    bundles[number].append(row)
    if len(bundles[number]) < each:
      heapq.heappush(open_bundles, (load + float(flops_R[row]), number))
  return np.array(bundles, np.int64).reshape(-1, each)


def spread(flops_R: np.ndarray, ranks: int, each: int) -> np.ndarray:
  """Mean over max of the ranks' work in every whole step of rows in order: 1 where no rank waits; (steps,)."""
  whole = len(flops_R) // (ranks * each) * ranks * each
  load = flops_R[:whole].reshape(-1, ranks, each).sum(2)
  return load.mean(1) / load.max(1)
