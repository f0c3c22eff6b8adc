"""Which clips share a row: every clip in exactly one, as few rows as can be, each with some of the short clips.

Pure numpy; knows nothing of files, models or devices. What a packed row holds is `batch.py`.

Shape letters: N clips, R rows.
"""

import bisect
import collections
import heapq
import math
from collections.abc import Iterator, Sequence

import numpy as np

from sora_jax.errors import InputError
from sora_jax.packing.batch import RowShape

PATTERN = 2**17  # clips that are packed one by one; of more, as many are alike as needed
LEVEL = 0.995  # of the tokens of levelled rows: what is left lets clips find a row
TEXT_CLASSES = np.array([*range(5), *(step << bits for bits in range(28) for step in range(5, 9))])  # ... 8, 10, 12


class Rows:
  """Rows as two columns: the clips of all rows one after another, and where each row begins."""

  def __init__(self, clips_N: np.ndarray, starts: np.ndarray):
    """`starts`, (R + 1,), ends with the number of clips."""
    self.clips_N, self.starts = clips_N, starts

  @classmethod
  def of(cls, rows: Sequence[Sequence[int]]) -> "Rows":
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    clips = np.fromiter((clip for row in rows for clip in row), np.int32, int(counts.sum()))
    return cls(clips, np.concatenate([[0], np.cumsum(counts)]))

  def __len__(self) -> int:
    return len(self.starts) - 1

  def __getitem__(self, row: int) -> np.ndarray:
    """The numbers of a row's clips."""
    if not 0 <= row < len(self):
      raise IndexError(row)
    return self.clips_N[self.starts[row] : self.starts[row + 1]]

  def __iter__(self) -> Iterator[np.ndarray]:
    return (self[row] for row in range(len(self)))

  def sums(self, values_N: np.ndarray) -> np.ndarray:
    """The sum over each row's clips of one value a clip, (R,)."""
    if not len(self):
      return np.zeros(0, values_N.dtype)
    return np.add.reduceat(values_N[self.clips_N], self.starts[:-1])


def text_bounds(text_N: np.ndarray, most: int) -> np.ndarray:
  """The upper bound of the class that each caption's length is in, at most `most` where the caption is."""
  bounds_N = TEXT_CLASSES[np.searchsorted(TEXT_CLASSES, text_N)]
  return np.where(text_N <= most, np.minimum(bounds_N, most), text_N).astype(np.int32)


def kinds(*columns: np.ndarray) -> np.ndarray:
  """A number for each place, int32: the same where all columns are, and in their order, the first column first."""
  found = np.zeros(len(columns[0]), np.int64)
  for column in columns:
    least = int(column.min(initial=0))
    found = found * (int(column.max(initial=0)) - least + 1) + (column - least)
    found = np.unique(found, return_inverse=True)[1].reshape(-1)
  return found.astype(np.int32)


