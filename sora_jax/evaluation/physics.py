"""How well a model knows mechanics, inside and outside of the ranges that it was trained on, after Kang et al. (2024).

The first frames of a real clip are given, and the balls of the rest are followed: the error is the mean |velocity|
difference along the horizontal, in world units a second, over the frames that had to be predicted ("How Far is Video
Generation from World Model", arXiv 2411.02385, section 3). They give 3 frames, we as many as two latent frames hold.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sora_jax.clips import Clip, contact_sheet, to_uint8
from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import Rates, WorldShapes
from sora_jax.errors import InputError
from sora_jax.evaluation.marks import summary
from sora_jax.evaluation.simulation import given_frames, held_from, through
from sora_jax.inference import prompting
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.worlds.physics import LEVELS, Collision, Parabola, Uniform

SEED = 3000  # of states and clips
SHOWN = 8  # frames of a clip on a sheet
# Of DiT-L trained on 3 million clips of 256x256 pixels: uniform motion in and out of distribution, and real clips.
PUBLISHED: Mapping[str, Any] = {
  "uniform": {"in": 0.012, "out": 0.427, "ceiling": 0.0099},
  "source": "Kang et al. 2024, arXiv 2411.02385",
}
WORLDS: Mapping[str, Any] = {world.name: world for world in (Uniform(), Parabola(), Collision())}


class Asked(NamedTuple):
  """States of one world at one level, and real clips of them."""

  world: Any
  states: list[Any]
  real: list[Clip]


def worlds_of(generator: Generator) -> list[str]:
  """Those of WORLDS that the model was trained on.

  Raises:
    InputError: none.
  """
  names = names_of(generator.config.data)
  found = [name for name in WORLDS if f"worlds:{name}" in names]
  if not found:
    raise InputError(
      f"data.source={generator.config.data.source!r}: physics is measured on {', '.join(WORLDS)}: train on "
      "worlds:uniform or another of them"
    )
  return found


def asked(generator: Generator, world: str, level: str, clips: int) -> Asked:
  """Clips of the training's longest duration, at its sizes and rates.

  Raises:
    InputError: no duration of training is longer than the frames that are given.
  """
  data, given = generator.config.data, given_frames(generator)
  every = WorldShapes.of(data, generator.grid)
  longest = max(frames for frames, _, _ in every.distinct())
  if longest <= given:
    raise InputError(f"the model's longest clips have {longest} frames, and {given} are given: physics needs longer")
  shapes = every.only(lambda frames: frames == longest).spread(clips)
  rates, made = Rates.of(data), WORLDS[world]
  states, real = [], []
  for index in range(clips):
    rng = np.random.default_rng([SEED, list(WORLDS).index(world), list(LEVELS).index(level), index])
    state = made.sample_at(rng, LEVELS[level])
    frames, height, width = shapes[index]
    fps = float(rates.at(rng.random(1))[0])
    pixels = made.render(state, height, width, frames, fps)
    states.append(state)
    real.append(Clip(pixels, fps, made.caption(state, "long"), f"{world}-{level}-{index}"))
  return Asked(made, states, real)


def examine(
  generator: Generator, sampling: Sampling, clips: int, progress: Callable[[str], None] = lambda name: None
) -> dict[str, dict[str, float | None]]:
  """{WORLD.LEVEL: {mean, low, high, ceiling, autoencoder, trivial, linear, chance}}, all velocity errors.

  The model's with its 95 % interval, that of real clips (what reading costs), of real clips through the autoencoder, of
  the last given frame held, of balls that go on as they went, and of another state's clip; None where every ball leaves
  too soon to have one.
  """
  given = given_frames(generator)
  scores = {}
  for world in worlds_of(generator):
    for level in LEVELS:
      progress(f"{world}, {level}")
      scores[f"{world}.{level}"] = _row(generator, sampling, asked(generator, world, level, clips), given)
  return scores


def sheet(generator: Generator, sampling: Sampling) -> np.ndarray:
  """Of each world at each level the first real clip, and the model's own of its first frames below: (H, W, 3) uint8."""
  rows = []
  for world in worlds_of(generator):
    for level in LEVELS:
      each = asked(generator, world, level, 1)
      rows += [each.real[0].frames_THWC, _made(generator, sampling, each, given_frames(generator))[0]]
  every = [max(1, len(frames) // SHOWN) for frames in rows]
  return contact_sheet([list(to_uint8(frames[::step][:SHOWN])) for frames, step in zip(rows, every, strict=True)])


def _made(generator: Generator, sampling: Sampling, each: Asked, given: int) -> list[np.ndarray]:
  """The model's own clips of the first frames of the real ones."""
  requests = [
    Request(
      clip.caption,
      clip.frames_THWC.shape[2],
      clip.frames_THWC.shape[1],
      len(clip.frames_THWC),
      clip.fps,
      SEED + number,
      conditions=(Condition(clip.frames_THWC[:given]),),
    )
    for number, clip in enumerate(each.real)
  ]
  return [clip.frames_THWC for clip in prompting.clips(generator, requests, sampling)]


def _row(generator: Generator, sampling: Sampling, each: Asked, given: int) -> dict[str, float | None]:
  errors = functools.partial(_errors, each, given)
  real = [clip.frames_THWC for clip in each.real]
  made = _made(generator, sampling, each, given)
  moved = [each.world.extrapolate(clip.frames_THWC[:given], clip.fps, len(clip.frames_THWC)) for clip in each.real]
  rows = {
    "ceiling": errors(real),
    "autoencoder": errors(through(generator.codec, real)),
    "trivial": errors([held_from(frames, given) for frames in real]),
    "linear": errors(moved),
    "chance": _errors(each._replace(states=each.states[1:] + each.states[:1]), given, real),
  }
  return summary(errors(made)) | {name: summary(values)["mean"] for name, values in rows.items()}


def _errors(each: Asked, given: int, clips: list[np.ndarray]) -> list[float]:
  """Of each clip; NaN where no ball stays long enough to have a velocity."""
  return [
    each.world.velocity_error(frames, real.fps, state, given)
    for frames, real, state in zip(clips, each.real, each.states, strict=True)
  ]
