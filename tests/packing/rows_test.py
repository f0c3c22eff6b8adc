"""Every clip is in one row, no row is over its budget, and rows are nearly as few as can be."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.packing.batch import RowShape
from sora_jax.packing.rows import LEVEL, best_fit, level, pack_rows

ROW = RowShape(tokens=40, text=20, segments=5)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.lists(st.tuples(st.integers(1, ROW.tokens), st.integers(1, ROW.text)), max_size=40))
def test_every_clip_is_in_one_row_and_rows_keep_their_budgets(clips):
  lengths, texts = [c[0] for c in clips], [c[1] for c in clips]
  rows = pack_rows(lengths, texts, ROW)
  assert sorted(clip for row in rows for clip in row) == list(range(len(clips)))
  for row in rows:
    assert 1 <= len(row) <= ROW.segments
    assert sum(lengths[clip] for clip in row) <= ROW.tokens
    assert sum(texts[clip] for clip in row) <= ROW.text


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.integers(1, 30))
def test_rows_are_within_the_bound_of_best_fit_decreasing(seed, best):
  """Clips cut from `best` full rows need `best` rows; best-fit decreasing needs at most 11/9 of that and 2/3."""
  rng = np.random.default_rng(seed)
  full = 100
  cuts = [np.sort(rng.choice(np.arange(1, full), rng.integers(1, 9), replace=False)) for _ in range(best)]
  lengths = np.concatenate([np.diff([0, *cut, full]) for cut in cuts])
  rng.shuffle(lengths)
  rows = pack_rows(lengths.tolist(), [1] * len(lengths), RowShape(full, 1000, 1000))
  assert best <= len(rows) <= int(11 / 9 * best + 2 / 3)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.lists(st.integers(1, ROW.tokens), max_size=60), st.integers(1, 20))
def test_a_short_look_ahead_loses_no_clip_and_none_waits_twice(lengths, look_ahead):
  rows = pack_rows(lengths, [1] * len(lengths), ROW, look_ahead)
  assert sorted(clip for row in rows for clip in row) == list(range(len(lengths)))
  for row in rows:
    windows = [clip // look_ahead for clip in row]
    assert max(windows) - min(windows) <= 1
    assert sum(lengths[clip] for clip in row) <= ROW.tokens


def test_a_longer_look_ahead_fills_rows_better():
  lengths = np.random.default_rng(0).integers(1, ROW.tokens, 4000).tolist()
  counts = [len(pack_rows(lengths, [1] * 4000, ROW, look_ahead)) for look_ahead in (8, 64, 4000)]
  assert counts[0] > counts[1] > counts[2] >= sum(lengths) / ROW.tokens


def test_a_row_that_is_not_full_waits_for_the_next_clips():
  assert pack_rows([30, 40, 10, 40], [1] * 4, ROW, look_ahead=2) == [[1], [3], [0, 2]]


def test_the_fullest_row_that_still_holds_a_clip_takes_it():
  assert pack_rows([7, 5, 3, 5], [1, 1, 1, 1], RowShape(10, 9, 9)) == [[0, 2], [1, 3]]


def test_a_full_caption_budget_sends_a_clip_to_another_row():
  assert pack_rows([4, 4], [6, 6], RowShape(10, 10, 9)) == [[0], [1]]


def mixed(seed: int) -> tuple[list[int], list[int]]:
  """Lengths of a few long clips among many short ones, and a caption token each."""
  rng = np.random.default_rng(seed)
  lengths = [*rng.integers(200, 950, 60).tolist(), *rng.integers(2, 20, 1500).tolist()]
  return lengths, [1] * len(lengths)


LONG = RowShape(tokens=1000, text=500, segments=500)


@pytest.mark.parametrize("seed", range(5))
def test_levelled_rows_are_full_and_each_has_its_part_of_the_short_clips(seed):
  lengths, texts = mixed(seed)
  rows = level(range(len(lengths)), lengths, texts, LONG)
  assert sorted(clip for row in rows for clip in row) == list(range(len(lengths)))
  assert len(rows) == math.ceil(sum(lengths) / LONG.tokens / LEVEL)
  assert max(sum(lengths[clip] for clip in row) for row in rows) <= LONG.tokens
  assert all(any(lengths[clip] < 20 for clip in row) for row in rows)
  fullest = best_fit(range(len(lengths)), lengths, texts, LONG)
  assert not all(any(lengths[clip] < 20 for clip in row) for row in fullest)
  assert pack_rows(lengths, texts, LONG) == rows


def test_rows_that_can_t_be_levelled_are_as_full_as_can_be():
  lengths = [700] * 20  # two of them never share a row
  assert level(range(20), lengths, [1] * 20, LONG) is None
  assert len(pack_rows(lengths, [1] * 20, LONG)) == 20


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.integers(1, 400), st.integers(3, 60))
def test_levelled_rows_keep_every_budget(seed, text, segments):
  rng, (lengths, _) = np.random.default_rng(seed), mixed(0)
  texts, row = rng.integers(1, 40, len(lengths)).tolist(), RowShape(1000, max(text, 40), segments)
  rows = level(range(len(lengths)), lengths, texts, row)
  for clips in rows or []:
    assert sum(lengths[clip] for clip in clips) <= row.tokens and len(clips) <= row.segments
    assert sum(texts[clip] for clip in clips) <= row.text
  if rows:
    assert sorted(clip for clips in rows for clip in clips) == list(range(len(lengths)))


def test_nothing_to_pack_needs_no_row():
  assert pack_rows([], [], ROW) == []


@pytest.mark.parametrize(
  ("lengths", "texts", "message"),
  [
    (
      [3, 65, 41, 128, 64],
      [1] * 5,
      r"clip 3 has 128 tokens, a row holds 40; of 5, 4 fit no row \(2 of up to 64, 2 of up to 128\): raise train.row",
    ),
    ([3, 4, 2], [1, 1, 21], r"caption 2 has 21 tokens, a row holds 20; .* \(1 of up to 32\): raise train.row_text"),
  ],
)
def test_what_fits_no_row_is_named(lengths, texts, message):
  """F29."""
  with pytest.raises(ValueError, match=message):
    pack_rows(lengths, texts, ROW)
