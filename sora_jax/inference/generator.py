"""Prompts -> clips: any size, duration and rate, many prompts packed in one batch, the same again from a sidecar.

Shape letters: B rows, L tokens, S segments, C values a token.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from sora_jax import sharding
from sora_jax.checkpoints import checkpoint
from sora_jax.clips import Clip, contact_sheet, to_uint8
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.diffusion import noise, objective, samplers, schedules
from sora_jax.diffusion.denoiser import clean_from, guided
from sora_jax.errors import InputError
from sora_jax.inference.codec import TILE_PIXELS, Codec
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, per_token, stack
from sora_jax.packing.rows import Rows, pack_rows
from sora_jax.patches import Grid, pad_edge, patchify, unpatchify
from sora_jax.sharding import constrain, param_shardings

GROUP_TOKENS = 2048  # sampled at a time by the devices that share a row, or one row where that is longer
MAX_SIDE = 8192  # pixels
MAX_FRAMES = 7200  # two minutes at 60 frames a second


@dataclasses.dataclass(frozen=True)
class Request:
  """One clip to make.

  Attributes:
    condition_THWC: frames that the clip begins with, float32 in [-1, 1] at the clip's size; None for text alone.
  """

  prompt: str
  width: int
  height: int
  frames: int
  fps: float
  seed: int
  condition_THWC: np.ndarray | None = None

  def __post_init__(self):
    for name, value, most in (
      ("width", self.width, MAX_SIDE),
      ("height", self.height, MAX_SIDE),
      ("frames", self.frames, MAX_FRAMES),
    ):
      if not 1 <= value <= most:
        raise InputError(f"{name} {value} is not from 1 to {most}")
    if not 0 < self.fps <= 240:
      raise InputError(f"fps {self.fps} is not above 0 and at most 240")
    if not 0 <= self.seed < 2**31:
      raise InputError(f"seed {self.seed} is not from 0 to {2**31 - 1}")
    if self.condition_THWC is not None and self.condition_THWC.shape[1:3] != (self.height, self.width):
      raise InputError(
        f"the given frames have (height, width) {self.condition_THWC.shape[1:3]}, the clip {(self.height, self.width)}"
      )


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the sampler runs. Other steps or another method compile another program; guidance and interval do not.

  Attributes:
    guidance: how strongly the prompt steers; 1 is not at all, and saves half of the work.
    interval: the noise levels (low, high) where guidance acts.
    first_frame: a clip's first frame is made as an image, then the clip is animated from it.
  """

  steps: int
  method: str
  guidance: float
  interval: tuple[float, float]
  first_frame: bool

  def __post_init__(self):
    if not all(math.isfinite(value) for value in (self.guidance, *self.interval)):
      raise InputError(f"guidance {self.guidance} and its interval {self.interval} are not all finite numbers")

  @classmethod
  def of(cls, config: Any) -> "Sampling":
    """Of a run's config.

    Raises:
      InputError: `first_frame` with tokens that a first frame does not fill.
    """
    section = config.sample
    if section.first_frame and config.model.patch[0] > 1:
      raise InputError(
        f"sample.first_frame=True needs model.patch to begin with 1: it is {tuple(config.model.patch)}, and a first "
        "frame fills no token of it"
      )
    return cls(section.steps, section.method, section.guidance, tuple(section.interval), section.first_frame)


