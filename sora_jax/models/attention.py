"""Attention that never crosses segments: one call, whatever computes it.

Shape letters: B rows, L queries, M keys, K heads, H head width.
"""

import chex
import jax
import jax.numpy as jnp

from sora_jax import sharding
from sora_jax.models.blockwise import blockwise_attention

LONG = 512 * 512  # pairs of a query and a key in a row, from where on blocks pay if clips are three or more


def attention(
  query_BLKH: jax.Array,
  key_BMKH: jax.Array,
  value_BMKH: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BM: jax.Array,
  backend: str = "auto",
) -> jax.Array:
  """softmax(q k^T / sqrt(H)) v over the keys whose segment id equals the query's; (B, L, K, H).

  Scores and softmax are float32. Padding, id 0, and a query whose segment has no key get something finite, of no use to
  anybody.
  """
  chex.assert_equal_shape([key_BMKH, value_BMKH])
  query, key, value = (x.transpose(0, 2, 1, 3) for x in (query_BLKH, key_BMKH, value_BMKH))
  if backend == "auto":
    long = query.shape[2] * key.shape[2] >= LONG and jax.default_backend() == "cpu" and sharding.one_device()
    backend = "blocks" if long else "dense"
  if backend == "blocks":
    return blockwise_attention(query, key, value, query_segments_BL, key_segments_BM).transpose(0, 2, 1, 3)
  # Added, not selected, and divided by the sum at the end: written so, XLA fuses the whole of it on the CPU.
  same_B1LM = query_segments_BL[:, None, :, None] == key_segments_BM[:, None, None, :]
  bias_B1LM = jnp.where(same_B1LM, 0.0, -1e30).astype(jnp.float32)
  scale = query_BLKH.shape[-1] ** -0.5
  score = jnp.einsum("BKLH,BKMH->BKLM", query * scale, key, preferred_element_type=jnp.float32) + bias_B1LM
  weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
  # The sum as a product with ones: XLA's reduction of the same array is slower on the CPU.
  total = jnp.einsum("BKLM,M->BKL", weight, jnp.ones(weight.shape[-1], jnp.float32))[..., None].astype(value.dtype)
  mixed = jnp.einsum("BKLM,BKMH->BKLH", weight.astype(value.dtype), value) / total
  return mixed.transpose(0, 2, 1, 3)
