"""Which clips share a row: every clip in exactly one, as few rows as can be, each with its part of the short clips.

Pure numpy; knows nothing of files, models or devices. What a packed row holds is `batch.py`.
"""

import bisect
import collections
import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.errors import InputError
from sora_jax.packing.batch import RowShape

LOOK_AHEAD = 2**16  # clips that are packed together
FULL = 0.99  # of its tokens: a row that waits for no more
LEVEL = 0.995  # of the tokens of levelled rows: what is left lets clips find a place


def pack_rows(
  lengths: Sequence[int], text_lengths: Sequence[int], row: RowShape, look_ahead: int = LOOK_AHEAD
) -> list[list[int]]:
  """Which clips share a row, planned for `look_ahead` clips at a time; every clip is in exactly one row.

  Rows are levelled, so that each has its part of the short clips, unless best fit needs fewer. A row that is not full
  lets its clips wait for the next ones to come, but none waits twice.

  Args:
    lengths: tokens of each clip.
    text_lengths: caption tokens of each clip.
    row: the size of a row.
    look_ahead: bounds the time a clip, and how far apart in the given order clips of one row may be.

  Returns:
    The clip numbers of each row.

  Raises:
    ValueError: a clip or a caption is longer than a row.
  """
  must_fit("clip", lengths, row.tokens, "raise train.row_tokens, or lower data.max_tokens or data.max_frames")
  must_fit("caption", text_lengths, row.text, "raise train.row_text")
  rows: list[list[int]] = []
  waiting: list[int] = []
  for start in range(0, len(lengths), look_ahead):
    end = min(start + look_ahead, len(lengths))
    waited, waiting = set(waiting), [*waiting, *range(start, end)]
    found, waiting = _fewest(waiting, lengths, text_lengths, row), []
    for clips in found:
      full = sum(lengths[clip] for clip in clips) >= FULL * row.tokens
      if full or end == len(lengths) or not waited.isdisjoint(clips):
        rows.append(clips)
      else:
        waiting += clips
  return rows


def must_fit(name: str, sizes: Sequence[int], most: int, change: str) -> None:
  """
  Raises:
    InputError: one of `sizes` is more than a row holds; names the largest, and says what to change.
  """
  if len(sizes) and max(sizes) > most:
    worst = int(np.argmax(sizes))
    longer = collections.Counter((size - 1).bit_length() for size in map(int, sizes) if size > most)
    counts = ", ".join(f"{count} of up to {2**bits}" for bits, count in sorted(longer.items()))
    raise InputError(
      f"{name} {worst} has {sizes[worst]} tokens, a row holds {most}; of {len(sizes)}, {longer.total()} fit no row "
      f"({counts}): {change}"
    )


def _fewest(clips: Sequence[int], *budgets: Any) -> list[list[int]]:
  levelled, fullest = level(clips, *budgets), best_fit(clips, *budgets)
  return levelled if levelled is not None and len(levelled) <= len(fullest) else fullest


def level(
  clips: Sequence[int], lengths: Sequence[int], text_lengths: Sequence[int], row: RowShape
) -> list[list[int]] | None:
  """Rows of equal fill: from the longest clip to the shortest, each into the row with the most room.

  The shortest come last and even out all rows, so images ride with videos instead of filling rows of their own.

  Returns:
    The rows, LEVEL of their tokens filled (but for a part of one row); None where a clip finds no room in so few.
  """
  total = sum(lengths[clip] for clip in clips)
  rows: list[list[int]] = [[] for _ in range(math.ceil(total / (LEVEL * row.tokens)))]
  text_room = [row.text] * len(rows)
  open_rows = [(-row.tokens, number) for number in range(len(rows))]
  for clip in sorted(clips, key=lambda i: (-lengths[i], -text_lengths[i], i)):
    passed = []  # rows with more room for the clip but none for its caption
    while open_rows and text_room[open_rows[0][1]] < text_lengths[clip]:
      passed.append(heapq.heappop(open_rows))
    if not open_rows or -open_rows[0][0] < lengths[clip]:
      return None
    room, number = heapq.heappop(open_rows)
    rows[number].append(clip)
    text_room[number] -= text_lengths[clip]
    if len(rows[number]) < row.segments:
      passed.append((room + lengths[clip], number))
    for each in passed:
      heapq.heappush(open_rows, each)
  return rows


def best_fit(
  clips: Sequence[int], lengths: Sequence[int], text_lengths: Sequence[int], row: RowShape
) -> list[list[int]]:
  """Best-fit decreasing: from the longest clip to the shortest, each into the row with the least room that holds it."""
  rows: list[list[int]] = []
  text_room: list[int] = []
  open_rows: list[tuple[int, int]] = []  # (room, row), sorted
  for clip in sorted(clips, key=lambda i: (-lengths[i], -text_lengths[i], i)):
    slot = bisect.bisect_left(open_rows, (lengths[clip], -1))
    while slot < len(open_rows) and text_room[open_rows[slot][1]] < text_lengths[clip]:
      slot += 1
    if slot < len(open_rows):
      room, number = open_rows.pop(slot)
    else:
      room, number = row.tokens, len(rows)
      rows.append([])
      text_room.append(row.text)
    rows[number].append(clip)
    text_room[number] -= text_lengths[clip]
    if len(rows[number]) < row.segments and room > lengths[clip]:
      bisect.insort(open_rows, (room - lengths[clip], number))
  return rows
