"""The diffusion transformer's task: packed latents in, velocity loss out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sora_jax.diffusion import noise, objective
from sora_jax.diffusion.denoiser import clean_from
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing.batch import PackedBatch
from sora_jax.train.held_out import HeldOut, evaluator
from sora_jax.train.state import Metrics, Params


class DiffusionConfig(NamedTuple):
  prediction: str  # what the network's output means, see `clean_from`
  weighting: str  # "clip" or "token"
  levels: objective.NoiseLevels
  caption_drop: float  # the share of clips that train without their caption

  @classmethod
  def of(cls, config: Any) -> "DiffusionConfig":
    section = config.diffusion
    # A clip with some tokens left out gets the noise of the whole clip.
    base_tokens = section.base_tokens * (1.0 - config.data.token_drop)
    mean, std = section.time_logit
    levels = objective.NoiseLevels(mean, std, base_tokens, section.uniform_share)
    return cls(section.prediction, section.weighting, levels, section.caption_drop)


class DiTTask:
  """Batches are `PackedBatch`es of clean latent patches."""

  def __init__(
    self,
    config: DiTConfig,
    diffusion: DiffusionConfig,
    preview: Callable[[Params], np.ndarray] | None = None,
    held_out: tuple[HeldOut, Mesh] | None = None,
  ):
    """
    Args:
      preview: draws samples from parameters into one picture.
      held_out: what `evaluate` gives the losses of, and the mesh that parameters lie on.
    """
    self.diffusion = diffusion
    self.make = lambda key: DiT(config, nnx.Rngs(params=key))
    self.graph, _ = abstract(DiT, config)
    self._preview = preview
    self._evaluate = evaluator(self._captioned, diffusion.prediction, *held_out) if held_out else lambda params: {}

  def init(self, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.split(self.make(key))[1])

  def loss(self, params: Params, batch: PackedBatch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    t_BS = objective.draw_times(batch, key, self.diffusion.levels)
    x_t, t_BL = objective.corrupt(batch, t_BS, key)
    keys_BS = noise.clip_keys(key, batch.clip_index_BS, "caption_drop", batch.turn_BS)
    dropped_BS = noise.clip_uniform(keys_BS) < self.diffusion.caption_drop
    output = nnx.merge(self.graph, params)(x_t, t_BL, batch, ~dropped_BS)
    x_hat = clean_from(output, x_t, t_BL, self.diffusion.prediction)
    return objective.velocity_loss(x_hat, batch, t_BL, self.diffusion.weighting)

  def weight(self, batch: PackedBatch) -> jax.Array:
    return objective.segment_weights(batch, self.diffusion.weighting).sum()

  def _captioned(self, params: Params, x_t: jax.Array, t_BL: jax.Array, batch: PackedBatch) -> jax.Array:
    """The network's output, with captions unless training shows none."""
    return nnx.merge(self.graph, params)(x_t, t_BL, batch, (batch.weight_BS > 0) & (self.diffusion.caption_drop < 1.0))

  def evaluate(self, params: Params) -> dict[str, float]:
    return self._evaluate(params)

  def preview(self, params: Params) -> np.ndarray | None:
    return self._preview(params) if self._preview else None

  def finish(self, params: Params) -> Params:
    return params
