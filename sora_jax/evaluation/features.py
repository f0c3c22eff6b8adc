"""What clips are compared by, as vectors: states read back, a declared random network, or a pretrained one.

Shape letters: N clips, T frames, H height, W width, C channels, D features.
"""

import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from sora_jax.checkpoints import safetensors
from sora_jax.models import i3d
from sora_jax.worlds.world import World

ANCHORS = 16  # states that every clip is compared with
SEED = 6000
# Of the random network, version 1: (channels, strides in time and space). Its clips have FRAMES frames of SIDE x SIDE.
LAYERS = ((32, (1, 2, 2)), (64, (2, 2, 2)), (128, (2, 2, 2)))
FRAMES, SIDE = 16, 64
BATCH = 8  # clips a call

Features = Callable[[Sequence[np.ndarray]], np.ndarray]


def of_states(world: World, clips: Sequence[np.ndarray], rates: Sequence[float]) -> np.ndarray:
  """What a world's examiner reads in each clip, as marks against fixed states: (N, ANCHORS x attributes).

  The anchors are drawn once from the world's own distribution, so two clips that show the same have the same vector. An
  attribute that does not apply has 0.5.
  """
  anchors = [world.sample(np.random.default_rng([SEED, number])) for number in range(ANCHORS)]
  rows = []
  for frames, fps in zip(clips, rates, strict=True):
    reading = world.read(frames, fps)
    marks = [world.compare(reading, anchor) for anchor in anchors]
    rows.append([mark.get(name, 0.5) for mark in marks for name in world.attributes])
  return np.array(rows, np.float64)


def of_random3d(clips: Sequence[np.ndarray]) -> np.ndarray:
  """Means and standard deviations over all places of the last two layers of random 3-D convolutions: (N, D).

  Normal kernels of 3x3x3 from a fixed seed, scaled so that ReLUs keep the variance (He et al. 2015). It was never
  trained: it sees colours, edges and motion, and knows nothing of what is shown.
  """
  kernels, colours = [], 3
  for number, (channels, _) in enumerate(LAYERS):
    shape = (3, 3, 3, colours, channels)
    drawn = np.random.default_rng([SEED, number]).normal(0, np.sqrt(2 / (27 * colours)), shape)
    kernels.append(drawn.astype(np.float32))
    colours = channels
  return _in_batches(lambda frames: _random3d(kernels, frames), clips, (FRAMES, SIDE))


@jax.jit
def _random3d(kernels: list[jax.Array], frames_NTHWC: jax.Array) -> jax.Array:
  x, found = frames_NTHWC, []
  layout = ("NDHWC", "DHWIO", "NDHWC")
  for number, (kernel, (_, strides)) in enumerate(zip(kernels, LAYERS, strict=True)):
    x = jax.nn.relu(lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout))
    if number:
      found += [x.mean((1, 2, 3)), x.std((1, 2, 3))]
  return jnp.concatenate(found, -1)


def of_i3d(path: str | os.PathLike) -> Features:
  """The logits of I3D with the weights of a safetensors file, by the names of its PyTorch ports.

  Raises:
    InputError: the file can't be read, or holds something else.
  """
  weights, _ = safetensors.read(path)
  i3d.check(weights)
  run = jax.jit(lambda frames: i3d.logits(weights, frames))
  return lambda clips: _in_batches(run, clips, (i3d.FRAMES, i3d.SIDE))


def _in_batches(run: Callable, clips: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
  """`run` of all clips, brought to one shape; the last batch is filled up, so that one program does."""
  rows = []
  for start in range(0, len(clips), BATCH):
    some = [fitted(clip, *shape) for clip in clips[start : start + BATCH]]
    batch = np.stack(some + some[-1:] * (BATCH - len(some)))
    rows.append(np.asarray(run(batch))[: len(some)])
  return np.concatenate(rows).astype(np.float64)


def fitted(frames_THWC: np.ndarray, frames: int, side: int) -> np.ndarray:
  """A clip at another shape, (frames, side, side, 3) in [-1, 1]: the nearest frames, resized."""
  picked = np.linspace(0, len(frames_THWC) - 1, frames).round().astype(int)
  pixels = np.clip(np.nan_to_num(frames_THWC[picked]) * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
  resized = [Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR) for each in pixels]
  return np.stack([np.asarray(each, np.float32) for each in resized]) / 127.5 - 1
