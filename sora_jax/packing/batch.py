"""What a packed row holds, and how clips are laid in it. Pure numpy; knows nothing of files, models or devices.

A row has a fixed number of tokens L, text tokens M and segments S, so that one compiled program serves clips of every
size and duration (NaViT, Dehghani et al. 2023, section 2). Segment ids run from 1; 0 is padding.

Shape letters: B rows, L tokens, S segments, M text tokens, C values a token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Segment(NamedTuple):
  """One clip, ready to be packed: the tokens of its grid, which are predicted, and after them its condition tokens."""

  tokens_NC: np.ndarray  # float32, clean patches
  positions_N3: np.ndarray  # float32, (seconds, pixels down, pixels right)
  condition_N: np.ndarray  # bool, tokens of conditions
  level_N: np.ndarray  # float32, the noise level of each condition token; not read of others
  text_M: np.ndarray  # int32 token ids, at least one (the start token)
  size_4: np.ndarray  # float32 (seconds, height, width, fps)
  index: int  # type: ignore[assignment]  # hides the tuple's method; names the clip, the key of its random draws
  weight: float = 1.0
  turn: int = 0  # which time the clip is used, the other key: a mixture may repeat a clip in a step
  period: float = 0.0  # seconds after which a loop begins again; 0 for a clip that is none


class PackedBatch(NamedTuple):
  """Rows of packed clips, and their captions packed beside them by the same segment ids."""

  tokens_BLC: np.ndarray
  segments_BL: np.ndarray  # int32, 0 = padding
  positions_BL3: np.ndarray
  condition_BL: np.ndarray  # bool
  level_BL: np.ndarray  # float32, of condition tokens
  weight_BS: np.ndarray  # float32, 0 where a row has fewer than S segments
  clip_index_BS: np.ndarray  # int32
  turn_BS: np.ndarray  # int32
  period_BS: np.ndarray  # float32
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

  @classmethod
  def of(cls, config: Any) -> "RowShape":
    """Of a run's config."""
    return cls(config.train.row_tokens, config.train.row_text, config.train.row_segments)


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
    condition_BL=np.zeros(row.tokens, bool),
    level_BL=np.zeros(row.tokens, np.float32),
    weight_BS=np.zeros(row.segments, np.float32),
    clip_index_BS=np.zeros(row.segments, np.int32),
    turn_BS=np.zeros(row.segments, np.int32),
    period_BS=np.zeros(row.segments, np.float32),
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
    out.condition_BL[start:end] = segment.condition_N
    out.level_BL[start:end] = segment.level_N
    out.weight_BS[number] = segment.weight
    out.clip_index_BS[number] = segment.index
    out.turn_BS[number] = segment.turn
    out.period_BS[number] = segment.period
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
