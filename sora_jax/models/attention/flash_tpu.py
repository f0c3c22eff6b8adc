"""Attention on a TPU as one kernel: scores never leave the chip, and blocks that share no segment are neither fetched
nor computed.

Flash attention (Dao et al. 2022) in Pallas. In a packed row the keys that a block of queries can see are a few blocks
side by side. Where they begin and how many they are is known before the kernel starts, so that the loop over blocks of
keys, as long as the row, fetches these alone: for the rest of the loop the block stays the same, and is not fetched
again. Scores stand with keys along rows and queries along lanes, so that what a query has one of is a row.

Shape letters: B rows, K heads, L queries, M keys, H head width, Q queries of a block, J keys of a block.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sora_jax import sharding
from sora_jax.models.attention.flash import gradient_rows, meeting, padded
from sora_jax.models.attention.kernel import NEVER, Attended, Kernel

QUERIES, KEYS = 512, 512  # of a block
LANES, SUBLANES = 128, 8  # of a register of float32


def forward(
  query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array, key_segments: jax.Array
) -> Attended:
  """See `kernel.Kernel`."""
  shape, (query, query_segments) = query.shape, _padded(QUERIES, _scaled(query), query_segments)
  key, value, key_segments = _padded(KEYS, key, value, key_segments)
  call = _Call(query, key, query_segments, key_segments)
  out, log_total = call(
    _forward_kernel,
    inputs=((query, call.mine), (key, call.theirs), (value, call.theirs)),
    outputs=((query.shape, call.mine), (call.row_shape, call.my_row)),
    scratch=((SUBLANES, call.queries), (SUBLANES, call.queries), (shape[-1], call.queries)),
  )
  return Attended(out[:, :, : shape[2]], log_total[:, :, 0, : shape[2]])


def backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  attended: Attended,
  gradient: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See `kernel.Kernel`."""
  (L, H), M = query.shape[2:], key.shape[2]
  log_total, along = gradient_rows(attended, gradient)
  query, gradient, along, log_total, query_segments = _padded(
    QUERIES, _scaled(query), gradient, along, log_total, query_segments
  )
  key, value, key_segments = _padded(KEYS, key, value, key_segments)
  along, log_total = (jnp.repeat(x[:, :, None], SUBLANES, 2) for x in (along, log_total))
  call = _Call(query, key, query_segments, key_segments)

  def run(kernel: Callable, call: Any, outputs: Any, scratch: Any) -> Any:
    inputs = ((query, call.mine), (key, call.theirs), (value, call.theirs), (gradient, call.mine))
    return call(kernel, (*inputs, (log_total, call.my_row), (along, call.my_row)), outputs, scratch)

  (to_query,) = run(_query_kernel, call, ((query.shape, call.mine),), ((call.queries, H),))
  turned = _Call(query, key, query_segments, key_segments, over_queries=True)
  outputs = ((key.shape, turned.theirs), (key.shape, turned.theirs))
  to_key, to_value = run(_key_kernel, turned, outputs, 2 * ((turned.keys, H),))
  return to_query[:, :, :L] * H**-0.5, to_key[:, :, :M], to_value[:, :, :M]


FLASH_TPU = Kernel(forward, backward)


class _Call:
  """A kernel's grid: rows, heads, blocks of one side, and innermost the blocks of the other side that meet it."""

  def __init__(
    self,
    query: jax.Array,
    key: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    over_queries: bool = False,
  ):
    """`over_queries`: the innermost loop goes over blocks of queries, not of keys."""
    (B, K, L, H), M = query.shape, key.shape[2]
    self.queries, self.keys = min(QUERIES, L), min(KEYS, M)
    sides = (query_segments, self.queries), (key_segments, self.keys)
    self.first, self.count = meeting(*(reversed(sides) if over_queries else sides))
    blocks = L // self.queries, M // self.keys
    self.grid = (B, K, *(reversed(blocks) if over_queries else blocks))
    self.row_shape = (B, K, SUBLANES, L)
    # What a query's segment is, along lanes; what a key's is, along sublanes.
    self.segments = (
      jnp.broadcast_to(query_segments[:, None], (B, SUBLANES, L)),
      jnp.broadcast_to(key_segments[:, :, None], (B, M, LANES)),
    )

    def inner(b: int, outer: int, step: int, first: Any, count: Any) -> Any:
      return first[b, outer] + jnp.minimum(step, jnp.maximum(count[b, outer] - 1, 0))

    outer = lambda b, outer, step, first, count: outer
    mine, theirs = (inner, outer) if over_queries else (outer, inner)
    spec = lambda shape, index: pl.BlockSpec(shape, index)
    self.mine = spec((1, 1, self.queries, H), lambda b, k, *at: (b, k, mine(b, *at), 0))
    self.theirs = spec((1, 1, self.keys, H), lambda b, k, *at: (b, k, theirs(b, *at), 0))
    self.my_row = spec((1, 1, SUBLANES, self.queries), lambda b, k, *at: (b, k, 0, mine(b, *at)))
    self.segment_specs = [
      spec((1, SUBLANES, self.queries), lambda b, k, *at: (b, 0, mine(b, *at))),
      spec((1, self.keys, LANES), lambda b, k, *at: (b, theirs(b, *at), 0)),
    ]

  def __call__(self, kernel: Callable, inputs: Any, outputs: Any, scratch: Any) -> Any:
    """
    Args:
      inputs: (array, spec) pairs. outputs: (shape, spec) pairs, float32. scratch: shapes, float32.
    """
    call = pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=self.grid,
        in_specs=[*self.segment_specs, *(spec for _, spec in inputs)],
        out_specs=[spec for _, spec in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
      ),
      out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in outputs],
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
      interpret=sharding.platform() != "tpu",
    )
    return call(self.first, self.count, *self.segments, *(x for x, _ in inputs))


