"""Timestamps and the times that they stand for: rounding is undone where a constant rate explains it, nowhere else."""

import fractions
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.video import timestamps
from sora_jax.video.timestamps import Clock, find_clock, last_duration, timed, walk

NTSC = 30000 / 1001


def rounded(rate: float, tick: float, count: int = 90, offset: float = 0.0) -> list[int]:
  return [math.floor((offset + k / rate) / tick + 0.5) for k in range(count)]


@pytest.mark.parametrize("rate", [24000 / 1001, 24.0, 25.0, NTSC, 30.0, 50.0, 60000 / 1001, 60.0, 120.0])
@pytest.mark.parametrize(
  ("tick", "claimed"), [(0.001, True), (0.001, False), (1 / 600, True), (1 / 90_000, True), (1 / 90_000, False)]
)
def test_a_constant_rate_is_seen_through_its_rounding(rate, claimed, tick):
  marks = rounded(rate, tick)
  clock = find_clock(marks[: timestamps.HEAD], tick, [rate] if claimed else [])
  wanted = np.arange(90) / rate
  np.testing.assert_allclose([clock(mark) for mark in marks], wanted, atol=2e-6)
  assert clock.tolerance < 1e-5


@settings(max_examples=200, deadline=None)
@given(rate=st.sampled_from(timestamps.COMMON), offset=st.floats(0, 100), count=st.integers(8, 90))
def test_where_the_first_stamp_was_rounded_too(rate, offset, count):
  marks = rounded(rate, 0.001, count, offset)
  clock = find_clock(marks, 0.001, [rate])
  np.testing.assert_allclose([clock(mark) for mark in marks], np.arange(count) / rate, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(12, 64), rate=st.sampled_from([24.0, 30.0, 60.0, 17.3]))
def test_stamps_at_random_are_what_they_say(seed, count, rate):
  steps = np.random.default_rng(seed).integers(17, 300, count - 1)
  marks = [0, *np.cumsum(steps).tolist()]
  clock = find_clock(marks, 0.001, [rate])
  assert [clock(mark) for mark in marks] == [pytest.approx(mark / 1000) for mark in marks]
  assert clock.tolerance < 1e-5


def test_a_wrong_claim_yields_to_a_common_rate_and_that_to_the_timestamps():
  marks = rounded(30.0, 0.001)
  assert find_clock(marks, 0.001, [25.0, 29.97, 1e9, 0.0]).period == pytest.approx(1 / 30)
  odd = rounded(7.3, 0.001)
  clock = find_clock(odd, 0.001, [25.0])
  assert not clock.period and clock.tolerance == pytest.approx(0.0005, abs=1e-5)  # rounded, of no rate that is known
  assert find_clock(odd, 0.001, [7.3]).period == pytest.approx(1 / 7.3)


def test_a_pause_takes_nothing_from_the_rest():
  marks = [*rounded(30.0, 0.001, 60), 5_017, 5_051]
  clock = find_clock(marks[:60], 0.001, [30.0])
  assert clock(marks[59]) == pytest.approx(59 / 30, abs=1e-9) and clock(5_051) == pytest.approx(5.051)


def test_a_tick_of_a_whole_frame_rounds_nothing():
  clock = find_clock([0, 1, 2, 4, 5, 7], 1 / 30, [17.3])
  assert clock == Clock(1 / 30)
  assert clock(7) == pytest.approx(7 / 30)


def test_sums_of_rounded_durations():
  """A program stream states a time now and then; between, each frame adds 3,753 or 3,754 ticks to the one before."""
  marks = [round(k // 14 * 14 * 3753.75) + k % 14 * 3753 for k in range(64)]
  clock = find_clock(marks, 1 / 90_000, [24000 / 1001], coarse=0.001)
  assert [clock(mark) * 24000 / 1001 for mark in marks] == pytest.approx(range(64))


def test_one_stamp_or_none_is_a_clock_too():
  assert find_clock([], 0.001)(5) == pytest.approx(0.005)
  assert find_clock([40], 0.001, [30.0])(73) == pytest.approx(0.033)
  assert find_clock([40, 40], 0.001, [30.0])(40) == 0.0


def test_the_earliest_stamp_is_time_zero_in_any_order():
  marks = [1000, 1100, 1033, 1067, 1200, 1133, 1167]
  clock = find_clock(marks, 0.001, [30.0])
  assert sorted(round(30 * clock(mark), 6) for mark in marks) == list(range(7))


@pytest.mark.parametrize(
  ("claimed", "claims", "lasts"),
  [
    (0.0, {0.0}, 0.1),  # nothing is claimed
    (0.12, {0.1, 0.12}, 0.12),
    (5.0, {0.1, 5.0}, 5.0),  # held on purpose
    (0.3, {0.3}, 0.3),
    (5.0, {5.0}, 0.1),  # a header's mistake
  ],
)
def test_how_long_the_last_frame_is_shown(claimed, claims, lasts):
  assert last_duration(claimed, claims, 0.1) == lasts


class Item:
  """A packet or frame."""

  def __init__(self, pts: int | None, duration: int | None = None):
    self.pts, self.duration = pts, duration


class Stream:
  time_base, average_rate, guessed_rate = fractions.Fraction(1, 1000), fractions.Fraction(10), None
  base_rate = None

  class codec_context:  # noqa: N801
    name = "h264"

  class container:  # noqa: N801
    class format:  # noqa: N801
      name = "mov"


def times(marks: list[int | None]) -> list[float]:
  clock = find_clock([mark for mark in marks if mark is not None], 0.001)
  return [time for time, _, _ in timed(iter(map(Item, marks)), Stream, clock, marks[0])]


def test_frames_without_stamps_follow_the_rate_and_none_goes_back():
  assert times([None] * 4) == pytest.approx([0, 0.1, 0.2, 0.3])
  assert times([500, None, 800, None, 700]) == pytest.approx([0, 0.1, 0.3, 0.4, 0.4])


def test_frames_before_the_first_stamp_take_their_time():
  assert times([None, None, 500, 600]) == pytest.approx([0, 0.1, 0.2, 0.3])
  items = [Item(None), Item(None), Item(500, 100), Item(600, 100)]
  assert walk(iter(items), Stream, None) == (pytest.approx(0.4), pytest.approx(10), 4)


def test_a_walk_counts_from_the_first_picture_on():
  items = [Item(mark, 100) for mark in (300, 100, 200, 400, 500)]
  assert walk(iter(items), Stream, 100) == (pytest.approx(0.5), pytest.approx(10), 5)
  assert walk(iter(items), Stream, 200) == (pytest.approx(0.4), pytest.approx(10), 4)
  assert walk(iter([]), Stream, None) == (0.1, 10.0, 1)
  assert walk(iter([Item(None)] * 3), Stream, None) == (pytest.approx(0.3), 10.0, 3)
  assert walk(iter([Item(7, 40)]), Stream, 7) == (pytest.approx(0.04), 10.0, 1)


def test_a_walk_that_is_too_long_is_given_up(monkeypatch):
  monkeypatch.setattr(timestamps, "MAX_WALK_PACKETS", 3)
  assert walk(iter([Item(k) for k in range(4)]), Stream, 0) is None
