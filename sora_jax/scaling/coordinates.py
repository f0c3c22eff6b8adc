"""The coordinate check of muP: how far a few steps move what a transformer computes, at several widths.

With rates that suit every width, each activation moves about as far at each of them (Yang & Hu 2021, appendix D.1); in
standard parametrisation what a step moves grows with the width.

Shape letters: B rows, L tokens, C values a token, D width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax import sharding
from sora_jax.diffusion import objective
from sora_jax.models.dit import DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, stack
from sora_jax.train import mup
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.state import make_state, make_step

CHANNELS, TOKENS, WORDS, CLIPS, ROWS = 16, 16, 4, 4, 2
MODEL = DiTConfig(
  channels=CHANNELS,
  width=32,
  depth=2,
  heads=2,
  text=TextEncoderConfig(vocabulary=64, width=32, depth=1, heads=2),
  wavelengths=((0.5, 8.0), (4.0, 64.0), (4.0, 64.0)),
)
HEAD = MODEL.width // MODEL.heads


class Moved(NamedTuple):
  """What a few steps changed at one width, root mean squares.

  Attributes:
    features: of the normalised values before the last layer.
    output: of the prediction.
  """

  width: int
  features: float
  output: float


def measure(widths: Sequence[int], base_width: int | None, rates: tuple[float, float], steps: int = 4) -> list[Moved]:
  """The change of a transformer's activations over its first steps on one batch, at each width.

  Args:
    widths: multiples of 16, which heads are wide.
    base_width: that the rates are of (muP); None for the same rates at every width (standard parametrisation).
    rates: of Muon and of AdamW.
  """
  return [_moved(width, base_width, rates, steps) for width in widths]


def _moved(width: int, base_width: int | None, rates: tuple[float, float], steps: int) -> Moved:
  model = dataclasses.replace(MODEL, width=width, heads=width // HEAD)
  task = DiTTask(model, DiffusionConfig("x", "clip", objective.NoiseLevels(0.0, 1.0, TOKENS), 0.0))
  multipliers = mup.multipliers(model, base_width) if base_width else ()
  optimizer = make_optimizer(OptimizerConfig(*rates, 1, 0.0, 10 * steps, 1e9, multipliers=multipliers))
  batch, mesh = clips(), sharding.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    state = make_state(task, optimizer, 0, mesh)
    step = jax.jit(make_step(task, optimizer, 0.9))
    before = activations(task, state.params, batch)
    for _ in range(steps):
      state, _ = step(state, batch)
    after = activations(task, state.params, batch)
  rms = lambda a, b: float(np.sqrt(np.mean(np.square(np.asarray(a) - np.asarray(b)))))
  return Moved(width, *(rms(a, b) for a, b in zip(after, before, strict=True)))


def activations(task: DiTTask, params: Any, batch: PackedBatch) -> tuple[jax.Array, jax.Array]:
  """The normalised values before the last layer (B, L, D) and the prediction (B, L, C), at a noise level of 1/2."""
  x_t, t_BL = objective.corrupt(batch, jnp.full(batch.weight_BS.shape, 0.5), jax.random.key(1))
  given, model = (x_t, t_BL, batch, batch.weight_BS > 0), nnx.merge(task.graph, params)
  return jax.jit(lambda: (model.features(*given)[0], model(*given)))()


def clips() -> PackedBatch:
  """Rows of random clips with captions that say which pattern each has: something that steps can learn."""
  rng = np.random.default_rng(0)
  patterns = rng.normal(size=(8, CHANNELS)).astype(np.float32)

  def clip(index: int) -> Segment:
    which = index % len(patterns)
    noise = 0.3 * rng.normal(size=(TOKENS, CHANNELS)).astype(np.float32)
    return Segment(
      tokens_NC=patterns[which] + noise,
      positions_N3=(rng.random((TOKENS, 3)) * [4.0, 64.0, 64.0]).astype(np.float32),
      condition_N=np.zeros(TOKENS, bool),
      level_N=np.zeros(TOKENS, np.float32),
      text_M=np.array([1, *rng.integers(16, 64, WORDS - 2), 2 + which], np.int32),
      size_4=np.array([4.0, 64.0, 64.0, 8.0], np.float32),
      index=index,
    )

  row = RowShape(CLIPS * TOKENS, CLIPS * WORDS, CLIPS)
  numbers = np.arange(ROWS * CLIPS).reshape(ROWS, CLIPS)
  return stack([pack_row([clip(int(index)) for index in each], row, CHANNELS) for each in numbers])
