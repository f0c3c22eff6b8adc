"""`sora sweep fit`: a law of a sweep's runs, sealed predictions of the large ones, and how these fared."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sora_jax.errors import InputError
from sora_jax.evaluation import worlds
from sora_jax.jobs import exams
from sora_jax.jobs.sweep import DIVERGED, must_be_sealed, read, state_of
from sora_jax.jobs.sweep_runs import Planned
from sora_jax.runtime import storage
from sora_jax.scaling import law, rates, seal

FILE = "fit.json"
RATES = ("train.learning_rate", "train.adam_learning_rate")
STANDARD = ", standard parametrisation"  # of a rate's name, where each width has rates of its own
DRAWS = 200  # bootstrap samples of the runs


def fit(workdir: str | os.PathLike, sweep: Any = None, draws: int = DRAWS) -> dict[str, Any]:
  """Fits the law to the runs of the grid that have ended; seals the predictions of the others where none are sealed.

  Where predictions are sealed, the losses beside them are those of the grid, whose runs may be gone, or more.

  A sweep of learning rates has no law: what is found is how far the best rate moves with the width (`rates.transfer`).

  Returns:
    {rates: {setting: `rates.transfer`, runs}} of a sweep of rates, else {law, exponents, runs, residual, backtest,
    sealed: [{runs, flops, predicted, low, high, naive, losses, measured, error, naive_error, error_of_change,
    covered}], max_error, largest_fitted_flops, sha256, scores, frontier}, which fit.json keeps. `backtest` has how far
    off the law of all budgets but the last is there, by model. `measured` is the mean of the `losses` of a model's
    seeds; errors are shares of it; `naive` is the lowest loss of the largest fitted budget, `error_of_change` the error
    as a share of what that guess misses.

  Raises:
    InputError: there is no sweep, runs of its grid are not done or too few, or a large one has no sealed prediction.
  """
  here, there = epath.Path(workdir), read(workdir, sweep)
  runs = {name: Planned(**each) for name, each in there["runs"].items()}
  states = {name: state_of(here / name, each.steps) for name, each in runs.items()}
  losses = {name: found["held_out"] for name, found in states.items()}
  grid = {name: each for name, each in runs.items() if not each.sealed}
  if sealed := _sealed_losses(here):
    losses |= dict.fromkeys(grid) | sealed
  elif missing := [name for name in grid if losses[name] is None and states[name]["state"] != DIVERGED]:
    raise InputError(
      f"{len(missing)} of {len(grid)} runs of the grid are not done or lack a held-out loss ({', '.join(missing[:3])}):"
      " run the same sora sweep run again"
    )
  if trials := rate_trials(grid, losses):
    try:
      result = {"rates": {key: rates.transfer(each) | {"runs": len(each)} for key, each in trials.items()}}
    except ValueError as error:
      raise InputError(f"{workdir}: {error}") from error
  else:
    known = {name: loss for name, loss in losses.items() if loss is not None}
    result = fit_law(here, runs, known, draws, there["base"]) | {"scores": _scores(here, runs)}
  storage.write_text(here / FILE, json.dumps(result, indent=1) + "\n")
  return result


def _sealed_losses(workdir: epath.Path) -> dict[str, float]:
  """Losses of the grid that predictions were made of, by run: their law stays, whatever becomes of the runs."""
  sealed = seal.read(workdir)
  return {each["name"]: each["loss"] for each in sealed["points"]} if sealed else {}


def fit_law(
  workdir: epath.Path, runs: dict[str, Planned], losses: dict[str, float], draws: int, base: str
) -> dict[str, Any]:
  """The law of the grid's runs, and how what was sealed fared; see `fit`.

  Args:
    base: the digest of the config that the runs change.

  Raises:
    InputError: too few runs, or a large one has no sealed prediction.
  """
  grid = {name: each for name, each in runs.items() if not each.sealed and name in losses}
  rows = [(float(each.params), each.tokens, losses[name]) for name, each in grid.items()]
  params, tokens, loss = np.array(rows).reshape(-1, 3).T
  flops_N = np.array([each.flops for each in grid.values()])
  points = law.Points(params, tokens, loss, law.weights(params, flops_N, loss))
  try:
    found = law.fit(points)
    cost = law.Cost.of(points.params, flops_N / points.tokens)
    growth = law.exponents(found, cost, flops_N.max())
  except ValueError as error:
    raise InputError(f"{workdir}: {error}") from error
  laws, gaps = law.resampled(points, found, draws), law.spread(points, found)
  kinds = np.unique(np.stack([flops_N, params]), axis=1, return_inverse=True)[1].ravel()
  naive = float(points.loss[np.isclose(flops_N, flops_N.max(), rtol=0.05)].min())
  result: dict[str, Any] = {
    "law": {name: float(f"{value:.5g}") for name, value in found._asdict().items()},
    "law_intervals": _intervals(laws),
    "exponents": {name: round(value, 4) for name, value in growth.items()},
    "exponents_intervals": _exponent_intervals(laws, cost, flops_N.max()),
    "runs": len(grid),
    "residual": round(float(np.sqrt(np.mean(gaps**2))), 5),
    "backtest": _backtest(points, flops_N),
    "seed_spread": round(law.seed_spread(kinds, np.log(loss)), 5) or None,  # no seeds, no spread
    "largest_fitted_flops": float(flops_N.max()),
    "points": [
      {"name": name, "flops": each.flops, "params": each.params, "tokens": each.tokens, "loss": losses[name]}
      for name, each in grid.items()
    ],
    "frontier": _frontier(found, cost, flops_N),
  }
  if large := {name: each for name, each in runs.items() if each.sealed}:
    sealed = seal.read(workdir) or _seal(workdir, large, result | {"base": base}, (found, laws, gaps, naive))
    must_be_sealed(workdir, large, base)
    result |= {"sha256": sealed["sha256"], "sealed_at": sealed["sealed_at"]}
    models: dict[tuple[int, float], list[str]] = {}
    for name, each in large.items():
      models.setdefault((each.params, each.flops), []).append(name)
    result["sealed"] = [_fared(names, sealed["predictions"], losses) for names in models.values()]
    errors = [each["error"] for each in result["sealed"] if each["error"] is not None]
    result["max_error"] = max(errors) if errors else None
  return result


def rate_trials(grid: dict[str, Planned], losses: dict[str, float | None]) -> dict[str, list[rates.Trial]]:
  """The runs of the learning rate that a grid varies with the width; a run without a finite loss has diverged.

  Returns:
    {setting: trials}, with STANDARD behind the setting where `model.base_width` varies too; {} of another sweep.

  Raises:
    InputError: it varies both rates.
  """
  varied = [key for key in ("model.width", *RATES) if len({each.settings.get(key) for each in grid.values()}) > 1]
  if "model.width" not in varied or varied == ["model.width"]:
    return {}
  if len(varied) > 2:
    raise InputError(f"a sweep of rates varies one of {' and '.join(RATES)}: give each a sweep of its own")
  bases = {each.settings.get("model.base_width") for each in grid.values()}
  return {
    varied[1] + (STANDARD if len(bases) > 1 else ""): [
      rates.Trial(each.settings["model.width"], each.settings[varied[1]], losses[name] or math.inf)
      for name, each in grid.items()
    ]
  }


def _seal(
  workdir: epath.Path,
  large: dict[str, Planned],
  result: dict[str, Any],
  fitted: tuple[law.Law, Sequence[law.Law], np.ndarray, float],
) -> dict[str, Any]:
  """Writes the predictions down.

  Raises:
    InputError: a run that is to be predicted has begun, or too few of the grid have ended.
  """
  if begun := [name for name, each in large.items() if state_of(workdir / name, each.steps)["state"] != "waiting"]:
    raise InputError(f"{workdir / begun[0]} has begun: what is predicted must not have been run; use another workdir")
  found, laws, gaps, naive = fitted
  if not laws:
    raise InputError(f"{workdir}: {result['runs']} runs are too few for intervals of what is sealed")
  predictions = {}
  for name, each in large.items():
    low, high = law.interval(laws, gaps, each.params, each.tokens)
    predictions[name] = {
      "settings": each.settings,
      "flops": each.flops,
      "params": each.params,
      "tokens": each.tokens,
      "predicted": round(float(found.loss(each.params, each.tokens)), 6),
      "low": round(low, 6),
      "high": round(high, 6),
      "naive": naive,
    }
  kept = {name: result[name] for name in ("base", "law", "runs", "residual", "largest_fitted_flops", "points")}
  return seal.write(workdir, {"predictions": predictions, **kept})


def _fared(names: Sequence[str], predictions: dict[str, Any], losses: dict[str, float]) -> dict[str, Any]:
  """A prediction beside what the runs of its seeds, those that are done, have measured."""
  prediction = {key: value for key, value in predictions[names[0]].items() if key != "settings"}
  known = [losses[name] for name in names if name in losses]
  measured = float(np.mean(known)) if known else None
  row = {"runs": list(names), **prediction, "losses": known, "measured": measured}
  more: dict[str, Any] = dict.fromkeys(("error", "naive_error", "error_of_change", "covered"))
  if measured is not None:
    gap, missed = abs(prediction["predicted"] - measured), abs(prediction["naive"] - measured)
    more = {
      "error": round(gap / measured, 6),
      "naive_error": round(missed / measured, 6),
      "error_of_change": round(gap / missed, 4) if missed else None,
      "covered": prediction["low"] <= measured <= prediction["high"],
    }
  return row | more


def _backtest(points: law.Points, flops_N: np.ndarray) -> dict[str, float] | None:
  """{parameters: error as a share of the mean loss} at the largest budget of the law of the others; None of too few."""
  budgets = law.levels(flops_N)
  largest = budgets == budgets.max()
  if np.sum(~largest) < len(law.Law._fields) or len(np.unique(budgets)) < 3:
    return None
  found, last = law.fit(points.pick(~largest)), points.pick(largest)
  off = {}
  for size in np.unique(last.params):
    mine = last.pick(last.params == size)
    off[f"{size:.0f}"] = round(float(np.mean(found.loss(mine.params, mine.tokens)) / np.mean(mine.loss) - 1), 4)
  return off


def _intervals(laws: Sequence[law.Law]) -> dict[str, list[float]]:
  """95 % of the bootstrap, of each number."""
  if not laws:
    return {}
  ends = np.percentile(np.array(laws), [2.5, 97.5], axis=0)
  return {name: [float(f"{end:.4g}") for end in ends[:, place]] for place, name in enumerate(law.Law._fields)}


def _exponent_intervals(laws: Sequence[law.Law], cost: law.Cost, flops: float) -> dict[str, list[float]]:
  found = [law.exponents(each, cost, flops) for each in laws if each.alpha + each.beta > 0]
  return {
    name: [round(float(end), 4) for end in np.percentile([each[name] for each in found], [2.5, 97.5])]
    for name in (found[0] if found else ())
  }


def _frontier(found: law.Law, cost: law.Cost, flops_N: np.ndarray) -> list[dict[str, float]]:
  """The best run of budgets from the smallest fitted one to a hundred times the largest."""
  rows = []
  for budget in np.geomspace(flops_N.min(), 100 * flops_N.max(), 9).tolist():
    params, tokens, loss = law.best_for(found, cost, budget)
    rows.append(
      {"flops": float(f"{budget:.4g}"), "params": round(params), "tokens": round(tokens), "loss": round(loss, 5)}
    )
  return rows


def _scores(workdir: epath.Path, runs: dict[str, Planned]) -> dict[str, Any]:
  """`rises` of the runs that `sora evaluate --suite worlds` has examined."""
  found = exams.of_sweep(workdir, {name: each.steps for name, each in runs.items()}, "worlds")
  return rises([(runs[name].flops, worlds.means(exam)) for name, exam in found.items()])


def rises(models: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
  """The rise with compute of each world's mean score, where three models or more have one.

  Args:
    models: (FLOPs, `worlds.means` of its exam) of each.

  Returns:
    {WORLD: {slope, middle, floor, rms, runs}}, see `law.sigmoid`.
  """
  fitted: dict[str, Any] = {}
  for world in sorted({world for _, means in models for world in means}):
    rows = [(math.log10(flops), means[world]) for flops, means in models if world in means]
    if len(rows) >= 3:
      log_flops, scores_N, chance = np.array([(x, row["mean"], row["chance"]) for x, row in rows]).T
      fitted[world] = law.sigmoid(log_flops, scores_N, float(chance.mean())) | {"runs": len(rows)}
  return fitted
