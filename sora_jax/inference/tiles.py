"""How a clip is coded in bounded memory: some latent frames at a time, and large frames in tiles that overlap.

Plain geometry. Lengths and places are latent positions; a codec scales them to pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

CHUNK = 8  # most latent frames coded at a time
LEAST = 4  # halos in the side of the smallest tile, which keeps half of it: smaller ones would be all overlap


class Window(NamedTuple):
  """A stretch of one axis that is coded at once, and the part of it that is kept.

  Attributes:
    start, stop: what is coded.
    first, last: what is kept, start <= first < last <= stop.
  """

  start: int
  stop: int
  first: int
  last: int

  def coded(self, scale: int) -> slice:
    """Of the axis."""
    return slice(self.start * scale, self.stop * scale)

  def kept(self, scale: int) -> slice:
    """Of the axis."""
    return slice(self.first * scale, self.last * scale)

  def crop(self, scale: int) -> slice:
    """What is kept, of what is coded."""
    return slice((self.first - self.start) * scale, (self.last - self.start) * scale)


class Layout(NamedTuple):
  """The order in which a clip is coded.

  Attributes:
    chunk: latent frames at a time; the first time one more.
    rows, columns: the windows of each axis. A tile is one of each, and all tiles have one size.
  """

  chunk: int
  rows: tuple[Window, ...]
  columns: tuple[Window, ...]

  @property
  def tiles(self) -> list[tuple[Window, Window]]:
    return [(row, column) for row in self.rows for column in self.columns]

  @property
  def tile(self) -> tuple[int, int]:
    """Rows and columns of a tile."""
    (row, *_), (column, *_) = self.rows, self.columns
    return row.stop - row.start, column.stop - column.start

  def chunks(self, frames: int) -> list[tuple[int, int]]:
    """Where each chunk of so many latent frames begins and ends."""
    starts = [0, *range(1 + self.chunk, frames, self.chunk)]
    return list(zip(starts, [*starts[1:], frames], strict=True))


def layout(
  latent_thw: Sequence[int], compression: tuple[int, int, int], halo: tuple[int, int], most_pixels: int
) -> Layout:
  """The longest chunks that fit; where the shortest one does not, tiles that do.

  Time comes first because a clip in shorter chunks takes no more work, and one in smaller tiles does.

  Args:
    latent_thw: latent frames, rows and columns of the clip.
    compression: pixels of a latent position along (time, rows, columns).
    halo: see `AutoencoderConfig.halo`.
    most_pixels: coded at once, over all frames of a chunk. The smallest tile may have more, see LEAST.
  """
  t, h, w = latent_thw
  area = compression[1] * compression[2]
  frames = lambda chunk: 1 + min(chunk, t - 1) * compression[0]
  chunk = next((n for n in range(CHUNK, 1, -1) if frames(n) * h * w * area <= most_pixels), 1)
  tall, wide = tile_shape((h, w), halo, most_pixels // (frames(chunk) * area))
  return Layout(chunk, windows(h, tall, halo[0]), windows(w, wide, halo[1]))


def tile_shape(frame: tuple[int, int], halo: tuple[int, int], most: int) -> tuple[int, int]:
  """Rows and columns of the tiles, of at most `most` positions, in which a frame takes the least work."""
  (h, w), (high, wide) = frame, halo
  if h * w <= most:
    return frame
  tall_least, wide_least = min(h, LEAST * high), min(w, LEAST * wide)
  found = []
  for rows in range(1, count(h, tall_least, high) + 1):
    tall = max(_shortest(h, rows, high), tall_least)
    if most // tall >= wide_least:
      columns = count(w, min(most // tall, w), wide)
      across = max(_shortest(w, columns, wide), wide_least)
      found.append((rows * columns * tall * across, tall, across))
  return min(found)[1:] if found else (tall_least, wide_least)


def count(length: int, size: int, halo: int) -> int:
  """Windows of `size` that cover an axis."""
  return 1 if size >= length else math.ceil((length - 2 * halo) / (size - 2 * halo))


def _shortest(length: int, number: int, halo: int) -> int:
  """The size of `number` windows that cover an axis."""
  return math.ceil((length + 2 * halo * (number - 1)) / number)


def windows(length: int, size: int, halo: int) -> tuple[Window, ...]:
  """Windows of one size that cover an axis, the last shifted inward.

  All that is kept is at least `halo` from the ends of its window, unless they are those of the axis.
  """
  found, first = [], 0
  for number in range(count(length, size, halo)):
    start = min(number * (size - 2 * halo), length - size)
    stop = start + size
    last = length if stop == length else stop - halo
    found.append(Window(start, stop, first, last))
    first = last
  return tuple(found)
