"""Attention over rows whose tokens lie on several devices: keys go round a ring, or heads are exchanged for tokens.

Both run inside `shard_map`, where each device holds its shard of the row. Ring attention (Liu et al. 2023, section 3)
sends shards of keys from each device to the next while it computes; the all-to-all of DeepSpeed-Ulysses (Jacobs et al.
2023, section 3) moves less data, but no more devices can share a row than there are heads. With both, each member of
the ring is a group of devices that exchange heads (Fang & Zhao 2024, USP, section 3).

Shape letters: B rows, K heads, L queries of this device, M keys of this device, H head width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sora_jax.models.attention.kernel import NEVER, Attended, Kernel, kept


def exchange_heads(attend: Callable, axis: str) -> Callable:
  """`attend` with the shards of heads in place of the shards of tokens: arrays (B, K, L, H) are exchanged and put back.

  The devices of `axis` have consecutive shards of the tokens, and their number divides the heads.
  """

  def exchanged(
    query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array, key_segments: jax.Array
  ) -> jax.Array:
    gather_tokens = functools.partial(lax.all_to_all, axis_name=axis, split_axis=1, concat_axis=2, tiled=True)
    segments = (lax.all_gather(ids, axis, axis=1, tiled=True) for ids in (query_segments, key_segments))
    out = attend(*(gather_tokens(x) for x in (query, key, value)), *segments)
    return lax.all_to_all(out, axis, split_axis=2, concat_axis=1, tiled=True)

  return exchanged


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ring_attention(kernel: Kernel, axis: str, *inputs: jax.Array) -> jax.Array:
  """Attention of this device's queries to the keys of all devices of `axis`; (B, K, L, H). `inputs` as in `Kernel`."""
  return _ring_forward(kernel, axis, *inputs).out.astype(inputs[0].dtype)


def _ring_forward(
  kernel: Kernel,
  axis: str,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
) -> Attended:
  def visit(carry: tuple, _: None) -> tuple[tuple, None]:
    attended, visitor = carry
    following = _pass_on(visitor, axis)  # sent while the kernel computes
    key, value, ids = visitor
    return (merge(attended, kernel.forward(query, key, value, query_segments, ids)), following), None

  nothing = jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:3], NEVER, jnp.float32)
  (attended, _), _ = lax.scan(visit, (Attended(*nothing), (key, value, key_segments)), length=lax.axis_size(axis))
  return attended


def _ring_save(kernel: Kernel, axis: str, *inputs: jax.Array) -> tuple[jax.Array, Any]:
  attended = kept(_ring_forward(kernel, axis, *inputs), inputs[0].dtype)
  return attended.out, (inputs, attended)


def _ring_pull(kernel: Kernel, axis: str, saved: Any, gradient: jax.Array) -> tuple:
  """The gradients of keys and values go round with them, and are back at their device after a whole round."""
  (query, key, value, query_segments, key_segments), attended = saved

  def visit(carry: tuple, _: None) -> tuple[tuple, None]:
    to_query, visitor, to_key, to_value = carry
    following = _pass_on(visitor, axis)
    key, value, ids = visitor
    parts = kernel.backward(query, key, value, query_segments, ids, attended, gradient)
    to_key, to_value = _pass_on((to_key + parts[1], to_value + parts[2]), axis)
    return (to_query + parts[0], following, to_key, to_value), None

  zeros = [jnp.zeros(x.shape, jnp.float32) for x in (query, key, value)]
  carry: tuple = zeros[0], (key, value, key_segments), *zeros[1:]
  (to_query, _, to_key, to_value), _ = lax.scan(visit, carry, length=lax.axis_size(axis))
  gradients = zip((to_query, to_key, to_value), (query, key, value), strict=True)
  return *(found.astype(x.dtype) for found, x in gradients), None, None


ring_attention.defvjp(_ring_save, _ring_pull)


def merge(a: Attended, b: Attended) -> Attended:
  """Attention to the union of two sets of keys, from attention to each."""
  log_total = jnp.logaddexp(a.log_total, b.log_total)
  share = lambda part: jnp.exp(part.log_total - log_total)[..., None]
  return Attended(a.out * share(a) + b.out * share(b), log_total)


def _pass_on(parts: tuple, axis: str) -> tuple:
  """Sends each device's arrays to the next device of the ring."""
  size = lax.axis_size(axis)
  return lax.ppermute(parts, axis, [(device, (device + 1) % size) for device in range(size)])
