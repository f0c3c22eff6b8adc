"""Scaling laws: how the loss falls with parameters and tokens, what is best for a budget, what larger runs will reach.

  L(N, D) = E + A N^-a + B D^-b      (Hoffmann et al. 2022, "Chinchilla", eq. 2)

N is a model's parameters, D the tokens it was trained on. The fit is theirs too (section 3.3, eq. 3): the Huber loss of
log L, from many starts. Runs of budgets and sizes that differ more from seed to seed than others count less for it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

LOOKS, KEPT = 40, 12  # looks from every start, of which the best one in so many is searched to its end
SEARCH = 1000  # looks at most in such a search
HUBER = 1e-3  # beyond this distance in log L a point pulls no harder
STARTS = [
  (e, a, alpha, b, beta)
  for e in (-3.0, -1.5, -0.5)  # log E, like the others relative to the mean of log L
  for a in (-1.0, 2.0, 5.0)  # log A
  for alpha in (0.2, 0.5, 0.8)
  for b in (-1.0, 2.0, 5.0)  # log B
  for beta in (0.2, 0.5, 0.8)
]


class Law(NamedTuple):
  """L = E + A N^-alpha + B D^-beta; E is 0 where the losses do not tell where they end."""

  E: float
  A: float
  alpha: float
  B: float
  beta: float

  def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
    return self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)


class Points(NamedTuple):
  """Runs, one an entry: parameters, tokens, loss, and how much each counts (`weights`)."""

  params: np.ndarray
  tokens: np.ndarray
  loss: np.ndarray
  weight: np.ndarray

  def pick(self, which: np.ndarray) -> "Points":
    return Points(*(values[which] for values in self))


def weights(params: np.ndarray, flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
  """How much each run counts: the spread of log loss over seeds of the largest model and budget, over its own.

  With few seeds spreads are rough: a budget may count more than a larger one.

  A run's spread is that of its budget times that of its size, over that of all. 1 for all runs where a budget or a size
  has no two runs of one kind, or they are equal.

  Args:
    flops: budgets; those of one budget agree within 5 %.
  """
  log_l, budgets = np.log(loss), levels(flops)
  kinds = np.unique(np.stack([budgets, params]), axis=1, return_inverse=True)[1].ravel()
  of = lambda values: np.array([seed_spread(kinds[values == each], log_l[values == each]) for each in values])
  spread = of(budgets) * of(params)
  if not spread.all() or not spread.size:
    return np.ones(len(loss))
  return spread[np.lexsort([params, budgets])[-1]] / spread


def seed_spread(kinds: np.ndarray, log_loss: np.ndarray) -> float:
  """The standard deviation of log loss over runs of one kind, pooled over kinds; 0 where no two are of one kind.

  Args:
    kinds: a number for each run, the same for those that differ in their seeds alone.
  """
  groups = [log_loss[kinds == kind] for kind in np.unique(kinds)]
  variances = [np.var(values, ddof=1) for values in groups if len(values) > 1]
  return float(np.sqrt(np.mean(variances))) if variances else 0.0


def levels(flops: np.ndarray) -> np.ndarray:
  """Each budget as the lowest one that agrees with it, within 5 %."""
  levels = np.asarray(flops, np.float64).copy()
  for value in np.sort(levels):
    levels[(levels >= value) & (levels < 1.05 * value)] = value
  return levels


def fit(points: Points, starts: Sequence[Sequence[float]] = STARTS, near: Law | None = None) -> Law:
  """The law of the least error over all starts, of which `near` is one where it is given.

  Raises:
    ValueError: fewer points than numbers to find, or all of one size or of one length of training.
  """
  if len(points.loss) < len(Law._fields):
    raise ValueError(f"a law of {len(Law._fields)} numbers can't be fitted to {len(points.loss)} runs")
  if np.ptp(points.params) == 0 or np.ptp(points.tokens) == 0:
    raise ValueError("a law of sizes and tokens can't be fitted to runs of one size, or of as many tokens each")
  log_n, log_d, log_l = (np.log(np.asarray(values, np.float64)) for values in points[:3])
  # Centred, so that the numbers that are searched for hardly depend on each other.
  middle_n, middle_d = log_n.mean(), log_d.mean()
  x, y = log_n - middle_n, log_d - middle_d

  def error(values: np.ndarray) -> tuple[float, np.ndarray]:
    e, a, alpha, b, beta = values
    terms = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])
    most = terms.max(0)
    shares = np.exp(terms - most)
    total = shares.sum(0)
    gap = most + np.log(total) - log_l
    shares /= total
    gap *= points.weight
    slope = np.clip(gap, -HUBER, HUBER) * points.weight
    huber = np.where(np.abs(gap) <= HUBER, gap**2 / 2, HUBER * (np.abs(gap) - HUBER / 2))
    by = np.stack([shares[0], shares[1], -x * shares[1], shares[2], -y * shares[2]])
    return huber.sum() / HUBER, by @ slope / HUBER

  bounds = [(-15.0, 5.0), (-15.0, 5.0), (0.0, 3.0), (-15.0, 5.0), (0.0, 3.0)]
  # TNC calls no BLAS: L-BFGS-B's small products hung where a pool of BLAS threads had to share two busy cores.
  search = lambda start, looks: optimize.minimize(
    error, np.clip(start, *np.array(bounds).T), jac=True, bounds=bounds, method="TNC", options={"maxfun": looks}
  )
  middle = log_l.mean()
  begin = [(middle + e, middle + a - 4, alpha, middle + b - 4, beta) for e, a, alpha, b, beta in starts]
  if near is not None:
    e, a, b = (math.log(max(value, 1e-9)) for value in (near.E, near.A, near.B))
    begin.append((e, a - near.alpha * middle_n, near.alpha, b - near.beta * middle_d, near.beta))
  found = sorted((search(start, LOOKS) for start in begin), key=lambda each: each.fun)
  best = min((search(each.x, SEARCH) for each in found[: max(2, len(found) // KEPT)]), key=lambda each: each.fun).x
  e, a, alpha, b, beta = best
  return Law(
    float(np.exp(e)) if e > bounds[0][0] + 0.01 else 0.0,  # at the end of the search
    float(np.exp(a + alpha * middle_n)),
    float(alpha),
    float(np.exp(b + beta * middle_d)),
    float(beta),
  )


def resampled(points: Points, law: Law, draws: int, seed: int = 0) -> list[Law]:
  """Laws of bootstrap samples of the runs; each search begins at `law`, that of all runs, and a few other starts.

  A sample that has too few different runs is left out.
  """
  rng = np.random.default_rng(seed)
  laws = []
  for _ in range(draws):
    which = rng.integers(0, len(points.loss), len(points.loss))
    if len(set(which.tolist())) > len(Law._fields):
      laws.append(fit(points.pick(which), STARTS[:: len(STARTS) // 6], law))
  return laws


def spread(points: Points, law: Law) -> np.ndarray:
  """log(measured / fitted) of every run times its weight: what of a loss no law of N and D tells, as of a run of the
  largest model at the largest budget."""
  return points.weight * (np.log(points.loss) - np.log(law.loss(points.params, points.tokens)))


def interval(laws: Sequence[Law], gaps: np.ndarray, params: float, tokens: float, seed: int = 0) -> tuple[float, float]:
  """95 % interval of the loss that one more run, as large as the largest fitted ones or larger, will have: the laws'
  interval, with a residual of the fitted runs added.

  Args:
    laws: of `resampled`.
    gaps: of `spread`.
  """
  rng = np.random.default_rng(seed)
  fitted = np.array([float(each.loss(params, tokens)) for each in laws])
  drawn = rng.choice(fitted, 20_000) * np.exp(rng.choice(gaps, 20_000))
  low, high = np.percentile(drawn, [2.5, 97.5])
  return float(low), float(high)


def best_for(law: Law, cost: "Cost", flops: float) -> tuple[float, float, float]:
  """(parameters, tokens, loss) of the best run of a budget."""
  log_n = np.linspace(np.log(1e2), np.log(1e13), 4001)
  params = np.exp(log_n)
  tokens = flops / cost.per_token(params)
  losses = np.where(tokens >= 1.0, law.loss(params, np.maximum(tokens, 1.0)), np.inf)
  place = int(np.argmin(losses))
  return float(params[place]), float(tokens[place]), float(losses[place])


class Cost(NamedTuple):
  """FLOPs of a token of a model of N parameters: fixed + root sqrt(N) + linear N.

  Matrices grow with N, attention and whatever else grows with the width with its root, and some of a model not at all
  (the text encoder of a sweep).
  """

  fixed: float
  root: float
  linear: float

  @classmethod
  def of(cls, params: np.ndarray, flops_per_token: np.ndarray) -> "Cost":
    """Of the models of a sweep, by least squares of relative errors; no term is negative."""
    terms = np.stack([np.ones(len(params)), np.sqrt(params), params], -1)
    found, _ = optimize.nnls(terms / flops_per_token[:, None], np.ones(len(params)))
    return cls(*found.tolist())

  def per_token(self, params: np.ndarray | float) -> np.ndarray:
    return self.fixed + self.root * np.sqrt(params) + self.linear * np.asarray(params, np.float64)

  def power(self, params: float) -> tuple[float, float]:
    """(p, dp / d log N) where a token costs as N^p at this size."""
    root, linear, cost = self.root * params**0.5, self.linear * params, float(self.per_token(params))
    power = (root / 2 + linear) / cost
    return power, (root / 4 + linear) / cost - power**2


def exponents(law: Law, cost: Cost, flops: float) -> dict[str, float]:
  """How what is best grows at a budget: parameters ~ C^params, tokens ~ C^tokens, reducible loss ~ C^-loss.

  The best N of C = cost(N) D is where alpha A N^-alpha = p beta B D^-beta, p being the power of the cost at N
  (Hoffmann et al. 2022, eq. 4, has p = 1); the exponents are its derivatives.

  Raises:
    ValueError: the loss falls with neither.
  """
  if law.alpha + law.beta <= 0:
    raise ValueError("the losses fall neither with parameters nor with tokens: there is no law of them")
  power, bend = cost.power(best_for(law, cost, flops)[0])
  grow = law.beta / (law.alpha + power * law.beta + bend / power)
  falls = law.alpha * law.beta / (law.alpha + power * law.beta)
  return {"params": grow, "tokens": 1 - power * grow, "loss": falls}


def sigmoid(log_flops: np.ndarray, scores: np.ndarray, chance: float) -> dict[str, Any]:
  """A score's rise with compute, floor + (1 - floor) / (1 + exp(-slope (log10 C - middle))), by least squares.

  The floor is chance, and 0 where a score is below chance: what has no shape at all is worse than a guess.

  Returns:
    {slope, middle, floor, rms}.

  Raises:
    ValueError: fewer than three runs.
  """
  if len(scores) < 3:
    raise ValueError(f"a rise of two numbers can't be fitted to {len(scores)} runs")
  floor = chance if scores.min() >= chance else 0.0
  rise = lambda x, slope, middle: floor + (1 - floor) * special.expit(slope * (x - middle))
  gap = lambda values: rise(log_flops, *values) - scores
  starts = [(slope, middle) for slope in (0.5, 2.0, 5.0) for middle in np.quantile(log_flops, [0.1, 0.5, 0.9])]
  best = min((optimize.least_squares(gap, start) for start in starts), key=lambda found: found.cost)
  found = {"slope": float(best.x[0]), "middle": float(best.x[1]), "floor": floor}
  return found | {"rms": float(np.sqrt(np.mean(gap(best.x) ** 2)))}
