"""One step: the average follows, a bad batch changes nothing, draws belong to clips and not to rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax import sharding
from sora_jax.diffusion.objective import NoiseLevels
from sora_jax.models.dit import DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, stack
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.state import abstract_state, ema_decay, gradient_of, make_state, make_step


class Line:
  """Linear regression; the noise of its key shows in a metric."""

  def init(self, key):
    return {"linear_in": {"kernel": 0.1 * jax.random.normal(key, (4, 1))}, "bias": jnp.zeros(1)}

  def loss(self, params, batch, key):
    x, y = batch
    error = x @ params["linear_in"]["kernel"] + params["bias"][None] - y
    return jnp.mean(jnp.square(error)), {"draw": jax.random.normal(key)}


def batch(seed: int):
  x = np.random.default_rng(seed).normal(size=(16, 4)).astype(np.float32)
  return x, x.sum(1, keepdims=True) + 1


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh()


@pytest.fixture(scope="module")
def step():
  return jax.jit(make_step(Line(), optax.adam(0.05), 0.99))


@pytest.fixture(scope="module")
def start(mesh):
  return make_state(Line(), optax.adam(0.05), 0, mesh)


class TestEma:
  def test_the_memory_grows_from_a_tenth_to_the_most(self):
    values = [float(ema_decay(jnp.asarray(step), 0.99)) for step in (0, 1, 10, 100, 10_000)]
    assert values[0] == pytest.approx(0.1)
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.99) and max(values) <= 0.99 + 1e-6

  def test_the_average_is_what_the_formula_says(self, step, start):
    state, expected = start, leaves(start.ema)
    for number in range(5):
      keep = float(ema_decay(jnp.asarray(number), 0.99))
      state, _ = step(state, batch(number))
      expected = [keep * old + (1 - keep) * new for old, new in zip(expected, leaves(state.params), strict=True)]
    for found, wanted, moving in zip(leaves(state.ema), expected, leaves(state.params), strict=True):
      np.testing.assert_allclose(found, wanted, atol=1e-6)
      assert (found != moving).any()


class TestStep:
  def test_the_same_seed_starts_the_same_and_another_does_not(self, start, mesh):
    again, other = (make_state(Line(), optax.adam(0.05), seed, mesh) for seed in (0, 1))
    assert all((a == b).all() for a, b in zip(leaves(start), leaves(again), strict=True))
    kernel = lambda state: np.asarray(state.params["linear_in"]["kernel"])
    assert (kernel(start) != kernel(other)).any()
    assert int(start.step) == 0

  def test_what_a_state_will_be_is_known_before_it_is_made(self, start, mesh):
    like = abstract_state(Line(), optax.adam(0.05), 0, mesh)
    assert jax.tree.structure(like) == jax.tree.structure(start)
    kinds = lambda state: [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(state)]
    assert kinds(like) == kinds(start)

  def test_the_average_begins_as_the_parameters(self, start):
    for a, b in zip(leaves(start.params), leaves(start.ema), strict=True):
      np.testing.assert_array_equal(a, b)

  def test_steps_count_and_learn(self, step, start):
    state = start
    losses = []
    for number in range(200):
      state, metrics = step(state, batch(number))
      losses.append(float(metrics["loss"]))
    assert int(state.step) == 200 and losses[-1] < 0.01 * losses[0]
    np.testing.assert_array_equal(state.rng, start.rng)

  def test_each_step_draws_anew_and_the_same_step_the_same(self, step, start):
    state, first = step(start, batch(0))
    _, second = step(state, batch(0))
    _, again = step(start, batch(0))
    assert float(first["draw"]) == float(again["draw"]) != float(second["draw"])

  @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
  def test_a_batch_that_is_not_finite_changes_nothing(self, step, start, bad):
    state, _ = step(start, batch(0))
    x, y = batch(1)
    x = x.copy()
    x[3, 2] = bad
    kept, metrics = step(state, (x, y))
    assert not bool(metrics["finite"])
    for before, after in zip(leaves(state), leaves(kept), strict=True):
      np.testing.assert_array_equal(before, after)
    good, metrics = step(kept, batch(1))
    assert bool(metrics["finite"]) and int(good.step) == 2


class Packed(NamedTuple):
  """A small transformer, and six clips to pack."""

  task: DiTTask
  params: Any
  clips: list[Segment]

  def rows(self, *rows: list[int]) -> PackedBatch:
    return stack([pack_row([self.clips[i] for i in row], RowShape(12, 8, 3), 4) for row in rows])

  @staticmethod
  def make(weighting: str = "clip") -> "Packed":
    text = TextEncoderConfig(vocabulary=32, width=8, depth=1, heads=1)
    config = DiTConfig(channels=4, width=16, depth=1, heads=2, text=text, wavelengths=((1.0, 9.0),) * 3)
    task = DiTTask(config, DiffusionConfig("x", weighting, NoiseLevels(0.0, 1.0, 8), 0.5))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.2, jnp.float32), shapes)
    clips = [
      Segment(
        rng.normal(size=(n, 4)).astype(np.float32),
        rng.random((n, 3)).astype(np.float32) * 9,
        np.arange(n) < i % 2,
        np.zeros(n, np.float32),
        np.array([1, 5 + i], np.int32),
        np.array([1, 8, 8, 8], np.float32),
        i,
      )
      for i, n in enumerate((5, 3, 4, 6, 2, 7))
    ]
    return Packed(task, params, clips)


class TestDraws:
  """The loss of a real transformer on packed rows."""

  def test_the_order_of_rows_and_their_padding_change_no_draw(self):
    small = Packed.make()
    packed = small.rows
    loss = jax.jit(lambda batch: small.task.loss(small.params, batch, jax.random.key(7))[0])
    first = float(loss(packed([0, 1], [2, 3], [4, 5])))
    for rows in (([4, 5], [0, 1], [2, 3]), ([1, 0], [3, 2], [5, 4]), ([0, 4, 1], [5, 2], [3])):
      assert float(loss(packed(*rows))) == pytest.approx(first, rel=1e-5)
    renamed = packed([0, 1], [2, 3], [4, 5])
    renamed = renamed._replace(clip_index_BS=renamed.clip_index_BS + 100)
    assert float(loss(renamed)) != pytest.approx(first, rel=1e-3)


class TestParts:
  @pytest.mark.parametrize("weighting", ["clip", pytest.param("token", marks=pytest.mark.slow)])
  def test_a_batch_in_parts_has_the_gradient_of_the_whole(self, weighting):
    small = Packed.make(weighting)
    rows = small.rows([0, 1, 4], [2], [3], [5])  # parts of unequal weight
    call = lambda parts: jax.jit(lambda batch: gradient_of(small.task, small.params, batch, jax.random.key(7), parts))
    (loss, metrics), gradient = call(1)(rows)
    (parts_loss, parts_metrics), parts_gradient = call(2)(rows)
    assert float(parts_loss) == pytest.approx(float(loss), rel=1e-5) and parts_metrics.keys() == metrics.keys()
    for found, wanted in zip(leaves(parts_gradient), leaves(gradient), strict=True):
      np.testing.assert_allclose(found, wanted, atol=1e-5)

  def test_rows_that_parts_cannot_share_are_refused(self):
    with pytest.raises(ValueError, match="train.accumulation=3: 16 rows can't be shared by 1 ranks in 3 micro-batches"):
      gradient_of(Line(), None, batch(0), None, 3)
