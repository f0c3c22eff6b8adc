"""Grain pipelines: crops for the autoencoder, packed rows for the transformers.

Every element is a pure function of (seed, index), so a position is one number and any number of hosts reads the
same global batches.

Shape letters: B, T, H, W as in `clips.py`.
"""

import functools
import sys
from typing import Any, NamedTuple

import grain
import numpy as np

from sora_jax.balance import Work, order_rows
from sora_jax.data.latents import LatentStore
from sora_jax.data.sources import Source
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.data.video_io import UnreadableFile
from sora_jax.packing import PackedBatch, RowShape, Segment, pack_row, plan
from sora_jax.patches import Grid, pad_edge, patchify

# What a draw is for; part of its key, so that one draw never depends on another.
CAPTION, CONDITION, CROP, ORDER = range(4)
CACHED_BYTES = 2**30  # of decoded frames kept for crops
ENDLESS = 2**40  # rows; more than any run takes
CONDITIONS = ("first", "first", "first", "last", "both", "any")  # which latent frames a conditioning mask gives


def crop_batches(
  source: Source, crop_THW: tuple[int, int, int], batch: int, seed: int, shard: grain.sharding.ShardOptions
) -> Any:
  """Endless (frames (B, T, H, W, 3) float32, clip_index (B,) int32).

  Every pixel of the source is as likely as any other, so a long or large clip gives more crops than an image; a clip
  shorter than a crop freezes, and counts for the share of the crop's frames that it fills. Smaller ones repeat their
  edge.
  """
  shapes = np.array([source.shape(index) for index in range(len(source))], np.float64)
  pixels, filled = shapes.prod(1), np.minimum(shapes[:, 0] / crop_THW[0], 1.0)
  share = np.cumsum(pixels * filled)
  share /= share[-1]

  @functools.lru_cache(maxsize=max(int(CACHED_BYTES / (12 * pixels.mean())), 1))
  def load(index: int) -> np.ndarray:
    return readable_frames(source, index)

  def element(number: int) -> tuple[np.ndarray, np.int32]:
    rng = np.random.default_rng([seed, int(number), CROP])
    index = min(int(np.searchsorted(share, rng.random(), side="right")), len(source) - 1)
    return crop(load(index), crop_THW, rng), np.int32(index)

  return iter(_elastic(element, batch, shard))


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
  raise ValueError(f"not one of {len(source)} clips can be read")


