"""The GPU's kernel: interpreted, equal to the whole at once, gradients too; compiled for a GPU that isn't here."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sora_jax.models.attention import flash_gpu
from sora_jax.models.attention.flash_gpu import FLASH_GPU
from sora_jax.models.attention.kernel import NEVER, attend
from tests.models.attention.blockwise_test import H, both, packed, reference

FAST = (1, 192)
SLOW = (63, 64, 65, 127, 128, 129, 191, 704, 1088)
KINDS = ((np.float32, 72), (jnp.bfloat16, 128))
MORE_KINDS = ((np.float32, 128), (jnp.bfloat16, 72), (np.float32, 8))
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = [
  *((length, *kind) for length in FAST for kind in KINDS),
  *(slow(length, *kind) for length in SLOW for kind in KINDS),
  *(slow(length, *kind) for length in (*FAST, *SLOW) for kind in MORE_KINDS),
]

flash = functools.partial(attend, FLASH_GPU)


def whole(query, key, value, *segments):
  """The reference, which scales scores as those of heads of H."""
  return reference(query.astype(jnp.float32) * (H / query.shape[-1]) ** 0.5, key, value, *segments)


def draw(seed: int, queries: int, keys: int, dtype=np.float32, width: int = 72, rows: int = 2) -> list[jax.Array]:
  """query, key, value and a cotangent, (B, K, L, H)."""
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(rows, 2, n, width)), dtype) for n in (queries, keys, keys, queries)]


def same(inputs, segments, atol: float) -> None:
  """That outputs and gradients are those of the reference."""
  for mine, theirs in zip(both(flash, *inputs, *segments), both(whole, *inputs, *segments), strict=True):
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, theirs, atol=atol)


@pytest.mark.parametrize(("length", "dtype", "width"), CASES)
def test_output_and_gradients_are_those_of_the_whole(length, dtype, width):
  rng = np.random.default_rng(length)
  segments = jnp.asarray(np.stack([packed(length, 4, rng), np.zeros(length, np.int32)]))  # a row of padding alone
  same(draw(length, length, length, dtype, width), (segments, segments), 1e-5 if dtype == np.float32 else 0.1)


def test_other_keys_than_queries():
  rng = np.random.default_rng(5)
  segments = [jnp.asarray(np.stack([packed(n, 5, rng) for _ in range(2)])) for n in (300, 140)]
  same(draw(5, 300, 140), segments, 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_any_ids_in_any_order(seed):
  rng = np.random.default_rng(seed)
  segments = [jnp.asarray(rng.integers(0, 4, (2, n)), jnp.int32) for n in (47, 35)]
  with pytest.MonkeyPatch.context() as small:
    small.setattr(flash_gpu, "OUTER", 32)
    small.setattr(flash_gpu, "INNER", 16)
    same(draw(seed, 47, 35, width=8), segments, 1e-5)


def test_a_query_that_none_of_these_keys_can_meet_has_nothing():
  ids = jnp.asarray([[1] * 100 + [2] * 50], jnp.int32)
  query, key, value, _ = draw(1, 150, 100, rows=1)
  attended = FLASH_GPU.forward(query, key, value, ids, ids[:, :100])
  np.testing.assert_array_equal(attended.out[:, :, 100:], 0.0)
  np.testing.assert_array_equal(attended.log_total[:, :, 100:], np.float32(NEVER))
  assert (np.asarray(attended.log_total[:, :, :100]) > NEVER / 2).all()


def test_large_scores_do_not_overflow():
  ids = jnp.asarray([[1] * 50 + [2] * 40 + [0] * 10], jnp.int32)
  query, key, value, cotangent = draw(2, 100, 100, rows=1)
  same((query * 100, key * 100, value, cotangent), (ids, ids), 0.1)


def test_blocks_that_share_no_segment_are_not_read():
  """What is not a number there would make all sums so, times weights of 0 too."""
  ids = jnp.asarray([[1] * 128 + [2] * 256 + [0] * 128], jnp.int32)
  inputs = draw(3, 512, 512, rows=1)
  other = np.asarray(ids != 2)[:, None, :, None]
  alone = both(flash, *inputs, ids, ids)
  for found, wanted in zip(both(flash, *(jnp.where(other, jnp.nan, x) for x in inputs), ids, ids), alone, strict=True):
    np.testing.assert_array_equal(found[:, :, 128:384], wanted[:, :, 128:384])


# An H100 as XLA wants it described to compile for one that isn't here: NVIDIA's data sheet, and the table of compute
# capability 9.0 in the CUDA programming guide.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
  reason="compiling for a GPU needs JAX's CUDA plugin: pip install 'jax[cuda12]'",
)
@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 72), ("bfloat16", 128), ("float32", 128)])
def test_it_compiles_for_an_h100(dtype, width):
  devices = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100).devices
  mesh = jax.sharding.Mesh(np.array(devices), ("x",), axis_types=(AxisType.Auto,))
  laid = NamedSharding(mesh, PartitionSpec())
  matrix = jax.ShapeDtypeStruct((1, 16, 32768, width), dtype, sharding=laid)
  ids = jax.ShapeDtypeStruct((1, 32768), jnp.int32, sharding=laid)

  def pulled(query, key, value, gradient, ids):
    out, pull = jax.vjp(lambda *qkv: flash(*qkv, ids, ids), query, key, value)
    return out, pull(gradient)

  with jax.set_mesh(mesh):
    program = jax.jit(pulled).lower(matrix, matrix, matrix, matrix, ids).compile()
  text = program.as_text()
  assert all(f"{name}_kernel" in text for name in ("_forward", "_query", "_key"))
  pairs = 16 * 32768**2 * 2  # of bytes, that a mask of all pairs would take
  assert program.memory_analysis().temp_size_in_bytes < pairs / 10
