"""What a source would give to training, and what it would lose: each clip's first FRAMES frames are decoded, small.

What can't be used is what the source drops when it is opened, and what a decoder only finds out about.
"""

import collections
import math
import os
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax.data.caption_limits import captions_of, cut_captions
from sora_jax.data.files import Dropped
from sora_jax.data.folder import NothingUsable
from sora_jax.data.sources import Source, open_native, small_frames
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.video.io import UnreadableFile

SIDE = 64  # pixels of the longer side that is decoded to
FRAMES = 4096  # most frames that are looked at in one file
PERCENTILES = (0, 50, 100)


def check(name: str | os.PathLike, config: Any = None) -> dict[str, Any]:
  """Statistics of a source, and everything that training would drop.

  Args:
    name: as `open_native` takes it.
    config: of a training run, whose tokenizer and limit then tell which captions it would cut.

  Returns:
    `clips` (lines and files that no line names), `kept`, `dropped` ([{file, line, reason}], in the order of the lines);
    and of what is kept `images`, `videos`, `seconds` and `frames` of all videos, the commonest `sizes` with their
    counts, and the least, middle and greatest of `width`, `height`, `fps` and `caption_characters`; with a config
    also `captions_cut` ({limit, clips, longest, files: [{file, line, ids}]}).

  Raises:
    ValueError: no such source.
  """
  source: Source | None = None
  try:
    source = open_native(os.fspath(name))
    dropped = list(source.dropped)
  except NothingUsable as nothing:
    dropped = nothing.dropped
  looked = [damage(source, clip) for clip in tqdm(range(len(source)), desc="check", file=sys.stderr)] if source else []
  kept = [index for index, bad in enumerate(looked) if bad is None]
  dropped = sorted([*dropped, *filter(None, looked)], key=lambda each: each.line or math.inf)
  found = {"clips": len(kept) + len(dropped), "kept": len(kept)}
  cut = {"captions_cut": _cut(source, kept, config)} if source and kept and config is not None else {}
  return found | statistics(source, kept) | cut | {"dropped": [vars(each) for each in dropped]}


def _cut(source: Source, kept: list[int], config: Any) -> dict[str, Any]:
  """The captions that training with the config would cut, which are named on stderr too."""
  tokenizer = Tokenizer.train(captions_of(source, kept), config.model.vocabulary)
  found = cut_captions(source, tokenizer, config.train.row_text, kept)
  if message := found.message():
    print(message, file=sys.stderr)
  return found.summary()


def damage(source: Source, index: int) -> Dropped | None:
  """What a clip of which the size is known is dropped for, where it can't be decoded."""
  try:
    small_frames(source, index, SIDE, FRAMES)
  except UnreadableFile as error:
    file, line = source.where(index)
    return Dropped(file, line, f"unreadable: {str(error).removeprefix(f'{file}: ')}")
  return None


def statistics(source: Source | None, kept: list[int]) -> dict[str, Any]:
  if source is None or not kept:
    return {"images": 0, "videos": 0, "seconds": 0.0, "frames": 0}
  shapes = [source.shape(index) for index in kept]
  videos = [index for index, shape in zip(kept, shapes, strict=True) if shape[0] > 1]
  sizes = collections.Counter(f"{width}x{height}" for _, height, width in shapes)
  values: dict[str, list[float]] = {
    "width": [width for _, _, width in shapes],
    "height": [height for _, height, _ in shapes],
    "fps": [source.fps(index) for index in videos],
    "caption_characters": [len(text) for index in kept for text in set(source.captions(index).values())],
  }
  frames = [source.shape(index)[0] for index in videos]
  return {
    "images": len(kept) - len(videos),
    "videos": len(videos),
    "seconds": round(sum(count / source.fps(index) for index, count in zip(videos, frames, strict=True)), 2),
    "frames": sum(frames),
    "sizes": dict(sizes.most_common(20)),
    **{name: [round(float(x), 2) for x in np.percentile(v, PERCENTILES)] for name, v in values.items() if v},
  }
