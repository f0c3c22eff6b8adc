"""Who takes the places of a plan: every clip once, or parts of a mixture by their share of the tokens."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.packing import slots
from sora_jax.packing.balance import ClipFlops, order_rows
from sora_jax.packing.batch import RowShape
from sora_jax.packing.rows import LOOK_AHEAD, pack_rows
from sora_jax.packing.slots import Everyone, Weighted

ROW = RowShape(tokens=8192, text=1200, segments=64)
WORK = ClipFlops(1.0, 1e-4)
STRETCH = 1000  # rows


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


def clips(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens, caption tokens and parts: images of one size, videos of many lengths, and few long clips."""
  draw = rng(seed)
  lengths = np.concatenate([np.full(3000, 256), draw.integers(900, 3001, 500), draw.integers(4000, 8000, 50)])
  return lengths, draw.integers(3, 60, len(lengths)), np.repeat([0, 1, 2], [3000, 500, 50])


def weighted(weights, seed: int = 0) -> Weighted:
  return Weighted(*clips(seed), weights, seed)


def kinds(lengths, text) -> list[tuple[int, int]]:
  return list(zip(np.asarray(lengths).tolist(), np.asarray(text).tolist(), strict=True))


class TestEveryone:
  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=60), st.integers(0))
  def test_a_pass_has_every_clip_once_in_a_place_of_its_own_kind(self, sizes, seed):
    lengths, text = np.array(sizes).T
    everyone = Everyone(lengths, text)
    filled = everyone.fill(0, rng(seed))
    assert sorted(filled.tolist()) == list(range(len(sizes)))
    assert kinds(lengths[filled], text[filled]) == kinds(everyone.lengths_K, everyone.text_K) == sizes
    assert everyone.component_K.tolist() == [0] * len(sizes)

  def test_a_pass_is_a_function_of_its_draws_and_passes_differ(self):
    everyone = Everyone(np.repeat([4, 8], 50), np.repeat([1, 2, 3, 4], 25))
    np.testing.assert_array_equal(everyone.fill(3, rng(1)), everyone.fill(3, rng(1)))
    assert (everyone.fill(3, rng(1)) != everyone.fill(3, rng(2))).any()

  def test_every_clip_of_a_kind_is_as_likely_in_each_of_its_places(self):
    everyone, draw = Everyone(np.array([5, 7, 5, 5]), np.ones(4, int)), rng()
    seen = np.zeros((4, 4), int)
    for number in range(3000):
      seen[np.arange(4), everyone.fill(number, draw)] += 1
    assert seen[1].tolist() == [0, 3000, 0, 0]
    assert seen[np.ix_([0, 2, 3], [0, 2, 3])] == pytest.approx(np.full((3, 3), 1000), abs=120)


