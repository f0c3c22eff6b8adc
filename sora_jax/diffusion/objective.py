"""The training objective: corrupt packed clips, weigh the velocity error. Knows nothing of networks.

Shape letters: B rows, L tokens, S segments, C values a token.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sora_jax.diffusion import noise, schedules
from sora_jax.errors import InputError
from sora_jax.packing.batch import PackedBatch, per_token

MIN_TIME = 0.05  # errors divide by t; below this level they divide by this (Li & He 2025, section 4.3)


class NoiseLevels(NamedTuple):
  """How noise levels are drawn: logit-normal or, for a share of the clips, uniform; then moved by a clip's size.

  Sampling passes through all levels from 1 to 0, and a logit-normal draw almost never falls near the ends.
  """

  mean: float
  std: float
  base_tokens: float
  uniform_share: float = 0.0


def grid_tokens(batch: PackedBatch) -> jax.Array:
  """Tokens of each segment that are predicted, float32 (B, S); its conditions are none of a clip's size."""
  return _predicted(batch).sum(1).astype(jnp.float32)


def draw_times(batch: PackedBatch, key: jax.Array, levels: NoiseLevels) -> jax.Array:
  """One noise level a clip, float32 (B, S)."""
  normal_BS = noise.clip_normal(noise.clip_keys(key, batch.clip_index_BS, "time", batch.turn_BS))
  t_BS = schedules.logit_normal(normal_BS, levels.mean, levels.std)
  # One draw says whether a clip is of the share, and if so, its place within the share is the level.
  uniform_BS = noise.clip_uniform(noise.clip_keys(key, batch.clip_index_BS, "uniform_time", batch.turn_BS))
  share = levels.uniform_share
  t_BS = jnp.where(uniform_BS < share, uniform_BS / max(share, 1e-6), t_BS)
  return schedules.shift(t_BS, schedules.size_shift(grid_tokens(batch), levels.base_tokens))


def corrupt(batch: PackedBatch, t_BS: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Adds noise to all tokens: condition tokens have a level of their own, those of the grid their clip's.

  Returns:
    x_t (B, L, C) and the noise level of every token (B, L); padding tokens have level 0.
  """
  chex.assert_rank([batch.tokens_BLC, batch.segments_BL, t_BS], [3, 2, 2])
  keys_BS = noise.clip_keys(key, batch.clip_index_BS, "noise", batch.turn_BS)
  e_BLC = noise.token_noise(keys_BS, batch.segments_BL, batch.tokens_BLC.shape[-1])
  t_BL = jnp.where(batch.condition_BL, batch.level_BL, per_token(t_BS, batch.segments_BL))
  return (1.0 - t_BL[..., None]) * batch.tokens_BLC + t_BL[..., None] * e_BLC, t_BL


def velocity_errors(x_hat_BLC: jax.Array, batch: PackedBatch, t_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean squared velocity error of each clip over its predicted tokens.

  With v_hat = (x_t - x_hat) / max(t, 0.05) and v = (x_t - x) / max(t, 0.05) the error is (x_hat - x) / max(t, 0.05).

  Returns:
    errors (B, S), 0 where a segment has no predicted token; and the number of predicted tokens (B, S).
  """
  error_BL = jnp.mean(jnp.square(x_hat_BLC - batch.tokens_BLC), -1) / jnp.square(jnp.maximum(t_BL, MIN_TIME))
  member_BLS = _predicted(batch)
  count_BS = member_BLS.sum(1).astype(jnp.float32)
  total_BS = jnp.where(member_BLS, error_BL[:, :, None], 0.0).sum(1)
  return total_BS / jnp.maximum(count_BS, 1.0), count_BS


def _predicted(batch: PackedBatch) -> jax.Array:
  """Which tokens belong to each segment and are no condition, bool (B, L, S)."""
  ids_S = jnp.arange(1, batch.weight_BS.shape[1] + 1)
  predicted_BL = (batch.segments_BL > 0) & ~batch.condition_BL
  return (batch.segments_BL[:, :, None] == ids_S[None, None]) & predicted_BL[:, :, None]


def segment_weights(batch: PackedBatch, weighting: str) -> jax.Array:
  """The weight of each segment's error in the loss, (B, S): one a clip ("clip") or one a token ("token").

  Raises:
    ValueError: another weighting.
  """
  count_BS = _predicted(batch).sum(1).astype(jnp.float32)
  weights = {"clip": (count_BS > 0) * batch.weight_BS, "token": count_BS * batch.weight_BS}
  if weighting not in weights:
    raise InputError(f"diffusion.weighting is {weighting!r}: it is 'clip' or 'token'")
  return weights[weighting]


def velocity_loss(
  x_hat_BLC: jax.Array, batch: PackedBatch, t_BL: jax.Array, weighting: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss: mean over clips of each clip's mean error ("clip"), or the mean over tokens ("token").

  Returns:
    The loss that `weighting` names, and both as metrics.

  Raises:
    ValueError: another weighting.
  """
  errors_BS = velocity_errors(x_hat_BLC, batch, t_BL)[0]

  def mean(name: str) -> jax.Array:
    weight_BS = segment_weights(batch, name)
    return jnp.sum(errors_BS * weight_BS) / jnp.maximum(jnp.sum(weight_BS), 1e-6)

  return mean(weighting), {f"loss_per_{name}": mean(name) for name in ("clip", "token")}
