"""Train states on disk: Orbax, one folder a step, complete or not there at all.

A step holds `params`, `optimizer` and `ema` as plain trees of arrays (optimizer leaves by path, so that no class
name is on disk), `train` (step and RNG), `data` (the iterator's position) and `meta` (config and its hash,
versions).
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sora_jax.sharding import path_name

ARRAYS = ("params", "optimizer", "ema", "train")
JSONS = ("data", "meta")


class CheckpointError(ValueError):
  """A checkpoint is missing, foreign or damaged; the message names it."""


def flat(tree: Any) -> dict[str, Any]:
  """A tree as {path: leaf}."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def manager(folder: str | pathlib.Path, every: int = 1, keep: int | None = None) -> ocp.CheckpointManager:
  """The steps of one run, under `folder`/checkpoints; saving takes every `every`th step and keeps the last `keep`."""
  return _open(folder, ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=keep, create=True))


def save(steps: ocp.CheckpointManager, state: Any, data: dict, meta: dict, force: bool = False) -> bool:
  """Saves a train state (params, optimizer, ema, step, rng) in the background; False where it is not time."""
  step = int(state.step)
  if step in steps.all_steps():
    return False
  arrays = {
    "params": state.params,
    "optimizer": flat(state.optimizer),
    "ema": state.ema,
    "train": {"step": state.step, "rng": state.rng},
  }
  items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
  items |= {"data": ocp.args.JsonSave(data), "meta": ocp.args.JsonSave(meta)}
  return steps.save(step, args=ocp.args.Composite(**items), force=force)


def restore(steps: ocp.CheckpointManager, like: Any, step: int) -> tuple[Any, dict, dict]:
  """The state of `step` laid out as `like` (a state of arrays or ShapeDtypeStructs with shardings), data, meta.

  Raises:
    CheckpointError: what is on disk does not fit `like`; the first leaf that differs is named.
  """
  abstract = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
  wanted = {
    "params": abstract(like.params),
    "optimizer": flat(abstract(like.optimizer)),
    "ema": abstract(like.ema),
    "train": abstract({"step": like.step, "rng": like.rng}),
  }
  found = _restore(steps, step, wanted)
  leaves = [found["optimizer"][path] for path in flat(like.optimizer)]
  optimizer = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like.optimizer), leaves)
  state = like._replace(
    params=found["params"],
    optimizer=optimizer,
    ema=found["ema"],
    step=found["train"]["step"],
    rng=found["train"]["rng"],
  )
  return state, found["data"], found["meta"]


def load_params(folder: str | pathlib.Path, like: Any, step: int | None = None, item: str = "ema") -> tuple[Any, int]:
  """One tree of parameters, the EMA unless told otherwise, of the newest step or of `step`; and that step."""
  with reader(folder) as steps:
    step = latest(steps, folder) if step is None else step
    return _restore(steps, step, {item: like})[item], step


def load_meta(folder: str | pathlib.Path) -> dict:
  """What the newest checkpoint under `folder` says of itself: its config, task and versions."""
  with reader(folder) as steps:
    return _read(steps, latest(steps, folder), {"meta": ocp.args.JsonRestore()})["meta"]


def reader(folder: str | pathlib.Path) -> ocp.CheckpointManager:
  """A manager that writes nothing.

  Raises:
    CheckpointError: there is no folder of checkpoints.
  """
  if not (pathlib.Path(folder) / "checkpoints").is_dir():
    raise CheckpointError(f"no checkpoints under {folder}: give the --workdir of a `sora train` run")
  return _open(folder, ocp.CheckpointManagerOptions(read_only=True))


def _open(folder: str | pathlib.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
  handlers = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
  handlers |= {name: ocp.JsonCheckpointHandler() for name in JSONS}
  path = pathlib.Path(folder).absolute() / "checkpoints"
  return ocp.CheckpointManager(path.as_posix(), options=options, item_handlers=handlers)


def latest(steps: ocp.CheckpointManager, folder: str | pathlib.Path) -> int:
  step = steps.latest_step()
  if step is None:
    raise CheckpointError(f"no complete checkpoint under {folder}: the run was stopped before its first save")
  return step


def digest(folder: str | pathlib.Path, step: int | None = None) -> dict[str, Any]:
  """{step, params, optimizer, ema, rng, data}: the sha256 of each part of a checkpoint, names, shapes and bytes."""
  with reader(folder) as steps:
    step = latest(steps, folder) if step is None else step
    if step not in steps.all_steps():
      raise CheckpointError(f"no step {step} under {folder}: it holds {sorted(steps.all_steps())}")
    arrays = {name: ocp.args.StandardRestore() for name in ARRAYS}
    found = _read(steps, step, {"data": ocp.args.JsonRestore(), **arrays})
  parts = {name: tree_digest(found[name]) for name in ("params", "optimizer", "ema")}
  data = hashlib.sha256(json.dumps(found["data"], sort_keys=True).encode()).hexdigest()
  return {"step": step, **parts, "rng": tree_digest({"rng": found["train"]["rng"]}), "data": data}


def tree_digest(tree: Any) -> str:
  """sha256 over the sorted paths, types, shapes and bytes of a tree of arrays."""
  total = hashlib.sha256()
  for path, leaf in sorted(flat(tree).items()):
    array = np.asarray(leaf)
    total.update(f"{path} {array.dtype} {array.shape}".encode())
    total.update(np.ascontiguousarray(array).tobytes())
  return total.hexdigest()


def _restore(steps: ocp.CheckpointManager, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
  """Restores items strictly: names, shapes and types on disk must be those of `wanted`."""
  where = _where(steps, step)
  kind = lambda leaf: f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}"
  for name, tree in wanted.items():
    try:
      metadata = steps.item_metadata(step)[name]
    except Exception as error:  # as in `_read`
      raise _unreadable(steps, step, error) from error
    if metadata is None:
      raise CheckpointError(f"{where} has no {name!r}: it is not a checkpoint of sora_jax")
    on_disk = {path: kind(leaf) for path, leaf in flat(dict(metadata)).items()}
    needed = {path: kind(leaf) for path, leaf in flat(tree).items()}
    wrong = sorted(path for path in on_disk.keys() | needed.keys() if on_disk.get(path) != needed.get(path))
    if wrong:
      path = wrong[0]
      raise CheckpointError(
        f"{where} does not fit this config: {name}/{path} is {on_disk.get(path, 'absent')} there and "
        f"{needed.get(path, 'absent')} here ({len(wrong)} differ)"
      )
  args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
  args |= {name: ocp.args.JsonRestore() for name in JSONS}
  return _read(steps, step, args)


def _read(steps: ocp.CheckpointManager, step: int, args: dict[str, Any]) -> dict[str, Any]:
  """The named items of a step."""
  try:
    return dict(steps.restore(step, args=ocp.args.Composite(**args)).items())
  except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file; all mean the same to a user.
    raise _unreadable(steps, step, error) from error


def _where(steps: ocp.CheckpointManager, step: int) -> str:
  return f"checkpoint {steps.directory} step {step}"


def _unreadable(steps: ocp.CheckpointManager, step: int, error: Exception) -> CheckpointError:
  """One line: what TensorStore adds of its own settings is left out."""
  reason = str(error).partition("[tensorstore_spec")[0].strip().partition("\n")[0]
  return CheckpointError(f"{_where(steps, step)} is damaged or not of sora_jax: {reason}")
