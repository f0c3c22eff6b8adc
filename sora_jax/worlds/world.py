"""The interface of a world, and the table of worlds.

A world is a simulator whose state is known exactly. It renders a state at any size, rate and duration,
captions it, and reads it back from the pixels of any clip. So it can be measured whether a clip shows what
its caption says. A world knows nothing of models: the exam is the same whatever made the clip.
"""

import difflib
from typing import Any, Protocol

import numpy as np

from sora_jax.errors import InputError
from sora_jax.worlds import bites, camera3d, game, glyphs, groups, occlusion, painter, physics, shapes

# Each world has its own frozen dataclass of floats and strings; dataclasses.asdict makes it JSON.
State = Any
# What a world reads from a clip, or knows of a state: its own type too.
Reading = Any


class World(Protocol):
  """A simulator with known state.

  Attributes:
    name: the name in the table of worlds.
    version: raised by hand with each change of what the world samples, renders or says, so that no latents or captions
      of the one before are taken for its own.
    attributes: what `examine` reports, in the order in which reports show it.
  """

  name: str
  version: int
  attributes: tuple[str, ...]

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> State:
    """Draws a state; held_out draws from what training never shows, and only from that."""

  def render(self, state: State, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; frame t is at t / fps seconds; any size."""

  def caption(self, state: State, style: str, still: bool = False) -> str:
    """The state in words, style "short" or "long"; still leaves out the motion (for an image)."""

  def read(self, frames_THWC: np.ndarray, fps: float) -> Reading:
    """Reads a clip from its pixels alone."""

  def describe(self, state: State) -> Reading:
    """What a perfect reading of the state would be."""

  def compare(self, reading: Reading, state: State) -> dict[str, float]:
    """A mark from 0.0 (wrong) to 1.0 (right) for each attribute that applies; between them, the share that is right."""

  def examine(self, frames_THWC: np.ndarray, fps: float, state: State) -> dict[str, float]:
    """compare(read(frames), state)."""


_WORLDS: dict[str, World] = {
  "shapes": shapes.Shapes(),
  "shapes_validation": shapes.Shapes("shapes_validation", shapes.VALIDATION),
  "uniform": physics.Uniform(),
  "parabola": physics.Parabola(),
  "collision": physics.Collision(),
  "groups": groups.Groups(),
  "occlusion": occlusion.Occlusion(),
  "painter": painter.Painter(),
  "bites": bites.Bites(),
  "game": game.Game(),
  "camera3d": camera3d.Camera3d(),
  "glyphs": glyphs.Glyphs(),
}


def world_names() -> tuple[str, ...]:
  """The names that `get_world` knows."""
  return tuple(_WORLDS)


def get_world(name: str) -> World:
  """The world of that name.

  Raises:
    ValueError: no such world; the message gives the nearest name.
  """
  if name in _WORLDS:
    return _WORLDS[name]
  nearest = difflib.get_close_matches(name, _WORLDS, n=1, cutoff=0.0)[0]
  raise InputError(f"unknown world {name!r}: did you mean {nearest!r}? The worlds are {', '.join(_WORLDS)}")
