"""Encoded clips on disk: arrays of many clips each, an index in columns, and the captions beside them.

    folder/key.json              what the latents are made from: weights, media, sizes, ...
    folder/unit-00000.npy        the values of one unit's clips one after another, bfloat16; after each clip's those of
                                 the pieces of it that are encoded apart: see `conditions.py`
    folder/unit-00000.npz        what is in it; written last: without it the unit is missing
    folder/index/NAME.npy        a column each over the clips of all units
    folder/index.json            what the columns hold; written last: without it the store is not complete
    folder/captions.*            the clips' captions, which change without the latents: see `captions.py`

The columns are memory-mapped, so opening a store takes no time or memory a clip. A unit is written whole or not at all,
by whoever gets to it, so that making a store can be taken up again and shared.

Shape letters: N clips.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from sora_jax.data import columns
from sora_jax.data.captions import Captions
from sora_jax.data.conditions import PIECES, Span
from sora_jax.data.files import Dropped
from sora_jax.errors import InputError
from sora_jax.runtime import storage

# Raised by hand when latents on disk can no longer be used: other files, or other values from the same weights.
LATENT_FORMAT = 4
INDEX, KEY = "index.json", "key.json"
# numpy has no bfloat16 of its own: the head of the file names the type of its two bytes.
VALUES = np.dtype([("bfloat16", "<u2")])
MAPPED = 1024  # units that are mapped at a time
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
  "unit": ("<i4", ()),  # the array that holds it
  "start": ("<i8", ()),  # in that array
  "shape": ("<i4", (4,)),
  "size": ("<f8", (4,)),  # seconds, height, width, frames per second
  "frames": ("<i4", ()),
  "component": ("<i4", ()),  # of a mixture
  "number": ("<i8", ()),  # in the source
  "loop": ("|u1", ()),  # 1 where the clip is played there and back
  "piece_start": ("<i4", (PIECES,)),  # first frame of each piece that is encoded apart; its values follow the clip's
  "piece_frames": ("<i4", (PIECES,)),  # and its latent frames, 0 where there are fewer pieces
  "id_end": ("<i8", ()),  # in `ids`
}
IDS = "|u1"  # UTF-8, one after another
# Of these is the fingerprint of a store.
CLIP = ("shape", "size", "frames", "component", "loop", "piece_start", "piece_frames", "id_end", "ids")


class LatentClip(NamedTuple):
  """One encoded clip."""

  latent_thwC: np.ndarray  # float32, normalised
  size_4: tuple[float, float, float, float]  # seconds, height, width, fps
  frames: int
  id: str
  component: int = 0  # of a mixture of sources
  number: int = 0  # in the source
  loop: bool = False  # one turn of it, encoded as every turn after the first
  pieces: tuple[tuple[Span, np.ndarray], ...] = ()  # encoded apart, each with its latent; not read back with the clip


class LatentStore:
  """Encoded clips by number.

  Attributes:
    key: what the store was made from.
    dropped: clips of the source that could not be read.
    unit_N, start_N, shape_N4, size_N4, frames_N, component_N, number_N, loop_N: the columns of the index.
    media_fingerprint: of the clips that are in it and their sizes.
  """

  def __init__(self, folder: str | os.PathLike):
    """
    Raises:
      InputError: it is not complete, damaged, or of another version.
    """
    self.folder = epath.Path(folder)
    index = _read_index(self.folder)
    self.key: dict[str, str] = index["key"]
    self.dropped = [Dropped(**each) for each in index["dropped"]]
    self.media_fingerprint: str = index["fingerprint"]
    try:
      found = {name: columns.read(_column(self.folder, name), *COLUMNS[name], index["clips"]) for name in COLUMNS}
      self._ids = columns.read(_column(self.folder, "ids"), IDS)
    except columns.BadColumn as error:
      raise InputError(f"{error}: delete {self.folder}, and the latents are made again") from error
    self.unit_N, self.start_N, self.shape_N4, self.size_N4 = (found[key] for key in ("unit", "start", "shape", "size"))
    self.frames_N, self.component_N, self.number_N = (found[key] for key in ("frames", "component", "number"))
    self.loop_N = found["loop"]
    self.piece_start_NP, self.piece_frames_NP = found["piece_start"], found["piece_frames"]
    self._id_end_N = found["id_end"]
    self._arrays: dict[int, np.ndarray] = {}
    self._captions: Captions | None = None

  def __len__(self) -> int:
    return len(self.unit_N)

  def __getitem__(self, number: int) -> LatentClip:
    return LatentClip(
      self._latent(number, 0, int(self.shape_N4[number, 0])),
      tuple(self.size_N4[number].tolist()),
      int(self.frames_N[number]),
      self.id(number),
      int(self.component_N[number]),
      int(self.number_N[number]),
      bool(self.loop_N[number]),
    )

  def _latent(self, number: int, begin: int, frames: int) -> np.ndarray:
    """`frames` latent frames (t, h, w, C) of what is stored of a clip: its own, and those of its pieces after them."""
    _, *frame = self.shape_N4[number].tolist()
    start = int(self.start_N[number]) + begin * math.prod(frame)
    values = self._values(int(self.unit_N[number]))[start : start + frames * math.prod(frame)]
    return np.asarray(values).view(ml_dtypes.bfloat16).astype(np.float32).reshape(frames, *frame)

  def pieces(self, number: int) -> list[Span]:
    """The pieces of a clip that are encoded apart."""
    found = zip(self.piece_start_NP[number].tolist(), self.piece_frames_NP[number].tolist(), strict=True)
    return [Span(start, frames) for start, frames in found if frames]

  def piece(self, number: int, which: int) -> np.ndarray:
    """The latent (t, h, w, C) of one of a clip's pieces, float32, normalised."""
    begin = int(self.shape_N4[number, 0]) + int(self.piece_frames_NP[number, :which].sum())
    return self._latent(number, begin, int(self.piece_frames_NP[number, which]))

  def id(self, number: int) -> str:
    """The name of a clip in its source; a loop has that of the clip that it is made from."""
    start = int(self._id_end_N[number - 1]) if number else 0
    return bytes(self._ids[start : int(self._id_end_N[number])]).decode()

  def captions(self, number: int) -> dict[str, str]:
    """The captions of a clip."""
    return self.all_captions()[number]

  def all_captions(self) -> Captions:
    """
    Raises:
      InputError: they are not there, or damaged.
    """
    if self._captions is None:
      self._captions = Captions(self.folder)
    return self._captions

  def _values(self, unit: int) -> np.ndarray:
    if unit not in self._arrays:
      if len(self._arrays) >= MAPPED:
        self._arrays = {}
      self._arrays[unit] = columns.read(self.folder / _name(unit, "npy"), VALUES)
    return self._arrays[unit]

  def __reduce__(self) -> tuple[Any, ...]:
    return LatentStore, (os.fspath(self.folder),)  # another process maps the files itself

  @property
  def fingerprint(self) -> str:
    """Of the clips that are in it, their sizes and captions."""
    return digest([self.media_fingerprint, self.all_captions().digest])

  @property
  def channels(self) -> int:
    return int(self.shape_N4[0, -1])


