"""Columns on disk: one `.npy` file each, written piece by piece and read where they lie, memory-mapped.

Nothing in them is pickled, and what a file holds is checked before it is used.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from sora_jax.errors import InputError
from sora_jax.runtime import storage


class BadColumn(InputError):
  """A file is missing, damaged or holds something else; the message names it."""


def write(path: str | os.PathLike, pieces: Iterable[Any], dtype: Any, shape: tuple[int, ...] = ()) -> int:
  """Writes one array (N, *shape), whole or not at all, from pieces of it.

  Returns:
    N.
  """
  dtype, count = np.dtype(dtype), 0
  describe = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
  with storage.written_local(path) as local, open(local, "wb") as file:
    # The head has room for any count: it is as long when the count is known.
    np.lib.format.write_array_header_1_0(file, {**describe, "shape": (0, *shape)})
    head = file.tell()
    for piece in pieces:
      values = np.ascontiguousarray(piece, dtype).reshape(-1, *shape)
      file.write(values.data if values.size else b"")
      count += len(values)
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {**describe, "shape": (count, *shape)})
    assert file.tell() == head
  return count


def read(path: str | os.PathLike, dtype: Any, shape: tuple[int, ...] = (), count: int | None = None) -> np.ndarray:
  """The array (count, *shape) of a file, memory-mapped; any count where none is given.

  Raises:
    BadColumn: it is not that.
  """
  try:
    local = storage.kept_local(path)
    if not os.path.getsize(local):
      raise ValueError("it is empty")
    found = np.lib.format.open_memmap(local, mode="r")  # which takes nothing that is pickled
  except storage.StorageError:
    raise
  except Exception as error:  # as many kinds as there are ways for a head to be damaged
    raise BadColumn(f"{os.fspath(path)}: can't be read: {str(error).partition(chr(10))[0]}") from error
  wanted = (len(found) if count is None and found.ndim else count, *shape)
  if found.dtype != np.dtype(dtype) or found.shape != wanted:
    raise BadColumn(f"{os.fspath(path)}: holds {found.dtype} {found.shape}, not {np.dtype(dtype)} {wanted}")
  return found


def save_together(path: str | os.PathLike, **arrays: Any) -> None:
  """Writes a few small arrays as one `.npz`, whole or not at all."""
  with storage.written_local(path) as local, pathlib.Path(local).open("wb") as file:
    np.savez(file, **arrays)


def load_together(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """What `save_together` wrote.

  Raises:
    BadColumn: it is not that.
  """
  try:
    with storage.local_file(epath.Path(path)) as local, np.load(local, allow_pickle=False) as found:
      return {name: found[name] for name in found.files}
  except storage.StorageError:
    raise
  except Exception as error:  # as many kinds as there are ways for an archive to be damaged
    raise BadColumn(f"{os.fspath(path)}: can't be read: {str(error).partition(chr(10))[0]}") from error
