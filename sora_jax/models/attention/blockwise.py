"""Attention a block of queries at a time, over the keys of its segments alone; no array of L x M is made.

Pure JAX. In a packed row the clips that have a query in a block lie side by side, so the keys of a block are one window
of the row. Windows have few sizes, and the blocks of one size are a loop. The gradient makes the weights again from the
logarithm of each query's sum (Dao et al. 2022, FlashAttention, algorithm 4), so it needs no more memory than the
forward pass.

Shape letters: B rows, K heads, L queries, M keys, H head width, Q queries of a block, W keys of a window.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sora_jax.models.attention.kernel import NEVER, Attended, Kernel

QUERIES = 256  # of a block
WINDOW = 64  # keys of the smallest window; the others are this times 2, 3, 4, 6, 8, 12, ...


class Block(NamedTuple):
  """A block of queries and the window of keys that it sees; its methods cut them out of (B, K, ...) arrays.

  Attributes:
    row, query, key: where they begin, int32 scalars.
    queries, keys: how many they are.
  """

  row: jax.Array
  query: jax.Array
  key: jax.Array
  queries: int
  keys: int

  def mine(self, x: jax.Array, axis: int = 2) -> jax.Array:
    """What array `x` holds along `axis` for the queries, without the dimension of rows."""
    return self._cut(x, axis, self.query, self.queries)

  def theirs(self, x: jax.Array, axis: int = 2) -> jax.Array:
    return self._cut(x, axis, self.key, self.keys)

  def _cut(self, x: jax.Array, axis: int, start: jax.Array, size: int) -> jax.Array:
    sizes = [1, *x.shape[1:axis], size, *x.shape[axis + 1 :]]
    return lax.dynamic_slice(x, self._starts(x, axis, start), sizes)[0]

  def put(self, x: jax.Array, part: jax.Array, axis: int = 2) -> jax.Array:
    """`x` with the queries' part replaced."""
    return lax.dynamic_update_slice(x, part[None], self._starts(x, axis, self.query))

  def add(self, x: jax.Array, part: jax.Array) -> jax.Array:
    """`x` with something added to the keys' part."""
    return lax.dynamic_update_slice(x, (self.theirs(x) + part)[None], self._starts(x, 2, self.key))

  def _starts(self, x: jax.Array, axis: int, start: jax.Array) -> tuple:
    return (self.row, *(start if i == axis else 0 for i in range(1, x.ndim)))

  def bias(self, query_segments_BL: jax.Array, key_segments_BM: jax.Array) -> jax.Array:
    """0 where a query may see a key, NEVER elsewhere; (1, Q, W) float32."""
    mine = self.mine(query_segments_BL, 1)
    same = (mine[:, None] == self.theirs(key_segments_BM, 1)[None]) & (mine[:, None] > 0)
    return jnp.where(same, 0.0, NEVER)[None]


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  queries: int = QUERIES,
) -> Attended:
  """Attention to these keys, all that the queries have or a shard of them."""
  L, queries = query.shape[2], min(queries, query.shape[2])
  query, query_segments = _pad(_scaled(query), 2, queries), _pad(query_segments, 1, queries)
  key_BKHM = key.swapaxes(2, 3)

  def attend(carry: Attended, block: Block) -> Attended:
    score = _product(block.mine(query), block.theirs(key_BKHM, 3))
    score += block.bias(query_segments, key_segments)
    most = score.max(-1)
    weight = jnp.exp(score - most[..., None])
    total = weight.sum(-1)
    out = _product(weight.astype(value.dtype), block.theirs(value)) / total[..., None]
    # The scores of a query without a key are all NEVER, and its weights all 1: they must not count.
    seen = most > NEVER / 2
    out, log_total = jnp.where(seen[..., None], out, 0.0), jnp.where(seen, most + jnp.log(total), NEVER)
    return Attended(block.put(carry.out, out), block.put(carry.log_total, log_total))

  nothing = Attended(jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:3], NEVER, jnp.float32))
  return Attended(*(x[:, :, :L] for x in _each_block(attend, nothing, query_segments, key_segments, queries)))


def backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  attended: Attended,
  gradient: jax.Array,
  queries: int = QUERIES,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of query, key and value, float32, for keys that are all or a part of what `attended` is of.

  Scores stand the other way round, (K, W, Q): all five products are then of the kind that XLA's CPU code does fast.
  """
  L, queries, scale = query.shape[2], min(queries, query.shape[2]), query.shape[-1] ** -0.5
  along = (gradient.astype(jnp.float32) * attended.out.astype(jnp.float32)).sum(-1)
  log_total = jnp.where(attended.log_total > NEVER / 2, attended.log_total, -NEVER)  # weights 0 where nothing was seen
  query, gradient, along, log_total = (_pad(x, 2, queries) for x in (_scaled(query), gradient, along, log_total))
  query_segments = _pad(query_segments, 1, queries)
  query_BKHL, key_BKHM, gradient_BKHL = (x.swapaxes(2, 3) for x in (query, key, gradient))

  def pull(carry: tuple, block: Block) -> tuple:
    score = _product(block.theirs(key), block.mine(query_BKHL, 3))
    score += block.bias(query_segments, key_segments).swapaxes(1, 2)
    weight = jnp.exp(score - block.mine(log_total)[:, None])
    weight_gradient = _product(block.theirs(value), block.mine(gradient_BKHL, 3))
    score_gradient = (weight * (weight_gradient - block.mine(along)[:, None])).astype(value.dtype)
    to_query = _product(block.theirs(key_BKHM, 3), score_gradient)
    to_key = _product(score_gradient, block.mine(query))
    to_value = _product(weight.astype(value.dtype), block.mine(gradient))
    query_gradient, key_gradient, value_gradient = carry
    return (
      block.put(query_gradient, to_query * scale, 3),
      block.add(key_gradient, to_key),
      block.add(value_gradient, to_value),
    )

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query_BKHL, key, value))
  to_query, to_key, to_value = _each_block(pull, start, query_segments, key_segments, queries)
  return to_query.swapaxes(2, 3)[:, :, :L], to_key, to_value


def windows(query_segments_BL: jax.Array, key_segments_BM: jax.Array, queries: int) -> tuple[jax.Array, jax.Array]:
  """First key and number of keys of the window of each block of queries, int32 (B, L / Q); 0 keys where none meets."""
  parts = query_segments_BL.reshape(len(query_segments_BL), -1, queries)
  low_Bq = jnp.where(parts > 0, parts, jnp.iinfo(jnp.int32).max).min(-1)
  keys_B1M = key_segments_BM[:, None]
  meets_BqM = (keys_B1M >= low_Bq[..., None]) & (keys_B1M <= parts.max(-1)[..., None])
  first = meets_BqM.argmax(-1)
  last = meets_BqM.shape[-1] - 1 - meets_BqM[..., ::-1].argmax(-1)
  return first, jnp.where(meets_BqM.any(-1), last + 1 - first, 0)


def _each_block(act: Callable, carry: Any, query_segments: jax.Array, key_segments: jax.Array, queries: int) -> Any:
  """`act(carry, block)` for every block that has keys: those with windows of one size after another."""
  M = key_segments.shape[1]
  first, count = windows(query_segments, key_segments, queries)
  below = 0
  for window in window_sizes(M):
    chosen = (count > below) & (count <= window)
    rows, numbers = jnp.nonzero(chosen, size=chosen.size, fill_value=0)
    keys = jnp.minimum(first[rows, numbers], M - window)
    starts = jnp.stack([rows, numbers * queries, keys]).astype(jnp.int32)
    run = lambda i, carry, at=starts, window=window: act(carry, Block(at[0, i], at[1, i], at[2, i], queries, window))
    carry = lax.fori_loop(0, chosen.sum(), run, carry)
    below = window
  return carry


def window_sizes(keys: int) -> list[int]:
  """Sizes of windows up to all keys, each at most half as large again as the one before, but for the second."""
  sizes = [WINDOW << power for power in range(32)]
  sizes = sorted([*sizes, *(size + size // 2 for size in sizes[1:])])
  return [size for size in sizes if size < keys] + [keys]


def _scaled(query: jax.Array) -> jax.Array:
  return query * query.shape[-1] ** -0.5


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
  more = -x.shape[axis] % multiple
  return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """The matrix product for each head, float32."""
  return jnp.einsum("Kab,Kbc->Kac", a, b, preferred_element_type=jnp.float32)


BLOCKWISE = Kernel(forward, backward)
