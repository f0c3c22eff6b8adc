"""The exam at many sizes, durations and rates: those of training, others between them, and beyond.

Points follow from a config's ranges alone, so that runs of one config are examined at the same. Each is an exam of its
own (`simulation.examine`), and those of a kind are also taken together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sora_jax.data.sizes import draw_sizes, ends_of
from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import Rates, Shape, WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import simulation
from sora_jax.evaluation.marks import interval
from sora_jax.evaluation.simulation import Score
from sora_jax.inference.generator import Generator, Sampling
from sora_jax.patches import Grid

KINDS = ("trained", "inside", "outside")
DURATIONS, SIZES, RATES = 4, 8, 3  # durations; at each so many sizes, half of them of training; and rates
BEYOND = 1.5  # times the longest side or duration, or a part of the shortest side
DRAWS = 64  # new sizes are chosen among so many
SEED = 3000  # of held-out states


class Point(NamedTuple):
  """What clips are asked for: pixels, frames, frames per second; and how that is to what training saw, of KINDS."""

  width: int
  height: int
  frames: int
  fps: float
  kind: str


class Row(NamedTuple):
  """The exam of one point."""

  point: Point
  tokens: int  # of a clip
  scores: list[Score]
  marks: list[dict[str, float]]  # of each clip


class Known:
  """What a run trains on, by the `data` section of its config."""

  def __init__(self, section: Any, grid: Grid):
    """Raises InputError where the sizes, durations or rates are none."""
    every = WorldShapes.of(section, grid)
    videos = every.only(lambda frames: frames > 1)
    self.step, self.tokens = grid.compression[0], grid.tokens
    self.shapes = set(every.distinct())
    self.videos = (videos if videos.usable else every).distinct()  # images alone, where there is nothing else
    self.durations = sorted({frames for frames, _, _ in self.videos})
    lows, highs = zip(*map(ends_of, section.sizes), strict=True)
    self.low, self.high = np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()  # (height, width)
    self.rates = Rates.of(section).ends

  def kind(self, shape: Shape, fps: float) -> str:
    """Trained: such clips are trained on. Inside: sides, duration and rate are between the least and the greatest, with
    no larger frames than the largest at the nearest duration, and no more tokens than any clip has. Outside: the rest.
    """
    frames, height, width = shape
    rated = any(low <= fps <= high for low, high in self.rates)
    if shape in self.shapes and rated:
      return "trained"
    near = min({t for t, _, _ in self.shapes}, key=lambda t: (abs(t - frames), t))
    durations = [t for t, _, _ in self.shapes]
    inside = (
      min(durations) <= frames <= max(durations)
      and self.tokens(*shape) <= max(self.tokens(*each) for each in self.shapes)
      and all(low <= side <= high for low, side, high in zip(self.low, (height, width), self.high, strict=True))
      and height * width <= max(h * w for t, h, w in self.shapes if t == near)
      and min(low for low, _ in self.rates) <= fps <= max(high for _, high in self.rates)
    )
    return "inside" if inside else "outside"


def points(section: Any, grid: Grid) -> list[Point]:
  """The points at which a run of this `data` section is examined.

  At each of DURATIONS durations of training SIZES sizes: half are trained at it. The others never are, and half of
  these are at a duration beside it that is not trained on either, where there is one. Then sides BEYOND the range at
  the shortest duration, and a duration BEYOND the longest. Rates take turns. Images are left out, unless there is
  nothing else.
  """
  known = Known(section, grid)
  middle = lambda low, high: float(f"{math.sqrt(low * high):.3g}")
  rates = _spread(sorted({rate for low, high in known.rates for rate in (low, middle(low, high), high)}), RATES)
  shapes: list[Shape] = []
  for frames in _spread(known.durations, DURATIONS):
    shapes += _by_aspect([shape for shape in known.videos if shape[0] == frames], SIZES // 2)
    shapes += _new_shapes(known, frames)
  shapes += _beyond(known)
  found = [(shape, rates[number % len(rates)]) for number, shape in enumerate(dict.fromkeys(shapes))]
  return [Point(w, h, t, fps, known.kind((t, h, w), fps)) for (t, h, w), fps in found]


def _new_shapes(known: Known, frames: int) -> list[Shape]:
  """Sizes inside the ranges that are never trained on, half of them at a duration that is not either."""
  (low_h, low_w), (high_h, high_w) = known.low, known.high
  trained = {(h, w) for _, h, w in known.shapes}
  rate = known.rates[0][0]
  beside = [t for t in (frames + 1, frames - 1) if known.durations[0] < t < known.durations[-1]]
  beside = [t for t in beside if t not in known.durations] or [frames]
  new = lambda h, w: (h, w) not in trained and all(known.kind((t, h, w), rate) == "inside" for t in {frames, beside[0]})
  drawn = draw_sizes(f"{low_w}..{high_w}x{low_h}..{high_h}", new, DRAWS, first=1 + DRAWS * frames)
  picked = _by_aspect([(frames, h, w) for h, w in drawn], SIZES // 2)
  return [(beside[0] if number % 2 else t, h, w) for number, (t, h, w) in enumerate(picked)]


def _beyond(known: Known) -> list[Shape]:
  """Wider, taller, larger and smaller than the ranges at the shortest duration; and longer, at sizes of the longest."""
  low, high = np.array(known.low), np.array(known.high)
  middle, large = np.sqrt(low * high), high * BEYOND
  sizes = np.array([(middle[0], large[1]), (large[0], middle[1]), large, low / BEYOND]).round().clip(1)
  shortest, longest = known.durations[0], known.durations[-1]
  shapes = [(shortest, h, w) for h, w in sizes.astype(int).tolist()]
  longer = 1 + known.step * math.ceil((BEYOND * longest - 1) / known.step)
  own = _by_aspect([shape for shape in known.videos if shape[0] == longest], SIZES // 2)
  return shapes + [(longer, h, w) for _, h, w in own]


def _by_aspect(shapes: Sequence[Shape], count: int) -> list[Shape]:
  """At most `count` of these, their aspect ratios spread."""
  return _spread(sorted(shapes, key=lambda shape: (shape[2] / shape[1], shape)), count)


def _spread(values: Sequence[Any], count: int) -> list[Any]:
  """At most `count` of the values, evenly from the first to the last."""
  places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
  return [values[place] for place in places.tolist()]


def examine(
  generator: Generator,
  wanted: Sequence[Point],
  sampling: Sampling,
  clips: int,
  seed: int = SEED,
  progress: Callable[[Row], None] = lambda row: None,
  world: str | None = None,
) -> list[Row]:
  """The exam at each point with `clips` held-out states of the generator's world; those of two points differ.

  Args:
    world: which of its worlds, where it was trained on several.

  Raises:
    InputError: the run's data are no world, or several of which none is chosen, or others than that.
  """
  source, rows = generator.config.data.source, []
  names = names_of(generator.config.data)
  if f"worlds:{world}" not in names and (world or len(names) > 1 or not source.startswith("worlds:")):
    raise InputError(f"data.source={source!r}: an exam reads clips of one world, worlds:NAME, back")
  world = world or source.removeprefix("worlds:")
  for number, point in enumerate(wanted):
    size = (point.height, point.width)
    states = WorldSource(world, clips, [size], [point.frames], point.fps, seed + number, held_out=True)
    exam = simulation.examine(generator, states, sampling, seed + number * clips)
    rows.append(Row(point, generator.grid.tokens(point.frames, *size), exam.scores, exam.marks))
    progress(rows[-1])
  return rows


def together(rows: Sequence[Row]) -> dict[str, list[Score]]:
  """The scores over all clips of each kind of point; a kind without points is left out."""
  found = {}
  for kind in KINDS:
    own = [row for row in rows if row.point.kind == kind]
    names = dict.fromkeys(score.attribute for row in own for score in row.scores)
    if names:
      found[kind] = [_pooled(name, own) for name in names]
  return found


def _pooled(name: str, rows: Sequence[Row]) -> Score:
  made = [mark[name] for row in rows for mark in row.marks if name in mark]
  lines = [score[4:7] for row in rows for score in row.scores if score.attribute == name]
  ceiling, autoencoder, chance = np.mean(lines, axis=0).tolist()
  return Score(name, *interval(made), ceiling, autoencoder, chance)


def report(rows: Sequence[Row]) -> dict[str, Any]:
  """{points: [{width, height, frames, fps, kind, tokens, clips, scores}], kinds: {kind: {points, clips, scores}}}.

  Scores are {attribute: {mean, low, high, ceiling, autoencoder, chance}}, with None where there is no figure.
  """
  each = [
    row.point._asdict() | {"tokens": row.tokens, "clips": len(row.marks), "scores": _figures(row.scores)}
    for row in rows
  ]
  kinds = {}
  for kind, scores in together(rows).items():
    own = [row for row in rows if row.point.kind == kind]
    kinds[kind] = {"points": len(own), "clips": sum(len(row.marks) for row in own), "scores": _figures(scores)}
  return {"points": each, "kinds": kinds}


def _figures(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
  return {score.attribute: simulation.figures(score) for score in scores}
