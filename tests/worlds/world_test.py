"""The table of worlds and how clips are marked."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import world

each_world = pytest.mark.parametrize("name", world.world_names())


@each_world
def test_every_world_keeps_the_interface(name):
  simulator = world.get_world(name)
  assert simulator.name == name
  state = simulator.sample(np.random.default_rng(0))
  assert dataclasses.is_dataclass(state)
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(state, dataclasses.fields(state)[0].name, 0)
  frames_THWC = simulator.render(state, 32, 32, 9, 8.0)
  answer = simulator.examine(frames_THWC, 8.0, state)
  assert tuple(answer) == simulator.attributes
  assert answer == simulator.compare(simulator.read(frames_THWC, 8.0), state)
  # A perfect reading is right in everything.
  assert set(simulator.compare(simulator.describe(state), state).values()) == {1.0}


@pytest.mark.parametrize("name, nearest", [("shape", "shapes"), ("colision", "collision"), ("qqq", "")])
def test_an_unknown_world_names_the_nearest(name, nearest):
  with pytest.raises(ValueError, match=f"'{name}'.*did you mean '{nearest}") as error:
    world.get_world(name)
  assert "\n" not in str(error.value)


def _exam_inputs(frame_counts):
  simulator, rng = world.get_world("shapes"), np.random.default_rng(0)
  states = [simulator.sample(rng) for _ in frame_counts]
  clips = [(simulator.render(s, 32, 32, t, 8.0), 8.0) for s, t in zip(states, frame_counts, strict=True)]
  return simulator, states, clips


def test_exam_leaves_out_what_does_not_apply():
  simulator, states, clips = _exam_inputs([1, 1])
  scores = world.exam(simulator, states, clips)
  assert scores["colour"] == 1.0 and scores["direction"] is None and scores["speed"] is None
  simulator, states, clips = _exam_inputs([1, 9])
  assert world.exam(simulator, states, clips)["direction"] == 1.0
  assert {key: len(values) for key, values in world.marks(simulator, states, clips).items()} == {
    "colour": 2, "shape": 2, "size": 2, "background": 2, "direction": 1, "speed": 1
  }  # fmt: skip


def test_an_exam_needs_a_clip_a_state():
  simulator, states, clips = _exam_inputs([1, 1])
  with pytest.raises(ValueError, match="1 clips for 2 states"):
    world.exam(simulator, states, clips[:1])


def test_chance_is_the_share_of_equal_values():
  simulator, rng = world.get_world("shapes"), np.random.default_rng(0)
  states = [simulator.sample(rng) for _ in range(100)]
  scores = world.chance(simulator, states, rng)
  expected = {
    "colour": 1 / 6,
    "shape": 1 / 4,
    "size": 1 / 2,
    "background": 1 / 2,
    "direction": 1 / 4,
    "speed": 1 / 2,
  }
  for attribute, value in expected.items():
    assert scores[attribute] == pytest.approx(value, abs=0.05)


def test_interval_holds_the_mean_and_narrows_with_more_values():
  values = [0.0, 1.0] * 20
  mean, low, high = world.interval(values)
  assert mean == 0.5 and low < 0.5 < high
  _, narrow_low, narrow_high = world.interval(values * 10)
  assert narrow_high - narrow_low < high - low
  # Two standard errors either side of the mean of 40 fair coins.
  assert high - low == pytest.approx(4 * 0.5 / 40**0.5, rel=0.15)
  assert world.interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
  assert world.interval(values) == (mean, low, high)
  with pytest.raises(ValueError, match="at least one"):
    world.interval([])


@each_world
@pytest.mark.parametrize("height, width, frames", [(1, 1, 2), (2, 9, 3), (4, 4, 4), (15, 100, 5)])
def test_examiners_survive_any_pixels(name, height, width, frames):
  simulator, rng = world.get_world(name), np.random.default_rng(0)
  state = simulator.sample(rng)
  true_THWC = simulator.render(state, height, width, frames, 8.0)
  wild_THWC = np.where(rng.random(true_THWC.shape) < 0.5, 1.0, -1.0)
  red_THWC = np.broadcast_to([0.9, -0.8, -0.8], true_THWC.shape)
  for frames_THWC in (true_THWC, -true_THWC, 1e9 * true_THWC, np.inf * true_THWC, wild_THWC, red_THWC):
    answer = simulator.examine(frames_THWC, 8.0, state)
    assert set(answer) <= set(simulator.attributes) and set(answer.values()) <= {0.0, 1.0}
