"""Clips cut to squares, or to a table of buckets: what training at native size is compared with.

Both keep the middle of a frame, as trainers that need one shape a batch do.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from sora_jax.clips import Clip, from_uint8, to_uint8
from sora_jax.video import io as video_io

NATIVE, SQUARE, BUCKETS = NAMES = ("native", "square", "buckets")
# Of buckets: roots of their areas in pixels, aspect ratios (width / height), and durations in frames.
SIDES = (24, 32, 48, 64, 96, 128, 176, 256, 384, 512, 768, 1024)
RATIOS = (9 / 16, 3 / 4, 1.0, 4 / 3, 16 / 9)
DURATIONS = (1, 3, 5, 9, 17, 33, 65, 129)
STEP = 8  # pixels; sides are multiples of it

Shape = tuple[int, int, int]  # frames, height, width


def middle_square(frames_THWC: np.ndarray) -> np.ndarray:
  """What a crop to the short side leaves of frames (T, H, W, C)."""
  side = min(frames_THWC.shape[1:3])
  return middle(frames_THWC, (len(frames_THWC), side, side))


def middle(frames_THWC: np.ndarray, shape: Shape) -> np.ndarray:
  """The first frames and the middle of each, of a shape that fits inside."""
  frames, height, width = shape
  top, left = (frames_THWC.shape[1] - height) // 2, (frames_THWC.shape[2] - width) // 2
  return frames_THWC[:frames, top : top + height, left : left + width]


def bucket(shape: Shape) -> Shape:
  """The bucket of a clip: the largest that it fills in area and duration, at the nearest aspect ratio.

  A clip smaller than all of them has the smallest.
  """
  frames, height, width = shape
  side = max([each for each in SIDES if each**2 <= height * width], default=SIDES[0])
  ratio = min(RATIOS, key=lambda each: abs(np.log(width / height / each)))
  rounded = lambda pixels: max(round(pixels / STEP), 1) * STEP
  duration = max([each for each in DURATIONS if each <= frames], default=DURATIONS[0])
  return duration, rounded(side / ratio**0.5), rounded(side * ratio**0.5)


def bucketed(frames_THWC: np.ndarray) -> np.ndarray:
  """A clip resized until it covers its bucket, and cut to it."""
  shape = bucket(frames_THWC.shape[:3])
  height, width = frames_THWC.shape[1:3]
  scale = max(shape[1] / height, shape[2] / width)
  size = (max(round(height * scale), shape[1]), max(round(width * scale), shape[2]))
  resized = np.stack([video_io.resize(frame, size) for frame in to_uint8(frames_THWC[: shape[0]])])
  return from_uint8(middle(resized, shape))


class Framed:
  """A source whose clips are cut to their middle squares or to buckets; all else is that source's."""

  def __init__(self, source: Any, name: str):
    """`source`: of clips, see `sources.Source`; `name`: SQUARE or BUCKETS."""
    self.source, self.name = source, name
    framed = lambda text: hashlib.sha256(f"{name} {text}".encode()).hexdigest()
    self.media_fingerprint, self.fingerprint = framed(source.media_fingerprint), framed(source.fingerprint)
    self.captions_fingerprint, self.dropped = source.captions_fingerprint, source.dropped

  def __len__(self) -> int:
    return len(self.source)

  def shape(self, index: int) -> Shape:
    frames, height, width = self.source.shape(index)
    side = min(height, width)
    return (frames, side, side) if self.name == SQUARE else bucket((frames, height, width))

  def __getitem__(self, index: int) -> Clip:
    clip = self.source[index]
    cut = middle_square if self.name == SQUARE else bucketed
    return dataclasses.replace(clip, frames_THWC=cut(clip.frames_THWC))

  def fps(self, index: int) -> float:
    return self.source.fps(index)

  def captions(self, index: int) -> dict[str, str]:
    return self.source.captions(index)

  def where(self, index: int) -> tuple[str, int]:
    return self.source.where(index)
