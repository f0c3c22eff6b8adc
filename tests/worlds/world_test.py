"""The table of worlds, and what every one of them keeps."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import world

each_world = pytest.mark.parametrize("name", world.world_names())


@each_world
def test_every_world_keeps_the_interface(name):
  simulator = world.get_world(name)
  assert simulator.name == name and type(simulator.version) is int and simulator.version >= 1
  state = simulator.sample(np.random.default_rng(0))
  assert dataclasses.is_dataclass(state)
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(state, dataclasses.fields(state)[0].name, 0)
  frames_THWC = simulator.render(state, 48, 48, 17, 8.0)
  answer = simulator.examine(frames_THWC, 8.0, state)
  assert list(answer) == [name for name in simulator.attributes if name in answer] and set(answer.values()) == {1.0}
  assert answer == simulator.compare(simulator.read(frames_THWC, 8.0), state)
  assert set(simulator.examine(frames_THWC[:1], 8.0, state).values()) == {1.0}  # an image
  # A perfect reading is right in everything.
  assert set(simulator.compare(simulator.describe(state), state).values()) == {1.0}


@pytest.mark.parametrize("name, nearest", [("shape", "shapes"), ("colision", "collision"), ("qqq", "")])
def test_an_unknown_world_names_the_nearest(name, nearest):
  with pytest.raises(ValueError, match=f"'{name}'.*did you mean '{nearest}") as error:
    world.get_world(name)
  assert "\n" not in str(error.value)


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
    assert set(answer) <= set(simulator.attributes) and all(0 <= mark <= 1 for mark in answer.values())
