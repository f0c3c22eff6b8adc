"""A small text encoder, trained along with the transformer that reads it.

Shape letters: B rows, M text tokens, D width, K heads, H head width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.models import layers
from sora_jax.models.attention.attention import attention
from sora_jax.sharding import constrain

# Text positions are token numbers; captions of thousands of tokens still differ at the longest wavelength.
WAVELENGTHS = ((4.0, 16384.0),)


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
  vocabulary: int
  width: int
  depth: int
  heads: int
  remat: str = "none"


class TextBlock(nnx.Module):
  """Pre-norm attention inside a caption, then SwiGLU."""

  def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
    self.heads = config.heads
    self.qkv = layers.JoinedDense(config.width, 3, config.width, rngs)
    self.query_norm, self.key_norm = (layers.HeadNorm(config.heads, config.width // config.heads) for _ in range(2))
    self.attention_out = layers.Dense(config.width, config.width, rngs)
    self.feed_forward = layers.SwiGLU(config.width, rngs)

  def __call__(self, x_BMD: jax.Array, segments_BM: jax.Array, angles_BMh: jax.Array) -> jax.Array:
    B, M, D = x_BMD.shape
    cosine, sine = jnp.cos(angles_BMh)[:, :, None], jnp.sin(angles_BMh)[:, :, None]
    query, key, value = (y.reshape(B, M, self.heads, D // self.heads) for y in self.qkv(layers.rms_norm(x_BMD)))
    query = layers.rotate(self.query_norm(query), cosine, sine)
    key = layers.rotate(self.key_norm(key), cosine, sine)
    mixed = attention(query, key, value, segments_BM, segments_BM)
    x = x_BMD + self.attention_out(mixed.reshape(B, M, D))
    return x + self.feed_forward(layers.rms_norm(x))


class TextEncoder(nnx.Module):
  """Token ids, packed by segment -> one vector a token (B, M, D)."""

  def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocabulary, config.width), jnp.float32))
    self.blocks = layers.make_stack(lambda r: TextBlock(config, r), config.depth, rngs)

  def words(self, text_BM: np.ndarray | jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Each token's own vector (B, M, D), before attention has mixed it with its neighbours."""
    # The table is gathered to every device first: the partitioner has no good way to index one that is split by width.
    return constrain(self.embedding[...].astype(dtype), None, None)[text_BM]

  def __call__(self, text_BM: np.ndarray | jax.Array, segments_BM: jax.Array, dtype: jnp.dtype) -> jax.Array:
    x = constrain(self.words(text_BM, dtype), "batch", None, "embed")
    # Attention is within segments and rotary positions are relative, so row positions serve as caption positions.
    places_BM1 = jnp.broadcast_to(jnp.arange(text_BM.shape[1])[None, :, None], (*text_BM.shape, 1))
    angles = layers.rotary_angles(places_BM1, self.config.width // self.config.heads, WAVELENGTHS)
    call = lambda block, carry: block(carry, segments_BM, angles)
    return layers.rms_norm(layers.apply_stack(self.blocks, x, call, self.config.remat))
