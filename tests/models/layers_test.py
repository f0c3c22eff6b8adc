"""Layers against their formulas; rotary positions are relative; stacks equal loops, with and without recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.models import layers
from sora_jax.models.attention.attention import attention

WAVELENGTHS = ((0.5, 16.0), (8.0, 256.0), (8.0, 256.0))


def normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(kernel: jax.Array, bias: jax.Array | None = None) -> layers.Dense:
  layer = layers.Dense(*kernel.shape, nnx.Rngs(params=0), bias=bias is not None)
  layer.kernel[...] = kernel
  if bias is not None:
    layer.bias[...] = bias
  return layer


def test_dense_is_a_product_and_a_bias():
  kernel, bias, x = normal(0, 4, 3), normal(1, 3), normal(2, 5, 4)
  np.testing.assert_allclose(
    dense(kernel, bias)(x), np.asarray(x) @ np.asarray(kernel) + np.asarray(bias), rtol=1e-5, atol=1e-6
  )
  half = dense(kernel, bias)(x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_dense_keeps_the_size_of_its_input_times_scale(scale):
  layer = layers.Dense(64, 64, nnx.Rngs(params=0), scale=scale)
  assert float(jnp.std(layer(normal(0, 64, 64)))) == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # one product and a cut, or one for each
def test_joined_layers_are_a_product_for_each(monkeypatch, platform):
  monkeypatch.setattr(layers.sharding, "platform", lambda: platform)
  layer, x = layers.JoinedDense(4, 3, 5, nnx.Rngs(params=0)), normal(2, 2, 6, 4)
  found = layer(x)
  assert len(found) == 3
  for part, y in enumerate(found):
    assert y.shape == (2, 6, 5)
    np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(layer.kernel[:, part]), rtol=1e-5, atol=1e-6)
  assert float(jnp.std(layers.JoinedDense(64, 2, 64, nnx.Rngs(params=0)).kernel[...])) == pytest.approx(1 / 8, rel=0.1)


def test_rms_norm_is_its_formula():
  x = np.asarray(normal(0, 4, 6) * 7)
  expected = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(layers.rms_norm(jnp.asarray(x)), expected, rtol=1e-6)


def test_rms_norm_of_low_precision_is_computed_in_float32():
  x = normal(0, 4, 6).astype(jnp.bfloat16) * 100
  out = layers.rms_norm(x)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, layers.rms_norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_rms_norm_of_zeros_has_a_finite_gradient():
  assert jnp.isfinite(jax.grad(lambda x: layers.rms_norm(x).sum())(jnp.zeros((2, 4)))).all()


class TestHeadNorm:
  @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
  def test_a_fresh_one_is_the_norm_alone(self, dtype):
    x = normal(0, 2, 5, 3, 8).astype(dtype)
    found = layers.HeadNorm(3, 8)(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, layers.rms_norm(x))

  def test_each_head_has_a_gain_of_its_own(self):
    norm, x = layers.HeadNorm(3, 8), normal(0, 2, 5, 3, 8)
    norm.gain[...] = normal(1, 3, 8)
    np.testing.assert_allclose(norm(x), layers.rms_norm(x) * norm.gain[...][None, None], rtol=1e-6)

  def test_a_key_can_get_nearly_all_the_attention_of_8192(self):
    """One key equals the query and the rest are at right angles to it: the norm alone gives it a quarter."""
    one_hot = jnp.eye(64)[jnp.array([0] + [1] * 8191)][None, :, None]
    segments, value = jnp.ones((1, 8192), int), jnp.zeros((1, 8192, 1, 64)).at[:, 0].set(1.0)

    def share(gain):
      norm = layers.HeadNorm(1, 64)
      norm.gain[...] = jnp.full((1, 64), gain)
      mixed = attention(norm(one_hot[:, :1]), norm(one_hot), value, segments[:, :1], segments, "dense")
      return float(mixed[0, 0, 0, 0])

    assert share(1.0) == pytest.approx(0.267, abs=0.01)
    assert share(2.0) > 0.99


def test_in_bfloat16_modulation_and_gates_are_rounded_once():
  draw = lambda seed: jax.random.normal(jax.random.key(seed), (4, 64))
  x, more = draw(0).astype(jnp.bfloat16), draw(1).astype(jnp.bfloat16)
  scale, shift = 1e-3 * draw(2), 2 + 1e-3 * draw(3)
  wide = x.astype(jnp.float32)
  expected = (layers.rms_norm(wide) * (1 + scale) + shift).astype(jnp.bfloat16)
  np.testing.assert_array_equal(layers.modulate(x, scale, shift), expected)
  expected = (wide + shift * more.astype(jnp.float32)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(layers.add_gated(x, shift, more), expected)


def test_modulate_scales_and_shifts_the_norm():
  x, scale, shift = normal(0, 3, 4), normal(1, 3, 4), normal(2, 3, 4)
  np.testing.assert_allclose(layers.modulate(x, scale, shift), layers.rms_norm(x) * (1 + scale) + shift, rtol=1e-6)
  np.testing.assert_array_equal(layers.modulate(x, 0 * scale, 0 * shift), layers.rms_norm(x))


def test_swiglu_is_its_formula():
  layer = layers.SwiGLU(24, nnx.Rngs(params=0))
  x = np.asarray(normal(1, 5, 24))
  assert layer.hidden == 64
  gate, up = (x @ kernel for kernel in np.asarray(layer.gate_up.kernel[...]).swapaxes(0, 1))
  expected = (gate / (1 + np.exp(-gate)) * up) @ np.asarray(layer.down.kernel[...])
  np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@jax.jit
def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
  angles = layers.rotary_angles(positions, x.shape[-1], WAVELENGTHS)
  return layers.rotate(x, jnp.cos(angles), jnp.sin(angles))


def test_rotation_multiplies_pairs_as_complex_numbers():
  x, angles = normal(0, 9, 14), normal(1, 9, 7) * 3
  pairs = (np.asarray(x[:, :7]) + 1j * np.asarray(x[:, 7:])) * np.exp(1j * np.asarray(angles))
  turned = layers.rotate(x, jnp.cos(angles), jnp.sin(angles))
  np.testing.assert_allclose(turned, np.concatenate([pairs.real, pairs.imag], -1), atol=1e-5)
  assert layers.rotate(x.astype(jnp.bfloat16), jnp.cos(angles), jnp.sin(angles)).dtype == jnp.bfloat16


def test_rotation_keeps_the_norm():
  x = normal(0, 9, 14)
  turned = rotated(x, normal(1, 9, 3) * 10)
  np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
  assert not np.allclose(turned, x, atol=0.1)


def test_scores_depend_on_differences_of_position_only():
  query, key, at, offset = normal(0, 9, 14), normal(1, 9, 14), normal(2, 9, 3), normal(3, 1, 3) * 4
  score = lambda a, b: np.asarray(rotated(query, a) @ rotated(key, b).T)
  np.testing.assert_allclose(score(at + offset, at + offset), score(at, at), atol=2e-4)  # float32 angles
  assert not np.allclose(score(at + offset, at), score(at, at), atol=0.1)


@pytest.mark.parametrize("axis", range(3))
def test_every_axis_of_position_turns_the_head(axis):
  x = normal(0, 1, 14)
  moved = rotated(x, jnp.zeros((1, 3)).at[:, axis].set(0.2))
  assert float(jnp.abs(moved - rotated(x, jnp.zeros((1, 3)))).max()) > 1e-3


def test_the_shortest_and_longest_wavelengths_are_those_asked_for():
  angles = layers.rotary_angles(jnp.array([[0.5, 8.0, 8.0], [16.0, 256.0, 256.0]]), 14, WAVELENGTHS)
  share = [slice(0, 3), slice(3, 5), slice(5, 7)]  # seven pairs: the first axis has the one left over
  assert angles.shape == (2, 7)
  for band in share:
    np.testing.assert_allclose(angles[0, band][0], 2 * np.pi, rtol=1e-5)
    np.testing.assert_allclose(angles[1, band][-1], 2 * np.pi, rtol=1e-5)


def test_on_a_circle_a_period_later_is_now_and_frequencies_are_the_nearest_that_close():
  at, period = normal(0, 9, 3), jnp.array([0.7, 1.3, 5.0] * 3)
  later = at + jnp.stack([period, 0 * period, 0 * period], -1)
  angles = lambda positions, period: layers.rotary_angles(positions, 14, WAVELENGTHS, period)
  for turn in (jnp.cos, jnp.sin):
    np.testing.assert_allclose(turn(angles(at, period)), turn(angles(later, period)), atol=1e-4)
  line, circle = layers.rotary_angles(at, 14, WAVELENGTHS), angles(at, period)
  np.testing.assert_array_equal(circle[:, 3:], line[:, 3:])  # of the places in the frame
  moved = np.abs(np.asarray(circle - line)[:, :3])
  assert (moved <= np.pi * np.abs(np.asarray(at[:, :1] / period[:, None])) + 1e-3).all() and moved.max() > 0.1
  np.testing.assert_array_equal(angles(at, 0 * period), line)


def test_fourier_features_are_cosines_and_sines_of_the_asked_range():
  x = normal(0, 2, 3)
  features = layers.fourier_features(x, 4, 1.0, 1000.0)
  assert features.shape == (2, 3, 8)
  angle = np.asarray(x)[..., None] * np.array([1.0, 10.0, 100.0, 1000.0])
  np.testing.assert_allclose(features, np.concatenate([np.cos(angle), np.sin(angle)], -1), atol=1e-3)
  np.testing.assert_allclose(features[..., :4] ** 2 + features[..., 4:] ** 2, 1.0, rtol=1e-5)


DEPTH = 3


@pytest.fixture(scope="module")
def stack() -> layers.SwiGLU:
  return layers.make_stack(lambda rngs: layers.SwiGLU(8, rngs), DEPTH, nnx.Rngs(params=0))


def residual(block: layers.SwiGLU, x: jax.Array) -> jax.Array:
  return x + block(layers.rms_norm(x))


def through(stack: layers.SwiGLU, how: str):
  """(output, parameter gradient) of a stack run by a scan, with or without remat, or by a loop."""
  graph, params = nnx.split(stack)
  x = normal(1, 5, 8)

  def total(params):
    blocks = nnx.merge(graph, params)
    if how == "loop":
      out = x
      for number in range(DEPTH):
        block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[number], params))  # noqa: B023
        out = residual(block, out)
    else:
      out = layers.apply_stack(blocks, x, residual, remat="none" if how == "scan" else how)
    return jnp.sum(out**2), out

  (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
  return out, nnx.to_pure_dict(gradient)


@pytest.fixture(scope="module")
def scanned(stack):
  return through(stack, "scan")


@pytest.mark.parametrize("how", ["loop", "full", "attention", "offload"])
def test_a_stack_equals(stack, scanned, how):
  out, gradient = through(stack, how)
  np.testing.assert_allclose(out, scanned[0], rtol=1e-5, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, scanned[1])


def test_what_is_computed_again_need_not_be_kept():
  """Numbers that a deep stack of attention keeps for its gradient: all > what attention gave > none."""

  class Attending(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
      self.qkv = layers.JoinedDense(32, 3, 32, rngs)

    def __call__(self, x):
      query, key, value = (part[:, :, None] for part in self.qkv(x))
      return x + attention(query, key, value, *2 * [jnp.ones(x.shape[:2], jnp.int32)], "blocks")[:, :, 0]

  graph, params = nnx.split(layers.make_stack(Attending, 6, nnx.Rngs(params=0)))

  def kept(remat: str) -> int:
    call = lambda block, x: block(x)
    loss = lambda params, x: layers.apply_stack(nnx.merge(graph, params), x, call, remat).sum()
    saved = jax.eval_shape(lambda params, x: jax.vjp(loss, params, x)[1], params, jnp.zeros((1, 512, 32)))
    return sum(leaf.size for leaf in jax.tree.leaves(saved))

  assert kept("none") > kept("attention") > kept("full")


def test_an_unknown_policy_is_refused(stack):
  with pytest.raises(ValueError, match="model.remat is 'some': it is one of none, full, attention, offload"):
    layers.apply_stack(stack, normal(1, 5, 8), residual, "some")


def test_stacked_blocks_start_different(stack):
  kernel = stack.gate_up.kernel[...]
  assert kernel.shape[0] == DEPTH
  assert all(not np.allclose(kernel[0], kernel[number]) for number in range(1, DEPTH))
