"""Attention a block of queries and a block of keys at a time: what doesn't meet is not computed, nothing is L x M.

Pure JAX. Packed rows hold many clips, and blocks that share no segment are left out of the loop, forward and backward.
Softmax is accumulated over the blocks (Dao et al. 2022, FlashAttention, algorithm 1; the gradient is its algorithm 4).

Shape letters: B rows, K heads, L queries, M keys, H head width, P pairs of blocks, Q queries and J keys of a block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

NEVER = -1e30  # a score that no query has: finite, so that differences of two are numbers


class Blocks(NamedTuple):
  """How many queries and keys make a block."""

  queries: int
  keys: int


BLOCKS = Blocks(64, 128)


def blockwise_attention(
  query_BKLH: jax.Array,
  key_BKMH: jax.Array,
  value_BKMH: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BM: jax.Array,
  blocks: Blocks = BLOCKS,
) -> jax.Array:
  """softmax(q k^T / sqrt(H)) v over the keys whose segment id equals the query's and is above 0; (B, K, L, H).

  Scores and sums are float32. A query that has no key gets 0, and gives no gradient.
  """
  L, M = query_BKLH.shape[2], key_BKMH.shape[2]
  blocks = Blocks(min(blocks.queries, L), min(blocks.keys, M))
  query = _pad(query_BKLH * query_BKLH.shape[-1] ** -0.5, 2, blocks.queries)
  key, value = _pad(key_BKMH, 2, blocks.keys), _pad(value_BKMH, 2, blocks.keys)
  query_segments = _pad(query_segments_BL, 1, blocks.queries)
  key_segments = _pad(key_segments_BM, 1, blocks.keys)
  return _attend(blocks, query, key, value, query_segments, key_segments)[:, :, :L]


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
  more = -x.shape[axis] % multiple
  return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


def meeting(query_segments_BL: jax.Array, key_segments_BM: jax.Array, blocks: Blocks) -> jax.Array:
  """Which blocks may share a segment, bool (B, L / Q, M / J): those whose ranges of ids overlap."""
  low_Bq, high_Bq = _ranges(query_segments_BL, blocks.queries)
  low_Bk, high_Bk = _ranges(key_segments_BM, blocks.keys)
  return (low_Bq[:, :, None] <= high_Bk[:, None]) & (low_Bk[:, None] <= high_Bq[:, :, None])


def _ranges(segments_BL: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
  """The least and greatest id of each block; of padding alone, a range that meets none."""
  parts = segments_BL.reshape(segments_BL.shape[0], -1, block)
  low = jnp.where(parts > 0, parts, jnp.iinfo(jnp.int32).max).min(-1)
  return low, parts.max(-1) - (parts.max(-1) == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: Blocks, query, key, value, query_segments, key_segments):
  return _forward(blocks, query, key, value, query_segments, key_segments)[0]


def _pairs(blocks: Blocks, query_segments, key_segments) -> tuple[jax.Array, jax.Array]:
  """(row, first query, first key) of the pairs of blocks to compute, int32 (P, 3), and how many there are."""
  meets = meeting(query_segments, key_segments, blocks)
  rows, queries, keys = jnp.nonzero(meets, size=math.prod(meets.shape), fill_value=0)
  return jnp.stack([rows, queries * blocks.queries, keys * blocks.keys], 1).astype(jnp.int32), meets.sum()


def _cut(x: jax.Array, row: jax.Array, start: jax.Array, size: int) -> jax.Array:
  """x (B, K, L, ...)[row, :, start : start + size]."""
  zeros = (0,) * (x.ndim - 3)
  return lax.dynamic_slice(x, (row, 0, start, *zeros), (1, x.shape[1], size, *x.shape[3:]))[0]


def _put(x: jax.Array, part: jax.Array, row: jax.Array, start: jax.Array) -> jax.Array:
  return lax.dynamic_update_slice(x, part[None].astype(x.dtype), (row, 0, start, *(0,) * (x.ndim - 3)))


def _bias(blocks: Blocks, query_segments, key_segments, row, q, k) -> jax.Array:
  """0 where a query may see a key, NEVER elsewhere; (1, Q, J)."""
  mine = lax.dynamic_slice(query_segments, (row, q), (1, blocks.queries))[0]
  theirs = lax.dynamic_slice(key_segments, (row, k), (1, blocks.keys))[0]
  same = (mine[:, None] == theirs[None]) & (mine[:, None] > 0)
  return jnp.where(same, 0.0, NEVER).astype(jnp.float32)[None]


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _forward(blocks: Blocks, query, key, value, query_segments, key_segments):
  """The output (B, K, L, H), and the logarithm of each query's sum (B, K, L)."""
  pairs, count = _pairs(blocks, query_segments, key_segments)

  def add(number, carry):
    out, most, total = carry
    row, q, k = pairs[number]
    score = _product("KQH,KJH->KQJ", _cut(query, row, q, blocks.queries), _cut(key, row, k, blocks.keys))
    score += _bias(blocks, query_segments, key_segments, row, q, k)
    before = _cut(most, row, q, blocks.queries)
    after = jnp.maximum(before, score.max(-1))
    weight, shrink = jnp.exp(score - after[..., None]), jnp.exp(before - after)
    part = _product("KQJ,KJH->KQH", weight.astype(value.dtype), _cut(value, row, k, blocks.keys))
    out = _put(out, _cut(out, row, q, blocks.queries) * shrink[..., None] + part, row, q)
    total = _put(total, _cut(total, row, q, blocks.queries) * shrink + weight.sum(-1), row, q)
    return out, _put(most, after, row, q), total

  heads = query.shape[:3]
  start = (jnp.zeros(query.shape, jnp.float32), jnp.full(heads, NEVER, jnp.float32), jnp.zeros(heads, jnp.float32))
  out, most, total = lax.fori_loop(0, count, add, start)
  # A query without a key met only NEVER: its weights are all 1, and of nobody.
  seen = most > NEVER / 2
  out = jnp.where(seen[..., None], out / jnp.where(seen, total, 1.0)[..., None], 0.0)
  return out.astype(query.dtype), jnp.where(seen, most + jnp.log(jnp.where(seen, total, 1.0)), -NEVER)


