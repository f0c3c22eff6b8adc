"""I3D, the network of action recognition whose logits the Frechet video distance compares.

Carreira and Zisserman 2017 ("Quo Vadis, Action Recognition?", figure 3): Inception with kernels inflated in time. This
reads weights that somebody else trained, under the names that its PyTorch ports use; nothing here is trained.

Shape letters: B clips, T frames, H height, W width, C channels, K classes.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sora_jax.errors import InputError

FRAMES, SIDE = 16, 224  # of the clips that the Frechet video distance compares (Unterthiner et al. 2018)
EPSILON = 1e-3  # of the batch norms
NAMES = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3") + tuple(
  f"Mixed_{block}.{branch}"
  for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
  for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
)
UNIT = ("conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")

Weights = Mapping[str, np.ndarray]


def check(weights: Weights) -> None:
  """
  Raises:
    InputError: a tensor of the network is missing, or the first kernel is none of 7x7x7 over three colours.
  """
  wanted = [f"{name}.{part}" for name in NAMES for part in UNIT] + ["logits.conv3d.weight", "logits.conv3d.bias"]
  if missing := [name for name in wanted if name not in weights]:
    raise InputError(f"these are no weights of I3D: {missing[0]} and {len(missing) - 1} other tensors are missing")
  if weights[wanted[0]].shape[1:] != (3, 7, 7, 7):
    raise InputError(f"these are no weights of I3D: {wanted[0]} has shape {weights[wanted[0]].shape}")


def logits(weights: Weights, frames_BTHWC: jax.Array) -> jax.Array:
  """Clips in [-1, 1], of FRAMES frames of SIDE x SIDE pixels or more -> the mean logits (B, K)."""
  x = _unit(weights, "Conv3d_1a_7x7", frames_BTHWC, stride=2)
  x = _pool(x, (1, 3, 3), (1, 2, 2))
  x = _unit(weights, "Conv3d_2b_1x1", x)
  x = _unit(weights, "Conv3d_2c_3x3", x)
  x = _pool(x, (1, 3, 3), (1, 2, 2))
  for block in ("3b", "3c"):
    x = _mixed(weights, block, x)
  x = _pool(x, (3, 3, 3), (2, 2, 2))
  for block in ("4b", "4c", "4d", "4e", "4f"):
    x = _mixed(weights, block, x)
  x = _pool(x, (2, 2, 2), (2, 2, 2))
  for block in ("5b", "5c"):
    x = _mixed(weights, block, x)
  window = (1, 2, 7, 7, 1)
  x = lax.reduce_window(x, 0.0, lax.add, window, (1,) * 5, "VALID") / np.prod(window)
  kernel, bias = weights["logits.conv3d.weight"], weights["logits.conv3d.bias"]
  return x.mean((1, 2, 3)) @ jnp.asarray(kernel)[:, :, 0, 0, 0].T + jnp.asarray(bias)[None]


def _mixed(weights: Weights, block: str, x: jax.Array) -> jax.Array:
  """An Inception block: four branches beside each other."""
  name = f"Mixed_{block}"
  unit = lambda branch, x: _unit(weights, f"{name}.{branch}", x)
  branches = [
    unit("b0", x),
    unit("b1b", unit("b1a", x)),
    unit("b2b", unit("b2a", x)),
    unit("b3b", _pool(x, (3, 3, 3), (1, 1, 1))),
  ]
  return jnp.concatenate(branches, -1)


def _unit(weights: Weights, name: str, x: jax.Array, stride: int = 1) -> jax.Array:
  """Convolution, batch norm with the statistics of training, ReLU; kernels are stored (out, in, T, H, W)."""
  kernel, *norm = (jnp.asarray(weights[f"{name}.{part}"], jnp.float32) for part in UNIT)
  kernel = kernel.transpose(2, 3, 4, 1, 0)
  gain, bias, mean, variance = (each.reshape(1, 1, 1, 1, -1) for each in norm)
  layout = ("NDHWC", "DHWIO", "NDHWC")
  x = lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=layout)
  return jax.nn.relu((x - mean) * (gain * lax.rsqrt(variance + EPSILON)) + bias)


def _pool(x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int]) -> jax.Array:
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), "SAME")
