"""Curves as SVG that reads on light and on dark pages: one function for every figure of docs/report."""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 660, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 170, 28, 44  # room for numbers, names, the title and what is along the axis
COLOURS = ("#3b7dd8", "#d9822b", "#2f9e66", "#b04fb0", "#c9414b", "#7a7f87")  # of middle lightness
DASHES = ("", ' stroke-dasharray="6 4"', ' stroke-dasharray="2 3"')  # lines beyond the colours have them again, broken
STYLE = "text{font:12px sans-serif;fill:#7a7f87}.grid{stroke:#7a7f87;stroke-opacity:.25}.title{font-weight:bold}"


class Line(NamedTuple):
  """A curve: its name, points (x, y), and an interval (low, high) around each, where there is one."""

  name: str
  points: Sequence[tuple[float, float]]
  bands: Sequence[tuple[float, float]] = ()


def plot(title: str, across: str, lines: Sequence[Line], zero: bool = False, names: Sequence[str] = ()) -> str:
  """An SVG of the curves, with a legend.

  Args:
    across: what is along the horizontal axis, with its unit; the title says what goes upwards.
    zero: the vertical axis begins at 0.
    names: what stands along the horizontal axis instead of numbers, at 0, 1 and so on.

  Raises:
    ValueError: nothing finite to draw.
  """
  kept = [[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)] for line in lines]
  xs = [x for points in kept for x, _ in points]
  ys = [y for points in kept for _, y in points] + [y for line in lines for band in line.bands for y in band]
  if not xs:
    raise ValueError(f"{title}: no finite point to draw")
  ys = [y for y in ys if math.isfinite(y)] + ([0.0] if zero else [])
  x_ticks = [float(place) for place in range(len(names))] or ticks(min(xs), max(xs))
  y_ticks = ticks(min(ys), max(ys))
  place_x = _scale(x_ticks, LEFT, WIDTH - RIGHT)
  place_y = _scale(y_ticks, HEIGHT - BOTTOM, TOP)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
    f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
    f'<text class="title" x="{LEFT}" y="16">{html.escape(title)}</text>',
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(across)}</text>',
  ]
  for value in y_ticks:
    y = place_y(value)
    parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
  for value, name in zip(x_ticks, names or [f"{value:g}" for value in x_ticks], strict=True):
    word = html.escape(name)
    parts.append(f'<text x="{place_x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{word}</text>')
  for number, (line, points) in enumerate(zip(lines, kept, strict=True)):
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    if line.bands:
      bands = [(x, *band) for (x, _), band in zip(line.points, line.bands, strict=True)]
      bands = [band for band in bands if all(map(math.isfinite, band))]
      low, high = ([f"{place_x(band[0]):.1f},{place_y(band[end]):.1f}" for band in bands] for end in (1, 2))
      parts.append(f'<polygon fill="{colour}" fill-opacity=".2" points="{" ".join(low + high[::-1])}"/>')
    drawn = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
    parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{drawn}"/>')
    y = TOP + 8 + 20 * number
    ends = f'x1="{WIDTH - RIGHT + 10}" x2="{WIDTH - RIGHT + 26}" y1="{y - 3}" y2="{y - 3}"'
    parts.append(f'<line {ends} stroke="{colour}" stroke-width="3"{dash}/>')
    parts.append(f'<text x="{WIDTH - RIGHT + 32}" y="{y + 2}">{html.escape(line.name)}</text>')
  return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers from at or below `low` to at or above `high`, at most about `most`."""
  least = max(1e-9 * max(abs(low), abs(high)), 1e-100)  # closer values are one
  span = high - low if high - low > least else max(abs(high), 1.0)
  rough = span / (most - 1)
  unit = 10.0 ** math.floor(math.log10(rough))
  step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
  """Where a value is drawn, between the places of the first and the last."""
  return lambda value: start + (value - values[0]) / (values[-1] - values[0]) * (end - start)
