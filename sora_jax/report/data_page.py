"""What a source gives to a model, as a page: clips after decoding, scaling and cutting, with their captions.

The page is `demo_page.py`'s: one file that opens from disk.
"""

import collections
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from sora_jax.clips import Clip, from_uint8
from sora_jax.data.files import Dropped, describe_dropped
from sora_jax.data.sources import Source, small_frames
from sora_jax.report.demo_page import Section, Shown, write_page
from sora_jax.video.io import UnreadableFile

CLIPS = 60  # shown at most, spread over the source
SIDE = 160  # pixels; larger clips are shown smaller
FRAMES = 65  # shown of a clip
SIZES = 12  # listed at most
LOSSES = 100  # listed at most
Tokens = Callable[[int, int, int], int]  # (frames, height, width) -> tokens


def show(source: Source, name: str, path: str | os.PathLike, tokens: Tokens | None = None) -> dict[str, Any]:
  """Writes the page.

  Args:
    source: opened as training opens it.
    name: of the source, for the heading.
    path: of the .html file.
    tokens: of a clip; None where no model is given.

  Returns:
    {"clips", "shown", "dropped", "page"}.
  """
  picked = np.unique(np.linspace(0, len(source) - 1, min(CLIPS, len(source))).astype(int))
  shown, losses = [], []
  for index in picked.tolist():
    try:
      shown.append(_shown(source, index, tokens))
    except (UnreadableFile, OSError) as error:
      file, line = source.where(index)
      losses.append(Dropped(file, line, f"unreadable: {str(error).removeprefix(f'{file}: ')}"))
  losses += source.dropped
  sections = [Section("What it holds", "", facts=_facts(source, losses, tokens)), Section("Clips", "", shown)]
  if losses:
    sections.append(Section("Left out", "", facts=_losses(losses)))
  lead = f"{len(shown):,} of {len(source):,} clips, spread over the source, after decoding, scaling and cutting."
  write_page(
    path,
    title=f"Clips of {name}",
    lead=f"{lead} The page shows at most {SIDE} pixels a side and {FRAMES} frames of each.",
    sections=sections,
    exam=[],
    curves={},
    numbers=[],
    facts=[],
    commands=[],
  )
  return {"clips": len(source), "shown": len(shown), "dropped": len(losses), "page": os.fspath(path)}


def _facts(source: Source, losses: list[Dropped], tokens: Tokens | None) -> list[tuple[str, str]]:
  shapes = [source.shape(index) for index in range(len(source))]
  images = sum(shape[0] == 1 for shape in shapes)
  sizes = collections.Counter(_size(height, width) for _, height, width in shapes)
  listed = [f"{size}\N{NO-BREAK SPACE}({count:,})" for size, count in sizes.most_common(SIZES)]
  if len(sizes) > SIZES:
    listed.append(f"{len(sizes) - SIZES:,} more")
  facts = [("Videos", f"{len(shapes) - images:,}"), ("Images", f"{images:,}"), ("Sizes", ", ".join(listed))]
  if tokens:
    lengths = [tokens(*shape) for shape in shapes]
    facts.append(("Tokens of a clip", f"{min(lengths):,} to {max(lengths):,}, {np.mean(lengths):,.0f} in the mean"))
  return [*facts, ("Left out", describe_dropped(losses)), ("Fingerprint", source.fingerprint[:16])]


def _size(height: int, width: int) -> str:
  return f"{width} × {height}".replace(" ", "\N{NO-BREAK SPACE}")


def _losses(losses: list[Dropped]) -> list[tuple[str, str]]:
  """What is left out: its line, and its name with the reason."""
  listed = [
    (f"Line {each.line}" if each.line else "No line", f"{each.file}: {each.reason}" if each.file else each.reason)
    for each in losses[:LOSSES]
  ]
  return [*listed, ("And", f"{len(losses) - LOSSES:,} more")] if len(losses) > LOSSES else listed


def _shown(source: Source, index: int, tokens: Tokens | None) -> Shown:
  captions, fps, (frames, height, width) = source.captions(index), source.fps(index), source.shape(index)
  name = source.where(index)[0]
  parts = [_size(height, width)]
  if frames > 1:
    parts.append(f"{frames:,} frames at {fps:.4g} a second")
  if tokens:
    parts.append(f"{tokens(frames, height, width):,} tokens")
  clip = Clip(from_uint8(small_frames(source, index, SIDE, FRAMES)), fps, captions["long"], name)
  texts = dict.fromkeys([captions["short"], captions["long"]])
  return Shown(" — ".join(texts), clip, {}, note=f"{name}: {', '.join(parts)}")
