"""Clips: bytes and floats agree, durations follow the rate, contact sheets show every frame whole."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.clips import Clip, contact_sheet, from_uint8, to_uint8


def test_every_byte_survives_floats():
  levels = np.arange(256, dtype=np.uint8)
  floats = from_uint8(levels)
  assert floats.dtype == np.float32
  assert (floats[0], floats[255]) == (-1.0, 1.0)
  np.testing.assert_array_equal(to_uint8(floats), levels)


def test_bytes_are_rounded_to_the_nearest_level():
  step = 1 / 127.5
  np.testing.assert_array_equal(to_uint8(np.array([-1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step])), [0, 1, 255])


def test_values_outside_the_range_are_clipped():
  np.testing.assert_array_equal(to_uint8(np.array([-9.0, -1.001, 1.001, np.inf])), [0, 0, 255, 255])


@pytest.mark.parametrize(("frames", "fps", "seconds"), [(1, 8.0, 0.125), (17, 8.0, 2.125), (30, 29.97, 30 / 29.97)])
def test_seconds_are_frames_over_rate(frames, fps, seconds):
  assert Clip(np.zeros((frames, 2, 2, 3), np.float32), fps, "", "a").seconds == pytest.approx(seconds)


def find(sheet: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
  """Where `image` stands on the sheet."""
  height, width = image.shape[:2]
  windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))[:, :, 0]
  return [tuple(place) for place in np.argwhere((windows == image).all((-3, -2, -1)))]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3), min_size=1, max_size=3),
  st.integers(0, 3),
)
def test_a_contact_sheet_shows_every_frame_once_in_reading_order(sizes, margin):
  values = iter(range(100, 256))  # one brightness an image, none that of the paper
  rows = [[np.full((h, w, 3), next(values), np.uint8) for h, w in row] for row in sizes]
  sheet = contact_sheet(rows, margin)
  places = [[find(sheet, image) for image in row] for row in rows]
  assert all(len(found) == 1 for row in places for found in row)
  assert all(row == sorted(row, key=lambda found: found[0][1]) for row in places)
  assert [row[0] for row in places] == sorted(row[0] for row in places)
  used = sum(image.shape[0] * image.shape[1] for row in rows for image in row)
  assert (sheet[..., 0] == 96).sum() == sheet[..., 0].size - used


@pytest.mark.parametrize("rows", [[], [[]], [[np.zeros((1, 1, 3), np.uint8)], []]])
def test_a_contact_sheet_without_frames_is_refused(rows):
  with pytest.raises(ValueError, match="at least one frame"):
    contact_sheet(rows)
