"""The autoencoder's task: it learns, starts from the best linear code, and ends with latents of unit size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax import sharding
from sora_jax.data.world_source import WorldSource
from sora_jax.models.autoencoder import AutoencoderConfig, Stage
from sora_jax.train.autoencoder import AutoencoderTask
from sora_jax.train.state import make_state, make_step

CONFIG = AutoencoderConfig(channels=4, stages=(Stage((2, 4, 4), 16, 1),))
KEY = jax.random.key(0)
OPTIMIZER = optax.adam(optax.linear_schedule(0.0, 2e-3, 20))


def clips(count: int, seed: int) -> np.ndarray:
  source = WorldSource("shapes", count, [(16, 16)], (5,), 8.0, seed)
  return np.stack([source[i].frames_THWC for i in range(count)])


def batch(seed: int, count: int = 8):
  return clips(count, seed), np.arange(count, dtype=np.int32)


@pytest.fixture(scope="module")
def task() -> AutoencoderTask:
  return AutoencoderTask(CONFIG, kl_weight=1e-4, motion_weight=0.5, probe_BTHWC=clips(40, 1))


@pytest.fixture(scope="module")
def state(task):
  return make_state(task, OPTIMIZER, 0, sharding.make_mesh())


@pytest.fixture(scope="module")
def evaluate(task):
  """PSNR in dB of the posterior's mean."""

  @jax.jit
  def psnr(params, batch):
    model = task.model(params)
    return -10 * jnp.log10(jnp.mean(jnp.square(model.decode(model.encode(batch[0])[0])[0] - batch[0])) / 4)

  return psnr


def test_the_loss_falls(task, state):
  step = jax.jit(make_step(task, OPTIMIZER, 0.99))
  fixed, losses = batch(2), []
  for _ in range(80):
    state, metrics = step(state, fixed)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-3:]) < 0.85 * losses[0], losses
  assert metrics.keys() >= {"l1", "motion", "kl", "psnr_db"}
  wanted = metrics["l1"] + 0.5 * metrics["motion"] + 1e-4 * metrics["kl"]
  assert float(metrics["loss"]) == pytest.approx(float(wanted), rel=1e-5)


def test_an_error_that_stays_from_frame_to_frame_is_none_of_motion(task, state):
  """Of a decoder that puts out nothing the error is the clip: a still one has no motion, an image none either."""
  silent = {
    **state.params,
    **{name: jax.tree.map(jnp.zeros_like, state.params[name]) for name in ("decoder", "linear_out")},
  }
  motion = lambda frames: float(task.loss(silent, (frames, np.arange(len(frames))), jax.random.key(0))[1]["motion"])
  frames = clips(2, 4)
  assert motion(frames) == pytest.approx(np.abs(np.diff(frames, axis=1)).mean(), rel=1e-4)
  assert motion(np.repeat(frames[:, :1], 5, axis=1)) == motion(frames[:, :1]) == 0.0


def test_the_linear_start_reconstructs_better_than_a_random_one(state, evaluate):
  random = dict(state.params)
  rng = np.random.default_rng(0)
  for name in ("linear_in", "linear_out"):
    kernel = state.params[name]["kernel"]
    random[name] = {"kernel": jnp.asarray(rng.normal(size=kernel.shape) * kernel.shape[0] ** -0.5, jnp.float32)}
  unseen = batch(3)
  assert float(evaluate(state.params, unseen)) > float(evaluate(random, unseen)) + 6


def test_finish_scales_latents_to_mean_0_and_std_1(task, state):
  drifted = {**state.params, "linear_in": jax.tree.map(lambda kernel: 3 * kernel, state.params["linear_in"])}
  params = task.finish(drifted)
  encode = jax.jit(lambda params, frames: task.model(params).encode(frames)[0])
  before = np.asarray(encode(drifted, task.probe)).reshape(-1, CONFIG.channels)
  after = np.asarray(encode(params, task.probe)).reshape(-1, CONFIG.channels)
  assert (before.std(0) > 2).all()
  np.testing.assert_allclose(after.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(after.std(0), 1, atol=1e-3)
  changed = {name for name in params if params[name] is not drifted[name]}
  assert changed == {"latent_mean", "latent_std"}


def test_finish_changes_no_reconstruction(task, state, evaluate):
  unseen = batch(3)
  finished = task.finish(state.params)
  assert float(evaluate(finished, unseen)) == pytest.approx(float(evaluate(state.params, unseen)), abs=1e-2)


def test_draws_belong_to_clips_not_to_their_place(task, state):
  frames, index = batch(4)
  loss = jax.jit(lambda frames, index, key: task.loss(state.params, (frames, index), key)[0])
  turned = np.roll(np.arange(8), 3)
  first = float(loss(frames, index, KEY))
  assert float(loss(frames[turned], index[turned], KEY)) == pytest.approx(first, rel=1e-6)
  assert float(loss(frames, index, jax.random.key(1))) != first
  assert float(loss(frames, index[turned], KEY)) != first


def test_a_clip_that_the_compression_does_not_divide_has_a_loss(task, state):
  frames, index = batch(4, 2)
  cut = (frames[:, :4, :15, :13], index)
  loss, _ = jax.jit(lambda params: task.loss(params, cut, KEY))(state.params)
  assert 0 < float(loss) < 2


def test_the_preview_shows_clips_above_their_reconstruction(task, state):
  picture = task.preview(state.params)
  assert picture.dtype == np.uint8 and picture.ndim == 3
  shown = np.rint((task.probe[0, 0] + 1) * 127.5).astype(np.uint8)
  np.testing.assert_array_equal(picture[2:18, 2:18], shown)
