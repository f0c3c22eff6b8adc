"""How learning rates change with a model's width, so that those tuned at one width are best at others (muP).

Yang & Hu 2021 ("Tensor Programs V", table 3) in the form of Yang, Simon & Bernstein 2023 ("A Spectral Condition for
Feature Learning", condition 1): a step changes each matrix by a spectral norm of about sqrt(out / in). With r the ratio
of a side to that at the base width, a matrix's rate is multiplied by

  Muon    sqrt(r_out / r_in) / sqrt(max(out, in) / max(out_0, in_0))   its update is orthogonal times sqrt(max(out, in))
  AdamW   1 / r_in                                                     its update's values all have about one size

and that of what is no matrix (biases, gains, tables, embeddings) stays. Initial values need no change: kernels are
drawn by their fan-in, the last layer starts at zero, heads keep their width and there are more of them.
"""

import dataclasses
import math
from typing import Any

import jax

from sora_jax.errors import InputError
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.sharding import path_name
from sora_jax.train.optimizer import DECAYED, MUON_PATHS


def multipliers(model: DiTConfig, base_width: int) -> tuple[tuple[str, float], ...]:
  """(name of a parameter, what its learning rate is multiplied by), in the order of their names.

  Args:
    base_width: of the model that the rates were tuned at; all else of it is as in `model`.

  Raises:
    InputError: heads of this model's width don't divide it.
  """
  head = model.width // model.heads
  if base_width % head:
    raise InputError(
      f"config.model.base_width={base_width}: heads are {head} wide at config.model.width={model.width}: make it a "
      f"multiple of {head}, or change config.model.heads"
    )
  base = dataclasses.replace(model, width=base_width, heads=base_width // head)
  here, there = (shapes(config) for config in (model, base))
  return tuple((name, multiplier(name, here[name], there[name])) for name in sorted(here))


def multiplier(name: str, shape: tuple[int, ...], base: tuple[int, ...]) -> float:
  """Of one parameter; kernels are (..., in, [parts,] out), where stacks of blocks have a layer in front."""
  if not DECAYED.search(name):
    return 1.0
  side = 1 if "blocks/" in name else 0
  r_in, r_out = shape[side] / base[side], shape[-1] / base[-1]
  if MUON_PATHS.search(name):
    return math.sqrt(r_out / r_in) / math.sqrt(max(shape[side], shape[-1]) / max(base[side], base[-1]))
  return 1.0 / r_in


def shapes(model: DiTConfig) -> dict[str, tuple[int, ...]]:
  """Of a transformer's parameters, by name."""
  leaves: list[tuple[Any, Any]] = jax.tree_util.tree_leaves_with_path(abstract(DiT, model)[1])
  return {path_name(path): leaf.shape for path, leaf in leaves}
