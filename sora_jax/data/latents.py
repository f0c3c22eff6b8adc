"""Encoded clips on disk: one flat array and an index beside it. Written once, read by position, never unpickled."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class LatentClip(NamedTuple):
  """One encoded clip."""

  latent_thwC: np.ndarray  # float32, normalised
  size_4: tuple[float, float, float, float]  # seconds, height, width, fps
  frames: int
  captions: dict[str, str]
  id: str


class LatentStore:
  """Encoded clips by number."""

  def __init__(self, folder: pathlib.Path):
    self.folder = pathlib.Path(folder)
    self.index = json.loads((self.folder / "index.json").read_text())
    self.entries = self.index["clips"]
    self.values = np.load(self.folder / "latents.npy", mmap_mode="r", allow_pickle=False)

  def __len__(self) -> int:
    return len(self.entries)

  def __getitem__(self, number: int) -> LatentClip:
    entry = self.entries[number]
    shape = tuple(entry["shape"])
    start = entry["start"]
    latent = np.asarray(self.values[start : start + int(np.prod(shape))]).reshape(shape)
    return LatentClip(latent, tuple(entry["size"]), entry["frames"], entry["captions"], entry["id"])

  @property
  def channels(self) -> int:
    return self.entries[0]["shape"][-1]


def key_of(parts: dict[str, str]) -> str:
  """One name for everything that made a store: weights, source, settings."""
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build(folder: pathlib.Path, parts: dict[str, str], make: Callable[[], Iterable[LatentClip]]) -> LatentStore:
  """The store in `folder` if it was made from the same `parts`, else a new one from `make()`.

  The index is written last and by renaming, so a half-written store is never read.
  """
  folder = pathlib.Path(folder)
  index_path = folder / "index.json"
  complete = index_path.exists() and (folder / "latents.npy").exists()
  if complete and json.loads(index_path.read_text())["key"] == key_of(parts):
    return LatentStore(folder)
  folder.mkdir(parents=True, exist_ok=True)
  index_path.unlink(missing_ok=True)
  entries, values, start = [], [], 0
  for clip in make():
    size, captions = list(map(float, clip.size_4)), dict(clip.captions)
    shape = list(clip.latent_thwC.shape)
    entries.append(
      {
        "start": start,
        "shape": shape,
        "size": size,
        "frames": clip.frames,
        "captions": captions,
        "id": clip.id,
      }
    )
    values.append(clip.latent_thwC.astype(np.float32).reshape(-1))
    start += values[-1].size
  np.save(folder / "latents.npy", np.concatenate(values), allow_pickle=False)
  written = folder / "index.json.part"
  written.write_text(json.dumps({"key": key_of(parts), "parts": parts, "clips": entries}))
  written.replace(index_path)
  return LatentStore(folder)
