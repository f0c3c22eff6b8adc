"""The compiled sampler: known tokens stay, conditions stay at their level, and a loop is one wherever it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data.segments import Piece, with_conditions
from sora_jax.inference.program import Plan, program
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import RowShape, Segment, pack_row, stack
from sora_jax.patches import Grid
from sora_jax.sharding import make_mesh

GRID, FPS, CHANNELS = Grid((2, 4, 4), (1, 1, 1)), 8.0, 4
ROW = RowShape(24, 4, 2)
CONFIG = DiTConfig(
  channels=CHANNELS,
  width=24,
  depth=2,
  heads=2,
  text=TextEncoderConfig(vocabulary=8, width=16, depth=1, heads=2),
  wavelengths=((0.4, 4.0), (8.0, 64.0), (8.0, 64.0)),
)


@pytest.fixture(scope="module")
def sample():
  """(batch, plan) -> clean tokens, by a transformer whose every parameter is drawn."""
  rng = np.random.default_rng(0)
  size = lambda leaf: leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3
  draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * size(leaf), jnp.float32)
  params = jax.tree.map(draw, abstract(DiT, CONFIG)[1])
  run = program(CONFIG, "x", 16)

  def call(batch, plan):
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
      return np.asarray(run(params, batch, plan, np.array([0.0, 1.0], np.float32), 3, "euler"))

  return call


def make_segment(frames: int, loop: bool = False, seed: int = 0) -> Segment:
  positions_N3 = GRID.positions(frames, 8, 8, FPS, loop)
  tokens_NC = np.random.default_rng(seed).normal(size=(len(positions_N3), CHANNELS)).astype(np.float32)
  nothing = np.zeros(len(tokens_NC), bool), np.zeros(len(tokens_NC), np.float32)
  size_4, period = np.array([frames / FPS, 8, 8, FPS], np.float32), loop * frames / FPS
  return Segment(tokens_NC, positions_N3, *nothing, np.array([1, 5], np.int32), size_4, 0, period=period)


def batch_of(segment: Segment, start: float = 1.0, held=()):
  held_BL = np.zeros((1, ROW.tokens), bool)
  held_BL[0, list(held)] = True
  plan = Plan(
    np.array([[7, 0]], np.int32), np.full((1, 2), start, np.float32), held_BL, np.array([[2.0, 1.0]], np.float32)
  )
  return stack([pack_row([segment], ROW, CHANNELS)]), plan


def test_an_edit_that_starts_at_no_noise_changes_nothing(sample):
  segment = make_segment(5)
  found = sample(*batch_of(segment, start=0.0))[0, : len(segment.tokens_NC)]
  np.testing.assert_allclose(found, segment.tokens_NC, atol=1e-6)


def test_known_tokens_come_back_and_lead_the_others(sample):
  segment = make_segment(5)
  found = sample(*batch_of(segment, held=range(6)))[0]
  np.testing.assert_allclose(found[:6], segment.tokens_NC[:6], atol=1e-5)
  other = segment._replace(tokens_NC=segment.tokens_NC + 1)
  assert np.abs(sample(*batch_of(other, held=range(6)))[0, 6:12] - found[6:12]).max() > 1e-3


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_condition_stays_at_its_noise_level(sample, level):
  """Of a clean one the tokens come back; of a noisy one they stay as noisy as they are told to be."""
  latent_thwC = np.random.default_rng(1).normal(size=(1, 2, 2, CHANNELS)).astype(np.float32)
  batch, plan = batch_of(with_conditions(make_segment(5), GRID, [Piece(latent_thwC, 0.5, level)]))
  found = sample(batch, plan)[0, 12:16]
  given = latent_thwC.reshape(4, CHANNELS)
  if not level:
    return np.testing.assert_allclose(found, given, atol=1e-6)
  noise = (found - (1 - level) * given) / level
  assert 0.5 < noise.std() < 1.5


class TestLoops:
  def test_moments_a_turn_later_are_the_same(self, sample):
    """Some of the latent frames are those of the next turn; a clip that is no loop changes."""
    later = np.where(np.arange(16)[:, None] < 8, np.array([[1.0, 0, 0]]), 0.0).astype(np.float32)
    found = []
    for loop in (True, False):
      segment = make_segment(8, loop=True)._replace(period=float(loop))
      moved = segment._replace(positions_N3=segment.positions_N3 + later)
      found.append([sample(*batch_of(each))[0, :16] for each in (segment, moved)])
    np.testing.assert_allclose(*found[0], atol=2e-4)
    assert np.abs(found[1][0] - found[1][1]).max() > 1e-2

  def test_a_piece_given_a_turn_later_is_the_same(self, sample):
    latent_thwC = np.random.default_rng(1).normal(size=(1, 2, 2, CHANNELS)).astype(np.float32)
    found = [
      sample(*batch_of(with_conditions(make_segment(8, loop=True), GRID, [Piece(latent_thwC, seconds)])))[0, :16]
      for seconds in (0.25, 1.25, 0.375)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=2e-4)
    assert np.abs(found[0] - found[2]).max() > 1e-3
