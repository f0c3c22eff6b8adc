"""Sizes, durations and rates of worlds: lists as they are, ranges evenly, every clip within the budget."""

import collections
import itertools

import hypothesis
import ml_collections
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.data.sizes import DRAWN, sizes_of
from sora_jax.data.world_shapes import SHAPES, Rates, WorldShapes, durations_of
from sora_jax.errors import InputError
from sora_jax.patches import Grid

GRID = Grid((2, 4, 4), (1, 1, 1))  # the demo's
DEMO = {"sizes": ("20..43x20..43",), "max_tokens": 264}


def section(**changes) -> ml_collections.ConfigDict:
  given = {"sizes": ("16x16",), "frames": (1,), "fps": 8.0, "rates": (), "max_tokens": 0}
  return ml_collections.ConfigDict(given | changes)


def first(shapes: WorldShapes, count: int) -> list:
  return [shapes[index] for index in range(count)]


class TestLists:
  """Named durations are what they were before there were ranges of them."""

  @pytest.mark.parametrize("sizes", [("16x16", "24x16"), ("24..64x24..64",), ("16x16", "20..43x24")])
  @pytest.mark.parametrize("frames", [(1,), (1, 5), (1,) * 9 + (3, 5, 7)])
  def test_every_size_has_every_duration_in_turn(self, sizes, frames):
    shapes = WorldShapes.of(section(sizes=sizes, frames=frames), GRID)
    turns = [(t, h, w) for t in frames for h, w in sizes_of(sizes)]
    assert first(shapes, 3 * len(turns)) == turns * 3

  def test_sizes_from_a_range_are_within_the_budget_at_the_longest(self):
    shapes = WorldShapes.of(section(frames=(1,) * 9 + (3, 5, 7), **DEMO), GRID)
    sizes = sizes_of(DEMO["sizes"], lambda height, width: GRID.tokens(7, height, width) <= 264)
    assert shapes == WorldShapes.every(sizes, (1,) * 9 + (3, 5, 7))

  def test_named_sizes_of_named_durations_may_be_over_the_budget(self):
    assert first(WorldShapes.of(section(frames=(9,), max_tokens=3), GRID), 1) == [(9, 16, 16)]


class TestDurations:
  def test_a_number_is_itself_though_a_latent_frame_is_not_full(self):
    assert durations_of(4, 2) == [4]

  @hypothesis.given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 16))
  def test_a_range_gives_whole_latent_frames_evenly(self, low, more, step):
    found = durations_of(f"{low}..{low + more}", step)
    whole = [t for t in range(low, low + more + 1) if (t - 1) % step == 0] or list(range(low, low + more + 1))
    assert set(found) <= set(whole) and found == sorted(set(found))
    assert (found[0], found[-1], len(found)) == (whole[0], whole[-1], min(len(whole), DRAWN))
    gaps = np.diff([whole.index(t) for t in found])
    assert len(found) < 2 or gaps.max() - gaps.min() <= 1

  @pytest.mark.parametrize("entry", ["0..3", "5..3", "3", "1...3", "1..", "a..b", "1.5..3", "-1..3", ""])
  def test_what_is_no_range_is_named(self, entry):
    with pytest.raises(InputError, match="say '3..13'") as caught:
      durations_of(entry, 1)
    assert repr(entry) in str(caught.value)


