"""Noise belongs to the clip: the same alone, packed or in another row; another for each clip, step and purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import noise

CHANNELS = 8


@jax.jit
def draw(seed, clip_index, segments):
  keys = noise.clip_keys(jax.random.key(seed), clip_index, "noise")
  return noise.token_noise(keys, segments, CHANNELS)


SEGMENTS = np.array([[1] * 3 + [2] * 5 + [0] * 2, [1] * 5 + [2] * 4 + [0]])
CLIPS = np.array([[4, 9], [9, 6]])


@pytest.fixture(scope="module")
def packed() -> np.ndarray:
  return np.asarray(draw(0, CLIPS, SEGMENTS))


def test_a_clip_has_the_same_noise_alone_packed_and_in_another_row(packed):
  np.testing.assert_array_equal(packed[0, 3:8], packed[1, :5])
  alone = draw(0, np.array([[9]]), np.ones((1, 5), int))
  np.testing.assert_array_equal(alone[0], packed[0, 3:8])


def test_a_shorter_clip_has_the_noise_of_the_longer_ones_start(packed):
  shorter = draw(0, np.array([[9]]), np.array([[1, 1, 1, 0, 0]]))
  np.testing.assert_array_equal(shorter[0, :3], packed[0, 3:6])


def test_clips_steps_and_tokens_differ(packed):
  assert not np.isclose(packed[0, :3], packed[0, 3:6]).any()
  assert not np.isclose(packed, draw(1, CLIPS, SEGMENTS))[SEGMENTS > 0].any()
  assert len(np.unique(packed[0, 3:8])) == 5 * CHANNELS


def test_purposes_differ():
  keys = [noise.clip_keys(jax.random.key(0), jnp.array([3]), purpose) for purpose in noise.PURPOSES]
  assert len({tuple(np.ravel(jax.random.key_data(key))) for key in keys}) == len(noise.PURPOSES)


def test_an_unknown_purpose_is_refused():
  with pytest.raises(KeyError, match="fun"):
    noise.clip_keys(jax.random.key(0), jnp.array([3]), "fun")


def test_keys_have_the_shape_of_the_indices_and_depend_on_nothing_else():
  keys = noise.clip_keys(jax.random.key(0), jnp.array([[3, 5, 3], [7, 3, 5]]), "time")
  data = np.asarray(jax.random.key_data(keys))
  assert keys.shape == (2, 3)
  np.testing.assert_array_equal(data[0, 0], data[1, 1])
  assert len(np.unique(data.reshape(6, -1), axis=0)) == 3


def test_tokens_are_numbered_from_zero_in_each_segment():
  segments = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 3, 3, 3, 3, 3, 3]])
  np.testing.assert_array_equal(
    noise.token_numbers(jnp.asarray(segments)), [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 0, 1, 2, 3, 4, 5]]
  )


def test_token_noise_is_standard_normal():
  values = np.ravel(draw(0, np.arange(20).reshape(10, 2), np.tile([1] * 50 + [2] * 50, (10, 1))))
  count = len(values)
  assert abs(values.mean()) < 4 / count**0.5
  assert abs(values.var() - 1) < 4 * (2 / count) ** 0.5
  assert abs((values**4).mean() - 3) < 4 * (96 / count) ** 0.5


def test_clip_draws_have_their_distributions():
  keys = noise.clip_keys(jax.random.key(0), jnp.arange(2000).reshape(2, 1000), "time")
  uniform, normal = (np.asarray(draw(keys)) for draw in (noise.clip_uniform, noise.clip_normal))
  assert uniform.shape == normal.shape == (2, 1000)
  assert (uniform >= 0).all() and (uniform < 1).all()
  np.testing.assert_allclose(np.quantile(uniform, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
  np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=0.09)
