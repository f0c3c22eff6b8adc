"""Which clip takes which slot: every clip once, or components of a mixture by their share of the tokens."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.packing import slots
from sora_jax.packing.balance import ClipFlops, order_rows
from sora_jax.packing.batch import RowShape
from sora_jax.packing.rows import PATTERN, pack_rows, text_bounds
from sora_jax.packing.slots import Everyone, Weighted

ROW = RowShape(tokens=8192, text=1200, segments=64)
WORK = ClipFlops(1.0, 1e-4)
STRETCH = 1000  # rows


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


def clips(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens, caption tokens and components: images of one size, videos of many lengths, and few long clips."""
  draw = rng(seed)
  lengths = np.concatenate([np.full(3000, 256), draw.integers(900, 3001, 500), draw.integers(4000, 8000, 50)])
  return lengths, draw.integers(3, 60, len(lengths)), np.repeat([0, 1, 2], [3000, 500, 50])


def weighted(weights, seed: int = 0) -> Weighted:
  return of_clips(*clips(seed), weights, seed)


def of_clips(lengths, text, component, weights, seed: int = 0) -> Weighted:
  return Weighted(lengths, text, ROW.text, component, weights, seed)


def kinds(lengths, text) -> list[tuple[int, int]]:
  return list(zip(np.asarray(lengths).tolist(), np.asarray(text).tolist(), strict=True))


class TestEveryone:
  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=60), st.integers(0))
  def test_a_pass_has_every_clip_once_in_a_place_of_its_own_kind(self, sizes, seed):
    lengths, text = np.array(sizes).T
    everyone = Everyone(lengths, text, ROW.text)
    filled = everyone.fill(0, rng(seed))
    assert sorted(filled.tolist()) == list(range(len(sizes)))
    assert kinds(lengths[filled], text[filled]) == kinds(everyone.lengths_K, everyone.text_K) == sizes
    assert everyone.component_K.tolist() == [0] * len(sizes)

  def test_a_pass_is_a_function_of_its_draws_and_passes_differ(self):
    everyone = Everyone(np.repeat([4, 8], 50), np.repeat([1, 2, 3, 4], 25), ROW.text)
    np.testing.assert_array_equal(everyone.fill(3, rng(1)), everyone.fill(3, rng(1)))
    assert (everyone.fill(3, rng(1)) != everyone.fill(3, rng(2))).any()

  def test_captions_of_all_lengths_meet_others_in_each_pass(self):
    """Clips of one size with captions of 20 to 300 tokens: few have a caption as long as another's."""
    text = rng(1).integers(20, 301, 400)
    everyone = Everyone(np.full(400, 256), text, 512)
    assert len(set(text.tolist())) > 200
    first, second = everyone.fill(0, rng(0)), everyone.fill(1, rng(1))
    assert (first != second).mean() > 0.9
    assert (text[first] <= everyone.text_K).all() and text.sum() > 0.9 * everyone.text_K.sum()
    rows = pack_rows(everyone.lengths_K, everyone.text_K, RowShape(4096, 4096, 16))
    together = [{frozenset(filled[row].tolist()) for row in rows} for filled in (first, second)]
    assert len(together[0] & together[1]) <= 1

  def test_every_clip_of_a_kind_is_as_likely_in_each_of_its_places(self):
    everyone, draw = Everyone(np.array([5, 7, 5, 5]), np.ones(4, int), ROW.text), rng()
    seen = np.zeros((4, 4), int)
    for number in range(3000):
      seen[np.arange(4), everyone.fill(number, draw)] += 1
    assert seen[1].tolist() == [0, 3000, 0, 0]
    assert seen[np.ix_([0, 2, 3], [0, 2, 3])] == pytest.approx(np.full((3, 3), 1000), abs=120)


