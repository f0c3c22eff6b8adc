"""Predictions convert without contradiction; guidance acts inside its interval alone."""

import functools

import jax
import numpy as np
import pytest

from sora_jax.diffusion.denoiser import ESTIMATE_ERROR, clean_from, guided, velocity


def draw(seed: int = 0):
  """Clean x, noise e, levels t of every token and x_t."""
  rng = np.random.default_rng(seed)
  x, e = rng.normal(size=(2, 2, 6, 3)).astype(np.float32)
  t = rng.uniform(0.05, 1, (2, 6)).astype(np.float32)
  return x, e, t, (1 - t[..., None]) * x + t[..., None] * e


def test_every_prediction_of_the_truth_is_the_clean_value():
  x, e, t, x_t = draw()
  np.testing.assert_array_equal(clean_from(x, x_t, t, "x"), x)
  np.testing.assert_allclose(clean_from(e - x, x_t, t, "v"), x, atol=1e-5)


def test_no_other_linear_mix_of_an_estimate_and_a_noisy_token_is_closer():
  rng = np.random.default_rng(0)
  x, e, error = rng.normal(size=(3, 1, 1, 200_000)).astype(np.float32)
  for level in (0.06, 0.3, 0.7):
    t = np.full((1, 1), level, np.float32)
    x_t, estimate = (1 - level) * x + level * e, x + ESTIMATE_ERROR * error
    missed = lambda found, x=x: float(np.mean((np.asarray(found) - x) ** 2))
    parts = np.stack([estimate.ravel(), (x_t - (1 - level) * estimate).ravel()], -1)
    best = parts[:, 0] + parts[:, 1] * np.linalg.lstsq(parts[:, 1:], (x.ravel() - parts[:, 0]), rcond=None)[0]
    assert missed(clean_from(estimate, x_t, t, "filtered")) == pytest.approx(missed(best.reshape(x.shape)), rel=1e-3)
    assert missed(clean_from(estimate, x_t, t, "filtered")) < ESTIMATE_ERROR**2


def test_a_filtered_token_without_noise_is_itself():
  x, _, _, _ = draw()
  np.testing.assert_array_equal(clean_from(0 * x + 7, x, np.zeros(x.shape[:2], np.float32), "filtered"), x)


def test_velocity_inverts_the_v_prediction():
  x, e, t, x_t = draw()
  np.testing.assert_allclose(velocity(x, x_t, t), e - x, atol=1e-4)
  np.testing.assert_allclose(velocity(clean_from(e, x_t, t, "v"), x_t, t), e, atol=1e-4)


def test_velocity_of_a_clean_token_is_finite():
  x, _, _, _ = draw()
  assert np.isfinite(velocity(x + 1, x, np.zeros(x.shape[:2], np.float32))).all()


@pytest.mark.parametrize("name", ["eps", "", "X"])
def test_another_prediction_is_refused(name):
  x, _, t, x_t = draw()
  with pytest.raises(ValueError, match=f"diffusion.prediction is {name!r}"):
    clean_from(x, x_t, t, name)


def conditional(x_t, t):
  return x_t * 2 + t[..., None]


def unconditional(x_t, t):
  return x_t * 0.5 - 1


def test_a_scale_of_one_is_the_conditional():
  _, _, t, x_t = draw()
  found = guided(conditional, unconditional, 1.0, (0.0, 1.0))(x_t, t)
  np.testing.assert_allclose(found, conditional(x_t, t), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 2.5, 7.0])
def test_guidance_acts_inside_the_interval_and_nowhere_else(scale):
  _, _, t, x_t = draw()
  t[:, 0], t[:, 1], t[:, 2], t[:, 3] = 0.3, 0.7, 0.29, 0.71  # the ends belong to it
  found = np.asarray(guided(conditional, unconditional, scale, (0.3, 0.7))(x_t, t))
  inside = (t >= np.float32(0.3)) & (t <= np.float32(0.7))
  with_guidance = unconditional(x_t, t) + scale * (conditional(x_t, t) - unconditional(x_t, t))
  np.testing.assert_allclose(found[inside], with_guidance[inside], atol=1e-5)
  np.testing.assert_allclose(found[~inside], conditional(x_t, t)[~inside], atol=1e-5)


def test_the_unconditional_network_runs_only_while_guidance_acts():
  _, _, t, x_t = draw()
  calls = []

  def counted(x_t, t):
    jax.debug.callback(lambda: calls.append(1))
    return unconditional(x_t, t)

  guide = jax.jit(lambda scale, interval, x, t: guided(conditional, counted, scale, interval)(x, t))
  denoise = functools.partial(guide, 2.0, (0.3, 0.7))
  denoise(x_t, np.full_like(t, 0.2)).block_until_ready()
  guide(1.0, (0.0, 1.0), x_t, t).block_until_ready()  # no guidance at all
  jax.effects_barrier()
  assert calls == []
  t[:] = 0.2
  t[0, 0] = 0.5
  denoise(x_t, t).block_until_ready()
  jax.effects_barrier()
  assert calls == [1]
  assert guide._cache_size() == 1
