"""A source of anything -> shards of clips worth training on: cut into scenes, filtered, each kept once.

Two passes over units of clips. The first looks at every clip, small, and notes its scenes; then it is decided what is
kept; the second writes the shards. Each unit leaves a file, so that work that was stopped is taken up again and gives
the same bytes.

    folder/build.json          the settings, what was kept and dropped
    folder/work/               what the units of a build that isn't complete have left
    folder/clips-*, index.jsonl, records.json         see `records.py`
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from sora_jax import clips
from sora_jax.curation import duplicates, scenes
from sora_jax.data import records
from sora_jax.data.files import MISSING, Dropped, FileSource, describe_dropped
from sora_jax.data.sources import Source, small_frames, small_size
from sora_jax.errors import InputError
from sora_jax.runtime import storage, work_units
from sora_jax.video import io as video_io
from sora_jax.video import isolated
from sora_jax.video.io import Probe, UnreadableFile

UNIT = 32  # clips that are looked at in one unit, at most
UNIT_FRAMES = 8192  # after which a unit is full
PIECE = 512  # frames that are decoded at a time: in less time and memory than a decoder has
SCENE_BYTES = 2 * 2**30  # of the frames of one scene, which are in memory at once: a longer one is cut
BUILD, WORK = "build.json", "work"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is kept, and how it is written.

  Attributes:
    min_seconds: of a scene of a video.
    min_side: pixels of the shorter side.
    min_motion: mean change of a pixel from frame to frame, of 1, in a video.
    dedup: whether a clip that repeats another is dropped.
    cut: whether videos are cut into scenes.
    shard_clips: clips a shard.
  """

  min_seconds: float = 0.5
  min_side: int = 1
  min_motion: float = 0.0
  dedup: bool = True
  cut: bool = True
  shard_clips: int = 256


@dataclasses.dataclass(frozen=True)
class Scene:
  """A part of a clip that may be kept: seconds from `start` to `end`, or all of it."""

  clip: int
  start: float
  end: float
  whole: bool
  motion: float


