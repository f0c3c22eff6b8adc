"""The demo's page: clips, exam, curves and numbers in one HTML file that opens from disk without a network.

Not the technical report. This file lays out what it is given; it neither trains, samples nor marks. The page
runs no script, its content policy lets it load nothing, and all text is escaped: prompts are untrusted.
Style and frame are in `demo_page.html`.
"""

import html
import math
import os
import pathlib
import string
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np

from sora_jax.clips import Clip
from sora_jax.video import io as video_io

_TEMPLATE = pathlib.Path(__file__).with_name("demo_page.html")
_LONG_SIDE = 160  # of an enlarged clip, in CSS pixels
# Copies of a pixel each way before coding: animated WebP is lossy and halves the resolution of colours. A
# 32x32 clip with noise comes back at 35 dB with four, at 28 dB with one.
_COPIES = 4
_NOTHING = "–"  # shown where a value is missing or not finite

# The drawing of a curve, in the units of its viewBox.
_WIDTH, _HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 450, 32, 234


@dataclass(frozen=True)
class Shown:
  """One clip on the page.

  Attributes:
    prompt: what it was asked to show.
    clip: what came out.
    marks: 1.0 (right) or 0.0 (wrong) by attribute; may be empty.
    start: for an animated image, the image that the clip continues: (H, W, 3) floats in [-1, 1].
    note: said in the place of the size and duration of what is shown.
  """

  prompt: str
  clip: Clip
  marks: dict[str, float]
  start: np.ndarray | None = None
  note: str = ""


@dataclass(frozen=True)
class Section:
  """Clips, or facts as (name, value), under a heading. A blank line in the text begins a paragraph."""

  title: str
  text: str
  shown: Sequence[Shown] = ()
  facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class ExamRow:
  """Scores of one attribute, 0..1; NaN or None where it applied to no clip.

  Attributes:
    attribute: its name.
    model: mean and the ends of its 95 % interval.
    ceiling: what real renders score.
    autoencoder: what real renders score after the autoencoder, there and back.
    chance: what a guesser scores.
  """

  attribute: str
  model: tuple[float, float, float]
  ceiling: float
  autoencoder: float
  chance: float


class Page(TypedDict):
  """What `write_page` takes, all of it required; an empty part is left out of the page.

  Attributes:
    title, lead: the page's heading and first paragraphs.
    sections: clips, in order.
    exam: a row an attribute.
    curves: by heading, rows as `train.metrics.read_metrics` gives them. Where any row has "psnr_db" that is
      drawn, otherwise "loss" on a log axis. A value that is missing, not finite or has no logarithm is a gap.
    numbers: (label, value, target).
    facts: (name, value) of the machine and the run.
    commands: shell lines that make the page again.
  """

  title: str
  lead: str
  sections: Sequence[Section]
  exam: Sequence[ExamRow]
  curves: dict[str, list[dict[str, Any]]]
  numbers: Sequence[tuple[str, str, str]]
  facts: Sequence[tuple[str, str]]
  commands: Sequence[str]


def write_page(path: str | os.PathLike, **page: Unpack[Page]) -> None:
  """Writes the page, folders included; a killed run leaves the old file or none, never half a one.

  A clip that can't be encoded (NaN from a model that diverged) becomes a note in its place.

  Args:
    path: the .html file.
    **page: the keywords of `Page`.
  """
  path = pathlib.Path(path)
  text = string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
    title=_escape(page["title"]),
    lead=_paragraphs(page["lead"]),
    sections="\n".join(map(_section, page["sections"])),
    exam=_exam(page["exam"]),
    curves=_curves(page["curves"]),
    numbers=_numbers(page["numbers"]),
    facts=_part("Machine and run", _pairs(page["facts"])),
    commands=_commands(page["commands"]),
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


# Text.


def _escape(text: Any) -> str:
  """Safe between tags and inside quoted attributes; what UTF-8 can't hold becomes a question mark."""
  return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"))


