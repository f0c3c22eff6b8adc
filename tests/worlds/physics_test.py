"""The three worlds of balls: ranges, exact motion, words, and the ceiling of their examiners."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sora_jax.evaluation import marks
from sora_jax.worlds import physics

WORLDS = (physics.Uniform(), physics.Parabola(), physics.Collision())
each_world = pytest.mark.parametrize("balls", WORLDS, ids=lambda balls: balls.name)
SIZES = ((32, 32), (40, 24), (48, 48), (36, 64))


def _clips(balls, count: int, seed: int, noise: float = 0.0):
  """States and clips of mixed sizes, rates and durations; noise also breaks one frame of each."""
  rng = np.random.default_rng(seed)
  states, clips = [], []
  for index in range(count):
    height, width = SIZES[index % len(SIZES)]
    state, fps = balls.sample(rng), float(rng.uniform(8, 12))
    frames_THWC = balls.render(state, height, width, int(rng.integers(9, 34)), fps)
    if noise:
      frames_THWC = frames_THWC + rng.normal(0, noise, frames_THWC.shape)
      frames_THWC[rng.integers(len(frames_THWC))] = rng.uniform(-1, 1, frames_THWC.shape[1:])
    states.append(state)
    clips.append((frames_THWC, fps))
  return states, clips


@each_world
def test_examiner_reads_real_renders(balls):
  scores = marks.exam(balls, *_clips(balls, 100, seed=0))
  assert set(scores) == set(balls.attributes)
  assert min(scores.values()) >= 0.98, scores


@each_world
def test_examiner_reads_noisy_clips_with_a_broken_frame(balls):
  scores = marks.exam(balls, *_clips(balls, 100, seed=1, noise=0.08))
  assert min(scores.values()) >= 0.95, scores


@each_world
def test_examiner_shown_the_wrong_clip_scores_chance(balls):
  states, clips = _clips(balls, 80, seed=2)
  scores = marks.exam(balls, states[1:] + states[:1], clips)
  expected = marks.chance(balls, states, np.random.default_rng(0), guesses=6)
  for attribute in ("size", "velocity"):
    assert scores[attribute] == pytest.approx(expected[attribute], abs=0.15), attribute


@each_world
@pytest.mark.parametrize("kind", ["plain", "noise", "nan"])
def test_nothing_to_see_scores_zero(balls, kind):
  shape = (9, 32, 32, 3)
  noise = np.random.default_rng(0).uniform(-1, 1, shape)
  frames_THWC = {"plain": np.ones(shape), "noise": noise, "nan": np.full(shape, np.nan)}[kind]
  answer = balls.examine(frames_THWC, 10.0, balls.sample(np.random.default_rng(0)))
  assert answer == dict.fromkeys(balls.attributes, 0.0)


@each_world
def test_an_image_has_no_velocity(balls):
  state = balls.sample(np.random.default_rng(0))
  answer = balls.examine(balls.render(state, 64, 64, 1, 10.0), 10.0, state)
  assert answer == {"present": 1.0, "size": 1.0}


@each_world
@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.integers(7, 40), st.integers(7, 40), st.booleans())
def test_same_seed_same_clip_and_longer_or_faster_clips_agree(balls, seed, height, width, held_out):
  state = balls.sample(np.random.default_rng(seed), held_out)
  assert state == balls.sample(np.random.default_rng(seed), held_out)
  assert type(state)(**json.loads(json.dumps(dataclasses.asdict(state)))) == state
  short_THWC = balls.render(state, height, width, 5, 10.0)
  assert short_THWC.shape == (5, height, width, 3) and short_THWC.dtype == np.float32
  assert short_THWC.min() >= -1 and short_THWC.max() <= 1
  np.testing.assert_array_equal(balls.render(state, height, width, 9, 10.0)[:5], short_THWC)
  np.testing.assert_array_equal(balls.render(state, height, width, 9, 20.0)[::2], short_THWC)


def _within(value: float, ranges) -> bool:
  return any(low <= value <= high for low, high in ranges)


@pytest.mark.parametrize("balls", WORLDS[:2], ids=lambda balls: balls.name)
def test_single_balls_keep_to_their_ranges(balls):
  rng = np.random.default_rng(0)
  for held_out in (False, True):
    for state in (balls.sample(rng, held_out) for _ in range(300)):
      trained = (
        _within(state.velocity, physics.SPEED_RANGES[0]),
        _within(state.radius, physics.RADIUS_RANGES[0]),
      )
      assert all(trained) != held_out
      assert trained[0] or _within(state.velocity, physics.SPEED_RANGES[1])
      assert trained[1] or _within(state.radius, physics.RADIUS_RANGES[1])
      assert balls._inside(balls.describe(state), state)[0, 0]  # wholly inside at the start


def test_collisions_keep_to_their_ranges_and_happen_in_time():
  rng, balls = np.random.default_rng(0), physics.Collision()
  for held_out in (False, True):
    for state in (balls.sample(rng, held_out) for _ in range(300)):
      speeds, radii = (state.red_velocity, -state.blue_velocity), balls.radii(state)
      trained = [_within(speed, physics.SPEED_RANGES[0]) for speed in speeds]
      trained += [_within(radius, physics.COLLISION_RADIUS_RANGES[0]) for radius in radii]
      assert all(trained) != held_out
      assert balls._inside(balls.describe(state), state)[:, 0].all()
      times_T = np.arange(32) / 10
      seconds = physics.collide(state)[0]
      assert (times_T < seconds - 1e-9).sum() >= 8 and (times_T > seconds + 1e-9).sum() >= 8


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.booleans())
def test_collisions_conserve_momentum_and_energy(seed, held_out):
  balls = physics.Collision()
  state = balls.sample(np.random.default_rng(seed), held_out)
  seconds = physics.collide(state)[0]
  times_T = np.array([0.0, seconds - 1e-3, seconds + 1e-3, seconds + 1.0])
  before_N, after_N = (np.diff(balls.centres(state, times_T)[..., 0], axis=1) / np.diff(times_T))[:, [0, 2]].T
  masses_N = balls.radii(state) ** 2
  assert masses_N @ before_N == pytest.approx(masses_N @ after_N, abs=1e-6)
  assert masses_N @ before_N**2 == pytest.approx(masses_N @ after_N**2, abs=1e-6)
  assert after_N[0] < after_N[1]  # they move apart


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.integers(0, 2**32))
def test_balls_never_overlap_and_touch_at_the_impact(seed):
  balls = physics.Collision()
  state = balls.sample(np.random.default_rng(seed))
  times_T = np.append(np.linspace(0, 5, 100), physics.collide(state)[0])
  gap_T = np.diff(balls.centres(state, times_T)[..., 0], axis=0)[0] - balls.radii(state).sum()
  assert gap_T.min() >= -1e-9
  assert gap_T[-1] == pytest.approx(0, abs=1e-9)


def test_a_thrown_ball_falls_with_gravity():
  balls = physics.Parabola()
  state = physics.BallState(radius=1.0, x=1.0, y=8.0, velocity=2.0)
  np.testing.assert_allclose(balls.centres(state, np.array([0.0, 2.0])), [[[1, 8], [5, 3]]])
  # The same throw without gravity is judged wrong in the fall alone.
  floating_THWC = physics.Uniform().render(state, 48, 48, 20, 10.0)
  answer = balls.examine(floating_THWC, 10.0, state)
  assert answer == {"present": 1.0, "size": 1.0, "velocity": 1.0, "fall": 0.0}


def test_a_wide_frame_shows_more_world():
  state = physics.BallState(radius=1.0, x=1.0, y=5.0, velocity=4.0)
  narrow_THWC = physics.Uniform().render(state, 32, 32, 32, 10.0)
  wide_THWC = physics.Uniform().render(state, 32, 64, 32, 10.0)
  np.testing.assert_allclose(wide_THWC[:, :, 16:48], narrow_THWC, atol=1e-4)
  assert (narrow_THWC[28] == 1).all() and wide_THWC[28].min() == -1


@each_world
def test_captions_say_colour_and_motion(balls):
  state = balls.sample(np.random.default_rng(0))
  for style in ("short", "long"):
    moving, still = balls.caption(state, style), balls.caption(state, style, still=True)
    assert all(f"{colour} ball" in moving and f"{colour} ball" in still for colour in balls.colours)
    assert not set(still.split()) & {"moves", "falls", "collide", "thrown"}
  with pytest.raises(ValueError, match="short, long"):
    balls.caption(state, "poem")


def test_captions_say_size_and_speed():
  uniform, parabola, collision = WORLDS
  assert uniform.caption(physics.BallState(0.8, 1, 5, 1.5), "short") == "a red ball moves right"
  long = uniform.caption(physics.BallState(0.8, 1, 5, 1.5), "long")
  assert long == "A small red ball on a white background moves slowly to the right."
  long = parabola.caption(physics.BallState(1.3, 1, 8, 3.5), "long")
  assert long == "A large red ball on a white background is thrown fast to the right and falls in a curve."
  pair = physics.PairState(0.6, 1, 3.0, 1.4, 8, -1.5, 5)
  assert collision.caption(pair, "short") == "a red ball and a blue ball collide"
  assert collision.caption(pair, "long").startswith(
    "A small red ball moves fast to the right and a large blue ball moves slowly to the left"
  )


def test_balls_without_forces_go_on_as_the_world_has_them():
  """At the true rate; what is read of the given frames is off by a little, which grows."""
  balls = physics.Uniform()
  state = balls.sample(np.random.default_rng(0))
  real = balls.render(state, 64, 64, 20, 10.0)
  found = balls.extrapolate(real[:3], 10.0, 20)
  assert found.shape == real.shape and found.dtype == np.float32
  np.testing.assert_array_equal(found[:3], real[:3])
  assert np.abs(found - real).mean() < 0.02 < np.abs(real[3:] - real[2]).mean()
  assert balls.extrapolate(real[:3], 10.0, 2).shape == (2, 64, 64, 3)


def test_balls_that_fall_or_meet_do_not():
  for balls, wrong in ((physics.Parabola(), "fall"), (physics.Collision(), "velocity")):
    marked = []
    for seed in range(12):
      state = balls.sample(np.random.default_rng(seed))
      real = balls.render(state, 48, 48, 33, 10.0)
      answer = balls.examine(balls.extrapolate(real[:3], 10.0, 33), 10.0, state)
      marked += [answer[wrong]] if wrong in answer else []
    assert np.mean(marked) < 0.7, balls.name


def test_a_ball_that_is_not_seen_goes_nowhere():
  nothing = np.ones((3, 32, 32, 3), np.float32)
  np.testing.assert_allclose(physics.Uniform().extrapolate(nothing, 10.0, 5), 1.0)
