"""An exported folder: one model and all that using it needs, without an optimizer, to be handed on.

  model.safetensors               the weights; its metadata hold config, task, step, licences and versions
  config.json                     the config again, for people
  tokenizer.model                 of a transformer
  autoencoder/model.safetensors   of a transformer
  README.md                       what its makers say of it, if anything
  SHA256SUMS                      of all of them

Commands take such a folder wherever they take the workdir of a trained model.
"""

import json
from typing import Any

import numpy as np
from etils import epath

from sora_jax.checkpoints import safetensors
from sora_jax.checkpoints.manifest import CheckpointError, Folder
from sora_jax.errors import InputError

MODEL = "model.safetensors"
CARD = "README.md"
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it


def is_exported(folder: Folder) -> bool:
  """Whether the folder is an exported one, not a workdir."""
  return (epath.Path(folder) / MODEL).exists()


def load_meta(folder: Folder) -> dict[str, Any]:
  """What an exported folder says of its model: config, its hash, task and versions.

  Raises:
    CheckpointError: the file is damaged, or no export of this format.
  """
  return _meta(folder, _about(folder))


def load_arrays(folder: Folder, step: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
  """The weights as {path: array}, what `load_meta` says, and the step they are of.

  Raises:
    CheckpointError: the file is damaged, or is not of `step`.
  """
  path = epath.Path(folder) / MODEL
  try:
    tensors, about = safetensors.read(path)
  except InputError as error:
    raise CheckpointError(str(error)) from error
  meta, found = _meta(folder, about), about.get("step", "")
  if not (found.isascii() and found.isdecimal() and len(found) < 20):
    raise CheckpointError(f"{path} is no export of sora_jax: its metadata lack the step")
  if step not in (None, int(found)):
    raise CheckpointError(f"{path} holds step {found} alone, not step {step}")
  return {name.replace(".", "/"): array for name, array in tensors.items()}, meta, int(found)


def _about(folder: Folder) -> dict[str, str]:
  try:
    return safetensors.read_about(epath.Path(folder) / MODEL)
  except InputError as error:
    raise CheckpointError(str(error)) from error


def _meta(folder: Folder, about: dict[str, str]) -> dict[str, Any]:
  path = epath.Path(folder) / MODEL
  try:
    config = json.loads(about["config"])
    meta = {name: about[name] for name in ("task", "config_hash", "sora_jax")}
  except (KeyError, ValueError, RecursionError) as error:
    raise CheckpointError(f"{path} is no export of sora_jax: its metadata lack config, task or version") from error
  if not isinstance(config, dict):
    raise CheckpointError(f"{path} is no export of sora_jax: its config is no JSON object")
  return {"config": config, **meta}
