"""What is packed reads back exactly, and what does not fit is refused."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.packing.batch import RowShape, Segment, pack_row, per_token, stack

ROW = RowShape(tokens=40, text=20, segments=5)
CHANNELS = 3


def segment(rng: np.random.Generator, tokens: int, text: int, index: int) -> Segment:
  return Segment(
    tokens_NC=rng.normal(size=(tokens, CHANNELS)).astype(np.float32),
    positions_N3=rng.normal(size=(tokens, 3)).astype(np.float32),
    condition_N=rng.random(tokens) < 0.5,
    level_N=rng.random(tokens).astype(np.float32),
    text_M=rng.integers(1, 99, text).astype(np.int32),
    size_4=rng.random(4).astype(np.float32) + 1,
    index=index,
    weight=float(index) + 0.5,
  )


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), max_size=5))
def test_a_packed_row_reads_back(seed, sizes):
  rng = np.random.default_rng(seed)
  segments = [segment(rng, tokens, text, 10 + number) for number, (tokens, text) in enumerate(sizes)]
  row = pack_row(segments, ROW, CHANNELS)
  for number, packed in enumerate(segments):
    mine, mine_text = row.segments_BL == number + 1, row.text_segments_BM == number + 1
    assert len(packed.tokens_NC) == 1 or (np.diff(np.flatnonzero(mine)) == 1).all()
    np.testing.assert_array_equal(row.tokens_BLC[mine], packed.tokens_NC)
    np.testing.assert_array_equal(row.positions_BL3[mine], packed.positions_N3)
    np.testing.assert_array_equal(row.condition_BL[mine], packed.condition_N)
    np.testing.assert_array_equal(row.level_BL[mine], packed.level_N)
    np.testing.assert_array_equal(row.text_BM[mine_text], packed.text_M)
    np.testing.assert_array_equal(row.size_BS4[number], packed.size_4)
    assert (row.weight_BS[number], row.clip_index_BS[number]) == (packed.weight, packed.index)
  tokens = sum(tokens for tokens, _ in sizes)
  assert (row.segments_BL[tokens:] == 0).all() and not row.tokens_BLC[tokens:].any()
  assert (row.text_segments_BM > 0).sum() == sum(text for _, text in sizes)
  assert not row.weight_BS[len(sizes) :].any()
  assert row.useful_tokens == pytest.approx(tokens / ROW.tokens)


@pytest.mark.parametrize("sizes", [[(30, 1), (11, 1)], [(1, 15), (1, 6)], [(1, 1)] * 6])
def test_too_much_for_a_row_is_refused(sizes):
  segments = [segment(np.random.default_rng(0), *size, 0) for size in sizes]
  with pytest.raises(ValueError, match="do not fit in a row"):
    pack_row(segments, ROW, CHANNELS)


def test_a_batch_holds_its_rows_in_order():
  rows = [pack_row([segment(np.random.default_rng(seed), 8, 2, seed)], ROW, CHANNELS) for seed in range(3)]
  batch = stack(rows)
  for number, row in enumerate(rows):
    for whole, part in zip(batch, row, strict=True):
      np.testing.assert_array_equal(whole[number], part)
  assert batch.useful_tokens == pytest.approx(8 / ROW.tokens)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.sampled_from([(), (2,), (2, 3)]), st.sampled_from([0, -1]))
def test_spreading_over_tokens_equals_a_loop(seed, shape, padding):
  rng = np.random.default_rng(seed)
  values, segments = rng.normal(size=(2, 4, *shape)), rng.integers(0, 5, (2, 9))
  spread = per_token(values, segments, padding)
  for row in range(2):
    for token in range(9):
      number = segments[row, token]
      expected = values[row, number - 1] if number else np.full(shape, padding)
      np.testing.assert_array_equal(spread[row, token], expected)


def test_spreading_is_the_same_on_jax_arrays():
  rng = np.random.default_rng(0)
  values, segments = rng.normal(size=(2, 4, 2)).astype(np.float32), rng.integers(0, 5, (2, 9))
  np.testing.assert_array_equal(per_token(jnp.asarray(values), jnp.asarray(segments)), per_token(values, segments))