def _save(blocks: Blocks, query, key, value, query_segments, key_segments):
  out, log_total = _forward(blocks, query, key, value, query_segments, key_segments)
  return out, (query, key, value, query_segments, key_segments, out, log_total)


def _backward(blocks: Blocks, saved, out_gradient):
  query, key, value, query_segments, key_segments, out, log_total = saved
  pairs, count = _pairs(blocks, query_segments, key_segments)
  along = (out_gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)

  def add(number, carry):
    query_gradient, key_gradient, value_gradient = carry
    row, q, k = pairs[number]
    mine, theirs = _cut(query, row, q, blocks.queries), _cut(key, row, k, blocks.keys)
    given = _cut(out_gradient, row, q, blocks.queries)
    score = _product("KQH,KJH->KQJ", mine, theirs) + _bias(blocks, query_segments, key_segments, row, q, k)
    weight = jnp.exp(score - _cut(log_total, row, q, blocks.queries)[..., None])
    weight_gradient = _product("KQH,KJH->KQJ", given, _cut(value, row, k, blocks.keys))
    score_gradient = weight * (weight_gradient - _cut(along, row, q, blocks.queries)[..., None])
    weight, score_gradient = weight.astype(value.dtype), score_gradient.astype(value.dtype)
    value_part = _product("KQJ,KQH->KJH", weight, given)
    key_part = _product("KQJ,KQH->KJH", score_gradient, mine)
    query_part = _product("KQJ,KJH->KQH", score_gradient, theirs)
    return (
      _put(query_gradient, _cut(query_gradient, row, q, blocks.queries) + query_part, row, q),
      _put(key_gradient, _cut(key_gradient, row, k, blocks.keys) + key_part, row, k),
      _put(value_gradient, _cut(value_gradient, row, k, blocks.keys) + value_part, row, k),
    )

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
  gradients = lax.fori_loop(0, count, add, start)
  return *(g.astype(x.dtype) for g, x in zip(gradients, (query, key, value), strict=True)), None, None


_attend.defvjp(_save, _backward)
