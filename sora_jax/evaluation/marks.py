"""Marks of clips against the states that they should show: means, the score of guessing, intervals."""

import functools
from collections.abc import Sequence

import numpy as np

from sora_jax.worlds.world import Reading, State, World

POOL = 400  # guesses that all states share


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
  """The score of guessing: answers drawn from the training distribution, without a look at the clip.

  Args:
    world: the world whose states these are.
    states: the right answers.
    rng: draws the guesses.
    guesses: independent guesses a state.
  """
  lists: dict[str, list[float]] = {attribute: [] for attribute in world.attributes}
  known = _readings(world, int(rng.integers(2**31)), max(POOL, guesses))  # type: ignore[arg-type]  # any object hashes
  for state in states:
    for pick in rng.choice(len(known), guesses, replace=False).tolist():
      guess = known[pick]
      for attribute, mark in world.compare(guess, state).items():
        lists[attribute].append(mark)
  return {attribute: float(np.mean(values)) if values else None for attribute, values in lists.items()}


@functools.lru_cache(maxsize=16)
def _readings(world: World, seed: int, count: int) -> list[Reading]:
  """What guesses look like: to describe a state may mean to render it, and the exams of a world have the same."""
  rng = np.random.default_rng(seed)
  return [world.describe(world.sample(rng)) for _ in range(count)]


def interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
  """(mean, low, high): the mean and its 95 % bootstrap interval (percentiles of resampled means).

  Raises:
    ValueError: no values.
  """
  values_N = np.asarray(values, np.float64)
  if values_N.size == 0:
    raise ValueError("an interval needs at least one value")
  # One resample at a time: a table of all draws would be large for long lists.
  rng = np.random.default_rng(seed)
  means = [values_N[rng.integers(0, values_N.size, values_N.size)].mean() for _ in range(resamples)]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(values_N.mean()), float(low), float(high)


def summary(values: Sequence[float], digits: int = 4) -> dict[str, float | None]:
  """{mean, low, high} of a report: `interval`, rounded, without values that are NaN; None where none is left."""
  there = [value for value in values if not np.isnan(value)]
  ends = interval(there) if there else (None, None, None)
  return {
    name: None if end is None else round(end, digits) for name, end in zip(("mean", "low", "high"), ends, strict=True)
  }
