"""The optimiser: Muon for the matrices inside blocks, AdamW for everything else, weight decay for all matrices.

Rates warm up, stay constant and fall linearly to zero.
"""

import re
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from sora_jax import sharding
from sora_jax.sharding import path_name

# The matrices that map a block's width to itself; first and last layers, tables and biases stay with AdamW
# (Jordan et al. 2024: Muon is for hidden layers).
MUON_PATHS = re.compile(r"(^|/)blocks/(.*/)?kernel$")
# An orthogonal update scaled to the root mean square that AdamW's updates have (Liu et al. 2025, eq. 4), so that both
# rates are of one kind.
CONSISTENT_RMS = 0.2
# What weight decay takes: matrices. Biases, gains, modulation and embedding tables, filters of single channels and
# latent statistics keep the size that the data gives them.
DECAYED = re.compile(r"(^|/)kernel$")


class OptimizerConfig(NamedTuple):
  learning_rate: float  # of Muon
  adam_learning_rate: float
  warmup: int  # steps
  decay_share: float  # the last share of the run over which the rates fall to zero
  steps: int
  clip_norm: float
  weight_decay: float = 0.0  # of a matrix, each step, as a share of its rate
  multipliers: tuple[tuple[str, float], ...] = ()  # of a parameter's rate, by its name; 1 for the others

  @classmethod
  def of(cls, config: Any, multipliers: tuple[tuple[str, float], ...] = ()) -> "OptimizerConfig":
    """Of a run's config."""
    named = {name: config.train[name] for name in cls._fields if name != "multipliers"}
    return cls(**named, multipliers=multipliers)


def schedule(peak: float, config: OptimizerConfig) -> optax.Schedule:
  """Linear warm-up, constant, linear decay to zero at the last step; the warm-up has what the decay leaves of a run."""
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

  The other axes count matrices: stacked layers, and what a layer puts out side by side, as queries, keys and values.
  """

  def choose(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
    return MuonDimensionNumbers(1, leaf.ndim - 1) if MUON_PATHS.search(path_name(path)) else None

  return jax.tree_util.tree_map_with_path(choose, params)


def over_layers(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """`inner` on stacks of matrices that are split by layer, so that each device has whole matrices.

  Muon multiplies a matrix with itself in each of its iterations, and one that lies in shards would be gathered every
  time. A stack whose depth the number of devices does not divide keeps its layout.
  """

  def spread(tree: Any) -> Any:
    def place(leaf: jax.Array) -> jax.Array:
      stacked = leaf.ndim >= 3 and sharding.split("layers", leaf.shape[0])
      return sharding.constrain(leaf, "layers", *(None,) * (leaf.ndim - 1)) if stacked else leaf

    return jax.tree.map(place, tree)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    updates, state = inner.update(spread(updates), state, params)
    return sharding.laid_out(spread(updates)), state

  return optax.GradientTransformation(inner.init, update)


def decayed(params: Any) -> Any:
  """Which parameters weight decay takes."""
  return jax.tree_util.tree_map_with_path(lambda path, _: bool(DECAYED.search(path_name(path))), params)


def times(multipliers: dict[str, float]) -> optax.GradientTransformation:
  """Each update times the number that its parameter's name has, 1 where it has none."""
  scaled = lambda path, update: update * multipliers.get(path_name(path), 1.0)
  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Gradient clipping by global norm, then Muon or AdamW a parameter.

  Both decay weights apart from the gradient, by rate x weight_decay a step (Loshchilov & Hutter 2019, algorithm 2;
  for Muon Liu et al. 2025, eq. 3).
  """
  rate, adam_rate = (schedule(peak, config) for peak in (config.learning_rate, config.adam_learning_rate))
  same_size = optax.stateless_with_tree_map(
    lambda update, _: CONSISTENT_RMS * max(update.shape[1], update.shape[-1]) ** 0.5 * update
  )
  # Before weight decay, which takes the same share of a matrix at every width.
  multiplied = [times(dict(config.multipliers))] if config.multipliers else []
  muon = optax.chain(
    over_layers(scale_by_muon(weight_dimension_numbers=muon_dimensions)),
    same_size,
    *multiplied,
    optax.add_decayed_weights(config.weight_decay, decayed),
    optax.scale_by_learning_rate(rate),
  )
  adam = optax.chain(
    optax.scale_by_adam(b2=0.95),
    *multiplied,
    optax.add_decayed_weights(config.weight_decay, decayed),
    optax.scale_by_learning_rate(adam_rate),
  )
  kind = lambda path, _: "muon" if MUON_PATHS.search(path_name(path)) else "adam"
  by_kind = optax.partition({"muon": muon, "adam": adam}, lambda params: jax.tree_util.tree_map_with_path(kind, params))
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), by_kind)
