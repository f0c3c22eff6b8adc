"""Clips cropped to squares, as models of one size need them: what training at native size is compared with."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from sora_jax.clips import Clip


def middle_square(frames_THWC: np.ndarray) -> np.ndarray:
  """What a crop to the short side leaves of frames (T, H, W, C)."""
  height, width = frames_THWC.shape[1:3]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return frames_THWC[:, top : top + side, left : left + side]


class Squares:
  """A source whose clips lose what lies beyond the middle square of their frames; all else is that source's."""

  def __init__(self, source: Any):
    """`source`: of clips, see `sources.Source`."""
    self.source = source
    squared = lambda text: hashlib.sha256(f"squares {text}".encode()).hexdigest()
    self.media_fingerprint, self.fingerprint = squared(source.media_fingerprint), squared(source.fingerprint)
    self.captions_fingerprint, self.dropped = source.captions_fingerprint, source.dropped

  def __len__(self) -> int:
    return len(self.source)

  def shape(self, index: int) -> tuple[int, int, int]:
    frames, height, width = self.source.shape(index)
    side = min(height, width)
    return frames, side, side

  def __getitem__(self, index: int) -> Clip:
    clip = self.source[index]
    return dataclasses.replace(clip, frames_THWC=middle_square(clip.frames_THWC))

  def fps(self, index: int) -> float:
    return self.source.fps(index)

  def captions(self, index: int) -> dict[str, str]:
    return self.source.captions(index)

  def where(self, index: int) -> tuple[str, int]:
    return self.source.where(index)
