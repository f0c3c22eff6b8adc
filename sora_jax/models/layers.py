"""What the transformers are made of: dense layers, norms, rotary positions, feed-forward, stacks of blocks.

Shape letters: B rows, L tokens, D width, K heads, H head width.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax import sharding
from sora_jax.errors import InputError
from sora_jax.models.attention.kernel import ATTENDED

Block = TypeVar("Block", bound=nnx.Module)

# What the backward pass of a block computes again: nothing, all but its input, all but the outputs of attention (by far
# the most expensive part of a long row), or the same with those outputs kept in the host's memory.
REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "attention": jax.checkpoint_policies.save_only_these_names(ATTENDED),
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[ATTENDED],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


class Dense(nnx.Module):
  """y = x W (+ b). Weights are float32 and are cast to the type of `x`."""

  def __init__(self, width_in: int, width_out: int, rngs: nnx.Rngs, *, bias: bool = False, scale: float = 1.0):
    """`scale` multiplies the fan-in initialisation; 0 starts the layer at zero."""
    draw = jax.random.normal(rngs.params(), (width_in, width_out), jnp.float32)
    self.kernel = nnx.Param(draw * (scale * width_in**-0.5))
    self.bias = nnx.Param(jnp.zeros((width_out,), jnp.float32)) if bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., width_in) -> (..., width_out)."""
    y = product(x, self.kernel[...].astype(x.dtype))
    if self.bias is not None:
      y += jnp.expand_dims(self.bias[...].astype(x.dtype), tuple(range(y.ndim - 1)))
    return y


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """(..., width_in) and (width_in, width_out) -> (..., width_out)."""
  # On one device all tokens are one dimension: XLA's CPU code is at full speed only where one is contracted, and a
  # weight's gradient contracts them all. On several, rows and tokens are split, and their product would not be.
  flat = x.reshape(-1, x.shape[-1]) if sharding.one_device() else x
  return jnp.dot(flat, kernel).reshape(*x.shape[:-1], -1)


class JoinedDense(nnx.Module):
  """y_i = x W_i for several weights of one shape, as queries, keys and values have.

  The kernel (width_in, parts, width_out) has the parts in a dimension of their own: devices share the last one, and
  each has its columns of every part.
  """

  def __init__(self, width_in: int, parts: int, width_out: int, rngs: nnx.Rngs):
    draw = jax.random.normal(rngs.params(), (width_in, parts, width_out), jnp.float32)
    self.kernel = nnx.Param(draw * width_in**-0.5)

  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """(..., width_in) -> (..., width_out) for each part."""
    kernel = self.kernel[...].astype(x.dtype)
    width_in, parts, width_out = kernel.shape
    # One product and a cut is as fast on a CPU, and a shorter program to compile and to load; a TPU would copy the cut.
    if sharding.one_device() and sharding.platform() == "cpu":
      return jnp.split(product(x, kernel.reshape(width_in, parts * width_out)), parts, -1)
    return [product(x, kernel[:, part]) for part in range(parts)]


def rms_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
  """x / rms(x) over the last dimension, computed in float32 (Zhang & Sennrich 2019, eq. 4); no gain."""
  wide = x.astype(jnp.float32)
  return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)).astype(x.dtype)


class HeadNorm(nnx.Module):
  """rms_norm of each head times a learned gain; of queries and keys (Dehghani et al. 2023, "ViT-22B", section 2).

  Without the gain a logit is at most sqrt(H): a key that a query of 64 values matches fully gets 27 % of its
  attention where 8,191 others match it neither way. Each head has a gain of its own for each of its values; all start
  at 1, so a fresh model's logits are those of the norm alone.
  """

  def __init__(self, heads: int, head_width: int):
    self.gain = nnx.Param(jnp.ones((heads, head_width), jnp.float32))

  def __call__(self, x_BLKH: jax.Array) -> jax.Array:
    return (rms_norm(x_BLKH.astype(jnp.float32)) * self.gain[...][None, None]).astype(x_BLKH.dtype)


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """Adaptive norm (Peebles & Xie 2023, section 3.2): rms_norm(x) * (1 + scale) + shift, computed in float32."""
  return (rms_norm(x.astype(jnp.float32)) * (1.0 + scale) + shift).astype(x.dtype)


def add_gated(x: jax.Array, gate: jax.Array, more: jax.Array) -> jax.Array:
  """x + gate * more, computed in float32."""
  return (x.astype(jnp.float32) + gate * more.astype(jnp.float32)).astype(x.dtype)


