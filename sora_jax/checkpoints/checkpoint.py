"""Train states on disk: Orbax, one folder a step, complete or not there at all, with a manifest of its files beside it.

A step holds `params`, `optimizer` and `ema` as plain trees of arrays (optimizer leaves by path, so that no class
name is on disk), `train` (step and RNG), `data` (the iterator's position) and `meta` (config and its hash,
versions, and the number of this format). It is restored on any number of devices.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from sora_jax import sharding
from sora_jax.checkpoints import exported, manifest
from sora_jax.checkpoints.manager import ARRAYS, CheckpointManager, DamagedCheckpoint, Schedule, first_line
from sora_jax.checkpoints.manifest import CheckpointError, Folder
from sora_jax.errors import InputError
from sora_jax.runtime.hosts import ALONE, Hosts
from sora_jax.sharding import path_name

FORMAT = 2  # of a step; raised when an older version could not read it
NAMED = 3  # leaves in an error
SHAPING = {  # the settings that decide which parameters a model has, and their shapes
  "model": ("width", "depth", "patch", "text_width", "text_depth", "vocabulary"),
  "autoencoder": ("channels", "stages"),
}

Found = TypeVar("Found")


def flat(tree: Any) -> dict[str, Any]:
  """A tree as {path: leaf}."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def manager(
  folder: Folder, every: int = 1, keep: int | None = None, keep_every: int = 0, hosts: Hosts = ALONE
) -> CheckpointManager:
  """The steps of one run, under `folder`/checkpoints, which this process, or group of them, saves from now on.

  Args:
    every: saving takes every `every`th step.
    keep: how many of the last steps stay; None is all. Pinned steps stay too.
    keep_every: steps that this number divides stay too; 0 is none.
    hosts: which save together; by default this one alone.
  """
  if keep is not None and keep < 1:
    raise InputError(f"keep is {keep}, which would delete every checkpoint: give 1 or more")
  steps = CheckpointManager(manifest.root(folder), Schedule(every, keep, keep_every), hosts)
  steps.take()
  return steps


def reader(folder: Folder) -> CheckpointManager:
  """The steps of one run, to read alone.

  Raises:
    CheckpointError: there is no folder of checkpoints.
  """
  return CheckpointManager(manifest.existing_root(folder))


def save(steps: CheckpointManager, state: Any, data: dict, meta: dict, force: bool = False) -> bool:
  """Saves a train state (params, optimizer, ema, step, rng) in the background; False where it is not time.

  Raises:
    CheckpointError: as `CheckpointManager.save` does.
  """
  arrays = {
    "params": state.params,
    "optimizer": flat(state.optimizer),
    "ema": state.ema,
    "train": {"step": state.step, "rng": state.rng},
  }
  items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
  items |= {"data": ocp.args.JsonSave(data), "meta": ocp.args.JsonSave({**meta, "format": FORMAT})}
  return steps.save(int(state.step), ocp.args.Composite(**items), force)


def restore(steps: CheckpointManager, like: Any, step: int, config: dict | None = None) -> tuple[Any, dict, dict]:
  """The state of `step` laid out as `like` (a state of arrays or ShapeDtypeStructs with shardings), data, meta.

  Args:
    config: what `like` was made by, or a part of it, to explain with.

  Raises:
    DamagedCheckpoint: a file of the step is not as it was written, and is named.
    CheckpointError: what is on disk does not fit `like`; names leaves that differ, and the settings that explain it.
  """
  steps.check(step)
  return _restore_state(steps, like, step, config)


def restore_newest(steps: CheckpointManager, like: Any, config: dict | None = None) -> tuple[Any, dict, dict]:
  """`restore` of the newest step that is whole, the same on all hosts.

  Steps that are damaged are named on stderr, left as they are and passed over.

  Raises:
    CheckpointError: no step can be used, or the newest does not fit `like`.
  """
  return _newest(steps, (), lambda step: _restore_state(steps, like, step, config))


