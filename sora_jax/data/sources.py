"""Where clips come from: one interface over folders and worlds.

A source knows the shape, rate and captions of every clip without decoding it, so rows can be planned before a frame is
read. Clips have their native size and duration; a budget in the config is the only thing that shrinks one.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.folder import Dropped, Fit, FolderSource
from sora_jax.worlds.world import State, get_world

STILL = 1  # the purpose of a draw: which images are captioned without their motion


class Source(Protocol):
  """Clips by number.

  Attributes:
    fingerprint: changes when a clip or caption does.
    dropped: what it holds and can't give.
  """

  fingerprint: str
  dropped: Sequence[Dropped]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Clip: ...

  def shape(self, index: int) -> tuple[int, int, int]:
    """Frames, height and width of a clip, without decoding it."""

  def captions(self, index: int) -> dict[str, str]:
    """The clip's captions: "short" and "long"."""

  def where(self, index: int) -> tuple[str, int]:
    """The clip's file or name, and its line in the list of clips, from 1; 0 where there is no list."""


class WorldSource:
  """Clips of a world: number i is always the same state at the same size, whatever else is asked for.

  Sizes and durations take turns, so that each combination has the same number of clips.
  """

  dropped: Sequence[Dropped] = ()

  def __init__(
    self,
    world: str,
    clips: int,
    sizes: Sequence[tuple[int, int]],
    frames: Sequence[int],
    fps: float,
    seed: int,
    held_out: bool = False,
  ):
    """`sizes` are (height, width) pixels, `frames` durations in frames (1 is an image)."""
    self.world = get_world(world)
    self.clips, self.fps, self.seed, self.held_out = clips, fps, seed, held_out
    self.shapes = [(t, h, w) for t in frames for h, w in sizes]
    key = f"{world} {clips} {self.shapes} {fps} {seed} {held_out}"
    self.fingerprint = hashlib.sha256(key.encode()).hexdigest()

  def __len__(self) -> int:
    return self.clips

  def state(self, index: int) -> State:
    return self.world.sample(self._rng(index), held_out=self.held_out)

  def shape(self, index: int) -> tuple[int, int, int]:
    return self.shapes[index % len(self.shapes)]

  def captions(self, index: int) -> dict[str, str]:
    # Every other image keeps the words of its motion: the first frame of a clip is asked for in the clip's words.
    still = self.shape(index)[0] == 1 and bool(self._rng(index, STILL).random() < 0.5)
    return {style: self.world.caption(self.state(index), style, still=still) for style in ("short", "long")}

  def where(self, index: int) -> tuple[str, int]:
    return f"{self.world.name}-{self.seed}-{index}", 0

  def __getitem__(self, index: int) -> Clip:
    frames, height, width = self.shape(index)
    pixels = self.world.render(self.state(index), height, width, frames, self.fps)
    return Clip(pixels, self.fps, self.captions(index)["long"], self.where(index)[0])

  def _rng(self, index: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, index, int(self.held_out), *purpose])


def parse_size(text: str) -> tuple[int, int]:
  """ "WxH" -> (height, width).

  Raises:
    ValueError: not two whole numbers from 1 to 8192.
  """
  parts = text.lower().split("x")
  if len(parts) != 2 or not all(part.isdigit() and 1 <= int(part) <= 8192 for part in parts):
    raise ValueError(f"size {text!r} is not WIDTHxHEIGHT, say 1920x1080, with sides from 1 to 8192")
  return int(parts[1]), int(parts[0])


def open_source(section: Any, seed: int, fit: Fit | None = None, held_out: bool = False) -> Source:
  """The source that a config's `data` section names: `worlds:NAME`, or a folder with captions.jsonl.

  Args:
    section: `source`, `clips`, `sizes`, `frames`, `fps`, `max_frames`.
    seed: of the world's states.
    fit: the size that a file of (frames, height, width) is scaled to; None keeps every size.
    held_out: for a world, the combinations that are kept from training.

  Raises:
    ValueError: unknown world, no folder, or nothing usable in it (with the reasons counted).
  """
  if section.source.startswith("worlds:"):
    sizes = [parse_size(size) for size in section.sizes]
    name = section.source.removeprefix("worlds:")
    return WorldSource(name, section.clips, sizes, section.frames, section.fps, seed, held_out)
  return FolderSource(section.source, fps=section.fps, max_frames=section.max_frames, fit=fit)
