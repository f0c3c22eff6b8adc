"""The interface of a world, the table of worlds, and how clips are marked against known states.

A world is a simulator whose state is known exactly. It renders a state at any size, rate and duration,
says it in words, and reads it back from the pixels of any clip: that makes "does the clip show what the
caption says" a measurement. A world never sees models; whatever made the clip, the exam is the same.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sora_jax.worlds import physics, shapes

# Each world has its own frozen dataclass of floats and strings; dataclasses.asdict makes it JSON.
State = Any
# What a world reads from a clip, or knows of a state: its own type too.
Reading = Any


class World(Protocol):
  """A simulator with known state.

  Attributes:
    name: the name in the table of worlds.
    attributes: what `examine` reports, in the order in which reports show it.
  """

  name: str
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
    """1.0 (right) or 0.0 (wrong) for each attribute that applies."""

  def examine(self, frames_THWC: np.ndarray, fps: float, state: State) -> dict[str, float]:
    """compare(read(frames), state)."""


_WORLDS: dict[str, World] = {
  "shapes": shapes.Shapes(),
  "uniform": physics.Uniform(),
  "parabola": physics.Parabola(),
  "collision": physics.Collision(),
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
  raise ValueError(f"unknown world {name!r}: did you mean {nearest!r}? The worlds are {', '.join(_WORLDS)}")


def marks(world: World, states: Sequence[State], clips: Sequence[tuple[np.ndarray, float]]) -> dict[str, list[float]]:
  """Every mark of every clip, in the clips' order; an attribute's list is shorter where it did not apply.

  Args:
    world: the world whose states these are.
    states: what each clip should show.
    clips: pairs of frames (T, H, W, 3) in [-1, 1] and fps.

  Raises:
    ValueError: as many states as clips are needed.
  """
  if len(states) != len(clips):
    raise ValueError(f"an exam needs one clip a state, not {len(clips)} clips for {len(states)} states")
  lists: dict[str, list[float]] = {attribute: [] for attribute in world.attributes}
  for state, (frames_THWC, fps) in zip(states, clips, strict=True):
    for attribute, mark in world.examine(frames_THWC, fps, state).items():
      lists[attribute].append(mark)
  return lists


def exam(world: World, states: Sequence[State], clips: Sequence[tuple[np.ndarray, float]]) -> dict[str, float | None]:
  """Mean mark of each attribute, 0..1; None where it applied to no clip. Arguments as in `marks`."""
  lists = marks(world, states, clips)
  return {attribute: float(np.mean(values)) if values else None for attribute, values in lists.items()}


def chance(
  world: World, states: Sequence[State], rng: np.random.Generator, guesses: int = 16
) -> dict[str, float | None]:
  """The score of a guesser who ignores the clip: he answers with draws from the training distribution.

  Args:
    world: the world whose states these are.
    states: the right answers.
    rng: draws the guesses.
    guesses: independent guesses a state.
  """
  lists: dict[str, list[float]] = {attribute: [] for attribute in world.attributes}
  for state in states:
    for _ in range(guesses):
      guess = world.describe(world.sample(rng))
      for attribute, mark in world.compare(guess, state).items():
        lists[attribute].append(mark)
  return {attribute: float(np.mean(values)) if values else None for attribute, values in lists.items()}


def interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
  """(mean, low, high): the mean and its 95 % bootstrap interval (percentiles of resampled means).

  Raises:
    ValueError: no values.
  """
  values_N = np.asarray(values, np.float64)
  if values_N.size == 0:
    raise ValueError("an interval needs at least one value")
  # Resampling in parts keeps the table of draws small for long lists.
  rng = np.random.default_rng(seed)
  means = [values_N[rng.integers(0, values_N.size, values_N.size)].mean() for _ in range(resamples)]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(values_N.mean()), float(low), float(high)
