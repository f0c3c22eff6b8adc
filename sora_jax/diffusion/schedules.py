"""Noise levels: t = 0 is clean, t = 1 is noise, x_t = (1 - t) x + t e (rectified flow, Liu et al. 2022, eq. 1)."""

import jax
import jax.numpy as jnp


def shift(t: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Moves noise levels towards noise for larger clips: s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23)."""
  return factor * t / (1.0 + (factor - 1.0) * t)


def size_shift(tokens: jax.Array, base_tokens: float) -> jax.Array:
  """The shift factor of a clip: sqrt(tokens / base_tokens), never below 1 (Esser et al. 2024, section 5.3.2)."""
  return jnp.sqrt(jnp.maximum(tokens / base_tokens, 1.0))


def logit_normal(normal: jax.Array, mean: float, std: float) -> jax.Array:
  """Standard normal draws -> noise levels in (0, 1), logit-normal (Esser et al. 2024, eq. 19)."""
  return jax.nn.sigmoid(mean + std * normal)


def levels(steps: int, start: jax.Array, factor: jax.Array) -> jax.Array:
  """The noise level of each token before each step and after the last: from `start` to 0, moved by `factor`.

  Args:
    start: (...), where each token begins before it is moved: 1 is noise, and what begins at 0 stays there.
    factor: (...), the size shift of each token's clip.

  Returns:
    float32 (steps + 1, ...), evenly spaced before they are moved.
  """
  even = jnp.multiply.outer(jnp.linspace(1.0, 0.0, steps + 1), start)
  return shift(even, jnp.asarray(factor)[None])
