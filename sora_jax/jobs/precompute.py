"""Clips -> latents on disk, once, so that training the transformer never decodes or encodes."""

import collections
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sora_jax.checkpoints import checkpoint
from sora_jax.clips import Clip
from sora_jax.data import captions, latents, quarantine
from sora_jax.data.conditions import PIECES, Span, spans
from sora_jax.data.files import Dropped
from sora_jax.data.loops import Loops, there_and_back
from sora_jax.data.sources import Source, component_of, shapes_of
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.packing.rows import kinds
from sora_jax.patches import Grid
from sora_jax.runtime import work_units
from sora_jax.runtime.hosts import LONG, Hosts
from sora_jax.runtime.run import Run
from sora_jax.video.io import UnreadableFile

BATCH = 64  # clips of one size encoded together
PIXEL_BYTES = 12  # three colours in float32
BATCH_BYTES = 2**28  # of pixels, decoded together: bounds memory
UNIT_BYTES = 2**29  # of pixels, decoded one batch after another: what is lost when encoding is stopped
SLOW = 6  # times as long as a step may a unit take


class Extras(NamedTuple):
  """What is encoded besides the clips of a source.

  Attributes:
    pieces: those of each clip that are conditions in training, encoded apart.
    loops: clips played there and back; None for none.
  """

  pieces: bool = False
  loops: Loops | None = None

  @classmethod
  def of(cls, config: Any, grid: Grid) -> "Extras":
    """Of a run's config."""
    return cls(config.diffusion.condition_share > 0, Loops.of(config, grid) if config.data.loops else None)


NOTHING_MORE = Extras()
Unit = list[list[int]]  # batches of clips of one shape, by number


def encode_source(
  codec: Codec,
  source: Source,
  folder: str | os.PathLike,
  max_bad: float = 1.0,
  workers: int = 0,
  beam: Sequence[str] | None = None,
  run: Run | None = None,
  extras: Extras = NOTHING_MORE,
) -> latents.LatentStore:
  """The latents of every clip of `source`; made again only when something that they are made from changed.

  Captions lie beside the latents, and are written again alone where they changed.

  Several hosts share the work. A clip that can't be read is skipped, named on stderr and listed in the folder's
  quarantine.jsonl; the others keep their order.

  Args:
    max_bad: the share of clips that may be bad, those that the source dropped before included.
    workers, beam: see `work_units.run`; other processes load the codec from where this one was loaded from.
    run: what this process is one of; by default it is alone.
    extras: what is encoded besides.

  Raises:
    TooManyBad: more are.
    ValueError: not one clip could be read.
    Preempted: the run was asked to stop; units that are done are saved.
    HostsError: the hosts' weights or sources differ, or one of them is late.
  """
  run = run or Run()
  hosts, stopping = run.hosts, run.stopping()
  key = key_of(codec, source, extras)
  hosts.same("comparing weights and clips", key)
  if not hosts.decide("looking for latents", lambda: latents.begin(folder, key)):
    units = plan_units(source)
    missing = hosts.decide("looking for what is encoded", lambda: latents.missing_units(folder, len(units)))
    work = functools.partial(encode_unit, codec, source, folder, units, hosts, extras)
    mine = missing[hosts.index :: hosts.count]
    work_units.run(work, mine, "encode", workers, beam, stopping.preempted)
    hosts.barrier("encoding latents", LONG)
    left = hosts.decide("counting latents", lambda: len(latents.missing_units(folder, len(units))))
    stopping.end_here(f"latents: {len(units) - left} of {len(units)} units are saved")
    hosts.decide("joining latents", lambda: len(latents.finish(folder, len(units))), LONG)
  store = latents.LatentStore(folder)
  hosts.decide("checking latents", lambda: check(store, source, max_bad))
  hosts.decide("writing captions", lambda: refresh_captions(store, source), LONG)
  return store


def prepared_key(folder: str | os.PathLike) -> dict[str, str]:
  """What the latents that another run has made were made from.

  Raises:
    InputError: they are not whole.
  """
  found = latents.kept_key(folder)
  if found is None:
    raise InputError(f"data.prepared: {folder} holds no whole latents: run sora precompute with its workdir first")
  return found


