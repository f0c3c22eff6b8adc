"""Reading discs back: tracks, mended frames, velocity errors."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import balls, physics

UNIFORM = physics.Uniform()
COLLISION = physics.Collision()


@pytest.mark.parametrize("world", [UNIFORM, physics.Parabola(), COLLISION], ids=lambda world: world.name)
@pytest.mark.parametrize("side, clips, floor", [(32, 16, 0.06), (256, 2, 0.012)])
def test_velocity_error_floor_on_real_renders(world, side, clips, floor):
  rng = np.random.default_rng(0)
  errors = []
  for _ in range(clips):
    state = world.sample(rng)
    errors.append(world.velocity_error(world.render(state, side, side, 32, 10.0), 10.0, state))
  assert np.mean(errors) < floor


def test_velocity_error_measures_a_wrong_velocity():
  state = physics.BallState(radius=1.0, x=1.5, y=5.0, velocity=1.0)
  faster = dataclasses.replace(state, velocity=1.5)
  frames_THWC = UNIFORM.render(faster, 64, 64, 32, 10.0)
  assert UNIFORM.velocity_error(frames_THWC, 10.0, state) == pytest.approx(0.5, abs=0.02)
  assert UNIFORM.examine(frames_THWC, 10.0, state) == {"present": 1.0, "size": 1.0, "velocity": 0.0}


def test_a_ball_that_is_not_there_counts_as_still():
  state = physics.BallState(radius=1.0, x=1.5, y=5.0, velocity=1.5)
  assert UNIFORM.velocity_error(np.ones((8, 32, 32, 3)), 10.0, state) == pytest.approx(1.5)


def test_velocity_error_of_an_image_is_undefined():
  state = UNIFORM.sample(np.random.default_rng(0))
  assert np.isnan(UNIFORM.velocity_error(UNIFORM.render(state, 32, 32, 1, 10.0), 10.0, state))


def test_tracks_are_in_world_units_at_any_aspect():
  state = COLLISION.sample(np.random.default_rng(3))
  for height, width in ((64, 64), (48, 90), (90, 48), (200, 230)):
    tracks = COLLISION.read(COLLISION.render(state, height, width, 12, 10.0), 10.0)
    np.testing.assert_allclose(tracks.centres_NT2, COLLISION.centres(state, tracks.times_T), atol=0.05)
    np.testing.assert_allclose(tracks.radii_N, COLLISION.radii(state), rtol=0.03)


def test_a_ball_that_has_left_is_not_seen():
  state = physics.BallState(radius=1.0, x=1.0, y=5.0, velocity=6.0)
  tracks = UNIFORM.read(UNIFORM.render(state, 32, 32, 32, 10.0), 10.0)
  seen_T = ~np.isnan(tracks.centres_NT2[0, :, 0])
  assert seen_T[:14].all() and not seen_T[18:].any()


def test_a_ball_of_another_colour_is_not_taken_for_it():
  state = UNIFORM.sample(np.random.default_rng(0))
  blue_THWC = UNIFORM.render(state, 32, 32, 9, 10.0)[..., ::-1]
  assert UNIFORM.examine(blue_THWC, 10.0, state) == {"present": 0.0, "size": 0.0, "velocity": 0.0}


def test_a_ball_that_vanishes_is_not_present():
  state = physics.BallState(radius=1.0, x=1.5, y=5.0, velocity=1.5)
  frames_THWC = UNIFORM.render(state, 32, 32, 16, 10.0)
  frames_THWC[7] = 1.0
  assert UNIFORM.examine(frames_THWC, 10.0, state) == {"present": 0.0, "size": 1.0, "velocity": 1.0}


def _mended(track_T2: np.ndarray) -> np.ndarray:
  return balls._mend(track_T2[None])[0]


@pytest.mark.parametrize("broken", range(8))
def test_one_broken_frame_is_mended(broken):
  track_T2 = np.stack([np.arange(8) * 0.4 + 1, np.full(8, 5.0)], axis=1)
  spoilt_T2 = track_T2.copy()
  spoilt_T2[broken] += [2.0, -1.0]
  np.testing.assert_allclose(_mended(spoilt_T2), track_T2)
  spoilt_T2[broken] = np.nan
  np.testing.assert_allclose(_mended(spoilt_T2), track_T2)


def test_real_motion_is_not_mended():
  for world in (physics.Uniform(), physics.Parabola(), physics.Collision()):
    for seed in range(20):
      centres_NT2 = world.centres(world.sample(np.random.default_rng(seed)), np.arange(32) / 10)
      np.testing.assert_allclose(balls._mend(centres_NT2), centres_NT2, atol=1e-9)


def test_tracks_that_are_gone_or_short_are_left():
  gone_NT2 = np.full((1, 6, 2), np.nan)
  assert np.isnan(balls._mend(gone_NT2)).all()
  two_NT2 = np.array([[[0.0, 0.0], [5.0, 5.0]]])
  assert balls._mend(two_NT2) is two_NT2


@pytest.mark.parametrize("world", [UNIFORM, COLLISION], ids=lambda world: world.name)
def test_a_ball_that_sinks_has_another_velocity(world):
  state = world.sample(np.random.default_rng(3))
  sinking = lambda times_T: world.centres(state, times_T) - [0.0, 0.5] * times_T[:, None]
  frames_THWC = world._drawn(sinking(np.arange(25) / 10), world.radii(state), 64, 64)
  assert world.examine(frames_THWC, 10.0, state)["velocity"] == 0.0
  assert world.examine(world.render(state, 64, 64, 25, 10.0), 10.0, state)["velocity"] == 1.0


def test_a_ball_that_swells_has_another_size():
  state = physics.BallState(radius=1.0, x=2.0, y=5.0, velocity=1.5)
  frames_THWC = UNIFORM.render(state, 96, 96, 33, 10.0)
  frames_THWC[18:] = UNIFORM.render(dataclasses.replace(state, radius=2.0), 96, 96, 33, 10.0)[18:]
  assert UNIFORM.examine(frames_THWC, 10.0, state)["size"] == 0.0


@pytest.mark.parametrize("colour", balls.BALL_COLOURS)
def test_a_second_ball_is_one_too_many(colour):
  state = physics.BallState(radius=1.0, x=2.0, y=3.0, velocity=1.5)
  frames_THWC = UNIFORM.render(state, 96, 96, 33, 10.0)
  frames_THWC[:, 15:31, 60:76] = balls.BALL_COLOURS[colour]
  assert UNIFORM.examine(frames_THWC, 10.0, state)["present"] == 0.0


def test_an_impact_in_the_last_frames_is_no_broken_one():
  values = (0.5051123331864612, 2.5056718487525815, 3.926841999799377)  # found by search
  others = (1.0566468745548285, 8.167418066082996, -1.0470595155211897, 3.064552959200708)
  state = physics.PairState(*values, *others)
  assert COLLISION.examine(COLLISION.render(state, 64, 64, 7, 6.0), 6.0, state)["velocity"] == 1.0
