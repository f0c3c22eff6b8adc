"""Strokes that stay."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import painter
from tests.worlds import exams

WORLD = painter.Painter()
STROKES = (painter.Stroke("red", "top left", "bottom left"), painter.Stroke("blue", "top", "right"))
STATE = painter.PainterState(STROKES, 0)


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD, 2).values()) == 1.0


def test_a_spoiled_clip_is_read_too():
  assert min(exams.spoiled_marks(WORLD, 8).values()) >= 0.8


def test_training_never_shows_what_is_held_out():
  pairs = lambda state: [(stroke.colour, stroke.end) for stroke in state.strokes]
  seen, unseen = exams.held_out_states(WORLD, 60)
  assert not any(set(pairs(state)) & set(painter.HELD_OUT) for state in seen)
  assert all(pairs(state)[0] in painter.HELD_OUT for state in unseen)


def test_progress_goes_stroke_by_stroke():
  share_KT = painter.progress(STATE, np.array([0.0, 0.4, 0.8, 1.2, 9.0]))
  np.testing.assert_allclose(share_KT, [[0, 0.5, 1, 1, 1], [0, 0, 0, 0.5, 1]])
  done = painter.progress(dataclasses.replace(STATE, done=1), np.zeros(1))
  np.testing.assert_allclose(done, [[1], [0]])


def test_the_brush_is_at_the_tip_and_rests_at_the_end():
  path_T2 = painter.brush(STATE, (1.0, 1.0), np.array([0.0, 0.4, 9.0]))
  np.testing.assert_allclose(path_T2, [[0.18, 0.18], [0.5, 0.18], [0.5, 0.82]])


def test_a_stroke_that_fades_does_not_stay():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  frames_THWC[20:, :, :20] = painter.CANVAS  # the first stroke goes
  marks = WORLD.examine(frames_THWC, 8.0, STATE)
  assert marks["strokes"] == marks["stays"] == 0.5 and marks["brush"] == 1.0


@pytest.mark.parametrize(
  ("strokes", "wrong"),
  [
    ((painter.Stroke("green", "top left", "bottom left"), STROKES[1]), "strokes"),  # another colour
    ((painter.Stroke("red", "bottom left", "bottom right"), STROKES[1]), "strokes"),  # another path
    (STROKES[::-1], "order"),
    ((*STROKES, painter.Stroke("green", "centre", "bottom right")), "clean"),
  ],
)
def test_other_strokes_are_wrong(strokes, wrong):
  frames_THWC = WORLD.render(painter.PainterState(strokes, 0), 64, 64, 33, 8.0)
  assert WORLD.examine(frames_THWC, 8.0, STATE)[wrong] < 1.0


def test_the_stroke_that_is_being_made_counts():
  frames_THWC = WORLD.render(STATE, 64, 64, 9, 16.0)  # five eighths of the first
  assert set(WORLD.examine(frames_THWC, 16.0, STATE).values()) == {1.0}
  other = dataclasses.replace(STATE, strokes=(painter.Stroke("green", "top left", "bottom left"), STROKES[1]))
  assert WORLD.examine(WORLD.render(other, 64, 64, 9, 16.0), 16.0, STATE)["strokes"] == 0.0
  frames_THWC[frames_THWC.max(axis=-1) - frames_THWC.min(axis=-1) > 0.2] = painter.CANVAS
  assert WORLD.examine(frames_THWC, 16.0, STATE)["strokes"] == 0.0


def test_a_canvas_that_is_painted_over_for_a_while_is_not_clean():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  frames_THWC[5:31, :32] = (-0.8, 0.9, 0.9)
  assert WORLD.examine(frames_THWC, 8.0, STATE)["clean"] == 0.0


def test_captions_say_what_is_there_and_what_comes():
  state = dataclasses.replace(STATE, done=1)
  assert (
    WORLD.caption(state, "long", still=True)
    == "A brush on a white canvas with a red stroke from the top left to the bottom left."
  )
  assert WORLD.caption(state, "short") == "a brush paints a blue stroke on a canvas"


def test_a_stroke_that_is_gone_for_a_while_does_not_stay():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  frames_THWC[15:24, :, :20] = painter.CANVAS
  marks = WORLD.examine(frames_THWC, 8.0, STATE)
  assert marks["strokes"] == 1.0 and marks["stays"] == 0.5


def test_strokes_that_pop_up_whole_or_late_are_not_in_order():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 16.0)
  popped_THWC = frames_THWC.copy()
  popped_THWC[:13, :, :20] = painter.CANVAS  # the first stroke is there when it is finished, at .8 s
  assert WORLD.examine(frames_THWC, 16.0, STATE)["order"] == 1.0
  assert WORLD.examine(popped_THWC, 16.0, STATE)["order"] == 0.0
  begun = dataclasses.replace(STATE, done=1)
  late_THWC = WORLD.render(begun, 64, 64, 33, 16.0)
  late_THWC[:20, :, :20] = painter.CANVAS
  assert WORLD.examine(late_THWC, 16.0, begun)["order"] == 0.0


def test_a_brush_that_is_gone_for_half_of_the_time_is_wrong():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  assert WORLD.examine(frames_THWC, 8.0, STATE)["brush"] == 1.0
  part_THWC = frames_THWC[15:29]
  part_THWC[part_THWC.max(-1) < 0.5] = painter.CANVAS  # the brush alone is as dark
  assert WORLD.examine(frames_THWC, 8.0, STATE)["brush"] == 0.0
