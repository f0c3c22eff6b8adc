"""Every clip is in one row, no row is over its budget, and rows are nearly as few as can be."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.packing import rows as rows_module
from sora_jax.packing.batch import RowShape
from sora_jax.packing.rows import LEVEL, Rows, best_fit, kinds, level, pack_rows, text_bounds

ROW = RowShape(tokens=40, text=20, segments=5)


def listed(rows: Rows) -> list[list[int]]:
  return [row.tolist() for row in rows]


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


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
  st.lists(st.tuples(st.integers(1, ROW.tokens), st.integers(1, ROW.text)), max_size=60), st.integers(1, 20)
)
def test_a_pattern_of_few_clips_loses_no_clip_and_keeps_every_budget(clips, pattern):
  lengths, texts = [c[0] for c in clips], [c[1] for c in clips]
  rows = pack_rows(lengths, texts, ROW, pattern)
  assert sorted(clip for row in rows for clip in row) == list(range(len(clips)))
  for row in rows:
    assert 1 <= len(row) <= ROW.segments
    assert sum(lengths[clip] for clip in row) <= ROW.tokens and sum(texts[clip] for clip in row) <= ROW.text
  assert rows.sums(np.array(lengths, np.int64)).tolist() == [sum(lengths[clip] for clip in row) for row in rows]


def test_a_larger_pattern_fills_rows_better():
  lengths = np.random.default_rng(0).integers(1, ROW.tokens, 4000).tolist()
  counts = [len(pack_rows(lengths, [1] * 4000, ROW, pattern)) for pattern in (8, 64, 4000)]
  assert counts[0] > counts[1] > counts[2] >= sum(lengths) / ROW.tokens


def test_many_clips_packed_by_a_pattern_take_hardly_more_rows():
  rng = np.random.default_rng(0)
  lengths, texts, row = rng.integers(100, 10_000, 80_000), rng.integers(3, 300, 80_000), RowShape(80_000, 8_000, 64)
  few = len(pack_rows(lengths, texts, row, pattern=20_000))
  assert len(pack_rows(lengths, texts, row)) <= few < 1.005 * lengths.sum() / row.tokens / LEVEL


def test_the_pattern_is_found_in_time_that_does_not_grow_with_the_clips(monkeypatch):
  """Clips are sorted by numpy; what is packed one by one is a pattern's worth."""
  packed = []

  def counted(lengths, *more):
    packed.append(len(lengths))
    return best_fit(lengths, *more)

  monkeypatch.setattr(rows_module, "best_fit", counted)
  rng = np.random.default_rng(0)
  rows = pack_rows(rng.integers(1, 41, 100_000), rng.integers(1, 21, 100_000), ROW, pattern=500)
  assert packed == [500] and rows.clips_N.dtype == np.int32


def test_a_class_of_captions_is_a_fifth_longer_than_the_shortest_in_it():
  text = np.arange(1, 5000)
  bounds = text_bounds(text, 4096)
  assert (bounds >= text).all() and (bounds[text <= 4096] <= np.minimum(text * 1.25, 4096)[text <= 4096]).all()
  assert (bounds[text > 4096] == text[text > 4096]).all()  # which no row holds, whatever the class
  assert len(set(bounds[:256].tolist())) == 28 and (np.diff(bounds) >= 0).all()


def test_places_are_of_one_kind_where_all_columns_agree():
  first, second = np.array([3, 1, 3, 1, 3]), np.array([9, 9, 7, 9, 9])
  assert kinds(first, second).tolist() == [2, 0, 1, 0, 2]
  assert kinds(np.zeros(0, int), np.zeros(0, int)).tolist() == []


def test_the_fullest_row_that_still_holds_a_clip_takes_it():
  assert listed(pack_rows([7, 5, 3, 5], [1, 1, 1, 1], RowShape(10, 9, 9))) == [[0, 2], [1, 3]]


def test_a_full_caption_budget_sends_a_clip_to_another_row():
  assert listed(pack_rows([4, 4], [6, 6], RowShape(10, 10, 9))) == [[0], [1]]


def mixed(seed: int) -> tuple[list[int], list[int]]:
  """Lengths of a few long clips among many short ones, and a caption token each."""
  rng = np.random.default_rng(seed)
  lengths = [*rng.integers(200, 950, 60).tolist(), *rng.integers(2, 20, 1500).tolist()]
  return lengths, [1] * len(lengths)


LONG = RowShape(tokens=1000, text=500, segments=500)


@pytest.mark.parametrize("seed", range(5))
def test_levelled_rows_are_full_and_each_has_its_part_of_the_short_clips(seed):
  lengths, texts = mixed(seed)
  rows = level(lengths, texts, LONG)
  assert sorted(clip for row in rows for clip in row) == list(range(len(lengths)))
  assert len(rows) == math.ceil(sum(lengths) / LONG.tokens / LEVEL)
  assert max(sum(lengths[clip] for clip in row) for row in rows) <= LONG.tokens
  assert all(any(lengths[clip] < 20 for clip in row) for row in rows)
  fullest = best_fit(lengths, texts, LONG)
  assert not all(any(lengths[clip] < 20 for clip in row) for row in fullest)
  assert listed(pack_rows(lengths, texts, LONG)) == rows


def test_rows_that_can_t_be_levelled_are_as_full_as_can_be():
  lengths = [700] * 20  # two of them never share a row
  assert level(lengths, [1] * 20, LONG) is None
  assert len(pack_rows(lengths, [1] * 20, LONG)) == 20


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.integers(1, 400), st.integers(3, 60))
def test_levelled_rows_keep_every_budget(seed, text, segments):
  rng, (lengths, _) = np.random.default_rng(seed), mixed(0)
  texts, row = rng.integers(1, 40, len(lengths)).tolist(), RowShape(1000, max(text, 40), segments)
  rows = level(lengths, texts, row)
  for clips in rows or []:
    assert sum(lengths[clip] for clip in clips) <= row.tokens and len(clips) <= row.segments
    assert sum(texts[clip] for clip in clips) <= row.text
  if rows:
    assert sorted(clip for clips in rows for clip in clips) == list(range(len(lengths)))


def test_nothing_to_pack_needs_no_row():
  assert listed(pack_rows([], [], ROW)) == []


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
