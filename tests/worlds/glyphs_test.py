"""Moving glyphs: the recipe of Moving MNIST to the pixel, and letters and ways read back."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import glyphs
from tests.worlds import exams

WORLD = glyphs.Glyphs()
STATE = glyphs.GlyphsState(("A", "K"), ((0.2, 0.3), (0.8, 0.6)), (0.7, 4.0))


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD, 2).values()) >= 0.98


def test_training_never_shows_what_is_held_out():
  seen, unseen = exams.held_out_states(WORLD)
  assert not any(state.letters in glyphs.HELD_OUT for state in seen)
  assert all(state.letters in glyphs.HELD_OUT for state in unseen)
  known = {letter for pair in glyphs.PAIRS if pair not in glyphs.HELD_OUT for letter in pair}
  assert known == set(glyphs.LETTERS)


def test_a_clip_is_that_of_the_recipe():
  """Step by step as the paper has it, on 64x64 pixels with boxes of 28 and 36 pixels of free way."""
  frames_THWC = WORLD.render(STATE, 64, 64, 20, glyphs.RATE)
  places, steps = np.array(STATE.places), 0.1 * np.stack([np.sin(STATE.angles), np.cos(STATE.angles)], 1)
  for frame_HWC in frames_THWC:
    wanted = np.zeros((64, 64), np.float32)
    for number, letter in enumerate(STATE.letters):
      for axis in (0, 1):
        places[number, axis] += steps[number, axis]
        if places[number, axis] <= 0 or places[number, axis] >= 1:
          places[number, axis] = min(max(places[number, axis], 0.0), 1.0)
          steps[number, axis] = -steps[number, axis]
      top, left = (36 * places[number]).astype(int)
      room = wanted[top : top + 28, left : left + 28]
      room[:] = np.maximum(room, glyphs.glyph(letter, 28))
    np.testing.assert_allclose((frame_HWC[..., 0] + 1) / 2, wanted, atol=1e-6)


def test_glyphs_fill_as_much_of_their_box_as_digits_do():
  for letter in glyphs.LETTERS:
    rows, columns = np.nonzero(glyphs.glyph(letter, 28) > 0.1)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20) and rows.min() >= 4


def test_between_two_steps_a_glyph_is_between_two_places():
  steps = glyphs.path(STATE, np.arange(4) / glyphs.RATE)
  np.testing.assert_allclose(glyphs.path(STATE, np.array([0.15]))[0], (steps[1] + steps[2]) / 2)


@pytest.mark.parametrize(
  ("changes", "letters", "path"),
  [
    ({"letters": ("A", "R")}, 0.5, 0.5),
    ({"letters": ("B", "R")}, 0.0, 0.0),
    ({"angles": (2.5, 1.0)}, 1.0, None),
  ],
)
def test_other_letters_and_ways_are_told(changes, letters, path):
  marks = WORLD.examine(WORLD.render(dataclasses.replace(STATE, **changes), 64, 64, 20, 10.0), 10.0, STATE)
  assert marks["letters"] == letters
  assert marks["path"] == pytest.approx(path, abs=0.1) if path is not None else marks["path"] < 0.5


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_in_a_plain_clip_nothing_is_read(value):
  assert WORLD.examine(np.full((5, 64, 64, 3), value), 10.0, STATE) == {"letters": 0.0, "path": 0.0}


def test_captions_name_the_letters():
  assert WORLD.caption(STATE, "short") == "A and K"
  assert WORLD.caption(STATE, "long", still=True) == "The white letters A and K on black."
