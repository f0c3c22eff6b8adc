"""Balance: every row once, steps of equal work for every rank, and the same order from the same seed."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.packing.balance import ClipFlops, even_order, order_rows, spread


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


def drawn(rows: int, seed: int = 0) -> np.ndarray:
  """ClipFlops of rows as packing gives it: most are light, some four times as heavy."""
  return 1.0 + 3.5 * rng(seed).beta(0.5, 1.2, rows)


class TestWork:
  def test_it_is_the_sum_of_products_with_weights_and_of_attention(self):
    depth, width, tokens = 2, 8, 5
    weights = 12 * depth * width**2
    attention = depth * 2 * (2 * tokens * tokens * width)  # scores, and the sum of values
    assert ClipFlops.of(weights, depth, width)(tokens) == 2 * weights * tokens + attention

  def test_a_long_clip_costs_more_than_many_short_ones_of_as_many_tokens(self):
    work = ClipFlops.of(12 * 64**2, 1, 64)
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


def mixed(rows: int, parts: int, seed: int = 0) -> np.ndarray:
  """Tokens of each part in each row: some of one part alone, some of all."""
  shares = rng(seed).dirichlet(np.full(parts, 0.3), rows)
  return np.rint(1000 * shares * rng(seed).uniform(0.9, 1.0, (rows, 1)))


def wander(parts_NP: np.ndarray, order: np.ndarray) -> float:
  """How far the sums in that order get from the mix of all, in the greatest distance of one thing from it."""
  off_NP = parts_NP - parts_NP.sum(1, keepdims=True) * parts_NP.sum(0) / max(parts_NP.sum(), 1e-9)
  farthest = np.linalg.norm(off_NP, axis=1).max(initial=0)
  return np.linalg.norm(off_NP[order].cumsum(0), axis=1).max(initial=0) / max(farthest, 1e-9)


class TestEvenOrder:
  @hypothesis.settings(max_examples=80, deadline=None)
  @hypothesis.given(st.integers(0, 300), st.integers(1, 5), st.integers(0, 2**20))
  def test_every_thing_comes_once_and_the_sums_stay_near_the_whole_mix(self, things, parts, seed):
    parts_NP = mixed(things, parts, seed)
    order = even_order(parts_NP, rng(seed))
    assert sorted(order.tolist()) == list(range(things))
    np.testing.assert_array_equal(order, even_order(parts_NP, rng(seed)))
    assert wander(parts_NP, order) < 1.2

  @hypothesis.settings(max_examples=80, deadline=None)
  @hypothesis.given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=40))
  def test_two_parts_never_get_farther_from_the_mix_than_one_thing_is(self, things):
    parts_NP = np.array(things, float).reshape(-1, 2)
    order = even_order(parts_NP, rng())
    assert sorted(order.tolist()) == list(range(len(things)))
    assert wander(parts_NP, order) <= 1 + 1e-6

  def test_where_none_stays_near_the_nearest_comes_next(self):
    beyond = 0
    for seed in range(400):
      parts_NP = mixed(40, 5, seed)
      off_NP = parts_NP - parts_NP.sum(1, keepdims=True) * parts_NP.sum(0) / parts_NP.sum()
      order = even_order(parts_NP, rng(seed))
      farthest, sums_P = np.linalg.norm(off_NP, axis=1).max(), np.zeros(5)
      for n in range(40):
        distances = np.linalg.norm(sums_P + off_NP[order[n:]], axis=1)
        if distances[0] > farthest * 1.001:
          assert distances[0] == pytest.approx(distances.min())
          beyond += len(distances) > 1
        sums_P += off_NP[order[n]]
    assert beyond

  @pytest.mark.parametrize("heavy", [0.5, 0.03])
  def test_many_things_of_two_kinds_don_t_drift(self, heavy):
    """What is drawn has too many of one kind for long: the choice must reach beyond that."""
    kind = rng(1).random(20_000) < heavy
    parts_NP = np.where(kind[:, None], [[1000.0, 0.0]], [[0.0, 1000.0]])
    assert wander(parts_NP, even_order(parts_NP, rng())) <= 1 + 1e-6
    assert wander(parts_NP, rng().permutation(len(parts_NP))) > 10

  def test_orders_differ_and_uneven_things_are_not_left_to_the_end(self):
    parts_NP = mixed(4000, 3)
    first, second = (even_order(parts_NP, rng(seed)) for seed in (0, 1))
    assert (first != second).mean() > 0.9
    off = np.linalg.norm(parts_NP - parts_NP.sum(1, keepdims=True) * parts_NP.sum(0) / parts_NP.sum(), axis=1)
    for part in np.split(off[first], 10):
      assert part.mean() == pytest.approx(off.mean(), rel=0.1)


class TestOrderRowsOfAMixture:
  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
    st.integers(0, 150), st.integers(1, 5), st.integers(1, 4), st.integers(0, 50), st.integers(0, 2**20)
  )
  def test_every_row_comes_once(self, rows, ranks, each, begun, seed):
    work, parts = drawn(rows, seed), mixed(rows, 3, seed)
    order = order_rows(work, ranks, each, rng(seed), begun, parts)
    assert sorted(order.tolist()) == list(range(rows))
    np.testing.assert_array_equal(order, order_rows(work, ranks, each, rng(seed), begun, parts))

  @pytest.mark.parametrize(("ranks", "each", "begun"), [(2, 1, 0), (16, 4, 5), (64, 2, 100)])
  def test_the_same_rows_share_a_step_as_without_parts(self, ranks, each, begun):
    """So the ranks' work is as equal."""
    size, rows = ranks * each, ranks * each * 20 + 3
    work, parts = drawn(rows), mixed(rows, 3)
    plain, even = (order_rows(work, ranks, each, rng(), begun, wanted) for wanted in (None, parts))
    head = -begun % size
    whole = (rows - head) // size * size
    steps = [
      {frozenset(step) for step in order[head : head + whole].reshape(-1, size).tolist()} for order in (plain, even)
    ]
    assert steps[0] == steps[1] and (plain != even).any()
    np.testing.assert_array_equal(plain[:head], even[:head])
    assert spread(work[even[head:]], ranks, each).mean() == pytest.approx(
      spread(work[plain[head:]], ranks, each).mean(), abs=1e-3
    )

  @pytest.mark.parametrize(("ranks", "each"), [(1, 1), (1, 8), (4, 1), (4, 2)])
  def test_any_stretch_keeps_the_mix(self, ranks, each):
    """Heavy rows are of the last part alone, so a step has it alone or not at all."""
    parts = mixed(4000, 3)
    work = 1.0 + parts[:, 2] / 250
    order = order_rows(work, ranks, each, rng(), 0, parts)
    sums = np.concatenate([np.zeros((1, 3)), parts[order].cumsum(0)])
    stretches = sums[500:] - sums[:-500]
    shares = stretches / stretches.sum(1, keepdims=True)
    assert np.abs(shares - parts.sum(0) / parts.sum()).max() < 2 * ranks * each / 500 + 0.004
