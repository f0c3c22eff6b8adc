"""Blockwise attention equals the whole at once, gradients too; blocks that share no segment are left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.models.attention.attention import attention
from sora_jax.models.attention.blockwise import BLOCKWISE, backward, forward, window_sizes, windows
from sora_jax.models.attention.kernel import Kernel, attend

LENGTHS = (1, 129, 704)
MORE_LENGTHS = (63, 64, 65, 127, 128, 191, 192, 1088)
slow = [pytest.param(length, marks=pytest.mark.slow) for length in MORE_LENGTHS]
K, H = 2, 8


def blockwise_attention(*args):
  return attend(BLOCKWISE, *args)


def draw(seed: int, queries: int, keys: int, dtype=np.float32, rows: int = 2) -> list[jax.Array]:
  """query, key, value and a cotangent, (B, K, L, H)."""
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(rows, K, n, H)), dtype) for n in (queries, keys, keys, queries)]


def packed(length: int, clips: int, rng: np.random.Generator) -> np.ndarray:
  """Segment ids of a row: clips of any lengths one after another, then padding."""
  ends = np.sort(rng.integers(0, length + 1, clips))
  ids = np.searchsorted(ends, np.arange(length), side="right") + 1
  return np.where(ids > clips, 0, ids).astype(np.int32)


def reference(query, key, value, query_segments, key_segments):
  """The softmax over all pairs, in float32; a query that sees no key gets 0."""
  same = (query_segments[:, None, :, None] == key_segments[:, None, None]) & (query_segments > 0)[:, None, :, None]
  same = jnp.broadcast_to(same, (len(query), K, *same.shape[2:]))
  query, key, value = (jnp.asarray(x, jnp.float32) for x in (query, key, value))
  score = jnp.where(same, jnp.einsum("BKLH,BKMH->BKLM", query, key) * H**-0.5, -jnp.inf)
  weight = jnp.where(same, jnp.exp(score - jnp.where(same, score, -1e9).max(-1, keepdims=True)), 0.0)
  return jnp.einsum("BKLM,BKMH->BKLH", weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-30), value)


@functools.partial(jax.jit, static_argnums=0)
def pulled(call, query, key, value, cotangent, *segments):
  out, pull = jax.vjp(lambda *qkv: call(*qkv, *segments), query, key, value)
  return out, *pull(cotangent.astype(out.dtype))


def both(*args) -> list[np.ndarray]:
  """The output and the gradients of query, key and value."""
  return [np.asarray(x, np.float32) for x in pulled(*args)]


@pytest.mark.parametrize("length", [*LENGTHS, *slow])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_output_and_gradients_are_those_of_the_whole(length, dtype):
  """F21."""
  rng = np.random.default_rng(length)
  segments = jnp.asarray(np.stack([packed(length, 4, rng), packed(length, 1, rng)]))
  inputs = draw(length, length, length, dtype)
  found, wanted = both(blockwise_attention, *inputs, segments, segments), both(reference, *inputs, segments, segments)
  for mine, theirs in zip(found, wanted, strict=True):
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, theirs, atol=1e-5 if dtype == np.float32 else 0.1)


FIVE = Kernel(functools.partial(forward, queries=5), functools.partial(backward, queries=5))


def in_blocks_of_five(*args):
  return attend(FIVE, *args)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_any_ids_in_any_order(seed):
  rng = np.random.default_rng(seed)
  query_segments, key_segments = (jnp.asarray(rng.integers(0, 4, (2, n)), jnp.int32) for n in (23, 17))
  inputs = draw(seed, 23, 17)
  found = both(in_blocks_of_five, *inputs, query_segments, key_segments)
  for mine, theirs in zip(found, both(reference, *inputs, query_segments, key_segments), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_row_of_padding_is_nothing_and_moves_nothing():
  """F21."""
  inputs, none = draw(0, 130, 130), jnp.zeros((2, 130), jnp.int32)
  for found in both(blockwise_attention, *inputs, none, none):
    np.testing.assert_array_equal(found, 0.0)


def test_another_clip_however_large_changes_nothing():
  rng = np.random.default_rng(0)
  segments = jnp.asarray(packed(300, 3, rng)[None])
  query, key, value, cotangent = draw(0, 300, 300, rows=1)
  other = (segments == 2)[:, None, :, None]
  loud = [jnp.where(other, x + 1e3, x) for x in (query, key, value)]
  quiet = jnp.where(other, 0.0, cotangent)
  keep = ~np.asarray(other[0, 0, :, 0])
  for mine, theirs in zip(
    both(blockwise_attention, *loud, quiet, segments, segments),
    both(blockwise_attention, query, key, value, quiet, segments, segments),
    strict=True,
  ):
    np.testing.assert_array_equal(mine[:, :, keep], theirs[:, :, keep])


def test_a_window_holds_all_that_a_block_can_see_and_begins_and_ends_with_it():
  rng = np.random.default_rng(3)
  segments = np.stack([packed(256, 5, rng), np.zeros(256, np.int32)])
  first, count = (np.asarray(x) for x in windows(jnp.asarray(segments), jnp.asarray(segments), 16))
  for row, block in np.ndindex(2, 16):
    own = set(segments[row, 16 * block : 16 * block + 16].tolist()) - {0}
    seen = np.flatnonzero(np.isin(segments[row], list(own)))
    assert count[row, block] == (seen[-1] + 1 - seen[0] if len(seen) else 0)
    assert not len(seen) or first[row, block] == seen[0]
  assert 0 < count[0].mean() < 128 and not count[1].any()


@given(st.integers(1, 10**6))
def test_windows_grow_by_half_at_most_and_end_with_all_keys(keys):
  sizes = window_sizes(keys)
  assert sizes[-1] == keys and len(sizes) < 30
  assert all(small < large <= 2 * small for small, large in zip(sizes, sizes[1:], strict=False))
  assert all(large <= 1.5 * small for small, large in zip(sizes[1:], sizes[2:], strict=False))


def test_long_rows_on_a_cpu_are_computed_in_blocks_and_give_the_same():
  rng = np.random.default_rng(0)
  segments = jnp.asarray(packed(600, 3, rng)[None])
  query, key, value, _ = (x.transpose(0, 2, 1, 3) for x in draw(0, 600, 600, rows=1))
  clip = np.asarray(segments > 0)
  automatic, blocks, dense = (
    np.asarray(attention(query, key, value, segments, segments, backend)) for backend in ("auto", "blocks", "dense")
  )
  np.testing.assert_array_equal(automatic, blocks)
  np.testing.assert_allclose(automatic[clip], dense[clip], atol=1e-5)
  assert not np.array_equal(automatic, dense)


def test_an_unknown_backend_is_refused():
  """F22."""
  x, segments = jnp.zeros((1, 2, 1, 4)), jnp.ones((1, 2), jnp.int32)
  with pytest.raises(ValueError, match="model.attention is 'fast': it is one of auto, dense"):
    attention(x, x, x, segments, segments, "fast")
