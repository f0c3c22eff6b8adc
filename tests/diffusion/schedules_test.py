"""Noise levels: ends stay ends, shifts move up and undo each other, the logit-normal has the median it should."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.diffusion import schedules

LEVELS = np.linspace(0, 1, 21, dtype=np.float32)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.floats(1, 30))
def test_a_shift_keeps_the_ends_and_the_order_and_moves_up(factor):
  moved = schedules.shift(LEVELS, factor)
  np.testing.assert_allclose(moved[[0, -1]], [0, 1], atol=1e-6)
  assert (np.diff(moved) > 0).all()
  assert (moved >= LEVELS - 1e-6).all()
  np.testing.assert_allclose(schedules.shift(moved, 1 / factor), LEVELS, atol=1e-5)


def test_a_shift_of_one_changes_nothing_and_of_three_moves_the_middle_to_three_quarters():
  np.testing.assert_allclose(schedules.shift(LEVELS, 1.0), LEVELS)
  assert schedules.shift(0.5, 3.0) == pytest.approx(0.75)


def test_the_shift_grows_with_the_root_of_the_size_and_never_falls_below_one():
  tokens = jnp.array([1.0, 64.0, 128.0, 256.0, 1024.0])
  np.testing.assert_allclose(schedules.size_shift(tokens, 64), [1, 1, 2**0.5, 2, 4], rtol=1e-6)


def test_logit_normal_has_its_mean_and_deviation_in_the_logit():
  normal = np.array([-2.0, 0.0, 1.0], np.float32)
  t = np.asarray(schedules.logit_normal(normal, 0.8, 0.5))
  np.testing.assert_allclose(np.log(t / (1 - t)), 0.8 + 0.5 * normal, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_levels_fall_evenly_from_where_a_token_starts_to_data(steps):
  start, factor = np.array([1.0, 0.6, 0.0], np.float32), np.ones(3, np.float32)
  levels = np.asarray(schedules.levels(steps, start, factor))
  assert levels.shape == (steps + 1, 3)
  np.testing.assert_allclose(levels[0], start)
  np.testing.assert_array_equal(levels[-1], 0.0)
  np.testing.assert_allclose(np.diff(levels, axis=0), np.broadcast_to(-start / steps, (steps, 3)), atol=1e-6)


def test_levels_are_moved_by_the_shift_of_each_clip():
  start, factor = np.ones(2, np.float32), np.array([1.0, 3.0], np.float32)
  levels = np.asarray(schedules.levels(4, start, factor))
  np.testing.assert_allclose(levels[:, 1], schedules.shift(levels[:, 0], 3.0), rtol=1e-6)