def load_params(
  folder: Folder, like: Any, step: int | None = None, item: str = "ema", config: dict | None = None
) -> tuple[Any, int]:
  """One tree of parameters, the EMA unless told otherwise, of the newest step or of `step`; and that step.

  Leaves of `like` without a sharding come as they were saved where the devices are the same, or else are replicated.
  For `config` see `restore`.

  Raises:
    CheckpointError: there is no such step, it is damaged, or it does not fit `like`.
  """
  if exported.is_exported(folder):
    arrays, meta, found = exported.load_arrays(folder, step)
    types = {path: leaf.dtype for path, leaf in flat(like).items()}  # weights may be exported in a smaller one
    arrays = {path: array.astype(types.get(path, array.dtype)) for path, array in arrays.items()}
    _check_fit(arrays, like, meta, config, os.fspath(folder))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _placed(arrays[path_name(path)], leaf), like), found
  with reader(folder) as steps:
    read = lambda step: (_restore(steps, step, {item: like}, config)[0][item], step)
    return _step_or_newest(steps, step, (item, "meta"), read)


def load_arrays(folder: Folder, item: str, step: int | None = None) -> tuple[dict[str, np.ndarray], dict, int]:
  """One item as {path: array in host memory}, whatever it was saved on; the step's meta; and that step.

  Raises:
    CheckpointError: there is no such step, or it is damaged.
  """
  if exported.is_exported(folder):
    return exported.load_arrays(folder, step)
  with reader(folder) as steps:
    read = lambda step: (flat(_read_host(steps, step, (item,))[item]), _read_meta(steps, step), step)
    return _step_or_newest(steps, step, (item, "meta"), read)


def load_shapes(folder: Folder, item: str = "ema") -> dict[str, tuple[int, ...]]:
  """{path: shape} of an item of the newest step, without its values; raises as `load_meta` does."""
  if exported.is_exported(folder):
    return {path: array.shape for path, array in exported.load_arrays(folder)[0].items()}
  with reader(folder) as steps:
    shapes = lambda step: {path: tuple(leaf.shape) for path, leaf in flat(_metadata(steps, step, item)).items()}
    return _newest(steps, (item, "meta"), shapes)


def load_fitting(
  folder: Folder, like: dict[str, Any], item: str = "ema"
) -> tuple[dict[str, jax.Array], dict[str, tuple[int, ...]], int]:
  """What of the newest step's `item` has the name and the shape of an array of `like` ({path: array}), laid out as it.

  Returns:
    {path: array} of those; {path: shape} of all that the item has; the step.

  Raises:
    CheckpointError: there is no step, or it is damaged.
  """

  def read(step: int) -> tuple[dict[str, jax.Array], dict[str, tuple[int, ...]], int]:
    tree = _metadata(steps, step, item)
    shapes = {path: tuple(leaf.shape) for path, leaf in flat(tree).items()}
    fits = {path for path, shape in shapes.items() if path in like and like[path].shape == shape}

    def wanted(path: tuple, leaf: Any) -> Any:
      name = path_name(path)
      return _abstract(like[name]) if name in fits else _hollow(leaf)

    tree = jax.tree_util.tree_map_with_path(wanted, tree)
    found = flat(_read(steps, step, {item: ocp.args.StandardRestore(tree)})[item])
    return {path: found[path] for path in fits}, shapes, step

  if exported.is_exported(folder):
    arrays, _, step = exported.load_arrays(folder)
    fits = {path for path, array in arrays.items() if path in like and like[path].shape == array.shape}
    found = {path: _placed(arrays[path].astype(like[path].dtype), like[path]) for path in fits}
    return found, {path: array.shape for path, array in arrays.items()}, step
  with reader(folder) as steps:
    return _newest(steps, (item, "meta"), read)


