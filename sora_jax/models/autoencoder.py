"""The video autoencoder: causal in time, factorised into space and time, exact in chunks; an image is one frame.

    frames -> [ space-to-depth -> dense -> causal blocks ] x stages -> mean and log variance of the latents
    latents -> [ causal blocks -> dense -> depth-to-space ] x stages -> frames

1 + k * time frames become 1 + k latent frames. The first frame is repeated to fill its first time block, so latent
frame 0 sees frame 0 alone and nothing ever sees a later frame. Norms act on each position by itself and every time
mix keeps the last frames it saw, so a clip coded in chunks equals the whole clip. It knows nothing of losses or
data.

Shape letters: B clips, T frames, H height, W width, C channels (lower case t, h, w on the latent grid).
"""

import dataclasses
import math
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.errors import InputError
from sora_jax.models import layers
from sora_jax.patches import Grid, pad_edge
from sora_jax.sharding import constrain, platform

TIME_TAPS = 3  # a time mix sees its own frame and the two before
EXPANSION = 4  # of the feed-forward in a block
REMAT = ("none", "full")  # what the backward pass computes again: nothing, or all of a block but its input
LEAST_VARIANCE = 1e-4  # of a component of the linear start, as a share of the largest one's
FIRST_LOG_VARIANCE = (
  -8.0
)  # of the posterior at initialisation: with more noise the decoder would first learn to ignore latents


@dataclasses.dataclass(frozen=True)
class Stage:
  """One level of the pyramid: its downsampling (time, rows, columns), its width and its number of blocks."""

  shrink: tuple[int, int, int]
  width: int
  depth: int


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Sizes of the autoencoder.

  Attributes:
    channels: values of one latent position.
    dtype: what the blocks compute in; parameters, norms, the linear code and latents stay float32.
    remat: what of a block is computed again in the backward pass, of REMAT.
  """

  channels: int
  stages: tuple[Stage, ...]
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    if self.remat not in REMAT:
      raise InputError(f"autoencoder.remat is {self.remat!r}: it is one of {', '.join(REMAT)}")

  @classmethod
  def of(cls, section: Any) -> "AutoencoderConfig":
    """Of the `autoencoder` section of a config."""
    stages = tuple(Stage(tuple(shrink), width, depth) for shrink, width, depth in section.stages)
    # Configs of older runs have neither: those autoencoders were trained as the defaults say.
    computing = {name: getattr(section, name) for name in ("dtype", "remat") if hasattr(section, name)}
    return cls(section.channels, stages, **computing)

  @property
  def compression(self) -> tuple[int, int, int]:
    """Pixels a latent position stands for along (time, rows, columns)."""
    time, rows, columns = (math.prod(stage.shrink[axis] for stage in self.stages) for axis in range(3))
    return time, rows, columns

  @property
  def halo(self) -> tuple[int, int]:
    """How many latent (rows, columns) around a position its code depends on, and the frames that are decoded from it.

    Each block sees one place further, a place of its own stage. Stages have the same places on both ways.
    """
    rows = columns = 0
    for stage in self.stages:
      _, down, right = stage.shrink
      rows, columns = -(-rows // down) + stage.depth, -(-columns // right) + stage.depth
    return rows, columns

  @property
  def values_in_per_value_out(self) -> float:
    """Colour values that each latent value stands for, in a long clip."""
    return 3 * math.prod(self.compression) / self.channels


def grid(config: Any) -> Grid:
  """How a run's autoencoder and patch turn pixels into tokens."""
  return Grid(AutoencoderConfig.of(config.autoencoder).compression, tuple(config.model.patch))


