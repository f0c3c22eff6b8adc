"""A checkpoint's weights for others: one safetensors file, or a folder that holds all that using the model needs.

The metadata say all that the weights need to be understood: the whole config, the step, how kernels lie, the licences.
The folder (see `exported`) stands wherever a command takes the workdir of a trained model.
"""

import copy
import hashlib
import json
import os
from typing import Any

import numpy as np
from etils import epath

from sora_jax.checkpoints import checkpoint, exported, safetensors
from sora_jax.errors import InputError, path_errors

SUFFIX = ".safetensors"
TAKEN_FROM = (("data", "prepared"), ("autoencoder", "checkpoint"), ("train", "init"))  # settings that name workdirs
CODE_LICENCE = "Apache-2.0"
LAYOUT = (
  "kernels are (in, out): y = x @ kernel. Joined ones (qkv, key_value, gate_up) are (in, n, out), for n results; "
  "stacked layers (blocks) have one axis more in front, the layer"
)


def export(
  workdir: str | os.PathLike,
  out: str | os.PathLike,
  step: int | None = None,
  item: str = "ema",
  licence: str | None = None,
  dtype: str | None = None,
  card: str | os.PathLike | None = None,
) -> dict:
  """Writes `item` ("ema" or "params") of the newest step, or of `step`.

  Names are those of the parameters with dots: blocks.qkv.kernel.

  Args:
    out: a file, NAME.safetensors, that holds the model itself; any other name is a folder that gets its autoencoder,
      tokenizer and config too.
    licence: of the weights, for the metadata.
    dtype: "bfloat16" halves matrices and kernels of float32; vectors stay. None leaves all as they are.
    card: a text about the model, kept in the folder as README.md.

  Returns:
    {out, step, item, tensors, bytes}, the last two of all files.

  Raises:
    CheckpointError: there is no such step, or it is damaged.
    InputError: the folder is in use for something else, the card can't be read, or is for a file.
  """
  path = epath.Path(out)
  if card is not None and path.suffix == SUFFIX:
    raise InputError(f"a card is of a folder, and --out {out} is a file")
  with path_errors(str(card)):
    text = None if card is None else epath.Path(card).read_bytes()
  arrays, meta, step = checkpoint.load_arrays(workdir, item, step)
  arrays = _in(arrays, dtype)
  about = metadata(meta, step, item, licence)
  if path.suffix == SUFFIX:
    count, size = _write(path, arrays, about)
  else:
    count, size = _write_folder(path, epath.Path(workdir), arrays, about, dtype, text)
  return {"out": os.fspath(path), "step": step, "item": item, "tensors": count, "bytes": size}


def _in(arrays: dict[str, np.ndarray], dtype: str | None) -> dict[str, np.ndarray]:
  """Matrices and kernels of float32 in another type, "bfloat16"; None leaves all as it is."""
  if dtype is None:
    return arrays
  large = {path for path, array in arrays.items() if array.dtype == np.float32 and array.ndim > 1}
  return {
    path: array.astype(safetensors.KINDS[safetensors.TYPES[dtype]]) if path in large else array
    for path, array in arrays.items()
  }


def metadata(meta: dict[str, Any], step: int, item: str, licence: str | None) -> dict[str, str]:
  """What a file says of its weights, from what their checkpoint says of itself."""
  about = {
    "format": "pt",  # what readers of other libraries ask for: rows first
    "config": json.dumps(_handed_on(meta.get("config", {})), sort_keys=True),
    "step": str(step),
    "item": item,
    "layout": LAYOUT,
    "licence": f"{CODE_LICENCE} (of the code)",
    "weights_licence": licence or "not stated",
  }
  return about | {name: str(meta.get(name, "")) for name in ("task", "config_hash", "sora_jax")}


def _handed_on(config: dict[str, Any]) -> dict[str, Any]:
  """The config without the paths that its run took things from: the folder has them itself, or the run is over."""
  found = copy.deepcopy(config)
  for section, name in TAKEN_FROM:
    if found.get(section, {}).get(name):
      found[section][name] = None
  return found


def _write_folder(
  out: epath.Path,
  workdir: epath.Path,
  arrays: dict[str, np.ndarray],
  about: dict[str, str],
  dtype: str | None,
  card: bytes | None,
) -> tuple[int, int]:
  """The tensors and the bytes of an exported folder. It is taken for one from its last file on."""
  begun = out / f"{exported.MODEL}.part"  # of an export that was stopped, too
  other = not (exported.is_exported(out) or begun.exists())
  if other and out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(f"--out {out} holds other files: name a new folder, or a file NAME{SUFFIX}")
  count = size = 0
  texts = {"config.json": (json.dumps(json.loads(about["config"]), indent=1, sort_keys=True) + "\n").encode()}
  if about["task"] == "dit":
    inner, meta, step = checkpoint.load_arrays(workdir / "autoencoder", "ema")
    texts["tokenizer.model"] = (workdir / "tokenizer.model").read_bytes()
  out.mkdir(parents=True, exist_ok=True)
  begun.write_bytes(b"")
  (out / exported.MODEL).unlink(missing_ok=True)
  if about["task"] == "dit":
    about_inner = metadata(meta, step, "ema", about["weights_licence"])
    count, size = _write(out / "autoencoder" / exported.MODEL, _in(inner, dtype), about_inner)
  if card is not None:
    texts[exported.CARD] = card
  (out / exported.CARD).unlink(missing_ok=True)  # that of another export
  for name, content in texts.items():
    (out / name).write_bytes(content)
  more = _write(begun, arrays, about)
  files = {exported.MODEL: begun, **{name: out / name for name in texts}}
  if about["task"] == "dit":
    files[f"autoencoder/{exported.MODEL}"] = out / "autoencoder" / exported.MODEL
  sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in sorted(files.items())]
  (out / exported.SUMS).write_text("".join(sums))
  begun.rename(out / exported.MODEL)
  return count + more[0], size + more[1] + sum(map(len, [*texts.values(), *sums]))


def _write(path: epath.Path, arrays: dict[str, np.ndarray], about: dict[str, str]) -> tuple[int, int]:
  tensors = {name.replace("/", "."): array for name, array in sorted(arrays.items())}
  return len(tensors), safetensors.write(path, tensors, about)
