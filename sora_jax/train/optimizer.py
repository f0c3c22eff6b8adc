"""The optimiser: Muon for the matrices inside blocks, AdamW for everything else; warm-up, constant, linear decay."""

import re
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from sora_jax import sharding
from sora_jax.sharding import path_name

# The matrices that map a block's width to itself; first and last layers, tables and biases stay with AdamW
# (Jordan et al. 2024: Muon is for hidden layers).
MUON_PATHS = re.compile(r"(^|/)blocks/(.*/)?kernel$")
# An orthogonal update scaled to the root mean square that AdamW's updates have (Liu et al. 2025, eq. 4), so that both
# rates are of one kind.
CONSISTENT_RMS = 0.2


class OptimizerConfig(NamedTuple):
  learning_rate: float  # of Muon
  adam_learning_rate: float
  warmup: int  # steps
  decay_share: float  # the last share of the run over which the rates fall to zero
  steps: int
  clip_norm: float

  @classmethod
  def of(cls, config: Any) -> "OptimizerConfig":
    """Of a run's config."""
    return cls(**{name: config.train[name] for name in cls._fields})


def schedule(peak: float, config: OptimizerConfig) -> optax.Schedule:
  """Linear warm-up, constant, linear decay to zero at the last step."""
  decay = max(round(config.steps * config.decay_share), 1)
  warmup = min(config.warmup, config.steps - decay)
  return optax.join_schedules(
    [
      optax.linear_schedule(peak / max(warmup, 1), peak, warmup),
      optax.constant_schedule(peak),
      optax.linear_schedule(peak, 0.0, decay),
    ],
    [warmup, config.steps - decay],
  )


def muon_dimensions(params: Any) -> Any:
  """Which axes of each parameter Muon takes for rows and columns of a matrix, or None for AdamW.

  Stacked layers are a batch, and what a layer puts out side by side is of one matrix: queries, keys and values.
  """

  def choose(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
    if MUON_PATHS.search(path_name(path)):
      return MuonDimensionNumbers(reduction_axis=1, output_axis=tuple(range(2, leaf.ndim)))
    return None

  return jax.tree_util.tree_map_with_path(choose, params)


def over_layers(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """`inner`, each device on whole matrices of some layers; of a stack whose depth the devices don't divide, on parts.

  Muon multiplies a matrix with itself in each of its iterations: one that lies in parts is gathered every time.
  """

  def spread(tree: Any) -> Any:
    def place(path: tuple, leaf: jax.Array) -> jax.Array:
      stacked = MUON_PATHS.search(path_name(path)) and leaf.ndim >= 3 and sharding.split("layers", leaf.shape[0])
      return sharding.constrain(leaf, "layers", *(None,) * (leaf.ndim - 1)) if stacked else leaf

    return jax.tree_util.tree_map_with_path(place, tree)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    updates, state = inner.update(spread(updates), state, params)
    return spread(updates), state

  return optax.GradientTransformation(inner.init, update)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Gradient clipping by global norm, then Muon or AdamW a parameter."""
  muon = optax.contrib.muon(
    schedule(config.learning_rate, config),
    adam_learning_rate=schedule(config.adam_learning_rate, config),
    adam_b2=0.95,
    consistent_rms=CONSISTENT_RMS,
    muon_weight_dimension_numbers=muon_dimensions,
  )
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), over_layers(muon))