def read_key(path: epath.Path) -> dict[str, str]:
  """A key that is kept on disk; empty where it is damaged."""
  try:
    key = json.loads(path.read_text())
  except ValueError:
    return {}
  return key if isinstance(key, dict) else {}


def differing(old: dict[str, str], new: dict[str, str]) -> list[str]:
  """The names of the fields in which two keys differ."""
  return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def begin(folder: str | os.PathLike, key: dict[str, str]) -> bool:
  """Makes a folder ready for the units of a store; those of another key are deleted, and stderr says why.

  Returns:
    Whether the store of this key is complete already.
  """
  root = epath.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  if (root / KEY).exists():
    changed = differing(read_key(root / KEY), key)
    if not changed:
      return (root / INDEX).exists()
    print(f"{root}: encoding again: other {', '.join(changed)}", file=sys.stderr)
  for path in [root / INDEX, *root.glob("unit-*")]:
    path.unlink(missing_ok=True)
  storage.write_text(root / KEY, json.dumps(key, indent=1, sort_keys=True))
  return False


def kept_key(folder: str | os.PathLike) -> dict[str, str] | None:
  """What a complete store was made from; None where there is none."""
  root = epath.Path(folder)
  return read_key(root / KEY) if (root / KEY).exists() and (root / INDEX).exists() else None


def missing_units(folder: str | os.PathLike, units: int) -> list[int]:
  """Which units are not written yet."""
  there = {path.name for path in epath.Path(folder).glob("unit-*.npz")}
  return [unit for unit in range(units) if _name(unit, "npz") not in there]


