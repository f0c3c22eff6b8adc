"""A ConvLSTM for video prediction, the peer of benchmarks/moving_glyphs.py (Shi et al. 2015, arXiv 1506.04214).

Frames are cut into patches that become channels, layers of convolutional LSTM cells follow one another, and a 1x1
convolution gives the next frame, which is fed back once the given frames are over. Plain functions on a dict of arrays.

Shape letters: B clips, T frames, H height, W width (of patches), C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PATCH, KERNEL = 4, 5


def init(key: jax.Array, hidden: tuple[int, ...]) -> dict[str, Any]:
  """Weights of layers of so many channels; forget gates begin open."""
  colours, cells = PATCH**2, []
  for number, (inputs, width) in enumerate(zip((colours, *hidden), hidden, strict=False)):
    shape = (KERNEL, KERNEL, inputs + width, 4 * width)
    kernel = jax.nn.initializers.glorot_uniform()(jax.random.fold_in(key, number), shape)
    cells.append({"kernel": kernel, "bias": jnp.zeros(4 * width).at[width : 2 * width].set(1.0)})
  last = jax.nn.initializers.glorot_uniform()(jax.random.fold_in(key, 99), (hidden[-1], colours))
  return {"cells": cells, "last": last}


def predict(params: dict[str, Any], frames_BTHW: jax.Array, truth_T: jax.Array) -> jax.Array:
  """Each frame after the first, (B, T - 1, H, W), from those before it.

  Args:
    frames_BTHW: grey frames in [0, 1] whose sides are multiples of PATCH.
    truth_T: of each of the first T - 1 frames, whether the real one is seen (1) or the one predicted for it (0), a
      number for all clips: all ones while training begins, those that are given alone when predicting.
  """
  patches = jnp.moveaxis(patched(frames_BTHW), 1, 0)
  batch, high, wide = patches.shape[1:4]
  widths = [cell["bias"].shape[0] // 4 for cell in params["cells"]]
  empty = [jnp.zeros((2, batch, high, wide, width)) for width in widths]

  def step(carry: tuple[list[jax.Array], jax.Array], now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
    states, made = carry
    real, seen = now
    x, after = seen * real + (1 - seen) * made, []
    for cell, state in zip(params["cells"], states, strict=True):
      x, memory = lstm(cell, x, *state)
      after.append(jnp.stack([x, memory]))
    made = x @ params["last"]
    return (after, made), made

  _, made = lax.scan(step, (empty, jnp.zeros_like(patches[0])), (patches[:-1], truth_T[:, None, None, None, None]))
  return unpatched(jnp.moveaxis(made, 0, 1))


def lstm(cell: dict[str, jax.Array], x: jax.Array, hidden: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One cell at one time: (hidden, memory) after it."""
  both = jnp.concatenate([x, hidden], -1)
  enter, forget, new, leave = jnp.split(convolved(both, cell["kernel"]) + cell["bias"][None, None, None], 4, -1)
  memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(enter) * jnp.tanh(new)
  return jax.nn.sigmoid(leave) * jnp.tanh(memory), memory


def convolved(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
  """A convolution that keeps the size, as one matrix product: on CPUs that is several times as fast, backward most."""
  side, _, inputs, outputs = kernel.shape
  height, width = x_BHWC.shape[1:3]
  around = side // 2
  padded = jnp.pad(x_BHWC, ((0, 0), (around, around), (around, around), (0, 0)))
  shifted = [padded[:, y : y + height, x : x + width] for y in range(side) for x in range(side)]
  return jnp.concatenate(shifted, -1) @ kernel.reshape(side * side * inputs, outputs)


def patched(frames_BTHW: jax.Array) -> jax.Array:
  """(B, T, H, W) to (B, T, H / PATCH, W / PATCH, PATCH^2)."""
  batch, frames, height, width = frames_BTHW.shape
  x = frames_BTHW.reshape(batch, frames, height // PATCH, PATCH, width // PATCH, PATCH)
  return x.transpose(0, 1, 2, 4, 3, 5).reshape(batch, frames, height // PATCH, width // PATCH, PATCH**2)


def unpatched(patches_BTHWC: jax.Array) -> jax.Array:
  """The inverse."""
  batch, frames, high, wide, _ = patches_BTHWC.shape
  x = patches_BTHWC.reshape(batch, frames, high, wide, PATCH, PATCH).transpose(0, 1, 2, 4, 3, 5)
  return x.reshape(batch, frames, high * PATCH, wide * PATCH)
