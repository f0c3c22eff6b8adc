"""Own data: a folder of videos and images with a `captions.jsonl` or a `captions.csv`, on this machine or in a bucket.

One JSON object a line, or a CSV table with a header: `file`, a path inside the folder, and either `caption`, or `short`
and `long`; `tables.py` has the other names that these may have. Other keys are ignored. Nothing in the folder is
trusted: a line or file that can't be used is dropped with its line number and reason, and the rest goes on.
"""

import contextlib
import json
import os
import pathlib
from typing import Any

from etils import epath

from sora_jax.data.files import (
  MAX_CAPTION,
  Dropped,
  Entry,
  FileSource,
  Fit,
  View,
  describe_dropped,
  fingerprint_of,
  is_clean,
)
from sora_jax.data.media_digests import media_digests
from sora_jax.data.tables import by_name, csv_rows, json_rows, listed
from sora_jax.errors import InputError
from sora_jax.runtime import storage
from sora_jax.video import io as video_io
from sora_jax.video import isolated
from sora_jax.video.containers import EXTENSIONS

CAPTIONS = ("captions.jsonl", "captions.csv")  # the first of them that is there is read
_NO_CAPTION = "caption missing"
UNNAMED = "no caption"  # why a file that no line names isn't used
_Path = Any  # pathlib.Path, or epath.Path of an address: alike, but of no common type


class NothingUsable(InputError):
  """Every line and file was dropped; `dropped` lists them."""

  def __init__(self, message: str, dropped: list[Dropped]):
    super().__init__(message)
    self.dropped = dropped


class _RefusedError(ValueError):
  """The reason for which one line is dropped."""


def scan(folder: str | os.PathLike) -> tuple[list[Entry], list[Dropped]]:
  """What the folder holds, in the order of its list of captions.

  Returns:
    The usable entries, and what was dropped: by line first, then files that no line names, by name (not in a
    bucket, where looking for them costs as much as the data). A subfolder with captions of its own is another source:
    its files aren't missed here.

  Raises:
    ValueError: no such folder, or no captions in it.
    NothingUsable: a ValueError; nothing was left.
  """
  captions = _find_captions(folder)
  root: _Path = epath.Path(folder) if storage.is_remote(folder) else pathlib.Path(folder).resolve()
  entries, dropped = [], []
  used: set[pathlib.PurePath] = set()
  named: set[pathlib.PurePath] = set()
  content = storage.read_bytes(captions)
  for number, given, reason in csv_rows(content) if captions.suffix == ".csv" else json_rows(content):
    row = by_name(given)
    try:
      if reason:
        with contextlib.suppress(_RefusedError):
          named.add(_inside(root, {"file": "", **row})[1])
        raise _RefusedError(reason)
      if "file" not in row:
        raise _RefusedError(f'no "file" key: it has {listed(given)}')
      entries.append(_entry(root, number, row, used, named))
    except _RefusedError as refused:
      file = row.get("file")
      reason = str(refused)
      if reason == _NO_CAPTION:
        reason += f": it has {listed(given)}"
      dropped.append(Dropped(file if isinstance(file, str) else "", number, reason))
  if not storage.is_remote(folder):
    dropped += [Dropped(file, 0, UNNAMED) for file in _unnamed(root, named)]
  if not entries:
    raise NothingUsable(f"{folder}: nothing usable: {describe_dropped(dropped)}", dropped)
  return entries, dropped


def _find_captions(folder: str | os.PathLike) -> epath.Path:
  root = epath.Path(folder)
  if not root.is_dir():
    raise InputError(f"{folder}: no such folder")
  for name in CAPTIONS:
    path = root / name
    if path.is_file() if storage.is_remote(folder) else os.path.isfile(path):  # epath takes a pipe for a file
      return root / name
  example = json.dumps({"file": "cat.mp4", "caption": "A cat jumps off a wall."})
  raise InputError(
    f"{folder}: no {' or '.join(CAPTIONS)} in it: write one with a line for each video or image, as {example}"
  )


