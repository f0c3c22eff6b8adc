"""The objective: errors as a loop over clips finds them, each clip's draws its own, given tokens left alone."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.diffusion import objective
from sora_jax.packing.batch import RowShape, Segment, pack_row, stack

CHANNELS = 4
ROW = RowShape(tokens=16, text=4, segments=4)
LEVELS = objective.NoiseLevels(mean=0.8, std=0.8, base_tokens=4, uniform_share=0.2)


def make_clip(index: int, tokens: int, given: int = 0, weight: float = 1.0, level: float = 0.0) -> Segment:
  rng = np.random.default_rng(index)
  return Segment(
    tokens_NC=rng.normal(size=(tokens, CHANNELS)).astype(np.float32),
    positions_N3=np.zeros((tokens, 3), np.float32),
    condition_N=np.arange(tokens) < given,
    level_N=level * np.ones(tokens, np.float32),
    text_M=np.array([1], np.int32),
    size_4=np.ones(4, np.float32),
    index=index,
    weight=weight,
  )


def make_batch(*rows: list[Segment]):
  return stack([pack_row(clips, ROW, CHANNELS) for clips in rows])


errors = jax.jit(objective.velocity_errors)
losses = jax.jit(lambda x_hat, batch, t: objective.velocity_loss(x_hat, batch, t, "clip")[1])
times = jax.jit(lambda batch, seed: objective.draw_times(batch, jax.random.key(seed), LEVELS))
corrupt = jax.jit(lambda batch, t, seed: objective.corrupt(batch, t, jax.random.key(seed)))


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=3))
def test_errors_equal_a_loop_over_clips(seed, sizes):
  clips = [make_clip(index, tokens, given) for index, (tokens, given) in enumerate(sizes)]
  batch = make_batch(clips, clips[::-1])
  rng = np.random.default_rng(seed)
  x_hat = rng.normal(size=batch.tokens_BLC.shape).astype(np.float32)
  t = rng.uniform(0, 1, batch.segments_BL.shape).astype(np.float32)
  found, counts = errors(x_hat, batch, t)
  for row in range(2):
    for segment in range(ROW.segments):
      each = []
      for token in range(ROW.tokens):
        if batch.segments_BL[row, token] == segment + 1 and not batch.condition_BL[row, token]:
          error = (x_hat[row, token] - batch.tokens_BLC[row, token]) / max(t[row, token], 0.05)
          each.append(np.mean(error**2))
      assert counts[row, segment] == len(each)
      np.testing.assert_allclose(found[row, segment], np.mean(each) if each else 0.0, rtol=1e-4)


def test_the_error_is_that_of_the_velocity():
  batch = make_batch([make_clip(0, 6), make_clip(1, 5)])
  t_BS = np.full((1, ROW.segments), 0.6, np.float32)
  x_t, t = corrupt(batch, t_BS, 0)
  x_hat = 0.5 * x_t
  velocity, target = ((x_t - x) / t[..., None] for x in (x_hat, batch.tokens_BLC))
  found, _ = errors(x_hat, batch, t)
  np.testing.assert_allclose(found[0, 0], np.mean(np.square(velocity - target)[0, :6]), rtol=1e-4)


def test_given_tokens_and_padding_do_not_count():
  batch = make_batch([make_clip(0, 6, given=2), make_clip(1, 5)])
  t = np.where(batch.condition_BL, 0.0, 0.5).astype(np.float32)
  free = batch.condition_BL | (batch.segments_BL == 0)
  x_hat = np.zeros_like(batch.tokens_BLC)
  moved = np.where(free[..., None], 1e4, x_hat).astype(np.float32)
  before, after = losses(x_hat, batch, t), losses(moved, batch, t)
  assert before == after and before["loss_per_clip"] > 0


def unit_error(batch, error_of_segment):
  """A prediction whose velocity error is given for each segment, at t = 1."""
  wrong = np.concatenate([[0.0], error_of_segment])[batch.segments_BL] ** 0.5
  return (batch.tokens_BLC + wrong[..., None]).astype(np.float32), np.ones(batch.segments_BL.shape, np.float32)


@pytest.mark.parametrize("lengths", [(1, 12), (6, 6), (12, 2)])
def test_per_clip_weighting_ignores_the_length_of_a_clip_and_per_token_does_not(lengths):
  batch = make_batch([make_clip(index, tokens) for index, tokens in enumerate(lengths)])
  found = losses(*(lambda x_hat, t: (x_hat, batch, t))(*unit_error(batch, [2.0, 6.0])))
  assert float(found["loss_per_clip"]) == pytest.approx(4.0, rel=1e-4)
  assert float(found["loss_per_token"]) == pytest.approx(np.average([2.0, 6.0], weights=lengths), rel=1e-4)


def test_the_named_weighting_is_the_loss():
  batch = make_batch([make_clip(0, 3), make_clip(1, 9)])
  x_hat, t = unit_error(batch, [2.0, 6.0])
  for weighting in ("clip", "token"):
    loss, metrics = objective.velocity_loss(x_hat, batch, t, weighting)
    assert loss == metrics[f"loss_per_{weighting}"]
  assert metrics["loss_per_clip"] != metrics["loss_per_token"]


def test_the_weight_of_a_clip_counts():
  batch = make_batch([make_clip(0, 5, weight=3.0), make_clip(1, 5)])
  x_hat, t = unit_error(batch, [2.0, 6.0])
  assert float(losses(x_hat, batch, t)["loss_per_clip"]) == pytest.approx(3.0, rel=1e-4)


def test_a_clip_with_nothing_to_predict_is_left_out_of_the_mean():
  batch = make_batch([make_clip(0, 5, given=5), make_clip(1, 5)])
  x_hat, t = unit_error(batch, [2.0, 6.0])
  assert float(losses(x_hat, batch, t)["loss_per_clip"]) == pytest.approx(6.0, rel=1e-4)


def test_a_batch_of_padding_has_no_loss():
  batch = make_batch([])
  found = losses(np.ones_like(batch.tokens_BLC), batch, np.zeros(batch.segments_BL.shape, np.float32))
  assert found["loss_per_clip"] == found["loss_per_token"] == 0.0


@pytest.mark.parametrize("weighting", ["", "clips"])
def test_another_weighting_is_refused(weighting):
  batch = make_batch([make_clip(0, 3)])
  with pytest.raises(ValueError, match=f"diffusion.weighting is {weighting!r}"):
    objective.velocity_loss(batch.tokens_BLC, batch, np.ones(batch.segments_BL.shape, np.float32), weighting)


def clip_losses(*rows):
  """What each clip adds to the loss of a batch: draws, corruption, a simple prediction and its error, by index."""
  batch = make_batch(*rows)
  x_t, t = corrupt(batch, times(batch, 3), 3)
  found = np.asarray(errors(0.5 * x_t, batch, t)[0])
  places = [(row, place, clip.index) for row, clips in enumerate(rows) for place, clip in enumerate(clips)]
  return {index: found[row, place] for row, place, index in places}


def test_the_loss_of_a_clip_is_the_same_alone_and_packed():
  a, b, c = make_clip(5, 4, given=1), make_clip(9, 7), make_clip(2, 3)
  packed = clip_losses([a, b, c], [])
  elsewhere = clip_losses([c], [b, a])
  for clip in (a, b, c):
    alone = clip_losses([clip], [])
    assert packed[clip.index] == pytest.approx(alone[clip.index], rel=1e-6)
    assert elsewhere[clip.index] == pytest.approx(alone[clip.index], rel=1e-6)


def test_corruption_mixes_noise_by_level_and_leaves_clean_conditions_alone():
  batch = make_batch([make_clip(0, 6, given=2), make_clip(1, 5)])
  t_BS = np.array([[0.25, 0.75, 0.0, 0.0]], np.float32)
  x_t, t = corrupt(batch, t_BS, 0)
  np.testing.assert_array_equal(t[0], [0, 0] + [0.25] * 4 + [0.75] * 5 + [0] * 5)
  np.testing.assert_array_equal(x_t[batch.condition_BL], batch.tokens_BLC[batch.condition_BL])
  np.testing.assert_array_equal(x_t[batch.segments_BL == 0], 0.0)
  noise, _ = corrupt(batch, np.ones_like(t_BS), 0)
  noised = np.asarray(t) > 0
  level = np.asarray(t)[noised][:, None]
  expected = (1 - level) * batch.tokens_BLC[noised] + level * np.asarray(noise)[noised]
  np.testing.assert_allclose(np.asarray(x_t)[noised], expected, atol=1e-6)
  assert np.abs(expected - batch.tokens_BLC[noised]).min() > 0


def test_a_larger_clip_gets_more_noise_from_the_same_draw():
  small, large = (times(make_batch([make_clip(7, tokens)]), 0)[0, 0] for tokens in (4, 16))
  assert small < large
  smaller = times(make_batch([make_clip(7, 2)]), 0)[0, 0]
  assert smaller == small  # never below the base
  odds = lambda t: float(t / (1 - t))
  assert odds(large) == pytest.approx(odds(small) * 2, rel=1e-3)  # sqrt(16 / 4)


def test_levels_differ_between_clips_and_steps():
  batch = make_batch([make_clip(1, 4), make_clip(2, 4)])
  first, second = np.asarray(times(batch, 0)), np.asarray(times(batch, 1))
  assert first[0, 0] != first[0, 1] and first[0, 0] != second[0, 0]
  assert (first > 0).all() and (first < 1).all()


def drawn_times(count: int, tokens: int = 4, **changes) -> np.ndarray:
  """Noise levels of as many clips."""
  batch = make_batch(*([make_clip(i, tokens)] for i in range(2)))
  batch = jax.tree.map(lambda x: np.repeat(x[:1], count, axis=0), batch)
  batch = batch._replace(clip_index_BS=np.arange(4 * count, dtype=np.int32).reshape(count, 4))
  return np.asarray(objective.draw_times(batch, jax.random.key(1), LEVELS._replace(**changes))[:, 0])


class TestUniformShare:
  def test_both_ends_that_sampling_visits_are_drawn(self):
    without, some = drawn_times(4000, uniform_share=0.0), drawn_times(4000, uniform_share=0.2)
    assert np.mean(without < 0.1) < 1e-3 and np.mean(without > 0.98) < 1e-3
    assert np.mean(some < 0.1) == pytest.approx(0.2 * 0.1, abs=0.01)
    assert np.mean(some > 0.98) == pytest.approx(0.2 * 0.02, abs=0.003)

  def test_all_uniform_is_uniform(self):
    t = drawn_times(4000, uniform_share=1.0)
    np.testing.assert_allclose(np.quantile(t, [0.01, 0.25, 0.5, 0.75, 0.99]), [0.01, 0.25, 0.5, 0.75, 0.99], atol=0.03)

  def test_the_others_keep_their_levels(self):
    without, some = drawn_times(1000, uniform_share=0.0), drawn_times(1000, uniform_share=0.2)
    assert np.mean(without != some) == pytest.approx(0.2, abs=0.05)

  def test_larger_clips_get_more_noise_there_too(self):
    small, large = (drawn_times(4000, tokens=tokens, uniform_share=1.0) for tokens in (4, 16))
    np.testing.assert_allclose(large, 2 * small / (1 + small), atol=1e-6)


def test_tokens_of_the_grid_are_counted():
  batch = make_batch([make_clip(1, 4, given=2), make_clip(2, 7)], [])
  np.testing.assert_array_equal(objective.grid_tokens(batch), [[2, 7, 0, 0], [0, 0, 0, 0]])


def test_conditions_have_the_noise_of_their_own_level():
  batch = make_batch([make_clip(0, 6, given=2, level=0.25)])
  x_t, t = corrupt(batch, np.full((1, ROW.segments), 0.75, np.float32), 0)
  np.testing.assert_allclose(t[0, :6], [0.25, 0.25, 0.75, 0.75, 0.75, 0.75])
  noise, _ = corrupt(batch._replace(level_BL=np.ones_like(batch.level_BL)), np.ones((1, ROW.segments), np.float32), 0)
  expected = 0.75 * batch.tokens_BLC[0, :2] + 0.25 * np.asarray(noise)[0, :2]
  np.testing.assert_allclose(x_t[0, :2], expected, atol=1e-6)


def test_conditions_do_not_make_a_clip_larger_for_its_noise():
  alone, beside = make_clip(7, 6), make_clip(7, 14, given=8)
  assert times(make_batch([alone]), 0)[0, 0] == times(make_batch([beside]), 0)[0, 0]
