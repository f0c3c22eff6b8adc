"""The transformer's task: packing changes no loss, captions count unless dropped, one clip can be learned by heart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import sharding
from sora_jax.diffusion.objective import NoiseLevels
from sora_jax.models.dit import DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, stack
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.held_out import HeldOut
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.state import make_state, make_step

CHANNELS = 4
CONFIG = DiTConfig(
  channels=CHANNELS,
  width=24,
  depth=1,
  heads=2,
  text=TextEncoderConfig(vocabulary=32, width=8, depth=1, heads=1),
  wavelengths=((1.0, 16.0), (4.0, 64.0), (4.0, 64.0)),
)
ROW = RowShape(12, 12, 3)
KEY = jax.random.key(3)


def make_clip(index: int, tokens: int, words: tuple[int, ...]) -> Segment:
  rng = np.random.default_rng(index)
  return Segment(
    tokens_NC=rng.normal(size=(tokens, CHANNELS)).astype(np.float32),
    positions_N3=(rng.random((tokens, 3)) * 16).astype(np.float32),
    condition_N=np.arange(tokens) < index % 2,
    level_N=np.zeros(tokens, np.float32),
    text_M=np.array([1, *words], np.int32),
    size_4=np.array([1, 8, 8 + index, 8], np.float32),
    index=index,
  )


CLIPS = [make_clip(0, 3, (5, 6)), make_clip(1, 5, (7,)), make_clip(2, 4, (8, 9, 10))]


def packed(*rows) -> PackedBatch:
  return stack([pack_row([CLIPS[i] for i in row], ROW, CHANNELS) for row in rows])


def make_task(caption_drop=0.0, prediction="x", weighting="clip") -> DiTTask:
  return DiTTask(CONFIG, DiffusionConfig(prediction, weighting, NoiseLevels(0.0, 1.0, 4), caption_drop))


@pytest.fixture(scope="module")
def params():
  """Every parameter drawn, since a fresh transformer predicts zeros."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(make_task().init, KEY)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


@functools.cache
def loss_of(**settings):
  """The compiled loss of a task with these settings."""
  task = make_task(**settings)
  return jax.jit(lambda params, batch: task.loss(params, batch, KEY))


def test_a_packed_row_s_loss_is_the_mean_of_its_clips_alone(params):
  loss = loss_of()
  alone = [float(loss(params, packed([i]))[0]) for i in range(3)]
  together, metrics = loss(params, packed([0, 1, 2]))
  assert len({round(value, 4) for value in alone}) == 3
  assert float(together) == pytest.approx(np.mean(alone), rel=1e-5)
  predicted = [3, 4, 4]  # tokens that are not given
  assert float(metrics["loss_per_token"]) == pytest.approx(np.average(alone, weights=predicted), rel=1e-5)


def renamed(batch: PackedBatch) -> PackedBatch:
  """The same clips with other captions."""
  return batch._replace(text_BM=np.where(batch.text_BM > 1, batch.text_BM + 10, batch.text_BM))


def test_captions_count_unless_all_are_dropped(params):
  batch = packed([0, 1, 2])
  kept, dropped = loss_of(), loss_of(caption_drop=1.0)
  assert float(kept(params, batch)[0]) != pytest.approx(float(kept(params, renamed(batch))[0]), rel=1e-4)
  assert float(dropped(params, batch)[0]) == pytest.approx(float(dropped(params, renamed(batch))[0]), rel=1e-6)


@pytest.mark.parametrize(("caption_drop", "counts"), [(0.1, True), (1.0, False)])
def test_held_out_clips_have_captions_if_training_shows_any(params, caption_drop, counts):
  def held_out_loss(batch: PackedBatch) -> float:
    mesh = sharding.make_mesh()
    held_out = HeldOut([batch], ("all",), [np.ones((*batch.weight_BS.shape, 1), np.float32)])
    diffusion = DiffusionConfig("x", "clip", NoiseLevels(0.0, 1.0, 4), caption_drop)
    return DiTTask(CONFIG, diffusion, held_out=(held_out, mesh)).evaluate(params)["held_out"]

  losses = [held_out_loss(batch) for batch in (packed([0, 1, 2]), renamed(packed([0, 1, 2])))]
  assert (losses[0] != pytest.approx(losses[1], rel=1e-6)) == counts


def test_what_the_output_means_changes_the_loss(params):
  batch = packed([0, 1, 2])
  clean, velocity = float(loss_of()(params, batch)[0]), float(loss_of(prediction="v")(params, batch)[0])
  assert np.isfinite(velocity) and velocity != pytest.approx(clean, rel=1e-3)
  # A network that has learnt nothing yet is right already about what is nearly clean.
  assert float(loss_of(prediction="filtered")(params, batch)[0]) < 0.9 * clean


@pytest.mark.parametrize(
  ("change", "message"), [({"prediction": "noise"}, "'noise'"), ({"weighting": "frame"}, "'frame'")]
)
def test_an_unknown_setting_is_named(params, change, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda p: make_task(**change).loss(p, packed([0]), KEY), params)


def test_one_clip_is_learned_by_heart():
  task = make_task()
  optimizer = make_optimizer(OptimizerConfig(0.05, 0.02, 5, 0.3, 80, 10.0))
  state = make_state(task, optimizer, 0, sharding.make_mesh())
  step = jax.jit(make_step(task, optimizer, 0.9))
  batch = packed([0], [0], [0], [0])
  # Four names for the one clip: four noise levels and noises a step.
  batch = batch._replace(clip_index_BS=np.arange(12, dtype=np.int32).reshape(4, 3))
  losses = []
  for _ in range(80):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3]), losses


def test_nothing_is_drawn_or_changed_at_the_end(params):
  task = make_task()
  assert task.preview(params) is None
  assert task.finish(params) is params
  drawn = DiTTask(CONFIG, task.diffusion, preview=lambda given: np.full((2, 2, 3), len(given), np.uint8))
  assert drawn.preview([1, 2, 3])[0, 0, 0] == 3
