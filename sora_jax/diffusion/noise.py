"""Random draws that belong to a clip, not to a row, a device or an order.

Every draw is keyed by (run seed and step, clip index and turn, purpose) and every token's noise also by the token's
number inside its clip, so a clip gets the same noise alone, packed with others, or on another number of devices. The
turn tells the uses of a clip apart that a mixture repeats within a step.
"""

import jax
import jax.numpy as jnp
import numpy as np

PURPOSES = {"time": 1, "noise": 2, "caption_drop": 3, "posterior": 4, "uniform_time": 5}


def clip_keys(
  key: jax.Array, clip_index: np.ndarray | jax.Array, purpose: str, turn: np.ndarray | jax.Array | None = None
) -> jax.Array:
  """One key a use of a clip: `clip_index` and `turn`, int32 of any one shape -> keys of that shape."""
  key = jax.random.fold_in(key, PURPOSES[purpose])
  keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(clip_index.reshape(-1))
  if turn is not None:
    keys = jax.vmap(jax.random.fold_in)(keys, turn.reshape(-1))
  return keys.reshape(clip_index.shape)


def token_numbers(segments_BL: np.ndarray | jax.Array) -> jax.Array:
  """The number of each token inside its own segment, from 0; int32 (B, L).

  Segments are contiguous in a row, so it is the distance from the last place where the id changed.
  """
  place_BL = jnp.broadcast_to(jnp.arange(segments_BL.shape[1], dtype=jnp.int32), segments_BL.shape)
  changed_BL = segments_BL[:, 1:] != segments_BL[:, :-1]
  first_BL = jnp.concatenate([jnp.ones_like(changed_BL[:, :1]), changed_BL], axis=1)
  return place_BL - jax.lax.cummax(jnp.where(first_BL, place_BL, 0), axis=1)


def token_noise(keys_BS: jax.Array, segments_BL: np.ndarray | jax.Array, channels: int) -> jax.Array:
  """Standard normal noise (B, L, channels), float32, keyed by clip and token number; padding tokens get some too."""
  rows_B1 = jnp.arange(segments_BL.shape[0])[:, None]
  token_keys = keys_BS[rows_B1, jnp.maximum(segments_BL - 1, 0)].reshape(-1)
  numbers = token_numbers(segments_BL).reshape(-1)
  draw = jax.vmap(lambda key, number: jax.random.normal(jax.random.fold_in(key, number), (channels,)))
  return draw(token_keys, numbers).reshape(*segments_BL.shape, channels)


def clip_uniform(keys: jax.Array) -> jax.Array:
  """One uniform draw in [0, 1) a key."""
  return jax.vmap(lambda key: jax.random.uniform(key))(keys.reshape(-1)).reshape(keys.shape)


def clip_normal(keys: jax.Array) -> jax.Array:
  """One standard normal draw a key."""
  return jax.vmap(lambda key: jax.random.normal(key))(keys.reshape(-1)).reshape(keys.shape)