def crop(frames_THWC: np.ndarray, shape_THW: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
  """A random crop of `shape_THW`, float32; what is too short or too small is padded by its last frame or edge."""
  starts = [
    int(rng.integers(0, max(have - want, 0) + 1)) for have, want in zip(frames_THWC.shape, shape_THW, strict=False)
  ]
  cut = frames_THWC[tuple(slice(start, start + want) for start, want in zip(starts, shape_THW, strict=True))]
  return np.asarray(pad_edge(cut, shape_THW), np.float32)


class Shares(NamedTuple):
  """How often a clip is seen in one way or another: shares from 0 to 1."""

  long_captions: float  # the long caption, not the short one
  conditions: float  # some latent frames given


class Step(NamedTuple):
  """What a training step takes, and how it is shared out.

  Attributes:
    rows: over all ranks.
    ranks: data-parallel ranks that get equal work; a number of ranks that divides it does too.
    work: what a clip costs.
  """

  rows: int
  ranks: int
  work: Work


class PackedRows:
  """Rows of packed latents by number: row i belongs to epoch i // rows_per_epoch, and an epoch has each clip once.

  Which lengths share a row is planned once; which clips of a length, and in which order the rows come, changes with the
  epoch. Each `step.rows` rows in turn are a step in which all ranks have the same work.
  """

  def __init__(
    self, store: LatentStore, tokenizer: Tokenizer, grid: Grid, row: RowShape, step: Step, seed: int, shares: Shares
  ):
    """
    Raises:
      ValueError: a clip does not fit in a row (the message names the numbers), there is no clip, or the rows of a step
        can't be shared out.
    """
    if not len(store):
      raise ValueError("no clips to train on")
    if step.rows % step.ranks:
      raise ValueError(f"{step.rows} rows a step can't be shared by {step.ranks} ranks: make it a multiple")
    self.store, self.grid, self.row, self.seed = store, grid, row, seed
    self.step, self.shares = step, shares
    self.text = [
      {style: np.array(tokenizer.encode(caption, row.text), np.int32) for style, caption in entry["captions"].items()}
      for entry in store.entries
    ]
    lengths = [_tokens(entry["shape"], grid.patch) for entry in store.entries]
    text_lengths = [max(len(ids) for ids in text.values()) for text in self.text]
    self.rows = plan(lengths, text_lengths, row)
    self.work_R = np.array([step.work(np.take(lengths, clips)).sum() for clips in self.rows])
    # Clips of equal length and caption length can take each other's place in the plan.
    kinds = np.array([lengths, text_lengths]).T
    self.kind_of = np.unique(kinds, axis=0, return_inverse=True)[1].reshape(-1)

  def __len__(self) -> int:
    """Rows of one epoch."""
    return len(self.rows)

  def __call__(self, number: int) -> PackedBatch:
    """Row `number` of an endless run, without a batch dimension."""
    epoch, place = divmod(int(number), len(self.rows))
    row_order, clip_for = _epoch(self, epoch)
    clips = [int(clip_for[clip]) for clip in self.rows[row_order[place]]]
    segments = [self.segment(clip, epoch) for clip in clips]
    return pack_row(segments, self.row, segments[0].tokens_NC.shape[1])

  def segment(self, clip: int, epoch: int) -> Segment:
    """One clip as it is seen in one epoch: its caption's style and its conditioning mask are drawn."""
    latent, size, frames, _, _ = self.store[clip]
    style = "long" if self._rng(epoch, clip, CAPTION).random() < self.shares.long_captions else "short"
    positions = self.grid.positions(frames, int(size[1]), int(size[2]), size[3])
    given = condition_mask(
      -(-latent.shape[0] // self.grid.patch[0]), self.shares.conditions, self._rng(epoch, clip, CONDITION)
    )
    return Segment(
      tokens_NC=np.asarray(patchify(latent, self.grid.patch)),
      positions_N3=positions,
      clean_N=np.repeat(given, len(positions) // len(given)),
      text_M=self.text[clip][style],
      size_4=np.array(size, np.float32),
      index=clip,
    )

  def _rng(self, epoch: int, clip: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, epoch, clip, purpose])


def condition_mask(frames: int, share: float, rng: np.random.Generator) -> np.ndarray:
  """Which token frames are given, bool (frames,): none for most clips; never all."""
  given = np.zeros(frames, bool)
  if frames == 1 or rng.random() >= share:
    return given
  kind = CONDITIONS[rng.integers(len(CONDITIONS))]
  most = int(rng.integers(1, max(frames // 2, 1) + 1))
  if kind == "any":
    given[rng.choice(frames, most, replace=False)] = True
  if kind in ("first", "both"):
    given[: most if kind == "first" else 1] = True
  if kind in ("last", "both") and frames > 2:
    given[-(most if kind == "last" else 1) :] = True
  return given


def packed_batches(rows: PackedRows, shard: grain.sharding.ShardOptions) -> Any:
  """Endless `PackedBatch`es, one a step: this host's share of its rows."""
  return iter(_elastic(rows, rows.step.rows, shard))


def _elastic(element: Any, batch: int, shard: grain.sharding.ShardOptions) -> Any:
  """Element i for i = 0, 1, ...: an iterator whose state is one number, the same on every host.

  A host's share of a batch is one piece of it, so the hosts' shares in turn are the batch, however many they are.
  """
  hosts = shard.shard_count

  def dealt(number: int) -> Any:
    """The iterator deals every hosts-th number to a host: a piece's n-th element must be its n-th such number."""
    step, place = divmod(int(number), batch)
    return element(step * batch + place % hosts * (batch // hosts) + place // hosts)

  dataset = grain.MapDataset.range(ENDLESS).map(dealt)
  read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch)
  return grain.experimental.ElasticIterator(dataset, batch, shard, read_options=read)


@functools.lru_cache(maxsize=4)
def _epoch(rows: PackedRows, epoch: int) -> tuple[np.ndarray, np.ndarray]:
  """The order of the rows in an epoch, and for each planned clip the one of its kind that takes its place."""
  rng = np.random.default_rng([rows.seed, epoch, ORDER])
  ranks, begun = rows.step.ranks, epoch * len(rows.rows) % rows.step.rows
  row_order = order_rows(rows.work_R, ranks, rows.step.rows // ranks, rng, begun)
  shuffled = rng.permutation(len(rows.kind_of))
  # Stable sorts by kind line the k-th clip of a kind up with the k-th of the shuffled ones.
  here = np.argsort(rows.kind_of, kind="stable")
  there = shuffled[np.argsort(rows.kind_of[shuffled], kind="stable")]
  clip_for = np.empty(len(here), np.int64)
  clip_for[here] = there
  return row_order, clip_for


def _tokens(latent_shape: list[int], patch: tuple[int, int, int]) -> int:
  return int(np.prod([-(-n // p) for n, p in zip(latent_shape, patch, strict=False)]))
