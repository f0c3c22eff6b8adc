"""Clips -> latent grids -> tokens, and back: shapes, coordinates, patches. Pure functions; no weights.

A causal autoencoder with compression (time, space) turns 1 + k * time frames into 1 + k latent frames. A patch
(frames, rows, columns) of latents is one token. Sizes that do not divide are padded by repeating the last value and
cropped back exactly.

Shape letters: T frames, H height, W width, C channels, N tokens; lower case t, h, w on the latent grid.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Grid(NamedTuple):
  """How pixels become tokens: autoencoder compression and patch, both as (time, rows, columns)."""

  compression: tuple[int, int, int]
  patch: tuple[int, int, int]

  def latent_shape(self, frames: int, height: int, width: int, loop: bool = False) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip of `frames` x `height` x `width` pixels.

    Of a loop each latent frame shows as many frames: it has no first one.
    """
    ct, ch, cw = self.compression
    first = 0 if loop else 1
    return first + math.ceil((frames - first) / ct), math.ceil(height / ch), math.ceil(width / cw)

  def token_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Tokens along time, rows and columns."""
    t, h, w = self.latent_shape(frames, height, width)
    pt, ph, pw = self.patch
    return math.ceil(t / pt), math.ceil(h / ph), math.ceil(w / pw)

  def tokens(self, frames: int, height: int, width: int) -> int:
    return math.prod(self.token_shape(frames, height, width))

  def fit(self, frames: int, height: int, width: int, most: int) -> tuple[int, int]:
    """The largest (height, width) of this aspect ratio, never above the clip's own, with at most `most` tokens.

    A clip with more token frames than `most` becomes one pixel, which is still too long: shorten it.
    """
    sized = lambda scale: (max(round(height * scale), 1), max(round(width * scale), 1))
    if self.tokens(frames, height, width) <= most:
      return height, width
    low, high = 0.0, 1.0
    for _ in range(40):
      middle = (low + high) / 2
      low, high = (middle, high) if self.tokens(frames, *sized(middle)) <= most else (low, middle)
    return sized(low)

  def positions(self, frames: int, height: int, width: int, fps: float, loop: bool = False) -> np.ndarray:
    """Centres of a clip's tokens in (seconds, pixels down, pixels right), float32 (N, 3), time slowest; read-only.

    Latent frame 0 shows frame 0; latent frame k > 0 shows the `time` frames that end with frame k * time. A loop, which
    has a multiple of `time` frames, has the latter alone: its last one ends with its first frame, which comes again.
    """
    positions_N3 = _positions(self, frames + loop, height, width, fps)
    return positions_N3[positions_N3[:, 0] > 0] if loop else positions_N3


@functools.lru_cache(maxsize=4096)  # a data set has few shapes and many clips
def _positions(grid: Grid, frames: int, height: int, width: int, fps: float) -> np.ndarray:
  ct, ch, cw = grid.compression
  nt, nh, nw = grid.token_shape(frames, height, width)
  pt, ph, pw = grid.patch
  latent_frames = np.arange(nt * pt)
  centre = np.where(latent_frames == 0, 0.0, latent_frames * ct - (ct - 1) / 2)
  seconds = centre.reshape(nt, pt).mean(1) / fps
  rows = (np.arange(nh) + 0.5) * ph * ch
  columns = (np.arange(nw) + 0.5) * pw * cw
  positions = np.stack(np.meshgrid(seconds, rows, columns, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
  positions.flags.writeable = False
  return positions


def pad_edge(x: np.ndarray | jax.Array, shape: tuple[int, ...]) -> np.ndarray | jax.Array:
  """Grows the leading dimensions of `x` to `shape` by repeating the last value along each."""
  widths = [(0, want - have) for want, have in zip(shape, x.shape, strict=False)]
  widths += [(0, 0)] * (x.ndim - len(shape))
  if not any(after for _, after in widths):
    return x
  return (jnp if isinstance(x, jax.Array) else np).pad(x, widths, mode="edge")


def patchify(latent_thwC: np.ndarray | jax.Array, patch: tuple[int, int, int]) -> np.ndarray | jax.Array:
  """(t, h, w, C) -> tokens (N, patch * C), time slowest; a side that the patch does not divide is padded."""
  whole = tuple(math.ceil(n / p) * p for n, p in zip(latent_thwC.shape, patch, strict=False))
  (pt, ph, pw), (t, h, w), channels = patch, whole, latent_thwC.shape[-1]
  x = pad_edge(latent_thwC, whole).reshape(t // pt, pt, h // ph, ph, w // pw, pw, channels)
  return x.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, pt * ph * pw * channels)


def unpatchify(
  tokens_NC: np.ndarray | jax.Array, shape: tuple[int, int, int], patch: tuple[int, int, int]
) -> np.ndarray | jax.Array:
  """The inverse of `patchify`: tokens (N, patch * C) -> latent (t, h, w, C) of `shape`, padding cropped away."""
  nt, nh, nw = (math.ceil(n / p) for n, p in zip(shape, patch, strict=True))
  pt, ph, pw = patch
  x = tokens_NC.reshape(nt, nh, nw, pt, ph, pw, -1).transpose(0, 3, 1, 4, 2, 5, 6)
  return x.reshape(nt * pt, nh * ph, nw * pw, -1)[: shape[0], : shape[1], : shape[2]]