def ordered_shares(mixture: Weighted, ranks: int, rows_wanted: int, seed: int) -> np.ndarray:
  """Tokens of the clips that are truly in each row of a run, by component, in the run's order: (rows, components)."""
  lengths, text, component = clips(seed)
  rows = pack_rows(mixture.lengths_K, mixture.text_K, ROW)
  components = len(mixture.components)

  def by_component(who: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.array([np.bincount(who[row], weights=tokens[row], minlength=components) for row in rows])

  components_RP = by_component(mixture.component_K, mixture.lengths_K)
  flops_R = np.array([WORK(mixture.lengths_K[row]).sum() for row in rows])
  run = []
  for number in range(-(-rows_wanted // len(rows))):
    draw = rng(number)
    order = order_rows(flops_R, ranks, 1, draw, number * len(rows) % ranks, components_RP)
    filled = mixture.fill(number, draw)
    assert max(lengths[filled[row]].sum() for row in rows) <= ROW.tokens
    assert max(text[filled[row]].sum() for row in rows) <= ROW.text
    run.append(by_component(component[filled], lengths[filled])[order])
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
    mixture, (lengths, text, component) = weighted(weights), clips()
    for number in (0, 1, 17):
      filled = mixture.fill(number, rng(number))
      assert (component[filled] == mixture.component_K).all()
      assert (lengths[filled] <= mixture.lengths_K).all() and (text[filled] <= mixture.text_K).all()
      tokens = np.bincount(component[filled], weights=lengths[filled])
      assert tokens / tokens.sum() == pytest.approx(weights, abs=0.002)
      assert lengths[filled].sum() > 0.995 * mixture.lengths_K.sum()
      assert text[filled].sum() > 0.89 * mixture.text_K.sum()  # a tenth is what classes cost
    assert len(mixture.lengths_K) <= PATTERN

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
    st.lists(
      st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=9), min_size=1, max_size=4
    ),
    st.data(),
  )
  def test_a_parts_clips_come_once_each_before_one_comes_again(self, sizes, data):
    """Over any passes in turn, whatever the first of them: also where a component has fewer slots than clips."""
    weights = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(sizes), max_size=len(sizes)))
    fewest, pattern = data.draw(st.sampled_from([(1, PATTERN), (200, PATTERN), (1, 20)]))
    component = np.repeat(np.arange(len(sizes)), [len(each) for each in sizes])
    lengths, text = np.array([size for each in sizes for size in each]).T
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(slots, "FEWEST", fewest)
      patch.setattr(slots, "PATTERN", pattern)
      mixture = of_clips(lengths, text, component, weights, 0)
    seen = np.zeros(len(component), int)
    first = data.draw(st.integers(0, 10**6))
    for number in range(first, first + 12):
      filled = mixture.fill(number, rng(number))
      assert (component[filled] == mixture.component_K).all()
      assert (lengths[filled] <= mixture.lengths_K).all() and (text[filled] <= mixture.text_K).all()
      seen += np.bincount(filled, minlength=len(component))
      for number_of_component in range(len(sizes)):
        assert np.ptp(seen[component == number_of_component]) <= 1

  def test_a_place_is_as_long_as_the_longest_clip_that_ever_takes_it(self, monkeypatch):
    monkeypatch.setattr(slots, "PATTERN", 40)  # so few slots that clips take turns in them
    lengths, text, component = np.arange(100, 170), rng().integers(1, 90, 70), np.repeat([0, 1], 35)
    mixture = of_clips(lengths, text, component, (0.5, 0.5), 0)
    assert len(mixture.lengths_K) <= 40
    most = np.zeros((2, len(mixture.lengths_K)), int)
    for number in range(70):
      turns = np.concatenate([each.clips[each.turns(number)] for each in mixture.components])
      most = np.maximum(most, [lengths[turns], text_bounds(text, ROW.text)[turns]])
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
    """Images of one size and caption length don't keep their slots, though each comes once."""
    mixture = of_clips(np.full(400, 256), np.full(400, 9), np.repeat([0, 1], 200), (0.5, 0.5), 0)
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
      mixture = of_clips(lengths, np.ones(3, int), np.array([0, 0, 1]), weights, 0)
      tokens = np.bincount(mixture.component_K, weights=mixture.lengths_K)
      assert tokens / tokens.sum() == pytest.approx(weights, abs=1 / slots.FEWEST)

  @pytest.mark.parametrize("tiny", [1e-9, 1e-5, 1e-3])
  def test_every_clip_of_a_part_with_a_tiny_weight_comes_in_time(self, tiny):
    lengths, text, component = clips()
    keep = component != 2
    mixture = of_clips(lengths[keep], text[keep], component[keep], (1 - tiny, tiny), 0)
    each_pass = (mixture.component_K == 1).sum()
    assert 1 <= each_pass <= 50 and len(mixture.lengths_K) <= PATTERN
    passes = -(-500 // each_pass)
    second = mixture.components[1]
    seen = {clip for number in range(passes) for clip in second.clips[second.turns(number)]}
    assert seen == set(range(3000, 3500))

  def test_only_the_ratio_of_weights_counts(self):
    first, second = weighted((0.2, 0.5, 0.3)), weighted((2, 5, 3))
    np.testing.assert_array_equal(first.lengths_K, second.lengths_K)
    np.testing.assert_array_equal(first.fill(2, rng()), second.fill(2, rng()))

  @pytest.mark.parametrize(("component", "named"), [([0, 0, 2], "source 2 of the 3"), ([0, 0, 1], "source 3 of the 3")])
  def test_a_part_with_no_clips_is_named(self, component, named):
    with pytest.raises(ValueError, match=f"{named} in the mixture has no clips"):
      of_clips(np.array([1, 2, 3]), np.ones(3, int), np.array(component), (0.2, 0.5, 0.3))
