"""Clips of a world by number: rendered when they are asked for."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.files import Dropped
from sora_jax.data.world_shapes import Rates, WorldShapes
from sora_jax.errors import InputError
from sora_jax.worlds.world import State, get_world

# Of a world that is asked for by its name alone: (height, width), durations, frames per second, clips.
SIZES, FRAMES, FPS, CLIPS = ((64, 64), (64, 112), (112, 64)), (1, 17, 33), 8.0, 900

# Purposes of draws: which images are captioned without their motion, and the clips' rates.
STILL, RATE = 1, 2


class WorldSource:
  """Clips of a world: number i is always the same state at the same size and rate, whatever else is asked for.

  Sizes and durations take turns, so that each combination has the same number of clips (`WorldShapes`).
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
    """`sizes` are (height, width) pixels, `frames` durations in frames (1 is an image): every size at every duration.

    Raises:
      ValueError: an unknown world, or nothing to show.
    """
    self._open(world, clips, WorldShapes.every(sizes, frames), Rates(((fps, fps),)), seed, held_out)

  @classmethod
  def of(cls, section: Any, world: str, shapes: WorldShapes, seed: int, held_out: bool = False) -> "WorldSource":
    """Clips of these shapes; how many, and their rates, are those of a config's `data` section.

    Raises:
      ValueError: as for a source of named sizes.
    """
    source = cls.__new__(cls)
    source._open(world, section.clips, shapes, Rates.of(section), seed, held_out)
    return source

  def _open(self, world: str, clips: int, shapes: WorldShapes, rates: Rates, seed: int, held_out: bool) -> None:
    if clips < 1 or not shapes.usable or not rates.usable:
      raise InputError(
        f"a world needs clips, sizes, frames and fps above 0: got {clips}, {shapes.distinct()} and {rates.ends}"
      )
    self.world = get_world(world)
    self.clips, self.shapes, self.rates, self.seed, self.held_out = clips, shapes, rates, seed, held_out
    key = f"{world} {self.world.version} {clips} {shapes.turns} {rates.ends} {seed} {held_out}"
    # The world's code makes both: where it changes, both do.
    self.fingerprint = self.media_fingerprint = self.captions_fingerprint = hashlib.sha256(key.encode()).hexdigest()

  def __len__(self) -> int:
    return self.clips

  def state(self, index: int) -> State:
    return self.world.sample(self._rng(index), held_out=self.held_out)

  def shape(self, index: int) -> tuple[int, int, int]:
    return self.shapes[index]

  def fps(self, index: int) -> float:
    if self.rates.one:
      return self.rates.one
    return float(self.rates.at(np.random.Generator(self._rate_bits().advance(index)).random(1))[0])

  def fps_column(self) -> np.ndarray:
    """The rates of all clips, float64 (N,)."""
    if self.rates.one:
      return np.full(self.clips, self.rates.one)
    return self.rates.at(np.random.Generator(self._rate_bits()).random(self.clips))

  def captions(self, index: int) -> dict[str, str]:
    # Every other image keeps the words of its motion: the first frame of a clip is asked for in the clip's words.
    still = self.shape(index)[0] == 1 and bool(self._rng(index, STILL).random() < 0.5)
    return {style: self.world.caption(self.state(index), style, still=still) for style in ("short", "long")}

  def where(self, index: int) -> tuple[str, int]:
    return f"{self.world.name}-{self.seed}-{index}", 0

  def __getitem__(self, index: int) -> Clip:
    if not 0 <= index < self.clips:
      raise IndexError(index)
    frames, height, width = self.shape(index)
    fps = self.fps(index)
    pixels = self.world.render(self.state(index), height, width, frames, fps)
    return Clip(pixels, fps, self.captions(index)["long"], self.where(index)[0])

  def _rng(self, index: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, index, int(self.held_out), *purpose])

  def _rate_bits(self) -> np.random.PCG64:
    """The bits whose draw of each number is that of the clip's rate."""
    return np.random.PCG64([self.seed, int(self.held_out), RATE])
