"""How far clips longer than training's drift from where their worlds would be: four times as long, and a minute.

Clips go on from a real one's first frames, window by window. The error is the distance of the shape from its true
place, in short sides of the frame.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from sora_jax.evaluation.prompting import SEED, Subject
from sora_jax.inference import prompting
from sora_jax.inference.prompting import Extension
from sora_jax.worlds import shapes

LONG = 4  # times the trained length
MINUTE, MINUTE_CLIPS = 60.0, 8


def errors_of(subject: Subject, frames: int, count: int) -> np.ndarray:
  """(clips, frames) of the first `count` clips: NaN where no shape is seen."""
  given = prompting.context(subject.generator.grid, subject.frames)
  real = [subject.real(number, frames) for number in range(count)]
  extensions = [
    Extension(clip[:given], subject.prompt(number), subject.fps, SEED + number, forward=frames - given)
    for number, clip in enumerate(real)
  ]
  made = [clip.frames_THWC for clip in prompting.extend(subject.generator, extensions, subject.sampling)]
  return np.stack([away(*both) for both in zip(made, real, strict=True)])


def away(some_THWC: np.ndarray, others_THWC: np.ndarray) -> np.ndarray:
  """Distance of the shapes of two clips in each frame, (T,), short sides."""
  return np.linalg.norm(shapes.locate(some_THWC) - shapes.locate(others_THWC), axis=1)


def mean_of(errors: np.ndarray) -> np.ndarray:
  """The mean over clips of what is seen, by frame; NaN where no clip shows a shape."""
  seen = ~np.isnan(errors)
  return np.where(seen.any(axis=0), np.nansum(errors, axis=0) / np.maximum(seen.sum(axis=0), 1), np.nan)


def long(subject: Subject) -> dict[str, Any]:
  """Clips of LONG times the trained length.

  Returns:
    error_by_frame: the mean over clips; growth a second inside the trained length (of real frames through the model's
    own first windows) and beyond; their ratio; and the share of frames in which no shape is seen.
  """
  length = LONG * subject.frames
  errors = errors_of(subject, length, len(subject))
  by_frame = mean_of(errors)

  def growth(start: int, stop: int) -> float | None:
    seconds, part = np.arange(start, stop) / subject.fps, by_frame[start:stop]
    known = ~np.isnan(part)
    return float(np.polyfit(seconds[known], part[known], 1)[0]) if known.sum() > 1 else None

  inside, beyond = growth(0, subject.frames), growth(subject.frames, length)
  return {
    "error_by_frame": [None if np.isnan(error) else round(float(error), 4) for error in by_frame],
    "lost": float(np.isnan(errors).mean()),
    "growth_inside": inside,
    "growth_beyond": beyond,
    "growth_ratio": None if inside is None or beyond is None else beyond / max(inside, 1e-9),
  }


def minute(subject: Subject, seconds: float = MINUTE) -> dict[str, Any]:
  """A few clips of a minute.

  Returns:
    error_by_second: the mean over clips and frames; chance: that of another clip's shape; and the share of frames lost.
  """
  count, frames = min(MINUTE_CLIPS, len(subject)), round(seconds * subject.fps)
  errors = errors_of(subject, frames, count)
  second_T = (np.arange(frames) / subject.fps).astype(int)
  means = [mean_of(errors[:, second_T == second].reshape(-1, 1)) for second in range(second_T[-1] + 1)]
  others = []
  for number in range(count):
    _, height, width = subject.source.shape(number)
    state = subject.source.state((number + 1) % count)
    other = subject.source.world.render(state, height, width, frames, subject.fps)
    others.append(away(subject.real(number, frames), other).mean())
  return {
    "error_by_second": [None if np.isnan(mean[0]) else round(float(mean[0]), 4) for mean in means],
    "chance": round(float(np.mean(others)), 4),
    "lost": round(float(np.isnan(errors).mean()), 4),
  }


SUITE: dict[str, Callable[[Subject], dict[str, Any]]] = {"long": long, "minute": minute}
