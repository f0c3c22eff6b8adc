"""Sizes by name and from ranges: inside the range, evenly spread, within the budget, the same each time."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.data.sizes import DRAWN, parse_size, sizes_of
from sora_jax.errors import InputError


def test_width_comes_first_in_text_and_height_in_arrays():
  assert parse_size("320x192") == (192, 320)
  assert parse_size("1X8192") == (8192, 1)


def test_named_sizes_are_those():
  assert sizes_of(["43x24", "20X30"]) == [(24, 43), (30, 20)]


@pytest.mark.parametrize(
  "text", ["", "32", "x", "32x", "0x32", "32x0", "-1x5", "8193x5", "5x8193", "1.5x2", "3x4x5", "²x2"]
)
def test_what_is_no_size_is_named(text):
  with pytest.raises(InputError, match="WIDTHxHEIGHT") as caught:
    parse_size(text)
  assert repr(text) in str(caught.value)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.tuples(*[st.integers(1, 200)] * 4))
def test_drawn_sizes_are_inside_the_range_and_different(ends):
  (w0, w1), (h0, h1) = sorted(ends[:2]), sorted(ends[2:])
  found = sizes_of([f"{w0}..{w1}x{h0}..{h1}"])
  assert 1 <= len(found) <= DRAWN and len(set(found)) == len(found)
  assert all(h0 <= height <= h1 and w0 <= width <= w1 for height, width in found)
  assert found == sizes_of([f"{w0}..{w1}x{h0}..{h1}"])


def test_areas_and_aspects_are_evenly_spread():
  found = np.array(sizes_of(["24..96x24..96"]), float)
  assert len(found) == DRAWN
  area = np.log(found.prod(1) / 24**2) / np.log(16)  # 0 to 1
  assert all(2 <= count <= 6 for count in np.histogram(area, 4, (0, 1))[0])
  assert 5 <= (found[:, 0] > found[:, 1]).sum() <= 11


def test_a_budget_leaves_out_what_does_not_fit():
  found = sizes_of(["20..43x20..43"], lambda height, width: height * width <= 1056)
  assert len(found) == DRAWN and max(height * width for height, width in found) <= 1056
  with pytest.raises(InputError, match="no size of this range is within data.max_tokens"):
    sizes_of(["20..43x20..43"], lambda height, width: False)


@pytest.mark.parametrize(
  "name, said", [("43..20x20..43", "smaller to its larger"), ("1..2", "no range"), ("a..bx1", "WIDTHx")]
)
def test_a_range_that_is_none_is_named(name, said):
  with pytest.raises(InputError, match=said):
    sizes_of([name])


def test_one_side_may_be_fixed():
  assert {height for height, _ in sizes_of(["20..40x24"])} == {24}
