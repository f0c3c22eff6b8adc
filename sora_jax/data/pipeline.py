"""What training reads: crops for the autoencoder, packed rows for the transformers.

Every element is a pure function of (seed, index); `stream.py` makes batches of them.

Shape letters: B, T, H, W as in `clips.py`.
"""

import functools
import hashlib
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.data import conditions
from sora_jax.data.captions import Texts
from sora_jax.data.latents import LatentClip, LatentStore, digest
from sora_jax.data.segments import Piece, with_conditions
from sora_jax.data.sources import Source, shapes_of
from sora_jax.data.stream import Extent, Reading, Stream
from sora_jax.errors import InputError
from sora_jax.packing.balance import ClipFlops, order_rows
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row
from sora_jax.packing.rows import pack_rows
from sora_jax.packing.slots import Everyone, Weighted
from sora_jax.patches import Grid, pad_edge, patchify
from sora_jax.video.io import UnreadableFile

# What a draw is for; part of its key, so that one draw never depends on another.
CAPTION, CONDITION, CROP, ORDER, DROP, PROBE, ROOM, LEVEL = range(8)
CACHED_BYTES = 2**30  # of decoded frames kept for crops


class Crops:
  """Crops by number: (frames (T, H, W, 3) float32, the clip's number).

  Every pixel of the source is as likely as any other, so a long or large clip gives more crops than an image; a clip
  shorter than a crop freezes, and counts for the share of the crop's frames that it fills. Smaller ones repeat their
  edge.
  """

  def __init__(self, source: Source, crop_THW: tuple[int, int, int], seed: int, weights: Sequence[float] = ()):
    """`weights` are the shares of the crops for each component of a mixture."""
    self.source, self.crop_THW, self.seed = source, crop_THW, seed
    shapes = shapes_of(source)
    pixels = shapes.shape_N3.prod(1, dtype=np.float64)
    share = pixels * np.minimum(shapes.shape_N3[:, 0] / crop_THW[0], 1.0)
    if weights:
      component = shapes.component_N
      share *= (np.asarray(weights) / np.bincount(component, weights=share))[component]
    drawn = (pixels * share).sum() / share.sum()  # pixels of a clip, as often as it is drawn
    self.cached = max(int(CACHED_BYTES / (12 * drawn)), 1)
    self.share = np.cumsum(share)
    self.share /= self.share[-1]
    seen = [hashlib.sha256(np.ascontiguousarray(column).data).hexdigest() for column in shapes[:2]]
    self.extent = Extent(digest([source.media_fingerprint, *seen]), len(source), 1)

  def __call__(self, number: int) -> tuple[np.ndarray, np.int32]:
    rng = np.random.default_rng([self.seed, int(number), CROP])
    index = min(int(np.searchsorted(self.share, rng.random(), side="right")), len(self.source) - 1)
    return crop(_cached_frames(self)(index), self.crop_THW, rng), np.int32(index)

  def probe(self, count: int) -> np.ndarray:
    """`count` crops (count, T, H, W, 3) of clips from all over the source, which training does not see as such.

    Clips are drawn as they are for training, evenly: one from each of `count` equal shares of what can be drawn.
    """
    rng = np.random.default_rng([self.seed, PROBE])
    shares = (np.arange(count) + rng.random(count)) / count
    clips = np.minimum(np.searchsorted(self.share, shares, side="right"), len(self.source) - 1)
    return np.stack([crop(readable_frames(self.source, clip), self.crop_THW, rng) for clip in clips.tolist()])


@functools.lru_cache(maxsize=1)  # not in Crops, which is sent to workers: each has a cache of its own
def _cached_frames(crops: Crops) -> Callable[[int], np.ndarray]:
  return functools.lru_cache(maxsize=crops.cached)(functools.partial(readable_frames, crops.source))


def readable_frames(source: Source, index: int) -> np.ndarray:
  """The clip's frames, or those of the next clip that can be read: a bad file never stops a run.

  Raises:
    ValueError: no clip can be read.
  """
  for candidate in range(index, index + len(source)):
    try:
      return source[candidate % len(source)].frames_THWC
    except UnreadableFile as error:
      print(f"skipped clip {candidate % len(source)}: {error}", file=sys.stderr)
  raise InputError(f"not one of {len(source)} clips can be read")


