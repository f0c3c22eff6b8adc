"""Clips for the loss on what training never sees: encoded once, in rows that stay as they are.

Of worlds they are states of the combinations that are held out. Where `data.held_out` names a source, a world gives new
states of the combinations that training has, and files are taken as they are.

Shape letters: B rows, S segments, G groups.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from sora_jax import sharding
from sora_jax.data import conditions, framings, pipeline, sources
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.jobs import precompute
from sora_jax.jobs.tokenise import kept_texts
from sora_jax.packing.balance import ClipFlops
from sora_jax.packing.batch import PackedBatch, RowShape, pack_row, stack
from sora_jax.packing.rows import pack_rows
from sora_jax.runtime.run import Run
from sora_jax.train.held_out import HeldOut

GROUPS = ("images", "short", "long", "small", "large")  # videos and clips by `members`
SEED = 2000  # of states of worlds


def source_of(config: Any, grid: Any) -> sources.Source:
  """The held-out clips of a run.

  Raises:
    InputError: there are files among its sources, and no source of held-out ones is named.
  """
  data = config.data.copy_and_resolve_references()
  if "framing" in data:  # configs of older runs have none
    data.framing = framings.NATIVE  # whatever training saw, the same clips
  if data.held_out:
    data.source, data.weights = data.held_out, ()
  names = sources.names_of(data)
  if not data.held_out and not all(name.startswith("worlds:") for name in names):
    raise InputError(
      f"train.eval_every={config.train.eval_every} with data.source={data.source}: name a source of clips that "
      "training does not see in data.held_out, or set train.eval_every=0"
    )
  data.clips = -(-data.held_out_clips // len(names))
  found = sources.open_source(data, SEED, grid, held_out=not data.held_out)
  for each in found.sources if isinstance(found, sources.Mixture) else [found]:
    if isinstance(each, WorldSource):
      each.shapes = each.shapes.spread(data.clips)  # a few clips must have all durations
  return found


def make(
  config: Any, codec: Codec, tokenizer: Tokenizer, workdir: epath.Path, mesh: jax.sharding.Mesh, run: Run
) -> HeldOut:
  """The rows of the held-out clips that this host reads, and what groups they are of."""
  grid, row = codec.grid(config.model.patch), RowShape.of(config)
  source = source_of(config, grid)
  if prepared := config.data.prepared:
    store = precompute.open_prepared(codec, source, epath.Path(prepared) / "held_out")
  else:
    store = precompute.encode_source(codec, source, workdir / "held_out", config.data.max_bad, run=run)
  texts = kept_texts(store, tokenizer, config.train.row_text, run.hosts, owned=not prepared)
  step = pipeline.Step(1, 1, ClipFlops.of(1, 1, 1))
  read = pipeline.PackedRows(store, texts, grid, row, step, 0, pipeline.Shares(1.0, conditions.Shares(0.0)))
  clips = [read.segment(clip, 0, 0) for clip in range(len(store))]
  rows = pack_rows([len(each.tokens_NC) for each in clips], [len(each.text_M) for each in clips], row)
  channels = clips[0].tokens_NC.shape[1]
  packed = [pack_row([clips[clip] for clip in numbers], row, channels) for numbers in rows]
  packed += [pack_row([], row, channels)] * (-len(packed) % config.train.rows)
  shard, shards = sharding.batch_share(mesh)
  mine = config.train.rows // shards
  starts = range(shard * mine, len(packed), config.train.rows)
  batches = [stack(packed[start : start + mine]) for start in starts]
  return HeldOut(batches, GROUPS, [members(batch) for batch in batches])


def members(batch: PackedBatch) -> np.ndarray:
  """Which of GROUPS each segment is of, float32 (B, S, G): by the duration and size of its clip.

  Bounds are fixed, so that a group is the same in every batch and run: a second and a half, and 128x128 pixels.
  """
  seconds, height, width, fps = np.moveaxis(np.asarray(batch.size_BS4), -1, 0)
  image, short, small = seconds * fps < 1.5, seconds <= 1.5, height * width <= 128 * 128
  return np.stack([image, ~image & short, ~image & ~short, small, ~small], -1).astype(np.float32)
