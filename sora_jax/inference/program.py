"""The sampler as one compiled program: a batch of packed clips from noise to clean tokens.

Shape letters: B rows, L tokens, S segments, N levels, C values a token.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.diffusion import noise, objective, samplers, schedules
from sora_jax.diffusion.denoiser import clean_from, guided, holding
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing.batch import PackedBatch, per_token
from sora_jax.sharding import constrain


class Plan(NamedTuple):
  """What the sampler does with each clip of a batch.

  Attributes:
    seeds_BS: int32.
    start_BS: float32, the noise level where it starts, before the size shift: 1 for a new clip.
    held_BL: bool, tokens of the grid whose clean values are known.
    guidance_BS: float32, how strongly its prompt steers it.
  """

  seeds_BS: np.ndarray | jax.Array
  start_BS: np.ndarray | jax.Array
  held_BL: np.ndarray | jax.Array
  guidance_BS: np.ndarray | jax.Array


@functools.lru_cache(maxsize=8)  # generators of one config share what is compiled
def program(model: DiTConfig, prediction: str, base_tokens: int) -> Callable:
  """The sampler, jitted: (params, batch, plan, the interval of guidance (2,), steps, method) -> clean tokens
  (B, L, C).
  """
  graph, _ = abstract(DiT, model)

  @jax.jit  # so that it is traced and lowered once, however often a step calls it
  def network(params: Any, batch: PackedBatch, kept_BS: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return clean_from(nnx.merge(graph, params)(x_t, t, batch, kept_BS), x_t, t, prediction)

  def sample_tokens(
    params: Any, batch: PackedBatch, plan: Plan, interval_2: jax.Array, steps: int, method: str
  ) -> jax.Array:
    shape_BS = batch.weight_BS.shape
    low, high = interval_2

    def step(x_BLC: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
      levels_2BL = jax.lax.dynamic_slice_in_dim(levels_NBL, number, 2)
      return samplers.sample(denoise, x_BLC, levels_2BL, method), None

    on, off = (functools.partial(network, params, batch, jnp.full(shape_BS, kept)) for kept in (True, False))
    scale_BL = per_token(plan.guidance_BS, batch.segments_BL, padding=1.0)
    denoise = holding(guided(on, off, scale_BL, (low, high)), batch.tokens_BLC, plan.held_BL)
    keys = noise.clip_keys(jax.random.key(0), plan.seeds_BS, "noise")
    noise_BLC = noise.token_noise(keys, batch.segments_BL, model.channels)
    shift_BS = schedules.size_shift(objective.grid_tokens(batch), base_tokens)
    shift_BL = per_token(shift_BS, batch.segments_BL, padding=1.0)
    levels_NBL = schedules.levels(steps, per_token(plan.start_BS, batch.segments_BL), shift_BL)
    levels_NBL = jnp.where(batch.condition_BL, batch.level_BL, levels_NBL)
    first_BL1 = levels_NBL[0][..., None]
    start_BLC = (1.0 - first_BL1) * batch.tokens_BLC + first_BL1 * noise_BLC
    tokens_BLC, _ = jax.lax.scan(step, start_BLC, jnp.arange(steps))
    return constrain(tokens_BLC, None, None, None)  # whole on every host

  return jax.jit(sample_tokens, static_argnums=(4, 5))
