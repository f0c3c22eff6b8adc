"""The device mesh and the two tables that lay arrays over it. No other file names a mesh axis.

Activations are laid out by logical names through `constrain`; parameters by the first regular expression
that matches their path. The same program runs on one device and on many: only the mesh differs.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical name of an activation's dimension -> mesh axes it is split over.
AXIS_RULES: dict[str, tuple[str, ...] | None] = {
  "batch": ("data", "fsdp"),
  "tokens": ("context",),
  "heads": ("tensor",),
  "hidden": ("tensor",),
  "embed": None,
}

# Parameter path -> the spec of its *last* dimensions; dimensions before them (stacked layers) are not split. Optimizer
# moments match too: their paths end with their parameter's.
PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r"(query|key|value|qkv|key_value|gate_up)/kernel", PartitionSpec("fsdp", "tensor")),
  (r"(attention_out|down)/kernel", PartitionSpec("tensor", "fsdp")),
  (
    r"(patch_in|patch_out|place_in|caption_in|time_in|size_in|modulation|latent_in|latent_out|linear_in|linear_out)/kernel",
    PartitionSpec("fsdp", None),
  ),
  (r"(mix_time|stage_in|stage_out)/kernel", PartitionSpec("fsdp", None)),
  (r"embedding", PartitionSpec(None, "fsdp")),
  (r"bias|table|taps|latent_mean|latent_deviation|ns_coeffs", PartitionSpec()),
)


def make_mesh(shape: dict[str, int] | None = None) -> Mesh:
  """The mesh over all devices; `shape` gives the size of some axes and one may be -1 (the rest of the devices).

  Raises:
    ValueError: an unknown axis, or sizes that do not multiply to the number of devices.
  """
  sizes = dict.fromkeys(MESH_AXES, 1) | ({"fsdp": -1} if shape is None else dict(shape))
  unknown = set(sizes) - set(MESH_AXES)
  if unknown:
    raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown: the axes are {', '.join(MESH_AXES)}")
  known = int(np.prod([size for size in sizes.values() if size > 0]))
  sizes = {axis: size if size > 0 else jax.device_count() // known for axis, size in sizes.items()}
  if np.prod(list(sizes.values())) != jax.device_count():
    raise ValueError(f"mesh {sizes} does not cover {jax.device_count()} devices: make one axis -1")
  return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Lays `x` out by the logical name of each dimension; without a mesh it is the identity.

  Raises:
    KeyError: a name that is not in AXIS_RULES.
    ValueError: as many names as dimensions are needed.
  """
  if len(names) != x.ndim:
    raise ValueError(f"{x.ndim} dimensions, {len(names)} names: {x.shape} {names}")
  spec = PartitionSpec(*(None if name is None else AXIS_RULES[name] for name in names))
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def one_device() -> bool:
  """Whether all arrays lie on one device: the mesh that is set has no other, or none is set."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def path_name(path: tuple[Any, ...]) -> str:
  """A tree path as `blocks/qkv/kernel`."""
  return "/".join(str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path)


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """The layout of one parameter; a dimension that the mesh axis does not divide stays whole.

  Raises:
    ValueError: no rule, or more than one, matches the path.
  """
  found = [spec for pattern, spec in PARAM_RULES if re.search(rf"(^|/)({pattern})$", path)]
  if len(found) != 1:
    raise ValueError(f"{len(found)} sharding rules match the parameter {path!r}: it needs exactly one in PARAM_RULES")
  spec = (None,) * (len(shape) - len(found[0])) + tuple(found[0])
  fits = [
    axis if axis is None or size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=True)
  ]
  return PartitionSpec(*fits)


def param_shardings(params: Any, mesh: Mesh) -> Any:
  """The sharding of every leaf of a tree of parameters or moments (arrays or ShapeDtypeStructs); scalars are
  replicated.
  """

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, param_spec(path_name(path), leaf.shape, mesh) if leaf.ndim else PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over their first dimension."""
  return NamedSharding(mesh, PartitionSpec(AXIS_RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch (numpy, first dimension rows) -> one global array a leaf."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
