"""Permanence: what is read of shapes that pass behind a screen or leave the frame."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import hues, occlusion
from tests.worlds import exams

WORLD = occlusion.Occlusion()
STATE = occlusion.OcclusionState(("red",), ("circle",), True, "right", "slow", 0.15)
SIZE = (64, 112)


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD, 2).values()) == 1.0


def test_a_spoiled_clip_is_read_too():
  assert min(exams.spoiled_marks(WORLD, 8).values()) >= 0.8


def test_training_never_shows_what_is_held_out():
  pairs = lambda state: set(zip(state.colours, state.figures, strict=True))
  seen, unseen = exams.held_out_states(WORLD)
  assert not any(pairs(state) & set(occlusion.HELD_OUT) for state in seen)
  assert all(pairs(state) <= set(occlusion.HELD_OUT) for state in unseen)


def test_a_shape_is_hidden_and_comes_back_where_its_speed_brings_it():
  times_T = np.arange(65) / 16
  ((_, x_T),) = (track_T2.T for track_T2 in occlusion.centres(STATE, *SIZE, times_T))
  share_T = occlusion.seen_share(STATE, *SIZE, x_T)
  phases = occlusion.Phases.of(share_T)
  assert phases.before_T[0] and phases.hidden_T.any() and phases.after_T.any()
  np.testing.assert_allclose(np.diff(x_T)[:20], 0.4 / 16)


@pytest.mark.parametrize(
  ("change", "wrong"),
  [({"colours": ("blue",)}, "identity"), ({"figures": ("square",)}, "identity"), ({"speed": "fast"}, "place")],
)
def test_what_comes_back_otherwise_is_marked_wrong(change, wrong):
  """The second half of the clip shows another colour or shape, or comes late."""
  before, after = (WORLD.render(state, *SIZE, 33, 8.0) for state in (STATE, dataclasses.replace(STATE, **change)))
  marks = WORLD.examine(np.concatenate([before[:9], after[9:]]), 8.0, STATE)
  assert marks[wrong] == 0.0 and marks["colour"] == marks["shape"] == marks["direction"] == 1.0


def test_a_shape_in_front_of_its_screen_is_not_hidden():
  open_state = dataclasses.replace(
    STATE, screen=False, gap=(SIZE[1] / SIZE[0] + occlusion.SCREEN_WIDTH) / 2 + STATE.gap
  )
  frames_THWC = WORLD.render(open_state, *SIZE, 33, 8.0)
  assert WORLD.examine(frames_THWC, 8.0, STATE)["hidden"] == 0.0


def test_a_shape_that_never_comes_back_is_no_permanence():
  frames_THWC = WORLD.render(STATE, *SIZE, 33, 8.0)
  frames_THWC[9:] = frames_THWC[9]
  marks = WORLD.examine(frames_THWC, 8.0, STATE)
  assert marks["identity"] == marks["place"] == 0.0 and marks["hidden"] == 1.0


@pytest.mark.parametrize("colour", ["red", "green"])
def test_something_else_that_is_seen_is_wrong(colour):
  frames_THWC = WORLD.render(STATE, *SIZE, 33, 8.0)
  frames_THWC[:, 28:36, 100:108] = hues.HUES[colour]
  assert WORLD.examine(frames_THWC, 8.0, STATE)["colour"] == 0.0


@pytest.mark.parametrize("size", [(96, 96), (128, 64), (96, 112), (96, 176)])
@pytest.mark.parametrize("screen", [True, False])
def test_both_shapes_begin_in_sight_and_are_examined_whatever_the_frame(size, screen):
  state = occlusion.OcclusionState(("red", "blue"), ("circle", "square"), screen, "right", "slow", 0.2)
  tracks = occlusion.centres(state, *size, np.zeros(1))
  shares = [occlusion.seen_share(state, *size, track_T2[:, 1])[0] for track_T2 in tracks]
  assert shares == [1.0, 1.0] and tracks[0][0, 1] - tracks[1][0, 1] >= 0.99 * occlusion.LEAST_LEAD
  other = dataclasses.replace(state, colours=("red", "green"), figures=("circle", "triangle"))
  marks = WORLD.examine(WORLD.render(other, *size, 33, 8.0), 8.0, state)
  assert marks["colour"] == marks["shape"] == 0.0


def test_what_never_goes_has_not_come_back():
  frames_THWC = np.repeat(WORLD.render(STATE, 96, 64, 1, 8.0), 33, axis=0)
  marks = WORLD.examine(frames_THWC, 8.0, dataclasses.replace(STATE, screen=False))
  assert marks["identity"] == marks["hidden"] == 0.0


def test_the_second_must_not_come_back_first():
  state = occlusion.OcclusionState(("red", "blue"), ("circle", "square"), True, "right", "fast", 0.03)
  swapped = dataclasses.replace(state, colours=("blue", "red"), figures=("square", "circle"))
  frames_THWC = WORLD.render(swapped, *SIZE, 33, 8.0)[:, ::-1]  # lanes upside down: the lower one is ahead
  assert WORLD.examine(WORLD.render(state, *SIZE, 33, 8.0), 8.0, state)["order"] == 1.0
  assert WORLD.examine(frames_THWC, 8.0, state)["order"] == 0.0


def test_captions_name_what_hides():
  assert WORLD.caption(STATE, "short") == "a red circle goes behind the screen and comes back"
  assert "behind" not in WORLD.caption(STATE, "long", still=True)
  assert set(STATE.colours) <= set(hues.HUES)


@pytest.mark.parametrize(("change", "wrong"), [({"colours": ("blue",)}, "colour"), ({"figures": ("square",)}, "shape")])
def test_a_shape_that_changes_before_it_is_hidden_is_wrong(change, wrong):
  frames_THWC, other_THWC = (
    WORLD.render(each, *SIZE, 33, 16.0) for each in (STATE, dataclasses.replace(STATE, **change))
  )
  frames_THWC[3:5] = other_THWC[3:5]  # of the six that show it whole
  assert WORLD.examine(frames_THWC, 16.0, STATE)[wrong] == 0.0


def test_a_screen_that_is_gone_while_it_hides_is_wrong():
  frames_THWC = WORLD.render(STATE, *SIZE, 33, 8.0)
  ((_, x_T),) = (track_T2.T for track_T2 in occlusion.centres(STATE, *SIZE, np.arange(33) / 8))
  frames_THWC[occlusion.Phases.of(occlusion.seen_share(STATE, *SIZE, x_T)).hidden_T] = occlusion.GROUND
  assert WORLD.examine(frames_THWC, 8.0, STATE)["screen"] == 0.0


@pytest.mark.parametrize("speed", [0.1, 5.0])
def test_a_shape_that_hardly_moves_or_rushes_has_another_direction(speed):
  marks = WORLD.examine(WORLD.render(STATE, *SIZE, 5, 16.0 / speed), 16.0, STATE)
  assert marks["direction"] == 0.0 and marks["colour"] == 1.0
