"""The TPU's kernel, interpreted: equal to the whole at once, gradients too, for every length and packing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.attention import flash_tpu
from sora_jax.models.attention.attention import choose
from sora_jax.models.attention.flash_tpu import FLASH_TPU
from sora_jax.models.attention.kernel import NEVER, attend
from tests.models.attention.blockwise_test import both, draw, packed, reference

FAST = (1, 192)
SLOW = (63, 64, 65, 127, 128, 129, 191, 704, 1088)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Several blocks in a row of a few hundred tokens."""
  monkeypatch.setattr(flash_tpu, "QUERIES", 128)
  monkeypatch.setattr(flash_tpu, "KEYS", 128)


flash = functools.partial(attend, FLASH_TPU)


@pytest.mark.parametrize("length", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_output_and_gradients_are_those_of_the_whole(length, dtype):
  """F21."""
  rng = np.random.default_rng(length)
  segments = jnp.asarray(np.stack([packed(length, 4, rng), np.zeros(length, np.int32)]))  # a row of padding alone
  inputs = draw(length, length, length, dtype)
  for mine, theirs in zip(
    both(flash, *inputs, segments, segments), both(reference, *inputs, segments, segments), strict=True
  ):
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, theirs, atol=1e-5 if dtype == np.float32 else 0.1)


def test_other_keys_than_queries():
  rng = np.random.default_rng(5)
  segments = [jnp.asarray(np.stack([packed(n, 5, rng) for _ in range(2)])) for n in (300, 140)]
  inputs = draw(5, 300, 140)
  for mine, theirs in zip(both(flash, *inputs, *segments), both(reference, *inputs, *segments), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_query_that_none_of_these_keys_can_meet_has_nothing():
  ids = jnp.asarray([[1] * 100 + [2] * 50], jnp.int32)
  query, key, value, _ = draw(1, 150, 100, rows=1)
  attended = FLASH_TPU.forward(query, key, value, ids, ids[:, :100])
  np.testing.assert_array_equal(attended.out[:, :, 100:], 0.0)
  np.testing.assert_array_equal(attended.log_total[:, :, 100:], np.float32(NEVER))
  assert (np.asarray(attended.log_total[:, :, :100]) > NEVER / 2).all()


def test_it_is_refused_where_there_is_none():
  with pytest.raises(ValueError, match="model.attention='flash' runs on gpu or tpu, not on cpu: leave it at 'auto'"):
    choose("flash", 64, 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_products_are_lowered_whatever_the_default_precision(dtype):
  """The kernel's compiler does not know the precision "high"; float32 must not be rounded on the way."""
  x, segments = jnp.zeros((1, 1, 128, 64), dtype), jnp.ones((1, 128), jnp.int32)
  with jax.default_matmul_precision("high"):
    traced = jax.jit(FLASH_TPU.forward).trace(x, x, x, segments, segments)
    traced.lower(lowering_platforms=("tpu",))
  assert ("HIGHEST" in str(traced.jaxpr)) == (dtype == "float32")
