"""A stack of the project's blocks as a step to be timed, its sizes, and the floating-point operations of that step.

A step is forward, backward and Adam over a stack of `sora_jax.models.dit.Block`: packed rows with segments, adaLN
modulation of each token, self attention, cross attention to captions, SwiGLU. The gradients with respect to the
first block's input and to the modulation are taken as well, as they are in the whole model.

Floating-point operations of a step, a multiply-add counted as 2:

    6 * sum over dense layers of (weights a block [numbers] * depth * items that pass through it [tokens])
      + 12 * width * depth * rows * tokens * (tokens + text_tokens)

6 = 2 forward + 4 backward (input and weight gradients) for each weight and token; 12 = the same for the two products of
attention, which contract `width` numbers for each pair of query and key in a row, masked pairs included. Norms, rotary
positions, softmax, gates and Adam count nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

LEARNING_RATE = 1e-4


class Shape(NamedTuple):
  """Sizes of the stack and of its batch."""

  width: int = 384
  depth: int = 3
  heads: int = 6
  rows: int = 8
  tokens: int = 256  # a row
  segments: int = 4  # a row
  text_tokens: int = 64  # a row
  text_width: int = 192

  @property
  def hidden(self) -> int:
    return -(-self.width * 8 // 3 // 32) * 32


def add_sizes(parser: argparse.ArgumentParser) -> None:
  for name, value in Shape()._asdict().items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N", help=f"default {value}")


def given_sizes(options: argparse.Namespace) -> Shape:
  return Shape(**{name: getattr(options, name) for name in Shape._fields})


def step_flops(shape: Shape, met: float = 1.0) -> float:
  """Floating-point operations of one step (see the module's docstring), with a share of the pairs."""
  D = shape.width
  tokens, text_tokens = shape.rows * shape.tokens, shape.rows * shape.text_tokens
  dense = tokens * (3 * D * D + D * D + D * D + D * D + 3 * D * shape.hidden) + text_tokens * 2 * shape.text_width * D
  attention = D * tokens * (shape.tokens + shape.text_tokens) * met
  return shape.depth * (6.0 * dense + 12.0 * attention)


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def segment_ids(length: int, segments: int) -> list[int]:
  """Equal segments of one row, numbered from 1."""
  return [1 + i * segments // length for i in range(length)]


def our_blocks(shape: Shape) -> Any:
  """The project's blocks, their parameters stacked."""
  from flax import nnx

  from sora_jax.models import layers
  from sora_jax.models.dit import Block, DiTConfig
  from sora_jax.models.text_encoder import TextEncoderConfig

  text = TextEncoderConfig(vocabulary=1, width=shape.text_width, depth=1, heads=1)
  config = DiTConfig(channels=1, width=shape.width, depth=shape.depth, heads=shape.heads, text=text, wavelengths=())
  return layers.make_stack(lambda rngs: Block(config, rngs), shape.depth, nnx.Rngs(0))


def our_inputs(shape: Shape, dtype: str) -> tuple[Any, Any, Any]:
  """(the first block's input, the six of modulation), the target, and what else every block takes."""
  import jax
  import jax.numpy as jnp

  rows, tokens, width = shape.rows, shape.tokens, shape.width
  keys = jax.random.split(jax.random.key(1), 5)
  x = jax.random.normal(keys[0], (rows, tokens, width), dtype)
  modulation = [jax.random.normal(key, (rows, tokens, width)) * 0.1 for key in jax.random.split(keys[1], 6)]
  target = jax.random.normal(keys[2], (rows, tokens, width))
  text_BMD = jax.random.normal(keys[3], (rows, shape.text_tokens, shape.text_width), dtype)
  angles = jax.random.uniform(keys[4], (rows, tokens, width // shape.heads // 2))
  rotary = (jnp.cos(angles), jnp.sin(angles))
  segments = jnp.tile(jnp.array(segment_ids(tokens, shape.segments)), (rows, 1))
  text_segments = jnp.tile(jnp.array(segment_ids(shape.text_tokens, shape.segments)), (rows, 1))
  return (x, modulation), target, (segments, rotary, text_BMD, text_segments)


def our_forward(blocks: Any, inputs: Any, context: Any, remat: str = "none") -> Any:
  """What the blocks make of the inputs."""
  from sora_jax.models import layers

  x, modulation = inputs
  return layers.apply_stack(blocks, x, lambda block, x: block(x, modulation, *context), remat)


def our_step(shape: Shape, dtype: str = "float32", remat: str = "none") -> Callable[[], Any]:
  """One training step of a stack of the project's blocks, compiled, its state donated.

  Args:
    dtype: what the blocks compute in.
    remat: what of a block the backward pass makes again, of `layers.REMAT`.
  """
  import jax
  import jax.numpy as jnp
  import optax
  from flax import nnx

  from sora_jax.runtime.process import keep_freed_memory

  keep_freed_memory()
  graph, params = nnx.split(our_blocks(shape))
  inputs, target, context = our_inputs(shape, dtype)

  def loss(params: Any, inputs: Any, data: Any) -> jax.Array:
    target, context = data
    return jnp.mean(jnp.square(our_forward(nnx.merge(graph, params), inputs, context, remat) - target))

  optimizer = optax.adam(LEARNING_RATE)

  def step(state: Any, inputs: Any, data: Any) -> tuple[Any, Any]:
    params, moments = state
    value, (gradient, input_gradient) = jax.value_and_grad(loss, (0, 1))(params, inputs, data)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), (value, input_gradient)

  compiled = jax.jit(step, donate_argnums=0)
  holder = [(params, optimizer.init(params))]

  def run() -> None:
    holder[0], out = compiled(holder[0], inputs, (target, context))
    jax.block_until_ready((holder[0], out))

  return run