def _paragraphs(text: str) -> str:
  return "\n".join(f"<p>{_escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _finite(value: Any) -> float | None:
  """The number, or None of anything that can't be drawn."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return number if abs(number) < 1e30 else None


def _percent(value: Any) -> str:
  number = _finite(value)
  return _NOTHING if number is None else f"{100 * number:.0f} %"


def _part(title: str, body: str, text: str = "") -> str:
  """A section of the page; nothing where the body is empty."""
  if not body:
    return ""
  return f"<section>\n<h2>{_escape(title)}</h2>\n{_paragraphs(text)}\n{body}\n</section>"


def _scrolled(title: str, kind: str, head: Sequence[str], rows: Iterable[str]) -> str:
  """A table that scrolls by itself where the screen is narrower; by keyboard too."""
  columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{_escape(title)}">\n'
    f'<table class="{kind}">\n<thead><tr>{columns}</tr></thead>\n<tbody>\n' + "\n".join(rows) + "\n</tbody>\n"
    "</table>\n</div>"
  )


# Clips.


def _section(section: Section) -> str:
  clips = "\n".join(map(_figure, section.shown)) or "<p>No clips.</p>"
  return _part(section.title, _pairs(section.facts) or f'<div class="clips">\n{clips}\n</div>', section.text)


def _figure(shown: Shown) -> str:
  clip, start = shown.clip, ""
  if shown.start is not None:
    start = _image(shown.start[None], clip.fps, f"Start image: {shown.prompt}")
    start += '<span class="arrow" aria-hidden="true">→</span>'
  frames, height, width = clip.frames_THWC.shape[:3]
  kind, length = ("Video", f", {clip.seconds:.1f} s") if frames > 1 else ("Image", "")
  return (
    f'<figure class="{"pair" if start else "single"}">\n'
    f'<div class="stage">{start}{_image(clip.frames_THWC, clip.fps, f"{kind}: {shown.prompt}")}</div>\n'
    f'<figcaption><p dir="auto">{_escape(shown.prompt)}</p>\n'
    f'<p class="size">{_escape(shown.note) or f"{width} × {height}{length}"}</p>\n{_marks(shown.marks)}</figcaption>\n'
    "</figure>"
  )


def _image(frames_THWC: np.ndarray, fps: float, alt: str) -> str:
  """The clip as an <img>, enlarged by a whole number; its first frame for readers who want no motion."""
  height, width = frames_THWC.shape[1:3]
  scale = max(1, _LONG_SIDE // max(height, width))
  copies = min(scale, _COPIES)
  try:
    still = address = video_io.encode_data_uri(frames_THWC[:1], fps)
    if len(frames_THWC) > 1:
      address = video_io.encode_data_uri(frames_THWC.repeat(copies, axis=1).repeat(copies, axis=2), fps)
  except ValueError as error:
    return f"<p>This clip can't be shown: {_escape(error)}.</p>"
  image = f'<img src="{address}" width="{width * scale}" height="{height * scale}" alt="{_escape(alt)}">'
  if address == still:
    return image
  return f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">{image}</picture>'


def _marks(marks: dict[str, float]) -> str:
  items = []
  for attribute, mark in marks.items():
    if (number := _finite(mark)) is not None:
      kind, sign = ("right", "✓") if number >= 0.5 else ("wrong", "✗")
      items.append(
        f'<li class="{kind}"><span aria-hidden="true">{sign}</span> {_escape(attribute)}'
        f'<span class="unseen"> {kind}</span></li>'
      )
  return f'<ul class="marks">{"".join(items)}</ul>\n' if items else ""


# Tables.


def _exam(exam: Sequence[ExamRow]) -> str:
  """The scores of every attribute, as numbers and as a bar."""
  title = "Does the clip show what the prompt says?"
  text = (
    "Every attribute is read back from the clip's pixels by measurement and compared with the prompt. The "
    "prompts combine words in ways that training never showed. The bar is the model, the line on it its 95 % "
    "interval, the upright mark chance."
  )
  head = ["Attribute", "Model, 95 % interval", "Ceiling: real renders"]
  head += ["Through the autoencoder", "Chance", "0 to 100 %"]
  rows = []
  for row in exam:
    mean, low, high = row.model
    interval = "" if None in map(_finite, (low, high)) else f" ({100 * low:.0f} to {100 * high:.0f})"
    others = map(_percent, (row.ceiling, row.autoencoder, row.chance))
    cells = [f"{_percent(mean)}{interval}", *others, _bar(row)]
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    rows.append(f'<tr><th scope="row">{_escape(row.attribute)}</th>{body}</tr>')
  return _part(title, _scrolled(title, "exam", head, rows) if rows else "", text)


def _bar(row: ExamRow) -> str:
  """The score as a bar; the numbers stand beside it, so it is hidden from screen readers."""
  mean, low, high, chance = (
    None if number is None else min(max(number, 0.0), 1.0) * 100 for number in map(_finite, (*row.model, row.chance))
  )
  parts = ['<rect class="track" width="100" height="16"/>']
  if mean is not None:
    parts.append(f'<rect class="bar" width="{mean:.1f}" height="16"/>')
  if low is not None and high is not None:
    parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8"/>')
  if chance is not None:
    parts.append(f'<line class="chance" x1="{chance:.1f}" x2="{chance:.1f}" y1="0" y2="16"/>')
  # Stretched to its cell; the strokes keep their width.
  shapes = "".join(parts).replace("<line ", '<line vector-effect="non-scaling-stroke" ')
  return f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">{shapes}</svg>'


def _numbers(numbers: Sequence[tuple[str, str, str]]) -> str:
  rows = []
  for row in numbers:
    label, value, target = map(_escape, row)
    rows.append(f'<tr><th scope="row">{label}</th><td>{value}</td><td class="quiet">{target}</td></tr>')
  head = ["Measure", "This run", "Target"]
  return _part("Numbers", _scrolled("Numbers", "numbers", head, rows) if rows else "")


def _pairs(facts: Sequence[tuple[str, str]]) -> str:
  items = "\n".join(f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts)
  return f"<dl>\n{items}\n</dl>" if items else ""


def _commands(commands: Sequence[str]) -> str:
  body = f"<pre><code>{_escape(chr(10).join(commands))}</code></pre>" if commands else ""
  return _part("Make it again", body)


# Curves.


@dataclass(frozen=True)
class _Axis:
  """A line from `low` to `high` that lies between two places of the drawing."""

  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def at(self, value: float) -> float:
    low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
    return self.start + (value - low) / (high - low) * (self.end - self.start)

  def ticks(self) -> list[float]:
    return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def _linear_ticks(low: float, high: float) -> list[float]:
  """About five round values inside."""
  raw = (high - low) / 5
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten, or 1-2-5 a decade where few powers fit; plain round values inside less than that."""
  exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for mantissas in ((1,), (1, 2, 5)):
    ticks = [m * 10.0**e for e in exponents for m in mantissas if low <= m * 10.0**e <= high]
    if len(ticks) >= 3:
      return ticks[:: math.ceil(len(ticks) / 7)]
  return _linear_ticks(low, high)


def _around(values: Sequence[float], log: bool) -> tuple[float, float]:
  """Ends of an axis that leave a little air around the values."""
  low, high = min(values), max(values)
  if log:
    air = max((high / low) ** 0.05, 1.05)
    return low / air, high * air
  air = max(0.05 * (high - low), 0.01 * abs(high), 1e-6)
  return low - air, high + air


def _curves(curves: dict[str, list[dict[str, Any]]]) -> str:
  figures = "\n".join(_curve(name, rows) for name, rows in curves.items())
  return _part("Training", f'<div class="curves">\n{figures}\n</div>' if figures else "")


def _curve(name: str, rows: list[dict[str, Any]]) -> str:
  """One curve with its heading and last value."""
  psnr = any(_finite(row.get("psnr_db")) is not None for row in rows)
  key, unit, label = ("psnr_db", " dB", "PSNR, dB") if psnr else ("loss", "", "loss, log scale")
  points = []
  for row in rows:
    value = _finite(row.get(key))
    drawn = value is not None and (psnr or value > 0)
    if (step := _finite(row.get("step"))) is not None:
      points.append((step, value if drawn else None))
  ends = [(step, value) for step, value in points if value is not None]
  heading = f"<h3>{_escape(name)}</h3>"
  if not ends:
    return f'<figure>{heading}<p class="quiet">No values were logged.</p></figure>'
  begun, now = (f"{value:.3g}{unit} at step {step:,.0f}" for step, value in (ends[0], ends[-1]))
  alt = f"{name}: {label}, from {begun} to {now}"
  return (
    f"<figure>{heading}\n"
    f'<span class="quiet">{now}</span>\n'
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_escape(alt)}">\n'
    f"{_drawing(points, ends, label, log=not psnr)}\n</svg></figure>"
  )