def open_prepared(
  codec: Codec, source: Source, folder: str | os.PathLike, extras: Extras = NOTHING_MORE
) -> latents.LatentStore:
  """The latents of `source` that another run has made, which this one only reads.

  Raises:
    InputError: they are not whole, or made from something else, or the captions beside them are.
  """
  key = key_of(codec, source, extras)
  if changed := latents.differing(prepared_key(folder), key):
    raise InputError(
      f"data.prepared: {folder} was made from other {', '.join(changed)}: prepare again in a new workdir"
    )
  store = latents.LatentStore(folder)
  if captions.written_from(folder) != _captions_key(store, source):
    raise InputError(f"data.prepared: {folder} has other captions than the source: run sora precompute there again")
  return store


def _captions_key(store: latents.LatentStore, source: Source) -> str:
  return latents.digest([store.media_fingerprint, source.captions_fingerprint])


def refresh_captions(store: latents.LatentStore, source: Source) -> None:
  """Writes the captions of a store's clips, where those that are there are not the source's."""
  made_from = _captions_key(store, source)
  found = captions.written_from(store.folder)
  if found == made_from:
    return
  if found:
    print(f"{store.folder}: captions changed: written again; latents stay", file=sys.stderr)
  numbers: dict[tuple[int, str], int] = {}

  def find(clip: int) -> int:
    """The clip's number in the source: that which it was encoded from, unless the source's order has changed."""
    name, number, component = store.id(clip), int(store.number_N[clip]), int(store.component_N[clip])
    if number < len(source) and (component_of(source, number), source.where(number)[0]) == (component, name):
      return number
    if not numbers:
      numbers.update(((component_of(source, each), source.where(each)[0]), each) for each in range(len(source)))
    return numbers[component, name]

  captions.write_captions(store.folder, (source.captions(find(clip)) for clip in range(len(store))), made_from)


def key_of(codec: Codec, source: Source, extras: Extras) -> dict[str, str]:
  """Everything that latents are made from, by name."""
  shape_N3, fps_N, _ = shapes_of(source)
  alike_N = kinds(*shape_N3.T, np.unique(fps_N, return_inverse=True)[1])  # whatever the order of the source
  _, first, counts = np.unique(alike_N, return_index=True, return_counts=True)
  seen = (shape_N3[first].tolist(), fps_N[first].tolist(), counts.tolist())
  return {
    "autoencoder": checkpoint.tree_digest(codec.params),
    "clips": source.media_fingerprint,
    "sizes, durations or rates": latents.digest(map(str, seen)),
    "pieces for conditions": str(PIECES if extras.pieces else 0),
    "loops": str(extras.loops),
    "format of latents": str(latents.LATENT_FORMAT),
  }