def load_meta(folder: Folder) -> dict:
  """What the newest checkpoint under `folder` says of itself: its config, task and versions."""
  if exported.is_exported(folder):
    return exported.load_meta(folder)
  with reader(folder) as steps:
    return _newest(steps, ("meta",), lambda step: _read_meta(steps, step))


def digest(folder: Folder, step: int | None = None) -> dict[str, Any]:
  """{step, params, optimizer, ema, rng, data}: the sha256 of each part of a checkpoint, names, shapes and bytes."""
  with reader(folder) as steps:
    return _step_or_newest(steps, step, (), lambda step: _digest(steps, step))


def _digest(steps: CheckpointManager, step: int) -> dict[str, Any]:
  _read_meta(steps, step)
  found = _read_host(steps, step, ARRAYS)
  position = _read(steps, step, {"data": ocp.args.JsonRestore()})["data"]
  parts = {name: tree_digest(found[name]) for name in ("params", "optimizer", "ema")}
  data = hashlib.sha256(json.dumps(position, sort_keys=True).encode()).hexdigest()
  return {"step": step, **parts, "rng": tree_digest({"rng": found["train"]["rng"]}), "data": data}


def tree_digest(tree: Any) -> str:
  """sha256 over the sorted paths, types, shapes and bytes of a tree of arrays."""
  total = hashlib.sha256()
  for path, leaf in sorted(flat(tree).items()):
    array = np.asarray(leaf)
    total.update(f"{path} {array.dtype} {array.shape}".encode())
    total.update(np.ascontiguousarray(array).tobytes())
  return total.hexdigest()


# Which step.


def _step_or_newest(
  steps: CheckpointManager, step: int | None, parts: Sequence[str], read: Callable[[int], Found]
) -> Found:
  """What `read` makes of `step`, or of the newest step whose `parts` are whole."""
  if step is None:
    return _newest(steps, parts, read)
  steps.check(step, parts)
  return read(step)


def _newest(steps: CheckpointManager, parts: Sequence[str], read: Callable[[int], Found]) -> Found:
  """What `read` makes of the newest step whose `parts` are whole, while a run may save there and delete old ones."""
  while True:
    step = steps.newest(parts)
    try:
      return read(step)
    except DamagedCheckpoint as error:
      if steps.look_again():
        continue
      # With a manifest the files are as they were written, so older steps would fail as well. Without one the run was
      # killed between commit and manifest. Hosts could disagree on whether the step can be read, so they don't try.
      if jax.process_count() > 1 or manifest.faults(steps.directory, step, parts) is not None:
        raise
      steps.pass_over(step, str(error))


# What is in it.


def _restore_state(steps: CheckpointManager, like: Any, step: int, config: dict | None) -> tuple[Any, dict, dict]:
  abstract = lambda tree: jax.tree.map(_abstract, tree)
  wanted = {
    "params": abstract(like.params),
    "optimizer": flat(abstract(like.optimizer)),
    "ema": abstract(like.ema),
    "train": abstract({"step": like.step, "rng": like.rng}),
  }
  found, meta = _restore(steps, step, wanted, config)
  data = _read(steps, step, {"data": ocp.args.JsonRestore()})["data"]
  leaves = [found["optimizer"][path] for path in flat(like.optimizer)]
  optimizer = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like.optimizer), leaves)
  state = like._replace(
    params=found["params"],
    optimizer=optimizer,
    ema=found["ema"],
    step=found["train"]["step"],
    rng=found["train"]["rng"],
  )
  return state, data, meta


def _restore(
  steps: CheckpointManager, step: int, wanted: dict[str, Any], config: dict | None = None
) -> tuple[dict[str, Any], dict]:
  """Restores items strictly, with meta: names, shapes and types on disk must be those of `wanted`."""
  meta = _read_meta(steps, step)
  for name, tree in wanted.items():
    _check_fit(_metadata(steps, step, name), tree, meta, config, steps.where(step), f"{name}/")
  whole = sharding.replicated(sharding.make_mesh())
  args = {name: ocp.args.StandardRestore(tree, fallback_sharding=whole) for name, tree in wanted.items()}
  return _read(steps, step, args), meta


