"""Background, blobs and their centres."""

import numpy as np
import pytest

from sora_jax.worlds import blobs


def _disc(height, width, row, column, radius):
  distance = np.hypot(*np.meshgrid(np.arange(height) + 0.5 - row, np.arange(width) + 0.5 - column, indexing="ij"))
  return np.clip(0.5 - (distance - radius), 0, 1)


def test_border_colour_ignores_a_blob_at_the_wall():
  frames_THWC = np.full((3, 16, 16, 3), 0.25)
  frames_THWC[:, :6, :6] = -1.0
  np.testing.assert_allclose(blobs.border_colour(frames_THWC), 0.25)


def test_box_mean_is_the_mean_of_the_square():
  image_THW = np.random.default_rng(0).normal(size=(2, 7, 9))
  mean_THW = blobs.box_mean(image_THW, 1)
  assert mean_THW[1, 3, 4] == pytest.approx(image_THW[1, 2:5, 3:6].mean())
  assert mean_THW[0, 0, 0] == pytest.approx(image_THW[0, :2, :2].sum() / 9)
  assert blobs.box_mean(image_THW, 0) is image_THW


def test_densest_point_prefers_a_blob_to_a_speck():
  mask_THW = np.zeros((1, 20, 30))
  mask_THW[0, 2, 2] = 5.0
  mask_THW[0, 10:15, 20:25] = 1.0
  np.testing.assert_allclose(blobs.densest_point(mask_THW, 2), [[12.5, 22.5]])


def test_centroid_is_exact_below_a_pixel():
  mask_THW = np.stack([_disc(24, 40, 10.3, 20.7, 4.2), _disc(24, 40, 8.0, 30.5, 4.2)])
  centres_T2, mass_T = blobs.centroid(mask_THW)
  np.testing.assert_allclose(centres_T2, [[10.3, 20.7], [8.0, 30.5]], atol=0.02)
  np.testing.assert_allclose(mass_T, np.pi * 4.2**2, rtol=0.01)


def test_centroid_of_nothing_is_the_middle():
  centres_T2, mass_T = blobs.centroid(np.zeros((1, 6, 8)))
  np.testing.assert_allclose(centres_T2, [[3, 4]])
  assert mass_T[0] == 0


def test_near_is_a_disc_of_its_own_radius_in_each_frame():
  near_THW = blobs.near(np.array([[8.0, 8.0], [8.0, 8.0]]), np.array([2.0, 5.0]), 16, 16)
  assert near_THW[0].sum() < near_THW[1].sum()
  assert near_THW[1, 8, 12] and not near_THW[0, 8, 12]


def test_shrink_takes_block_means():
  frames_THWC = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
  small_THWC = blobs.shrink(frames_THWC, 2)
  assert small_THWC.shape == (2, 2, 3, 3)
  np.testing.assert_allclose(small_THWC[1, 0, 2], frames_THWC[1, :2, 4:6].mean(axis=(0, 1)))


@pytest.mark.parametrize(
  ("names", "fine"),
  [
    (["a"] * 4 + ["b"], True),
    (["a"] * 3 + ["b"] * 2, False),
    (["a"] * 2 + ["none"] * 2, True),  # what can't be told is no other name
    (["a"] + ["none"] * 2, False),
    ([], False),
  ],
)
def test_a_name_is_shown_by_half_of_the_frames_and_another_by_a_fifth_at_most(names, fine):
  assert blobs.shown(names, "a") == fine


def test_what_no_frame_shows_is_not_shown():
  assert not blobs.shown(["none"] * 3, "none")


def test_the_commonest_name_is_that_of_most_frames():
  assert blobs.commonest(["b", "a", "none", "a"]) == "a" and blobs.commonest([]) == "none"


@pytest.mark.parametrize(
  ("way", "fine"),
  [
    ([0.1] * 5, True),
    ([0.2] * 4 + [-0.1], True),  # one of five goes back
    ([0.3] * 3 + [-0.1] * 2, False),
    ([-0.1] * 5, False),
    ([0.04] * 5, False),  # too slow
    ([0.21] * 5, False),  # too fast
    ([], False),
  ],
)
def test_a_track_goes_as_it_should_in_most_steps_and_about_as_far(way, fine):
  for sign in (1, -1):
    assert blobs.goes(sign * np.array(way), sign * np.full(len(way), 0.1), 0.7) == fine
