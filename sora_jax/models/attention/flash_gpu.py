"""Attention on a GPU as one kernel: scores never leave the chip, and blocks that share no segment are neither read nor
computed.

Flash attention (Dao et al. 2022) in Pallas, through its Triton lowering. One program has a block of one side, of
queries or for their gradients of keys, and walks over the blocks of the other side that share a segment with it: in a
packed row a few side by side, known before the kernel starts. Each sum is one program's, so results are the same at
every run.

A head's width is cut into powers of two, which is all that Triton knows: 72 is 64 and 16 (8 of them zeros), not 128.

Shape letters: B rows, K heads, L queries, M keys, H head width, O tokens of a program's block, I of a block that it
visits.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from sora_jax import sharding
from sora_jax.models.attention.flash import gradient_rows, meeting, padded
from sora_jax.models.attention.kernel import NEVER, Attended, Kernel

# Tokens of a program's block and of a block of the other side; half as many for float32, and for heads over WIDEST.
# With 8 warps a program and 2 blocks of the other side in flight an H100 keeps all sums in registers. Heads of up to 80
# in bfloat16 need at most 83 KB of shared memory there, heads of 128 need 132 KB; where products read one side from
# registers it is less, and within the 99 KB that every GPU from compute capability 8.0 has.
OUTER, INNER = 128, 64
WIDEST = 320  # bytes a token
WARPS, STAGES = 8, 2
NARROWEST = 16  # the least that a tensor core's product contracts
BASE_2 = math.log2(math.e)  # the hardware's exponential is that of 2

Sides = tuple[jax.Array, ...]


def forward(
  query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array, key_segments: jax.Array
) -> Attended:
  """See `kernel.Kernel`."""
  L, H = query.shape[2:]
  mine, theirs = padded(OUTER, query_segments, _wide(query)), padded(OUTER, key_segments, _wide(key), _wide(value))
  out, log_total = _call(_forward_kernel, H, mine, theirs, (mine[1].shape, mine[1].shape[:3]))
  return Attended(out[:, :, :L, :H], log_total[:, :, :L])


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
  rows = gradient_rows(attended, gradient)
  mine = padded(OUTER, query_segments, _wide(query), _wide(gradient), *rows)
  theirs = padded(OUTER, key_segments, _wide(key), _wide(value))
  (to_query,) = _call(_query_kernel, H, mine, theirs, (mine[1].shape,))
  to_key, to_value = _call(_key_kernel, H, theirs, mine, 2 * (theirs[1].shape,))
  return to_query[:, :, :L, :H], to_key[:, :, :M, :H], to_value[:, :, :M, :H]


FLASH_GPU = Kernel(forward, backward)


def _call(kernel: Callable, width: int, outer: Sides, inner: Sides, outputs: tuple[tuple[int, ...], ...]) -> list:
  """Runs a program for each block of the outer side, head and row.

  Args:
    kernel: is given the first block to visit and how many, the arrays of both sides, the outputs.
    width: of a head, without the zeros.
    outer, inner: segments, and arrays with the same tokens.
    outputs: shapes, float32, of the outer side.
  """
  (B, K, tokens, wide), itemsize = outer[1].shape, outer[1].dtype.itemsize
  halves = itemsize // 2 * pl.next_power_of_2(pl.cdiv(wide * itemsize, WIDEST))
  size, block = max(OUTER // halves, NARROWEST), max(INNER // halves, NARROWEST)
  visits = meeting((outer[0], size), (inner[0], block))
  number = pl.BlockSpec((None, None), lambda block, head, row: (row, block))
  call = pl.pallas_call(
    functools.partial(kernel, scale=width**-0.5, block=block),
    grid=(tokens // size, K, B),
    in_specs=[number, number, *(_spec(x.shape, size) for x in outer), *(_spec(x.shape) for x in inner)],
    out_specs=[_spec(shape, size) for shape in outputs],
    out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in outputs],
    compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
    interpret=sharding.platform() != "gpu",
  )
  return call(*visits, *outer, *inner)


def _spec(shape: tuple[int, ...], block: int | None = None) -> pl.BlockSpec:
  """What a program sees of segments (B, n), rows (B, K, n) or matrices (B, K, n, H): its block, or all tokens."""
  axis = min(len(shape) - 1, 2)
  zeros = (0,) * len(shape[axis + 1 :])
  place = lambda at, head, row: (*(row, head)[:axis], at if block else 0, *zeros)
  return pl.BlockSpec((*(None,) * axis, block or shape[axis], *shape[axis + 1 :]), place)


def _forward_kernel(first: Any, count: Any, *refs: Any, scale: float, block: int) -> None:
  my_ids, query, their_ids, key, value, out, log_total = refs
  mine, query_parts = _own(my_ids), _parts(query)

  def visit(at: pl.Slice, carry: tuple) -> tuple:
    most, total, mixed = carry
    same = mine[:, None] == their_ids[at][None]
    score_OI = jnp.where(same, _product(query_parts, _parts(key, at)), NEVER)
    above = jnp.maximum(most, score_OI.max(1))
    weight_OI = jnp.exp2((score_OI - above[:, None]) * (scale * BASE_2))
    shrink = jnp.exp2((most - above) * (scale * BASE_2))
    more = _mix(weight_OI.astype(value.dtype), _parts(value, at))
    return above, total * shrink + weight_OI.sum(1), [a * shrink[:, None] + b for a, b in zip(mixed, more, strict=True)]

  # Half of NEVER is above the score of what is not seen, whose weight is then 0, and below any other.
  start = jnp.full(log_total.shape, NEVER / 2), jnp.zeros(log_total.shape), _zeros(out)
  most, total, mixed = _walk(first, count, block, visit, start)
  seen = total > 0.0
  log_total[...] = jnp.where(seen, most * scale + jnp.log(jnp.where(seen, total, 1.0)), NEVER)
  _write(out, mixed, 1.0 / jnp.where(seen, total, 1.0)[:, None])


def _query_kernel(first: Any, count: Any, *refs: Any, scale: float, block: int) -> None:
  my_ids, query, gradient, log_total, along, their_ids, key, value, to_query = refs
  mine, query_parts, gradient_parts = _own(my_ids), _parts(query), _parts(gradient)
  rows = log_total[...][:, None], along[...][:, None]

  def visit(at: pl.Slice, sums: list) -> list:
    same, key_parts = mine[:, None] == their_ids[at][None], _parts(key, at)
    products = _product(query_parts, key_parts), _product(gradient_parts, _parts(value, at))
    score_gradient_OI = _gradients(same, *products, *rows, scale)[1]
    more = _mix(score_gradient_OI.astype(key.dtype), key_parts)
    return [a + b for a, b in zip(sums, more, strict=True)]

  _write(to_query, _walk(first, count, block, visit, _zeros(to_query)), scale)


def _key_kernel(first: Any, count: Any, *refs: Any, scale: float, block: int) -> None:
  my_ids, key, value, their_ids, query, gradient, log_total, along, to_key, to_value = refs
  mine, key_parts, value_parts = _own(my_ids), _parts(key), _parts(value)

  def visit(at: pl.Slice, sums: tuple[list, list]) -> tuple[list, list]:
    same, query_parts, gradient_parts = mine[:, None] == their_ids[at][None], _parts(query, at), _parts(gradient, at)
    products = _product(key_parts, query_parts), _product(value_parts, gradient_parts)
    found = _gradients(same, *products, log_total[at][None], along[at][None], scale)
    more = (_mix(x.astype(value.dtype), parts) for x, parts in zip(found, (gradient_parts, query_parts), strict=True))
    to_value, to_key = ([a + b for a, b in zip(*each, strict=True)] for each in zip(sums, more, strict=True))
    return to_value, to_key

  value_sums, key_sums = _walk(first, count, block, visit, (_zeros(to_value), _zeros(to_key)))
  _write(to_key, key_sums, scale)
  _write(to_value, value_sums, 1.0)


def _gradients(
  same: jax.Array, score: jax.Array, weight_gradient: jax.Array, log_total: jax.Array, along: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
  """The weights of a block of scores, and the gradients of the scores."""
  weight = jnp.exp2(jnp.where(same, score, NEVER) * (scale * BASE_2) - log_total * BASE_2)
  return weight, weight * (weight_gradient - along)


def _walk(first: Any, count: Any, block: int, visit: Callable, start: Any) -> Any:
  """`visit(where a block of the other side is, carry)` for each block that meets this one."""
  begin = first[...]
  step = lambda number, carry: visit(pl.ds(number * block, block), carry)
  return jax.lax.fori_loop(begin, begin + count[...], step, start)


def _own(ids: Any) -> jax.Array:
  """The program's own segments; padding is of no segment, not even of that of other padding."""
  return jnp.where(ids[...] > 0, ids[...], -1)


