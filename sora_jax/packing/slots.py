"""Who takes the places of a plan. A plan says which lengths share a row; which clips those are changes with each pass.

A plan is made once and serves every pass over the data, so that any row of an endless run can be made by its number.
Pure numpy.

Shape letters: N clips, K places, P parts of a mixture.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.errors import InputError
from sora_jax.packing.rows import LOOK_AHEAD

FEWEST = 200  # clips of the longest part's mean length in a pass: rounding moves no share by more than half of one


class Everyone:
  """Every clip once in each pass; clips of equal length and caption length take each other's place.

  Attributes:
    lengths_K, text_K: tokens and caption tokens that a place holds.
    component_K: all 0.
  """

  def __init__(self, lengths_N: np.ndarray, text_N: np.ndarray):
    self.lengths_K, self.text_K = np.asarray(lengths_N), np.asarray(text_N)
    self.component_K = np.zeros(len(self.lengths_K), np.int64)
    self.kind_K = _kinds(self.lengths_K, self.text_K)

  def fill(self, number: int, rng: np.random.Generator) -> np.ndarray:
    """The clip in each place in pass `number`, (K,)."""
    del number
    return _swap(np.arange(len(self.kind_K)), self.kind_K, rng)


class _Part(NamedTuple):
  """A part's clips from the shortest to the longest, and how many places it has in a pass."""

  clips: np.ndarray
  places: int

  def turns(self, number: int) -> np.ndarray:
    """Who takes each of the part's places in pass `number`: numbers into `clips`, in order.

    The places are points on the line of the clips, equally far apart, and move on with each pass. So over any passes in
    turn no clip has more than one place more than another, and a place always goes to clips that lie side by side.
    """
    clips, moved = len(self.clips), number * self.places % len(self.clips)
    return (np.arange(1, self.places + 1) * clips - 1 - moved) // self.places

  def ends(self) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last clip that each place ever goes to."""
    place = np.arange(self.places) * len(self.clips)
    return place // self.places, (place + len(self.clips) - 1) // self.places


class Weighted:
  """Parts of a mixture by their share of the tokens; a part's clips come once each before one comes again.

  In a pass the part that lasts longest comes once: more often where so few clips could not keep to the weights, and
  only a piece of it where a plan can't hold more.

  Attributes: as those of `Everyone`, and
    component_K: the part whose clips a place holds.
  """

  def __init__(
    self, lengths_N: np.ndarray, text_N: np.ndarray, component_N: np.ndarray, weights_P: Sequence[float], seed: int
  ):
    """
    Args:
      lengths_N, text_N, component_N: tokens, caption tokens and part of each clip.
      weights_P: shares of the tokens.
      seed: says which of equal clips come first.

    Raises:
      ValueError: a part with no clips.
    """
    lengths_N, text_N, component_N = np.asarray(lengths_N), np.asarray(text_N), np.asarray(component_N)
    rng = np.random.default_rng(seed)
    counts_P = np.bincount(component_N, minlength=len(weights_P))
    if not counts_P.all():
      raise InputError(f"source {int(np.argmin(counts_P)) + 1} of the {len(counts_P)} in the mixture has no clips")
    places_P = _places(counts_P, np.bincount(component_N, weights=lengths_N), np.asarray(weights_P, np.float64))
    self.parts, lengths, texts = [], [], []
    for number, places in enumerate(places_P.tolist()):
      clips = rng.permutation(np.flatnonzero(component_N == number))
      part = _Part(clips[np.lexsort((text_N[clips], lengths_N[clips]))], places)
      self.parts.append(part)
      lengths.append(lengths_N[part.clips[part.ends()[1]]])
      texts += [text_N[part.clips[first : last + 1]].max() for first, last in zip(*part.ends(), strict=True)]
    self.lengths_K, self.text_K = np.concatenate(lengths), np.array(texts)
    self.component_K = np.repeat(np.arange(len(places_P)), places_P)
    self.kind_K = _kinds(self.lengths_K, self.text_K, self.component_K)

  def fill(self, number: int, rng: np.random.Generator) -> np.ndarray:
    """The clip in each place in pass `number`, (K,)."""
    return _swap(np.concatenate([part.clips[part.turns(number)] for part in self.parts]), self.kind_K, rng)


def _places(counts_P: np.ndarray, tokens_P: np.ndarray, weights_P: np.ndarray) -> np.ndarray:
  """How many places each part has in a pass, at least one."""
  weights_P = weights_P / weights_P.sum()
  mean_P = tokens_P / counts_P
  tokens = float((tokens_P / weights_P).max())  # of a pass in which the part that lasts longest comes once
  tokens *= max(math.ceil(FEWEST * mean_P.max() / tokens), 1)
  most = (LOOK_AHEAD - len(counts_P)) / float((weights_P / mean_P).sum())
  return np.maximum(np.rint(min(tokens, most) * weights_P / mean_P), 1).astype(np.int64)


def _kinds(*values: np.ndarray) -> np.ndarray:
  """A number for each place, the same where all values are."""
  return np.unique(np.array(values).T, axis=0, return_inverse=True)[1].reshape(-1)


def _swap(clips_K: np.ndarray, kind_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Clips in places shuffled among the places of each kind."""
  shuffled = rng.permutation(len(kind_K))
  # Stable sorts by kind line the k-th place of a kind up with the k-th of the shuffled ones.
  here = np.argsort(kind_K, kind="stable")
  there = shuffled[np.argsort(kind_K[shuffled], kind="stable")]
  swapped = np.empty_like(clips_K)
  swapped[here] = clips_K[there]
  return swapped
