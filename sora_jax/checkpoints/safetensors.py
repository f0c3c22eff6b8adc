"""Files of named arrays in the safetensors format, written and read without its library.

The format (https://github.com/huggingface/safetensors): 8 bytes, little-endian, the length of the header; the header,
JSON padded with spaces to a multiple of 8; the values, row by row, little-endian, one tensor after the other. A file is
from outside, so nothing in its header is believed before it was checked against the file's size.
"""

import json
import math
import os
import uuid
from typing import IO, Any

import ml_dtypes
import numpy as np
from etils import epath

from sora_jax.errors import InputError
from sora_jax.runtime import storage

TYPES = {
  "bool": "BOOL",
  "int8": "I8",
  "int32": "I32",
  "uint8": "U8",
  "uint32": "U32",
  "float16": "F16",
  "bfloat16": "BF16",
  "float32": "F32",
  "float64": "F64",
}
KINDS = {kind: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name, kind in TYPES.items()}
METADATA = "__metadata__"
MOST_HEADER = 100 * 2**20  # bytes; the library's limit
MOST_AXES = 32


def write(path: epath.Path, tensors: dict[str, np.ndarray], about: dict[str, str]) -> int:
  """Writes the file whole or not at all; its size in bytes.

  Raises:
    InputError: a type that the format lacks; the tensor is named.
  """
  head = header(tensors, about)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path if storage.is_remote(path) else path.parent / f"{path.name}.{uuid.uuid4().hex}.part"
  try:
    with part.open("wb") as file:
      _write(file, head, tensors)
    if part != path:
      part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise
  return len(head) + sum(array.nbytes for array in tensors.values())


def header(tensors: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
  """The file up to the first value."""
  entries: dict[str, dict] = {METADATA: about}
  end = 0
  for name, array in tensors.items():
    if array.dtype.name not in TYPES:
      raise InputError(f"{name} is of type {array.dtype.name}, which safetensors files can't hold")
    start, end = end, end + array.nbytes
    entries[name] = {"dtype": TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
  text = json.dumps(entries, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text


def _write(file: IO[bytes], head: bytes, tensors: dict[str, np.ndarray]) -> None:
  file.write(head)
  for array in tensors.values():
    file.write(np.ascontiguousarray(array).tobytes())


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays, which can't be written to, and the metadata of a file.

  Raises:
    InputError: there is no such file, or it breaks a rule of the format; says which.
  """
  here = epath.Path(path)
  try:
    with here.open("rb") as file:
      entries, about, size = _read_header(file, here.stat().length)
      values = np.frombuffer(file.read(), np.uint8)
  except OSError as error:
    raise InputError(f"{here} can't be read: {error.strerror or error}") from error
  except ValueError as error:
    raise InputError(f"{here} is no safetensors file that can be read: {error}") from error
  if len(values) != size:
    raise InputError(f"{here} is no safetensors file that can be read: it has changed meanwhile")
  return {
    name: values[start:end].view(kind).reshape(shape) for name, (kind, shape, start, end) in entries.items()
  }, about


def read_about(path: str | os.PathLike) -> dict[str, str]:
  """The metadata alone; raises as `read` does."""
  here = epath.Path(path)
  try:
    with here.open("rb") as file:
      return _read_header(file, here.stat().length)[1]
  except OSError as error:
    raise InputError(f"{here} can't be read: {error.strerror or error}") from error
  except ValueError as error:
    raise InputError(f"{here} is no safetensors file that can be read: {error}") from error


Entry = tuple[np.dtype, tuple[int, ...], int, int]  # type, shape, first byte and end among the values


def _read_header(file: IO[bytes], length: int) -> tuple[dict[str, Entry], dict[str, str], int]:
  """The tensors, the metadata and the bytes of all values of a file of `length` bytes, which is left at the values.

  Raises:
    ValueError: what is wrong.
  """
  head = int.from_bytes(file.read(8), "little")
  if length < 8 or head > min(length - 8, MOST_HEADER):
    raise ValueError(f"its header would have {head} bytes, the file has {length}")
  try:
    found = json.loads(file.read(head).decode(), object_pairs_hook=_once, parse_constant=_no_number)
  except RecursionError:
    raise ValueError("its header is nested too deeply") from None
  if not isinstance(found, dict):
    raise ValueError("its header is no JSON object")
  about = found.pop(METADATA, {})
  if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
    raise ValueError(f"its {METADATA} are not texts by name")
  entries = {name: _entry(name, value) for name, value in found.items()}
  end = 0
  for name, (_, _, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
    if start != end:
      raise ValueError(f"{name!r} begins at byte {start} of the values, the one before it ends at {end}")
    end = stop
  if end != length - 8 - head:
    raise ValueError(f"its tensors have {end} bytes, the file holds {length - 8 - head} for them")
  return entries, about, end


def _entry(name: str, value: Any) -> Entry:
  """One tensor of a header, checked."""
  if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
    raise ValueError(f"{name!r} has not dtype, shape and data_offsets alone")
  kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
  if not isinstance(kind, str) or kind not in KINDS:
    raise ValueError(f"{name!r} is of type {str(kind)[:40]!r}, which is none of {', '.join(KINDS)}")
  if not _are_counts(shape) or len(shape) > MOST_AXES or not _are_counts(offsets) or len(offsets) != 2:
    raise ValueError(f"{name!r} has a shape or offsets that are no whole numbers from 0 on")
  size, (start, end) = math.prod(shape) * KINDS[kind].itemsize, offsets
  if end - start != size:
    raise ValueError(f"{name!r} needs {size} bytes and has {end - start}")
  return KINDS[kind], tuple(shape), start, end


def _are_counts(values: Any) -> bool:
  return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError("a name stands twice in its header")
  return found


def _no_number(name: str) -> None:
  raise ValueError(f"its header holds {name}")
