"""Finds blobs in clips: how every examiner turns pixels into tracks.

Made for imperfect clips: blur, noise, faint blotches and single broken frames must not move a track
far. What a blob is (its shape, its motion) is up to the world that calls.

Shape letters: T frames, H height, W width, C colours; the last 2 of `centres_T2` is (row, column).
"""

from collections.abc import Sequence

import numpy as np


def border_colour(frames_THWC: np.ndarray) -> np.ndarray:
  """The background colour of a clip, (3,): the median over time of the pixels along the four sides."""
  sides = (frames_THWC[:, 0], frames_THWC[:, -1], frames_THWC[:, :, 0], frames_THWC[:, :, -1])
  return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def box_mean(image_THW: np.ndarray, half: int) -> np.ndarray:
  """Mean over the (2 half + 1)-pixel square around each pixel; beyond the frame counts as 0. Same shape."""
  if half < 1:
    return image_THW
  size = 2 * half + 1
  for axis in (1, 2):
    pad = [(0, 0)] * 3
    pad[axis] = (half + 1, half)
    total = np.cumsum(np.pad(image_THW, pad), axis=axis, dtype=np.float64)
    length = image_THW.shape[axis]
    last = np.take(total, np.arange(size, size + length), axis=axis)
    first = np.take(total, np.arange(length), axis=axis)
    image_THW = (last - first) / size
  return image_THW


def densest_point(mask_THW: np.ndarray, half: int) -> np.ndarray:
  """(T, 2) pixel coordinates of the square of side 2 half + 1 that holds the most mask in each frame."""
  frames, _, width = mask_THW.shape
  best_T = box_mean(mask_THW, half).reshape(frames, -1).argmax(axis=1)
  return np.stack([best_T // width, best_T % width], axis=1) + 0.5


def near(centres_T2: np.ndarray, radius_T: np.ndarray | float, height: int, width: int) -> np.ndarray:
  """bool (T, H, W): pixels within `radius_T` pixels (one for all, or one a frame) of the centre."""
  rows_TH1 = (np.arange(height) + 0.5 - centres_T2[:, :1])[:, :, None]
  columns_T1W = (np.arange(width) + 0.5 - centres_T2[:, 1:])[:, None, :]
  radius_T11 = np.broadcast_to(radius_T, len(centres_T2))[:, None, None]
  return rows_TH1**2 + columns_T1W**2 <= radius_T11**2


def centroid(mask_THW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Centre of mass (T, 2) in pixels and mass (T,) of each frame; the middle of the frame where mass <= 0."""
  _, height, width = mask_THW.shape
  rows_TH, columns_TW = mask_THW.sum(axis=2, dtype=np.float64), mask_THW.sum(axis=1, dtype=np.float64)
  mass_T = rows_TH.sum(axis=1)
  safe_T = np.where(mass_T > 1e-9, mass_T, 1.0)
  centres_T2 = np.stack([rows_TH @ (np.arange(height) + 0.5), columns_TW @ (np.arange(width) + 0.5)], axis=1)
  middle_2 = np.array([height / 2, width / 2])
  return np.where(mass_T[:, None] > 1e-9, centres_T2 / safe_T[:, None], middle_2), mass_T


def shrink(frames_THWC: np.ndarray, factor: int) -> np.ndarray:
  """Block means over factor x factor pixels; rows and columns that fill no block are dropped."""
  if factor == 1:
    return frames_THWC
  frames, height, width, colours = frames_THWC.shape
  height, width = height // factor, width // factor
  blocks = frames_THWC[:, : height * factor, : width * factor]
  return blocks.reshape(frames, height, factor, width, factor, colours).mean(axis=(2, 4))


def goes(way: np.ndarray, true_way: np.ndarray, least: float) -> bool:
  """Whether a track goes where it should: more than `least` of its steps do, and half to twice as far in all.

  Args:
    way, true_way: steps along one axis, (T,), the true ones none of them 0.
  """
  ahead = way * np.sign(true_way)
  return bool(len(way) and (ahead > 0).mean() > least and 0.5 < ahead.sum() / np.abs(true_way).sum() < 2)


def commonest(names_T: Sequence[str] | np.ndarray) -> str:
  """The name that most frames show, "none" where there are no frames."""
  names, counts = np.unique(np.asarray(names_T), return_counts=True)
  return str(names[counts.argmax()]) if len(names) else "none"


def shown(names_T: Sequence[str] | np.ndarray, name: str) -> bool:
  """Whether a clip shows a name throughout: at least half of its frames do, and at most a fifth show another one.

  Args:
    names_T: what is read in each frame, "none" where nothing can be told: that is no other name.
    name: the one that is asked for.
  """
  names_T = np.asarray(names_T)
  if not len(names_T) or name == "none":
    return False
  others = ((names_T != name) & (names_T != "none")).mean()
  return bool((names_T == name).mean() >= 0.5 and others <= 0.2)