def ordered_shares(mixture: Weighted, ranks: int, rows_wanted: int, seed: int) -> np.ndarray:
  """Tokens of the clips that are truly in each row of a run, by part, in the run's order: (rows, parts)."""
  lengths, text, part = clips(seed)
  rows = pack_rows(mixture.lengths_K.tolist(), mixture.text_K.tolist(), ROW)
  parts = len(mixture.parts)

  def by_part(who: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.array([np.bincount(who[row], weights=tokens[row], minlength=parts) for row in rows])

  components_RP = by_part(mixture.component_K, mixture.lengths_K)
  flops_R = np.array([WORK(mixture.lengths_K[row]).sum() for row in rows])
  run = []
  for number in range(-(-rows_wanted // len(rows))):
    draw = rng(number)
    order = order_rows(flops_R, ranks, 1, draw, number * len(rows) % ranks, components_RP)
    filled = mixture.fill(number, draw)
    assert max(lengths[filled[row]].sum() for row in rows) <= ROW.tokens
    assert max(text[filled[row]].sum() for row in rows) <= ROW.text
    run.append(by_part(part[filled], lengths[filled])[order])
  return np.concatenate(run)


class TestWeighted:
  @pytest.mark.parametrize("ranks", [1, 4])
  @pytest.mark.parametrize(
    ("weights", "seed"),
    [((0.2, 0.5, 0.3), 0), ((0.2, 0.5, 0.3), 1), ((0.6, 0.3, 0.1), 2), ((0.05, 0.05, 0.9), 3), ((2, 7, 1), 4)],
  )
  def test_any_stretch_of_rows_has_the_parts_by_their_weights(self, weights, seed, ranks):
    run = ordered_shares(weighted(weights, seed), ranks, 3 * STRETCH, seed)
    sums = np.concatenate([np.zeros((1, 3)), run.cumsum(0)])
    stretches = sums[STRETCH:] - sums[:-STRETCH]
    shares = stretches / stretches.sum(1, keepdims=True)
    assert np.abs(shares - np.array(weights) / np.sum(weights)).max() < 0.01

  @pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.6, 0.3, 0.1), (0.98, 0.01, 0.01), (0.001, 0.5, 0.499)])
  def test_a_pass_has_the_parts_by_their_weights_and_little_padding(self, weights):
    mixture, (lengths, text, part) = weighted(weights), clips()
    for number in (0, 1, 17):
      filled = mixture.fill(number, rng(number))
      assert (part[filled] == mixture.component_K).all()
      assert (lengths[filled] <= mixture.lengths_K).all() and (text[filled] <= mixture.text_K).all()
      tokens = np.bincount(part[filled], weights=lengths[filled])
      assert tokens / tokens.sum() == pytest.approx(weights, abs=0.002)
      assert lengths[filled].sum() > 0.995 * mixture.lengths_K.sum()
      assert text[filled].sum() > 0.95 * mixture.text_K.sum()  # or rows would be full of text before they are of tokens
    assert len(mixture.lengths_K) <= LOOK_AHEAD

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
    st.lists(
      st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=9), min_size=1, max_size=4
    ),
    st.data(),
  )
  def test_a_parts_clips_come_once_each_before_one_comes_again(self, sizes, data):
    """Over any passes in turn, whatever the first of them: also where a part has fewer places than clips."""
    weights = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(sizes), max_size=len(sizes)))
    fewest, look_ahead = data.draw(st.sampled_from([(1, LOOK_AHEAD), (200, LOOK_AHEAD), (1, 20)]))
    part = np.repeat(np.arange(len(sizes)), [len(each) for each in sizes])
    lengths, text = np.array([size for each in sizes for size in each]).T
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(slots, "FEWEST", fewest)
      patch.setattr(slots, "LOOK_AHEAD", look_ahead)
      mixture = Weighted(lengths, text, part, weights, 0)
    seen = np.zeros(len(part), int)
    first = data.draw(st.integers(0, 10**6))
    for number in range(first, first + 12):
      filled = mixture.fill(number, rng(number))
      assert (part[filled] == mixture.component_K).all()
      assert (lengths[filled] <= mixture.lengths_K).all() and (text[filled] <= mixture.text_K).all()
      seen += np.bincount(filled, minlength=len(part))
      for number_of_part in range(len(sizes)):
        assert np.ptp(seen[part == number_of_part]) <= 1

  def test_a_place_is_as_long_as_the_longest_clip_that_ever_takes_it(self, monkeypatch):
    monkeypatch.setattr(slots, "LOOK_AHEAD", 40)  # so few places that clips take turns in them
    lengths, text, part = np.arange(100, 170), rng().integers(1, 90, 70), np.repeat([0, 1], 35)
    mixture = Weighted(lengths, text, part, (0.5, 0.5), 0)
    assert len(mixture.lengths_K) <= 40
    most = np.zeros((2, len(mixture.lengths_K)), int)
    for number in range(70):
      turns = np.concatenate([each.clips[each.turns(number)] for each in mixture.parts])
      most = np.maximum(most, [lengths[turns], text[turns]])
    np.testing.assert_array_equal(most, [mixture.lengths_K, mixture.text_K])

  @pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.98, 0.01, 0.01)])
  def test_a_pass_alone_is_what_it_is_after_the_passes_before_it(self, weights):
    after = weighted(weights)
    for number in range(7):
      after.fill(number, rng(number))
    alone = weighted(weights).fill(7, rng(7))
    np.testing.assert_array_equal(alone, after.fill(7, rng(7)))
    assert (alone != after.fill(8, rng(8))).any()

  def test_clips_of_one_kind_meet_others_in_each_pass(self):
    """Images of one size and caption length don't keep their places, though each comes once."""
    mixture = Weighted(np.full(400, 256), np.full(400, 9), np.repeat([0, 1], 200), (0.5, 0.5), 0)
    first, second = mixture.fill(0, rng(0)), mixture.fill(1, rng(1))
    assert (first != second).mean() > 0.9
    assert np.bincount(first).tolist() == [1] * 400

  def test_the_part_that_lasts_longest_comes_once_in_a_pass(self):
    mixture = weighted((0.5, 0.3, 0.2))  # long clips by their tokens: 0.3 million; videos 1; images 0.8
    counts = np.bincount(mixture.fill(0, rng()), minlength=3550)
    assert set(counts[3000:3500]) == {1} and set(counts[:3000]) == {2, 3} and counts[3500:].min() >= 2

  def test_a_pass_over_few_clips_repeats_them_until_it_keeps_to_the_weights(self):
    lengths = np.array([100, 100, 300])
    for weights in ((0.6, 0.4), (0.9, 0.1), (0.37, 0.63)):
      mixture = Weighted(lengths, np.ones(3, int), np.array([0, 0, 1]), weights, 0)
      tokens = np.bincount(mixture.component_K, weights=mixture.lengths_K)
      assert tokens / tokens.sum() == pytest.approx(weights, abs=1 / slots.FEWEST)

  @pytest.mark.parametrize("tiny", [1e-9, 1e-5, 1e-3])
  def test_every_clip_of_a_part_with_a_tiny_weight_comes_in_time(self, tiny):
    lengths, text, part = clips()
    keep = part != 2
    mixture = Weighted(lengths[keep], text[keep], part[keep], (1 - tiny, tiny), 0)
    each_pass = (mixture.component_K == 1).sum()
    assert 1 <= each_pass <= 50 and len(mixture.lengths_K) <= LOOK_AHEAD
    passes = -(-500 // each_pass)
    seen = {clip for number in range(passes) for clip in mixture.parts[1].clips[mixture.parts[1].turns(number)]}
    assert seen == set(range(3000, 3500))

  def test_only_the_ratio_of_weights_counts(self):
    first, second = weighted((0.2, 0.5, 0.3)), weighted((2, 5, 3))
    np.testing.assert_array_equal(first.lengths_K, second.lengths_K)
    np.testing.assert_array_equal(first.fill(2, rng()), second.fill(2, rng()))

  @pytest.mark.parametrize(("part", "named"), [([0, 0, 2], "source 2 of the 3"), ([0, 0, 1], "source 3 of the 3")])
  def test_a_part_with_no_clips_is_named(self, part, named):
    with pytest.raises(ValueError, match=f"{named} in the mixture has no clips"):
      Weighted(np.array([1, 2, 3]), np.ones(3, int), np.array(part), (0.2, 0.5, 0.3), 0)