def _pieces(width: int) -> list[pl.Slice]:
  """A head's width as powers of two, the widest first."""
  sizes = [1 << power for power in reversed(range(width.bit_length())) if width >> power & 1]
  return [pl.Slice(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def _parts(matrix: Any, at: pl.Slice | None = None) -> list[jax.Array]:
  """Tokens of a matrix, all or those of a block, in parts of its width."""
  return [matrix[slice(None) if at is None else at, piece] for piece in _pieces(matrix.shape[-1])]


def _zeros(matrix: Any) -> list[jax.Array]:
  return [jnp.zeros((matrix.shape[0], piece.size)) for piece in _pieces(matrix.shape[-1])]


def _write(matrix: Any, parts: list[jax.Array], factor: Any) -> None:
  for piece, part in zip(_pieces(matrix.shape[-1]), parts, strict=True):
    matrix[:, piece] = part * factor


def _product(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
  """a b^T of two matrices in parts."""
  return functools.reduce(operator.add, (_dot(x, y, 1) for x, y in zip(a, b, strict=True)))


def _mix(weight: jax.Array, parts: list[jax.Array]) -> list[jax.Array]:
  return [_dot(weight, part, 0) for part in parts]


def _dot(a: jax.Array, b: jax.Array, over: int) -> jax.Array:
  """The product over the last dimension of `a` and one of `b`, float32; of float32 without rounding to fewer bits."""
  dimensions = (((1,), (over,)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _wide(x: jax.Array) -> jax.Array:
  """Zeros behind a head's width, up to a multiple of NARROWEST."""
  return jnp.pad(x, [(0, 0)] * 3 + [(0, -x.shape[-1] % NARROWEST)])
