"""The simulation exam: prompts of states that training never combined, clips made from them, states read back.

Each score comes with three others: the ceiling, which is the same examiner on real renders; the same on real renders
that went through the autoencoder; and chance, the score of guessing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.world_source import WorldSource
from sora_jax.evaluation.marks import chance, interval, marks
from sora_jax.inference import prompting
from sora_jax.inference.codec import Codec
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Generator, Request, Sampling

BATCH = 96  # clips sampled together


class Score(NamedTuple):
  """One attribute's line of a report, all from 0 to 1; NaN where it applied to no clip."""

  attribute: str
  mean: float
  low: float  # of the 95 % bootstrap interval
  high: float
  ceiling: float
  autoencoder: float
  chance: float
  trivial: float | None = None  # of the last given frame, held; None where none are given
  linear: float | None = None  # of things that go on as in the last two given frames; None where a world knows no such


class Exam(NamedTuple):
  scores: list[Score]
  clips: list[Clip]  # what the model made, in the order of the source
  marks: list[dict[str, float]]  # of each clip
  errors: dict[str, dict[str, float | None]]  # see `medians`


def requests_of(source: WorldSource, style: str, seed: int) -> list[Request]:
  """One request a clip of the source: its caption, size, duration and rate."""
  found = []
  for index in range(len(source)):
    frames, height, width = source.shape(index)
    found.append(Request(source.captions(index)[style], width, height, frames, source.fps(index), seed + index))
  return found


def examine(
  generator: Generator,
  source: WorldSource,
  sampling: Sampling,
  seed: int,
  style: str = "long",
  given: int = 0,
  progress: Callable[[int], None] = lambda done: None,
) -> Exam:
  """Makes a clip of every state of `source` from its caption, and marks it.

  Args:
    seed: of the first clip; clip i has seed + i.
    style: which caption is the prompt; the long one names every attribute.
    given: how many frames of the real clip are given besides, from the first on.
    progress: called with the number of clips made so far.
  """
  world = source.world
  states = [source.state(index) for index in range(len(source))]
  real = [source[index].frames_THWC for index in range(len(source))]
  rates = [source.fps(index) for index in range(len(source))]
  requests = requests_of(source, style, seed)
  if given:
    requests = [
      dataclasses.replace(request, conditions=(Condition(frames[:given]),))
      for request, frames in zip(requests, real, strict=True)
    ]
  clips: list[Clip] = []
  for start in range(0, len(requests), BATCH):
    clips += prompting.clips(generator, requests[start : start + BATCH], sampling)
    progress(len(clips))
  shown = lambda frames: marks(world, states, list(zip(frames, rates, strict=True)))
  each = [world.examine(clip.frames_THWC, clip.fps, state) for clip, state in zip(clips, states, strict=True)]
  made = {name: [mark[name] for mark in each if name in mark] for name in world.attributes}
  decoded = through(generator.codec, real)
  ceiling, coded = shown(real), shown(decoded)
  held = shown([held_from(frames, given) for frames in real]) if given else None
  goes_on = getattr(world, "extrapolate", None) if given > 1 else None
  moved = goes_on and shown([goes_on(f[:given], fps, len(f)) for f, fps in zip(real, rates, strict=True)])
  guesses = chance(world, states, np.random.default_rng(seed))
  number = lambda value: np.nan if value is None else value
  scores = [
    Score(
      name,
      *interval(made[name]),
      ceiling=number(mean(ceiling, name)),
      autoencoder=number(mean(coded, name)),
      chance=number(guesses[name]),
      trivial=mean(held, name) if held else None,
      linear=mean(moved, name) if moved else None,
    )
    for name in world.attributes
    if made[name]
  ]
  whose = {"median": [clip.frames_THWC for clip in clips], "ceiling": real, "autoencoder": decoded}
  return Exam(scores, clips, each, medians(world, states, rates, whose))


def medians(
  world: Any, states: Sequence[Any], rates: Sequence[float], whose: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, dict[str, float | None]]:
  """{name: {whose: median over clips}} of what a world measures beside its marks (its `errors`); {} of most worlds.

  None where most clips have no such error, or nothing in them can be measured.

  Args:
    whose: clips of the same states.
  """
  if not hasattr(world, "errors"):
    return {}
  found: dict[str, dict[str, float | None]] = {}
  for name, clips in whose.items():
    rows = [world.errors(*each) for each in zip(clips, rates, states, strict=True)]
    for key in rows[0] if rows else ():
      middle = float(np.median([row[key] for row in rows if key in row]))
      found.setdefault(key, {})[name] = round(middle, 3) if math.isfinite(middle) else None
  return found


def mean(marks_by_name: dict[str, list[float]], name: str) -> float | None:
  """Of an attribute's marks; None where it applied to no clip."""
  return float(np.mean(marks_by_name[name])) if marks_by_name[name] else None


def figures(score: Score) -> dict[str, float | None]:
  """A score as JSON, {mean, low, high, ceiling, autoencoder, chance} and, of clips that were given frames, trivial
  and, of worlds of motion, linear."""
  numbers = {name: value for name, value in score._asdict().items() if name != "attribute"}
  clean = lambda value: None if math.isnan(value) else round(float(value), 4)
  return {name: clean(value) for name, value in numbers.items() if value is not None}


def given_frames(generator: Generator) -> int:
  """Frames of two latent ones, which tell a speed: what clips from first frames are given."""
  return 1 + generator.grid.compression[0]


def held_from(frames_THWC: np.ndarray, given: int) -> np.ndarray:
  """The clip of one who knows no motion: the given frames, and the last of them for the rest."""
  return frames_THWC[np.minimum(np.arange(len(frames_THWC)), given - 1)]


def through(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Clips encoded and decoded by the autoencoder, those of one size together."""
  found: dict[int, np.ndarray] = {}
  shapes = {clip.shape for clip in clips}
  for shape in shapes:
    numbers = [i for i, clip in enumerate(clips) if clip.shape == shape]
    decoded = codec.decode(codec.encode(np.stack([clips[i] for i in numbers])), shape[:3])
    for number, frames in zip(numbers, decoded, strict=True):
      found[number] = frames
  return [found[i] for i in range(len(clips))]
