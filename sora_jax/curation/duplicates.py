"""Clips that show the same again: re-encoded, resized, stored twice. Pure numpy.

A clip's signature is thumbnails of 12 x 12 pixels, of its first, middle and last frame, and whether it is a video. Two
clips are the same where no value differs by more than TOLERANCE. They are found in a tree that halves the clips by one
value at a time, as a k-d tree does: exactly, and without comparing each with each.

Shape letters: N clips, D values of a signature.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sora_jax.video.io import resize

THUMBNAIL = 12  # pixels a side
TOLERANCE = 16  # of 255
LEAF = 64  # clips that are compared with each


def thumbnail(frame_HWC: np.ndarray) -> np.ndarray:
  """uint8 (THUMBNAIL, THUMBNAIL, 3); of a thumbnail, itself."""
  return resize(frame_HWC, (THUMBNAIL, THUMBNAIL))


def signature(frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
  """uint8 (D,), of uint8 frames (H, W, 3) of any size, or of their thumbnails."""
  moments = (0, len(frames) // 2, len(frames) - 1)
  is_video = np.array([255 * (len(frames) > 1)], np.uint8)
  return np.concatenate([*(thumbnail(frames[t]).reshape(-1) for t in moments), is_video])


def duplicate_of(signatures_ND: np.ndarray, tolerance: int = TOLERANCE) -> np.ndarray:
  """For each clip the first earlier one that it repeats, or -1; (N,). That one repeats no other itself.

  Args:
    signatures_ND: uint8.
  """
  tree = _Node()
  first = np.full(len(signatures_ND), -1, np.int64)
  for clip in range(len(signatures_ND)):
    values_D = signatures_ND[clip].astype(np.int16)
    near = np.array([other for leaf in _near(tree, values_D, tolerance) for other in leaf.clips], np.int64)
    same = near[(np.abs(signatures_ND[near] - values_D) <= tolerance).all(1)]
    if len(same):
      first[clip] = same.min()
    else:
      _insert(tree, signatures_ND, clip, tolerance)
  return first


@dataclasses.dataclass
class _Node:
  """A leaf with clips; or, once it has grown, two nodes: those with `value` below `middle`, and the others."""

  clips: list[int] = dataclasses.field(default_factory=list)
  most: int = LEAF
  value: int = 0
  middle: int = 0
  halves: "tuple[_Node, _Node] | None" = None


def _near(tree: _Node, values_D: np.ndarray, tolerance: int) -> list[_Node]:
  """The leaves that may hold clips within the tolerance."""
  leaves, waiting = [], [tree]
  while waiting:
    node = waiting.pop()
    if node.halves is None:
      leaves.append(node)
      continue
    if values_D[node.value] - tolerance < node.middle:
      waiting.append(node.halves[0])
    if values_D[node.value] + tolerance >= node.middle:
      waiting.append(node.halves[1])
  return leaves


def _insert(tree: _Node, signatures_ND: np.ndarray, clip: int, tolerance: int) -> None:
  node = tree
  while node.halves is not None:
    node = node.halves[int(signatures_ND[clip, node.value] >= node.middle)]
  node.clips.append(clip)
  if len(node.clips) <= node.most:
    return
  # By the value in which they differ most: few are then near enough to the middle to be sought in both halves.
  mine_ND = signatures_ND[node.clips].astype(np.int16)
  value = int(mine_ND.var(0).argmax())
  least, greatest = int(mine_ND[:, value].min()), int(mine_ND[:, value].max())
  if greatest - least <= 2 * tolerance:
    node.most *= 2  # nothing tells them apart: once more when there are many more
    return
  node.value, node.middle = value, (least + greatest + 1) // 2
  halves = _Node(), _Node()
  for other in node.clips:
    halves[int(signatures_ND[other, value] >= node.middle)].clips.append(other)
  node.halves, node.clips = halves, []