def _drawing(points: list[tuple[float, float | None]], ends: list[tuple[float, float]], label: str, log: bool) -> str:
  """Grid, ticks, labels and the line. A gap lifts the pen; a value between two gaps is a dot."""
  steps = [step for step, _ in ends]
  x = _Axis(min(0.0, *steps), max(1.0, *steps), _LEFT, _RIGHT)
  y = _Axis(*_around([value for _, value in ends], log), _BOTTOM, _TOP, log)
  parts = []
  for tick in y.ticks():
    at = y.at(tick)
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts.append(f'<text x="{_LEFT - 8}" y="{at + 5:.1f}" text-anchor="end">{tick:.4g}</text>')
  for tick in x.ticks():
    if tick == round(tick):
      at = x.at(tick)
      parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>')
      parts.append(f'<text x="{at:.1f}" y="{_BOTTOM + 21}" text-anchor="middle">{tick:,.0f}</text>')
  parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
  parts.append(f'<text x="{_LEFT}" y="16">{_escape(label)}</text>')
  parts.append(f'<text x="{_RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">step</text>')
  commands, pen = [], "M"
  for step, value in points:
    if value is None:
      pen = "M"
    else:
      commands.append(f"{pen}{x.at(step):.1f} {y.at(value):.1f}")
      pen = "L"
  line = " ".join(commands).replace(" M", " h0 M") + " h0"  # a step of no length, so that a lone value shows
  parts.append(f'<path class="curve" d="{line}"/>')
  parts.append(f'<circle class="last" cx="{x.at(ends[-1][0]):.1f}" cy="{y.at(ends[-1][1]):.1f}" r="4"/>')
  return "\n".join(parts)
