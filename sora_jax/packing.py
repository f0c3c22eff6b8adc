"""Which clips share a row, and what a packed row holds. Pure numpy; knows nothing of files, models or devices.

A row has a fixed number of tokens L, text tokens M and segments S, so that one compiled program serves clips of every
size and duration (NaViT, Dehghani et al. 2023, section 2). Segment ids run from 1; 0 is padding.

Shape letters: B rows, L tokens, S segments, M text tokens, C values a token.
"""

import bisect
import collections
import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LOOK_AHEAD = 2**16  # clips that are planned together
FULL = 0.99  # of its tokens: a row that waits for no more
LEVEL = 0.995  # of the tokens of levelled rows: what is left lets clips find a place


class Segment(NamedTuple):
  """One clip, ready to be packed."""

  tokens_NC: np.ndarray  # float32, clean patches
  positions_N3: np.ndarray  # float32, (seconds, pixels down, pixels right)
  clean_N: np.ndarray  # bool, tokens that are given (a prompt), not predicted
  text_M: np.ndarray  # int32 token ids, at least one (the start token)
  size_4: np.ndarray  # float32 (seconds, height, width, fps)
  index: int  # type: ignore[assignment]  # hides the tuple's method; names the clip, the key of its random draws
  weight: float = 1.0


class PackedBatch(NamedTuple):
  """Rows of packed clips, and their captions packed beside them by the same segment ids."""

  tokens_BLC: np.ndarray
  segments_BL: np.ndarray  # int32, 0 = padding
  positions_BL3: np.ndarray
  clean_BL: np.ndarray  # bool
  weight_BS: np.ndarray  # float32, 0 where a row has fewer than S segments
  clip_index_BS: np.ndarray  # int32
  size_BS4: np.ndarray
  text_BM: np.ndarray  # int32
  text_segments_BM: np.ndarray  # int32, 0 = padding

  @property
  def useful_tokens(self) -> float:
    """The share of tokens that are not padding."""
    return float((np.asarray(self.segments_BL) > 0).mean())


class RowShape(NamedTuple):
  """The static size of a row."""

  tokens: int
  text: int
  segments: int


def plan(
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
  for name, sizes, most, change in (
    ("clip", lengths, row.tokens, "raise train.row_tokens, or lower data.max_tokens or data.max_frames"),
    ("caption", text_lengths, row.text, "raise train.row_text"),
  ):
    if len(sizes) and max(sizes) > most:
      worst = int(np.argmax(sizes))
      longer = collections.Counter((size - 1).bit_length() for size in map(int, sizes) if size > most)
      counts = ", ".join(f"{count} of up to {2**bits}" for bits, count in sorted(longer.items()))
      raise ValueError(
        f"{name} {worst} has {sizes[worst]} tokens, a row holds {most}; of {len(sizes)}, {longer.total()} fit no row "
        f"({counts}): {change}"
      )
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


def pack_row(segments: Sequence[Segment], row: RowShape, channels: int) -> PackedBatch:
  """Lays clips one after another in one row; the arrays have no batch dimension yet.

  Raises:
    ValueError: the clips, their captions or their number do not fit.
  """
  tokens = sum(len(segment.tokens_NC) for segment in segments)
  text = sum(len(segment.text_M) for segment in segments)
  if tokens > row.tokens or text > row.text or len(segments) > row.segments:
    raise ValueError(f"{len(segments)} clips with {tokens} tokens and {text} text tokens do not fit in a row of {row}")
  out = PackedBatch(
    tokens_BLC=np.zeros((row.tokens, channels), np.float32),
    segments_BL=np.zeros(row.tokens, np.int32),
    positions_BL3=np.zeros((row.tokens, 3), np.float32),
    clean_BL=np.zeros(row.tokens, bool),
    weight_BS=np.zeros(row.segments, np.float32),
    clip_index_BS=np.zeros(row.segments, np.int32),
    size_BS4=np.ones((row.segments, 4), np.float32),
    text_BM=np.zeros(row.text, np.int32),
    text_segments_BM=np.zeros(row.text, np.int32),
  )
  start = text_start = 0
  for number, segment in enumerate(segments):
    end, text_end = start + len(segment.tokens_NC), text_start + len(segment.text_M)
    out.tokens_BLC[start:end] = segment.tokens_NC
    out.segments_BL[start:end] = number + 1
    out.positions_BL3[start:end] = segment.positions_N3
    out.clean_BL[start:end] = segment.clean_N
    out.weight_BS[number] = segment.weight
    out.clip_index_BS[number] = segment.index
    out.size_BS4[number] = segment.size_4
    out.text_BM[text_start:text_end] = segment.text_M
    out.text_segments_BM[text_start:text_end] = number + 1
    start, text_start = end, text_end
  return out


def stack(rows: Sequence[PackedBatch]) -> PackedBatch:
  """Rows -> a batch."""
  return PackedBatch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


def per_token(values_BS, segments_BL, padding=0):
  """Spreads one value a segment (B, S, ...) over that segment's tokens (B, L, ...); padding tokens get `padding`.

  Works on numpy and jax arrays.
  """
  index_BL = segments_BL - 1
  rows_B1 = np.arange(segments_BL.shape[0])[:, None]
  spread = values_BS[rows_B1, index_BL.clip(0)]
  mask = (segments_BL > 0).reshape(segments_BL.shape + (1,) * (spread.ndim - 2))
  return spread * mask + padding * (1 - mask)
