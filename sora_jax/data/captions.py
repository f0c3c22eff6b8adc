"""Captions as token ids: of all clips one after another, so that millions of them are two arrays.

Shape letters: N clips, M ids.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.data.tokenizer import Tokenizer

STYLES = ("short", "long")


class Texts:
  """The token ids of each clip's captions."""

  def __init__(self, ids_M: np.ndarray, starts: np.ndarray):
    """`starts`, (2 N + 1,), is where in the ids a clip's short caption begins, then its long one, and where all end."""
    self.ids_M, self.starts = ids_M, starts

  @classmethod
  def of(cls, captions: Sequence[Mapping[str, str]], tokenizer: Tokenizer, limit: int) -> "Texts":
    """Tokenises the captions of N clips, each cut to `limit` ids."""
    ids = [tokenizer.encode(each[style], limit) for each in captions for style in STYLES]
    starts = np.cumsum([0, *map(len, ids)])
    return cls(np.fromiter(itertools.chain.from_iterable(ids), np.int32, starts[-1]), starts)

  def __len__(self) -> int:
    return len(self.starts) // len(STYLES)

  def __call__(self, clip: int, style: str) -> np.ndarray:
    """int32 ids of a clip's caption."""
    place = clip * len(STYLES) + STYLES.index(style)
    return self.ids_M[self.starts[place] : self.starts[place + 1]]

  @property
  def longest_N(self) -> np.ndarray:
    """Ids of each clip's longer caption."""
    return np.diff(self.starts).reshape(-1, len(STYLES)).max(1)
