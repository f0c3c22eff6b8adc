"""Which clip takes which slot of the rows. Rows are packed once, of slots; the clips in them change with each pass.

So any row of an endless run can be made by its number. A slot holds a number of tokens, and captions up to the bound of
a class of lengths: clips of one length and class take each other's slots. Pure numpy.

Shape letters: N clips, K slots, P components of a mixture.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.errors import InputError
from sora_jax.packing.rows import PATTERN, kinds, text_bounds

FEWEST = 200  # clips of the longest component's mean length in a pass: rounding moves no share by more than half of one


class Everyone:
  """Every clip once in each pass; clips of equal length and caption class take each other's slot.

  Attributes:
    lengths_K, text_K: tokens and caption tokens that a slot holds.
    component_K: all 0.
    clip_K: a clip that takes the slot, int32.
  """

  def __init__(self, lengths_N: np.ndarray, text_N: np.ndarray, most_text: int):
    """`most_text`: caption tokens that a row holds, beyond which no class goes."""
    self.lengths_K, self.text_K = np.asarray(lengths_N, np.int32), text_bounds(np.asarray(text_N), most_text)
    self.component_K = np.zeros(len(self.lengths_K), np.int8)
    self.clip_K = np.arange(len(self.lengths_K), dtype=np.int32)
    self.kind_K = kinds(self.lengths_K, self.text_K)

  def fill(self, number: int, rng: np.random.Generator) -> np.ndarray:
    """The clip in each slot in pass `number`, (K,)."""
    del number
    return _swap(self.clip_K, self.kind_K, rng)


class _Component(NamedTuple):
  """A component's clips from the shortest to the longest, and how many slots it has in a pass."""

  clips: np.ndarray
  slots: int

  def turns(self, number: int) -> np.ndarray:
    """Who takes each of the component's slots in pass `number`: numbers into `clips`, in order.

    The slots are points on the line of the clips, equally far apart, and move on with each pass. So over any passes in
    turn no clip has more than one slot more than another, and a slot always goes to clips that lie side by side.
    """
    clips, moved = len(self.clips), number * self.slots % len(self.clips)
    return (np.arange(1, self.slots + 1) * clips - 1 - moved) // self.slots

  def ends(self) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last clip that each slot ever goes to."""
    slot = np.arange(self.slots) * len(self.clips)
    return slot // self.slots, (slot + len(self.clips) - 1) // self.slots

  def most(self, values_N: np.ndarray) -> np.ndarray:
    """The largest value among the clips that each slot ever goes to."""
    first, last = self.ends()
    mine = np.append(values_N[self.clips], 0)  # so that one past the last clip is a place too
    return np.maximum.reduceat(mine, np.stack([first, last + 1], 1).reshape(-1))[::2]


class Weighted:
  """Components of a mixture by their share of the tokens; a component's clips come once each before one comes again.

  In a pass the component that lasts longest comes once: more often where so few clips could not keep to the weights,
  and only a piece of it where it has more clips than rows are packed of.

  Attributes: as those of `Everyone`, and
    component_K: the component whose clips a slot holds.
  """

  def __init__(
    self,
    lengths_N: np.ndarray,
    text_N: np.ndarray,
    most_text: int,
    component_N: np.ndarray,
    weights_P: Sequence[float],
    seed: int,
  ):
    """
    Args:
      lengths_N, text_N, component_N: tokens, caption tokens and component of each clip.
      most_text: see `Everyone`.
      weights_P: shares of the tokens.
      seed: says which of equal clips come first.

    Raises:
      ValueError: a component with no clips.
    """
    lengths_N, component_N = np.asarray(lengths_N, np.int32), np.asarray(component_N)
    text_N = text_bounds(np.asarray(text_N), most_text)
    rng = np.random.default_rng(seed)
    counts_P = np.bincount(component_N, minlength=len(weights_P))
    if not counts_P.all():
      raise InputError(f"source {int(np.argmin(counts_P)) + 1} of the {len(counts_P)} in the mixture has no clips")
    slots_P = _slots(counts_P, np.bincount(component_N, weights=lengths_N), np.asarray(weights_P, np.float64))
    self.components: list[_Component] = []
    for number, slots in enumerate(slots_P.tolist()):
      clips = rng.permutation(np.flatnonzero(component_N == number).astype(np.int32))
      self.components.append(_Component(clips[np.lexsort((text_N[clips], lengths_N[clips]))], slots))
    self.lengths_K = np.concatenate([component.most(lengths_N) for component in self.components])
    self.text_K = np.concatenate([component.most(text_N) for component in self.components])
    self.component_K = np.repeat(np.arange(len(slots_P)), slots_P)
    self.clip_K = np.concatenate([component.clips[component.ends()[0]] for component in self.components])
    self.kind_K = kinds(self.lengths_K, self.text_K, self.component_K)

  def fill(self, number: int, rng: np.random.Generator) -> np.ndarray:
    """The clip in each slot in pass `number`, (K,)."""
    taken = np.concatenate([component.clips[component.turns(number)] for component in self.components])
    return _swap(taken, self.kind_K, rng)


def _slots(counts_P: np.ndarray, tokens_P: np.ndarray, weights_P: np.ndarray) -> np.ndarray:
  """How many slots each component has in a pass, at least one."""
  weights_P = weights_P / weights_P.sum()
  mean_P = tokens_P / counts_P
  tokens = float((tokens_P / weights_P).max())  # of a pass in which the component that lasts longest comes once
  tokens *= max(math.ceil(FEWEST * mean_P.max() / tokens), 1)
  most = (PATTERN - len(counts_P)) / float((weights_P / mean_P).sum())
  return np.maximum(np.rint(min(tokens, most) * weights_P / mean_P), 1).astype(np.int64)


def _swap(clips_K: np.ndarray, kind_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Clips in slots shuffled among the slots of each kind."""
  here = np.argsort(kind_K, kind="stable")
  there = np.argsort(kind_K + rng.random(len(kind_K)))  # kinds in order again, each in another order
  swapped = np.empty_like(clips_K)
  swapped[here] = clips_K[there]
  return swapped