def build(
  source: Source,
  folder: str | os.PathLike,
  settings: Settings,
  workers: int = 0,
  beam: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Writes a folder of records.

  Args:
    source: opened with every clip at its own size, rate and length.
    folder: local or gs://; one that holds part of the same build is taken up again.
    settings: what is kept.
    workers, beam: see `work_units.run`.

  Returns:
    `clips` of the source, `kept` scenes of them in `shards`, and what was `dropped` ([{file, line, reason}]).

  Raises:
    ValueError: the folder holds another build, nothing is left to keep, or a file can't be read any more.
  """
  root = epath.Path(folder)
  key = {"source": source.fingerprint, **dataclasses.asdict(settings)}
  if (found := _claim(root, key)) is not None:
    return found
  looks = _firsts(source)
  missing = [looks[place] for place in _missing(root, [_look_name(first) for first in looks])]
  work_units.run(functools.partial(look_unit, source, root, settings), missing, "look", workers, beam)
  kept, dropped = _choose(source, root, settings, looks)
  dropped = [*source.dropped, *dropped]
  if not kept:
    raise InputError(f"nothing of {len(source)} clips is kept: {describe_dropped(dropped)}")
  shards = [kept[start : start + settings.shard_clips] for start in range(0, len(kept), settings.shard_clips)]
  names = [_lines_name(unit) for unit in range(len(shards))]
  work_units.run(functools.partial(write_unit, source, root, shards), _missing(root, names), "write", workers, beam)
  records.finish(root, [json.loads((root / WORK / name).read_text()) for name in names])
  result: dict[str, Any] = {"clips": len(source) + len(source.dropped), "kept": len(kept), "shards": len(shards)}
  result["dropped"] = [vars(each) for each in dropped]
  storage.write_text(root / BUILD, json.dumps({"key": key, "result": result}, indent=1) + "\n")
  _tidy(root)
  return result


def _claim(folder: epath.Path, key: dict[str, Any]) -> dict[str, Any] | None:
  """The result of a complete build; None where there is work to do."""
  if (folder / BUILD).exists():
    try:
      found = json.loads((folder / BUILD).read_text())
      before = {name: found["key"][name] for name in key}
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"{folder / BUILD} is not of a build: use another --out") from error
    for name in key:
      if before[name] != key[name]:
        raise InputError(
          f"{folder} holds a build with another {name} ({before[name]!r}, not {key[name]!r}): use another --out"
        )
    if "result" in found:
      _tidy(folder)  # where it was stopped just before
      return found["result"]
  elif folder.exists() and not all(_is_part(path.name, BUILD) for path in folder.iterdir()):
    raise InputError(f"{folder} is not empty and no build: use another --out")
  else:
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / BUILD, json.dumps({"key": key}, indent=1) + "\n")
  (folder / WORK).mkdir(exist_ok=True)
  return None


def _is_part(name: str, of: str = "") -> bool:
  """Whether it is what a killed process left of a file."""
  return name.startswith(of) and name.endswith(".part")


def _tidy(folder: epath.Path) -> None:
  """Takes away what only an unfinished build needs, and what killed processes left."""
  if (folder / WORK).exists():
    (folder / WORK).rmtree()
  for path in folder.iterdir():
    if _is_part(path.name):
      path.unlink()


def _missing(folder: epath.Path, names: list[str]) -> list[int]:
  """The places of the files that no unit has left yet."""
  there = {path.name for path in (folder / WORK).iterdir()}
  return [place for place, name in enumerate(names) if name not in there]


# The first pass. A unit is named by its first clip.


def look_unit(source: Source, folder: epath.Path, settings: Settings, unit: int) -> None:
  """Notes the scenes of a unit's clips, each with its signature, and which clips can't be decoded."""
  found, dropped = [], []
  for clip in range(unit, _end(source, unit)):
    try:
      for scene, signature_D in _scenes(source, clip, settings):
        found.append({**vars(scene), "signature": signature_D.tobytes().hex()})
    except (UnreadableFile, FileNotFoundError) as error:  # not others: a full disk is not the clip's fault
      file, line = source.where(clip)
      dropped.append(vars(Dropped(file, line, f"unreadable: {_reason(error, file)}")))
  storage.write_text(folder / WORK / _look_name(unit), json.dumps({"scenes": found, "dropped": dropped}))


def _firsts(source: Source) -> list[int]:
  """The first clips of all units."""
  firsts, clip = [], 0
  while clip < len(source):
    firsts.append(clip)
    clip = _end(source, clip)
  return firsts


def _end(source: Source, first: int) -> int:
  """The clip after the last one of a unit: long videos share it with few others."""
  frames, last = 0, min(first + UNIT, len(source)) - 1
  for clip in range(first, last):
    frames += source.shape(clip)[0]
    if frames >= UNIT_FRAMES:
      return clip + 1
  return last + 1


def _scenes(source: Source, clip: int, settings: Settings) -> Iterator[tuple[Scene, np.ndarray]]:
  """The scenes of one clip, with their signatures."""
  thumbnails: list[np.ndarray] = []

  def seen() -> Iterator[np.ndarray]:
    for frames_THWC in _pieces(source, clip):
      thumbnails.extend(duplicates.thumbnail(frame_HWC) for frame_HWC in frames_THWC)
      yield frames_THWC

  starts, changes = scenes.follow(seen())
  whole, fps = len(starts) == 1 or not settings.cut, source.fps(clip)
  if whole:
    starts = [0]
  elif isinstance(source, FileSource):
    starts = _divided(starts, len(thumbnails), most=max(SCENE_BYTES // _frame_bytes(source, clip), 1))
  for start, end in zip(starts, [*starts[1:], len(thumbnails)], strict=True):
    motion = float(changes[start : end - 1].mean()) if end - start > 1 else 0.0
    yield Scene(clip, start / fps, end / fps, whole, motion), duplicates.signature(thumbnails[start:end])


def _pieces(source: Source, clip: int) -> Iterator[np.ndarray]:
  """All frames of a clip, small, some at a time.

  Raises:
    UnreadableFile: as `small_frames`.
  """
  promised = source.shape(clip)[0]
  if not isinstance(source, FileSource):
    yield small_frames(source, clip, scenes.SIDE, promised)
    return
  size, count = small_size(source, clip, scenes.SIDE), 0
  for frames_THWC in _read(source, clip, 0.0, promised, PIECE, size):
    count += len(frames_THWC)
    yield frames_THWC
  if count < promised - MISSING:
    raise UnreadableFile(f"gives {count} frames where {promised} were promised")


def _read(
  source: FileSource, clip: int, start: float, count: int, piece: int, size: tuple[int, int]
) -> Iterator[np.ndarray]:
  """At most `count` frames of a file, `piece` at a time, from `start` seconds on."""
  fps = source.fps(clip)
  with source.open_file(clip) as path:
    for done in range(0, count, piece):
      wanted = min(piece, count - done)
      frames_THWC = isolated.shared().read(path, fps=fps, max_frames=wanted, start=start + done / fps, size=size)
      yield frames_THWC
      if len(frames_THWC) < wanted:
        return


def _frame_bytes(source: Source, clip: int) -> int:
  _, height, width = source.shape(clip)
  return height * width * 3


def _divided(starts: list[int], count: int, most: int) -> list[int]:
  """The starts of scenes of at most so many frames: a longer one is cut into equal parts."""
  divided = []
  for start, end in zip(starts, [*starts[1:], count], strict=True):
    parts = -(-(end - start) // most)
    divided += [start + (end - start) * part // parts for part in range(parts)]
  return divided


def _reason(error: Exception, file: str) -> str:
  text = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
  return text.removeprefix(f"{file}: ")


# What is kept.


def _choose(
  source: Source, folder: epath.Path, settings: Settings, looks: Sequence[int]
) -> tuple[list[tuple[Scene, str]], list[Dropped]]:
  """The scenes that are kept, with their ids, in the order of the source; and what is not, with reasons."""
  candidates: list[Scene] = []
  dropped: list[Dropped] = []
  signatures: list[np.ndarray] = []
  for first in looks:
    look = json.loads((folder / WORK / _look_name(first)).read_text())
    dropped += [Dropped(**each) for each in look["dropped"]]
    signatures += [np.frombuffer(bytes.fromhex(row.pop("signature")), np.uint8) for row in look["scenes"]]
    candidates += [Scene(**row) for row in look["scenes"]]
  reasons = [_too_little(source, scene, settings) for scene in candidates]
  good = [number for number, reason in enumerate(reasons) if reason is None]
  if settings.dedup and good:
    again = duplicates.duplicate_of(np.stack([signatures[number] for number in good]))
    for place in np.flatnonzero(again >= 0):
      reasons[good[place]] = f"repeats: {_id(source, candidates[good[again[place]]])}"
  kept = [(scene, _id(source, scene)) for scene, reason in zip(candidates, reasons, strict=True) if reason is None]
  for scene, reason in zip(candidates, reasons, strict=True):
    if reason is not None:
      dropped.append(Dropped(_id(source, scene), source.where(scene.clip)[1], reason))
  return kept, dropped


def _too_little(source: Source, scene: Scene, settings: Settings) -> str | None:
  frames, height, width = source.shape(scene.clip)
  if min(height, width) < settings.min_side:
    return f"too small: {width}x{height}"
  if frames > 1 and scene.end - scene.start < settings.min_seconds:
    return f"too short: {scene.end - scene.start:.2f} s"
  if frames > 1 and scene.motion < settings.min_motion:
    return f"too little motion: {scene.motion:.4f}"
  return None


def _id(source: Source, scene: Scene) -> str:
  file = source.where(scene.clip)[0]
  return file if scene.whole else f"{file}#{scene.start:.3f}-{scene.end:.3f}"


# The second pass.


def write_unit(source: Source, folder: epath.Path, shards: Sequence[Sequence[tuple[Scene, str]]], unit: int) -> None:
  """Writes one shard, and its lines of the index."""
  path = folder / records.shard_name(unit, len(shards))
  lines = records.write_shard(path, (_record(source, scene, name) for scene, name in shards[unit]))
  storage.write_text(folder / WORK / _lines_name(unit), json.dumps(lines))


def _record(source: Source, scene: Scene, name: str) -> records.Record:
  """A clip as it is, where it is one scene in a file; encoded, where it is cut, or comes from no file.

  Raises:
    UnreadableFile: what could be read at first can't be read any more.
  """
  try:
    if not isinstance(source, FileSource):
      return _encoded(source, scene, name, _frames_of_clip(source, scene), lossless=True)
    if not scene.whole:
      return _encoded(source, scene, name, _frames_of_file(source, scene), lossless=False)
    with source.open_file(scene.clip) as path, open(path, "rb") as file:
      return records.Record(name, source.captions(scene.clip), source.entries[scene.clip].probe, file.read())
  except (ValueError, OSError) as error:
    where = source.where(scene.clip)[0]
    raise UnreadableFile(f"{where}: was looked at before, and now: {_reason(error, where)}") from error


def _encoded(source: Source, scene: Scene, name: str, frames_THWC: np.ndarray, lossless: bool) -> records.Record:
  count, height, width = frames_THWC.shape[:3]
  fps = source.fps(scene.clip)
  media = video_io.encode(frames_THWC, fps, "png" if count == 1 else "mp4", lossless)
  probe = Probe(height, width, count / fps if count > 1 else 0.0, fps if count > 1 else 0.0, count)
  return records.Record(name, source.captions(scene.clip), probe, media)


def _frames_of_clip(source: Source, scene: Scene) -> np.ndarray:
  clip = source[scene.clip]
  return clips.to_uint8(clip.frames_THWC[round(scene.start * clip.fps) : round(scene.end * clip.fps)])


def _frames_of_file(source: FileSource, scene: Scene) -> np.ndarray:
  _, height, width = source.shape(scene.clip)
  count = round((scene.end - scene.start) * source.fps(scene.clip))
  frames_THWC, done = np.empty((count, height, width, 3), np.uint8), 0
  piece = max(min(PIECE, SCENE_BYTES // 4 // _frame_bytes(source, scene.clip)), 1)
  for part_THWC in _read(source, scene.clip, scene.start, count, piece, (height, width)):
    frames_THWC[done : done + len(part_THWC)] = part_THWC
    done += len(part_THWC)
  if done < count - MISSING:
    raise UnreadableFile(f"gives {done} frames of {count}")
  frames_THWC[done:] = frames_THWC[done - 1]  # as a source does where the last frames are damaged
  return frames_THWC


def _look_name(first: int) -> str:
  return f"look-{first:08d}.json"


def _lines_name(unit: int) -> str:
  return f"lines-{unit:05d}.json"