class TestRanges:
  @hypothesis.settings(deadline=None, max_examples=30)
  @hypothesis.given(
    st.integers(16, 40), st.integers(30, 80), st.integers(1, 9), st.integers(0, 30), st.integers(0, 9), st.data()
  )
  def test_every_clip_is_in_its_ranges_and_within_the_budget(self, low, more, shortest, longer, images, data):
    high, longest = low + more, shortest + longer
    least = GRID.tokens(durations_of(f"{shortest}..{longest}", 2)[-1], low + 8, low + 8)
    most = data.draw(st.integers(least, 4 * least))
    entries = (1,) * images + (f"{shortest}..{longest}",)
    given = section(sizes=(f"{low}..{high}x{low}..{high}",), frames=entries, max_tokens=most)
    shapes = WorldShapes.of(given, GRID)
    assert shapes == WorldShapes.of(given, GRID)
    for frames, height, width in shapes.distinct():
      assert low <= height <= high and low <= width <= high
      assert frames == 1 or shortest <= frames <= longest
      assert GRID.tokens(frames, height, width) <= most
    assert len(shapes.distinct()) <= SHAPES + DRAWN

  @hypothesis.settings(deadline=None, max_examples=20)
  @hypothesis.given(st.integers(32, 64), st.integers(3, 6), st.integers(1, 30), st.integers(2, 40))
  def test_areas_and_aspects_are_even_at_each_duration(self, low, times, shortest, longer):
    high = low * times
    frames = f"{shortest}..{shortest + longer}"
    shapes = WorldShapes.of(section(sizes=(f"{low}..{high}x{low}..{high}",), frames=(frames,)), GRID)
    everything = np.array(shapes.distinct(), float)
    for frames, own in itertools.groupby(shapes.distinct(), key=lambda shape: shape[0]):
      found = np.array(list(own), float)
      area = np.log(found[:, 1:].prod(1) / low**2) / np.log(times**2)
      assert len(found) >= SHAPES // DRAWN, frames
      assert abs((area < 0.5).mean() - 0.5) <= 1.5 / len(found) + 0.1
      assert 0 < (found[:, 1] > found[:, 2]).mean() < 1
    area = np.log(everything[:, 1:].prod(1) / low**2) / np.log(times**2)
    assert np.abs(np.histogram(area, 4, (0, 1))[0] / len(area) - 0.25).max() < 0.1
    assert abs((everything[:, 1] > everything[:, 2]).mean() - 0.5) < 0.15

  def test_long_clips_are_small_and_short_ones_may_be_large(self):
    shapes = WorldShapes.of(section(frames=(1, "3..13"), **DEMO), GRID).distinct()
    sizes = collections.defaultdict(list)
    for frames, height, width in shapes:
      sizes[frames].append(height * width)
    assert list(sizes) == [1, 3, 5, 7, 9, 11, 13]
    assert max(sizes[1]) > 1300 > 700 > max(sizes[13])
    # An area that fits at the longest is as likely there as an even spread makes it: no heap at the budget.
    known = np.log(np.array(sizes[7]) / 20**2) / np.log(max(sizes[7]) / 20**2)
    assert 0.25 < (known < 0.5).mean() < 0.75

  def test_entries_have_equal_shares_and_in_them_durations_and_sizes(self):
    shapes = WorldShapes.of(section(frames=(1,) * 4 + ("3..9", "11..13"), **DEMO), GRID)
    count = 6 * 5040
    frames = collections.Counter(shape[0] for shape in first(shapes, count))
    each = {1: 4 / 6, 3: 1 / 24, 5: 1 / 24, 7: 1 / 24, 9: 1 / 24, 11: 1 / 12, 13: 1 / 12}
    assert frames == {t: share * count for t, share in each.items()}
    known = collections.defaultdict(float)
    for shape, share in shapes.shares():
      known[shape] += share
    assert sum(known.values()) == pytest.approx(1)
    seen = collections.Counter(first(shapes, count))
    assert {shape: n / count for shape, n in seen.items()} == pytest.approx(known, rel=0.02)

  def test_the_first_clips_already_have_every_entry_and_duration(self):
    shapes = WorldShapes.of(section(frames=(1, "3..13"), **DEMO), GRID)
    assert {shape[0] for shape in first(shapes, 32)} == {1, 3, 5, 7, 9, 11, 13}

  def test_named_sizes_keep_the_durations_that_fit(self):
    shapes = WorldShapes.of(section(sizes=("16x16", "40x40"), frames=(1, "3..9"), max_tokens=250), GRID)
    assert [t for t, h, _ in shapes.distinct() if h == 16] == [1, 3, 5, 7, 9]
    assert [t for t, h, _ in shapes.distinct() if h == 40] == [1, 3]  # 100 tokens a latent frame

  def test_a_duration_at_which_nothing_fits_is_named(self):
    with pytest.raises(InputError, match=r"'3..99'.* within data.max_tokens at 2\d frames"):
      WorldShapes.of(section(frames=(1, "3..99"), **DEMO), GRID)


class TestColumns:
  @pytest.mark.parametrize("count", [1, 7, 100, 5000])
  @pytest.mark.parametrize("frames", [(1, 5), (1, 1, "3..13"), ("1..4", 7)])
  def test_they_are_the_shapes_of_each_clip(self, count, frames):
    shapes = WorldShapes.of(section(frames=frames, **DEMO), GRID)
    found = shapes.columns(count)
    assert found.dtype == np.int32 and list(map(tuple, found.tolist())) == first(shapes, count)

  def test_only_some_durations_each_entry_once(self):
    shapes = WorldShapes.of(section(sizes=("16x16", "24x16"), frames=(7, 1, 1, 3, 7, "1..5")), GRID)
    videos = shapes.only(lambda frames: frames > 1)
    assert [[known[0][0] for known in turn] for turn in videos.turns] == [[3], [3, 5], [7]]
    assert not shapes.only(lambda frames: frames > 9).usable


class TestRates:
  def test_none_is_the_one_of_files(self):
    assert Rates.of(section(fps=12.0)).one == 12.0
    assert Rates.of(ml_collections.ConfigDict({"fps": 9.0})).one == 9.0

  @hypothesis.given(st.floats(0.5, 100), st.floats(1, 20))
  def test_a_range_is_even_in_the_logarithm(self, low, times):
    low, high = round(low, 2), round(low * times, 2)
    rates = Rates.of(section(rates=(f"{low}..{high}",)))
    found = rates.at((np.arange(1000) + 0.5) / 1000)
    assert found.min() >= low and found.max() <= high and (np.diff(found) >= 0).all()
    wanted = low * (high / low) ** ((np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(found, wanted, rtol=0.006)
    inner = found[(found > low) & (found < high)]
    assert all(float(f"{rate:.3g}") == rate for rate in inner)

  def test_entries_have_equal_shares_and_numbers_all_their_digits(self):
    found = Rates.of(section(rates=(29.97, "5..20", 8))).at((np.arange(900) + 0.5) / 900)
    assert ((found == 29.97).sum(), (found == 8).sum()) == (300, 300)

  @pytest.mark.parametrize("entry", ["0..3", "5..3", "3", "1...3", "1..", "a..b", "-1..3", ""])
  def test_what_is_no_range_is_named(self, entry):
    with pytest.raises(InputError, match="say '5..20'") as caught:
      Rates.of(section(rates=(entry,)))
    assert repr(entry) in str(caught.value)


def test_a_few_clips_have_turns_of_every_entry_at_sizes_of_their_own():
  sizes = [(16 + number, 32) for number in range(16)]
  shapes = WorldShapes.every(sizes, (1, 1, 5, 9))
  assert {shapes[index][0] for index in range(8)} == {1}
  few = shapes.spread(8)
  assert sorted(few[index][0] for index in range(8)) == [1, 1, 1, 1, 5, 5, 9, 9]
  assert len({few[index][1:] for index in range(8)}) == 8 and set(few.distinct()) <= set(shapes.distinct())
  assert shapes.spread(64) == shapes and len(shapes.spread(1).distinct()) == 4
