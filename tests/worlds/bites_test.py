"""A cake whose bites are gone for good."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import bites, hues
from tests.worlds import exams

WORLD = bites.Bites()
STATE = bites.BitesState("red", ("left", "top right", "bottom"), 1)


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD, 2).values()) == 1.0


def test_a_spoiled_clip_is_read_too():
  assert min(exams.spoiled_marks(WORLD, 8).values()) >= 0.8


def test_training_never_shows_what_is_held_out():
  pairs = lambda state: [(state.colour, side) for side in state.sides]
  seen, unseen = exams.held_out_states(WORLD)
  assert not any(set(pairs(state)) & set(bites.HELD_OUT) for state in seen)
  assert all(pairs(state)[0] in bites.HELD_OUT for state in unseen)


def test_bites_come_in_turn():
  np.testing.assert_allclose(bites.bite_times(STATE), [-np.inf, 0.4, 1.2])


def test_a_cake_that_grows_back_does_not_stay_bitten():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  frames_THWC[24:] = WORLD.render(dataclasses.replace(STATE, done=0), 64, 64, 1, 8.0)
  marks = WORLD.examine(frames_THWC, 8.0, STATE)
  assert marks == {"colour": 1.0, "bitten": 0.0, "stays": 0.0, "mouth": 1.0}


def test_a_cake_that_is_never_bitten_is_wrong():
  frames_THWC = np.repeat(WORLD.render(dataclasses.replace(STATE, done=0), 64, 64, 1, 8.0), 33, axis=0)
  marks = WORLD.examine(frames_THWC, 8.0, STATE)
  assert marks["colour"] == 1.0 and marks["bitten"] == marks["stays"] == marks["mouth"] == 0.0


@pytest.mark.parametrize("wrong", ["bitten elsewhere for a while", "gone for a while", "no mouth"])
def test_what_comes_back_or_goes_by_itself_is_wrong(wrong):
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  if wrong == "bitten elsewhere for a while":
    other = dataclasses.replace(STATE, sides=(*STATE.sides, "right"), done=4)
    frames_THWC[20:30] = WORLD.render(other, 64, 64, 1, 8.0)
    assert WORLD.examine(frames_THWC, 8.0, STATE)["stays"] == 0.0
  elif wrong == "gone for a while":
    frames_THWC[20:31] = bites.GROUND
    assert WORLD.examine(frames_THWC, 8.0, STATE)["stays"] == 0.0
  else:
    frames_THWC[frames_THWC.max(axis=-1) < 0.3] = bites.GROUND
    assert WORLD.examine(frames_THWC, 8.0, STATE) == {"colour": 1.0, "bitten": 1.0, "stays": 1.0, "mouth": 0.0}


def test_bites_elsewhere_are_wrong():
  frames_THWC = WORLD.render(dataclasses.replace(STATE, sides=("left", "top", "bottom")), 64, 64, 33, 8.0)
  assert WORLD.examine(frames_THWC, 8.0, STATE)["bitten"] == 0.0


def test_captions_say_what_is_gone_and_what_comes():
  assert WORLD.caption(STATE, "long", still=True) == "A round red cake, bitten off at the left, on a white table."
  assert "at the top right, then at the bottom" in WORLD.caption(STATE, "long")


def test_a_cake_of_two_colours_is_wrong():
  frames_THWC = exams.changed(WORLD, STATE, dataclasses.replace(STATE, colour="blue"))
  assert WORLD.examine(frames_THWC, 8.0, STATE)["colour"] == 0.0


def test_something_beside_the_cake_is_wrong():
  frames_THWC = WORLD.render(STATE, 64, 112, 17, 8.0)
  frames_THWC[:, 4:16, 4:16] = hues.HUES["green"]
  assert WORLD.examine(frames_THWC, 8.0, STATE)["colour"] == 0.0


def test_a_bite_that_is_gone_before_its_time_or_long_after_it_is_wrong():
  frames_THWC = WORLD.render(STATE, 96, 96, 33, 8.0)
  early_THWC, late_THWC = frames_THWC.copy(), frames_THWC.copy()
  early_THWC[:8, 66:] = frames_THWC[-1, 66:]  # the bottom
  late_THWC[12:-1, 66:] = frames_THWC[0, 66:]
  for wrong_THWC in (early_THWC, late_THWC):
    assert WORLD.examine(wrong_THWC, 8.0, STATE)["mouth"] == 0.0
