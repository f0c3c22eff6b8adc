"""Clips whose pictures are encoded files: what is known of each without decoding it, and the clip itself.

Where the files lie is left to `folder.py` and `records.py`.
"""

import abc
import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sora_jax import clips
from sora_jax.errors import InputError
from sora_jax.video import io as video_io
from sora_jax.video import isolated

IMAGE_FPS = 24.0  # the rate that an image gets when clips keep their native one
MAX_CAPTION = 10_000  # characters
MISSING = 2  # frames that a file may give less, or more, than it promised


@dataclasses.dataclass(frozen=True)
class Entry:
  """A usable file.

  Attributes:
    file: a name that is unique in its source: a path relative to a folder, with forward slashes, or a record's id.
    line: its number in the list of clips, from 1; 0 where there is no list.
    captions: "short" and "long".
    probe: what the file holds.
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
    line: its number in the list of clips, from 1; 0 for a file that no line names.
    reason: a kind, or "kind: detail"; one line.
  """

  file: str
  line: int
  reason: str


def describe_dropped(dropped: Sequence[Dropped]) -> str:
  """One line: how many were dropped, and how many for each kind of reason, most first."""
  if not dropped:
    return "none dropped"
  kinds = collections.Counter(each.reason.partition(":")[0] for each in dropped)
  counts = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
  return f"{len(dropped)} dropped ({', '.join(f'{count} {kind}' for kind, count in counts)})"


def is_clean(text: str) -> bool:
  """No NUL, and no half of a surrogate pair, which JSON can spell but no file or tokenizer can take."""
  return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def printable(name: str) -> str:
  """A name for the terminal: line breaks and control characters are spelled out."""
  return "".join(each if each.isprintable() else repr(each)[1:-1] for each in name)


Fit = Callable[[int, int, int], tuple[int, int]]  # (frames, height, width) -> (height, width)


class View(NamedTuple):
  """How clips are seen.

  Attributes:
    fps: frames per second of every clip; 0 keeps each clip's own mean rate.
    max_frames: a clip is cut after this many, >= 1.
    fit: the size that a clip of (frames, height, width) is scaled to; None keeps every size.
  """

  fps: float = 0.0
  max_frames: int = 2**31
  fit: Fit | None = None

  def check(self) -> None:
    """
    Raises:
      ValueError: a value out of range.
    """
    if not 0 <= self.fps < math.inf or self.max_frames < 1:
      raise InputError(f"fps >= 0 and max_frames >= 1 are needed: got {self.fps} and {self.max_frames}")

  def rate(self, native: float) -> float:
    """Frames per second of a clip whose own rate is `native` (0 for an image)."""
    return self.fps or native or IMAGE_FPS

  def shape(self, probe: video_io.Probe) -> tuple[int, int, int]:
    """(T, H, W) that a file is seen at."""
    frames = 1
    if probe.seconds > 0:
      frames = video_io.frame_count(probe.seconds, self.rate(probe.fps), self.max_frames)
    size = (probe.height, probe.width)
    return (frames, *(self.fit(frames, *size) if self.fit else size))


def fingerprint_of(parts: Iterable[Any]) -> str:
  """sha256 (hex) of what JSON can spell, whatever its order."""
  total = hashlib.sha256()
  for part in sorted(json.dumps(part, ensure_ascii=True) for part in parts):
    total.update(part.encode() + b"\n")
  return total.hexdigest()


def reopened(kind: Callable[..., Any], arguments: dict[str, Any], fingerprint: str) -> Any:
  """A source that was sent to another process: opened there, rather than sent with all that it has read.

  Raises:
    ValueError: its data have changed.
  """
  source = kind(**arguments)
  if source.fingerprint != fingerprint:
    raise InputError(f"{next(iter(arguments.values()))}: changed since it was opened: start again")
  return source


class FileSource(abc.ABC):
  """Clips in files, by index; a subclass says where the files are.

  Attributes:
    entries: what can be used.
    dropped: what can't, with reasons.
    media_fingerprint, captions_fingerprint, fingerprint: change when a file does, when a caption does, and with both.
  """

  def __init__(self, entries: Sequence[Entry], dropped: Sequence[Dropped], media_fingerprint: str, view: View):
    self.entries, self.dropped, self.media_fingerprint = entries, dropped, media_fingerprint
    self.captions_fingerprint = fingerprint_of((each.file, sorted(each.captions.items())) for each in entries)
    self.fingerprint = fingerprint_of([self.media_fingerprint, self.captions_fingerprint])
    self.view = view

  @abc.abstractmethod
  def open_file(self, index: int) -> contextlib.AbstractContextManager[str | os.PathLike]:
    """A local file with clip `index`, for as long as the context lasts."""

  def __len__(self) -> int:
    return len(self.entries)

  def fps(self, index: int) -> float:
    """Frames per second of clip `index`."""
    return self.view.rate(self.entries[index].probe.fps)

  def shape(self, index: int) -> tuple[int, int, int]:
    """(T, H, W) of clip `index`, by its probe alone; what `self[index]` then has."""
    return self.view.shape(self.entries[index].probe)

  def captions(self, index: int) -> dict[str, str]:
    """{"short": ..., "long": ...} of clip `index`."""
    return dict(self.entries[index].captions)

  def where(self, index: int) -> tuple[str, int]:
    """The name of clip `index` and its line in the list of clips."""
    return self.entries[index].file, self.entries[index].line

  def __getitem__(self, index: int) -> clips.Clip:
    """Decodes clip `index`: float32 in [-1, 1], its long caption, its file name as id.

    Raises:
      UnreadableFile: the file doesn't decode, or lacks more than two of the frames its probe promised.
      IndexError: no such clip.
    """
    entry, fps = self.entries[index], self.fps(index)
    count, height, width = self.shape(index)
    try:
      with self.open_file(index) as path:
        frames_THWC = isolated.shared().read(path, fps=fps, max_frames=self.view.max_frames, size=(height, width))
    except (video_io.UnreadableFile, OSError) as error:
      raise video_io.UnreadableFile(f"{entry.file}: {error}") from error
    missing = count - len(frames_THWC)
    if abs(missing) > MISSING:
      raise video_io.UnreadableFile(f"{entry.file}: gives {len(frames_THWC)} frames where {count} were promised")
    # Durations are rounded and last frames may be damaged: a frame or two either way keeps the promise.
    held = [len(frames_THWC) - 1] * max(missing, 0)
    frames_THWC = frames_THWC[[*range(min(count, len(frames_THWC))), *held]]
    return clips.Clip(clips.from_uint8(frames_THWC), fps, entry.captions["long"], entry.file)
