"""What the tests of every world ask: real renders get full marks, at sizes, rates and durations of many kinds."""

import itertools

import numpy as np

from sora_jax.worlds.world import State, World

SIZES = ((64, 64), (64, 112), (112, 64))  # (height, width)
RATES, DURATIONS = (8.0, 16.0), (1, 17, 33)


def ceilings(world: World, states: int = 1) -> dict[str, float]:
  """Mean mark of each attribute over real renders of every size, rate and duration; half of the states held out."""
  marks: dict[str, list[float]] = {name: [] for name in world.attributes}
  for number, (size, fps, frames) in enumerate(itertools.product(SIZES, RATES, DURATIONS)):
    for turn in range(states):
      state = world.sample(np.random.default_rng((number, turn)), held_out=(number + turn) % 2 == 1)
      for name, mark in world.examine(world.render(state, *size, frames, fps), fps, state).items():
        marks[name].append(mark)
  return {name: float(np.mean(each)) for name, each in marks.items()}


def spoiled(frames_THWC: np.ndarray, noise: float = 0.08, seed: int = 0) -> np.ndarray:
  """The clip blurred over three pixels each way, and with noise: about what a lossy decoder leaves of it."""
  for axis in (1, 2):
    frames_THWC = sum(np.roll(frames_THWC, by, axis=axis) for by in (-1, 0, 1)) / 3
  return frames_THWC + np.random.default_rng(seed).normal(size=frames_THWC.shape) * noise


def spoiled_marks(world: World, states: int, **kwargs: float) -> dict[str, float]:
  """Mean mark of each attribute over spoiled renders of 96x96 pixels and 33 frames."""
  marks: dict[str, list[float]] = {name: [] for name in world.attributes}
  for number in range(states):
    state = world.sample(np.random.default_rng(number))
    frames_THWC = spoiled(world.render(state, 96, 96, 33, 8.0), seed=number, **kwargs)
    for name, mark in world.examine(frames_THWC, 8.0, state).items():
      marks[name].append(mark)
  return {name: float(np.mean(each)) for name, each in marks.items()}


def held_out_states(world: World, draws: int = 200) -> tuple[list, list]:
  """States of training and held-out ones, as many of each."""
  draw = lambda held_out: [world.sample(np.random.default_rng(seed), held_out) for seed in range(draws)]
  return draw(False), draw(True)


def changed(world: World, state: State, other: State, frames: int = 33, fps: float = 8.0) -> np.ndarray:
  """A clip of 64x112 pixels that shows a state, and in the last third of its frames another one."""
  frames_THWC = world.render(state, 64, 112, frames, fps)
  frames_THWC[-(frames // 3) :] = world.render(other, 64, 112, frames, fps)[-(frames // 3) :]
  return frames_THWC
