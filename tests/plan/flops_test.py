"""Operations by formula against those that a trace of the model has."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion.objective import NoiseLevels
from sora_jax.models.dit import DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import RowShape, pack_row, stack
from sora_jax.plan import flops
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer

ROWS = flops.Rows(2, RowShape(tokens=128, text=32, segments=4), clip=128.0)
# Many narrow heads: what the formulas leave out (rotary turns, sums of weights) is then the least part.
SIZES = {"channels": 8, "width": 256, "depth": 3, "heads": 32, "wavelengths": ((1.0, 9.0),) * 3}


def products(jaxpr) -> float:
  """Operations of all matrix products, loops multiplied out."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (summed, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in summed)
    inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
    turns = equation.params.get("length", 1)
    total += sum(turns * products(each) for each in inner if hasattr(each, "eqns"))
  return total


def traced(remat: str):
  text = TextEncoderConfig(vocabulary=32, width=64, depth=2, heads=8, remat=remat)
  model = DiTConfig(text=text, remat=remat, **SIZES)
  task = DiTTask(model, DiffusionConfig("x", "clip", NoiseLevels(0.0, 1.0, 8), 0.1))
  params = jax.eval_shape(task.init, jax.random.key(0))
  batch = stack([pack_row([], ROWS.shape, model.channels)] * ROWS.rows)
  loss = lambda params: task.loss(params, batch, jax.random.key(0))[0]
  forward, both = (jax.make_jaxpr(function)(params).jaxpr for function in (loss, jax.grad(loss)))
  return flops.count(params, model, ROWS, remat), products(forward), products(both)


def test_forward_and_backward_are_those_of_the_model():
  counted, forward, both = traced("none")
  assert counted.forward == pytest.approx(forward, rel=0.05) and counted.forward < forward
  assert counted.model == pytest.approx(both, rel=0.05)
  assert counted.recompute == 0
  assert 0.05 < counted.attention / counted.model < 0.5  # or the test would not see it


def test_what_is_made_again_is_counted_apart():
  counted, _, both = traced("full")
  plain, _, without = traced("none")
  assert counted.model == plain.model
  # A trace still has each block's last product, which nobody uses and XLA leaves out.
  hidden, text_hidden = 704, 192
  last = 2 * ROWS.rows * (3 * 128 * 256 * hidden + 2 * 32 * 64 * text_hidden)
  assert counted.recompute == pytest.approx(both - without - last, rel=0.05)


def test_attention_that_is_kept_is_not_made_again():
  full, kept = (flops.count(PARAMS, MODEL, ROWS, remat) for remat in ("full", "attention"))
  assert full.recompute - kept.recompute == pytest.approx(full.attention / 4)


def test_attention_is_within_clips():
  counted = lambda clip: flops.count(PARAMS, MODEL, ROWS._replace(clip=clip), "none")
  whole, half = counted(128.0), counted(64.0)
  assert half.attention == pytest.approx(whole.attention / 2)
  assert whole.forward - half.forward == pytest.approx(whole.attention / 6)


TEXT = TextEncoderConfig(vocabulary=32, width=16, depth=1, heads=2)
MODEL = DiTConfig(channels=8, width=32, depth=2, heads=2, text=TEXT, wavelengths=((1.0, 9.0),) * 3)
PARAMS = {"blocks": {"qkv": {"kernel": jax.ShapeDtypeStruct((2, 32, 3, 32), jnp.float32)}}}


def test_muon_s_iterations_are_counted():
  found = flops.count(PARAMS, MODEL, ROWS, "none").optimizer
  x = np.zeros((32, 32))
  one = 2 * (x @ x.T).size * 32 + 2 * 32 * 32 * 32 + 2 * x.size * 32  # A = x x^T, A A, and the two times x
  assert found == 2 * 3 * 5 * one  # layers; queries, keys and values; iterations


def test_muon_s_products_are_those_of_a_trace():
  params = {"blocks": {"gate_up": {"kernel": jax.ShapeDtypeStruct((2, 32, 2, 96), jnp.float32)}}}
  optimizer = make_optimizer(OptimizerConfig(0.1, 0.1, 1, 0.2, 10, 1.0))
  update = lambda params: optimizer.update(params, optimizer.init(params), params)[0]
  counted = flops.count(params, MODEL, ROWS, "none").optimizer
  assert counted == pytest.approx(products(jax.make_jaxpr(update)(params).jaxpr), rel=1e-3)


def test_the_clip_that_a_token_is_in():
  assert flops.clip_length([7], [1.0], 100) == 7
  assert flops.clip_length([1, 3], [0.5, 0.5], 100) == (1 + 9) / 4  # three of four tokens are in the longer one
  assert flops.clip_length([1, 3], [0.75, 0.25], 100) == (3 + 9) / 6  # three clips of one token to one of three
  assert flops.clip_length([1, 300], [0.5, 0.5], 3) == (1 + 9) / 4
