"""Attention of rows that devices share equals that of one device, gradients too, wherever clips begin and end."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.attention import blockwise, context
from sora_jax.models.attention.kernel import NEVER, Attended
from tests.devices import on_devices

# Largest difference from one device, of output and gradients, each as a share of its largest value if that is over 1.
SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from sora_jax import sharding
from sora_jax.models.attention.attention import attention

B, K, H, M = 2, 4, 8, 11
rng = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)

def pulled(over, query, key, value, cotangent, *segments):
  def call(*qkv):
    return attention(*qkv, *segments, over=over)
  out, pull = jax.vjp(call, query, key, value)
  return out, *pull(cotangent)

def difference(shape, L):
  # Clips that begin and end anywhere: in the middle of a device's part, over several parts, or on a border.
  ends = np.array([L // 5, L // 4 + 1, L - L // 8])
  ids = np.searchsorted(ends, np.arange(L), side="right") + 1
  segments = jnp.asarray(np.stack([np.where(ids > 3, 0, ids), np.zeros(L, int)]), jnp.int32)
  text = jnp.asarray(np.stack([[1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0], [0] * M]), jnp.int32)
  shown = (segments > 0)[..., None, None]
  worst = 0.0
  for over, keys, ids in ((("tokens", "tokens"), L, segments), (("tokens", None), M, text)):
    row = draw(B, L, K, H), draw(B, keys, K, H), draw(B, keys, K, H), draw(B, L, K, H) * shown, segments, ids
    alone = jax.jit(pulled, static_argnums=0)(over, *row)
    with jax.set_mesh(sharding.make_mesh(shape)):
      together = jax.jit(pulled, static_argnums=0)(over, *row)
    together = [np.asarray(x) for x in together]
    alone = [np.asarray(x) for x in alone]
    assert all(np.isfinite(x).all() for x in together)
    together[0], alone[0] = together[0] * np.asarray(shown), alone[0] * np.asarray(shown)
    worst = max(worst, *(float(np.abs(a - b).max() / max(1, np.abs(a).max())) for a, b in zip(alone, together)))
  return worst

print(json.dumps([difference(shape, L) for shape, L in json.loads('CASES')]))
"""

MIXED = {"fsdp": 1, "context": 8, "ulysses": 2}
FAST = [({"context": 8}, 48), (MIXED, 48)]
SLOW = [
  ({"context": 8, "ulysses": 4, "tensor": 1}, 64),
  ({"context": 4, "ulysses": 4, "fsdp": 2}, 40),
  ({"context": 2, "ulysses": 1, "tensor": 4}, 30),
  ({"context": 4, "ulysses": 2, "tensor": 2}, 1088),
  ({"context": 8}, 704),
  (MIXED, 192),
]


def differences(cases: list) -> list[float]:
  return on_devices(8, SCRIPT.replace("CASES", json.dumps(cases)))


def test_a_shared_row_equals_one_device():
  assert max(differences(FAST)) < 1e-5


@pytest.mark.slow
def test_any_mesh_and_length_equals_one_device():
  assert max(differences(SLOW)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["flash_tpu.FLASH_TPU", "flash_gpu.FLASH_GPU"])
def test_a_ring_of_an_accelerator_s_kernel_equals_one_device(kernel):
  """By interpretation."""
  script = """
import functools, json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
from sora_jax import sharding
from sora_jax.models.attention import blockwise, context, flash_gpu, flash_tpu
from sora_jax.models.attention.kernel import attend

rng = np.random.default_rng(0)
query, key, value, cotangent = (jnp.asarray(rng.normal(size=(1, 2, 256, 16)), jnp.float32) for _ in range(4))
ids = jnp.asarray([[1] * 100 + [2] * 70 + [3] * 60 + [0] * 26], jnp.int32)
cotangent *= (ids > 0)[:, None, :, None]
pulled = lambda call: jax.jit(lambda *x: jax.vjp(lambda *x: call(*x, ids, ids), *x)[1](cotangent))
alone = pulled(functools.partial(attend, blockwise.BLOCKWISE))(query, key, value)
with jax.set_mesh(sharding.make_mesh({"fsdp": 1, "context": 2})):
  row, flat = PartitionSpec(None, None, "ring", None), PartitionSpec(None, "ring")
  ring = functools.partial(context.ring_attention, KERNEL, "ring")
  call = jax.shard_map(ring, in_specs=(row, row, row, flat, flat), out_specs=row, check_vma=False)
  together = pulled(call)(query, key, value)
print(json.dumps([float(jnp.abs(a - b).max()) for a, b in zip(alone, together)]))
"""
  assert max(on_devices(2, script.replace("KERNEL", kernel))) < 1e-5


def test_heads_that_devices_cannot_exchange_are_refused():
  script = """
import jax, jax.numpy as jnp
from sora_jax import sharding
from sora_jax.models.attention.attention import attention
x, ids = jnp.zeros((1, 8, 6, 4)), jnp.ones((1, 8), jnp.int32)
with jax.set_mesh(sharding.make_mesh({"context": 4, "ulysses": 4})):
  try:
    jax.eval_shape(lambda x: attention(x, x, x, ids, ids, over=("tokens", "tokens")), x)
  except ValueError as error:
    import json
    print(json.dumps(str(error)))
"""
  assert on_devices(4, script) == "6 heads a device can't be exchanged by mesh.ulysses=4 devices: make it a divisor"


def test_two_parts_of_the_keys_merge_into_the_whole():
  rng = np.random.default_rng(0)
  query, key, value = (jnp.asarray(rng.normal(size=(1, 2, 20, 8)), jnp.float32) for _ in range(3))
  ids = jnp.asarray([[1] * 7 + [2] * 9 + [0] * 4], jnp.int32)
  parts = [blockwise.forward(query, key[:, :, part], value[:, :, part], ids, ids[:, part]) for part in HALVES]
  whole, merged = blockwise.forward(query, key, value, ids, ids), context.merge(*parts)
  for found, wanted in zip(merged, whole, strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-5)


HALVES = (slice(0, 10), slice(10, 20))


def test_merging_with_nothing_changes_nothing():
  nothing = Attended(jnp.zeros((1, 1, 2, 3)), jnp.full((1, 1, 2), NEVER))
  some = Attended(jnp.ones((1, 1, 2, 3)), jnp.asarray([[[0.5, NEVER]]]))
  for merged in (context.merge(nothing, some), context.merge(some, nothing)):
    np.testing.assert_array_equal(merged.out, some.out)
    np.testing.assert_array_equal(merged.log_total, some.log_total)
