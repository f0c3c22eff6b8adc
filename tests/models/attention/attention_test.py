"""Attention against a plain loop; segments neither see nor move one another, forward or backward."""

import types

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax import sharding
from sora_jax.models.attention import attention as module
from sora_jax.models.attention.attention import attention, choose
from tests.devices import on_devices

B, L, M, K, H = 2, 10, 8, 2, 4
SEGMENTS = st.lists(st.integers(0, 3), min_size=B * L, max_size=B * L)


@jax.jit
def attend_and_pull(query, key, value, query_segments, key_segments, cotangent):
  """The output, and the gradients of (query, key, value)."""
  out, pull = jax.vjp(lambda *qkv: attention(*qkv, query_segments, key_segments), query, key, value)
  return out, pull(cotangent)


def draw(seed: int, queries: int = L, keys: int = M, rows: int = B) -> list[np.ndarray]:
  """query, key, value and a cotangent."""
  rng = np.random.default_rng(seed)
  shapes = (rows, queries, K, H), (rows, keys, K, H), (rows, keys, K, H), (rows, queries, K, H)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(query, key, value, query_segments, key_segments, cotangent):
  """One query at a time, in float64; and the gradients by the derivative of the softmax."""
  query, key, value, cotangent = (np.asarray(x, np.float64) for x in (query, key, value, cotangent))
  out, dq, dk, dv = np.zeros_like(query), np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
  for b, i, k in np.ndindex(query.shape[:3]):
    seen = np.flatnonzero(key_segments[b] == query_segments[b, i])
    if not len(seen):
      continue
    score = key[b, seen, k] @ query[b, i, k] * query.shape[-1] ** -0.5
    weight = np.exp(score - score.max())
    weight /= weight.sum()
    out[b, i, k] = weight @ value[b, seen, k]
    dv[b, seen, k] += weight[:, None] * cotangent[b, i, k]
    dweight = value[b, seen, k] @ cotangent[b, i, k]
    dscore = weight * (dweight - weight @ dweight) * query.shape[-1] ** -0.5
    dq[b, i, k] = dscore @ key[b, seen, k]
    dk[b, seen, k] += dscore[:, None] * query[b, i, k]
  return out, (dq, dk, dv)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 2**32), SEGMENTS, st.lists(st.integers(0, 3), min_size=B * M, max_size=B * M))
def test_output_and_gradients_equal_a_loop(seed, queries, keys):
  query_segments, key_segments = np.reshape(queries, (B, L)), np.reshape(keys, (B, M))
  query, key, value, cotangent = draw(seed)
  has_key = (query_segments[:, :, None] == key_segments[:, None]).any(-1)
  cotangent = cotangent * has_key[..., None, None]  # what a query without keys gets is nobody's business
  out, gradients = attend_and_pull(query, key, value, query_segments, key_segments, cotangent)
  expected, expected_gradients = reference(query, key, value, query_segments, key_segments, cotangent)
  np.testing.assert_allclose(np.asarray(out)[has_key], expected[has_key], rtol=1e-5, atol=1e-5)
  for found, wanted in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  assert np.isfinite(out).all()


A, OTHER = slice(0, 4), slice(4, 9)
ROW_SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0]])


def test_packed_equals_each_alone():
  x = draw(0, L, L, rows=1)
  packed, packed_gradients = attend_and_pull(*x[:3], ROW_SEGMENTS, ROW_SEGMENTS, x[3])
  for part in (A, OTHER):
    mine = [array[:, part] for array in x]
    ones = ROW_SEGMENTS[:, part]
    alone, gradients = attend_and_pull(*mine[:3], ones, ones, mine[3])
    np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)
    for found, wanted in zip(packed_gradients, gradients, strict=True):
      np.testing.assert_allclose(found[:, part], wanted, atol=1e-5)


@pytest.mark.parametrize("moved", ["query", "key", "value", "cotangent"])
def test_a_neighbour_moves_nothing_not_by_one_bit(moved):
  x = dict(zip(("query", "key", "value", "cotangent"), draw(1, L, L, rows=1), strict=True))
  changed = {**x, moved: x[moved].copy()}
  changed[moved][:, 4:] += 1e3  # the neighbour and the padding
  run = lambda x: attend_and_pull(x["query"], x["key"], x["value"], ROW_SEGMENTS, ROW_SEGMENTS, x["cotangent"])
  (out, gradients), (out_changed, gradients_changed) = run(x), run(changed)
  for before, after in zip((out, *gradients), (out_changed, *gradients_changed), strict=True):
    np.testing.assert_array_equal(before[:, A], after[:, A])
  everything = zip((out, *gradients), (out_changed, *gradients_changed), strict=True)
  assert any((np.asarray(before) != after).any() for before, after in everything)  # the neighbour itself did move


def test_queries_without_a_key_are_finite():
  query, key, value, cotangent = draw(2)
  no_keys = np.full((B, M), 7)
  out, gradients = attend_and_pull(query, key, value, np.ones((B, L), int), no_keys, cotangent)
  assert all(np.isfinite(array).all() for array in (out, *gradients))


def test_rows_of_padding_alone_are_finite():
  """F21."""
  query, key, value, cotangent = draw(3)
  out, gradients = attend_and_pull(
    0 * query, 0 * key, 0 * value, np.zeros((B, L), int), np.zeros((B, M), int), cotangent
  )
  assert all(np.isfinite(array).all() for array in (out, *gradients))


