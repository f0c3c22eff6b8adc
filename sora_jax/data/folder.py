"""Own data: a folder of videos and images with a `captions.jsonl`.

One JSON object a line: `file`, a path inside the folder, and either `caption`, or `short` and `long`. Other
keys are ignored. Nothing in the folder is trusted: a line or file that can't be used is dropped with its line
number and reason, and the rest goes on.

Shape letters: T frames, H height, W width, C colours.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable

from sora_jax import clips
from sora_jax.data import isolated, video_io

CAPTIONS = "captions.jsonl"
UNNAMED = "no caption"  # why a file that no line names isn't used
MAX_CAPTION = 10_000  # characters
IMAGE_FPS = 24.0  # the rate that an image gets when clips keep their native one
_EXTENSIONS = frozenset(".mp4 .m4v .mov .webm .mkv .gif .png .jpg .jpeg .webp".split())


@dataclasses.dataclass(frozen=True)
class Entry:
  """A usable file. `file` is relative to the folder, with forward slashes; `captions` has short and long.

  Attributes:
    line: its number in captions.jsonl, from 1.
  """

  file: str
  line: int
  captions: dict[str, str]
  probe: video_io.Probe


@dataclasses.dataclass(frozen=True)
class Dropped:
  """A line or file that isn't used.

  Attributes:
    file: as the line names it; empty where it names none.
    line: its number in captions.jsonl, from 1; 0 for a file that no line names.
    reason: a kind, or "kind: detail"; one line.
  """

  file: str
  line: int
  reason: str


class NothingUsable(ValueError):
  """Every line and file was dropped; `dropped` lists them."""

  def __init__(self, message: str, dropped: list[Dropped]):
    super().__init__(message)
    self.dropped = dropped


class _RefusedError(ValueError):
  """The reason for which one line is dropped."""


def scan(folder: str | os.PathLike) -> tuple[list[Entry], list[Dropped]]:
  """What the folder holds, in the order of captions.jsonl.

  Returns:
    The usable entries, and what was dropped: by line first, then files that no line names, by name. A
    subfolder with a captions.jsonl of its own is another source: its files aren't missed here.

  Raises:
    ValueError: no such folder, or no captions.jsonl in it.
    NothingUsable: a ValueError; nothing was left.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise ValueError(f"{folder}: no such folder")
  captions = root / CAPTIONS
  if not captions.is_file():
    example = json.dumps({"file": "cat.mp4", "caption": "A cat jumps off a wall."})
    raise ValueError(f"{folder}: no {CAPTIONS} in it: write one with a line for each video or image, as {example}")
  entries, dropped = [], []
  used: set[pathlib.Path] = set()
  named: set[pathlib.Path] = set()
  with open(captions, "rb") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      row: dict = {}
      try:
        row = _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        entries.append(_entry(root.resolve(), number, row, used, named))
      except _RefusedError as refused:
        file = row.get("file")
        dropped.append(Dropped(file if isinstance(file, str) else "", number, str(refused)))
  dropped += [Dropped(file, 0, UNNAMED) for file in _unnamed(root.resolve(), named)]
  if not entries:
    raise NothingUsable(f"{folder}: nothing usable: {describe_dropped(dropped)}", dropped)
  return entries, dropped


def describe_dropped(dropped: list[Dropped]) -> str:
  """One line: how many were dropped, and how many for each kind of reason, most first."""
  if not dropped:
    return "none dropped"
  kinds = collections.Counter(each.reason.partition(":")[0] for each in dropped)
  counts = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
  return f"{len(dropped)} dropped ({', '.join(f'{count} {kind}' for kind, count in counts)})"


def _parse(line: bytes) -> dict:
  try:
    row = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise _RefusedError("not UTF-8") from error
  except (ValueError, RecursionError) as error:
    detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested or long beyond reason"
    raise _RefusedError(f"bad JSON: {detail}") from error
  if not isinstance(row, dict):
    raise _RefusedError("not a JSON object")
  return row


def _entry(root: pathlib.Path, line: int, row: dict, used: set[pathlib.Path], named: set[pathlib.Path]) -> Entry:
  """Checks one line; adds its file to `named` when it is in the folder, and to `used` when it is taken."""
  file, path = _inside(root, row)
  named.add(path)
  captions = _captions(row)
  if path in used:
    raise _RefusedError("duplicate file")
  used.add(path)
  try:
    return Entry(file, line, captions, isolated.shared().probe(path))
  except video_io.UnreadableFile as error:
    raise _RefusedError(f"unreadable: {error}") from error


def _inside(root: pathlib.Path, row: dict) -> tuple[str, pathlib.Path]:
  """(tidy relative name, real path) of a line's file, which must lie in the folder, links followed."""
  if "file" not in row:
    raise _RefusedError('no "file" key')
  file = row["file"]
  if not isinstance(file, str) or not file or not _is_clean(file):
    raise _RefusedError("bad file name")
  if os.path.isabs(file):
    raise _RefusedError("absolute path")
  name = os.path.normpath(file)
  if name.split(os.sep)[0] == os.pardir:
    raise _RefusedError("outside the folder")
  try:
    path = pathlib.Path(os.path.realpath(root / name))
    if not path.is_relative_to(root):
      raise _RefusedError("outside the folder")
    if not path.is_file():
      raise _RefusedError("file missing")
  except OSError as error:  # such as a name too long
    raise _RefusedError("bad file name") from error
  return pathlib.Path(name).as_posix(), path


