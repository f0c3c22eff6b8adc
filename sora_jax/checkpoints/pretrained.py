"""Weights that come with the package: `pretrained:NAME` stands wherever clips are made of a trained model's workdir.

Each is an exported folder (see `exported`) with the sha256 of its files, which are checked before any is read.
"""

import difflib
import hashlib
import os
import pathlib

from sora_jax.checkpoints import exported
from sora_jax.checkpoints.manifest import CheckpointError
from sora_jax.errors import InputError

PREFIX = "pretrained:"
FOLDER = pathlib.Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
  """Those that come with this package."""
  return sorted(path.name for path in FOLDER.iterdir() if exported.is_exported(path)) if FOLDER.is_dir() else []


def is_pretrained(checkpoint: str | os.PathLike) -> bool:
  """Whether this names weights that come with the package."""
  return os.fspath(checkpoint).startswith(PREFIX)


def located(checkpoint: str | os.PathLike) -> str:
  """The folder of `pretrained:NAME`, its files checked; anything else as it is.

  Raises:
    InputError: no weights of that name come with the package.
    CheckpointError: a file is not as it was when the package was made.
  """
  name = os.fspath(checkpoint)
  if not is_pretrained(name):
    return name
  known, asked = names(), name.removeprefix(PREFIX)
  if asked not in known:
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.0)
    which = f"did you mean {PREFIX}{near[0]}?" if near else "none come with this package"
    raise InputError(f"{name}: no such weights: {which}")
  verify(FOLDER / asked)
  return os.fspath(FOLDER / asked)


def verify(folder: str | os.PathLike) -> None:
  """Compares an exported folder's files with their sums.

  Raises:
    CheckpointError: there are no sums, or a file differs or is missing.
  """
  root = pathlib.Path(folder)
  sums = root / exported.SUMS
  try:
    wanted = dict(line.split("  ", 1)[::-1] for line in sums.read_text().splitlines())
  except (OSError, ValueError) as error:
    raise CheckpointError(f"{sums} can't be read: {error}") from error
  there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {exported.SUMS}
  if not_listed := there - wanted.keys():
    raise CheckpointError(f"{sums} lacks {min(not_listed)}: install the package again")
  for name, digest in wanted.items():
    if name not in there or digest != sum_of(root / name):
      raise CheckpointError(f"{root / name} is not as {exported.SUMS} says: install the package again")


def sum_of(path: pathlib.Path) -> str:
  """The sha256 of a file, hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