def space_to_depth(x_BTHWC: jax.Array, shrink: tuple[int, int, int], first: bool) -> jax.Array:
  """(B, T, H, W, C) -> (B, T/st, H/sh, W/sw, st*sh*sw*C); the first chunk of a clip gets st - 1 copies of its first
  frame.
  """
  st, sh, sw = shrink
  if first and st > 1:
    x_BTHWC = jnp.concatenate([jnp.repeat(x_BTHWC[:, :1], st - 1, axis=1), x_BTHWC], axis=1)
  B, T, H, W, C = x_BTHWC.shape
  x = x_BTHWC.reshape(B, T // st, st, H // sh, sh, W // sw, sw, C)
  return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, T // st, H // sh, W // sw, st * sh * sw * C)


def depth_to_space(x_BTHWC: jax.Array, shrink: tuple[int, int, int], first: bool) -> jax.Array:
  """The inverse of `space_to_depth`."""
  st, sh, sw = shrink
  B, T, H, W, C = x_BTHWC.shape
  channels = C // (st * sh * sw)
  x = x_BTHWC.reshape(B, T, H, W, st, sh, sw, channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
  x = x.reshape(B, T * st, H * sh, W * sw, channels)
  return x[:, st - 1 :] if first else x


def spread(values_C: nnx.Param) -> jax.Array:
  """One value a channel, shaped to meet (B, T, H, W, C)."""
  return values_C[...].reshape(1, 1, 1, 1, -1)


class CausalBlock(nnx.Module):
  """x + a residual: each channel's 3x3 within the frame, then a feed-forward over the last three frames at each place.

  Filters of single channels and a wide feed-forward are after Liu et al. 2022, "A ConvNet for the 2020s", section 2.
  """

  def __init__(self, width: int, rngs: nnx.Rngs):
    start_9C = jnp.zeros((9, width), jnp.float32).at[4].set(1.0)  # the centre: a block starts as it is without it
    self.taps = nnx.Param(start_9C + 0.1 * jax.random.normal(rngs.params(), (9, width), jnp.float32))
    self.mix_time = layers.Dense(TIME_TAPS * width, EXPANSION * width, rngs, bias=True)
    self.down = layers.Dense(EXPANSION * width, width, rngs, bias=True, scale=0.0)

  def __call__(self, x_BTHWC: jax.Array, past_BPHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The block's output, and the frames that the next chunk needs (P = TIME_TAPS - 1 frames)."""
    T = x_BTHWC.shape[1]
    mixed = neighbours(layers.rms_norm(x_BTHWC), self.taps[...].astype(x_BTHWC.dtype))
    seen = jnp.concatenate([past_BPHWC, mixed], axis=1)
    recent = jnp.concatenate([seen[:, tap : tap + T] for tap in range(TIME_TAPS)], -1)
    return x_BTHWC + self.down(jax.nn.silu(self.mix_time(recent))), seen[:, T:]


def neighbours(x_BTHWC: jax.Array, taps_9C: jax.Array) -> jax.Array:
  """Each channel's own 3x3 filter within each frame, zeros outside; taps row by row.

  Written as sums of shifted frames, which every backend fuses; XLA's grouped convolution is slow on the CPU.
  """
  H, W = x_BTHWC.shape[2:4]
  padded = jnp.pad(x_BTHWC, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
  shifted = [padded[:, :, row : row + H, column : column + W] for row in range(3) for column in range(3)]
  return sum(frame * tap_C.reshape(1, 1, 1, 1, -1) for frame, tap_C in zip(shifted, taps_9C, strict=True))


def run_blocks(
  blocks: CausalBlock, x_BTHWC: jax.Array, past: jax.Array | None, depth: int, remat: str
) -> tuple[jax.Array, jax.Array]:
  """Runs stacked blocks; `past` (None before a clip begins) and the returned past are (depth, B, P, H, W, C)."""
  if past is None:
    B, _, H, W, C = x_BTHWC.shape
    past = jnp.zeros((depth, B, TIME_TAPS - 1, H, W, C), x_BTHWC.dtype)
  call = lambda block, carry, seen: block(carry, seen)
  run = call if remat == "none" else jax.checkpoint(call, prevent_cse=False)
  step = lambda carry, block_past: run(block_past[0], carry, block_past[1])
  return jax.lax.scan(step, x_BTHWC, (blocks, past), unroll=platform() == "cpu")


class EncoderStage(nnx.Module):
  def __init__(self, stage: Stage, channels_in: int, remat: str, rngs: nnx.Rngs):
    self.stage, self.remat = stage, remat
    self.stage_in = layers.Dense(math.prod(stage.shrink) * channels_in, stage.width, rngs, bias=True)
    self.blocks = layers.make_stack(lambda r: CausalBlock(stage.width, r), stage.depth, rngs)

  def __call__(self, x: jax.Array, past: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    x = self.stage_in(space_to_depth(x, self.stage.shrink, first=past is None))
    return run_blocks(self.blocks, x, past, self.stage.depth, self.remat)


class DecoderStage(nnx.Module):
  def __init__(self, stage: Stage, channels_out: int, remat: str, rngs: nnx.Rngs):
    self.stage, self.remat = stage, remat
    self.blocks = layers.make_stack(lambda r: CausalBlock(stage.width, r), stage.depth, rngs)
    self.stage_out = layers.Dense(stage.width, math.prod(stage.shrink) * channels_out, rngs, bias=True, scale=0.02)

  def __call__(self, x: jax.Array, past: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    y, new_past = run_blocks(self.blocks, x, past, self.stage.depth, self.remat)
    return depth_to_space(self.stage_out(layers.rms_norm(y)), self.stage.shrink, first=past is None), new_past


class Autoencoder(nnx.Module):
  """Frames <-> latents. `latent_mean` and `latent_std` are measured after training and scale latents to unit
  size.
  """

  def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
    self.config = config
    widths = [stage.width for stage in config.stages]
    encoder = zip(config.stages, [3, *widths[:-1]], strict=True)
    self.encoder = nnx.List(EncoderStage(s, w, config.remat, rngs) for s, w in encoder)
    self.latent_out = layers.Dense(widths[-1], 2 * config.channels, rngs, bias=True, scale=0.0)
    self.latent_in = layers.Dense(config.channels, widths[-1], rngs, bias=True)
    decoder = zip(reversed(config.stages), [*reversed(widths[:-1]), 3], strict=True)
    self.decoder = nnx.List(DecoderStage(s, w, config.remat, rngs) for s, w in decoder)
    # A linear code beside the networks: they start from the best linear autoencoder and learn what it lacks.
    block = 3 * math.prod(config.compression)
    self.linear_in = layers.Dense(block, config.channels, rngs)
    self.linear_out = layers.Dense(config.channels, block, rngs)
    self.latent_mean = nnx.Param(jnp.zeros((config.channels,), jnp.float32))
    self.latent_std = nnx.Param(jnp.ones((config.channels,), jnp.float32))

  def posterior(self, frames_BTHWC: jax.Array, past: Any = None) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Mean and log variance of the raw latents (B, t, h, w, C), and what the next chunk needs.

    Args:
      frames_BTHWC: the first chunk has 1 + k * time frames, later chunks k * time; sides divide by the compression.
      past: what the chunk before returned; None for the first.
    """
    x = constrain(frames_BTHWC, "batch", None, None, None, None)
    linear = self.linear_in(space_to_depth(x, self.config.compression, first=past is None))
    x, pasts = x.astype(self.config.dtype), []
    for stage, seen in zip(self.encoder, past or [None] * len(self.encoder), strict=True):
      x, seen = stage(x, seen)
      pasts.append(seen)
    mean, log_variance = jnp.split(self.latent_out(layers.rms_norm(x.astype(jnp.float32))), 2, -1)
    return linear + mean, jnp.clip(log_variance + FIRST_LOG_VARIANCE, -20.0, 10.0), pasts

  def reconstruct(self, raw_BthwC: jax.Array, past: Any = None) -> tuple[jax.Array, list[jax.Array]]:
    """Raw latents -> frames (B, T, H, W, 3), about [-1, 1], and what the next chunk needs."""
    x = self.latent_in(raw_BthwC).astype(self.config.dtype)
    linear = depth_to_space(self.linear_out(raw_BthwC), self.config.compression, first=past is None)
    pasts = []
    for stage, seen in zip(self.decoder, past or [None] * len(self.decoder), strict=True):
      x, seen = stage(x, seen)
      pasts.append(seen)
    return constrain(linear + x.astype(jnp.float32), "batch", None, None, None, None), pasts

  def encode(self, frames_BTHWC: jax.Array, past: Any = None) -> tuple[jax.Array, list[jax.Array]]:
    """Frames -> normalised latents (the posterior's mean); chunks as in `posterior`."""
    mean, _, past = self.posterior(frames_BTHWC, past)
    return (mean - spread(self.latent_mean)) / spread(self.latent_std), past

  def decode(self, latent_BthwC: jax.Array, past: Any = None) -> tuple[jax.Array, list[jax.Array]]:
    """Normalised latents -> frames, the inverse of `encode`."""
    return self.reconstruct(latent_BthwC * spread(self.latent_std) + spread(self.latent_mean), past)


@overload
def pad_clip(frames_BTHWC: np.ndarray, compression: tuple[int, int, int]) -> np.ndarray: ...
@overload
def pad_clip(frames_BTHWC: jax.Array, compression: tuple[int, int, int]) -> jax.Array: ...
def pad_clip(frames_BTHWC: np.ndarray | jax.Array, compression: tuple[int, int, int]) -> np.ndarray | jax.Array:
  """Repeats the last frame, row and column until the compression divides the clip (1 + k * time frames)."""
  B, T, H, W, _ = frames_BTHWC.shape
  t, h, w = Grid(compression, (1, 1, 1)).latent_shape(T, H, W)
  return pad_edge(frames_BTHWC, (B, 1 + (t - 1) * compression[0], h * compression[1], w * compression[2]))


def linear_start(frames_BTHWC: np.ndarray, config: AutoencoderConfig) -> tuple[np.ndarray, np.ndarray]:
  """The best linear code of blocks of pixels: principal components, the largest first, each scaled to unit variance.

  A plain background has most of the variance of a clip and edges have little. Channels of unit variance that are
  not correlated keep edges as far above a noise level as the background.

  Args:
    frames_BTHWC: clips to fit, float32; at least as many blocks as a block has values is good.

  Returns:
    Kernels of `linear_in` (block values, channels) and `linear_out` (channels, block values), float32.
  """
  blocks = np.asarray(space_to_depth(jnp.asarray(frames_BTHWC), config.compression, first=True))
  blocks = blocks.reshape(-1, blocks.shape[-1]).astype(np.float64)
  values, directions = np.linalg.eigh(blocks.T @ blocks / len(blocks))
  code, values = directions[:, : -config.channels - 1 : -1], values[: -config.channels - 1 : -1]
  scale = np.sqrt(np.maximum(values, max(LEAST_VARIANCE * values[0], 1e-12)))
  return (code / scale).astype(np.float32), (code * scale).T.astype(np.float32)
