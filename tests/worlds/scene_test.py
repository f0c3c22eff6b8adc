"""Grid, times, motion and edges that all worlds share."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sora_jax.worlds import scene


@hypothesis.given(st.floats(-50, 50), st.floats(0.01, 5))
def test_bounce_stays_between_the_walls_and_keeps_its_speed(start, length):
  path = start + np.linspace(0, 3, 301) * length
  folded = scene.bounce(path, length)
  assert folded.min() >= -1e-9 and folded.max() <= length + 1e-9
  steps = np.abs(np.diff(folded)) / np.diff(path)
  # A step is slower only where it holds a turn: at most one in each length of the path.
  assert (steps < 1 - 1e-6).sum() <= 4 and steps.max() <= 1 + 1e-6


def test_bounce_starts_at_the_path_and_rests_where_there_is_no_room():
  np.testing.assert_allclose(scene.bounce(np.array([0.0, 0.3, 1.0, 1.2, 2.0, -0.1]), 1.0), [0, 0.3, 1, 0.8, 0, 0.1])
  assert (scene.bounce(np.array([0.5, 3.0]), 0.0) == 0).all()


def test_coverage_is_one_inside_half_on_the_outline_and_zero_outside():
  np.testing.assert_allclose(scene.coverage(np.array([-2.0, -0.25, 0.0, 0.25, 2.0])), [1, 0.75, 0.5, 0.25, 0])
  np.testing.assert_allclose(scene.coverage(np.array([0.25]), edge_px=2.5), [0.4])


def test_the_short_side_is_one_unit():
  rows_H, columns_W = scene.pixel_centres(4, 8)
  np.testing.assert_allclose(rows_H, [0.125, 0.375, 0.625, 0.875])
  assert columns_W[-1] == pytest.approx(1.875)
  assert scene.box_size(4, 8) == (1.0, 2.0)
  assert scene.box_size(9, 3) == (3.0, 1.0)


@pytest.mark.parametrize("frames, height, width", [(1, 1, 1), (17, 32, 32), (7, 1024, 1024), (100, 256, 300)])
def test_frame_blocks_cover_every_frame_once(frames, height, width):
  covered = np.zeros(frames, int)
  for block in scene.frame_blocks(frames, height, width):
    covered[block] += 1
  assert (covered == 1).all()


def test_paint_mixes_by_coverage_and_stays_in_range():
  cover_THW = np.array([[[0.0, 0.5, 1.0]]])
  frames_THWC = scene.paint((1, 1, 1), [(cover_THW, (1, -1, -1)), (cover_THW, (-1, -1, 1))])
  np.testing.assert_allclose(frames_THWC[0, 0], [[1, 1, 1], [0, -1, 0], [-1, -1, -1]])


@pytest.mark.parametrize("frames, fps", [(0, 8), (-1, 8), (3, 0), (3, -2), (3, float("nan")), (3, float("inf"))])
def test_impossible_clips_are_refused(frames, fps):
  with pytest.raises(ValueError, match="frame|fps"):
    scene.frame_times(frames, fps)


def test_an_empty_frame_is_refused():
  with pytest.raises(ValueError, match="1x1"):
    scene.pixel_centres(0, 8)


def test_an_unknown_style_names_the_known_ones():
  with pytest.raises(ValueError, match="'loud'.*short, long"):
    scene.in_style({"short": "a", "long": "b"}, "loud")
