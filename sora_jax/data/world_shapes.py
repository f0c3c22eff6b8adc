"""Which sizes, durations and rates a world's clips have: named ones, and ranges of them.

A world renders anything, so all three are ours to choose. Sizes and durations are few, as the autoencoder compiles a
program for each pair, and take turns; a rate costs nothing, and each clip draws its own.

Shape letters: N clips, 3 for (frames, height, width).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sora_jax.data.sizes import DRAWN, draw_sizes, is_range, parse_size, sizes_of
from sora_jax.errors import InputError
from sora_jax.patches import Grid

SHAPES = 64  # at most, of a range of sizes at a range of durations: 16 sizes at 4 durations, or 4 at 16
DIGITS = 3  # of a drawn rate

Shape = tuple[int, int, int]  # frames, height, width


@dataclasses.dataclass(frozen=True)
class WorldShapes:
  """The (frames, height, width) of a world's clips by number.

  Attributes:
    turns: an entry of `data.frames` each; in it its durations, and for each of them the shapes that have it. Entries
      have equal shares of the clips, in an entry durations have, and at a duration shapes have.
  """

  turns: tuple[tuple[tuple[Shape, ...], ...], ...]

  @classmethod
  def every(cls, sizes: Sequence[tuple[int, int]], frames: Sequence[int]) -> "WorldShapes":
    """Every (height, width) of `sizes` at every duration."""
    return cls(tuple((tuple((t, h, w) for h, w in sizes),) for t in frames))

  @classmethod
  def of(cls, section: Any, grid: Grid | None = None) -> "WorldShapes":
    """What a config's `data` section asks for.

    Where all durations are named, each size has every one of them, so that sizes drawn from a range are within the
    budget at the longest. With a range of durations sizes are drawn for each duration anew: long clips are small, and
    short ones may be large. Named sizes are left out at the durations of a range at which they are over the budget.

    Args:
      section: `sizes`, `frames`, `max_tokens`.
      grid: how clips become tokens; None where there is no budget, and a latent frame is a frame.

    Raises:
      InputError: no size or duration, or no size that is within the budget at some duration.
    """
    most = section.max_tokens if grid else 0
    fits = lambda t, h, w: not (grid and most) or grid.tokens(t, h, w) <= most
    frames = list(section.frames)
    if not any(isinstance(entry, str) for entry in frames):
      return cls.every(sizes_of(section.sizes, functools.partial(fits, max(frames, default=1))), frames)
    found: dict[int | str, tuple[tuple[Shape, ...], ...]] = {}
    first = 1
    for entry in frames:
      if entry not in found:
        durations = durations_of(entry, grid.compression[0] if grid else 1)
        count = min(DRAWN, SHAPES // len(durations))
        firsts = range(first, first + count * len(durations), count)
        at = lambda t, start, entry=entry, count=count: _shapes_at(section.sizes, t, entry, fits, (count, start))
        found[entry] = tuple(map(at, durations, firsts))
        first = firsts.stop
    return cls(tuple(found[entry] for entry in frames))

  def only(self, keep: Callable[[int], bool]) -> "WorldShapes":
    """Those of the durations that `keep` is true of; each entry once, the shortest first."""
    turns = {tuple(shapes for shapes in turn if keep(shapes[0][0])) for turn in self.turns}
    return WorldShapes(tuple(sorted(turns - {()}, key=lambda turn: (turn[0][0][0], turn))))

  def spread(self, count: int) -> "WorldShapes":
    """These with so few sizes of each duration that `count` clips have turns of every entry; sizes differ by entry."""
    most = max(1, count // len(self.turns))

    def few(shapes: tuple[Shape, ...], number: int) -> tuple[Shape, ...]:
      step = len(shapes) / min(most, len(shapes))
      first = step * number / len(self.turns)
      return tuple(shapes[int(first + step * k) % len(shapes)] for k in range(min(most, len(shapes))))

    return WorldShapes(tuple(tuple(few(shapes, n) for shapes in turn) for n, turn in enumerate(self.turns)))

  def shares(self) -> Iterator[tuple[Shape, float]]:
    """Each shape, and the share of the clips that have it; a shape of several entries comes several times."""
    for turn in self.turns:
      for shapes in turn:
        yield from ((shape, 1 / (len(self.turns) * len(turn) * len(shapes))) for shape in shapes)

  def distinct(self) -> list[Shape]:
    """All there are, each once, the shortest and smallest first."""
    return sorted({shape for shape, _ in self.shares()})

  @property
  def usable(self) -> bool:
    """Whether every clip has a shape, of a frame or more."""
    return bool(self.turns) and all(turn and all(turn) for turn in self.turns) and self.distinct()[0][0] > 0

  @functools.cached_property
  def _stretch(self) -> int:
    """Clips that one entry has before the next one's turn."""
    return min(sum(map(len, turn)) for turn in self.turns)

  def __getitem__(self, index: int) -> Shape:
    """Of clip `index`; there is one of every index from 0 on."""
    cycle, place = divmod(index, len(self.turns) * self._stretch)
    which, place = divmod(place, self._stretch)
    turn = self.turns[which]
    number, duration = divmod(cycle * self._stretch + place, len(turn))
    return turn[duration][number % len(turn[duration])]

  def columns(self, count: int) -> np.ndarray:
    """Of the first `count` clips: int32 (N, 3)."""
    stretch, entries = self._stretch, len(self.turns)
    cycles = -(-count // (stretch * entries))
    shapes = np.empty((cycles, entries, stretch, 3), np.int32)
    for which, turn in enumerate(self.turns):
      own_N3 = np.empty((cycles * stretch, 3), np.int32)
      for duration, known in enumerate(turn):
        place = own_N3[duration :: len(turn)]
        place[:] = np.resize(np.array(known, np.int32), place.shape)
      shapes[:, which] = own_N3.reshape(cycles, stretch, 3)
    return shapes.reshape(-1, 3)[:count]


def durations_of(entry: int | str, step: int) -> list[int]:
  """The durations in frames of an entry of `data.frames`: itself, or of a range at most DRAWN of them, evenly spread.

  From a range come the durations that fill latent frames of `step` frames whole: the first frame, and `step` more for
  each. The others would be padded to these: of a world, whose durations are free, they would cost as much, show less,
  and be a frozen end to the autoencoder. A range without one gives all that it has.

  Raises:
    InputError: no duration.
  """
  if not isinstance(entry, str):
    return [entry]
  found = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", entry)
  low, high = map(int, found.groups()) if found else (0, 0)
  if not 1 <= low <= high:
    raise InputError(f"data.frames: {entry!r} is no range of durations, the shorter one first, say '3..13'")
  whole = range(low + -(low - 1) % step, high + 1, step) or range(low, high + 1)
  places = np.linspace(0, len(whole) - 1, min(DRAWN, len(whole))).round().astype(int)
  return [whole[place] for place in places.tolist()]


def _shapes_at(
  names: Sequence[str], frames: int, entry: int | str, fits: Callable[..., bool], drawing: tuple[int, int]
) -> tuple[Shape, ...]:
  """The shapes of one duration; `drawing` is how many a range gives, and the first point of its sequence."""
  at = functools.partial(fits, frames)
  found: list[tuple[int, int]] = []
  for name in names:
    if is_range(name):
      found += draw_sizes(name, at, *drawing)
    elif not isinstance(entry, str) or at(*parse_size(name)):
      found.append(parse_size(name))
  if not found:
    raise InputError(f"data.frames: {entry!r}: no size of data.sizes is within data.max_tokens at {frames} frames")
  return tuple((frames, height, width) for height, width in found)


@dataclasses.dataclass(frozen=True)
class Rates:
  """Frames per second of a world's clips: numbers and ranges, each of which as many clips have.

  Attributes:
    ends: the lowest and highest rate of each; equal where it is a number.
  """

  ends: tuple[tuple[float, float], ...]

  @classmethod
  def of(cls, section: Any) -> "Rates":
    """Of a config's `data` section: `rates`, or `fps` where there are none.

    Raises:
      InputError: no rate above 0, or no range.
    """
    known = section.get("rates") or (section.fps,)  # configs of older runs have only `fps`
    return cls(tuple(map(_ends, known)))

  @property
  def usable(self) -> bool:
    """Whether a clip can have them."""
    return all(0 < end < math.inf for ends in self.ends for end in ends)

  @property
  def one(self) -> float | None:
    """The rate that all clips have; None where they differ."""
    values = {end for ends in self.ends for end in ends}
    return min(values) if len(values) == 1 else None

  def at(self, share_N: np.ndarray) -> np.ndarray:
    """The rates, float64, of clips that drew these shares from 0 to 1: evenly in the logarithm, of DIGITS digits."""
    entry_N, part_N = np.divmod(share_N * len(self.ends), 1.0)
    low_N, high_N = np.array(self.ends).T[:, entry_N.astype(np.int32)]
    rate_N = low_N * (high_N / low_N) ** part_N
    scale_N = 10.0 ** (DIGITS - 1 - np.floor(np.log10(rate_N)))
    return np.clip(np.round(rate_N * scale_N) / scale_N, low_N, high_N)


def _ends(entry: float | str) -> tuple[float, float]:
  if not isinstance(entry, str):
    return float(entry), float(entry)
  found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\.\.(\d{1,9}(?:\.\d+)?)", entry)
  low, high = map(float, found.groups()) if found else (0.0, 0.0)
  if not 0 < low <= high:
    raise InputError(f"data.rates: {entry!r} is no range of rates, the lower one first, say '5..20'")
  return low, high
