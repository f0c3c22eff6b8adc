"""The autoencoder: nothing sees a later frame, an image is a first frame, and chunks equal the whole clip."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from sora_jax.errors import InputError
from sora_jax.models.autoencoder import (
  Autoencoder,
  AutoencoderConfig,
  Stage,
  depth_to_space,
  linear_start,
  neighbours,
  pad_clip,
  space_to_depth,
)

CONFIG = AutoencoderConfig(channels=3, stages=(Stage((2, 2, 1), 8, 1), Stage((2, 1, 2), 12, 2)))
TIME = 4
FRAMES, HEIGHT, WIDTH = 1 + 3 * TIME, 4, 4
LATENT = (1, 4, 2, 2, 3)


class Coder:
  """An autoencoder whose every parameter is drawn (fresh blocks are the identity), compiled once a shape."""

  def __init__(self, config: AutoencoderConfig = CONFIG):
    graph, state = nnx.split(nnx.eval_shape(lambda: Autoencoder(config, nnx.Rngs(params=0))))
    rng = np.random.default_rng(0)
    size = lambda leaf: leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * size(leaf), jnp.float32)
    self.params = jax.tree.map(draw, nnx.to_pure_dict(state))
    self.params["latent_std"] = jnp.array([0.5, 1.0, 2.0])
    model = lambda params: nnx.merge(graph, params)
    self._encode = jax.jit(lambda params, x, past: model(params).encode(x, past))
    self._decode = jax.jit(lambda params, z, past: model(params).decode(z, past))
    self._posterior = jax.jit(lambda params, x: model(params).posterior(x)[:2])
    self._pull_encode = jax.jit(lambda params, x, ct: jax.vjp(lambda x: model(params).encode(x)[0], x)[1](ct)[0])
    self._pull_decode = jax.jit(lambda params, z, ct: jax.vjp(lambda z: model(params).decode(z)[0], z)[1](ct)[0])

  def encode(self, frames, past=None):
    return self._encode(self.params, frames, past)

  def decode(self, latent, past=None):
    return self._decode(self.params, latent, past)

  def frames_that_reach(self, latent_frame: int, frames) -> np.ndarray:
    """Which frames move one latent frame, bool (T,)."""
    cotangent = np.zeros(LATENT, np.float32)
    cotangent[:, latent_frame] = 1.0
    return np.abs(self._pull_encode(self.params, frames, cotangent)).max((0, 2, 3, 4)) > 0

  def latent_frames_that_reach(self, frame: int, latent) -> np.ndarray:
    """Which latent frames move one frame, bool (t,)."""
    cotangent = np.zeros((1, FRAMES, HEIGHT, WIDTH, 3), np.float32)
    cotangent[:, frame] = 1.0
    return np.abs(self._pull_decode(self.params, latent, cotangent)).max((0, 2, 3, 4)) > 0


@pytest.fixture(scope="module")
def coder() -> Coder:
  return Coder()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
  return np.random.default_rng(1).uniform(-1, 1, (1, FRAMES, HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
  return np.random.default_rng(2).normal(size=LATENT).astype(np.float32)


def test_compression_multiplies_the_stages():
  assert CONFIG.compression == (4, 2, 2)
  assert CONFIG.values_in_per_value_out == 3 * 16 / 3


def test_encoding_makes_one_latent_frame_and_one_a_block(coder, frames):
  assert coder.encode(frames)[0].shape == LATENT


def test_no_latent_frame_sees_a_later_frame(coder, frames):
  for latent_frame in range(LATENT[1]):
    reach, own = coder.frames_that_reach(latent_frame, frames), latent_frame * TIME
    assert not reach[own + 1 :].any()
    assert reach[max(own - TIME + 1, 0) : own + 1].all()  # all of its own block
  assert reach[:9].any()  # and memory of what was before it


def test_no_frame_sees_a_later_latent_frame(coder, latent):
  for frame in range(FRAMES):
    reach, own = coder.latent_frames_that_reach(frame, latent), -(-frame // TIME)
    assert not reach[own + 1 :].any()
    assert reach[own]
  assert reach[:-1].any()


def test_an_image_is_the_first_frame_of_its_clip(coder, frames):
  whole, _ = coder.encode(frames)
  image, _ = coder.encode(frames[:, :1])
  np.testing.assert_allclose(image, whole[:, :1], atol=1e-5)
  decoded, _ = coder.decode(whole)
  decoded_image, _ = coder.decode(image)
  np.testing.assert_allclose(decoded_image, decoded[:, :1], atol=1e-5)


@pytest.mark.parametrize("blocks", [(1, 2), (0, 1, 2), (0, 1, 1, 1)])
def test_chunks_equal_the_whole(coder, frames, blocks):
  """`blocks`: latent frames of each chunk, not counting the first frame of the clip."""
  whole, _ = coder.encode(frames)
  parts, past, start = [], None, 0
  for end in np.cumsum(blocks) * TIME + 1:
    part, past = coder.encode(frames[:, start:end], past)
    parts.append(part)
    start = end
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)

  decoded, _ = coder.decode(whole)
  parts, past, start = [], None, 0
  for end in np.cumsum(blocks) + 1:
    part, past = coder.decode(np.asarray(whole[:, start:end]), past)
    parts.append(part)
    start = end
  np.testing.assert_allclose(np.concatenate(parts, 1), decoded, atol=1e-5)


def test_the_second_chunk_needs_the_first(coder, frames):
  """Without what the first chunk leaves behind the chunks would differ: the test above is not empty."""
  _, past = coder.encode(frames[:, : 1 + TIME])
  later = frames[:, 1 + TIME : 1 + 2 * TIME]
  forgotten = jax.tree.map(jnp.zeros_like, past)
  assert np.abs(np.asarray(coder.encode(later, past)[0]) - coder.encode(later, forgotten)[0]).max() > 1e-3


def test_latents_are_normalised_by_the_kept_statistics(coder, frames):
  mean, log_variance = coder._posterior(coder.params, frames)
  expected = (np.asarray(mean) - np.asarray(coder.params["latent_mean"])) / np.asarray(coder.params["latent_std"])
  np.testing.assert_allclose(coder.encode(frames)[0], expected, rtol=1e-4, atol=1e-5)
  assert log_variance.shape == mean.shape and np.isfinite(log_variance).all()


def test_decoding_undoes_the_normalisation(coder, frames, latent):
  plain = {**coder.params, "latent_mean": jnp.zeros(3), "latent_std": jnp.ones(3)}
  raw = latent * np.asarray(coder.params["latent_std"]) + np.asarray(coder.params["latent_mean"])
  np.testing.assert_allclose(coder._decode(plain, raw, None)[0], coder.decode(latent)[0], atol=1e-5)


def types_of_products(jaxpr) -> set[tuple[str, bool]]:
  """The type of each product of matrices, and whether the backward pass makes it again."""
  found = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      found.add((equation.outvars[0].aval.dtype.name, False))
    again = equation.primitive.name in ("remat2", "checkpoint", "remat")
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        found |= {(name, again or within) for name, within in types_of_products(inner)}
  return found


class TestDtypeAndRemat:
  @pytest.fixture(scope="class")
  def half(self) -> Coder:
    return Coder(dataclasses.replace(CONFIG, dtype="bfloat16"))

  def test_bfloat16_blocks_are_near_float32_and_return_float32(self, coder, half, frames, latent):
    for found, wanted in (
      (half.encode(frames)[0], coder.encode(frames)[0]),
      (half.decode(latent)[0], coder.decode(latent)[0]),
    ):
      assert found.dtype == np.float32 and (found != wanted).any()
      assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()

  def test_blocks_compute_in_the_type_and_the_linear_code_in_float32(self, half, frames, latent):
    for call, x in ((half._encode, frames), (half._decode, latent)):
      kinds = {name for name, _ in types_of_products(jax.make_jaxpr(call)(half.params, x, None).jaxpr)}
      assert kinds == {"bfloat16", "float32"}

  def test_chunks_equal_the_whole_in_bfloat16_too(self, half, frames):
    whole, _ = half.encode(frames)
    first, past = half.encode(frames[:, : 1 + TIME])
    later, _ = half.encode(frames[:, 1 + TIME :], past)
    np.testing.assert_allclose(np.concatenate([first, later], 1), whole, atol=0.02 * np.abs(whole).max())

  def test_remat_changes_what_is_kept_and_no_gradient(self, coder, frames, latent):
    again = Coder(dataclasses.replace(CONFIG, remat="full"))
    cotangent = np.ones(LATENT, np.float32)
    trace = jax.make_jaxpr(again._pull_encode)(again.params, frames, cotangent).jaxpr
    assert ("float32", True) in types_of_products(trace)
    np.testing.assert_allclose(
      again._pull_encode(again.params, frames, cotangent),
      coder._pull_encode(coder.params, frames, cotangent),
      atol=1e-5,
    )
    out = np.ones((1, FRAMES, HEIGHT, WIDTH, 3), np.float32)
    np.testing.assert_allclose(
      again._pull_decode(again.params, latent, out), coder._pull_decode(coder.params, latent, out), atol=1e-4
    )

  def test_another_remat_is_refused(self):
    with pytest.raises(InputError, match="autoencoder.remat is 'attention': it is one of none, full"):
      dataclasses.replace(CONFIG, remat="attention")

  def test_a_run_s_settings_arrive(self, tiny_config):
    tiny_config.autoencoder.update(dtype="bfloat16", remat="full")
    found = AutoencoderConfig.of(tiny_config.autoencoder)
    assert (found.dtype, found.remat) == ("bfloat16", "full")


SHRINKS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("shrink", "blocks"), [((1, 2, 3), 2), ((2, 1, 2), 3), ((3, 2, 1), 1)])
def test_depth_to_space_inverts_space_to_depth(shrink, blocks, later):
  frames = blocks * shrink[0] if later else 1 + (blocks - 1) * shrink[0]
  shape = (2, frames, 2 * shrink[1], shrink[2], 2)
  x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  deep = space_to_depth(x, shrink, first=not later)
  assert deep.shape == (2, blocks, 2, 1, 2 * np.prod(shrink))
  np.testing.assert_array_equal(depth_to_space(deep, shrink, first=not later), x)


def test_the_first_time_block_is_filled_with_the_first_frame():
  x = np.array([5.0, 6.0, 7.0], np.float32).reshape(1, 3, 1, 1, 1)
  np.testing.assert_array_equal(np.ravel(space_to_depth(x, (2, 1, 1), first=True)), [5, 5, 6, 7])


def test_neighbours_is_a_grouped_convolution_within_each_frame():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5, 4, 6)).astype(np.float32)
  taps = rng.normal(size=(9, 6)).astype(np.float32)
  wanted = jax.lax.conv_general_dilated(
    x.reshape(6, 5, 4, 6),
    taps.reshape(3, 3, 1, 6),
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=6,
  )
  np.testing.assert_allclose(neighbours(jnp.asarray(x), jnp.asarray(taps)), wanted.reshape(x.shape), atol=1e-5)


def test_the_linear_start_codes_in_uncorrelated_channels_of_unit_variance():
  rng = np.random.default_rng(0)
  frames = np.repeat(rng.normal(size=(64, 1 + TIME, 1, 1, 3)), 4, 2).repeat(4, 3) + 0.3 * rng.normal(
    size=(64, 5, 4, 4, 3)
  )
  linear_in, linear_out = linear_start(frames.astype(np.float32), CONFIG)
  blocks = np.asarray(space_to_depth(jnp.asarray(frames, jnp.float32), CONFIG.compression, first=True))
  blocks = blocks.reshape(-1, blocks.shape[-1])
  code = blocks @ linear_in
  np.testing.assert_allclose(code.T @ code / len(code), np.eye(3), atol=1e-3)
  values = np.linalg.eigvalsh(blocks.T.astype(np.float64) @ blocks / len(blocks))
  lost = np.square(blocks - code @ linear_out).sum(1).mean()
  np.testing.assert_allclose(lost, values[:-3].sum(), rtol=1e-3)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), SHRINKS)
def test_padding_repeats_the_edge_up_to_what_the_compression_divides(T, H, W, compression):
  rng = np.random.default_rng(T)
  clip = rng.normal(size=(1, T, H, W, 3)).astype(np.float32)
  padded = pad_clip(clip, compression)
  added = np.array(padded.shape[1:4]) - (T, H, W)
  assert (added >= 0).all() and (added < compression).all()
  assert (
    (padded.shape[1] - 1) % compression[0] == padded.shape[2] % compression[1] == padded.shape[3] % compression[2] == 0
  )
  np.testing.assert_array_equal(padded[:, :T, :H, :W], clip)
  np.testing.assert_array_equal(padded[:, -1, -1, -1], clip[:, -1, -1, -1])


@pytest.mark.parametrize(
  ("config", "halo"),
  [
    (AutoencoderConfig(3, (Stage((2, 2, 2), 4, 1),)), (1, 1)),
    (AutoencoderConfig(3, (Stage((1, 4, 2), 4, 3),)), (3, 3)),
    (CONFIG, (3, 3)),  # one place of the finer level is one row, and half a column
    (AutoencoderConfig(3, (Stage((1, 2, 2), 4, 1), Stage((2, 2, 2), 4, 1), Stage((1, 2, 1), 4, 1))), (2, 3)),
  ],
  ids=str,
)
def test_the_halo_is_how_far_a_position_reaches(config, halo):
  """What is not a number makes all that sees it none: no position further away does, and some as far do."""
  assert config.halo == halo
  coder, (_, ch, cw) = Coder(config), config.compression
  side, middle = 11, 5
  latent = np.zeros((1, 1, side, side, 3), np.float32)
  latent[:, :, middle, middle] = np.nan
  frames = np.isnan(coder.decode(latent)[0]).any((0, 1, 4)).reshape(side, ch, side, cw).any((1, 3))
  pixels = np.zeros((1, 1, side * ch, side * cw, 3), np.float32)
  pixels[:, :, middle * ch : (middle + 1) * ch, middle * cw : (middle + 1) * cw] = np.nan
  codes = np.isnan(coder.encode(pixels)[0]).any((0, 1, 4))
  for reached_hw in (frames, codes):
    for axis, reach in enumerate(halo):
      places = np.flatnonzero(reached_hw.any(1 - axis))
      assert (places[0], places[-1]) == (middle - reach, middle + reach)
