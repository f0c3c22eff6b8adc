"""The train state, a plain tree of arrays, and the one step that moves it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.errors import InputError

Params = Any  # a nested dict of arrays
Metrics = dict[str, jax.Array]


class Task(Protocol):
  """All that the loop knows of a model."""

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters."""

  def loss(self, params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """The scalar to minimise and what to log. Draws are keyed by clip, so `key` is the same on every device."""

  def weight(self, batch: Any) -> jax.Array:
    """The weight of a micro-batch's loss in the mean over the micro-batches of a step."""

  def evaluate(self, params: Params) -> dict[str, float]:
    """Losses on clips that training never sees, by name; the same bits for the same parameters."""

  def preview(self, params: Params) -> np.ndarray | None:
    """A picture (H, W, 3) uint8 of what the model does now, for the log."""

  def finish(self, params: Params) -> Params:
    """Parameters as they are kept after the last step, say with measured statistics filled in."""


class TrainState(NamedTuple):
  """What a training step changes. The same tuple also holds shardings, or shapes and types, of those arrays."""

  params: Params
  optimizer: Any
  ema: Params
  step: Any  # int32, steps done
  rng: Any  # key data of the run's seed; step and clip are folded in at use, so it never moves


def make_state(task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
  """A fresh state, made shard by shard on the mesh: no host ever holds the whole of it."""
  build = functools.partial(_build, task, optimizer, seed)
  return jax.jit(build, out_shardings=state_shardings(jax.eval_shape(build), mesh))()


def abstract_state(task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
  """Shapes, types and shardings of what `make_state` makes."""
  shapes = jax.eval_shape(functools.partial(_build, task, optimizer, seed))
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(place, shapes, state_shardings(shapes, mesh))


def _build(task: Task, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  key = jax.random.key(seed)
  params = task.init(jax.random.fold_in(key, 0))
  ema = jax.tree.map(jnp.copy, params)
  return TrainState(params, optimizer.init(params), ema, jnp.zeros((), jnp.int32), jax.random.key_data(key))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
  """The shardings of a state: moments and EMA have those of their parameter."""
  whole = sharding.replicated(mesh)
  params, moments, ema = (sharding.param_shardings(tree, mesh) for tree in (state.params, state.optimizer, state.ema))
  return TrainState(params, moments, ema, whole, whole)


def jit_step(step: Callable, state: TrainState, mesh: Mesh) -> Any:
  """`make_step`'s function jitted for states like `state`, whose memory the next one takes."""
  return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(state, mesh), sharding.replicated(mesh)))


def ema_decay(step: jax.Array, most: float) -> jax.Array:
  """The decay of step `step`: shorter memory at first, so that the average is not of the initialisation."""
  return jnp.minimum(most, (1.0 + step) / (10.0 + step))


def make_step(task: Task, optimizer: optax.GradientTransformation, decay: float, accumulation: int = 1) -> Callable:
  """The function (state, batch) -> (state, metrics). A step whose loss or gradient is not finite changes nothing.

  Args:
    accumulation: micro-batches that a batch is split into; their gradients are computed one after another and added.
  """

  def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step + 1)
    (loss, metrics), gradient = gradient_of(task, state.params, batch, key, accumulation)
    norm = optax.global_norm(gradient)
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = ema_decay(state.step, decay)
    ema = jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, state.ema, params)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = TrainState(params, moments, ema, state.step + 1, state.rng)
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return kept, {"loss": loss, "gradient_norm": norm, "finite": finite, **metrics}

  return step


def gradient_of(task: Task, params: Params, batch: Any, key: jax.Array, accumulation: int) -> tuple[Any, Params]:
  """((loss, metrics), gradient) of a batch; with several micro-batches, means over them by the task's weights.

  Raises:
    ValueError: the rows don't divide into so many micro-batches.
  """
  gradient = jax.value_and_grad(task.loss, has_aux=True)
  if accumulation == 1:
    return gradient(params, batch, key)
  rows, ranks = jax.tree.leaves(batch)[0].shape[0], sharding.ways("batch")
  if rows % (accumulation * ranks):
    raise InputError(
      f"train.accumulation={accumulation}: {rows} rows can't be shared by {ranks} ranks in {accumulation} micro-"
      f"batches: make train.rows a multiple of {accumulation * ranks}"
    )

  def add(total: Any, part: Any) -> tuple[Any, None]:
    weight = task.weight(part)
    found = gradient(params, part, key), 1.0
    return jax.tree.map(lambda old, new: old + weight * new, total, found), None

  shapes = jax.eval_shape(
    lambda: (gradient(params, jax.tree.map(lambda x: x[0], split_rows(batch, accumulation)), key), 1.0)
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
  (found, weight), _ = jax.lax.scan(add, zeros, split_rows(batch, accumulation))
  return jax.tree.map(lambda x: x / weight, found)


def split_rows(batch: Any, accumulation: int) -> Any:
  """(rows, ...) -> (accumulation, rows / accumulation, ...): each micro-batch has as many of each rank's rows."""

  def split(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1)
    return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

  return jax.tree.map(split, batch)
