"""Is the subject wholly in the frame, and in its middle? What training at native size is said to improve.

"Video generation models as world simulators" (OpenAI 2024, "Improved framing and composition"): a model trained on
square crops makes clips whose subject is only partly in view. Here the subject is the shape of the shapes world, whose
colour and size the prompt says, so that the area that is seen can be divided by its own.

Shape letters: T frames, H height, W width, C colours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sora_jax.data.framings import middle_square
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation.marks import summary
from sora_jax.evaluation.simulation import requests_of
from sora_jax.inference import prompting
from sora_jax.inference.generator import Generator, Sampling
from sora_jax.worlds.shapes import BACKGROUNDS, COLOURS, ShapesState

SEED = 4000
WHOLE = 0.85  # of a subject's area in every frame: the rest is blur
MOST = 1.5  # times its own area: more of its colour is something else
SHAPES = ("worlds:shapes", "worlds:shapes_validation")


class Framing(NamedTuple):
  """Of one clip.

  Attributes:
    whole: the subject is wholly seen in every frame, 1.0 or 0.0.
    seen: the least share of its area that is seen in a frame.
    off_centre: the mean distance of what is seen of it from the middle of the frame, in short sides; NaN where nothing
      is.
  """

  whole: float
  seen: float
  off_centre: float


def framing(frames_THWC: np.ndarray, state: ShapesState, world: WorldSource) -> Framing:
  """Reads a clip against the subject that its prompt names."""
  height, width = frames_THWC.shape[1:3]
  side = min(height, width)
  own = areas(world.world.render(state, side, side, 1, 1.0), state).sum()
  cover_THW = areas(frames_THWC, state)
  seen_T = cover_THW.sum((1, 2)) / own
  rows_H, columns_W = np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2
  mass_T = np.maximum(cover_THW.sum((1, 2)), 1e-9)
  off_T = np.hypot((cover_THW.sum(2) @ rows_H) / mass_T, (cover_THW.sum(1) @ columns_W) / mass_T) / side
  seen_T = np.where(seen_T > MOST, 0.0, seen_T)
  shown_T = seen_T > 0.1
  least = float(min(seen_T.min(), 1.0))
  return Framing(float(least >= WHOLE), least, float(off_T[shown_T].mean()) if shown_T.any() else float("nan"))


def areas(frames_THWC: np.ndarray, state: ShapesState) -> np.ndarray:
  """How much of each pixel is of the subject's colour, 0 to 1: (T, H, W)."""
  ground_C, colour_C = np.array(BACKGROUNDS[state.background]), np.array(COLOURS[state.colour])
  towards_C = colour_C - ground_C
  share_THW = (np.clip(np.nan_to_num(frames_THWC), -1, 1) - ground_C) @ towards_C / (towards_C @ towards_C)
  return np.where(share_THW > 0.3, np.clip(share_THW, 0.0, 1.0), 0.0)


def sources(generator: Generator, clips: int) -> dict[str, WorldSource]:
  """Held-out clips of the longest duration: at training's sizes before any crop ("native"), and at squares of their
  short sides ("square").

  Raises:
    InputError: the model was not trained on the shapes world alone.
  """
  data = generator.config.data.copy_and_resolve_references()
  if data.source not in SHAPES:
    raise InputError(f"the model was trained on {data.source}: framing is measured on worlds:shapes")
  data.clips = clips
  every = WorldShapes.of(data, generator.grid)
  longest = max(frames for frames, _, _ in every.distinct())
  native = every.only(lambda frames: frames == longest)
  square: list[tuple[int, int]] = sorted({(min(h, w), min(h, w)) for _, h, w in native.distinct()})
  kinds: dict[str, WorldShapes] = {"native": native, "square": WorldShapes.every(square, [longest])}
  name = data.source.removeprefix("worlds:")
  return {kind: WorldSource.of(data, name, shapes, SEED, held_out=True) for kind, shapes in kinds.items()}


def examine(
  generator: Generator, sampling: Sampling, clips: int, progress: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
  """{scores: {KIND.MEASURE: {mean, low, high, ceiling, crops}}, marks: {the same: a value a clip, or None}}.

  Of both kinds of sizes and each measure of `Framing`. The ceiling is that of real clips; `crops` that of the middle
  squares of real clips, which is what a model of crops is shown.
  """
  scores, marks = {}, {}
  for kind, source in sources(generator, clips).items():
    progress(f"framing, {kind}")
    made = prompting.clips(generator, requests_of(source, "long", SEED), sampling)
    states = [source.state(index) for index in range(clips)]
    real = [source[index].frames_THWC for index in range(clips)]
    read = lambda each, states=states, source=source: [
      framing(frames, state, source) for frames, state in zip(each, states, strict=True)
    ]
    rows = {"made": read([clip.frames_THWC for clip in made]), "ceiling": read(real)}
    rows["crops"] = read([middle_square(frames) for frames in real])
    for name in Framing._fields:
      values = {row: [getattr(each, name) for each in found] for row, found in rows.items()}
      real_ones = {row: summary(values[row])["mean"] for row in ("ceiling", "crops")}
      scores[f"{kind}.{name}"] = summary(values["made"]) | real_ones
      marks[f"{kind}.{name}"] = [None if np.isnan(value) else round(value, 4) for value in values["made"]]
  return {"scores": scores, "marks": marks}
