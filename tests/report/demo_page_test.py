"""The demo's page stands alone: whole HTML, escaped text, complete curves, and nothing to load."""

import html.parser
import math
import re

import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.report import demo_page
from sora_jax.report.demo_page import ExamRow, Section, Shown

HOSTILE = '"><script>alert(\'x\')</script><img src=x onerror="a()"> & $title \ud800 \u202e'
VOID = {"meta", "link", "img", "source", "br", "hr", "input"}
NAN = math.nan


class Reader(html.parser.HTMLParser):
  """Checks that tags balance; keeps every tag with its attributes, and the text."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.text = ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    assert len(dict(attributes)) == len(attributes), f"{tag} repeats an attribute"
    self.tags.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

  def handle_data(self, data):
    if self.open[-1:] != ["style"]:
      self.text += data

  def all(self, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in self.tags if name == tag]


def clip(frames: int = 5, height: int = 32, width: int = 32, fill: float | None = None) -> Clip:
  rng = np.random.default_rng(frames)
  values_THWC = rng.uniform(-1, 1, (frames, height, width, 3)).astype(np.float32)
  return Clip(values_THWC if fill is None else np.full_like(values_THWC, fill), 8.0, "", "a")


def page_of(tmp_path, **changes) -> str:
  """The HTML of a small page; the changes replace its parts."""
  parts = {
    "title": "A title",
    "lead": "First.\n\nSecond.",
    "sections": [Section("Clips", "Some.", [Shown("a red circle", clip(), {"colour": 1.0, "shape": 0.0})])],
    "exam": [ExamRow("colour", (0.913, 0.851, 0.962), 0.994, 0.973, 0.167)],
    "curves": {"Transformer": [{"step": k, "loss": 1 / k} for k in range(1, 8)]},
    "numbers": [("Seconds", "512", "at most 900")],
    "facts": [("Processor", "one")],
    "commands": ["sora demo --out out/demo"],
  }
  path = tmp_path / "new" / "index.html"
  demo_page.write_page(path, **(parts | changes))
  assert [file.name for file in path.parent.iterdir()] == ["index.html"]
  return path.read_text(encoding="utf-8")


def line_of(text: str) -> str:
  (line,) = re.findall(r'<path class="curve" d="([^"]*)"', text)
  return line


def places(line: str) -> list[tuple[float, float]]:
  return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) (\S+)", line)]


def test_the_page_is_whole_and_says_everything(tmp_path):
  text = page_of(tmp_path)
  page = Reader(text)
  assert text.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
  assert page.text.count("A title") == 2  # the title and the heading
  for words in ("First.", "Second.", "a red circle", "Transformer", "512", "at most 900", "Processor"):
    assert words in page.text
  assert "sora demo --out out/demo" in page.text
  assert "32 × 32, 0.6 s" in page.text


def test_every_text_is_escaped(tmp_path):
  hostile = HOSTILE
  page = page_of(
    tmp_path,
    title=hostile,
    lead=hostile,
    sections=[Section(hostile, hostile, [Shown(hostile, clip(), {hostile: 1.0}, np.zeros((32, 32, 3)))])],
    exam=[ExamRow(hostile, (1.0, 1.0, 1.0), 1.0, 1.0, 1.0)],
    curves={hostile: [{"step": 1, "loss": 1.0}]},
    numbers=[(hostile, hostile, hostile)],
    facts=[(hostile, hostile)],
    commands=[hostile],
  )
  read = Reader(page)
  assert not read.all("script")
  assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
  shown = HOSTILE.replace("\ud800", "?")
  assert read.text.count(shown) >= 13
  assert {image["alt"] for image in read.all("img")} == {f"Video: {shown}", f"Start image: {shown}"}


def test_the_page_loads_nothing(tmp_path):
  text = page_of(tmp_path)
  page = Reader(text)
  addresses = [v for _, a in page.tags for k, v in a.items() if k in ("src", "srcset", "href", "data", "action")]
  assert len(addresses) == 3  # the icon, the clip and its still
  assert all(address.startswith("data:") for address in addresses)
  assert not page.all("script") and "@import" not in text and "url(" not in text and "http" not in page.text
  (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
  assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_clip_is_enlarged_by_whole_pixels_with_a_still_for_less_motion(tmp_path):
  shown = [Shown("p", clip(5, height, width), {}) for height, width in ((32, 32), (24, 40), (40, 24), (300, 200))]
  page = Reader(page_of(tmp_path, sections=[Section("s", "", shown)]))
  sizes = [(image["width"], image["height"]) for image in page.all("img")]
  assert sizes == [("160", "160"), ("160", "96"), ("96", "160"), ("200", "300")]
  assert all(source["media"] == "(prefers-reduced-motion: reduce)" for source in page.all("source"))
  assert len(page.all("source")) == 4


def test_an_image_is_exact_and_stands_beside_the_clip_that_continues_it(tmp_path):
  start_HWC = clip(1).frames_THWC[0]
  shown = [Shown("p", clip(), {}, start_HWC), Shown("q", clip(1), {})]
  page = Reader(page_of(tmp_path, sections=[Section("s", "", shown)]))
  assert [image["alt"] for image in page.all("img")] == ["Start image: p", "Video: p", "Image: q"]
  assert page.all("img")[0]["src"] == page.all("img")[2]["src"]  # both lossless, of the same pixels
  assert [figure["class"] for figure in page.all("figure") if "class" in figure] == ["pair", "single"]


def test_a_note_stands_in_the_place_of_size_and_duration(tmp_path):
  shown = [Shown("p", clip(), {"colour": 1.0}, note=f"b.mp4 {HOSTILE}"), Shown("q", clip(), {})]
  page = Reader(page_of(tmp_path, sections=[Section("s", "", shown)]))
  assert page.text.count(f"b.mp4 {HOSTILE}".replace("\ud800", "?")) == 1 and not page.all("script")
  assert page.text.count("32 × 32, 0.6 s") == 1  # of the clip without a note
  assert "✓ colour right" in page.text


def test_a_section_of_facts_is_a_list_of_names_and_values(tmp_path):
  facts = [("Videos", "46"), (HOSTILE, HOSTILE)]
  page = Reader(page_of(tmp_path, sections=[Section("Held", "Said of it.", facts=facts)], facts=[]))
  assert len(page.all("dl")) == 1 and len(page.all("dt")) == len(page.all("dd")) == 2
  assert "Held" in page.text and "Said of it." in page.text and "Videos46" in page.text
  assert "No clips." not in page.text and "Machine and run" not in page.text and not page.all("script")
  assert "No clips." in page_of(tmp_path, sections=[Section("Held", "", [])])


def test_marks_say_right_and_wrong_in_words(tmp_path):
  marks = {"colour": 1.0, "shape": 0.0, "speed": NAN, "size": None}
  page = Reader(page_of(tmp_path, sections=[Section("s", "", [Shown("p", clip(), marks)])]))
  assert "✓ colour right✗ shape wrong" in page.text
  assert "speed" not in page.text and "size" not in page.text


def test_a_clip_that_is_not_finite_becomes_a_note(tmp_path):
  shown = [Shown("a lost clip", clip(fill=NAN), {}), Shown("a kept clip", clip(), {})]
  page = Reader(page_of(tmp_path, sections=[Section("s", "", shown)]))
  assert "This clip can't be shown: frames hold NaN or infinity." in page.text
  assert [image["alt"] for image in page.all("img")] == ["Video: a kept clip"] and "a lost clip" in page.text


def test_forty_clips_stay_below_five_megabytes(tmp_path):
  values_THWC = np.random.default_rng(0).normal(0, 0.1, (17, 32, 32, 3)).astype(np.float32)  # noise codes worst
  shown = [Shown("p", Clip(values_THWC, 8.0, "", "a"), {})] * 40
  assert len(page_of(tmp_path, sections=[Section("s", "", shown)])) < 5e6


def test_the_exam_prints_ceiling_and_chance(tmp_path):
  page = Reader(page_of(tmp_path))
  for cell in ("91 % (85 to 96)", "99 %", "97 %", "17 %"):
    assert cell in page.text
  nothing = Reader(page_of(tmp_path, exam=[ExamRow("speed", (NAN, NAN, NAN), None, 1.0, 0.5)]))
  assert "speed––100 %50 %" in nothing.text.replace("\n", "")


def test_a_curve_has_as_many_points_as_rows(tmp_path):
  line = line_of(page_of(tmp_path, curves={"t": [{"step": 50 * k, "loss": 2.0**-k} for k in range(1, 31)]}))
  assert len(places(line)) == 30 and line.count("M") == 1
  x, y = np.array(places(line)).T
  assert np.all(np.diff(x) > 0)
  np.testing.assert_allclose(np.diff(y), np.diff(y).mean(), atol=0.11)  # halving is a straight line: a log axis


def test_psnr_is_drawn_on_a_linear_axis(tmp_path):
  rows = [{"step": k, "loss": 1.0, "psnr_db": 10.0 + 2 * k} for k in range(1, 11)]
  text = page_of(tmp_path, curves={"Autoencoder": rows})
  x, y = np.array(places(line_of(text))).T
  np.testing.assert_allclose(np.diff(y), np.diff(y).mean(), atol=0.11)
  assert y[-1] < y[0] and "PSNR, dB" in text and "30 dB at step 10" in text


def test_gaps_lift_the_pen(tmp_path):
  values = [1.0, 0.5, None, NAN, 0.4, math.inf, 0.3, 0.2, 0.0, -1.0, "x", 1e300]
  rows = [{"step": k, "loss": value} for k, value in enumerate(values, 1)]
  line = line_of(page_of(tmp_path, curves={"t": [*rows, {"step": 99}, {"loss": 0.1}, {"step": NAN, "loss": 0.1}]}))
  assert len(places(line)) == 5 and line.count("M") == 3
  assert re.sub(r"[^MLh]", "", line) == "MLhMhMLh"  # h0 makes a lone value visible


@pytest.mark.parametrize("rows", [[], [{}], [{"step": 1}], [{"step": 1, "loss": NAN, "psnr_db": None}]])
def test_a_curve_without_values_says_so(tmp_path, rows):
  page = Reader(page_of(tmp_path, curves={"Transformer": rows}))
  assert "No values were logged." in page.text and "Transformer" in page.text


@pytest.mark.parametrize("losses", [[1.0], [0.25] * 9, [1e-12, 1e12], [0.5, 0.51], [3e-7], [0.31, 0.88]])
@pytest.mark.parametrize("key", ["loss", "psnr_db"])
def test_any_range_has_ticks_inside_the_drawing(tmp_path, losses, key):
  text = page_of(tmp_path, curves={"t": [{"step": k, key: value} for k, value in enumerate(losses)]})
  (drawing,) = re.findall(r'<svg[^>]*role="img".*?</svg>', text, re.DOTALL)
  assert "nan" not in drawing and "inf" not in drawing
  heights = [float(y) for y in re.findall(r'class="grid"[^>]*y1="([^"]*)"', drawing)]
  assert 2 <= len(heights) <= 8 and all(32 <= y <= 234 for y in heights)
  labels = re.findall(r'text-anchor="end">([^<]*)</text>', drawing)[:-1]
  assert len(set(labels)) == len(heights)
  assert all(0 <= x <= 480 and 0 <= y <= 280 for x, y in places(line_of(text)))


def test_empty_parts_are_left_out(tmp_path):
  text = page_of(tmp_path, lead="", sections=[], exam=[], curves={}, numbers=[], facts=[], commands=[])
  page = Reader(text)
  assert not page.all("section") and "A title" in page.text


def test_a_missing_part_writes_nothing(tmp_path):
  with pytest.raises(KeyError, match="lead"):
    demo_page.write_page(tmp_path / "index.html", title="only")
  assert not list(tmp_path.iterdir())
