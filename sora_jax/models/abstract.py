"""Models without their weights."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from flax import nnx


@functools.lru_cache(maxsize=16)  # a deep transformer takes a tenth of a second
def abstract(model: Callable[[Any, nnx.Rngs], nnx.Module], config: Hashable) -> tuple[nnx.GraphDef, Any]:
  """The graph of `model(config, rngs)`, for `nnx.merge`, and the shapes and types of its parameters by name.

  Nothing is computed, and the shapes carry no sharding, whatever mesh is set.
  """
  graph, params = nnx.split(nnx.eval_shape(lambda: model(config, nnx.Rngs(params=0))))
  return graph, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(params))