def crop(frames_THWC: np.ndarray, shape_THW: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
  """A random crop of `shape_THW`, float32; what is too short or too small is padded by its last frame or edge."""
  starts = [
    int(rng.integers(0, max(have - want, 0) + 1)) for have, want in zip(frames_THWC.shape, shape_THW, strict=False)
  ]
  cut = frames_THWC[tuple(slice(start, start + want) for start, want in zip(starts, shape_THW, strict=True))]
  return np.asarray(pad_edge(cut, shape_THW), np.float32)


class Shares(NamedTuple):
  """How often a clip is seen in one way or another: shares from 0 to 1 (of the tokens: below 1)."""

  long_captions: float  # the long caption, not the short one
  conditions: conditions.Shares
  dropped_tokens: float = 0.0  # of each clip, another choice in each epoch (NaViT, section 2.3)


class Step(NamedTuple):
  """What a training step takes, and how it is shared out.

  Attributes:
    rows: over all ranks.
    ranks: data-parallel ranks that get equal work; a number of ranks that divides it does too.
    flops: what a clip costs.
  """

  rows: int
  ranks: int
  flops: ClipFlops


class PackedRows:
  """Rows of packed latents by number: row i belongs to epoch i // rows_per_epoch, and an epoch has each clip once.

  Which lengths share a row is found once; which clips of a length, and in which order the rows come, changes with the
  epoch. Each `step.rows` rows in turn are a step in which all ranks have the same work.
  """

  def __init__(
    self,
    store: LatentStore,
    texts: Texts,
    grid: Grid,
    row: RowShape,
    step: Step,
    seed: int,
    shares: Shares,
    weights: Sequence[float] = (),
  ):
    """
    Args:
      weights: shares of the tokens for each component of a mixture; none: each clip once in an epoch.

    Raises:
      ValueError: a clip does not fit in a row (the message names the numbers), there is no clip, or the rows of a step
        can't be shared out.
    """
    if not len(store):
      raise InputError("no clips to train on")
    if step.rows % step.ranks:
      raise InputError(f"{step.rows} rows a step can't be shared by {step.ranks} ranks: make it a multiple")
    self.store, self.grid, self.row, self.seed = store, grid, row, seed
    self.texts, self.step, self.shares = texts, step, shares
    lengths = _kept(_tokens(store.shape_N4, grid.patch), shares)
    if weights:
      given = (lengths, texts.longest_N, row.text, store.component_N, weights, seed)
      self.slots: Everyone | Weighted = Weighted(*given)
    else:
      self.slots = Everyone(lengths, texts.longest_N, row.text)
    self.rooms_K = self._rooms()
    lengths_K = self.slots.lengths_K + self.rooms_K
    self.rows = pack_rows(lengths_K, self.slots.text_K, row)
    self.flops_R = self.rows.sums(step.flops(lengths_K.astype(np.float64)))
    self.components_RP = self._components(len(weights)) if weights else None
    self.extent = Extent(store.fingerprint, len(store), len(self.rows))

  def _rooms(self) -> np.ndarray:
    """Room for the condition tokens beside the clip in each slot, int32 (K,)."""
    clip_K, patch = self.slots.clip_K, self.grid.patch
    shape_K4 = np.asarray(self.store.shape_N4)[clip_K]
    frame_K = _tokens(shape_K4, patch) // -(-shape_K4[:, 0] // patch[0])
    most_K = np.maximum(self.row.tokens - self.slots.lengths_K, 0) // frame_K
    rng = np.random.default_rng([self.seed, ROOM])
    loop_K = np.asarray(self.store.loop_N)[clip_K]
    return frame_K * conditions.draw_rooms(shape_K4[:, 0], loop_K, most_K, self.shares.conditions, patch[0], rng)

  def _components(self, components: int) -> np.ndarray:
    """Tokens of each component in each row."""
    tokens, component = self.slots.lengths_K, self.slots.component_K
    return np.stack([self.rows.sums(tokens * (component == number)) for number in range(components)], 1)

  def __len__(self) -> int:
    """Rows of one epoch: a pass over every clip, or over a component of a mixture."""
    return len(self.rows)

  def __call__(self, number: int) -> PackedBatch:
    """Row `number` of an endless run, without a batch dimension."""
    number = int(number)
    epoch, place = divmod(number, len(self.rows))
    row_order, clip_for = _epoch(self, epoch)
    slots = self.rows[row_order[place]]
    # A component of a mixture may give a clip several times in a pass, even in a row: each time is another.
    turns = itertools.count(number * self.row.segments) if self.components_RP is not None else itertools.repeat(epoch)
    taken = zip(clip_for[slots].tolist(), turns, self.rooms_K[slots].tolist(), strict=False)
    segments = [self.segment(*each) for each in taken]
    return pack_row(segments, self.row, segments[0].tokens_NC.shape[1])

  def segment(self, clip: int, turn: int, room: int) -> Segment:
    """One clip as it is seen in its `turn`: its caption's style, its conditions and its tokens are drawn.

    Args:
      room: for the tokens of its conditions beside its own.
    """
    try:
      stored = self.store[clip]
      latent, size, frames = stored[:3]
      pieces = self._conditions(clip, turn, room, stored)
    except (OSError, ValueError, EOFError) as error:
      named = f"{self.store.folder}: the latents of clip {self.store.id(clip)} can't be read"
      raise InputError(f"{named} ({error}): delete that folder, and they are made again") from error
    tokens_NC = np.asarray(patchify(latent, self.grid.patch))
    style = "long" if self._rng(turn, clip, CAPTION).random() < self.shares.long_captions else "short"
    positions = self.grid.positions(frames, int(size[1]), int(size[2]), size[3], stored.loop)
    count, mine = int(_kept(np.array(len(positions)), self.shares)), None
    if count < len(positions):
      mine = np.sort(self._rng(turn, clip, DROP).choice(len(positions), count, replace=False))
    segment = Segment(
      tokens_NC=tokens_NC,
      positions_N3=positions,
      condition_N=np.zeros(len(positions), bool),
      level_N=np.zeros(len(positions), np.float32),
      text_M=self.texts(clip, style),
      size_4=np.array(size, np.float32),
      index=clip,
      turn=turn % 2**31,  # of so many in a step no two are alike
      period=size[0] if stored.loop else 0.0,
    )
    return with_conditions(segment, self.grid, pieces, mine)

  def _conditions(self, clip: int, turn: int, room: int, stored: LatentClip) -> list[Piece]:
    """The conditions of a clip in its turn, of which at most `room` tokens stand beside its own."""
    patch, rng, latent_thwC = self.grid.patch, self._rng(turn, clip, CONDITION), stored.latent_thwC
    frames = latent_thwC.shape[0]
    frame_tokens = int(_tokens(np.array([latent_thwC.shape]), patch)[0]) // -(-frames // patch[0])
    chosen = conditions.arrange(frames, stored.loop, room // frame_tokens, self.shares.conditions, patch[0], rng)
    spans = self.store.pieces(clip)
    first_thwC = self.store.piece(clip, 0) if stored.loop and spans else latent_thwC
    given = [(0, first_thwC[: chosen.beginning])] if chosen.beginning else []
    if chosen.ending:
      which = chosen.ending.bit_length() - 1
      given.append((spans[which].start, self.store.piece(clip, which)))
    if chosen.middle:
      given.append((spans[-1].start, self.store.piece(clip, len(spans) - 1)[: chosen.middle]))
    noise, fps = self._rng(turn, clip, LEVEL), float(self.store.size_N4[clip, 3])
    draw = lambda: conditions.draw_level(self.shares.conditions, noise)
    return [Piece(latent, start / fps, draw()) for start, latent in given]

  def _rng(self, turn: int, clip: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, turn, clip, purpose])


def crop_batches(crops: Crops, batch: int, reading: Reading) -> Stream:
  """Endless (frames (B, T, H, W, 3) float32, clip_index (B,) int32)."""
  return Stream(crops, batch, crops.extent, reading)


def packed_batches(rows: PackedRows, reading: Reading) -> Stream:
  """Endless `PackedBatch`es, one a step: this host's share of its rows."""
  return Stream(rows, rows.step.rows, rows.extent, reading)


@functools.lru_cache(maxsize=2)  # a step may begin in one epoch and end in the next
def _epoch(rows: PackedRows, epoch: int) -> tuple[np.ndarray, np.ndarray]:
  """The order of the rows in an epoch, and the clip in each slot."""
  rng = np.random.default_rng([rows.seed, epoch, ORDER])
  ranks, begun = rows.step.ranks, epoch * len(rows.rows) % rows.step.rows
  row_order = order_rows(rows.flops_R, ranks, rows.step.rows // ranks, rng, begun, rows.components_RP)
  return row_order, rows.slots.fill(epoch, rng)


def _kept(tokens_N: np.ndarray, shares: Shares) -> np.ndarray:
  """How many of their tokens are seen of clips that have so many, int32."""
  return tokens_N - (tokens_N * shares.dropped_tokens).astype(np.int32)


def _tokens(shape_N4: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
  """Tokens of latents of these shapes, int32 (N,)."""
  tokens_N = np.ones(len(shape_N4), np.int32)
  for axis, size in enumerate(patch):
    tokens_N *= -(-shape_N4[:, axis] // size)
  return tokens_N
