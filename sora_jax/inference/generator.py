"""Prompts -> clips: any size, duration and rate, many prompts packed in one batch, the same again from a sidecar.

Shape letters: B rows, L tokens, S segments, C values a token.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from sora_jax import sharding
from sora_jax.checkpoints import checkpoint, pretrained
from sora_jax.clips import Clip, contact_sheet, to_uint8
from sora_jax.data.segments import Piece, with_conditions
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.diffusion import samplers
from sora_jax.errors import InputError
from sora_jax.inference.codec import TILE_PIXELS, Codec
from sora_jax.inference.conditions import Condition, Edit, token_mask
from sora_jax.inference.program import Plan, program
from sora_jax.inference.reach import Reach, within
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, stack
from sora_jax.packing.rows import Rows, pack_rows
from sora_jax.patches import Grid, pad_edge, patchify, unpatchify
from sora_jax.sharding import param_shardings

GROUP_TOKENS = 2048  # sampled at a time by the devices that share a row, or one row where that is longer
MAX_SIDE = 8192  # pixels
MAX_FRAMES = 7200  # two minutes at 60 frames a second


@dataclasses.dataclass(frozen=True)
class Request:
  """One clip to make.

  Attributes:
    conditions: frames that the clip shows at their times.
    edit: a clip to change; None makes a new one.
    loop: after its last frame comes its first again.
  """

  prompt: str
  width: int
  height: int
  frames: int
  fps: float
  seed: int
  conditions: tuple[Condition, ...] = ()
  edit: Edit | None = None
  loop: bool = False

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
    for condition in self.conditions:
      condition.check(self.shape_THW, self.fps)
    if self.edit is not None:
      self.edit.check(self.shape_THW)
      if self.loop:
        raise InputError("a clip to change can't be made a loop as well: change it first")

  @property
  def shape_THW(self) -> tuple[int, int, int]:
    return self.frames, self.height, self.width


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the sampler runs. Other steps or another method compile another program; guidance and interval do not.

  Attributes:
    guidance: how strongly the prompt steers; 1 is not at all, and saves half of the work.
    condition_guidance: the same for a clip that is given frames: these tell most of it, and strong guidance overshoots.
    interval: the noise levels (low, high) where guidance acts.
    first_frame: the first frame of a clip without conditions is made as an image, then animated.
    history_level: noise level at which a window of a long clip is given the frames made before it.
  """

  steps: int
  method: str
  guidance: float
  condition_guidance: float
  interval: tuple[float, float]
  first_frame: bool
  history_level: float

  def __post_init__(self):
    if self.steps < 1:
      raise InputError(f"{self.steps} sampling steps: at least 1 is needed")
    if self.method not in samplers.METHODS:
      known = " or ".join(samplers.METHODS)
      raise InputError(f"sampling method {self.method!r} is unknown: it is {known}")
    if not all(math.isfinite(value) for value in (self.guidance, self.condition_guidance, *self.interval)):
      both = f"{self.guidance}, {self.condition_guidance}"
      raise InputError(f"guidance {both} and its interval {self.interval} are not all finite numbers")
    if not 0 <= self.history_level <= 1:
      raise InputError(f"history_level={self.history_level} is a noise level, from 0 to 1")

  @classmethod
  def of(cls, config: Any) -> "Sampling":
    """Of a run's config."""
    section = config.sample
    rest = section.first_frame, section.history_level
    given = section.get("condition_guidance", section.guidance)  # configs of older runs have none
    return cls(section.steps, section.method, section.guidance, given, tuple(section.interval), *rest)


