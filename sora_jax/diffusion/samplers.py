"""From noise to clips: integrate dx/dt = v(x, t) along a schedule of levels. Any `denoise(x_t, t) -> x_hat` will do.

Text to video starts from noise at level 1, SDEdit from a noisy clip at another, and a token whose level does not change
stays as it is: these are schedules, not samplers.
"""

import chex
import jax
import jax.numpy as jnp

from sora_jax.diffusion.denoiser import Denoise, velocity
from sora_jax.errors import InputError

METHODS = ("euler", "heun")


def sample(denoise: Denoise, start_BLC: jax.Array, levels_NBL: jax.Array, method: str) -> jax.Array:
  """Integrates the probability-flow ODE with Euler's or Heun's method (Karras et al. 2022, algorithm 1).

  Args:
    denoise: the network, guidance included.
    start_BLC: where the path starts, at the first levels.
    levels_NBL: the noise level of each token before the first step and after each: N - 1 steps.
    method: "euler" (one network call a step) or "heun" (two, but one where no token is left with noise).

  Returns:
    The tokens at the last levels (B, L, C), float32.

  Raises:
    InputError: an unknown method, or no steps.
  """
  if method not in METHODS:
    raise InputError(f"sampling method {method!r} is unknown: it is {' or '.join(METHODS)}")
  if len(levels_NBL) < 2:
    raise InputError(f"{len(levels_NBL) - 1} sampling steps: at least 1 is needed")
  chex.assert_equal_shape([start_BLC[..., 0], levels_NBL[0]])

  def slope(x: jax.Array, t_BL: jax.Array) -> jax.Array:
    return velocity(denoise(x, t_BL), x, t_BL)

  def step(x: jax.Array, levels: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    now_BL, next_BL = levels
    width_BL1 = (next_BL - now_BL)[..., None]
    moves_BL1 = width_BL1 != 0.0
    v = slope(x, now_BL)
    moved = x + width_BL1 * v
    if method == "heun":
      # The corrector would divide by t = 0 where a token becomes clean: there the step is Euler's.
      noisy_BL1 = (next_BL > 0.0)[..., None]
      corrected = lambda y: jnp.where(noisy_BL1, x + width_BL1 * 0.5 * (v + slope(y, next_BL)), y)
      moved = jax.lax.cond((noisy_BL1 & moves_BL1).any(), corrected, lambda y: y, moved)
    return jnp.where(moves_BL1, moved, x), None

  final, _ = jax.lax.scan(step, start_BLC, (levels_NBL[:-1], levels_NBL[1:]))
  return final
