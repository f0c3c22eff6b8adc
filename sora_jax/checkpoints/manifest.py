"""Checksums of a run's checkpoints, kept beside them, and what has become of the files since they were taken.

Under `<workdir>/checkpoints`:

  8/                a committed step, written by Orbax
  8.manifest.json   bytes and sha256 of each file of step 8, written after the commit
  8.pinned          step 8 is kept for ever
  9.orbax-checkpoint-tmp-1f3a9c20/  a step 9 that is not committed yet, or never was, and the id of its writer
  8.damaged/        a step 8 that was found damaged, out of the way of the step 8 that was saved after it
  writer            the id of the process, or group of hosts, that began last to save here

The folder may be a gs:// address. Nothing here asks for an accelerator, so a run can be looked at while it trains.
"""

import concurrent.futures
import datetime
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import orbax.checkpoint as ocp
from etils import epath

from sora_jax.errors import InputError
from sora_jax.runtime import storage

Folder = str | os.PathLike

FORMAT = 1  # of the manifest
WRITER = "writer"
LOOKS = 10  # at a folder in which steps come and go
THREADS = 8  # sha256 runs outside the interpreter's lock; one thread makes 0.5 to 2 GB/s


class CheckpointError(InputError):
  """A checkpoint is missing, foreign or damaged; the message names it."""


def root(workdir: Folder) -> epath.Path:
  """The folder of a run's steps."""
  path = epath.Path(workdir)
  return (path if storage.is_remote(path) else path.absolute()) / "checkpoints"


def existing_root(workdir: Folder) -> epath.Path:
  """The folder of a run's steps.

  Raises:
    CheckpointError: there is none.
  """
  folder = root(workdir)
  if not folder.is_dir():
    raise CheckpointError(f"no checkpoints under {workdir}: give the --workdir of a `sora train` run")
  return folder


def committed(folder: epath.Path) -> list[int]:
  """The steps whose save was completed, in order of their number; of a folder in which a run saves and deletes too.

  While a folder is listed a step may go before it is looked at, and the one that comes be missed: two looks must agree.

  Raises:
    FileNotFoundError, NotADirectoryError: it can't be listed.
  """
  known: list[int] | None = None
  for look in range(1, LOOKS + 1):
    try:
      paths = [path for path in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name)]
      found = sorted(int(path.name) for path in paths if ocp.path.step.is_path_finalized(path))
    except (FileNotFoundError, NotADirectoryError):
      if look == LOOKS or not folder.is_dir():
        raise
      continue
    if found == known:
      break
    known = found
  return found


def check_step(folder: epath.Path, step: int, steps: Collection[int]) -> None:
  """Raises:
  CheckpointError: `step` is not one of `steps`.
  """
  if step not in steps:
    raise CheckpointError(f"no step {step} under {folder}: it holds {sorted(steps)}")


def entries(folder: epath.Path, step: int, part: int = 0, parts: int = 1) -> dict[str, dict]:
  """What a manifest says of every `parts`th file of a step, from the `part`th on."""
  return _entries(folder / str(step), sorted(_files(folder / str(step)))[part::parts])


def write(folder: epath.Path, step: int, known: Mapping[str, dict] | None = None) -> None:
  """Writes the manifest of a committed step, whole or not at all; those of steps that are gone go too.

  Args:
    known: its entries of some files, made by others.
  """
  known, names = known or {}, sorted(_files(folder / str(step)))
  found = _entries(folder / str(step), [name for name in names if name not in known])
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  files = {name: found[name] if name in found else known[name] for name in names}
  manifest = {"format": FORMAT, "saved_at": now, "files": files}
  storage.write_text(_manifest_path(folder, step), json.dumps(manifest, indent=1) + "\n")
  for path in list(folder.iterdir()):
    named = re.fullmatch(r"(\d+)\.manifest\.json", path.name)
    if named and not (folder / named[1]).exists():
      path.unlink(missing_ok=True)


def forget(folder: epath.Path, step: int) -> None:
  """Removes the manifest of a step that is not there, or not any more."""
  _manifest_path(folder, step).unlink(missing_ok=True)


def faults(folder: epath.Path, step: int, parts: Collection[str] = (), contents: bool = True) -> list[str] | None:
  """What is wrong with the files of a step, a line each; None where there is no manifest to tell by.

  Args:
    parts: look at these items alone, say ("ema", "meta"), and at the files beside the items; () is all.
    contents: read every byte; without it missing files and wrong sizes are found.
  """
  try:
    files = _manifest(folder, step)["files"]
  except FileNotFoundError:
    return None
  except ValueError as error:
    return [f"{_manifest_path(folder, step).name} {error}; without that file the step is used unchecked"]
  names = [name for name in files if "/" not in name or not parts or name.split("/")[0] in parts]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    found = list(pool.map(lambda name: _fault(folder / str(step) / name, files[name], contents), names))
  return [f"{step}/{name} {fault}" for name, fault in zip(names, found, strict=True) if fault]


def set_aside(folder: epath.Path, step: int) -> str:
  """Renames a step and its manifest, so that the step can be saved again; its new name."""
  for number in itertools.count(1):
    name = f"{step}.damaged" + (f".{number}" if number > 1 else "")
    if not (folder / name).exists():
      break
  (folder / str(step)).rename(folder / name)
  if _manifest_path(folder, step).exists():
    _manifest_path(folder, step).rename(folder / f"{name}.manifest.json")
  return name