def _steps(count: Any) -> tuple[Any, Any, Any]:
  """Whether this step of the innermost loop is the first, whether it has something to do, whether it is the last."""
  step = pl.program_id(3)
  return step == 0, step < count[pl.program_id(0), pl.program_id(2)], step == pl.num_programs(3) - 1


def _forward_kernel(_: Any, count: Any, *refs: Any) -> None:
  my_ids, their_ids, query, key, value, out, log_total, most_ref, total_ref, mixed_ref = refs
  begin, work, end = _steps(count)

  @pl.when(begin)
  def clear() -> None:
    most_ref[...] = jnp.full_like(most_ref, NEVER)
    total_ref[...] = jnp.zeros_like(total_ref)
    mixed_ref[...] = jnp.zeros_like(mixed_ref)

  @pl.when(work)
  def add() -> None:
    same = _same(my_ids, their_ids)
    score_JQ = jnp.where(same, _dot(key[0, 0], query[0, 0], (1, 1)), NEVER)
    before = most_ref[:1]
    most = jnp.maximum(before, score_JQ.max(0, keepdims=True))
    weight = jnp.where(same, jnp.exp(score_JQ - most), 0.0)
    shrink = jnp.exp(before - most)
    total_ref[...] = jnp.broadcast_to(total_ref[:1] * shrink + weight.sum(0, keepdims=True), total_ref.shape)
    most_ref[...] = jnp.broadcast_to(most, most_ref.shape)
    mixed_ref[...] = mixed_ref[...] * shrink + _dot(value[0, 0], weight.astype(value.dtype), (0, 0))

  @pl.when(end)
  def write() -> None:
    total = total_ref[...]
    seen = total > 0.0
    log_total[0, 0] = jnp.where(seen, most_ref[...] + jnp.log(jnp.where(seen, total, 1.0)), NEVER)
    out[0, 0] = jnp.where(seen[:1], mixed_ref[...] / jnp.where(seen[:1], total[:1], 1.0), 0.0).T


def _query_kernel(_: Any, count: Any, *refs: Any) -> None:
  my_ids, their_ids, query, key, value, gradient, log_total, along, to_query, sum_ref = refs
  begin, work, end = _steps(count)

  @pl.when(begin)
  def clear() -> None:
    sum_ref[...] = jnp.zeros_like(sum_ref)

  @pl.when(work)
  def add() -> None:
    _, score_gradient = _gradients(my_ids, their_ids, query, key, value, gradient, log_total, along)
    sum_ref[...] += _dot(score_gradient, key[0, 0], (0, 0))

  @pl.when(end)
  def write() -> None:
    to_query[0, 0] = sum_ref[...]


def _key_kernel(_: Any, count: Any, *refs: Any) -> None:
  my_ids, their_ids, query, key, value, gradient, log_total, along, to_key, to_value, key_ref, value_ref = refs
  begin, work, end = _steps(count)

  @pl.when(begin)
  def clear() -> None:
    key_ref[...] = jnp.zeros_like(key_ref)
    value_ref[...] = jnp.zeros_like(value_ref)

  @pl.when(work)
  def add() -> None:
    weight, score_gradient = _gradients(my_ids, their_ids, query, key, value, gradient, log_total, along)
    key_ref[...] += _dot(score_gradient, query[0, 0], (1, 0))
    value_ref[...] += _dot(weight, gradient[0, 0], (1, 0))

  @pl.when(end)
  def write() -> None:
    to_key[0, 0] = key_ref[...]
    to_value[0, 0] = value_ref[...]


def _gradients(
  my_ids: Any, their_ids: Any, query: Any, key: Any, value: Any, gradient: Any, log_total: Any, along: Any
) -> tuple[jax.Array, jax.Array]:
  """The weights of a block, and the gradients of its scores; (J, Q), in the type of the values."""
  score_JQ = _dot(key[0, 0], query[0, 0], (1, 1))
  weight = jnp.where(_same(my_ids, their_ids), jnp.exp(score_JQ - log_total[0, 0, :1]), 0.0)
  score_gradient = weight * (_dot(value[0, 0], gradient[0, 0], (1, 1)) - along[0, 0, :1])
  return weight.astype(value.dtype), score_gradient.astype(value.dtype)


def _same(my_ids: Any, their_ids: Any) -> jax.Array:
  """Which keys (rows) and queries (lanes) are of one segment."""
  mine, theirs = my_ids[0, :1], their_ids[0, :, :1]
  return (theirs == mine) & (mine > 0)


def _dot(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
  """The product of two matrices over a dimension of each, float32."""
  # Named, since a default that was set elsewhere may be one that the kernel's compiler does not know.
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  dimensions = (((over[0],), (over[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _scaled(query: jax.Array) -> jax.Array:
  return query * query.shape[-1] ** -0.5


def _padded(block: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Up to whole blocks, or of a short row whole registers; see `flash.padded`."""
  tokens = arrays[0].shape[2]
  return padded(block if tokens > block else LANES, *arrays)
