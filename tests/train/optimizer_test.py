"""The optimiser: rates by step, Muon for the matrices of blocks alone, gradients clipped, minima found."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Stage
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.sharding import path_name
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer, muon_dimensions, schedule

CONFIG = OptimizerConfig(0.02, 0.02, warmup=10, decay_share=0.2, steps=100, clip_norm=1.0)


class TestSchedule:
  @pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.1), (5, 0.55), (10, 1.0), (50, 1.0), (80, 1.0), (90, 0.5), (99, 0.05), (100, 0.0), (200, 0)],
  )
  def test_warm_up_constant_and_decay(self, step, share):
    assert float(schedule(0.3, CONFIG)(step)) == pytest.approx(0.3 * share, abs=1e-7)

  def test_no_decay_holds_the_rate_to_the_last_step(self):
    rates = schedule(0.3, CONFIG._replace(decay_share=0.0))
    assert float(rates(99)) == pytest.approx(0.3)

  @pytest.mark.parametrize("steps", [1, 2, 5, 11])
  def test_a_run_shorter_than_its_warm_up_still_ends_at_zero(self, steps):
    rates = schedule(0.3, CONFIG._replace(steps=steps))
    values = [float(rates(step)) for step in range(steps + 1)]
    assert 0 < max(values) <= 0.3 + 1e-6 and values[-1] == 0.0


class TestMuonDimensions:
  def test_muon_takes_the_matrices_of_blocks_and_nothing_else(self):
    text = TextEncoderConfig(vocabulary=300, width=8, depth=1, heads=1)
    config = DiTConfig(channels=4, width=16, depth=2, heads=2, text=text, wavelengths=((1.0, 9.0),) * 3)
    _, params = abstract(DiT, config)
    chosen = jax.tree_util.tree_map_with_path(
      lambda path, leaf, axes: (path_name(path), leaf.ndim, axes),
      params,
      muon_dimensions(params),
      is_leaf=lambda x: x is None,
    )
    rows = [row for row in jax.tree.leaves(chosen, is_leaf=lambda x: isinstance(x, tuple)) if isinstance(row, tuple)]
    taken = {name for name, _, axes in rows if axes is not None}
    left = {name for name, _, axes in rows if axes is None}
    own = {f"blocks/{name}/kernel" for name in ("qkv", "attention_out", "query", "key_value", "cross/attention_out")}
    assert own <= taken
    assert all("blocks/" in name and name.endswith("/kernel") for name in taken)
    assert not [name for name in left if "blocks/" in name and name.endswith("/kernel")]
    assert {"patch_in/kernel", "patch_out/kernel", "modulation/kernel", "blocks/table"} <= left
    for name, dimensions, axes in rows:
      if axes is not None:  # neither layers nor what they put out side by side is mixed
        assert dimensions == (4 if re.search("qkv|key_value|gate_up", name) else 3)
        assert (axes.reduction_axis, axes.output_axis) == (1, dimensions - 1)


def small_models() -> dict:
  """Parameters of a transformer and an autoencoder, all ones."""
  text = TextEncoderConfig(vocabulary=300, width=8, depth=1, heads=1)
  dit = DiTConfig(channels=4, width=16, depth=2, heads=2, text=text, wavelengths=((1.0, 9.0),) * 3)
  coder = AutoencoderConfig(channels=4, stages=(Stage((2, 2, 2), 8, 2),))
  shapes = {"dit": abstract(DiT, dit)[1], "autoencoder": abstract(Autoencoder, coder)[1]}
  return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


class TestWeightDecay:
  def test_matrices_shrink_by_their_rate_times_the_decay_and_nothing_else_does(self):
    config = CONFIG._replace(learning_rate=0.2, adam_learning_rate=0.1, weight_decay=0.5)
    start, optimizer = small_models(), make_optimizer(config)
    nothing = jax.tree.map(jnp.zeros_like, start)
    updates, _ = jax.jit(optimizer.update)(nothing, optimizer.init(start), start)
    rates = {"muon": float(schedule(0.2, config)(0)), "adam": float(schedule(0.1, config)(0))}
    kinds = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
      name = path_name(path)
      kind = ("muon" if "blocks/" in name else "adam") if name.endswith("kernel") else name.rsplit("/")[-1]
      kinds.add(kind)
      np.testing.assert_allclose(update, -0.5 * rates.get(kind, 0.0), rtol=1e-5, err_msg=name)
    vectors = {
      "gain",
      "bias",
      "table",
      "taps",
      "embedding",
      "condition_embedding",
      "loop_embedding",
      "latent_mean",
      "latent_std",
    }
    assert kinds == {"muon", "adam"} | vectors

  def test_the_setting_of_a_run_arrives(self, tiny_config):
    tiny_config.train.weight_decay = 0.25
    assert OptimizerConfig.of(tiny_config).weight_decay == 0.25


def params():
  rng = np.random.default_rng(0)
  return {
    "blocks": {"query": {"kernel": jnp.asarray(rng.normal(size=(2, 6, 6)), jnp.float32)}},
    "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
  }


class TestOptimizer:
  def test_a_quadratic_is_minimised(self):
    optimizer = make_optimizer(CONFIG._replace(learning_rate=0.2, adam_learning_rate=0.2, steps=150, clip_norm=10.0))
    loss = lambda p: sum(jnp.sum(jnp.square(leaf - 0.5)) for leaf in jax.tree.leaves(p))

    @jax.jit
    def step(carry, _):
      p, state = carry
      value, gradient = jax.value_and_grad(loss)(p)
      updates, state = optimizer.update(gradient, state, p)
      return (optax.apply_updates(p, updates), state), value

    start = params()
    (found, _), losses = jax.lax.scan(step, (start, optimizer.init(start)), None, length=150)
    assert float(losses[-1]) < 0.01 * float(losses[0])
    for leaf in jax.tree.leaves(found):
      np.testing.assert_allclose(leaf, 0.5, atol=0.2)

  def test_muon_moves_a_matrix_alike_along_every_direction(self):
    optimizer = make_optimizer(CONFIG)
    start = params()
    rng = np.random.default_rng(1)
    stretched = rng.normal(size=(2, 6, 6)) * np.geomspace(1, 0.1, 6)
    gradient = {"blocks": {"query": {"kernel": jnp.asarray(stretched, jnp.float32)}}, "bias": start["bias"]}
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(start), start)
    spread = lambda matrix: np.ptp(np.log(np.linalg.svd(np.asarray(matrix), compute_uv=False)), axis=-1).max()
    assert spread(updates["blocks"]["query"]["kernel"]) < 1.0 < spread(stretched)

  @pytest.mark.parametrize("size", [1.0, 100.0])
  def test_queries_keys_and_values_are_matrices_of_their_own(self, size):
    """One's update has the same size however large the others' gradients are, and no part of theirs."""
    optimizer, rng = make_optimizer(CONFIG), np.random.default_rng(0)
    start = {"blocks": {"qkv": {"kernel": jnp.zeros((2, 8, 3, 8))}}}
    drawn = jnp.asarray(rng.normal(size=(2, 8, 3, 8)), jnp.float32)
    gradient = {"blocks": {"qkv": {"kernel": drawn.at[:, :, 0].multiply(size)}}}
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(start), start)
    moved = updates["blocks"]["qkv"]["kernel"]
    rms = np.sqrt(np.mean(np.square(moved), axis=(0, 1, 3)))
    np.testing.assert_allclose(rms, 0.2 * float(schedule(CONFIG.learning_rate, CONFIG)(0)), rtol=0.25)
    for part in range(3):  # every part is orthogonal by itself
      values = np.linalg.svd(moved[:, :, part], compute_uv=False)
      assert np.ptp(np.log(values), axis=-1).max() < 1.0

  def test_a_gradient_above_the_limit_counts_as_one_at_it(self):
    optimizer = make_optimizer(CONFIG)
    update = jax.jit(optimizer.update)
    start = params()
    unit = jax.tree.map(lambda leaf: leaf / optax.global_norm(start), start)

    def moved(*sizes):
      state = optimizer.init(start)
      for size in sizes:
        updates, state = update(jax.tree.map(lambda leaf, by=size: leaf * by, unit), state, start)
      return updates

    at_limit, above, below = moved(0.1, 1.0, 0.1), moved(0.1, 1e4, 0.1), moved(0.1, 0.2, 0.1)
    gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))
    assert gap(at_limit, above) < 1e-6 < gap(at_limit, below)
