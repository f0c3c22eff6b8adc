"""The device mesh and the two tables that lay arrays over it. No other file names a mesh axis.

Activations are laid out by logical names through `constrain`; parameters by the regular expression
that matches their path. The same program runs on one device and on many: only the mesh differs.
"""

import collections
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sora_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "ring", "ulysses", "tensor")
# What a config gives sizes for: `context` devices share the tokens of a row, `ulysses` of them by exchanging heads for
# tokens, the rest by passing keys round a ring.
CONFIG_AXES = ("data", "fsdp", "context", "ulysses", "tensor")

# Logical name of an activation's dimension -> mesh axes it is split over.
AXIS_RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "tokens": ("ring", "ulysses"),
  "heads": ("tensor",),
  "hidden": ("tensor",),
  "embed": (),
  "layers": ("fsdp",),  # of a stack of parameters, where each device takes whole ones
}

# Weights are sharded over the devices that share a row as well as over those that share the batch.
FSDP = ("fsdp", "ring", "ulysses")
FEW = 10**7  # parameters, so few that any device can hold all of them

# Parameter path -> the spec of its *last* dimensions; dimensions before them (stacked layers) are not split. Optimizer
# moments match too: their paths end with their parameter's.
PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r"query/kernel", PartitionSpec(FSDP, "tensor")),
  (r"(qkv|key_value|gate_up)/kernel", PartitionSpec(FSDP, None, "tensor")),
  (r"(attention_out|down)/kernel", PartitionSpec("tensor", FSDP)),
  (
    r"(patch_in|patch_out|skip|place_in|caption_in|time_in|size_in|modulation|latent_in|latent_out|linear_in|linear_out)/kernel",
    PartitionSpec(FSDP, None),
  ),
  (r"(mix_time|stage_in|stage_out)/kernel", PartitionSpec(FSDP, None)),
  (r"embedding|condition_embedding|loop_embedding", PartitionSpec(None, FSDP)),
  (r"bias|table|gain|taps|latent_mean|latent_std|ns_coeffs", PartitionSpec()),
)


