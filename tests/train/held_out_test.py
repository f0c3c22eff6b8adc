"""The loss on held-out clips: the same bits each time, of the clips and levels that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import sharding
from sora_jax.packing.batch import RowShape, Segment, pack_row, stack
from sora_jax.train.held_out import LEVELS, HeldOut, evaluator

ROW = RowShape(12, 4, 3)
GROUPS = ("first", "second", "nobody")


def clip(index: int, tokens: int) -> Segment:
  rng = np.random.default_rng(index)
  none = np.zeros(tokens, bool), np.zeros(tokens, np.float32)
  positions = np.zeros((tokens, 3), np.float32)
  latent = rng.normal(size=(tokens, 2)).astype(np.float32)
  return Segment(latent, positions, *none, np.ones(1, np.int32), np.ones(4, np.float32), index)


def held_out(*rows: list[Segment]) -> HeldOut:
  batches, members = [], []
  for segments in rows:
    batch = stack([pack_row(segments, ROW, 2)])
    number = batch.clip_index_BS[..., None]
    batches.append(batch)
    members.append(np.concatenate([number == 0, number == 1, number == 9], -1).astype(np.float32))
  return HeldOut(batches, GROUPS, members)


def losses(call, *rows: list[Segment], params=1.0) -> dict[str, float]:
  return evaluator(call, "x", held_out(*rows), sharding.make_mesh())(jnp.float32(params))


def noisy(params, x_t, t_BL, batch):
  """A network that gives its input back: it is wrong by t (e - x)."""
  return params * x_t


def test_the_same_weights_give_the_same_bits():
  rows = [clip(0, 4), clip(1, 5)], [clip(2, 9)]
  first, again = losses(noisy, *rows), losses(noisy, *rows)
  assert first == again and losses(noisy, *rows, params=0.5) != first


def test_it_is_the_mean_over_clips_and_levels_whatever_they_are_packed_with():
  together = losses(noisy, [clip(0, 4), clip(1, 5)])
  each = [losses(noisy, [clip(0, 4)]), losses(noisy, [clip(1, 5)])]
  assert together["held_out"] == pytest.approx(np.mean([one["held_out"] for one in each]), rel=1e-5)
  by_level = [together[f"held_out_t{level:.2f}"] for level in LEVELS]
  assert together["held_out"] == pytest.approx(np.mean(by_level), rel=1e-6)
  assert together["held_out_first"] == pytest.approx(each[0]["held_out"], rel=1e-5)
  assert together["held_out_second"] == pytest.approx(each[1]["held_out"], rel=1e-5)
  assert "held_out_nobody" not in together


def test_rows_without_clips_count_for_nothing():
  rows = [clip(0, 4)], []
  assert losses(noisy, *rows)["held_out"] == pytest.approx(losses(noisy, rows[0])["held_out"], rel=1e-6)


def test_a_perfect_network_has_no_loss():
  perfect = lambda params, x_t, t_BL, batch: jnp.asarray(batch.tokens_BLC)
  assert set(losses(perfect, [clip(0, 4), clip(1, 5)]).values()) == {0.0}


def test_levels_are_seen_by_the_network():
  seen = []

  def call(params, x_t, t_BL, batch):
    jax.debug.callback(lambda t: seen.append(float(t)), t_BL[0, 0])
    return x_t

  losses(call, [clip(0, 4)])
  jax.effects_barrier()
  np.testing.assert_allclose(sorted(seen), LEVELS, rtol=1e-6)
