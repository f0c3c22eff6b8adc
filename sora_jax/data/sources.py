"""Where clips come from: one interface over folders, records, data sets of TFDS, worlds, and mixtures of them.

A source knows the shape, rate and captions of every clip without decoding it, so rows can be packed before a frame is
read. Clips have their native size and duration; a budget in the config is the only thing that shrinks one.
"""

import bisect
import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sora_jax.clips import Clip, to_uint8
from sora_jax.data import framings, records, world_source
from sora_jax.data.files import MISSING, Dropped, FileSource, View
from sora_jax.data.folder import FolderSource
from sora_jax.data.gym_source import GymSource
from sora_jax.data.records import RecordSource
from sora_jax.data.tfds_source import TfdsSource
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.patches import Grid
from sora_jax.video import io as video_io
from sora_jax.video import isolated


class Source(Protocol):
  """Clips by number.

  Attributes:
    media_fingerprint: changes when what a clip shows does.
    captions_fingerprint: changes when a caption does.
    fingerprint: changes with either.
    dropped: what it holds and can't give.
  """

  media_fingerprint: str
  captions_fingerprint: str
  fingerprint: str
  dropped: Sequence[Dropped]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Clip: ...

  def shape(self, index: int) -> tuple[int, int, int]:
    """Frames, height and width of a clip, without decoding it."""

  def fps(self, index: int) -> float:
    """Frames per second of a clip."""

  def captions(self, index: int) -> dict[str, str]:
    """The clip's captions: "short" and "long"."""

  def where(self, index: int) -> tuple[str, int]:
    """The clip's file or name, and its line in the list of clips, from 1; 0 where there is no list."""


class Mixture:
  """Several sources as one, a component each: their clips one source after another."""

  def __init__(self, sources: Sequence[Source]):
    self.sources = sources
    self.ends = list(itertools.accumulate(len(source) for source in sources))
    self.dropped: Sequence[Dropped] = [each for source in sources for each in source.dropped]
    joined = lambda prints: hashlib.sha256(" ".join(prints).encode()).hexdigest()
    self.media_fingerprint = joined(source.media_fingerprint for source in sources)
    self.captions_fingerprint = joined(source.captions_fingerprint for source in sources)
    self.fingerprint = joined(source.fingerprint for source in sources)

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, index: int) -> Clip:
    source, place = self.find(index)
    return source[place]

  def shape(self, index: int) -> tuple[int, int, int]:
    source, place = self.find(index)
    return source.shape(place)

  def fps(self, index: int) -> float:
    source, place = self.find(index)
    return source.fps(place)

  def captions(self, index: int) -> dict[str, str]:
    source, place = self.find(index)
    return source.captions(place)

  def where(self, index: int) -> tuple[str, int]:
    source, place = self.find(index)
    return source.where(place)

  def component(self, index: int) -> int:
    """Which of the sources clip `index` is of."""
    return bisect.bisect_right(self.ends, index)

  def find(self, index: int) -> tuple[Source, int]:
    """The source of clip `index`, and its number there."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    component = self.component(index)
    return self.sources[component], index - self.ends[component] + len(self.sources[component])


def component_of(source: Source, index: int) -> int:
  """Which component of a mixture clip `index` is of; 0 where the source is none."""
  return source.component(index) if isinstance(source, Mixture) else 0


class Shapes(NamedTuple):
  """What is known of all clips of a source without decoding one, in columns."""

  shape_N3: np.ndarray  # int32: frames, height, width
  fps_N: np.ndarray  # float64
  component_N: np.ndarray  # int32: of a mixture


def shapes_of(source: Source) -> Shapes:
  """The shapes and rates of all clips."""
  if isinstance(source, Mixture):
    found = [shapes_of(each) for each in source.sources]
    component_N = np.repeat(np.arange(len(found), dtype=np.int32), [len(each) for each in source.sources])
    return Shapes(np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found]), component_N)
  count = len(source)
  component_N = np.zeros(count, np.int32)
  if isinstance(source, WorldSource):
    return Shapes(source.shapes.columns(count), source.fps_column(), component_N)
  shape_N3 = np.fromiter(map(source.shape, range(count)), np.dtype((np.int32, 3)), count)
  return Shapes(shape_N3, np.fromiter(map(source.fps, range(count)), np.float64, count), component_N)


def small_size(source: Source, index: int, side: int) -> tuple[int, int]:
  """(height, width) of clip `index` with at most `side` pixels on the longer side."""
  _, height, width = source.shape(index)
  scale = min(side / max(height, width), 1.0)
  return max(round(height * scale), 1), max(round(width * scale), 1)


def small_frames(source: Source, index: int, side: int, max_frames: int) -> np.ndarray:
  """Clip `index` to look at: uint8 (T, H, W, 3), at most `side` pixels on the longer side and max_frames frames.

  Raises:
    UnreadableFile: it doesn't decode, or lacks more than two of the frames it promised.
  """
  if isinstance(source, Mixture):
    source, index = source.find(index)
  promised, size = min(source.shape(index)[0], max_frames), small_size(source, index, side)
  if not isinstance(source, FileSource):
    return np.stack([video_io.resize(frame, size) for frame in to_uint8(source[index].frames_THWC[:promised])])
  try:
    with source.open_file(index) as path:
      frames_THWC = isolated.shared().read(path, fps=source.fps(index), max_frames=promised, size=size)
  except OSError as error:
    raise video_io.UnreadableFile(error.strerror or type(error).__name__) from error
  if len(frames_THWC) < promised - MISSING:
    raise video_io.UnreadableFile(f"gives {len(frames_THWC)} frames where {promised} were promised")
  return frames_THWC


def names_of(section: Any) -> list[str]:
  """The sources that a config's `data` section names, in their order: see `open_source`."""
  return [name.strip() for name in section.source.split(",")]


