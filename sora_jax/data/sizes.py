"""The sizes of a world's clips: named ones, WIDTHxHEIGHT, or sizes drawn from a range, say 24..64x24..64."""

import math
from collections.abc import Callable, Sequence

from sora_jax.errors import InputError

DRAWN = 16  # sizes that stand for a range: each is a shape that the autoencoder compiles for
TRIES = 10_000
# Steps of a two-dimensional sequence that covers the square evenly from its first points on: 1/g and 1/g^2 for the
# real root g of g^3 = g + 1 (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
STEPS = (0.7548776662466927, 0.5698402909980532)


def parse_size(text: str) -> tuple[int, int]:
  """ "WxH" -> (height, width).

  Raises:
    InputError: not two whole numbers from 1 to 8192.
  """
  parts = text.lower().split("x")
  if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 8192 for part in parts):
    raise InputError(f"size {text!r} is not WIDTHxHEIGHT, say 1920x1080, with sides from 1 to 8192")
  return int(parts[1]), int(parts[0])


def sizes_of(
  names: Sequence[str], fits: Callable[[int, int], bool] = lambda height, width: True
) -> list[tuple[int, int]]:
  """The (height, width) of each name; a range gives DRAWN of them.

  Args:
    names: WIDTHxHEIGHT, or LOW..HIGHxLOW..HIGH.
    fits: whether a drawn (height, width) may be used, say within a budget of tokens.

  Raises:
    InputError: no size, or a range in which none fits.
  """
  found: list[tuple[int, int]] = []
  for name in names:
    if not is_range(name):
      found.append(parse_size(name))
    elif drawn := draw_sizes(name, fits):
      found += drawn
    else:
      raise InputError(f"size {name!r}: no size of this range is within data.max_tokens")
  return found


def is_range(name: str) -> bool:
  return ".." in name


def ends_of(name: str) -> tuple[tuple[int, int], tuple[int, int]]:
  """The least and the greatest (height, width) of a name; equal where it is no range.

  Raises:
    InputError: no size, or a range that does not go upwards.
  """
  sides = [side.partition("..")[::2] if ".." in side else (side, side) for side in name.lower().split("x")]
  if len(sides) != 2:
    raise InputError(f"size {name!r} is no range of sizes, say 24..64x24..64")
  (high0, wide0), (high1, wide1) = (parse_size(f"{sides[0][end]}x{sides[1][end]}") for end in (0, 1))
  if high0 > high1 or wide0 > wide1:
    raise InputError(f"size {name!r}: a range goes from its smaller to its larger end")
  return (high0, wide0), (high1, wide1)


def draw_sizes(
  name: str, fits: Callable[[int, int], bool], count: int = DRAWN, first: int = 1
) -> list[tuple[int, int]]:
  """`count` (height, width) of a range, fewer where fewer fit, with areas and aspect ratios evenly spread.

  Args:
    first: the point of the sequence, from 1, with which drawing begins: others give other sizes, spread as evenly.

  Raises:
    InputError: no range of sizes.
  """
  (high0, wide0), (high1, wide1) = ends_of(name)
  found: list[tuple[int, int]] = []
  for number in range(first, first - 1 + TRIES):
    along, across = (number * step % 1.0 for step in STEPS)
    area = _between(along, high0 * wide0, high1 * wide1)
    aspect = _between(across, max(wide0**2 / area, area / high1**2), min(wide1**2 / area, area / high0**2))
    size = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if size not in found and fits(*size):
      found.append(size)
      if len(found) == count:
        break
  return found


def _between(share: float, low: float, high: float) -> float:
  """`share` of the way from low to high on a scale of ratios."""
  return low * (high / low) ** share
