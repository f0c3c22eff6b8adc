"""Floating-point operations and clips of a train step, counted by formula: XLA's count takes a loop's body once.

A multiply-add is 2. Products with weights and those of attention count; norms, rotary positions, softmax, gates and
elementwise updates count nothing.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sora_jax.packing.batch import RowShape
from sora_jax.sharding import path_name
from sora_jax.train.optimizer import MUON_PATHS

# What is multiplied by a weight matrix, by the first pattern that its path matches; else the tokens of a row.
ITEMS = ((r"^text_encoder/|/key_value/", "text"), (r"^(size_in|caption_in)/", "segments"))
NEWTON_SCHULZ = 5  # iterations of Muon, optax's default


class Rows(NamedTuple):
  """Rows of a step and what meets in their attention.

  Attributes:
    rows: of a step, over all devices.
    clip: tokens of the clip that a token is in, on average.
  """

  rows: int
  shape: RowShape
  clip: float

  @property
  def tokens(self) -> int:
    return self.rows * self.shape.tokens

  @property
  def pairs(self) -> float:
    """Pairs of tokens of one clip, in a step."""
    return self.tokens * self.clip

  @property
  def text_per_token(self) -> float:
    """Captions take their share of the row's text tokens."""
    return self.shape.text / self.shape.tokens


class Flops(NamedTuple):
  """Of a step over all devices.

  Attributes:
    forward: of the loss.
    backward: of its gradient.
    attention: attention's own products, which are in the other three too.
    recompute: of what the backward pass makes again: all of a block but its last product.
    optimizer: Muon's products.
  """

  forward: float
  backward: float
  attention: float
  recompute: float
  optimizer: float

  @property
  def model(self) -> float:
    """What model FLOPs utilisation counts (Chowdhery et al. 2022, PaLM, appendix B)."""
    return self.forward + self.backward


def clip_length(lengths: Sequence[int], shares: Sequence[float], longest: int) -> float:
  """Tokens of the clip that a token is in, on average over clips of which these shares have these lengths:
  E[n^2] / E[n].
  """
  sizes, weights = np.minimum(np.asarray(lengths, np.float64), longest), np.asarray(shares, np.float64)
  return float(weights @ sizes**2 / (weights @ sizes))


def count(params: Any, model: Any, rows: Rows, remat: str) -> Flops:
  """The operations of one step.

  Args:
    params: arrays or their shapes, by path.
    model: a DiTConfig.
    rows: of a step.
    remat: what of a block is made again in the backward pass, of `layers.REMAT`.
  """
  items = {"tokens": rows.tokens, "text": rows.rows * rows.shape.text, "segments": rows.rows * rows.shape.segments}
  blocks = rest = again = optimizer = 0.0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path_name(path)
    if not name.endswith("kernel"):
      continue
    passing = items[next((what for pattern, what in ITEMS if re.search(pattern, name)), "tokens")]
    product = 2.0 * leaf.size * passing
    blocks, rest = (blocks + product, rest) if "blocks/" in name else (blocks, rest + product)
    again += product if "blocks/" in name and not name.endswith("down/kernel") else 0.0
    optimizer += newton_schulz(leaf.shape) if MUON_PATHS.search(name) else 0.0
  attention = 4.0 * (
    model.depth * model.width * rows.pairs * (1 + rows.text_per_token)
    + model.text.depth * model.text.width * rows.pairs * rows.text_per_token**2
  )
  forward = blocks + rest + attention
  made_again = attention if remat == "full" else 0.0  # the other policies keep what attention gave
  recompute = 0.0 if remat == "none" else again + made_again
  return Flops(forward, 2 * forward, 3 * attention + made_again, recompute, optimizer)


def size(params: Any) -> int:
  """How many numbers a tree of arrays, or of their shapes, has."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def newton_schulz(shape: tuple[int, ...]) -> float:
  """Muon's iterations x = a x + (b A + c A A) x with A = x x^T, on the short side (Jordan et al. 2024).

  Args:
    shape: (layers, rows, columns) or (layers, rows, parts, columns): each part is a matrix of its own.
  """
  layers, rows, *parts, columns = shape
  short, long = sorted((rows, columns))
  return NEWTON_SCHULZ * layers * math.prod(parts) * (4.0 * short**2 * long + 2.0 * short**3)
