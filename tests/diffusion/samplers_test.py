"""Samplers reach data whose exact denoiser is known: Gaussians, a point, and clips of which some tokens are given.

With x ~ N(m, s^2) and x_t = (1 - t) x + t e the best estimate of x is
m + (1 - t) s^2 / ((1 - t)^2 s^2 + t^2) (x_t - (1 - t) m), and the path from noise z ends at m + s z.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import schedules
from sora_jax.diffusion.denoiser import holding
from sora_jax.diffusion.samplers import METHODS, sample

MEAN, DEVIATION = 1.5, 0.4
SHAPE = (2, 50, 4)


def gaussian(x_t, t):
  t = t[..., None]
  gain = (1 - t) * DEVIATION**2 / ((1 - t) ** 2 * DEVIATION**2 + t**2)
  return MEAN + gain * (x_t - (1 - t) * MEAN)


@functools.partial(jax.jit, static_argnames=("denoise", "steps", "method"))
def run(denoise, noise, given=None, clean=None, shift=1.0, *, steps, method):
  start = jnp.ones(noise.shape[:2])
  if clean is not None:
    noise, start = jnp.where(clean[..., None], given, noise), jnp.where(clean, 0.0, start)
  levels = schedules.levels(steps, start, jnp.broadcast_to(shift, start.shape))
  return sample(denoise, noise, levels, method)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
  return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def error(noise, steps: int, method: str) -> float:
  """Mean distance to the end of the exact path."""
  return float(np.abs(run(gaussian, noise, steps=steps, method=method) - (MEAN + DEVIATION * noise)).mean())


@pytest.mark.parametrize(("method", "steps"), [("euler", 400), ("heun", 40)])
def test_samples_have_the_mean_and_deviation_of_the_data(noise, method, steps):
  samples = np.asarray(run(gaussian, noise, steps=steps, method=method))
  assert samples.mean() == pytest.approx(MEAN + DEVIATION * noise.mean(), abs=0.005)
  assert samples.std() == pytest.approx(DEVIATION * noise.std(), abs=0.01)
  np.testing.assert_allclose(samples, MEAN + DEVIATION * noise, atol=0.03)


def test_heun_is_of_higher_order_than_euler(noise):
  euler, heun = ([error(noise, steps, method) for steps in (10, 40)] for method in METHODS)
  assert 3 < euler[0] / euler[1] < 6  # four times the steps, first order
  assert heun[0] / heun[1] > 8  # nearly second order; the last step is Euler's
  assert heun[1] < euler[1] / 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_a_point_is_reached_in_one_step(noise, method, shift):
  point = lambda x_t, t: jnp.full_like(x_t, 0.7)
  np.testing.assert_allclose(run(point, noise, shift=shift, steps=1, method=method), 0.7, atol=1e-5)


def test_a_shift_changes_the_steps_but_not_where_they_lead(noise):
  shifted = run(gaussian, noise, shift=3.0, steps=400, method="euler")
  np.testing.assert_allclose(shifted, MEAN + DEVIATION * noise, atol=0.05)
  assert np.abs(shifted - run(gaussian, noise, steps=400, method="euler")).max() > 1e-4


def mean_of_given(x_t, t):
  """Every token is the mean of what is at level 0; clean tokens themselves are predicted as nonsense."""
  known = (t == 0)[..., None]
  mean = jnp.where(known, x_t, 0.0).sum(1, keepdims=True) / jnp.maximum(known.sum(1, keepdims=True), 1)
  return jnp.where(known, 1e3, mean)


@pytest.mark.parametrize("method", METHODS)
def test_given_tokens_stay_bit_for_bit_and_are_seen_clean(noise, method):
  given = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
  clean = np.zeros(SHAPE[:2], bool)
  clean[0, [0, 3]] = clean[1, 7:20] = True
  samples = np.asarray(run(mean_of_given, noise, given, clean, steps=5, method=method))
  np.testing.assert_array_equal(samples[clean], given[clean])
  for row in range(2):
    wanted = np.broadcast_to(given[row, clean[row]].mean(0, keepdims=True), samples[row, ~clean[row]].shape)
    np.testing.assert_allclose(samples[row, ~clean[row]], wanted, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [0.3, 0.8])
def test_a_path_may_start_at_any_level(noise, method, start):
  """SDEdit: x_t = (1 - t) x + t z of the Gaussian's own draws ends where the exact path through it does."""
  levels = schedules.levels(400, jnp.full(SHAPE[:2], start), jnp.ones(SHAPE[:2]))
  ends = MEAN + DEVIATION * noise
  spread = np.sqrt((1 - start) ** 2 * DEVIATION**2 + start**2)
  there = (1 - start) * MEAN + spread * noise  # a point of the path that ends there: quantiles keep their place
  found = sample(gaussian, jnp.asarray(there, jnp.float32), levels, method)
  np.testing.assert_allclose(found, ends, atol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_path_that_starts_clean_stays_where_it_is_bit_for_bit(noise, method):
  levels = schedules.levels(5, jnp.zeros(SHAPE[:2]), jnp.full(SHAPE[:2], 3.0))
  np.testing.assert_array_equal(sample(gaussian, jnp.asarray(noise), levels, method), noise)


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_one_level_throughout_stay_though_they_are_noisy(noise, method):
  levels = schedules.levels(5, jnp.ones(SHAPE[:2]), jnp.ones(SHAPE[:2])).at[:, :, :7].set(0.4)
  found = np.asarray(sample(gaussian, jnp.asarray(noise), levels, method))
  np.testing.assert_array_equal(found[:, :7], noise[:, :7])
  assert np.abs(found[:, 7:] - noise[:, 7:]).min() > 0


@pytest.mark.parametrize("method", METHODS)
def test_known_tokens_end_at_their_values_and_are_seen_at_their_level_on_the_way(noise, method):
  known = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
  held = np.zeros(SHAPE[:2], bool)
  held[0, 3:9] = held[1, 20] = True
  seen = []

  def watched(x_t, t):
    jax.debug.callback(lambda x, t: seen.append((np.asarray(x), np.asarray(t))), x_t, t)
    return gaussian(x_t, t)

  levels = schedules.levels(6, jnp.ones(SHAPE[:2]), jnp.full(SHAPE[:2], 2.0))
  found = np.asarray(sample(holding(watched, known, held), jnp.asarray(noise), levels, method))
  jax.effects_barrier()
  np.testing.assert_allclose(found[held], known[held], atol=1e-5)
  np.testing.assert_allclose(found[~held], np.asarray(sample(gaussian, noise, levels, method))[~held], atol=1e-5)
  assert len(seen) >= 6
  for x_t, t in seen:
    path = (1 - t[..., None]) * known + t[..., None] * noise
    np.testing.assert_allclose(x_t[held], path[held], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_called_once_a_step_or_twice_but_once_at_the_last(noise, method):
  calls = []

  def counted(x_t, t):
    jax.debug.callback(lambda level: calls.append(float(level)), t[0, 0])
    return gaussian(x_t, t)

  run(counted, noise[:, :2], steps=4, method=method)
  jax.effects_barrier()
  expected = [1.0, 0.75, 0.5, 0.25] if method == "euler" else [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
  assert sorted(calls, reverse=True) == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_is_sampled_the_same_alone_and_packed(noise, method):
  shift = np.where(np.arange(50) < 20, 1.0, 2.5).astype(np.float32)[None]
  packed = run(gaussian, noise[:1], shift=shift, steps=6, method=method)
  first = run(gaussian, noise[:1, :20], steps=6, method=method)
  second = run(gaussian, noise[:1, 20:], shift=2.5, steps=6, method=method)
  np.testing.assert_allclose(packed, np.concatenate([first, second], 1), atol=1e-6)


@pytest.mark.parametrize(("steps", "method", "message"), [(5, "dpm", "'dpm' is unknown"), (0, "euler", "at least 1")])
def test_an_unknown_method_or_no_steps_is_refused(noise, steps, method, message):
  with pytest.raises(ValueError, match=message):
    run(gaussian, noise, steps=steps, method=method)