def _captions(row: dict) -> dict[str, str]:
  given = {key: row[key] for key in ("caption", "short", "long") if key in row}
  if not given:
    raise _RefusedError("caption missing")
  for text in given.values():
    if not isinstance(text, str):
      raise _RefusedError("caption is not text")
    if not text.strip():
      raise _RefusedError("caption empty")
    if len(text) > MAX_CAPTION:
      raise _RefusedError(f"caption too long: {len(text)} characters, at most {MAX_CAPTION}")
    if not _is_clean(text):
      raise _RefusedError("caption has NUL or broken characters")
  first = next(iter(given.values()))  # a lone one fills both
  short = given.get("short", given.get("caption", first))
  return {"short": short.strip(), "long": given.get("long", given.get("caption", first)).strip()}


def _is_clean(text: str) -> bool:
  """No NUL, and no half of a surrogate pair, which JSON can spell but no file or tokenizer can take."""
  return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _unnamed(root: pathlib.Path, named: set[pathlib.Path]) -> list[str]:
  """Media files below the folder that no line names, sorted."""
  found = []
  for where, folders, files in os.walk(root):
    if where != str(root) and CAPTIONS in files:
      folders.clear()
      continue
    paths = (pathlib.Path(where, name) for name in files)
    found += [
      path for path in paths if path.suffix.lower() in _EXTENSIONS and pathlib.Path(os.path.realpath(path)) not in named
    ]
  names = (path.relative_to(root).as_posix() for path in found)
  return sorted(name.encode("utf-8", "replace").decode("utf-8") for name in names)


Fit = Callable[[int, int, int], tuple[int, int]]  # (frames, height, width) -> (height, width)


class FolderSource:
  """The clips of a folder, by index, in the order of captions.jsonl.

  Attributes:
    entries: what can be used.
    dropped: what can't, with reasons.
    fingerprint: sha256 (hex) over the sorted names, sizes and captions: changes when the data does.
  """

  def __init__(self, folder: str | os.PathLike, *, fps: float = 0.0, max_frames: int, fit: Fit | None = None):
    """Reads captions.jsonl and probes each file; decodes nothing yet.

    Args:
      folder: see the head of this file.
      fps: frames per second of every clip; 0 keeps each clip's own mean rate.
      max_frames: a clip is cut after this many, >= 1.
      fit: the size that a clip of (frames, height, width) is scaled to; None keeps every size.

    Raises:
      ValueError: as `scan` does, or an argument out of range.
    """
    if not 0 <= fps < math.inf or max_frames < 1:
      raise ValueError(f"fps >= 0 and max_frames >= 1 are needed: got {fps} and {max_frames}")
    self.entries, self.dropped = scan(folder)
    self.fingerprint = _fingerprint(pathlib.Path(folder), self.entries)
    self._folder = pathlib.Path(folder)
    self._fps, self._max_frames, self._fit = fps, max_frames, fit

  def __len__(self) -> int:
    return len(self.entries)

  def fps(self, index: int) -> float:
    """Frames per second of clip `index`."""
    return self._fps or self.entries[index].probe.fps or IMAGE_FPS

  def shape(self, index: int) -> tuple[int, int, int]:
    """(T, H, W) of clip `index`, by its probe alone; what `self[index]` then has."""
    probe = self.entries[index].probe
    frames = 1
    if probe.seconds > 0:
      frames = video_io.frame_count(probe.seconds, self.fps(index), self._max_frames)
    size = (probe.height, probe.width)
    return (frames, *(self._fit(frames, *size) if self._fit else size))

  def captions(self, index: int) -> dict[str, str]:
    """{"short": ..., "long": ...} of clip `index`."""
    return dict(self.entries[index].captions)

  def where(self, index: int) -> tuple[str, int]:
    """The file of clip `index` and its line in captions.jsonl."""
    return self.entries[index].file, self.entries[index].line

  def __getitem__(self, index: int) -> clips.Clip:
    """Decodes clip `index`: float32 in [-1, 1], its long caption, its file name as id.

    Raises:
      UnreadableFile: the file doesn't decode, or lacks more than two of the frames its probe promised.
      IndexError: no such clip.
    """
    entry, fps = self.entries[index], self.fps(index)
    count, height, width = self.shape(index)
    path = self._folder / entry.file
    try:
      frames_THWC = isolated.shared().read(path, fps=fps, max_frames=self._max_frames, size=(height, width))
    except video_io.UnreadableFile as error:
      raise video_io.UnreadableFile(f"{entry.file}: {error}") from error
    missing = count - len(frames_THWC)
    if abs(missing) > 2:
      raise video_io.UnreadableFile(f"{entry.file}: gives {len(frames_THWC)} frames where {count} were promised")
    # Durations are rounded and last frames may be damaged: a frame or two either way keeps the promise.
    held = [len(frames_THWC) - 1] * max(missing, 0)
    frames_THWC = frames_THWC[[*range(min(count, len(frames_THWC))), *held]]
    return clips.Clip(clips.from_uint8(frames_THWC), fps, entry.captions["long"], entry.file)


def _fingerprint(folder: pathlib.Path, entries: list[Entry]) -> str:
  rows = [(each.file, (folder / each.file).stat().st_size, sorted(each.captions.items())) for each in entries]
  return hashlib.sha256(json.dumps(sorted(rows), ensure_ascii=True).encode("ascii")).hexdigest()
