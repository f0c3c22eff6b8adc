"""Prediction conversions and guidance. `denoise(x_t_BLC, t_BL) -> x_hat_BLC` is all that samplers know of a network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.errors import InputError

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
# What a network's own estimate of a value of unit variance is taken to be off by; 0.2 and 0.4 train as well.
ESTIMATE_ERROR = 0.3


def clean_from(output: jax.Array, x_t: jax.Array, t: jax.Array, prediction: str) -> jax.Array:
  """A network's output -> its estimate of the clean value x, with x_t = (1 - t) x + t e and v = e - x.

  Args:
    output, x_t: (B, L, C).
    t: (B, L) in [0, 1].
    prediction: what the network's output means: "x", "v", or "filtered", an estimate of x that is joined with x_t.

  Raises:
    ValueError: another prediction.
  """
  if prediction == "x":
    return output
  if prediction == "filtered":
    return filtered(output, x_t, t)
  if prediction == "v":
    return x_t - t[..., None] * output
  raise InputError(f"diffusion.prediction is {prediction!r}: it is 'x', 'v' or 'filtered'")


def filtered(estimate: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
  """An estimate of x, joined with what x_t = (1 - t) x + t e tells of x itself; arguments as in `clean_from`.

  It is the best linear mix where the estimate is off by ESTIMATE_ERROR and e by 1, the update of a Kalman filter
  (Kalman 1960): estimate + k (x_t - (1 - t) estimate) with k = (1 - t) r^2 / ((1 - t)^2 r^2 + t^2). Where little
  noise is left a token is mostly as it came in, and the network's own errors, which the velocity divides by t, hardly
  count. At t = 0 it is x_t.
  """
  rest, variance = 1 - t[..., None], ESTIMATE_ERROR**2
  gain = rest * variance / (rest**2 * variance + t[..., None] ** 2)
  return (1 - gain * rest) * estimate + gain * x_t


def velocity(x_hat: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
  """v = (x_t - x_hat) / t, the direction from the clean estimate to noise; x_t, x_hat (B, L, C) and t (B, L).

  Tokens at t = 0 have none: the result there is finite and means nothing.
  """
  return (x_t - x_hat) / jnp.maximum(t, 1e-6)[..., None]


def holding(denoise: Denoise, known_BLC: np.ndarray | jax.Array, held_BL: np.ndarray | jax.Array) -> Denoise:
  """`denoise` with the clean values of some tokens known.

  With x_hat = x a token's velocity is (x_t - x) / t, so it stays on the straight path between its noise and its clean
  value and ends there, and the others see it at their own level, as in training (inpainting as by Lugmayr et al. 2022,
  "RePaint", eq. 8a).
  """
  return lambda x_t, t: jnp.where(held_BL[..., None], known_BLC, denoise(x_t, t))


def guided(
  conditional: Denoise,
  unconditional: Denoise,
  scale_BL: jax.Array | float,
  interval: tuple[jax.Array | float, jax.Array | float],
) -> Denoise:
  """Classifier-free guidance (Ho & Salimans 2022, eq. 6) inside an interval of noise levels (Kynkaanniemi et al. 2024).

  Scales and interval may be traced: other values need no other program.

  Args:
    scale_BL: of each token, or one for all; 1 is no guidance.
    interval: guidance acts where low <= t <= high.
  """
  low, high = interval

  def denoise(x_t_BLC: jax.Array, t_BL: jax.Array) -> jax.Array:
    acts_BL = (t_BL >= low) & (t_BL <= high) & (scale_BL != 1.0)
    x_cond = conditional(x_t_BLC, t_BL)
    # The second network call is half of the work; it is skipped while guidance acts on no token.
    x_free = jax.lax.cond(acts_BL.any(), unconditional, lambda x_t, t: x_cond, x_t_BLC, t_BL)
    scale_BL1 = jnp.broadcast_to(scale_BL, t_BL.shape)[..., None]
    return jnp.where(acts_BL[..., None], x_free + scale_BL1 * (x_cond - x_free), x_cond)

  return denoise