def pack_rows(
  lengths: Sequence[int] | np.ndarray, text_lengths: Sequence[int] | np.ndarray, row: RowShape, pattern: int = PATTERN
) -> Rows:
  """Which clips share a row; every clip is in exactly one row.

  Rows are levelled, so that each has some of the short clips, unless best fit needs fewer.

  More than `pattern` clips are sorted by caption class and length, and neighbours are taken for alike: a pattern of
  rows is made for one clip of each group of neighbours, with the size of the largest, and is used as many times as a
  group has clips. So the time hardly grows with the number of clips. What each use loses to differences in the groups
  is less than the longest clip of each class.

  Args:
    lengths: tokens of each clip.
    text_lengths: caption tokens of each clip.
    row: the size of a row.
    pattern: clips in a pattern, at most.

  Raises:
    ValueError: a clip or a caption is longer than a row.
  """
  lengths_N, text_N = np.asarray(lengths, np.int32), np.asarray(text_lengths, np.int32)
  must_fit("clip", lengths_N, row.tokens, "raise train.row_tokens, or lower data.max_tokens or data.max_frames")
  must_fit("caption", text_N, row.text, "raise train.row_text")
  clips = len(lengths_N)
  if clips <= pattern:
    return Rows.of(_fewest(lengths_N.tolist(), text_N.tolist(), row))
  uses = -(-clips // pattern)
  # The shortest come last: where the groups don't come out even, they are what some uses lack.
  order_N = np.argsort(text_bounds(text_N, row.text).astype(np.int64) << 32 | lengths_N)[::-1].astype(np.int32)
  firsts = np.arange(0, clips, uses)
  tokens, text = (np.maximum.reduceat(values_N[order_N], firsts) for values_N in (lengths_N, text_N))
  return _repeated(Rows.of(_fewest(tokens.tolist(), text.tolist(), row)), order_N, uses)


def must_fit(what: str, sizes: Sequence[int] | np.ndarray, most: int, change: str) -> None:
  """
  Raises:
    InputError: one of `sizes` is more than a row holds; names the largest, and says what to change.
  """
  sizes_N = np.asarray(sizes)
  if not len(sizes_N) or sizes_N.max() <= most:
    return
  worst = int(np.argmax(sizes_N))
  longer = collections.Counter((size - 1).bit_length() for size in sizes_N[sizes_N > most].tolist())
  counts = ", ".join(f"{count} of up to {2**bits}" for bits, count in sorted(longer.items()))
  raise InputError(
    f"{what} {worst} has {sizes_N[worst]} tokens, a row holds {most}; of {len(sizes_N)}, {longer.total()} fit no row "
    f"({counts}): {change}"
  )


def _repeated(made: Rows, order_N: np.ndarray, uses: int) -> Rows:
  """The rows of every use of a pattern over groups of `uses` clips that are next to each other in an order."""
  clips, starts, end = [], [np.zeros(1, np.int64)], 0
  for use in range(uses):
    places = made.clips_N.astype(np.int64) * uses + use
    there = places < len(order_N)
    clips.append(order_N[places[there]])
    counts = np.add.reduceat(there.astype(np.int64), made.starts[:-1])
    starts.append(end + np.cumsum(counts[counts > 0]))
    end = int(starts[-1][-1])
  return Rows(np.concatenate(clips), np.concatenate(starts))


def _fewest(lengths: Sequence[int], text_lengths: Sequence[int], row: RowShape) -> list[list[int]]:
  levelled, fullest = level(lengths, text_lengths, row), best_fit(lengths, text_lengths, row)
  return levelled if levelled is not None and len(levelled) <= len(fullest) else fullest


def level(lengths: Sequence[int], text_lengths: Sequence[int], row: RowShape) -> list[list[int]] | None:
  """Rows of equal fill: from the longest clip to the shortest, each into the row with the most room.

  The shortest come last and even out all rows, so images ride with videos instead of filling rows of their own.

  Returns:
    The rows, LEVEL of their tokens filled (but for one row); None where a clip finds no room in so few.
  """
  rows: list[list[int]] = [[] for _ in range(math.ceil(sum(lengths) / (LEVEL * row.tokens)))]
  text_room = [row.text] * len(rows)
  open_rows = [(-row.tokens, number) for number in range(len(rows))]
  for clip, least in _longest_first(lengths, text_lengths):
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
      if text_room[each[1]] >= least:
        heapq.heappush(open_rows, each)
  return rows


def best_fit(lengths: Sequence[int], text_lengths: Sequence[int], row: RowShape) -> list[list[int]]:
  """Best-fit decreasing: from the longest clip to the shortest, each into the row with the least room that holds it."""
  rows: list[list[int]] = []
  text_room: list[int] = []
  open_rows: list[tuple[int, int]] = []  # (room, row), sorted
  for clip, least in _longest_first(lengths, text_lengths):
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
    if len(rows[number]) < row.segments and room > lengths[clip] and text_room[number] >= least:
      bisect.insort(open_rows, (room - lengths[clip], number))
  return rows


def _longest_first(lengths: Sequence[int], text_lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
  """Clips from the longest to the shortest, each with the fewest caption tokens of it and those after it.

  A row that has no room for so few takes no clip any more.
  """
  text_N = np.asarray(text_lengths, np.int64)
  order_N = np.lexsort((-text_N, -np.asarray(lengths, np.int64)))
  least_N = np.minimum.accumulate(text_N[order_N][::-1])[::-1]
  return zip(order_N.tolist(), least_N.tolist(), strict=True)