@functools.lru_cache(maxsize=8)  # generators of one config share what is compiled
def _program(model: DiTConfig, prediction: str, base_tokens: int) -> Callable:
  """The sampler, jitted: (params, batch, seeds (B, S), guidance and its interval (3,), steps, method) -> clean tokens
  (B, L, C).
  """
  graph, _ = abstract(DiT, model)

  @jax.jit  # so that it is traced and lowered once, however often a step calls it
  def network(params: Any, batch: PackedBatch, kept_BS: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return clean_from(nnx.merge(graph, params)(x_t, t, batch, kept_BS), x_t, t, prediction)

  def sample_tokens(
    params: Any, batch: PackedBatch, seeds_BS: jax.Array, guidance_3: jax.Array, steps: int, method: str
  ) -> jax.Array:
    shape_BS = batch.weight_BS.shape
    with_captions, without = (functools.partial(network, params, batch, jnp.full(shape_BS, on)) for on in (True, False))
    scale, low, high = guidance_3
    denoise = guided(with_captions, without, scale, (low, high))
    keys = noise.clip_keys(jax.random.key(0), seeds_BS, "noise")
    start = noise.token_noise(keys, batch.segments_BL, model.channels)
    shift_BS = schedules.size_shift(objective.segment_tokens(batch), base_tokens)
    shift_BL = per_token(shift_BS, batch.segments_BL, padding=1.0)
    given = batch.tokens_BLC, batch.condition_BL
    tokens_BLC = samplers.sample(denoise, start, *given, shift_BL, steps, method)
    return constrain(tokens_BLC, None, None, None)  # whole on every host

  return jax.jit(sample_tokens, static_argnums=(4, 5))


class Generator:
  """An autoencoder, a transformer and a tokenizer that were trained together."""

  def __init__(self, codec: Codec, model: DiTConfig, params: Any, tokenizer: Tokenizer, config: Any):
    """`params` may be None until the first sample; `config` is the run's."""
    self.codec, self.params, self.tokenizer, self.config = codec, params, tokenizer, config
    self.step: int | None = None  # of the checkpoint, when it came from one
    self.grid: Grid = codec.grid(config.model.patch)
    self.channels = model.channels
    self._digest: tuple[Any, Any, str] | None = None
    self._run = _program(model, config.diffusion.prediction, config.diffusion.base_tokens)

  @classmethod
  def load(cls, workdir: str | os.PathLike, step: int | None = None) -> "Generator":
    """The EMA weights of a `sora train` workdir.

    Raises:
      CheckpointError: the folder holds no finished step of a transformer.
    """
    folder = epath.Path(workdir)
    meta = checkpoint.load_meta(folder)
    if meta.get("task") != "dit":
      raise checkpoint.CheckpointError(
        f"{folder} holds a trained {meta.get('task')!r}, not a transformer to sample from"
      )
    config = ml_collections.ConfigDict(meta["config"], convert_dict=True)
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    tile_pixels = config.sample.get("tile_pixels", TILE_PIXELS)  # configs of older runs have none
    codec = Codec.load(folder / "autoencoder", config.autoencoder, tile_pixels)
    model = DiTConfig.of(config, tokenizer.vocabulary)
    _, like = abstract(DiT, model)
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    like = jax.tree.map(place, like, param_shardings(like, sharding.make_mesh()))
    params, found = checkpoint.load_params(folder, like, step)
    generator = cls(codec, model, params, tokenizer, config)
    generator.step = found
    return generator

  def digest(self) -> str:
    """The sha256 of the transformer's and the autoencoder's weights, computed once for the same weights."""
    weights = self.params, self.codec.params
    if self._digest is None or any(old is not new for old, new in zip(self._digest, weights, strict=False)):
      text = "".join(map(checkpoint.tree_digest, weights))
      self._digest = (*weights, hashlib.sha256(text.encode()).hexdigest())
    return self._digest[2]

  def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Clip]:
    """Makes every requested clip; a clip depends on its own request alone, not on what it is packed with.

    Raises:
      ValueError: bad sampling settings; the message names the setting.
    """
    given = [self._given_latent(request) for request in requests]
    if sampling.first_frame:
      later = [n for n, request in enumerate(requests) if request.frames > 1 and not len(given[n])]
      images = [dataclasses.replace(requests[n], frames=1) for n in later]
      for n, latent in zip(later, self._sample_latents(images, [given[n] for n in later], sampling), strict=True):
        given[n] = latent
    latents = self._sample_latents(requests, given, sampling)
    return self._decode(requests, latents)

  def _sample_latents(
    self, requests: Sequence[Request], given: Sequence[np.ndarray], sampling: Sampling
  ) -> list[np.ndarray]:
    """The latent (t, h, w, C) of every request, which begins with its given latent frames; all packed together."""
    if not requests:
      return []
    segments = [self._segment(*each, number) for number, each in enumerate(zip(requests, given, strict=True))]
    row = self._row(segments)
    lengths = [len(segment.tokens_NC) for segment in segments]
    rows = pack_rows(lengths, [len(segment.text_M) for segment in segments], row)
    batch = self._batch(rows, segments, row)
    seeds = np.array([request.seed for request in requests], np.int32)[batch.clip_index_BS]
    tokens_BLC = self._in_groups(batch, seeds, sampling)
    found: dict[int, np.ndarray] = {}
    for number, clips in enumerate(rows):
      start = 0
      for clip in clips:
        tokens_NC = tokens_BLC[number, start : start + lengths[clip]]
        found[clip] = np.asarray(unpatchify(tokens_NC, self._latent_shape(requests[clip]), self.grid.patch))
        start += lengths[clip]
    return [found[number] for number in range(len(requests))]

  def _in_groups(self, batch: PackedBatch, seeds_BS: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Samples some rows at a time on all devices, the last ones filled up with copies of the last.

    How many depends on the length of a row and the devices alone, so any number of clips runs one compiled program.
    """
    guidance_3, parts = np.array([sampling.guidance, *sampling.interval], np.float32), []
    with _on_all_devices():
      size = max(GROUP_TOKENS // batch.segments_BL.shape[1], 1) * sharding.ways("batch")
      for start in range(0, len(seeds_BS), size):
        fill = lambda rows, start=start: pad_edge(rows[start : start + size], (size,))
        rows = jax.tree.map(fill, (batch, seeds_BS))
        parts.append(np.asarray(self._run(self.params, *rows, guidance_3, sampling.steps, sampling.method)))
    return np.concatenate(parts)[: len(seeds_BS)]

  def _latent_shape(self, request: Request) -> tuple[int, int, int]:
    return self.grid.latent_shape(request.frames, request.height, request.width)

  def _given_latent(self, request: Request) -> np.ndarray:
    """The latent frames (t, h, w, C) that the given frames fill whole; t is 0 where none is given."""
    frames, height, width = self._latent_shape(request)
    if request.condition_THWC is None:
      return np.zeros((0, height, width, self.codec.config.channels), np.float32)
    whole = 1 + (len(request.condition_THWC) - 1) // self.grid.compression[0]
    return self.codec.encode(request.condition_THWC[None])[0][: min(whole, frames)]

  def _segment(self, request: Request, condition_thwC: np.ndarray, number: int) -> Segment:
    """A clip to make as a segment: tokens of its condition, and zeros that the sampler replaces.

    Raises:
      InputError: the condition ends inside a token.
    """
    self._check_condition(len(condition_thwC), request)
    shape = (request.frames, request.height, request.width)
    latent = np.zeros((*self._latent_shape(request), self.codec.config.channels), np.float32)
    latent[: len(condition_thwC)] = condition_thwC
    nt, nh, nw = self.grid.token_shape(*shape)
    clean = np.arange(nt) < -(-len(condition_thwC) // self.grid.patch[0])
    return Segment(
      tokens_NC=np.asarray(patchify(latent, self.grid.patch)),
      positions_N3=self.grid.positions(*shape, request.fps),
      condition_N=np.repeat(clean, nh * nw),
      text_M=np.array(self.tokenizer.encode(request.prompt, self.config.train.row_text), np.int32),
      size_4=np.array([request.frames / request.fps, request.height, request.width, request.fps], np.float32),
      index=number,
    )

  def _check_condition(self, latent_frames: int, request: Request) -> None:
    patch, time = self.grid.patch[0], self.grid.compression[0]
    if latent_frames % patch and latent_frames < self._latent_shape(request)[0]:
      whole = -(-latent_frames // patch) * patch
      raise InputError(
        f"the given frames end inside a token, which has {patch} latent frames (model.patch): give the first "
        f"{1 + (whole - 1) * time} frames of the clip, or use a model whose patch begins with 1"
      )

  def _row(self, segments: Sequence[Segment]) -> RowShape:
    """The row that training used, or for a longer clip the next multiple of 128 tokens."""
    train = self.config.train
    longest = max(len(segment.tokens_NC) for segment in segments)
    tokens = train.row_tokens if longest <= train.row_tokens else -(-longest // 128) * 128
    return RowShape(tokens, train.row_text, train.row_segments)

  def _batch(self, rows: Rows, segments: Sequence[Segment], row: RowShape) -> PackedBatch:
    return stack([pack_row([segments[clip] for clip in clips], row, self.channels) for clips in rows])

  def _decode(self, requests: Sequence[Request], latents: Sequence[np.ndarray]) -> list[Clip]:
    """The clips of the latents, those of one shape decoded together."""
    found: dict[int, Clip] = {}
    shapes = [(request.frames, request.height, request.width) for request in requests]
    for shape in dict.fromkeys(shapes):
      numbers = [number for number, other in enumerate(shapes) if other == shape]
      frames_BTHWC = self.codec.decode(np.stack([latents[number] for number in numbers]), shape)
      for number, frames_THWC in zip(numbers, frames_BTHWC, strict=True):
        request = requests[number]
        found[number] = Clip(frames_THWC, request.fps, request.prompt, f"sample-{number}-seed-{request.seed}")
    return [found[number] for number in range(len(requests))]


def _on_all_devices() -> contextlib.AbstractContextManager:
  """The mesh that a caller has set, such as a training's, or one over all devices, which share weights and rows."""
  return contextlib.nullcontext() if sharding.mesh_is_set() else jax.set_mesh(sharding.make_mesh())


def sheet(clips: Sequence[Clip], columns: int = 5) -> np.ndarray:
  """Clips as a picture, one a row, `columns` frames spread over each."""
  rows = []
  for clip in clips:
    shown = np.unique(np.linspace(0, len(clip.frames_THWC) - 1, columns).round().astype(int))
    rows.append([to_uint8(clip.frames_THWC[t]) for t in shown])
  return contact_sheet(rows)
