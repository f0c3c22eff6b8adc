"""The simulation exam: prompts of states that training never combined, clips made from them, states read back.

Each score comes with three others: the ceiling, which is the same examiner on real renders; the same on real renders
that went through the autoencoder; and chance, the score of guessing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.world_source import WorldSource
from sora_jax.evaluation.marks import chance, interval, marks
from sora_jax.inference import prompting
from sora_jax.inference.codec import Codec
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


class Exam(NamedTuple):
  scores: list[Score]
  clips: list[Clip]  # what the model made, in the order of the source
  marks: list[dict[str, float]]  # of each clip


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
  progress: Callable[[int], None] = lambda done: None,
) -> Exam:
  """Makes a clip of every state of `source` from its caption alone, and marks it.

  Args:
    seed: of the first clip; clip i has seed + i.
    style: which caption is the prompt; the long one names every attribute.
    progress: called with the number of clips made so far.
  """
  requests = requests_of(source, style, seed)
  clips: list[Clip] = []
  for start in range(0, len(requests), BATCH):
    clips += prompting.clips(generator, requests[start : start + BATCH], sampling)
    progress(len(clips))
  world = source.world
  states = [source.state(index) for index in range(len(source))]
  real = [source[index].frames_THWC for index in range(len(source))]
  rates = [source.fps(index) for index in range(len(source))]
  made = marks(world, states, [(clip.frames_THWC, clip.fps) for clip in clips])
  ceiling = marks(world, states, list(zip(real, rates, strict=True)))
  coded = marks(world, states, list(zip(through(generator.codec, real), rates, strict=True)))
  guesses = chance(world, states, np.random.default_rng(seed))
  guessed = {name: np.nan if guess is None else guess for name, guess in guesses.items()}
  scores = [
    Score(name, *interval(made[name]), float(np.mean(ceiling[name])), float(np.mean(coded[name])), guessed[name])
    for name in world.attributes
    if made[name]
  ]
  each = [world.examine(clip.frames_THWC, clip.fps, state) for clip, state in zip(clips, states, strict=True)]
  return Exam(scores, clips, each)


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
