"""Attention that never crosses segments: one call, whatever computes it and wherever the row lies.

Shape letters: B rows, L queries, M keys, K heads, H head width.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from sora_jax import sharding
from sora_jax.errors import InputError
from sora_jax.models.attention import context
from sora_jax.models.attention.blockwise import BLOCKWISE
from sora_jax.models.attention.kernel import ATTENDED, Kernel, attend


def _flash_gpu() -> Kernel:
  from sora_jax.models.attention.flash_gpu import FLASH_GPU  # Pallas takes half a second to import

  return FLASH_GPU


def _flash_tpu() -> Kernel:
  from sora_jax.models.attention.flash_tpu import FLASH_TPU

  return FLASH_TPU


LONG = 512 * 512  # pairs of a query and a key in a row, from where on blocks pay (on a CPU)
# What gives the kernel of a name on each platform it runs on. "dense", every pair and a mask, runs anywhere.
KERNELS: dict[str, dict[str, Callable[[], Kernel]]] = {
  "blocks": dict.fromkeys(("cpu", "gpu", "tpu"), lambda: BLOCKWISE),
  "flash": {"gpu": _flash_gpu, "tpu": _flash_tpu},
}
BACKENDS = ("auto", "dense", *KERNELS)
# Backends that are known to fail: which, whether on a device, and why; each with where that is reported.
FAULTS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
  (
    "flash",
    lambda device: _capability(device) < 8.0,
    "Triton needs compute capability 8.0 (github.com/jax-ml/jax/issues/26799)",
  ),
  (
    "flash",
    lambda device: device.platform == "gpu" and _capability(device) == math.inf,
    "its blocks need 83 KB of shared memory, and most of AMD's GPUs have 64 "
    "(rocm.docs.amd.com/en/latest/reference/gpu-specs.html)",
  ),
  (
    "flash",
    lambda device: device.device_kind == "TPU v3",
    "its kernels can't multiply bfloat16 (github.com/jax-ml/jax/issues/23989)",
  ),
)


def attention(
  query_BLKH: jax.Array,
  key_BMKH: jax.Array,
  value_BMKH: jax.Array,
  query_segments_BL: jax.Array,
  key_segments_BM: jax.Array,
  backend: str = "auto",
  over: tuple[str | None, str | None] = (None, None),
) -> jax.Array:
  """softmax(q k^T / sqrt(H)) v over the keys whose segment id equals the query's; (B, L, K, H).

  Scores and softmax are float32. The result is finite but meaningless for padding, id 0, and for a query whose segment
  has no key.

  Args:
    backend: what computes it, of BACKENDS; "auto" takes what is fastest here for these sizes.
    over: the logical names of the dimensions of queries and keys: "tokens" where devices share them.

  Raises:
    ValueError: an unknown backend, one that does not run here or is known to fail, or heads that `mesh.ulysses` devices
      can't exchange.
  """
  chex.assert_equal_shape([key_BMKH, value_BMKH])
  query, key, value = (x.transpose(0, 2, 1, 3) for x in (query_BLKH, key_BMKH, value_BMKH))
  name = choose(backend, query.shape[2], key.shape[2])
  kernel = KERNELS[_fastest() if name == "dense" else name][sharding.platform()]()
  call = dense_attention if name == "dense" else functools.partial(attend, kernel)
  if not sharding.one_device():
    call = _on_all_devices(call, kernel, query.shape, over)
  return call(query, key, value, query_segments_BL, key_segments_BM).transpose(0, 2, 1, 3)


def choose(backend: str, queries: int, keys: int) -> str:
  """The backend itself, or for "auto" what is fastest where this is compiled for and for rows of these lengths.

  Raises:
    ValueError: an unknown backend, or one that does not run there or is known to fail.
  """
  if backend not in BACKENDS:
    raise InputError(f"model.attention is {backend!r}: it is one of {', '.join(BACKENDS)}")
  platform = sharding.platform()
  if backend == "auto":
    return _fastest() if queries * keys >= LONG or platform == "tpu" else "dense"
  if backend != "dense" and platform not in KERNELS[backend]:
    runs_on = " or ".join(KERNELS[backend])
    raise InputError(f"model.attention={backend!r} runs on {runs_on}, not on {platform}: leave it at 'auto'")
  if why := _fault(backend):
    kind = jax.local_devices()[0].device_kind
    raise InputError(f"model.attention={backend!r} does not run on {kind}: {why}; leave it at 'auto'")
  return backend


def _fastest() -> str:
  """The best kernel for long rows."""
  return "flash" if sharding.platform() in KERNELS["flash"] and not _fault("flash") else "blocks"


def _fault(backend: str) -> str | None:
  """Why a backend is known to fail on this machine's devices; None where no fault is known."""
  device = jax.local_devices()[0]
  if device.platform != sharding.platform():
    return None
  return next((why for name, fails, why in FAULTS if name == backend and fails(device)), None)


def _capability(device: Any) -> float:
  """A GPU's compute capability; infinite where there is no such thing."""
  text = getattr(device, "compute_capability", "")
  return float(text) if re.fullmatch(r"\d+\.\d+", text) else math.inf


def _on_all_devices(
  call: Callable, kernel: Kernel, shape_BKLH: tuple[int, ...], over: tuple[str | None, str | None]
) -> Callable:
  """`call` on each device's rows, heads and tokens; ring attention with `kernel` where devices share the tokens."""
  B, K, L, _ = shape_BKLH
  rows, heads, tokens = sharding.split("batch", B), sharding.split("heads", K), sharding.split(over[0], L)
  keys = tokens if over[1] == over[0] else None
  if tokens and keys and (call is not dense_attention or sharding.ways("tokens") > 1):
    ring, group = tokens
    mesh, mine = jax.sharding.get_abstract_mesh(), K // (sharding.ways("heads") if heads else 1)
    if mine % mesh.shape[group]:
      raise InputError(
        f"{mine} heads a device can't be exchanged by mesh.ulysses={mesh.shape[group]} devices: make it a divisor"
      )
    call = context.exchange_heads(functools.partial(context.ring_attention, kernel, ring), group)
  query_spec, key_spec = (PartitionSpec(rows, heads, place, None) for place in (tokens, keys))
  specs = (query_spec, key_spec, key_spec, PartitionSpec(rows, tokens), PartitionSpec(rows, keys))
  return jax.shard_map(call, in_specs=specs, out_specs=query_spec, check_vma=False)


def dense_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, query_segments: jax.Array, key_segments: jax.Array
) -> jax.Array:
  """Every query with every key, and a mask; (B, K, L, H)."""
  # Added, not selected, and divided by the sum at the end: written so, XLA fuses the whole of it on the CPU.
  same_B1LM = query_segments[:, None, :, None] == key_segments[:, None, None, :]
  bias_B1LM = jnp.where(same_B1LM, 0.0, -1e30).astype(jnp.float32)
  scale = query.shape[-1] ** -0.5
  score = jnp.einsum("BKLH,BKMH->BKLM", query * scale, key, preferred_element_type=jnp.float32) + bias_B1LM
  weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
  # The sum as a product with ones: XLA's reduction of the same array is slower on the CPU.
  total = jnp.einsum("BKLM,M->BKL", weight, jnp.ones(weight.shape[-1], jnp.float32))[..., None]
  mixed = jnp.einsum("BKLM,BKMH->BKLH", weight.astype(value.dtype), value, preferred_element_type=jnp.float32)
  return checkpoint_name((mixed / total).astype(value.dtype), ATTENDED)
