"""Several shapes at once: relations, motion, who covers whom, textures."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import groups
from tests.worlds import exams

WORLD = groups.Groups()
RED = groups.Item("red", "circle", "large", "up", 0.9)
BLUE = groups.Item("blue", "square", "small", "down", 0.1)
BESIDE = groups.GroupsState((RED, BLUE), "", True, "plain")
STILL = {"motion": "still", "start": 0.1}
PASS = groups.GroupsState(
  (dataclasses.replace(RED, **STILL), dataclasses.replace(BLUE, size="large", **STILL)), "right", True, "striped"
)


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD, 3).values()) >= 0.98


def test_a_spoiled_clip_is_read_too():
  assert min(exams.spoiled_marks(WORLD, 8, noise=0.05).values()) >= 0.75


def test_training_never_shows_what_is_held_out():
  pairs = lambda state: [(item.colour, item.figure) for item in state.items]
  seen, unseen = exams.held_out_states(WORLD)
  assert not any(set(pairs(state)) & set(groups.HELD_OUT) for state in seen)
  assert all(pairs(state)[0] in groups.HELD_OUT for state in unseen)
  assert {len(state.items) for state in seen} == {1, 2, 3} and {state.texture for state in seen} == set(groups.TEXTURES)


@pytest.mark.parametrize(
  ("state", "other", "wrong"),
  [
    (BESIDE, dataclasses.replace(BESIDE, items=(BLUE, RED)), "relation"),
    (BESIDE, dataclasses.replace(BESIDE, texture="dotted"), "ground"),
    (BESIDE, dataclasses.replace(BESIDE, items=(RED,)), "colour"),
    (BESIDE, dataclasses.replace(BESIDE, items=(dataclasses.replace(RED, figure="cross"), BLUE)), "shape"),
    (BESIDE, dataclasses.replace(BESIDE, items=(dataclasses.replace(RED, size="small"), BLUE)), "size"),
    (BESIDE, dataclasses.replace(BESIDE, items=(dataclasses.replace(RED, motion="still"), BLUE)), "motion"),
    (PASS, dataclasses.replace(PASS, front=False), "front"),
    (PASS, dataclasses.replace(PASS, passing="left"), "motion"),
    (PASS, BESIDE, "motion"),
  ],
)
def test_another_state_is_marked_wrong(state, other, wrong):
  marks = WORLD.examine(WORLD.render(other, 64, 112, 33, 8.0), 8.0, state)
  assert marks[wrong] == 0.0
  assert set(WORLD.examine(WORLD.render(state, 64, 112, 33, 8.0), 8.0, state).values()) == {1.0}


@pytest.mark.parametrize(
  ("other", "wrong"),
  [
    (dataclasses.replace(BESIDE, items=(dataclasses.replace(RED, figure="cross"), BLUE)), "shape"),
    (dataclasses.replace(BESIDE, items=(dataclasses.replace(RED, size="small"), BLUE)), "size"),
    (dataclasses.replace(BESIDE, items=(dataclasses.replace(RED, colour="green"), BLUE)), "colour"),
    (dataclasses.replace(BESIDE, items=(BLUE, RED)), "relation"),
    (dataclasses.replace(BESIDE, texture="striped"), "ground"),
  ],
)
def test_what_changes_in_a_third_of_the_frames_is_wrong(other, wrong):
  assert WORLD.examine(exams.changed(WORLD, BESIDE, other), 8.0, BESIDE)[wrong] == 0.0


@pytest.mark.parametrize("state", [BESIDE, PASS])
@pytest.mark.parametrize("speed", [0.1, 3.0])
def test_shapes_at_another_speed_are_wrong(state, speed):
  marks = WORLD.examine(WORLD.render(state, 64, 112, 9, 8.0 / speed), 8.0, state)
  assert marks["motion"] == 0.0 and marks["colour"] == marks["shape"] == 1.0


def test_a_shape_that_also_goes_sideways_is_wrong():
  slide = lambda frames_THWC: np.stack([np.roll(frame, at, axis=1) for at, frame in enumerate(frames_THWC)])
  state = dataclasses.replace(BESIDE, items=(RED,))
  assert WORLD.examine(slide(WORLD.render(state, 64, 112, 17, 8.0)), 8.0, state)["motion"] == 0.0


def test_what_passes_behind_a_larger_one_may_be_hidden_for_most_of_a_clip():
  for seed in (137, 248, 844):
    state = WORLD.sample(np.random.default_rng(seed), held_out=True)
    for size, frames in (((64, 64), 17), ((96, 96), 9)):
      assert set(WORLD.examine(WORLD.render(state, *size, frames, 8.0), 8.0, state).values()) == {1.0}


def test_a_second_shape_of_one_colour_is_one_too_many():
  frames_THWC = WORLD.render(BESIDE, 64, 128, 9, 8.0)
  twice = np.where(frames_THWC[:, :, ::-1] < 0.5, frames_THWC[:, :, ::-1], frames_THWC)
  assert WORLD.examine(twice, 8.0, BESIDE)["colour"] == 0.0


def test_those_that_pass_begin_apart():
  for seed in range(60):
    state = WORLD.sample(np.random.default_rng(seed))
    if state.passing:
      first, second = (track_T2[0, 1] for track_T2 in groups.tracks(state, (1.0, 1.0), np.zeros(1)))
      assert abs(first - second) > sum(groups.RADII[item.size] for item in state.items)


def test_one_shape_has_no_relation():
  state = dataclasses.replace(BESIDE, items=(RED,))
  assert "relation" not in WORLD.examine(WORLD.render(state, 64, 64, 9, 8.0), 8.0, state)


@pytest.mark.parametrize("texture", groups.TEXTURES)
def test_textures_are_grey_and_the_same_at_any_size(texture):
  small, large = groups.ground(texture, 40, 60), groups.ground(texture, 160, 240)
  np.testing.assert_allclose(large.reshape(40, 4, 60, 4).mean(axis=(1, 3)), small, atol=0.2)
  assert small.min() >= groups.PATTERN - 1e-6 and small.max() <= groups.GROUND + 1e-6


def test_captions_have_the_relation():
  assert WORLD.caption(BESIDE, "short") == "a red circle left of a blue square"
  assert WORLD.caption(PASS, "short") == "a red circle passes in front of a blue square"
  assert "moves" not in WORLD.caption(PASS, "long", still=True)
