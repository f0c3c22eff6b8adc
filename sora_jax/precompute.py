"""Clips -> latents on disk, once, so that training the transformer never decodes or encodes."""

import collections
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from sora_jax import checkpoint
from sora_jax.codec import Codec
from sora_jax.data import latents
from sora_jax.data.sources import Source
from sora_jax.data.video_io import UnreadableFile

BATCH = 64  # clips of one size encoded together


def encode_source(codec: Codec, source: Source, folder: pathlib.Path) -> latents.LatentStore:
  """The latents of every clip of `source`; made again only when the weights or the clips changed.

  A clip that can't be read is skipped, named on stderr and counted.

  Raises:
    ValueError: not one clip could be read.
  """
  parts = {"autoencoder": checkpoint.tree_digest(codec.params), "source": source.fingerprint}
  parts["shapes"] = latents.key_of({str(i): str(source.shape(i)) for i in range(len(source))})
  return latents.build(folder, parts, lambda: _encode(codec, source))


def _encode(codec: Codec, source: Source) -> Iterator[latents.LatentClip]:
  by_shape = collections.defaultdict(list)
  for index in range(len(source)):
    by_shape[source.shape(index)].append(index)
  skipped: list[str] = []
  done = 0
  with tqdm(desc="encode", total=len(source), file=sys.stderr, mininterval=5.0) as bar:
    for shape, indices in by_shape.items():
      size = max(1, min(BATCH, int(2e7 // np.prod(shape))))  # bounds memory: 20 M pixels at a time
      for start in range(0, len(indices), size):
        clips = _read(source, indices[start : start + size], skipped)
        bar.update(len(indices[start : start + size]))
        if not clips:
          continue
        encoded = codec.encode(np.stack([clip.frames_THWC for _, clip in clips]))
        for (index, clip), latent in zip(clips, encoded, strict=True):
          frames, height, width = clip.frames_THWC.shape[:3]
          size_4 = (clip.seconds, float(height), float(width), clip.fps)
          done += 1
          yield latents.LatentClip(latent, size_4, frames, source.captions(index), clip.id)
  if skipped:
    print(f"skipped {len(skipped)} clips that can't be read: {'; '.join(skipped[:20])}", file=sys.stderr)
  if not done:
    raise ValueError(f"not one of {len(source)} clips could be read: {'; '.join(skipped[:5])}")


def _read(source: Source, indices: list[int], skipped: list[str]) -> list:
  clips = []
  for index in indices:
    try:
      clips.append((index, source[index]))
    except UnreadableFile as error:
      skipped.append(f"clip {index}: {error}")
  return clips
