"""The diffusion transformer: packed noisy patches, noise levels and captions in, clean patches out.

    tokens -> patch_in -> [ self attention -> cross attention -> SwiGLU ] x depth -> patch_out -> clean tokens
    condition tokens, which stand beside those to predict in the clip's segment -> the same, and an embedding of theirs
    noise level of each token + size and mean word vector of its clip -> modulation (adaLN-single), for all blocks
    of a loop time is a circle: rotary angles and places that come round, and an embedding
    caption tokens -> text encoder -> keys and values of the cross attention
    noisy tokens, times a gate that the noise level sets -> added to the clean tokens

After Peebles & Xie 2023 (DiT), Chen et al. 2023 (adaLN-single, cross attention), Polyak et al. 2024 (RMSNorm and
SwiGLU). It knows nothing of schedules, losses or data: callers corrupt tokens and read the output as they like.

Shape letters: B rows, L tokens, S segments, M text tokens, C values a token, D width, K heads, H head width.
"""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.models import layers
from sora_jax.models.attention.attention import attention
from sora_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_jax.packing.batch import PackedBatch, per_token
from sora_jax.sharding import constrain, ways

TIME_FEATURES = 64
SIZE_FEATURES = 16
PLACE_FEATURES = 8


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Sizes of the transformer.

  Attributes:
    channels: values of a token, patch volume times latent channels.
    wavelengths: shortest and longest rotary wavelength of (seconds, pixels down, pixels right).
    attention: what computes self attention, of `attention.BACKENDS`.
    dtype: what the blocks compute in; parameters, norms and softmax stay float32.
    remat: what of a block is computed again in the backward pass, of `layers.REMAT`.
  """

  channels: int
  width: int
  depth: int
  heads: int
  text: TextEncoderConfig
  wavelengths: tuple[tuple[float, float], ...]
  dtype: str = "float32"
  remat: str = "none"
  attention: str = "auto"

  @classmethod
  def of(cls, config: Any, vocabulary: int) -> "DiTConfig":
    """Of a run's config; `vocabulary` is the tokenizer's."""
    section = config.model
    return cls(
      channels=math.prod(section.patch) * config.autoencoder.channels,
      width=section.width,
      depth=section.depth,
      heads=section.heads,
      text=TextEncoderConfig(vocabulary, section.text_width, section.text_depth, section.text_heads, section.remat),
      wavelengths=(tuple(section.seconds), tuple(section.pixels), tuple(section.pixels)),
      dtype=section.dtype,
      remat=section.remat,
      attention=section.attention,
    )


class Block(nnx.Module):
  """Self attention over a clip's spacetime, cross attention to its caption, feed-forward; gated by modulation."""

  def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
    D = config.width
    self.heads, self.backend = config.heads, config.attention
    head_norm = lambda: layers.HeadNorm(config.heads, D // config.heads)
    self.qkv = layers.JoinedDense(D, 3, D, rngs)
    self.query_norm, self.key_norm = head_norm(), head_norm()
    self.attention_out = layers.Dense(D, D, rngs)
    self.query = layers.Dense(D, D, rngs)
    self.key_value = layers.JoinedDense(config.text.width, 2, D, rngs)
    self.cross = nnx.Dict(
      query_norm=head_norm(), key_norm=head_norm(), attention_out=layers.Dense(D, D, rngs, scale=0.0)
    )
    self.feed_forward = layers.SwiGLU(D, rngs)
    # adaLN-single: a block adds this table to the modulation that all blocks share (Chen et al. 2023, section 2.3).
    self.table = nnx.Param(jnp.zeros((6, D), jnp.float32))

  def __call__(self, x_BLD, modulation_6BLD, segments_BL, rotary_BLh, text_BMD, text_segments_BM):
    B, L, D = x_BLD.shape
    M, K, H = text_BMD.shape[1], self.heads, D // self.heads
    shift1, scale1, gate1, shift2, scale2, gate2 = (
      shared_BLD + own_D[None, None] for shared_BLD, own_D in zip(modulation_6BLD, self.table[...], strict=True)
    )
    cosine, sine = (table[:, :, None] for table in rotary_BLh)
    x = x_BLD

    query, key, value = (y.reshape(B, L, K, H) for y in self.qkv(layers.modulate(x, scale1, shift1)))
    query = layers.rotate(self.query_norm(query), cosine, sine)
    key = layers.rotate(self.key_norm(key), cosine, sine)
    # Values are rotated by their own position and the mean of them back by the query's: the result holds where a value
    # lay relative to the query (Miyato et al. 2024, "GTA", section 3).
    value = layers.rotate(value, cosine, sine)
    mixed = attention(query, key, value, segments_BL, segments_BL, self.backend, ("tokens", "tokens"))
    mixed = layers.rotate(mixed, cosine, -sine).reshape(B, L, D)
    x = layers.add_gated(x, gate1, self.attention_out(mixed))

    query = self.cross.query_norm(self.query(layers.rms_norm(x)).reshape(B, L, K, H))
    key, value = (y.reshape(B, M, K, H) for y in self.key_value(text_BMD))
    mixed = attention(query, self.cross.key_norm(key), value, segments_BL, text_segments_BM, over=("tokens", None))
    x = x + self.cross.attention_out(mixed.reshape(B, L, D))

    x = layers.add_gated(x, gate2, self.feed_forward(layers.modulate(x, scale2, shift2)))
    return constrain(x, "batch", "tokens", "embed")


class DiT(nnx.Module):
  """Predicts the clean patches of packed clips."""

  def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
    D = config.width
    self.config = config
    self.patch_in = layers.Dense(config.channels, D, rngs, bias=True)
    self.condition_embedding = nnx.Param(jnp.zeros((1, D), jnp.float32))
    self.loop_embedding = nnx.Param(jnp.zeros((1, D), jnp.float32))
    self.place_in = layers.Dense(3 * 2 * PLACE_FEATURES, D, rngs)
    self.time_in = layers.Dense(2 * TIME_FEATURES, D, rngs, bias=True)
    self.size_in = layers.Dense(4 * 2 * SIZE_FEATURES, D, rngs, bias=True)
    self.caption_in = layers.Dense(config.text.width, D, rngs)
    self.modulation = layers.Dense(D, 8 * D, rngs, bias=True, scale=0.1)
    self.text_encoder = TextEncoder(config.text, rngs)
    self.blocks = layers.make_stack(lambda r: Block(config, r), config.depth, rngs)
    self.patch_out = layers.Dense(D, config.channels, rngs, bias=True, scale=0.0)
    self.skip = layers.Dense(D, config.channels, rngs, bias=True, scale=0.0)

  def __call__(self, x_BLC: jax.Array, t_BL: jax.Array, batch: PackedBatch, caption_kept_BS: jax.Array) -> jax.Array:
    """One prediction a token.

    Args:
      x_BLC: noisy tokens.
      t_BL: the noise level of every token, 0 clean to 1 noise.
      batch: segments, positions, sizes and captions; its own tokens are not read.
      caption_kept_BS: bool; where False the clip is seen with an empty caption.

    Returns:
      (B, L, C) float32.
    """
    chex.assert_equal_shape_prefix([x_BLC, t_BL, batch.segments_BL], 2)
    L = x_BLC.shape[1]
    x_BLC, t_BL, batch = lengthened((x_BLC, t_BL, batch), L + -L % ways("tokens"))
    features_BLD, modulator_BLD = self.features(x_BLC, t_BL, batch, caption_kept_BS)
    # Where little noise is left most of a token is right as it came in: a gate for each channel, by the noise level,
    # lets it pass, and spares the blocks to carry its values through norms (Karras et al. 2022, "EDM", eq. 7, learned).
    return (self.patch_out(features_BLD) + self.skip(modulator_BLD) * x_BLC)[:, :L]

  def features(
    self, x_BLC: jax.Array, t_BL: jax.Array, batch: PackedBatch, caption_kept_BS: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """What the last layer reads, normalised, and what modulates each token: both (B, L, D), float32.

    Arguments as in a call, of as many tokens as devices can share.
    """
    D, dtype = self.config.width, jnp.dtype(self.config.dtype)
    text_BMD, text_segments_BM = self.encode_text(batch, caption_kept_BS, dtype)
    caption_BSD = pooled(self.text_encoder.words(batch.text_BM, dtype), text_segments_BM, batch.weight_BS.shape[1])
    modulator_BLD = self.modulator(t_BL, caption_BSD, batch)
    # Eight arrays, not slices of one: the gradient of a slice is as large as the whole.
    *modulation_6BLD, last_scale, last_shift = jnp.split(self.modulation(modulator_BLD), 8, -1)
    period_BL = per_token(batch.period_BS, batch.segments_BL)
    angles = layers.rotary_angles(batch.positions_BL3, D // self.config.heads, self.config.wavelengths, period_BL)
    rotary = (jnp.cos(angles), jnp.sin(angles))

    x = self.patch_in(x_BLC.astype(dtype)) + (self.place(batch) + self.condition_mark(batch)).astype(dtype)
    x = constrain(x, "batch", "tokens", "embed")
    call = lambda block, carry: block(carry, modulation_6BLD, batch.segments_BL, rotary, text_BMD, text_segments_BM)
    x = layers.apply_stack(self.blocks, x, call, self.config.remat)
    return layers.modulate(x, last_scale, last_shift).astype(jnp.float32), modulator_BLD

  def place(self, batch: PackedBatch) -> jax.Array:
    """Where each token lies between the first and last moment and the edges of its clip -> (B, L, D), float32.

    Rotary positions tell distances only; a clip's walls and its beginning are known from these fractions, which mean
    the same at every size (NaViT, Dehghani et al. 2023, section 2.1). Of a loop the fraction of time is that of a turn,
    and what tells it comes round: the end of a turn is its beginning.
    """
    size_BL3 = per_token(batch.size_BS4, batch.segments_BL)[..., :3]
    fraction_BL3 = jnp.asarray(batch.positions_BL3) / jnp.maximum(size_BL3, 1e-3)
    loop_BL1 = per_token(batch.period_BS, batch.segments_BL)[..., None] > 0
    closed_BL3 = loop_BL1 & (jnp.arange(3) == 0)[None, None]
    features = layers.fourier_features(fraction_BL3, PLACE_FEATURES, jnp.pi / 2, 16 * jnp.pi, closed_BL3)
    return self.place_in(features.reshape(*fraction_BL3.shape[:2], 3 * 2 * PLACE_FEATURES))

  def condition_mark(self, batch: PackedBatch) -> jax.Array:
    """What tells condition tokens from the others -> (B, L, D), float32."""
    return jnp.where(batch.condition_BL[..., None], self.condition_embedding[...][None], 0.0)

  def modulator(self, t_BL: jax.Array, caption_BSD: jax.Array, batch: PackedBatch) -> jax.Array:
    """Noise level of each token, size and mean word vector of its clip -> (B, L, D), float32.

    The vectors are those before the text encoder's attention, so that two words that training never saw together are
    the sum of two that it knows.
    """
    time_BLD = self.time_in(layers.fourier_features(t_BL, TIME_FEATURES, 1.0, 1000.0))
    size_BS4 = jnp.log(jnp.maximum(batch.size_BS4, 1e-3))
    features = layers.fourier_features(size_BS4, SIZE_FEATURES, 0.2, 20.0)
    clip_BSD = self.size_in(features.reshape(*size_BS4.shape[:2], 4 * 2 * SIZE_FEATURES))
    clip_BSD = clip_BSD + self.caption_in(caption_BSD.astype(jnp.float32))
    clip_BSD = clip_BSD + jnp.where(batch.period_BS[..., None] > 0, self.loop_embedding[...][None], 0.0)
    return jax.nn.silu(time_BLD + per_token(clip_BSD, batch.segments_BL))

  def encode_text(
    self, batch: PackedBatch, caption_kept_BS: jax.Array, dtype: jnp.dtype
  ) -> tuple[jax.Array, jax.Array]:
    """Caption vectors (B, M, D) and their segment ids; a dropped caption keeps its start token alone."""
    ids_BM = batch.text_segments_BM
    starts_BM = jnp.concatenate([jnp.ones_like(ids_BM[:, :1], bool), ids_BM[:, 1:] != ids_BM[:, :-1]], 1)
    kept_BM = per_token(caption_kept_BS, ids_BM).astype(bool) | starts_BM
    segments_BM = jnp.where(kept_BM, ids_BM, 0)
    return self.text_encoder(batch.text_BM, segments_BM, dtype), segments_BM


def pooled(text_BMD: jax.Array, segments_BM: jax.Array, segments: int) -> jax.Array:
  """The mean vector of each segment's tokens (B, S, D); zero where a segment has none."""
  member_BSM = (segments_BM[:, None] == jnp.arange(1, segments + 1)[None, :, None]).astype(text_BMD.dtype)
  total_BSD = jnp.einsum("BSM,BMD->BSD", member_BSM, text_BMD)
  return total_BSD / jnp.maximum(member_BSM.sum(-1, keepdims=True), 1.0)


def lengthened(row: tuple[jax.Array, jax.Array, PackedBatch], tokens: int) -> tuple[jax.Array, jax.Array, PackedBatch]:
  """(x_BLC, t_BL, batch) with padding up to `tokens`, so that devices can share them."""
  x_BLC, t_BL, batch = row
  more = tokens - x_BLC.shape[1]
  pad = lambda x: jnp.pad(x, [(0, more if axis == 1 else 0) for axis in range(x.ndim)]) if more else x
  names = ("segments_BL", "positions_BL3", "condition_BL")  # all of a batch that the model reads of tokens
  x_BLC, t_BL, arrays = jax.tree.map(pad, (x_BLC, t_BL, [getattr(batch, name) for name in names]))
  return x_BLC, t_BL, batch._replace(**dict(zip(names, arrays, strict=True)))