def test_large_scores_do_not_overflow():
  query, key, value, cotangent = draw(4, L, L, rows=1)
  out, gradients = attend_and_pull(100 * query, 100 * key, value, ROW_SEGMENTS, ROW_SEGMENTS, cotangent)
  expected, _ = reference(100 * query, 100 * key, value, ROW_SEGMENTS, ROW_SEGMENTS, cotangent)
  np.testing.assert_allclose(out, expected, atol=1e-3)
  assert all(np.isfinite(array).all() for array in gradients)


def test_bfloat16_is_near_float32():
  query, key, value, cotangent = (jnp.asarray(x, jnp.bfloat16) for x in draw(5, L, L, rows=1))
  out, gradients = attend_and_pull(query, key, value, ROW_SEGMENTS, ROW_SEGMENTS, cotangent)
  wide = (x.astype(jnp.float32) for x in (query, key, value))
  expected, expected_gradients = attend_and_pull(*wide, ROW_SEGMENTS, ROW_SEGMENTS, cotangent.astype(jnp.float32))
  assert out.dtype == jnp.bfloat16
  for found, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.05)


def test_in_bfloat16_the_dense_mask_is_as_exact_as_blocks():
  row, ids = draw(7, 64, 64, rows=1), np.ones((1, 64), int)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in row[:3]]
  expected = attention(*(x.astype(jnp.float32) for x in narrow), ids, ids)
  error = lambda backend: np.abs(attention(*narrow, ids, ids, backend).astype(jnp.float32) - expected).mean()
  assert error("dense") < 1.1 * error("blocks")


def test_keys_and_values_of_different_shapes_are_refused():
  query, key, value, _ = draw(6)
  with pytest.raises(AssertionError):
    attention(query, key, value[:, 1:], np.ones((B, L), int), np.ones((B, M), int))


@pytest.fixture
def device(monkeypatch):
  """Makes this machine's first device another: its platform, what JAX calls it, and a GPU's compute capability."""

  def make(platform: str, kind: str, capability: str | None = None) -> None:
    found = types.SimpleNamespace(platform=platform, device_kind=kind)
    if capability:
      found.compute_capability = capability
    monkeypatch.setattr(jax, "local_devices", lambda: [found])
    monkeypatch.setattr(sharding, "platform", lambda: platform)

  return make


@pytest.mark.parametrize(
  ("platform", "kind", "capability", "short", "long"),
  [
    ("cpu", "cpu", None, "dense", "blocks"),
    ("gpu", "NVIDIA H100 80GB HBM3", "9.0", "dense", "flash"),
    ("gpu", "NVIDIA B200", "10.0", "dense", "flash"),
    ("gpu", "Tesla T4", "7.5", "dense", "blocks"),
    ("gpu", "AMD Instinct MI300X", "gfx942", "dense", "blocks"),
    ("tpu", "TPU v5", None, "flash", "flash"),
    ("tpu", "TPU v3", None, "blocks", "blocks"),
  ],
)
def test_auto_takes_the_best_that_runs(device, platform, kind, capability, short, long):
  device(platform, kind, capability)
  assert (choose("auto", 64, 64), choose("auto", 4096, 4096)) == (short, long)


def test_each_platform_has_its_own_kernel():
  assert module.KERNELS["flash"]["gpu"] is not module.KERNELS["flash"]["tpu"]
  assert set(module.KERNELS["blocks"]) == {"cpu", "gpu", "tpu"}


@pytest.mark.parametrize(
  ("platform", "kind", "capability", "why"),
  [
    ("gpu", "Tesla T4", "7.5", "Triton needs compute capability 8.0"),
    ("gpu", "AMD Instinct MI300X", "gfx942", "its blocks need 83 KB of shared memory,"),
    ("tpu", "TPU v3", None, "its kernels can't multiply bfloat16"),
  ],
)
def test_a_backend_that_is_known_to_fail_is_refused(device, platform, kind, capability, why):
  device(platform, kind, capability)
  with pytest.raises(
    ValueError, match=f"^model.attention='flash' does not run on {kind}: {why} .*; leave it at 'auto'"
  ):
    choose("flash", 4096, 4096)
  assert choose("blocks", 4096, 4096) == "blocks"


def test_what_is_compiled_for_other_devices_is_not_judged_by_those_here(device, monkeypatch):
  device("gpu", "Tesla T4", "7.5")
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert choose("flash", 4096, 4096) == "flash"


def test_devices_that_share_a_row_pass_keys_round_with_the_kernel_of_their_platform_and_others_do_as_told():
  script = """
import json
import jax, jax.numpy as jnp
from sora_jax import sharding
from sora_jax.models.attention.attention import attention

x, ids = jnp.zeros((4, 512, 2, 8)), jnp.ones((4, 512), jnp.int32)

def kernels(platform, backend, axis="context"):
  sharding.platform = lambda: platform
  call = lambda x: attention(x, x, x, ids, ids, backend, ("tokens", "tokens"))
  with jax.set_mesh(sharding.make_mesh({axis: 4})):
    text = str(jax.make_jaxpr(call)(x))
  return ["ppermute" in text, "pallas_call" in text, "while" in text]

shared = [kernels("gpu", "auto"), kernels("gpu", "blocks"), kernels("cpu", "auto"), kernels("cpu", "dense")]
print(json.dumps([shared, [kernels("cpu", "dense", "data"), kernels("cpu", "blocks", "data")]]))
"""
  shared, apart = on_devices(4, script)
  assert [each[:2] for each in shared] == [[True, True], [True, False], [True, False], [True, False]]
  assert [each[2] for each in apart] == [False, True]
