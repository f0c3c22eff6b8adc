"""Clips -> latents on disk, once, so that training the transformer never decodes or encodes."""

import collections
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from sora_jax import checkpoint
from sora_jax.codec import Codec
from sora_jax.data import latents, quarantine
from sora_jax.data.folder import Dropped
from sora_jax.data.sources import Source
from sora_jax.data.video_io import UnreadableFile

BATCH = 64  # clips of one size encoded together


def encode_source(codec: Codec, source: Source, folder: pathlib.Path, max_bad: float = 1.0) -> latents.LatentStore:
  """The latents of every clip of `source`; made again only when the weights or the clips changed.

  A clip that can't be read is skipped, named on stderr and listed in the folder's quarantine.jsonl; the others keep
  their order.

  Args:
    max_bad: the share of clips that may be bad, those that the source dropped before included.

  Raises:
    TooManyBad: more are.
    ValueError: not one clip could be read.
  """
  parts = {"autoencoder": checkpoint.tree_digest(codec.params), "source": source.fingerprint}
  parts["shapes"] = latents.key_of({str(i): str(source.shape(i)) for i in range(len(source))})
  bad = list(source.dropped)

  def make() -> Iterator[latents.LatentClip]:
    yield from _encode(codec, source, bad)
    quarantine.write(folder, bad)
    quarantine.stop_at(max_bad, bad, len(source) + len(source.dropped) - len(bad))

  return latents.build(folder, parts, make)


def _encode(codec: Codec, source: Source, bad: list[Dropped]) -> Iterator[latents.LatentClip]:
  by_shape = collections.defaultdict(list)
  for index in range(len(source)):
    by_shape[source.shape(index)].append(index)
  before, done = len(bad), 0
  with tqdm(desc="encode", total=len(source), file=sys.stderr, mininterval=5.0) as bar:
    for shape, indices in by_shape.items():
      size = max(1, min(BATCH, int(2e7 // np.prod(shape))))  # bounds memory: 20 M pixels at a time
      for start in range(0, len(indices), size):
        clips = _read(source, indices[start : start + size], bad)
        bar.update(len(indices[start : start + size]))
        if not clips:
          continue
        encoded = codec.encode(np.stack([clip.frames_THWC for _, clip in clips]))
        for (index, clip), latent in zip(clips, encoded, strict=True):
          frames, height, width = clip.frames_THWC.shape[:3]
          size_4 = (clip.seconds, float(height), float(width), clip.fps)
          done += 1
          yield latents.LatentClip(latent, size_4, frames, source.captions(index), clip.id)
  told = [f"{each.file} ({each.reason})" for each in bad[before:]]
  if told:
    print(f"skipped {len(told)} clips that can't be read: {'; '.join(told[:20])}", file=sys.stderr)
  if not done:
    raise ValueError(f"not one of {len(source)} clips could be read: {'; '.join(told[:5])}")


def _read(source: Source, indices: list[int], bad: list[Dropped]) -> list:
  clips = []
  for index in indices:
    try:
      clips.append((index, source[index]))
    except UnreadableFile as error:
      file, line = source.where(index)
      bad.append(Dropped(file, line, f"unreadable: {str(error).removeprefix(f'{file}: ')}"))
  return clips
