"""The clip: what worlds render, files hold, models learn and samplers return.

A clip is a video, or an image (a clip of one frame). This file is the type and its plain conversions;
reading and writing files is `video/io.py`.

Shape letters: T frames, H height, W width, C colours.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Clip:
  """One video or image with its caption.

  Attributes:
    frames_THWC: float32 in [-1, 1], shape (T, H, W, 3), T >= 1. Frame t is shown at t / fps seconds.
    fps: frames per second, above 0 (an image keeps the rate at which it would continue).
    caption: what the clip shows; may be empty.
    id: a name that is unique in its source.
  """

  frames_THWC: np.ndarray
  fps: float
  caption: str
  id: str

  @property
  def seconds(self) -> float:
    return len(self.frames_THWC) / self.fps


def to_uint8(frames: np.ndarray) -> np.ndarray:
  """[-1, 1] floats of any shape -> 0..255 bytes, rounded and clipped."""
  return np.clip(np.rint((np.asarray(frames, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(frames: np.ndarray) -> np.ndarray:
  """0..255 bytes of any shape -> float32 in [-1, 1]."""
  return frames.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def contact_sheet(rows: list[list[np.ndarray]], margin: int = 2) -> np.ndarray:
  """Frames laid out on a grey sheet, one list a row; images (H, W, 3) uint8 of any mix of sizes."""
  if not rows or not all(rows):
    raise ValueError("a contact sheet needs at least one frame in every row")
  heights = [max(image.shape[0] for image in row) for row in rows]
  width = max(sum(image.shape[1] + margin for image in row) for row in rows) + margin
  sheet = np.full((sum(heights) + margin * (len(rows) + 1), width, 3), 96, np.uint8)
  top = margin
  for row, height in zip(rows, heights, strict=True):
    left = margin
    for image in row:
      sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
      left += image.shape[1] + margin
    top += height + margin
  return sheet