def open_source(section: Any, seed: int, grid: Grid | None = None, held_out: bool = False) -> Source:
  """What a config's `data` section names: one source, or several with commas between them.

  A source is `worlds:NAME`, `gym:NAME`, `tfds:NAME@SPLIT` (see `TfdsSource`), or a folder, local or gs://, of files
  with captions or of records.

  Args:
    section: `source`, `weights`, `clips`, `sizes`, `frames`, `rates`, `fps`, `max_frames`, `max_tokens`.
    seed: of the world's states.
    grid: how clips become tokens, of which `max_tokens` is the budget; None keeps every size.
    held_out: for a world, the combinations that are kept from training.

  Raises:
    ValueError: unknown world, no folder, nothing usable in it (with the reasons counted), or weights that don't fit.
  """
  names = names_of(section)
  if not all(names):
    raise InputError(f"config.data.source={section.source!r}: a source without a name")
  weights = tuple(section.weights)
  if weights and (len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights)):
    raise InputError(f"config.data.weights={weights}: one above 0 for each of the {len(names)} sources, or none at all")
  fit = functools.partial(grid.fit, most=section.max_tokens) if grid and section.max_tokens else None
  view = View(section.fps, section.max_frames, fit)
  opened: list[Source] = []
  for name in names:
    if name.startswith("worlds:"):
      shapes = WorldShapes.of(section, grid)
      opened.append(WorldSource.of(section, name.removeprefix("worlds:"), shapes, seed, held_out))
    elif name.startswith("gym:"):
      opened.append(GymSource(name.removeprefix("gym:"), section.clips, section.frames, view, seed))
    else:
      opened.append(_open(name, view))
  if (framing := section.get("framing", framings.NATIVE)) != framings.NATIVE:  # configs of older runs have none
    opened = [framings.Framed(source, framing) for source in opened]
  return opened[0] if len(opened) == 1 else Mixture(opened)


def seed_of(config: Any) -> int:
  """What a run's clips and their order are drawn with: `data.seed`, or `seed` where that is unset."""
  return config.seed if config.data.get("seed") is None else config.data.seed


def open_native(name: str) -> Source:
  """One source with every clip at its own size, rate and length."""
  kind, _, rest = name.partition(":")
  if kind == "worlds":
    return WorldSource(rest, world_source.CLIPS, world_source.SIZES, world_source.FRAMES, world_source.FPS, seed=0)
  if kind == "gym":
    return GymSource(rest, world_source.CLIPS, world_source.FRAMES, View(), seed=0)
  return _open(name, View())


def _open(name: str, view: View) -> Source:
  kind, _, rest = name.partition(":")
  if kind == "tfds":
    return TfdsSource(rest, view)
  try:
    opened = RecordSource if records.is_records(name) else FolderSource
  except KeyError as error:
    raise InputError(f"{name}: not a kind of address that is known: gs://, s3://, az:// and hf:// are") from error
  except ImportError as error:  # the client of a kind of bucket
    raise InputError(f"{name}: {str(error).partition(chr(10))[0]}") from error
  return opened(name, **view._asdict())