def _entry(root: _Path, line: int, row: dict, used: set[pathlib.PurePath], named: set[pathlib.PurePath]) -> Entry:
  """Checks one line; adds its file to `named` when it is in the folder, and to `used` when it is taken."""
  file, path = _inside(root, row)
  named.add(path)
  captions = _captions(row)
  if path in used:
    raise _RefusedError("duplicate file")
  used.add(path)
  try:
    with storage.local_file(path) as local:
      return Entry(file, line, captions, isolated.shared().probe(local))
  except video_io.UnreadableFile as error:
    raise _RefusedError(f"unreadable: {error}") from error
  except OSError as error:  # of a bucket
    raise _RefusedError(f"unreadable: {error.strerror or type(error).__name__}") from error


def _inside(root: _Path, row: dict) -> tuple[str, pathlib.PurePath]:
  """(tidy relative name, real path) of a line's file, which must lie in the folder, links followed."""
  file = row["file"]
  if not isinstance(file, str) or not file or not is_clean(file):
    raise _RefusedError("bad file name")
  if os.path.isabs(file) or storage.is_remote(file):
    raise _RefusedError("absolute path")
  name = os.path.normpath(file)
  if name.split(os.sep)[0] == os.pardir:
    raise _RefusedError("outside the folder")
  tidy = pathlib.Path(name).as_posix()
  try:
    path: _Path = root / tidy if storage.is_remote(root) else pathlib.Path(os.path.realpath(root / name))
    if not path.is_relative_to(root):
      raise _RefusedError("outside the folder")
    if not path.is_file():
      raise _RefusedError("file missing")
  except OSError as error:  # such as a name too long
    raise _RefusedError("bad file name") from error
  return tidy, path


def _captions(row: dict) -> dict[str, str]:
  given = {key: row[key] for key in ("caption", "short", "long") if key in row}
  if not given:
    raise _RefusedError(_NO_CAPTION)
  for text in given.values():
    if not isinstance(text, str):
      raise _RefusedError("caption is not text")
    if not text.strip():
      raise _RefusedError("caption empty")
    if len(text) > MAX_CAPTION:
      raise _RefusedError(f"caption too long: {len(text)} characters, at most {MAX_CAPTION}")
    if not is_clean(text):
      raise _RefusedError("caption has NUL or broken characters")
  first = next(iter(given.values()))  # a lone one fills both
  short = given.get("short", given.get("caption", first))
  return {"short": short.strip(), "long": given.get("long", given.get("caption", first)).strip()}


def _unnamed(root: _Path, named: set[pathlib.PurePath]) -> list[str]:
  """Media files below the folder that no line names, sorted."""
  found = []
  for where, folders, files in os.walk(root):
    if where != str(root) and not set(CAPTIONS).isdisjoint(files):
      folders.clear()
      continue
    paths = (pathlib.Path(where, name) for name in files)
    found += [
      path for path in paths if path.suffix.lower() in EXTENSIONS and pathlib.Path(os.path.realpath(path)) not in named
    ]
  names = (path.relative_to(root).as_posix() for path in found)
  return sorted(name.encode("utf-8", "replace").decode("utf-8") for name in names)


class FolderSource(FileSource):
  """The clips of a folder, in the order of its list of captions."""

  def __init__(self, folder: str | os.PathLike, *, fps: float = 0.0, max_frames: int, fit: Fit | None = None):
    """Reads the captions and probes each file; decodes nothing yet.

    Args:
      folder: see the head of this file.
      fps, max_frames, fit: see `files.View`.

    Raises:
      ValueError: as `scan` does, or an argument out of range.
    """
    view = View(fps, max_frames, fit)
    view.check()
    entries, dropped = scan(folder)
    self.folder = epath.Path(folder)
    super().__init__(entries, dropped, _fingerprint(self.folder, entries), view)

  def open_file(self, index: int) -> contextlib.AbstractContextManager[str]:
    path = self.folder / self.entries[index].file
    if not storage.is_remote(self.folder) and not _is_inside(path, self.folder):  # a link since it was probed
      raise video_io.UnreadableFile("outside the folder")
    return storage.local_file(path)


def _is_inside(path: os.PathLike, folder: os.PathLike) -> bool:
  return pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _fingerprint(folder: epath.Path, entries: list[Entry]) -> str:
  """Of the files' names and contents."""
  return fingerprint_of(media_digests(folder, (each.file for each in entries)).items())