class SwiGLU(nnx.Module):
  """down(silu(gate x) * up x) (Shazeer 2020, eq. 6); hidden width 8/3 of the model's, in multiples of 32."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.hidden = -(-width * 8 // 3 // 32) * 32
    self.gate_up = JoinedDense(width, 2, self.hidden, rngs)
    self.down = Dense(self.hidden, width, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.down(gated(*self.gate_up(x)))


@jax.checkpoint
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) * up; computed again in the backward pass, which is cheaper than storing both factors."""
  return jax.nn.silu(gate) * up


def rotary_angles(
  positions: np.ndarray | jax.Array,
  head_width: int,
  wavelengths: tuple[tuple[float, float], ...],
  period: np.ndarray | jax.Array | None = None,
) -> jax.Array:
  """Angles of rotary positions in physical units (Su et al. 2021, section 3.2.2, one band of the head an axis).

  Of a loop the first axis, time, is a circle: each frequency is that nearest to its own which turns a whole number of
  times in the loop's period, so positions a period apart have the same angles.

  Args:
    positions: (..., A), one coordinate an axis, in that axis's unit.
    head_width: even; its H / 2 pairs are shared out over the axes, the first axis taking what is left over.
    wavelengths: shortest and longest wavelength of each axis, in its unit; frequencies lie evenly in the logarithm.
    period: (...), of the first axis, in its unit; 0 where it is a line, as all are by default.

  Returns:
    float32 (..., H / 2), radians.
  """
  pairs, axes = head_width // 2, len(wavelengths)
  share = [pairs // axes] * axes
  share[0] += pairs - sum(share)
  angles = []
  for axis, (count, (low, high)) in enumerate(zip(share, wavelengths, strict=True)):
    frequency = 2 * jnp.pi / jnp.geomspace(low, high, count, dtype=jnp.float32)
    angle = jnp.multiply.outer(positions[..., axis].astype(jnp.float32), frequency)
    if axis == 0 and period is not None:
      turn = jnp.asarray(period, jnp.float32)
      whole = jnp.round(jnp.multiply.outer(turn, frequency / (2 * jnp.pi)))
      done = positions[..., axis] / jnp.maximum(turn, 1e-6)
      angle = jnp.where(turn[..., None] > 0, 2 * jnp.pi * whole * done[..., None], angle)
    angles.append(angle)
  return jnp.concatenate(angles, -1)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
  """Turns each pair (x[i], x[i + H/2]) of the last dimension by its angle; cosine and sine are (..., H / 2).

  The halves change places by a product with a permutation: cutting and joining them is slow in XLA's CPU code (a
  forward pass of the demo's transformer took a tenth to a fifth longer).
  """
  width = x.shape[-1]
  swap = np.roll(np.eye(width, dtype=np.float32), width // 2, axis=1)
  cosine, sine = cosine.astype(x.dtype), sine.astype(x.dtype)
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None  # of numbers that only change places
  swapped = jnp.matmul(x, swap.astype(x.dtype), precision=precision)
  return x * jnp.concatenate([cosine, cosine], -1) + swapped * jnp.concatenate([-sine, sine], -1)


def fourier_features(
  x: np.ndarray | jax.Array, count: int, low: float, high: float, closed: jax.Array | None = None
) -> jax.Array:
  """cos and sin of x times `count` frequencies from `low` to `high`, evenly in the logarithm: (..., 2 count).

  Where `closed`, a bool for each x, frequencies are the nearest that turn a whole number of times while x grows by 1.
  """
  frequency = jnp.geomspace(low, high, count, dtype=jnp.float32)
  angle = jnp.multiply.outer(x.astype(jnp.float32), frequency)
  if closed is not None:
    whole = 2 * jnp.pi * jnp.round(frequency / (2 * jnp.pi))
    angle = jnp.where(closed[..., None], jnp.multiply.outer(x.astype(jnp.float32), whole), angle)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def make_stack(make: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
  """`depth` blocks with their parameters stacked along a new first dimension."""
  return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), depth))


def apply_stack(blocks: Block, x: jax.Array, call: Callable[[Block, jax.Array], jax.Array], remat: str) -> jax.Array:
  """Runs stacked blocks one after another; `remat`, of REMAT, is what the backward pass computes again.

  The scan is unrolled on the CPU, where a rolled loop costs as much again as its body; on accelerators it keeps
  compile time independent of depth.
  """
  if remat not in REMAT:
    raise InputError(f"model.remat is {remat!r}: it is one of {', '.join(REMAT)}")
  run = call if remat == "none" else jax.checkpoint(call, prevent_cse=False, policy=REMAT[remat])
  step = lambda carry, block: (run(block, carry), None)
  x, _ = jax.lax.scan(step, x, blocks, unroll=sharding.platform() == "cpu")
  return x
