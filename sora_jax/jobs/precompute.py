"""Clips -> latents on disk, once, so that training the transformer never decodes or encodes."""

import collections
import functools
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from sora_jax import __version__
from sora_jax.checkpoints import checkpoint
from sora_jax.clips import Clip
from sora_jax.data import latents, quarantine
from sora_jax.data.files import Dropped
from sora_jax.data.sources import Source, component_of
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.runtime import work_units
from sora_jax.runtime.hosts import LONG, Hosts
from sora_jax.runtime.run import Run
from sora_jax.video.io import UnreadableFile

BATCH = 64  # clips of one size encoded together
BATCH_PIXELS = 2e7  # bounds memory
UNIT = 512  # clips; what is lost when encoding is stopped
SLOW = 6  # times as long as a step may a unit take

Unit = list[list[int]]  # batches of clips of one shape, by number


def encode_source(
  codec: Codec,
  source: Source,
  folder: str | os.PathLike,
  max_bad: float = 1.0,
  workers: int = 0,
  beam: Sequence[str] | None = None,
  run: Run | None = None,
) -> latents.LatentStore:
  """The latents of every clip of `source`; made again only when something that they are made from changed.

  Several hosts share the work. A clip that can't be read is skipped, named on stderr and listed in the folder's
  quarantine.jsonl; the others keep their order.

  Args:
    max_bad: the share of clips that may be bad, those that the source dropped before included.
    workers, beam: see `work_units.run`; other processes load the codec from where this one was loaded from.
    run: what this process is one of; by default it is alone.

  Raises:
    TooManyBad: more are.
    ValueError: not one clip could be read.
    Preempted: the run was asked to stop; units that are done are saved.
    HostsError: the hosts' weights or sources differ, or one of them is late.
  """
  units, key = plan_units(source), key_of(codec, source)
  run = run or Run()
  hosts, stopping = run.hosts, run.stopping()
  hosts.same("comparing weights and clips", key)
  missing = hosts.decide("looking for latents", lambda: missing_units(folder, key, len(units)))
  if missing is not None:
    work = functools.partial(encode_unit, codec, source, folder, units, hosts)
    mine = missing[hosts.index :: hosts.count]
    work_units.run(work, mine, "encode", workers, beam, stopping.preempted)
    hosts.barrier("encoding latents", LONG)
    left = hosts.decide("counting latents", lambda: len(latents.missing_units(folder, len(units))))
    stopping.end_here(f"latents: {len(units) - left} of {len(units)} units are saved")
    hosts.decide("joining latents", lambda: len(latents.finish(folder, len(units))))
  store = latents.LatentStore(folder)
  hosts.decide("checking latents", lambda: check(store, source, max_bad))
  return store


def missing_units(folder: str | os.PathLike, key: dict[str, str], units: int) -> list[int] | None:
  """Those that are to be encoded; None where the store of this key is complete."""
  return None if latents.begin(folder, key) else latents.missing_units(folder, units)


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
  units: list[Unit] = [[]]
  clips = 0
  for shape, indices in by_shape.items():
    size = max(1, min(BATCH, int(BATCH_PIXELS // np.prod(shape))))
    for start in range(0, len(indices), size):
      if clips >= UNIT:
        units, clips = [*units, []], 0
      units[-1].append(indices[start : start + size])
      clips += len(units[-1][-1])
  return units


def encode_unit(
  codec: Codec, source: Source, folder: str | os.PathLike, units: Sequence[Unit], hosts: Hosts, number: int
) -> None:
  """Encodes and writes one unit."""
  hosts.at("encoding unit", number, SLOW * hosts.limit)
  bad: list[Dropped] = []
  latents.write_unit(folder, number, _encode(codec, source, units[number], bad), bad)
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


def _encode(codec: Codec, source: Source, unit: Unit, bad: list[Dropped]) -> Iterator[latents.LatentClip]:
  for indices in unit:
    clips = _read(source, indices, bad)
    if not clips:
      continue
    encoded = codec.encode(np.stack([clip.frames_THWC for _, clip in clips]))
    for (index, clip), latent in zip(clips, encoded, strict=True):
      if not np.isfinite(latent).all():
        bad.append(Dropped(*source.where(index), "latents not finite"))
        continue
      frames, height, width = clip.frames_THWC.shape[:3]
      size_4 = (clip.seconds, float(height), float(width), clip.fps)
      yield latents.LatentClip(latent, size_4, frames, source.captions(index), clip.id, component_of(source, index))


def _read(source: Source, indices: list[int], bad: list[Dropped]) -> list[tuple[int, Clip]]:
  clips = []
  for index in indices:
    try:
      clips.append((index, source[index]))
    except UnreadableFile as error:
      file, line = source.where(index)
      bad.append(Dropped(file, line, f"unreadable: {str(error).removeprefix(f'{file}: ')}"))
  return clips
