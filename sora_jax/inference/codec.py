"""A trained autoencoder, ready for use: clips of any size and duration in and out of latents, in bounded memory."""

import functools
import json
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from sora_jax import sharding
from sora_jax.checkpoints import checkpoint
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, pad_clip
from sora_jax.patches import Grid, pad_edge

CHUNK = 8  # latent frames coded at a time
GROUP, GROUP_PIXELS = 16, 2**18  # most clips coded at a time, and most pixels of them (of all frames)


@functools.lru_cache(maxsize=8)  # two codecs of one config share what is compiled
def _programs(config: AutoencoderConfig) -> tuple[Callable, Callable]:
  graph, _ = abstract(Autoencoder, config)
  encode = jax.jit(lambda params, frames, past: nnx.merge(graph, params).encode(frames, past))
  decode = jax.jit(lambda params, latent, past: nnx.merge(graph, params).decode(latent, past))
  return encode, decode


class Codec:
  """Encodes and decodes whole clips in chunks of latent frames; equal to the whole at once to float32 rounding."""

  def __init__(self, config: AutoencoderConfig, params: Any):
    self.config = config
    self.params = params
    self.origin: tuple[str, Any] | None = None  # the folder that the weights are from, and their config section
    self.step: int | None = None  # of the checkpoint there
    self._here = sharding.make_mesh(devices=jax.local_devices()[:1])
    self._encode, self._decode = _programs(config)

  @classmethod
  def load(cls, folder: str | os.PathLike, section: Any) -> "Codec":
    """The EMA weights of the autoencoder trained in `folder`, whose config section is `section`."""
    config = AutoencoderConfig.of(section)
    _, like = abstract(Autoencoder, config)
    on_host = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like)
    settings = {"autoencoder": {"channels": section.channels, "stages": json.loads(json.dumps(section.stages))}}
    params, step = checkpoint.load_params(folder, on_host, config=settings)
    codec = cls(config, jax.device_put(params))
    codec.origin, codec.step = (os.fspath(folder), section), step
    return codec

  def __reduce__(self) -> tuple:
    """Another process loads the weights from where they are."""
    if self.origin is None:
      raise TypeError("only a codec that was loaded can be sent to another process")
    return Codec.load, self.origin

  def encode(self, frames_BTHWC: np.ndarray) -> np.ndarray:
    """Clips of one size (B, T, H, W, 3) in [-1, 1] -> normalised latents (B, t, h, w, C), float32."""
    frames = np.asarray(pad_clip(np.asarray(frames_BTHWC, np.float32), self.config.compression))
    step = CHUNK * self.config.compression[0]
    parts = [self._in_chunks(self._encode, group, step) for group in groups(frames, frames.shape[1:4])]
    return np.concatenate(parts)[: len(frames)]

  def decode(self, latent_BthwC: np.ndarray, shape_THW: tuple[int, int, int]) -> np.ndarray:
    """The inverse: latents -> clips (B, T, H, W, 3), float32 in [-1, 1], cropped to `shape_THW`."""
    T, H, W = shape_THW
    latents = np.asarray(latent_BthwC, np.float32)
    parts = [self._in_chunks(self._decode, group, CHUNK) for group in groups(latents, shape_THW)]
    return np.clip(np.concatenate(parts)[: len(latents), :T, :H, :W], -1.0, 1.0)

  def _in_chunks(self, code: Any, x_BTHWC: np.ndarray, step: int) -> np.ndarray:
    """Runs `code` on the first frame and `step` more, then on `step` at a time; each continues the one before."""
    starts = [0, *range(1 + step, x_BTHWC.shape[1], step)]
    parts, past = [], None
    with jax.set_mesh(self._here):  # hosts code clips of their own, whatever they train together
      for start, end in zip(starts, [*starts[1:], x_BTHWC.shape[1]], strict=True):
        part, past = code(self.params, x_BTHWC[:, start:end], past)
        parts.append(np.asarray(part))
    return np.concatenate(parts, 1)

  def grid(self, patch: tuple[int, int, int]) -> Grid:
    """How this autoencoder and a patch turn pixels into tokens."""
    time, rows, columns = patch
    return Grid(self.config.compression, (time, rows, columns))


def groups(clips_B: np.ndarray, shape_THW: tuple[int, int, int]) -> list[np.ndarray]:
  """Clips (or their latents) in groups of one number, the last filled up with copies of the last clip.

  The number depends on the size alone, so that any number of clips of one size runs the same compiled program.
  """
  size = min(max(GROUP_PIXELS // math.prod(shape_THW), 1), GROUP)
  whole = -(-len(clips_B) // size) * size
  return np.split(pad_edge(clips_B, (whole,)), whole // size)
