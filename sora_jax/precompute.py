"""Clips -> latents on disk, once, so that training the transformer never decodes or encodes."""

import collections
import functools
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from sora_jax import __version__, checkpoint
from sora_jax.clips import Clip
from sora_jax.codec import Codec
from sora_jax.data import latents, quarantine
from sora_jax.data import units as work_units
from sora_jax.data.files import Dropped
from sora_jax.data.sources import Source, part_of
from sora_jax.data.video_io import UnreadableFile

BATCH = 64  # clips of one size encoded together
BATCH_PIXELS = 2e7  # bounds memory
UNIT = 512  # clips; what is lost when encoding is stopped

Unit = list[list[int]]  # batches of clips of one shape, by number


def encode_source(
  codec: Codec,
  source: Source,
  folder: str | os.PathLike,
  max_bad: float = 1.0,
  workers: int = 0,
  beam: Sequence[str] | None = None,
) -> latents.LatentStore:
  """The latents of every clip of `source`; made again only when something that they are made from changed.

  A clip that can't be read is skipped, named on stderr and listed in the folder's quarantine.jsonl; the others keep
  their order.

  Args:
    max_bad: the share of clips that may be bad, those that the source dropped before included.
    workers, beam: see `units.run`; other processes load the codec from where this one was loaded from.

  Raises:
    TooManyBad: more are.
    ValueError: not one clip could be read.
  """
  units = plan_units(source)
  if not latents.begin(folder, key_of(codec, source)):
    work = functools.partial(encode_unit, codec, source, folder, units)
    work_units.run(work, latents.missing_units(folder, len(units)), "encode", workers, beam)
    latents.finish(folder, len(units))
  return checked(latents.LatentStore(folder), source, max_bad)


def key_of(codec: Codec, source: Source) -> dict[str, str]:
  """Everything that latents are made from, by name."""
  seen = ((source.shape(index), source.fps(index)) for index in range(len(source)))
  return {
    "autoencoder": checkpoint.tree_digest(codec.params),
    "clips or captions": source.fingerprint,
    "sizes, durations or rates": latents.digest(map(str, seen)),
    "type": "float32",
    "version of sora_jax": __version__,
  }


def plan_units(source: Source) -> list[Unit]:
  """All clips, those of one shape together, in units of about UNIT clips."""
  by_shape = collections.defaultdict(list)
  for index in range(len(source)):
    by_shape[source.shape(index)].append(index)
  units, clips = [[]], 0
  for shape, indices in by_shape.items():
    size = max(1, min(BATCH, int(BATCH_PIXELS // np.prod(shape))))
    for start in range(0, len(indices), size):
      if clips >= UNIT:
        units, clips = [*units, []], 0
      units[-1].append(indices[start : start + size])
      clips += len(units[-1][-1])
  return units


def encode_unit(codec: Codec, source: Source, folder: str | os.PathLike, units: Sequence[Unit], number: int) -> None:
  """Encodes and writes one unit."""
  bad: list[Dropped] = []
  latents.write_unit(folder, number, _encode(codec, source, units[number], bad), bad)
  if bad:
    told = "; ".join(f"{each.file} ({each.reason})" for each in bad[:20])
    print(f"skipped {len(bad)} clips that can't be read: {told}", file=sys.stderr)


def checked(store: latents.LatentStore, source: Source, max_bad: float) -> latents.LatentStore:
  """The store, with what was bad listed beside it.

  Raises:
    TooManyBad, ValueError: it lacks too much; its bad clips will be read again.
  """
  bad = [*source.dropped, *store.dropped]
  quarantine.write(store.folder, bad)
  try:
    if not len(store):
      told = [f"{each.file} ({each.reason})" for each in bad]
      raise ValueError(f"not one of {len(source)} clips could be read: {'; '.join(told[:5])}")
    quarantine.stop_at(max_bad, bad, len(store))
  except ValueError:
    latents.forget_bad(store.folder)
    raise
  return store


def _encode(codec: Codec, source: Source, unit: Unit, bad: list[Dropped]) -> Iterator[latents.LatentClip]:
  for indices in unit:
    clips = _read(source, indices, bad)
    if not clips:
      continue
    encoded = codec.encode(np.stack([clip.frames_THWC for _, clip in clips]))
    for (index, clip), latent in zip(clips, encoded, strict=True):
      frames, height, width = clip.frames_THWC.shape[:3]
      size_4 = (clip.seconds, float(height), float(width), clip.fps)
      yield latents.LatentClip(latent, size_4, frames, source.captions(index), clip.id, part_of(source, index))


def _read(source: Source, indices: list[int], bad: list[Dropped]) -> list[tuple[int, Clip]]:
  clips = []
  for index in indices:
    try:
      clips.append((index, source[index]))
    except UnreadableFile as error:
      file, line = source.where(index)
      bad.append(Dropped(file, line, f"unreadable: {str(error).removeprefix(f'{file}: ')}"))
  return clips
