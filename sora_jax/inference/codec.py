"""A trained autoencoder, ready for use: clips of any size and duration in and out of latents, in bounded memory."""

import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from sora_jax import sharding
from sora_jax.checkpoints import checkpoint
from sora_jax.inference.tiles import Layout, layout
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, pad_clip
from sora_jax.patches import Grid, pad_edge

GROUP, GROUP_PIXELS = 16, 2**18  # most clips coded at a time, and most pixels of them (of all frames)
TILE_PIXELS = 33 * 256 * 256  # as `sample.tile_pixels` of configs/dit.py, for a codec without the config of a whole run
STATE_BYTES = 2**32  # what all tiles keep for their next chunk; more of it waits in the host's memory


@functools.lru_cache(maxsize=8)  # two codecs of one config share what is compiled
def programs(config: AutoencoderConfig) -> tuple[Any, Any]:
  """Jitted `encode` and `decode` of an autoencoder: (params, frames or latents, past) -> (the other, past)."""
  graph, _ = abstract(Autoencoder, config)
  encode = jax.jit(lambda params, frames, past: nnx.merge(graph, params).encode(frames, past))
  decode = jax.jit(lambda params, latent, past: nnx.merge(graph, params).decode(latent, past))
  return encode, decode


class Codec:
  """Encodes and decodes clips in chunks of latent frames and tiles of large frames.

  It equals the whole at once to the rounding of what the autoencoder computes in: it is causal in time, and sees no
  further than a halo in space.
  """

  def __init__(self, config: AutoencoderConfig, params: Any, tile_pixels: int = TILE_PIXELS):
    """`tile_pixels`: most pixels, over all frames, of one clip that are coded at once; see `tiles.layout`."""
    self.config = config
    self.params = params
    self.tile_pixels = tile_pixels
    self.origin: tuple[str, Any] | None = None  # the folder that the weights are from, and their config section
    self.step: int | None = None  # of the checkpoint there
    self._here = sharding.make_mesh(devices=jax.local_devices()[:1])
    self._encode, self._decode = programs(config)

  @classmethod
  def load(cls, folder: str | os.PathLike, section: Any, tile_pixels: int = TILE_PIXELS) -> "Codec":
    """The EMA weights of the autoencoder trained in `folder`, whose config section is `section`."""
    config = AutoencoderConfig.of(section)
    _, like = abstract(Autoencoder, config)
    on_host = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like)
    settings = {"autoencoder": {"channels": section.channels, "stages": json.loads(json.dumps(section.stages))}}
    params, step = checkpoint.load_params(folder, on_host, config=settings)
    codec = cls(config, jax.device_put(params), tile_pixels)
    codec.origin, codec.step = (os.fspath(folder), section), step
    return codec

  def __reduce__(self) -> tuple:
    """Another process loads the weights from where they are."""
    if self.origin is None:
      raise TypeError("only a codec that was loaded can be sent to another process")
    return Codec.load, (*self.origin, self.tile_pixels)

  def encode(self, frames_BTHWC: np.ndarray) -> np.ndarray:
    """Clips of one size (B, T, H, W, 3) in [-1, 1] -> normalised latents (B, t, h, w, C), float32."""
    frames = np.asarray(pad_clip(np.asarray(frames_BTHWC, np.float32), self.config.compression))
    parts = [np.concatenate(list(self._encoded(group)), 1) for group in self._groups(frames, frames.shape[1:4])]
    return np.concatenate(parts)[: len(frames)]

  def decode(self, latent_BthwC: np.ndarray, shape_THW: tuple[int, int, int]) -> np.ndarray:
    """The inverse: latents -> clips (B, T, H, W, 3), float32 in [-1, 1], cropped to `shape_THW`."""
    latents = np.asarray(latent_BthwC, np.float32)
    frames = np.empty((len(latents), *shape_THW, 3), np.float32)
    first = 0
    for group in self._groups(latents, shape_THW):
      clips, begun = frames[first : first + len(group)], 0
      for piece in self._decoded(group, shape_THW):
        clips[:, begun : begun + piece.shape[1]] = piece[: len(clips)]
        begun += piece.shape[1]
      first += len(group)
    return frames

  def encode_loop(self, frames_BTHWC: np.ndarray) -> np.ndarray:
    """One turn of loops (B, T, H, W, 3) -> latents (B, T / time, h, w, C) as they are in every turn after the first.

    Two turns are encoded after the first frame, and the second is kept: a causal encoder has seen a turn before it, as
    it would have in the turns to come. T is a multiple of the compression in time.
    """
    turn = frames_BTHWC.shape[1]
    latents = self.encode(frames_BTHWC[:, np.arange(1 + 2 * turn) % turn])
    return latents[:, -(turn // self.config.compression[0]) :]

  def decode_loop(self, latent_BthwC: np.ndarray, shape_THW: tuple[int, int, int]) -> np.ndarray:
    """The inverse: one turn of loops (B, T, H, W, 3) of `shape_THW`; the second of two that are decoded."""
    frames, height, width = shape_THW
    turns = np.concatenate([latent_BthwC[:, -1:], latent_BthwC, latent_BthwC], 1)
    # The last latent frame ends with the loop's first frame.
    return np.roll(self.decode(turns, (1 + 2 * frames, height, width))[:, -frames:], 1, axis=1)

  def stream(self, latent_thwC: np.ndarray, shape_THW: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """One clip as `decode` gives it, in pieces (t, H, W, 3) as they are made.

    Memory does not grow with the duration.

    Raises:
      ValueError: latents (t, h, w, C) of a clip that is not of `shape_THW`; when the first piece is asked for.
    """
    for piece in self._decoded(np.asarray(latent_thwC, np.float32)[None], shape_THW):
      yield piece[0]

  def _groups(self, clips_B: np.ndarray, shape_THW: Sequence[int]) -> list[np.ndarray]:
    return groups(clips_B, shape_THW, min(GROUP_PIXELS, self.tile_pixels))

  def layout(self, latent_thw: Sequence[int]) -> Layout:
    """The chunks and tiles in which clips of so many latent frames, rows and columns are coded."""
    return layout(latent_thw, self.config.compression, self.config.halo, self.tile_pixels)

  def _encoded(self, frames_BTHWC: np.ndarray) -> Iterator[np.ndarray]:
    """Latents (B, t, h, w, C) of clips that the compression divides, chunk by chunk."""
    compression = self.config.compression
    shape = self.grid((1, 1, 1)).latent_shape(*frames_BTHWC.shape[1:4])
    laid = self.layout(shape)
    code = _InTiles(functools.partial(self._encode, self.params), laid, compression[1:], (1, 1))
    ends = [0, *(1 + (end - 1) * compression[0] for _, end in laid.chunks(shape[0]))]
    for start, end in itertools.pairwise(ends):
      with jax.set_mesh(self._here):  # hosts code clips of their own, whatever they train together
        part = code(frames_BTHWC[:, start:end])
      yield part

  def _decoded(self, latent_BthwC: np.ndarray, shape_THW: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Frames (B, t, H, W, 3) in [-1, 1], chunk by chunk, cropped to `shape_THW`."""
    shape = latent_BthwC.shape[1:4]
    if shape != self.grid((1, 1, 1)).latent_shape(*shape_THW):
      raise ValueError(f"latents of {shape} frames, rows and columns are no clip of {tuple(shape_THW)}")
    left, H, W = shape_THW
    laid = self.layout(shape)
    code = _InTiles(functools.partial(self._decode, self.params), laid, (1, 1), self.config.compression[1:])
    for start, end in laid.chunks(shape[0]):
      with jax.set_mesh(self._here):  # not while the caller has the piece
        part = code(latent_BthwC[:, start:end])
      piece = np.clip(part[:, :left, :H, :W], -1.0, 1.0)
      left -= piece.shape[1]
      yield piece

  def grid(self, patch: tuple[int, int, int]) -> Grid:
    """How this autoencoder and a patch turn pixels into tokens."""
    time, rows, columns = patch
    return Grid(self.config.compression, (time, rows, columns))


class _InTiles:
  """Codes the chunks of clips one after another, each tile by tile; every tile continues what it kept of its last."""

  def __init__(self, code: Callable, laid: Layout, scale_in: Sequence[int], scale_out: Sequence[int]):
    """Scales: pixels of a latent position along (rows, columns), or 1, on either side of `code`."""
    self.code, self.tiles = code, laid.tiles
    self.scale_in, self.scale_out = scale_in, scale_out
    self.pasts: list[Any] = [None] * len(self.tiles)

  def __call__(self, x_BTHWC: np.ndarray) -> np.ndarray:
    if len(self.tiles) == 1:
      part, self.pasts[0] = self.code(x_BTHWC, self.pasts[0])
      return np.asarray(part)
    (high, wide), (tall, across) = self.scale_in, self.scale_out
    h, w = x_BTHWC.shape[2] // high, x_BTHWC.shape[3] // wide
    whole: np.ndarray | None = None
    for number, (row, column) in enumerate(self.tiles):
      part, past = self.code(x_BTHWC[:, :, row.coded(high), column.coded(wide)], self.pasts[number])
      size = sum(leaf.nbytes for leaf in jax.tree.leaves(past)) * len(self.tiles)
      self.pasts[number] = past if size <= STATE_BYTES else jax.device_get(past)
      if whole is None:
        whole = np.empty((*part.shape[:2], h * tall, w * across, part.shape[-1]), np.float32)
      whole[:, :, row.kept(tall), column.kept(across)] = np.asarray(part)[:, :, row.crop(tall), column.crop(across)]
    assert whole is not None  # there is a tile
    return whole


def groups(clips_B: np.ndarray, shape_THW: Sequence[int], most_pixels: int = GROUP_PIXELS) -> list[np.ndarray]:
  """Clips (or their latents) in groups of one number, the last filled up with copies of the last clip.

  The number depends on the size alone, so that any number of clips of one size runs the same compiled program.
  """
  size = group_size(shape_THW, most_pixels)
  whole = -(-len(clips_B) // size) * size
  return np.split(pad_edge(clips_B, (whole,)), whole // size)


def group_size(shape_THW: Sequence[int], most_pixels: int = GROUP_PIXELS) -> int:
  """Clips of a group."""
  return min(max(most_pixels // math.prod(shape_THW), 1), GROUP)
