"""Whether the best learning rate stays where it is when the model becomes wider."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Trial(NamedTuple):
  """One run: a width, a rate, and the loss that it ended with; infinite where it diverged."""

  width: int
  rate: float
  loss: float


def transfer(trials: Sequence[Trial]) -> dict[str, Any]:
  """The best rate of each width, and how far the best ones are apart.

  Seeds are averaged; the mean of runs of which one diverged is None. A width whose best rate is the lowest or highest
  tried may have a better one beyond, which `at_edge` says; one whose runs have all diverged has no best rate (None).

  Returns:
    {best: {width: rate}, losses: {width: [[rate, mean loss], ...]}, grid_steps: most steps of the grid between two best
    rates, None of fewer than two, at_edge: [width, ...], transferred: {width: by how much, as a share of it, the least
    loss is missed with the best rate of the narrowest width that has one; None where that diverges}}

  Raises:
    ValueError: a width lacks a rate that another has, or there is one width or one rate alone.
  """
  rates = sorted({trial.rate for trial in trials})
  widths = sorted({trial.width for trial in trials})
  by_place: dict[tuple[int, float], list[float]] = {}
  for trial in trials:
    by_place.setdefault((trial.width, trial.rate), []).append(trial.loss)
  if len(by_place) != len(rates) * len(widths) or len(rates) < 2 or len(widths) < 2:
    raise ValueError("two widths or more are compared at the same two rates or more")
  mean = {place: math.fsum(losses) / len(losses) for place, losses in by_place.items()}
  found = {width: min(rates, key=lambda rate: mean[width, rate]) for width in widths}
  best = {width: rate for width, rate in found.items() if math.isfinite(mean[width, rate])}
  places, narrowest = [rates.index(rate) for rate in best.values()], next(iter(best), 0)
  missed = {str(width): _finite(mean[width, best[narrowest]] / mean[width, rate] - 1) for width, rate in best.items()}
  return {
    "best": {str(width): best.get(width) for width in widths},
    "losses": {str(width): [[rate, _finite(mean[width, rate])] for rate in rates] for width in widths},
    "grid_steps": max(places) - min(places) if len(places) > 1 else None,
    "transferred": missed,
    "at_edge": [width for width, rate in best.items() if rate in (rates[0], rates[-1])],
  }


def _finite(loss: float) -> float | None:
  """As JSON can hold it."""
  return round(loss, 6) if math.isfinite(loss) else None
