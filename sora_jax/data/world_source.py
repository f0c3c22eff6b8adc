"""Clips of a world by number: rendered when they are asked for."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.files import Dropped
from sora_jax.errors import InputError
from sora_jax.worlds.world import State, get_world

# Of a world that is asked for by its name alone: (height, width), durations, frames per second, clips.
SIZES, FRAMES, FPS, CLIPS = ((64, 64), (64, 112), (112, 64)), (1, 17, 33), 8.0, 900

STILL = 1  # the purpose of a draw: which images are captioned without their motion


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
    """`sizes` are (height, width) pixels, `frames` durations in frames (1 is an image).

    Raises:
      ValueError: an unknown world, or nothing to show.
    """
    if clips < 1 or not sizes or not frames or min(frames) < 1 or not 0 < fps < math.inf:
      raise InputError(f"a world needs clips, sizes, frames and fps above 0: got {clips}, {sizes}, {frames} and {fps}")
    self.world = get_world(world)
    self.clips, self.rate, self.seed, self.held_out = clips, fps, seed, held_out
    self.shapes = [(t, h, w) for t in frames for h, w in sizes]
    key = f"{world} {self.world.version} {clips} {self.shapes} {fps} {seed} {held_out}"
    # The world's code makes both: where it changes, both do.
    self.fingerprint = self.media_fingerprint = self.captions_fingerprint = hashlib.sha256(key.encode()).hexdigest()

  def __len__(self) -> int:
    return self.clips

  def state(self, index: int) -> State:
    return self.world.sample(self._rng(index), held_out=self.held_out)

  def shape(self, index: int) -> tuple[int, int, int]:
    return self.shapes[index % len(self.shapes)]

  def fps(self, index: int) -> float:
    del index  # all have the same
    return self.rate

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
    pixels = self.world.render(self.state(index), height, width, frames, self.rate)
    return Clip(pixels, self.rate, self.captions(index)["long"], self.where(index)[0])

  def _rng(self, index: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, index, int(self.held_out), *purpose])
