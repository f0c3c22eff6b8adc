"""A checkpoint's parameters as one safetensors file, for use without JAX.

The format (https://github.com/huggingface/safetensors): 8 bytes, little-endian, the length of the header; the header,
JSON padded with spaces to a multiple of 8; the values, row by row, little-endian, one tensor after the other.
"""

import json
import os
from typing import IO

import numpy as np
from etils import epath

from sora_jax.checkpoints import checkpoint, manifest
from sora_jax.errors import InputError

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


def export(workdir: str | os.PathLike, out: str | os.PathLike, step: int | None = None, item: str = "ema") -> dict:
  """Writes `item` ("ema" or "params") of the newest step, or of `step`, whole or not at all.

  Names are those of the parameters with dots: blocks.qkv.kernel. The file's metadata tell the run's config hash, the
  step, the item and the version that trained it.

  Returns:
    {out, step, item, tensors, bytes}.

  Raises:
    CheckpointError: there is no such step, or it is damaged.
  """
  arrays, meta, step = checkpoint.load_arrays(workdir, item, step)
  tensors = {path.replace("/", "."): array for path, array in sorted(arrays.items())}
  about = {
    "format": "pt",  # what readers of other libraries ask for: rows first
    "config_hash": str(meta.get("config_hash", "")),
    "step": str(step),
    "item": item,
    "sora_jax": str(meta.get("sora_jax", "")),
  }
  head = header(tensors, about)
  path = epath.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path if manifest.is_remote(path) else path.parent / f"{path.name}.part"
  try:
    with part.open("wb") as file:
      _write(file, head, tensors)
    if part != path:
      part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise
  size = len(head) + sum(array.nbytes for array in tensors.values())
  return {"out": os.fspath(path), "step": step, "item": item, "tensors": len(tensors), "bytes": size}


def header(tensors: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
  """The file up to the first value.

  Raises:
    ValueError: a type that the format lacks; the tensor is named.
  """
  entries: dict[str, dict] = {"__metadata__": about}
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
