"""Curves as SVG."""

import xml.etree.ElementTree as ElementTree

import hypothesis
import pytest
from hypothesis import strategies as st

from sora_jax.report.plot import HEIGHT, WIDTH, Line, plot, ticks

SVG = "{http://www.w3.org/2000/svg}"


def points_of(element) -> list[tuple[float, float]]:
  return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def test_every_curve_is_drawn_inside_with_its_name():
  lines = [Line("ours", [(0, 1.0), (1, 3.0)]), Line("chance <&>", [(0, 2.0), (1, 2.0)], [(1.5, 2.5), (1.5, 2.5)])]
  root = ElementTree.fromstring(plot("error & so on", "seconds", lines))
  curves = root.findall(f"{SVG}polyline")
  assert len(curves) == 2 and len(root.findall(f"{SVG}polygon")) == 1
  for x, y in points_of(curves[0]) + points_of(root.find(f"{SVG}polygon")):
    assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
  (x0, y0), (x1, y1) = points_of(curves[0])
  assert x0 < x1 and y0 > y1  # to the right and upwards
  texts = [text.text for text in root.iter(f"{SVG}text")]
  assert {"ours", "chance <&>", "error & so on", "seconds"} <= set(texts)


def test_no_two_curves_look_alike():
  lines = [Line(str(number), [(0, 1.0), (1, float(number))]) for number in range(12)]
  root = ElementTree.fromstring(plot("a", "b", lines))
  looks = {(curve.get("stroke"), curve.get("stroke-dasharray")) for curve in root.findall(f"{SVG}polyline")}
  legend = {(line.get("stroke"), line.get("stroke-dasharray")) for line in root.findall(f"{SVG}line")} & looks
  assert len(looks) == len(legend) == 12


def test_what_is_not_finite_is_left_out():
  root = ElementTree.fromstring(plot("a", "b", [Line("x", [(0, 1.0), (1, float("nan")), (2, 2.0)])]))
  assert len(points_of(root.find(f"{SVG}polyline"))) == 2
  with pytest.raises(ValueError, match="no finite point"):
    plot("a", "b", [Line("x", [(0, float("inf"))])])


def test_the_axis_begins_at_zero_where_it_should():
  lines = [Line("x", [(0, 5.0), (1, 6.0)])]
  assert ">0<" in plot("a", "b", lines, zero=True).split("</style>")[1]


@hypothesis.example(0.0, 5e-324)
@hypothesis.example(-1e-5, 25001.0)  # a billionth of a step beyond the first tick is on it
@hypothesis.given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_even_and_span_the_values(low, span):
  found = ticks(low, low + span)
  slack = 1e-6 * max(abs(low), abs(low + span), 1) + 1e-8 * span
  assert found[0] <= low + slack and found[-1] >= low + span - slack
  assert 2 <= len(found) <= 9


def test_values_below_zero_tiny_ones_and_bands_without_a_number_are_drawn():
  assert "<polyline" in plot("a", "b", [Line("x", [(0, -5.0), (1, -6.0)])], zero=True)
  assert "<polyline" in plot("a", "b", [Line("x", [(0, 1e-14), (1, 3e-14)])])
  drawn = plot("a", "b", [Line("x", [(0, 1.0), (1, 2.0)], [(float("nan"), 2.0), (1.0, 3.0)])])
  assert "nan" not in drawn


def test_words_stand_along_the_axis_where_they_are_given():
  root = ElementTree.fromstring(plot("a", "b", [Line("x", [(0, 1.0), (2, 2.0)])], names=("in", "<out>", "both")))
  texts = [text.text for text in root.iter(f"{SVG}text")]
  assert {"in", "<out>", "both"} <= set(texts)
  (first, last) = points_of(root.find(f"{SVG}polyline"))
  assert last[0] > first[0]
