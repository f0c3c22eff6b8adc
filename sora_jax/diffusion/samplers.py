"""From noise to clips: integrate dx/dt = v(x, t) from t = 1 to t = 0. Any `denoise(x_t, t) -> x_hat` will do."""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion import schedules
from sora_jax.diffusion.denoiser import Denoise, velocity
from sora_jax.errors import InputError

METHODS = ("euler", "heun")


def sample(
  denoise: Denoise,
  noise_BLC: jax.Array,
  condition_BLC: np.ndarray | jax.Array,
  condition_BL: np.ndarray | jax.Array,
  shift_BL: jax.Array,
  steps: int,
  method: str,
) -> jax.Array:
  """Integrates the probability-flow ODE with Euler's or Heun's method (Karras et al. 2022, algorithm 1).

  Args:
    denoise: the network, guidance included.
    noise_BLC: where the path starts.
    condition_BLC: values of the condition tokens; read where condition_BL holds.
    condition_BL: bool, tokens that stay as they are, at noise level 0.
    shift_BL: the size shift of each token's clip.
    steps: steps from noise to data.
    method: "euler" (one network call a step) or "heun" (two, but one at the last).

  Returns:
    The clean tokens (B, L, C), float32.

  Raises:
    ValueError: an unknown method, or no steps.
  """
  if method not in METHODS:
    raise InputError(f"sampling method {method!r} is unknown: it is {' or '.join(METHODS)}")
  if steps < 1:
    raise InputError(f"{steps} sampling steps: at least 1 is needed")
  grid = schedules.time_grid(steps)

  def level(t: jax.Array) -> jax.Array:
    return jnp.where(condition_BL, 0.0, schedules.shift(t, shift_BL))

  def slope(x: jax.Array, t_BL: jax.Array) -> jax.Array:
    return velocity(denoise(x, t_BL), x, t_BL)

  def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
    now_BL, next_BL = level(grid[i]), level(grid[i + 1])
    width_BL1 = (next_BL - now_BL)[..., None]
    v = slope(x, now_BL)
    moved = x + width_BL1 * v
    if method == "heun":
      # The corrector would divide by t = 0 at the last step, so that step is Euler's.
      corrected = jax.lax.cond(
        i + 1 < steps, lambda y: x + width_BL1 * 0.5 * (v + slope(y, next_BL)), lambda y: y, moved
      )
      moved = corrected
    return jnp.where(condition_BL[..., None], condition_BLC, moved), None

  start = jnp.where(condition_BL[..., None], condition_BLC, noise_BLC)
  final, _ = jax.lax.scan(step, start, jnp.arange(steps))
  return final
