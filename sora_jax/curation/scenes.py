"""Where a video cuts from one scene to the next, and how much moves in a scene. Pure numpy, on small frames.

A cut is where none of the frames just before is like any of those just after. Two frames are alike where each block of
one is found again near its place in the other, as bright or not: so a moving camera, a change of light, and a flash
from which the picture comes back, are no cuts. Nor are fades. What always changes (noise, spray) says nothing: a cut
has to stand out from its neighbours. A small thing that jumps on a plain ground is no cut either.

Shape letters: T frames, H height, W width, C colours, Y and X places of a block, V values of a block.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SIDE = 64  # pixels of the longer side that frames are looked at with
LEAST_CHANGE = 0.04  # mean change of a pixel at a cut, of 1
LEAST_UNLIKE = 0.85  # of frames on both sides of a cut; see `_unlike`
OVER_NEIGHBOURS = 0.42  # and how much more than the median between the frames around it
AROUND = 6  # frames on either side
RETURN = 3  # frames in which a flash is over
CONTEXT = AROUND + 1  # frames on either side that a frame is judged by
BLOCK = 8  # pixels a side, of frames of half the size
REACH = 6  # pixels that a block may have moved
COLOUR = 3.0  # how much a difference of colour says, against one of structure
MOST_COLOUR = 0.7  # that it says: with the same structure it is only another light
FAINT = 4.0  # contrast, of 255, below which structure is noise


def scene_starts(frames_THWC: np.ndarray) -> list[int]:
  """The first frames of all scenes; the first of them is 0.

  Args:
    frames_THWC: uint8, at the video's own rate, about SIDE pixels on the longer side.
  """
  count, change = len(frames_THWC), changes(frames_THWC)
  blocks = functools.lru_cache(4 * AROUND)(lambda t: _blocks(frames_THWC[t]))
  unlike = functools.lru_cache(16 * AROUND)(lambda before, after: _unlike(blocks(before), blocks(after)))
  starts = [0]
  for t in (np.flatnonzero(change >= LEAST_CHANGE) + 1).tolist():
    if unlike(t - 1, t) < LEAST_UNLIKE:
      continue
    befores, afters = range(max(t - RETURN, 0), t), range(t, min(t + RETURN, count))
    least = min(unlike(before, after) for before in befores for after in afters)
    around = [unlike(u - 1, u) for u in range(max(t - AROUND, 1), min(t + AROUND + 1, count)) if u != t]
    if least >= max(LEAST_UNLIKE, OVER_NEIGHBOURS + float(np.median(around or [0.0]))):
      starts.append(t)
  return starts


def follow(pieces: Iterable[np.ndarray]) -> tuple[list[int], np.ndarray]:
  """What `scene_starts` and `changes` find in a video that comes in pieces, of which two at a time are in memory."""
  starts, found = [0], [np.zeros(0)]
  window_THWC, first, sure = None, 0, 0  # the frames that are held, the number of the first, what is settled before
  latest: list[int] = []
  for piece_THWC in pieces:
    kept = 0
    if window_THWC is None:
      window_THWC = piece_THWC
    else:
      kept = min(2 * CONTEXT, len(window_THWC))
      first += len(window_THWC) - kept
      window_THWC = np.concatenate([window_THWC[-kept:], piece_THWC])
    found.append(changes(window_THWC[max(kept - 1, 0) :]))
    latest = [first + start for start in scene_starts(window_THWC)[1:]]
    until = max(first + len(window_THWC) - CONTEXT, sure)
    starts += [start for start in latest if sure <= start < until]
    sure = until
  return starts + [start for start in latest if start >= sure], np.concatenate(found)


def changes(frames_THWC: np.ndarray) -> np.ndarray:
  """Mean change of a pixel from each frame to the next, 0 to 1; (T - 1,)."""
  return np.array(
    [
      np.abs(after.astype(np.int16) - before.astype(np.int16)).mean() / 255.0
      for before, after in zip(frames_THWC[:-1], frames_THWC[1:], strict=True)
    ]
  )


class _Blocks(NamedTuple):
  """The blocks at all places of a frame: mean colour, what differs from it, and the norm of that."""

  mean_YXC: np.ndarray
  structure_YXV: np.ndarray
  norm_YX: np.ndarray


def _blocks(frame_HWC: np.ndarray) -> _Blocks:
  pixels_HWC = frame_HWC.astype(np.float32)
  height, width = (side // 2 for side in pixels_HWC.shape[:2])
  if min(height, width) >= BLOCK:
    pixels_HWC = pixels_HWC[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
  sides = tuple(min(BLOCK, side) for side in pixels_HWC.shape[:2])
  windows = np.lib.stride_tricks.sliding_window_view(pixels_HWC, sides, (0, 1))
  mean_YXC = windows.mean((3, 4))
  structure_YXV = (windows - mean_YXC[..., None, None]).reshape(*mean_YXC.shape[:2], -1)
  return _Blocks(mean_YXC, structure_YXV, np.linalg.norm(structure_YXV, axis=-1))


def _unlike(one: _Blocks, other: _Blocks) -> float:
  """0 for frames that are alike, to 1 by structure alone, and more where their colours differ too.

  The share of the structure that isn't found again, a half where there is none, and COLOUR times the difference that is
  left, of 1, where each block goes to where it fits best.
  """
  found = np.array([*_search(one, other), *_search(other, one)])
  contrast, lost, left = found.mean(0)
  return float((lost + 0.5 * FAINT) / (contrast + FAINT) + min(COLOUR * left / 255.0, MOST_COLOUR))


def _search(these: _Blocks, those: _Blocks) -> list[tuple[float, float, float]]:
  """Of blocks that cover a frame: contrast; how much of it isn't found again; root mean square of what is left."""
  found, values = [], these.structure_YXV.shape[-1]
  rows, columns = these.norm_YX.shape
  for y in sorted({*range(0, rows, BLOCK), rows - 1}):
    for x in sorted({*range(0, columns, BLOCK), columns - 1}):
      near = np.s_[max(y - REACH, 0) : y + REACH + 1, max(x - REACH, 0) : x + REACH + 1]
      mean_C, norm, norms = these.mean_YXC[y, x], these.norm_YX[y, x], those.norm_YX[near]
      common = those.structure_YXV[near] @ these.structure_YXV[y, x]
      same = max(float((common / (norm * norms + FAINT**2 * values)).max()), 0.0)
      of_colour = np.square(those.mean_YXC[near] - mean_C).sum(-1) / 3
      left = of_colour + (norms**2 + norm**2 - 2 * common) / values
      contrast = float(norm) / values**0.5
      found.append((contrast, contrast * (1 - same**2), max(float(left.min()), 0.0) ** 0.5))
  return found