def write_unit(folder: str | os.PathLike, unit: int, clips: Iterable[LatentClip], dropped: Sequence[Dropped]) -> None:
  """Writes the clips of one unit, one by one; `dropped` is read when the last clip was given."""
  root = epath.Path(folder)
  rows: list[tuple[Any, ...]] = []
  ids: list[bytes] = []

  def values() -> Iterator[np.ndarray]:
    start = 0
    for clip in clips:
      latents = [clip.latent_thwC, *(latent for _, latent in clip.pieces)]
      kept = np.concatenate([latent.astype(ml_dtypes.bfloat16).reshape(-1) for latent in latents])
      ids.append(clip.id.encode())
      about = clip.latent_thwC.shape, clip.size_4, clip.frames, clip.component, clip.number, clip.loop
      rows.append((unit, start, *about, *_piece_columns(clip)))
      start += kept.size
      yield kept.view(VALUES)

  columns.write(root / _name(unit, "npy"), values(), VALUES)
  given = [*zip(*rows, strict=True)] or [()] * (len(COLUMNS) - 1)
  found = dict(zip(COLUMNS, [*given, np.cumsum([len(each) for each in ids], dtype=np.int64)], strict=True))
  arrays = {name: np.array(found[name], dtype).reshape(-1, *shape) for name, (dtype, shape) in COLUMNS.items()}
  bad = json.dumps([vars(each) for each in dropped]).encode()
  arrays |= {"ids": np.frombuffer(b"".join(ids), np.uint8), "dropped": np.frombuffer(bad, np.uint8)}
  columns.save_together(root / _name(unit, "npz"), **arrays)


def _piece_columns(clip: LatentClip) -> tuple[list[int], list[int]]:
  """Where the pieces of a clip begin, and their latent frames, each with zeros to PIECES."""
  found = [span for span, _ in clip.pieces]
  found += [Span(0, 0)] * (PIECES - len(found))
  return [span.start for span in found], [span.latent_frames for span in found]


def finish(folder: str | os.PathLike, units: int) -> LatentStore:
  """Makes the store complete: all of its units are there."""
  root = epath.Path(folder)
  key = json.loads((root / KEY).read_text())
  write_index(root, (columns.load_together(root / _name(unit, "npz")) for unit in range(units)), key)
  return LatentStore(root)


def write_index(folder: str | os.PathLike, units: Iterable[dict[str, np.ndarray]], key: dict[str, str]) -> None:
  """Joins the columns of all units.

  Args:
    units: by name the columns of each, its `ids` and what it `dropped`.
  """
  root = epath.Path(folder)
  (root / "index").mkdir(parents=True, exist_ok=True)
  joined: list[dict[str, np.ndarray]] = []
  dropped: list[dict[str, Any]] = []
  end, clips = 0, 0
  for unit in units:
    dropped += json.loads(bytes(unit.pop("dropped")))
    joined.append({**unit, "id_end": unit["id_end"] + end})
    end, clips = end + len(unit["ids"]), clips + len(unit["unit"])
  seen = hashlib.sha256()
  for name, (dtype, shape) in {**COLUMNS, "ids": (IDS, ())}.items():
    pieces = [each.pop(name) for each in joined]
    columns.write(_column(root, name), pieces, dtype, shape)
    for piece in pieces if name in CLIP else ():
      seen.update(np.ascontiguousarray(piece).data if piece.size else b"")
  content = {"format": LATENT_FORMAT, "clips": clips, "fingerprint": seen.hexdigest(), "key": key, "dropped": dropped}
  storage.write_text(root / INDEX, json.dumps(content))


def forget_bad(folder: str | os.PathLike) -> None:
  """Takes the units in which clips are missing out of a store, which is then not complete."""
  root = epath.Path(folder)
  (root / INDEX).unlink(missing_ok=True)
  for path in root.glob("unit-*.npz"):
    if json.loads(bytes(columns.load_together(path)["dropped"])):
      path.unlink()


def digest(texts: Iterable[str]) -> str:
  """sha256 (hex) of texts in their order."""
  return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _read_index(root: epath.Path) -> dict[str, Any]:
  again = f"delete {root}, and the latents are made again"
  try:
    index = json.loads(storage.read_bytes(root / INDEX))
  except FileNotFoundError as error:
    raise InputError(f"{root}: no latents, or not all of them: {INDEX} is missing; run the command again") from error
  except ValueError as error:
    raise InputError(f"{root / INDEX}: damaged: {again}") from error
  version = index.get("format") if isinstance(index, dict) else None
  if version != LATENT_FORMAT:
    made = "an older version" if version is None else f"format {version!r}, not {LATENT_FORMAT}"
    raise InputError(f"{root}: latents of {made}: {again}")
  wanted = {"clips": int, "fingerprint": str, "key": dict, "dropped": list}
  if not all(isinstance(index.get(name), kind) for name, kind in wanted.items()):
    raise InputError(f"{root / INDEX}: damaged: {again}")
  return index


def _column(root: epath.Path, name: str) -> epath.Path:
  return root / "index" / f"{name}.npy"


def _name(unit: int, kind: str) -> str:
  return f"unit-{unit:05d}.{kind}"
