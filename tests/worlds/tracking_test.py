"""Points followed through clips, and rigid cameras."""

import numpy as np
import pytest

from sora_jax.worlds import camera3d, tracking


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  coarse = rng.normal(size=(height // 4 + 2, width // 4 + 2))
  return tracking._smoothed(tracking._smoothed(np.kron(coarse, np.ones((4, 4)))[:height, :width]))


@pytest.mark.parametrize("way", [(0.0, 1.0), (1.5, -0.5), (3.0, 2.0)])
def test_a_shift_is_followed_to_a_tenth_of_a_pixel(way):
  large, frames = textured(160, 160), 6
  rows, columns = np.arange(64) + 40.0, np.arange(96) + 30.0

  def view(frame: int) -> np.ndarray:
    """The texture, bilinear, moved by `way` a frame."""
    at = [axis - frame * by for axis, by in zip((rows, columns), way, strict=True)]
    low = [np.floor(each).astype(int) for each in at]
    part = [each - floor for each, floor in zip(at, low, strict=True)]
    top = large[np.ix_(low[0], low[1])] * (1 - part[1]) + large[np.ix_(low[0], low[1] + 1)] * part[1]
    bottom = large[np.ix_(low[0] + 1, low[1])] * (1 - part[1]) + large[np.ix_(low[0] + 1, low[1] + 1)] * part[1]
    return top * (1 - part[0][:, None]) + bottom * part[0][:, None]

  ways_PT2 = tracking.follow(np.stack([view(frame) for frame in range(frames)]))
  steps_PT2 = np.diff(ways_PT2, axis=1) * 64
  seen = ~np.isnan(steps_PT2[..., 0])
  assert seen.sum() > 100
  assert np.median(np.abs(steps_PT2[seen] - way)) < 0.1


def test_nothing_is_followed_where_there_is_nothing():
  assert tracking.follow(np.zeros((3, 32, 32))).shape == (0, 3, 2)
  assert tracking.follow(np.zeros((3, 4, 4))).shape == (0, 3, 2)
  assert tracking.middle(np.zeros(3)) == np.inf


def scene(move: str, noise: float = 0.0):
  """Projections of 40 points on the ground and above it, and the camera."""
  rng = np.random.default_rng(0)
  points_P3 = rng.uniform([-1.2, -0.5, 0], [1.2, 2, 0.8], (40, 3))
  turns_T33, places_T3 = camera3d.poses(move, np.arange(17) / 8)
  ways_PT2 = tracking._project(points_P3, turns_T33, places_T3, camera3d.FOCAL)
  return ways_PT2 + rng.normal(size=ways_PT2.shape) * noise, turns_T33, places_T3


@pytest.mark.parametrize("move", camera3d.MOVES)
def test_the_true_camera_explains_exact_projections(move):
  ways_PT2, turns_T33, places_T3 = scene(move)
  assert tracking.middle(tracking.depth_errors(ways_PT2, turns_T33, places_T3, camera3d.FOCAL)) < 2e-4
  others = [other for other in camera3d.MOVES if other != move]
  for other in others:
    wrong = camera3d.poses(other, np.arange(17) / 8)
    assert tracking.middle(tracking.depth_errors(ways_PT2, *wrong, camera3d.FOCAL)) > 3e-3


def test_the_best_rigid_camera_is_found_from_a_wrong_one():
  """A camera that shakes: the poses given know nothing of it."""
  ways_PT2, turns_T33, places_T3 = scene("orbits left")
  rng = np.random.default_rng(1)
  shaken = np.stack([tracking._turned(rng.normal(size=3) * 0.02) @ turn for turn in turns_T33])
  before = tracking.middle(tracking.depth_errors(ways_PT2, shaken, places_T3, camera3d.FOCAL))
  after = tracking.rigid_error(ways_PT2, shaken, places_T3, camera3d.FOCAL)
  assert before > 0.01 and after < 0.25 * before


def test_points_that_move_by_themselves_are_not_rigid():
  ways_PT2, turns_T33, places_T3 = scene("orbits left", noise=0.05)
  assert tracking.rigid_error(ways_PT2, turns_T33, places_T3, camera3d.FOCAL) > 0.02


def test_gaps_in_ways_are_left_out():
  ways_PT2, turns_T33, places_T3 = scene("orbits left")
  ways_PT2[::2, :8] = np.nan
  ways_PT2[0, :-1] = np.nan  # seen once: tells nothing
  errors_P = tracking.depth_errors(ways_PT2, turns_T33, places_T3, camera3d.FOCAL)
  assert len(errors_P) == 39 and np.median(errors_P) < 2e-4