def plan_units(source: Source) -> list[Unit]:
  """All clips, those of one shape together, in units of UNIT_BYTES of pixels or of one batch that has more.

  The same clips give the same units whatever their order in the source, so that encoding is taken up again after a list
  of captions was sorted.
  """
  shape_N3, _, component_N = shapes_of(source)
  by_shape = collections.defaultdict(list)
  for index, shape in enumerate(map(tuple, shape_N3.tolist())):
    by_shape[shape].append(index)
  named = lambda index: (component_N[index], source.where(index)[0])
  units: list[Unit] = [[]]
  filled = 0
  for shape in sorted(by_shape):
    indices, each = sorted(by_shape[shape], key=named), PIXEL_BYTES * math.prod(shape)
    size = max(1, min(BATCH, BATCH_BYTES // each, UNIT_BYTES // each))
    for start in range(0, len(indices), size):
      batch = indices[start : start + size]
      if units[-1] and filled + len(batch) * each > UNIT_BYTES:
        units.append([])
        filled = 0
      units[-1].append(batch)
      filled += len(batch) * each
  return units


def encode_unit(
  codec: Codec,
  source: Source,
  folder: str | os.PathLike,
  units: Sequence[Unit],
  hosts: Hosts,
  extras: Extras,
  number: int,
) -> None:
  """Encodes and writes one unit."""
  hosts.at("encoding unit", number, SLOW * hosts.limit)
  bad: list[Dropped] = []
  latents.write_unit(folder, number, _encode(codec, source, units[number], bad, extras), bad)
  if bad:
    told = "; ".join(f"{each.file} ({each.reason})" for each in bad[:20])
    print(f"skipped {len(bad)} clips that can't be read: {told}", file=sys.stderr)


def check(store: latents.LatentStore, source: Source, max_bad: float) -> None:
  """Lists beside the store what was bad.

  Raises:
    TooManyBad, ValueError: it lacks too much; its bad clips will be read again.
  """
  bad = [*source.dropped, *store.dropped]
  quarantine.write(store.folder, bad)
  try:
    if not len(store):
      told = [f"{each.file} ({each.reason})" for each in bad]
      raise InputError(f"not one of {len(source)} clips could be read: {'; '.join(told[:5])}")
    quarantine.stop_at(max_bad, bad, len(store))
  except ValueError:
    latents.forget_bad(store.folder)
    raise


def _encode(
  codec: Codec, source: Source, unit: Unit, bad: list[Dropped], extras: Extras
) -> Iterator[latents.LatentClip]:
  for indices in unit:
    clips = _read(source, indices, bad)
    if not clips:
      continue
    yield from _encode_batch(codec, source, clips, bad, extras, loop=False)
    if extras.loops and (loops := _played(clips, extras.loops)):
      yield from _encode_batch(codec, source, loops, bad, extras, loop=True)


def _encode_batch(
  codec: Codec, source: Source, clips: Sequence[tuple[int, Clip]], bad: list[Dropped], extras: Extras, loop: bool
) -> Iterator[latents.LatentClip]:
  """Clips of one shape, each with its number in the source; those that are not finite are bad."""
  encode = codec.encode_loop if loop else codec.encode
  encoded = encode(np.stack([clip.frames_THWC for _, clip in clips]))
  apart = _encode_pieces(codec, [clip for _, clip in clips], loop) if extras.pieces else [()] * len(clips)
  for (index, clip), latent, pieces in zip(clips, encoded, apart, strict=True):
    if not all(np.isfinite(each).all() for each in (latent, *(values for _, values in pieces))):
      bad.append(Dropped(*source.where(index), "latents not finite"))
      continue
    frames, height, width = clip.frames_THWC.shape[:3]
    size_4 = (clip.seconds, float(height), float(width), clip.fps)
    component = component_of(source, index)
    yield latents.LatentClip(latent, size_4, frames, clip.id, component, index, loop, pieces)


def _played(clips: Sequence[tuple[int, Clip]], loops: Loops) -> list[tuple[int, Clip]]:
  """Those of clips of one shape that are loops besides, played there and back."""
  found = []
  for index, clip in clips:
    if frames := loops.frames(clip.frames_THWC.shape[:3], clip.id):
      turn = clip.frames_THWC[there_and_back(frames)]
      found.append((index, dataclasses.replace(clip, frames_THWC=turn)))
  return found


def _encode_pieces(codec: Codec, clips: Sequence[Clip], loop: bool) -> list[tuple[tuple[Span, np.ndarray], ...]]:
  """The pieces of clips of one shape that conditions are drawn from, each encoded as a clip of its own."""
  time = codec.config.compression[0]
  by_clip = [spans(len(clip.frames_THWC), time, clip.id, loop) for clip in clips]
  encoded = []
  for same in zip(*by_clip, strict=True):  # of one length, though they may begin at other frames
    frames = [clip.frames_THWC[span.frames(time)] for clip, span in zip(clips, same, strict=True)]
    encoded.append(zip(same, codec.encode(np.stack(frames)), strict=True))
  return list(zip(*encoded, strict=True)) if encoded else [()] * len(clips)


def _read(source: Source, indices: list[int], bad: list[Dropped]) -> list[tuple[int, Clip]]:
  clips = []
  for index in indices:
    try:
      clips.append((index, source[index]))
    except UnreadableFile as error:
      file, line = source.where(index)
      bad.append(Dropped(file, line, f"unreadable: {str(error).removeprefix(f'{file}: ')}"))
  return clips
