"""Balance: every row once, steps of equal work for every rank, and the same order from the same seed."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.balance import Work, order_rows, spread


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


def drawn(rows: int, seed: int = 0) -> np.ndarray:
  """Work of rows as packing gives it: most are light, some four times as heavy."""
  return 1.0 + 3.5 * rng(seed).beta(0.5, 1.2, rows)


class TestWork:
  def test_it_is_the_sum_of_products_with_weights_and_of_attention(self):
    depth, width, tokens = 2, 8, 5
    weights = 12 * depth * width**2
    attention = depth * 2 * (2 * tokens * tokens * width)  # scores, and the sum of values
    assert Work.of(weights, depth, width)(tokens) == 2 * weights * tokens + attention

  def test_a_long_clip_costs_more_than_many_short_ones_of_as_many_tokens(self):
    work = Work.of(12 * 64**2, 1, 64)
    assert work(1000) > 2 * work(np.full(10, 100)).sum()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(0, 120), st.integers(1, 5), st.integers(1, 4), st.integers(0, 50), st.integers(0, 2**20))
def test_every_row_comes_once_and_the_order_is_that_of_the_seed(rows, ranks, each, begun, seed):
  work = drawn(rows, seed)
  order = order_rows(work, ranks, each, rng(seed), begun)
  assert sorted(order.tolist()) == list(range(rows))
  np.testing.assert_array_equal(order, order_rows(work, ranks, each, rng(seed), begun))


@pytest.mark.parametrize("each", [1, 4, 8])
@pytest.mark.parametrize("ranks", [2, 16, 64])
def test_no_rank_waits_for_another(ranks, each):
  work = drawn(ranks * each * 60)
  order = order_rows(work, ranks, each, rng())
  shuffled = work[rng().permutation(len(work))]
  assert spread(work[order], ranks, each).mean() > 0.98 > spread(shuffled, ranks, each).mean() + 0.02


def test_ranks_that_take_several_rows_get_steps_of_equal_work():
  work = drawn(64 * 8 * 30)
  steps = work[order_rows(work, 64, 8, rng())].reshape(30, -1).sum(1)
  assert steps.max() / steps.min() < 1.02


@pytest.mark.parametrize("begun", [0, 3, 31, 32, 45])
def test_a_step_that_was_begun_is_finished_first(begun):
  ranks, each = 16, 2
  work = drawn(ranks * each * 20 + 7)
  ordered = work[order_rows(work, ranks, each, rng(), begun)]
  head = -begun % (ranks * each)
  assert spread(ordered[head:], ranks, each).min() > 0.9
  loose = np.concatenate([ordered[:head], ordered[head + (len(work) - head) // 32 * 32 :]])
  assert loose.max(initial=0) <= np.sort(work)[: len(loose) + 1].max() * 1.02


def test_steps_do_not_come_by_their_work_and_epochs_differ():
  work = np.rint(drawn(640) * 4)
  first, second = (order_rows(work, 64, 1, rng(seed)) for seed in (0, 1))
  steps = work[first].reshape(10, 64).sum(1)
  assert (np.diff(steps) < 0).any() and (np.diff(steps) > 0).any()
  together = [{frozenset(step) for step in order.reshape(10, 64).tolist()} for order in (first, second)]
  assert together[0] != together[1]


def test_fewer_rows_than_a_step_are_kept():
  assert sorted(order_rows(drawn(3), 4, 2, rng()).tolist()) == [0, 1, 2]
  assert order_rows(np.zeros(0), 4, 2, rng()).tolist() == []
  assert spread(np.ones(3), 4, 2).shape == (0,)
