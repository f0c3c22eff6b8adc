"""Encoded clips on disk: arrays of a few thousand clips each, and one index. Read by position, never unpickled.

    folder/key.json              what the arrays are made from: weights, source, sizes, ...
    folder/unit-00000.npy .json  the values of one unit's clips one after another, and what is in them
    folder/index.json            all units; written last: without it the store is not complete

A unit is written whole or not at all, by whoever gets to it, so that making a store can be taken up again and shared.
"""

import hashlib
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sora_jax.data.files import Dropped
from sora_jax.runtime import storage

INDEX, KEY = "index.json", "key.json"


class LatentClip(NamedTuple):
  """One encoded clip."""

  latent_thwC: np.ndarray  # float32, normalised
  size_4: tuple[float, float, float, float]  # seconds, height, width, fps
  frames: int
  captions: dict[str, str]
  id: str
  part: int = 0  # of a mixture of sources


class LatentStore:
  """Encoded clips by number.

  Attributes:
    entries: what the index says of each clip: its `shape`, `size`, `frames`, `captions`, `id` and `part`.
    key: what the store was made from.
    dropped: clips of the source that could not be read.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = epath.Path(folder)
    index = json.loads(storage.read_bytes(self.folder / INDEX))
    self.key: dict[str, str] = index["key"]
    self.entries: list[dict[str, Any]] = index["clips"]
    self.dropped = [Dropped(**each) for each in index["dropped"]]
    self._arrays: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return len(self.entries)

  def __getitem__(self, number: int) -> LatentClip:
    entry = self.entries[number]
    shape, start = tuple(entry["shape"]), entry["start"]
    values = self._values(entry["unit"])[start : start + int(np.prod(shape))]
    size, captions = tuple(entry["size"]), entry["captions"]
    return LatentClip(np.asarray(values).reshape(shape), size, entry["frames"], captions, entry["id"], entry["part"])

  def _values(self, unit: int) -> np.ndarray:
    if unit not in self._arrays:
      path = storage.kept_local(self.folder / _name(unit, "npy"))
      self._arrays[unit] = np.load(path, mmap_mode="r", allow_pickle=False)
    return self._arrays[unit]

  def __getstate__(self) -> dict[str, Any]:
    return {**vars(self), "_arrays": {}}  # another process maps the files itself

  @property
  def fingerprint(self) -> str:
    """Of the clips that are in it, their sizes and captions."""
    said = ("id", "part", "shape", "size", "frames", "captions")
    return digest(json.dumps([entry[name] for name in said], sort_keys=True) for entry in self.entries)

  @property
  def channels(self) -> int:
    return self.entries[0]["shape"][-1]


def differing(old: dict[str, str], new: dict[str, str]) -> list[str]:
  """The names of the fields in which two keys differ."""
  return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def begin(folder: str | os.PathLike, key: dict[str, str]) -> bool:
  """Makes a folder ready for the units of a store; those of another key are thrown away, and it is told why.

  Returns:
    Whether the store of this key is complete already.
  """
  root = epath.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  if (root / KEY).exists():
    changed = differing(json.loads((root / KEY).read_text()), key)
    if not changed:
      return (root / INDEX).exists()
    print(f"{root}: encoding again: other {', '.join(changed)}", file=sys.stderr)
  for path in [root / INDEX, *root.glob("unit-*")]:
    path.unlink(missing_ok=True)
  storage.write_text(root / KEY, json.dumps(key, indent=1, sort_keys=True))
  return False


def missing_units(folder: str | os.PathLike, units: int) -> list[int]:
  """Which units are not written yet."""
  there = {path.name for path in epath.Path(folder).glob("unit-*.json")}
  return [unit for unit in range(units) if _name(unit, "json") not in there]


def write_unit(folder: str | os.PathLike, unit: int, clips: Iterable[LatentClip], dropped: Sequence[Dropped]) -> None:
  """Writes the clips of one unit; `dropped` is looked at when the last clip was given."""
  root = epath.Path(folder)
  entries, values, start = [], [np.zeros(0, np.float32)], 0
  for clip in clips:
    entry = {"unit": unit, "start": start, "shape": list(clip.latent_thwC.shape)}
    entry |= {"size": list(map(float, clip.size_4)), "frames": clip.frames, "captions": dict(clip.captions)}
    entries.append(entry | {"id": clip.id, "part": clip.part})
    values.append(clip.latent_thwC.astype(np.float32).reshape(-1))
    start += values[-1].size
  content = io.BytesIO()
  np.save(content, np.concatenate(values), allow_pickle=False)
  (root / _name(unit, "npy")).write_bytes(content.getbuffer())
  found = {"clips": entries, "dropped": [vars(each) for each in dropped]}
  storage.write_text(root / _name(unit, "json"), json.dumps(found))


def finish(folder: str | os.PathLike, units: int) -> LatentStore:
  """Makes the store complete: all of its units are there."""
  root = epath.Path(folder)
  found = [json.loads(storage.read_bytes(root / _name(unit, "json"))) for unit in range(units)]
  joined = {name: list(itertools.chain.from_iterable(unit[name] for unit in found)) for name in ("clips", "dropped")}
  key = json.loads((root / KEY).read_text())
  storage.write_text(root / INDEX, json.dumps({"key": key, **joined}))
  return LatentStore(root)


def forget_bad(folder: str | os.PathLike) -> None:
  """Takes the units in which clips are missing out of a store, which is then not complete."""
  root = epath.Path(folder)
  (root / INDEX).unlink(missing_ok=True)
  for path in root.glob("unit-*.json"):
    if json.loads(path.read_text())["dropped"]:
      path.unlink()


def digest(texts: Iterable[str]) -> str:
  """sha256 (hex) of texts in their order."""
  return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _name(unit: int, kind: str) -> str:
  return f"unit-{unit:05d}.{kind}"