def _check_fit(there: Any, here: Any, meta: dict, config: dict | None, where: str, prefix: str = "") -> None:
  """Raises:
  CheckpointError: a tree that is kept has not the names, shapes and types of the one that is asked for.
  """
  kinds = lambda tree: {path: f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}" for path, leaf in flat(tree).items()}
  if leaves := _differing(kinds(there), kinds(here), prefix):
    raise CheckpointError(f"{where} does not fit this config: {leaves}; {_explained(meta, config)}")


def _placed(array: np.ndarray, leaf: Any) -> Any:
  """An array where `leaf` lies: on the host where that is of numpy, on all devices where nothing is said."""
  if isinstance(leaf, np.ndarray):
    return array
  place = getattr(leaf, "sharding", None) or sharding.replicated(sharding.make_mesh())
  return jax.make_array_from_callback(array.shape, place, lambda index: np.ascontiguousarray(array[index]))


def _differing(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> str:
  """The first leaves that differ of two flat trees, in words; "" where they are equal."""
  wrong = sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path))
  said = [f"{prefix}{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here" for path in wrong]
  return ", ".join(said[:NAMED]) + (f" ({len(said)} differ)" if said else "")


def _explained(meta: dict, config: dict | None) -> str:
  """Which settings of the step's config are not those of `config`; where all are, who wrote the step."""
  there, here = meta.get("config", {}), config or {}
  said = [
    f"config.{part}.{key} is {json.dumps(there[part][key])} there and {json.dumps(here[part][key])} here"
    for part, keys in SHAPING.items()
    for key in keys
    if key in there.get(part, {}) and key in here.get(part, {}) and there[part][key] != here[part][key]
  ]
  return ", ".join(said) or f"no setting explains it: sora_jax {meta.get('sora_jax', 'of another version')} wrote it"


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _hollow(leaf: Any) -> np.ndarray:
  """An array of the shape and type of `leaf` that takes no memory."""
  return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _read_host(steps: CheckpointManager, step: int, names: Sequence[str]) -> dict[str, Any]:
  """Whole items as numpy arrays."""
  trees = {name: jax.tree.map(_hollow, _metadata(steps, step, name)) for name in names}
  return _read(steps, step, {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()})


def _read_meta(steps: CheckpointManager, step: int) -> dict:
  """What `save` was given.

  Raises:
    CheckpointError: the step is of another format than this version reads.
  """
  meta = _read(steps, step, {"meta": ocp.args.JsonRestore()})["meta"]
  number = meta.pop("format", 1)  # the first steps had no number
  if number != FORMAT:
    raise CheckpointError(
      f"{steps.where(step)} is of format {number}, written by sora_jax {meta.get('sora_jax', 'of another version')}; "
      f"this version reads format {FORMAT}: use that version"
    )
  return meta


def _metadata(steps: CheckpointManager, step: int, name: str) -> dict[str, Any]:
  """The tree of an item, of leaves with shape and dtype."""
  try:
    found = ocp.StandardCheckpointHandler().metadata(steps.directory / str(step) / name)
  except Exception as error:  # as in `_read`
    raise _unreadable(steps, step, error) from error
  return dict(found)


def _read(steps: CheckpointManager, step: int, args: dict[str, Any]) -> dict[str, Any]:
  """The named items of a step."""
  try:
    return dict(steps.restore(step, ocp.args.Composite(**args)).items())
  except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file; all mean the same to a user.
    raise _unreadable(steps, step, error) from error


def _unreadable(steps: CheckpointManager, step: int, error: Exception) -> DamagedCheckpoint:
  return DamagedCheckpoint(f"{steps.where(step)} is damaged or not of sora_jax: {first_line(error)}")