class Generator:
  """An autoencoder, a transformer and a tokenizer that were trained together."""

  def __init__(self, codec: Codec, model: DiTConfig, params: Any, tokenizer: Tokenizer, config: Any):
    """`params` may be None until the first sample; `config` is the run's."""
    self.codec, self.params, self.tokenizer, self.config = codec, params, tokenizer, config
    self.step: int | None = None  # of the checkpoint, when it came from one
    self.grid: Grid = codec.grid(config.model.patch)
    self.channels = model.channels
    self._digest: tuple[Any, Any, str] | None = None
    self._reaches: dict[int, Reach] = {}  # by the duration of a clip in frames
    self._run = program(model, config.diffusion.prediction, config.diffusion.base_tokens)

  @classmethod
  def load(cls, workdir: str | os.PathLike, step: int | None = None) -> "Generator":
    """The EMA weights of a `sora train` workdir.

    Raises:
      CheckpointError: the folder holds no finished step of a transformer.
    """
    folder = epath.Path(pretrained.located(workdir))
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
    given = [self._pieces(request) for request in requests]
    if sampling.first_frame:
      new = lambda request: request.frames > 1 and not (request.conditions or request.edit)
      later = [number for number, request in enumerate(requests) if new(request)]
      images = [dataclasses.replace(requests[number], frames=1, loop=False) for number in later]
      for number, latent in zip(later, self._sample_latents(images, [[]] * len(images), sampling), strict=True):
        given[number] = [Piece(latent, 0.0)]
    latents = self._sample_latents(requests, given, sampling)
    return self._decode(requests, latents)

  def _pieces(self, request: Request) -> list[Piece]:
    """The latents of a request's conditions."""
    found = [condition.pieces(self.codec, self.grid, request.fps) for condition in request.conditions]
    return [piece for pieces in found for piece in pieces]

  def _sample_latents(
    self, requests: Sequence[Request], given: Sequence[Sequence[Piece]], sampling: Sampling
  ) -> list[np.ndarray]:
    """The latent (t, h, w, C) of every request, made from the conditions given; all packed together."""
    if not requests:
      return []
    segments = [self._segment(*each, number) for number, each in enumerate(zip(requests, given, strict=True))]
    row = self._row(segments)
    lengths = [len(segment.tokens_NC) for segment in segments]
    rows = pack_rows(lengths, [len(segment.text_M) for segment in segments], row)
    batch = self._batch(rows, segments, row)
    tokens_BLC = self._in_groups(batch, self._plan(requests, rows, batch, lengths, sampling), sampling)
    found: dict[int, np.ndarray] = {}
    for number, clips in enumerate(rows):
      start = 0
      for clip in clips:
        tokens_NC = tokens_BLC[number, start : start + len(self._positions(requests[clip]))]
        found[clip] = np.asarray(unpatchify(tokens_NC, self._latent_shape(requests[clip]), self.grid.patch))
        start += lengths[clip]
    return [found[number] for number in range(len(requests))]

  def _plan(
    self, requests: Sequence[Request], rows: Rows, batch: PackedBatch, lengths: Sequence[int], sampling: Sampling
  ) -> Plan:
    """How each clip of a batch is sampled; `lengths` are the tokens of its segments."""
    strength = [1.0 if request.edit is None else request.edit.strength for request in requests]
    held_BL = np.zeros(batch.segments_BL.shape, bool)
    for number, clips in enumerate(rows):
      start = 0
      for clip in clips:
        edit = requests[clip].edit
        if edit is not None and edit.mask_THW is not None:
          held_N = ~token_mask(edit.mask_THW, self.grid, every=False)
          held_BL[number, start : start + len(held_N)] = held_N
        start += lengths[clip]
    spread = lambda values, kind=np.float32: np.array(values, kind)[batch.clip_index_BS]
    seeds = spread([request.seed for request in requests], np.int32)
    guidance = [sampling.condition_guidance if request.conditions else sampling.guidance for request in requests]
    return Plan(seeds, spread(strength), held_BL, spread(guidance))

  def _in_groups(self, batch: PackedBatch, plan: Plan, sampling: Sampling) -> np.ndarray:
    """Samples some rows at a time on all devices, the last ones filled up with copies of the last.

    How many depends on the length of a row and the devices alone, so any number of clips runs one compiled program.
    """
    interval_2, parts = np.array(sampling.interval, np.float32), []
    with _on_all_devices():
      size = max(GROUP_TOKENS // batch.segments_BL.shape[1], 1) * sharding.ways("batch")
      for start in range(0, len(batch.segments_BL), size):
        fill = lambda rows, start=start: pad_edge(rows[start : start + size], (size,))
        rows = jax.tree.map(fill, (batch, plan))
        parts.append(np.asarray(self._run(self.params, *rows, interval_2, sampling.steps, sampling.method)))
    return np.concatenate(parts)[: len(batch.segments_BL)]

  def _latent_shape(self, request: Request) -> tuple[int, int, int]:
    return self.grid.latent_shape(*request.shape_THW, request.loop)

  def _positions(self, request: Request) -> np.ndarray:
    """Of the tokens of a clip's grid, (N, 3)."""
    return self.grid.positions(*request.shape_THW, request.fps, request.loop)

  def _check_loop(self, request: Request) -> None:
    """
    Raises:
      InputError: a loop that latent frames don't fill, or tokens of several of them.
    """
    time = self.grid.compression[0]
    if request.loop and self.grid.patch[0] > 1:
      raise InputError(f"a loop needs a model whose model.patch begins with 1, and it is {self.grid.patch}")
    if request.loop and request.frames % time:
      near = max(round(request.frames / time), 1) * time
      raise InputError(f"a loop has a multiple of {time} frames, not {request.frames}: ask for {near}")

  def _segment(self, request: Request, pieces: Sequence[Piece], number: int) -> Segment:
    """A clip to make as a segment: the tokens of its grid, zeros or those of the clip to change, and its conditions."""
    self._check_loop(request)
    if request.edit is None:
      latent = np.zeros((*self._latent_shape(request), self.codec.config.channels), np.float32)
    else:
      latent = self.codec.encode(request.edit.frames_THWC[None])[0]
    positions_N3 = self._positions(request)
    segment = Segment(
      tokens_NC=np.asarray(patchify(latent, self.grid.patch)),
      positions_N3=positions_N3,
      condition_N=np.zeros(len(positions_N3), bool),
      level_N=np.zeros(len(positions_N3), np.float32),
      text_M=np.array(self.tokenizer.encode(request.prompt, self.config.train.row_text), np.int32),
      size_4=np.array([request.frames / request.fps, request.height, request.width, request.fps], np.float32),
      index=number,
      period=request.frames / request.fps if request.loop else 0.0,
    )
    if request.frames not in self._reaches:
      self._reaches[request.frames] = Reach.of(self.config.data, self.grid, request.frames)
    return within(with_conditions(segment, self.grid, pieces), self._reaches[request.frames])

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
    shapes = [(*request.shape_THW, request.loop) for request in requests]
    for shape in dict.fromkeys(shapes):
      numbers = [number for number, other in enumerate(shapes) if other == shape]
      frames_BTHWC = self._frames(np.stack([latents[number] for number in numbers]), shape)
      for number, frames_THWC in zip(numbers, frames_BTHWC, strict=True):
        request = requests[number]
        found[number] = Clip(frames_THWC, request.fps, request.prompt, f"sample-{number}-seed-{request.seed}")
    return [found[number] for number in range(len(requests))]

  def _frames(self, latent_BthwC: np.ndarray, shape: tuple[int, int, int, bool]) -> np.ndarray:
    """Clips (B, T, H, W, 3) of latents of one (frames, height, width, loop)."""
    frames, height, width, loop = shape
    decode = self.codec.decode_loop if loop else self.codec.decode
    return decode(latent_BthwC, (frames, height, width))


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