def make_mesh(shape: dict[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over all devices; `shape` gives sizes by CONFIG_AXES and one may be -1 (the rest of the devices).

  Slices of TPU that only a data centre's network joins lie along `data`.

  Args:
    devices: others than those of this machine, to compile for.

  Raises:
    ValueError: an unknown axis, sizes that do not multiply to the number of devices, slices that do not divide `data`.
  """
  devices = all_devices() if devices is None else devices
  sizes = _sizes({"fsdp": -1} if shape is None else shape, len(devices))
  if sizes["context"] % sizes["ulysses"]:
    raise InputError(f"mesh.ulysses={sizes['ulysses']} must divide mesh.context={sizes['context']}, whose part it is")
  ring = sizes["context"] // sizes["ulysses"]
  counts = (sizes["data"], sizes["fsdp"], ring, sizes["ulysses"], sizes["tensor"])
  return Mesh(make_grid(counts, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def all_devices() -> list[jax.Device]:
  """JAX's devices, started if they are not yet.

  Raises:
    InputError: JAX_PLATFORMS names a platform that is not here, or a driver fails.
  """
  try:
    return jax.devices()
  except RuntimeError as error:
    reason = str(error).partition("\n")[0]
    raise InputError(f"JAX can't start its devices ({reason}): see `sora doctor`, or set JAX_PLATFORMS=cpu") from error


def make_grid(counts: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices as an array of `counts`, those that talk most next to each other; see `make_mesh`."""
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  # An axis may be smaller or larger than a side of a TPU's torus, which `jax.make_mesh` allows on few kinds of TPU.
  if slices == 1:
    return mesh_utils.create_device_mesh(counts, devices, allow_split_physical_axes=True)
  if counts[0] % slices:
    raise InputError(f"mesh.data={counts[0]}: the {slices} slices lie along it, so make it a multiple of {slices}")
  within, across = (counts[0] // slices, *counts[1:]), (slices, *[1] * (len(counts) - 1))
  return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _sizes(shape: dict[str, int], devices: int) -> dict[str, int]:
  """A size for each of CONFIG_AXES; `ulysses` is a part of `context`, so it does not count."""
  unknown = set(shape) - set(CONFIG_AXES)
  if unknown:
    raise InputError(f"mesh axis {sorted(unknown)[0]!r} is unknown: the axes are {', '.join(CONFIG_AXES)}")
  sizes = dict.fromkeys(CONFIG_AXES, 1) | shape
  counted = [axis for axis in CONFIG_AXES if axis != "ulysses"]
  known = int(np.prod([sizes[axis] for axis in counted if sizes[axis] > 0]))
  sizes |= {axis: devices // known for axis in counted if sizes[axis] < 0}
  if np.prod([sizes[axis] for axis in counted]) != devices:
    raise InputError(f"mesh {sizes} does not cover {devices} devices: make one axis -1")
  return sizes


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Lays `x` out by the logical name of each dimension; without a mesh it is the identity.

  Raises:
    KeyError: a name that is not in AXIS_RULES.
    ValueError: as many names as dimensions are needed.
  """
  if len(names) != x.ndim:
    raise ValueError(f"{x.ndim} dimensions, {len(names)} names: {x.shape} {names}")
  spec = PartitionSpec(*(split(name, size) for name, size in zip(names, x.shape, strict=True)))
  return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def split(name: str | None, size: int) -> tuple[str, ...] | None:
  """The mesh axes that a dimension of this logical name and size lies over; None where they don't divide it."""
  if name is None or not AXIS_RULES[name] or size % ways(name):
    return None
  return AXIS_RULES[name]


def ways(name: str) -> int:
  """How many shards a dimension of this logical name has; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in AXIS_RULES[name]]))


def mesh_is_set() -> bool:
  return not jax.sharding.get_abstract_mesh().empty


def one_device() -> bool:
  """Whether all arrays lie on one device: the mesh that is set has no other, or none is set."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def platform() -> str:
  """What is compiled for, "cpu", "gpu" or "tpu": the devices of the mesh that is set, or JAX's own where none is."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def path_name(path: tuple[Any, ...]) -> str:
  """A tree path as `blocks/qkv/kernel`."""
  return "/".join(str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path)


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
  """The layout of one parameter; each dimension lies over as many of its mesh axes, from the first, as divide it.

  Raises:
    ValueError: no rule, or more than one, matches the path.
  """
  found = [spec for pattern, spec in PARAM_RULES if re.search(rf"(^|/)({pattern})$", path)]
  if len(found) != 1:
    raise ValueError(f"{len(found)} sharding rules match the parameter {path!r}: it needs exactly one in PARAM_RULES")
  spec = (None,) * (len(shape) - len(found[0])) + tuple(found[0])
  several = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
  return PartitionSpec(*(_dividing(axes, size, mesh) for axes, size in zip(several, shape, strict=True)))


def _dividing(axes: tuple[str, ...], size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...] | None:
  """The longest beginning of `axes` that divides `size`."""
  while axes and size % int(np.prod([mesh.shape[axis] for axis in axes])):
    axes = axes[:-1]
  return axes or None


def unsplit(params: Any, mesh: Mesh | AbstractMesh) -> str | None:
  """Advice where the mesh does not divide the parameters: devices hold over twice their share of many of them.

  Args:
    params: arrays or ShapeDtypeStructs.
  """
  parts = int(np.prod([mesh.shape[axis] for axis in (*FSDP, "tensor")]))
  leaves, placed = jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings(params, mesh))
  held = [int(np.prod(where.shard_shape(leaf.shape))) for (_, leaf), where in zip(leaves, placed, strict=True)]
  wanted = sum(leaf.size for _, leaf in leaves) / parts
  if sum(held) <= max(2 * wanted, FEW):
    return None
  path, largest = leaves[held.index(max(held))]
  return (
    f"each device holds {sum(held) / 1e6:.0f} million parameters, and {wanted / 1e6:.0f} where the mesh divides them: "
    f"{path_name(path)} is {largest.shape}; choose mesh.fsdp, mesh.context and mesh.tensor so that they do, and "
    "give the rest to mesh.data"
  )


def param_shardings(params: Any, mesh: Mesh | AbstractMesh) -> Any:
  """The sharding of every leaf of a tree of parameters or moments (arrays or ShapeDtypeStructs); scalars are
  replicated.
  """

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, param_spec(path_name(path), leaf.shape, mesh) if leaf.ndim else PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, params)


def laid_out(params: Any) -> Any:
  """Parameters, or as many updates by the same names, laid out by PARAM_RULES; the same tree without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()

  def place(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, param_spec(path_name(path), leaf.shape, mesh))

  return params if mesh.empty else jax.tree_util.tree_map_with_path(place, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over their first dimension."""
  return NamedSharding(mesh, PartitionSpec(AXIS_RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of a batch (numpy, first dimension rows) -> one global array a leaf."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def batch_share(mesh: Mesh) -> tuple[int, int]:
  """(shard of the batch that this process reads, number of shards); processes that share rows read the same shard.

  The rows of a process need not be consecutive: on a TPU its devices are a square of the torus.

  Raises:
    ValueError: processes share some of their rows only.
  """
  parts, begun = mesh.shape["data"] * mesh.shape["fsdp"], collections.defaultdict(set)
  for device, index in batch_sharding(mesh).devices_indices_map((parts,)).items():
    begun[device.process_index].add(index[0].start or 0)  # type: ignore[attr-defined]  # JAX hides the class
  shares = sorted({tuple(sorted(rows)) for rows in begun.values()})
  if sum(map(len, shares)) != parts or len({len(rows) for rows in shares}) > 1:
    raise InputError(f"processes hold the rows {shares} of {parts}: make the mesh's axes whole processes")
  return shares.index(tuple(sorted(begun[jax.process_index()]))), len(shares)
