"""What the attention kernels of TPU and GPU share: which blocks meet, whole blocks, and what the gradient starts from.

Shape letters: B rows, K heads, L queries, H head width.
"""

import jax
import jax.numpy as jnp

from sora_jax.models.attention.kernel import NEVER, Attended


def meeting(outer: tuple[jax.Array, int], inner: tuple[jax.Array, int]) -> tuple[jax.Array, jax.Array]:
  """For each block of one side, the first block of the other with which it shares a segment, and how many there are up
  to the last; int32 (B, blocks).

  Args:
    outer, inner: segments (B, n) and the size of a block of each side.
  """
  ranges = []
  for segments, block in (outer, inner):
    parts = segments.reshape(len(segments), -1, block)
    ranges.append((jnp.where(parts > 0, parts, jnp.iinfo(jnp.int32).max).min(-1), parts.max(-1)))
  (low, high), (other_low, other_high) = ranges
  meets = (low[:, :, None] <= other_high[:, None]) & (other_low[:, None] <= high[:, :, None])
  first, last = meets.argmax(-1), meets.shape[-1] - 1 - meets[..., ::-1].argmax(-1)
  return first.astype(jnp.int32), jnp.where(meets.any(-1), last + 1 - first, 0).astype(jnp.int32)


def padded(multiple: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Arrays of queries or of keys with zeros behind, up to a multiple of tokens.

  The dimension is the last of two or three, the one before the last of four.
  """

  def pad(x: jax.Array) -> jax.Array:
    axis = min(x.ndim - 1, 2)
    return jnp.pad(x, [(0, -x.shape[axis] % multiple if i == axis else 0) for i in range(x.ndim)])

  return tuple(pad(x) for x in arrays)


def gradient_rows(attended: Attended, gradient_BKLH: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What a query's gradient has one of, float32 (B, K, L): the logarithm of its weights' sum, such that one that saw
  nothing has weights 0, and the product of what it got and its gradient (Dao et al. 2022, FlashAttention, algorithm 4).
  """
  along = (gradient_BKLH.astype(jnp.float32) * attended.out.astype(jnp.float32)).sum(-1)
  return jnp.where(attended.log_total > NEVER / 2, attended.log_total, -NEVER), along
