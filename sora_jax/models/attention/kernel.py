"""The interface of attention kernels: a pair of functions, one for the values and one for the gradients.

Both accept a shard of the keys, so that devices that share a row can pass the shards round; see `context.py`.

Shape letters: B rows, K heads, L queries, M keys, H head width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

NEVER = -1e30  # a score that no query has: finite, so that differences of two are numbers
ATTENDED = "attended"  # the name by which a rematerialisation policy keeps the outputs of attention


class Attended(NamedTuple):
  """Attention of queries to some of their keys: the weighted mean of values, and the logarithm of the sum of weights.

  Attributes:
    out: (B, K, L, H); 0 where a query has none of these keys.
    log_total: (B, K, L) float32; NEVER there.
  """

  out: jax.Array
  log_total: jax.Array


class Kernel(NamedTuple):
  """Attention within segments whose ids are above 0, softmax(q k^T / sqrt(H)) v.

  Attributes:
    forward: (query (B, K, L, H), key and value (B, K, M, H), query_segments (B, L), key_segments (B, M)) -> `Attended`
      in float32, of these keys.
    backward: (the same five, `Attended` of all keys, gradient of its `out`) -> the gradients of query, key and value
      that these keys give, float32.
  """

  forward: Callable[..., Attended]
  backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(kernel: Kernel, *inputs: jax.Array) -> jax.Array:
  """Attention by a kernel to all keys, (B, K, L, H). A query without a key gets 0, and gives no gradient."""
  return kernel.forward(*inputs).out.astype(inputs[0].dtype)


def _save(kernel: Kernel, *inputs: jax.Array) -> tuple[jax.Array, Any]:
  attended = kept(kernel.forward(*inputs), inputs[0].dtype)
  return attended.out, (inputs, attended)


def _pull(kernel: Kernel, saved: Any, gradient_BKLH: jax.Array) -> tuple:
  inputs, attended = saved
  gradients = kernel.backward(*inputs, attended, gradient_BKLH)
  return *(g.astype(x.dtype) for g, x in zip(gradients, inputs[:3], strict=True)), None, None


attend.defvjp(_save, _pull)


def kept(attended: Attended, dtype: jnp.dtype) -> Attended:
  """What the gradient needs, under the name by which a policy keeps it."""
  return Attended(checkpoint_name(attended.out.astype(dtype), ATTENDED), checkpoint_name(attended.log_total, ATTENDED))