def writer(folder: epath.Path) -> str:
  """The id of who began last to save here; "" where nobody has."""
  try:
    return (folder / WRITER).read_text()
  except FileNotFoundError:
    return ""


def set_writer(folder: epath.Path, name: str) -> None:
  storage.write_text(folder / WRITER, name)


def is_pinned(folder: epath.Path, step: int) -> bool:
  return _pin_path(folder, step).exists()


def pin(workdir: Folder, step: int, pinned: bool) -> dict:
  """Keeps a step for ever, or no longer.

  Raises:
    CheckpointError: there is no such step.
  """
  folder = existing_root(workdir)
  check_step(folder, step, committed(folder))
  if not pinned:
    unpin(folder, step)
    return {"step": step, "pinned": False}
  _pin_path(folder, step).write_text("")
  try:
    check_step(folder, step, committed(folder))  # a run may have deleted it just now
  except CheckpointError:
    unpin(folder, step)
    raise
  return {"step": step, "pinned": True}


def unpin(folder: epath.Path, step: int) -> bool:
  """Whether it was pinned."""
  pinned = is_pinned(folder, step)
  _pin_path(folder, step).unlink(missing_ok=True)
  return pinned


def listing(workdir: Folder) -> dict:
  """{steps, checkpoints, not_used}: of each step its bytes, when it was saved, whether it is pinned and its state.

  The state is "complete" or "damaged" by the names and sizes of its files alone, "unknown" without a manifest.
  `not_used` are folders that are no committed step: unfinished saves and what was set aside.
  """
  folder = existing_root(workdir)
  steps = committed(folder)
  found = []
  for step in steps:
    wrong = faults(folder, step, contents=False)
    state = "unknown" if wrong is None else "damaged" if wrong else "complete"
    try:
      saved_at = _manifest(folder, step)["saved_at"] if state == "complete" else None
      size = sum(storage.size(folder / str(step) / name) for name in _files(folder / str(step)))
    except FileNotFoundError:  # the run deletes it just now
      continue
    row = {"step": step, "bytes": size, "saved_at": saved_at, "pinned": is_pinned(folder, step), "state": state}
    found.append(row)
  others = sorted(path.name for path in folder.iterdir() if path.is_dir())
  return {
    "steps": [row["step"] for row in found],
    "checkpoints": found,
    "not_used": [name for name in others if name not in map(str, steps)],
  }


def verify(workdir: Folder, step: int | None = None) -> dict:
  """{checked, unchecked, faults}: reads every byte of every step, or of one, and compares it with its manifest.

  Raises:
    CheckpointError: there is no such step.
  """
  folder = existing_root(workdir)
  steps = committed(folder)
  if step is not None:
    check_step(folder, step, steps)
    steps = [step]
  found = {each: faults(folder, each) for each in steps}
  found = {each: wrong for each, wrong in found.items() if (folder / str(each)).exists()}  # a run may have deleted it
  return {
    "checked": [each for each, wrong in found.items() if wrong is not None],
    "unchecked": [each for each, wrong in found.items() if wrong is None],
    "faults": [line for wrong in found.values() for line in wrong or ()],
  }


def _manifest_path(folder: epath.Path, step: int) -> epath.Path:
  return folder / f"{step}.manifest.json"


def _pin_path(folder: epath.Path, step: int) -> epath.Path:
  return folder / f"{step}.pinned"


def _manifest(folder: epath.Path, step: int) -> dict:
  """Raises:
  FileNotFoundError: the step has no manifest.
  ValueError: it holds something else.
  """
  try:
    manifest = json.loads(_manifest_path(folder, step).read_bytes())
  except (ValueError, RecursionError):
    raise ValueError("is damaged: it holds no JSON") from None
  if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict) or "saved_at" not in manifest:
    raise ValueError("is damaged: it lists no files")
  if manifest.get("format") != FORMAT:
    raise ValueError(f"is of format {manifest.get('format')}, and this version reads {FORMAT}")
  for name, entry in manifest["files"].items():
    if not isinstance(entry, dict) or {"bytes", "sha256"} - entry.keys():
      raise ValueError(f"is damaged: it says nothing of {name!r}")
    if ".." in name.split("/") or pathlib.PurePosixPath(name).is_absolute():
      raise ValueError(f"is damaged: {name!r} is not inside the step")
  return manifest


def _files(folder: epath.Path, above: str = "") -> Iterator[str]:
  """The relative names of all files below a folder; `walk` of a bucket loses the scheme."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path, f"{above}{path.name}/")
    else:
      yield above + path.name


def _entries(folder: epath.Path, names: Sequence[str]) -> dict[str, dict]:
  entry = lambda name: {"bytes": storage.size(folder / name), "sha256": _sha256(folder / name)}
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return dict(zip(names, pool.map(entry, names), strict=True))


def _fault(path: epath.Path, wanted: dict, contents: bool) -> str | None:
  try:
    size = storage.size(path)
    if size != wanted["bytes"]:
      return f"is {size} bytes long, not {wanted['bytes']}"
    if contents and _sha256(path) != wanted["sha256"]:
      return "is not what was written: its sha256 differs"
  except (FileNotFoundError, NotADirectoryError):
    return "is missing"
  except OSError as error:
    return f"can't be read: {error}"
  return None


def _sha256(path: epath.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
