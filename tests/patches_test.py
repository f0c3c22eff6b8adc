"""Grids and patches: exact round trips at any size, one position a token, coordinates in physical units."""

import math

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.patches import Grid, pad_edge, patchify, unpatchify

SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
PATCHES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
CLIPS = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70))
GRIDS = st.builds(Grid, PATCHES, PATCHES)


def ramp(shape, channels=2):
  return np.arange(math.prod(shape) * channels, dtype=np.float32).reshape(*shape, channels)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(SIDES, PATCHES)
def test_patches_of_any_size_round_trip(shape, patch):
  latent = ramp(shape)
  tokens = patchify(latent, patch)
  assert tokens.shape == (math.prod(-(-n // p) for n, p in zip(shape, patch, strict=True)), math.prod(patch) * 2)
  np.testing.assert_array_equal(unpatchify(tokens, shape, patch), latent)


def test_a_token_holds_the_values_of_its_block():
  latent = ramp((2, 4, 6))
  tokens = patchify(latent, (1, 2, 3))
  assert len(tokens) == 2 * 2 * 2
  np.testing.assert_array_equal(tokens[5], latent[1, 0:2, 3:6].reshape(-1))  # time slowest, then rows, then columns


def test_padding_repeats_the_last_value():
  tokens = patchify(ramp((1, 1, 3), 1), (1, 1, 2))
  np.testing.assert_array_equal(tokens, [[0, 1], [2, 2]])


@pytest.mark.parametrize(("shape", "patch"), [((3, 4, 5), (2, 2, 2)), ((1, 5, 3), (1, 2, 3))])
def test_numpy_and_jax_agree(shape, patch):
  latent = ramp(shape)
  tokens = patchify(jnp.asarray(latent), patch)
  assert isinstance(tokens, jnp.ndarray)
  np.testing.assert_array_equal(tokens, patchify(latent, patch))
  np.testing.assert_array_equal(unpatchify(tokens, shape, patch), latent)


def test_pad_edge_leaves_what_fits_alone():
  x = ramp((2, 3), 1)
  assert pad_edge(x, (2, 3)) is x
  grown = pad_edge(x, (3,))
  np.testing.assert_array_equal(grown[2], x[1])


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(GRIDS, CLIPS, st.floats(1, 60))
def test_every_token_has_one_position(grid, clip, fps):
  positions = grid.positions(*clip, fps)
  assert positions.dtype == np.float32
  assert positions.shape == (grid.tokens(*clip), 3)
  assert len(patchify(np.zeros((*grid.latent_shape(*clip), 1)), grid.patch)) == len(positions)
  assert len(np.unique(positions, axis=0)) == len(positions)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
def test_one_frame_and_k_blocks_make_one_and_k_latent_frames(time, space, blocks, rows, columns):
  grid = Grid((time, space, space), (1, 1, 1))
  whole = (1 + blocks * time, rows * space, columns * space)
  assert grid.latent_shape(*whole) == (1 + blocks, rows, columns)
  assert grid.latent_shape(whole[0] + 1, whole[1] + 1, whole[2]) == (2 + blocks, rows + 1, columns)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(GRIDS, CLIPS, st.floats(1, 60), st.floats(0.25, 4))
def test_seconds_scale_with_the_inverse_rate_and_pixels_do_not(grid, clip, fps, factor):
  slow, fast = grid.positions(*clip, fps), grid.positions(*clip, fps * factor)
  np.testing.assert_allclose(fast[:, 0] * factor, slow[:, 0], rtol=1e-5)
  np.testing.assert_array_equal(fast[:, 1:], slow[:, 1:])


def test_a_latent_frame_lies_at_the_centre_of_the_frames_it_shows():
  grid, fps = Grid((4, 2, 2), (1, 1, 1)), 8.0
  shown = [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
  np.testing.assert_allclose(grid.positions(9, 2, 2, fps)[:, 0], [np.mean(frames) / fps for frames in shown])


def test_a_token_lies_at_the_centre_of_its_pixels():
  positions = Grid((1, 4, 8), (1, 2, 1)).positions(1, 16, 16, 1.0)
  np.testing.assert_allclose(positions, [[0, 4, 4], [0, 4, 12], [0, 12, 4], [0, 12, 12]])


def test_a_longer_clip_starts_with_the_positions_of_the_shorter():
  grid = Grid((2, 4, 4), (1, 2, 2))
  short, long = grid.positions(5, 20, 12, 7.0), grid.positions(21, 20, 12, 7.0)
  np.testing.assert_array_equal(long[: len(short)], short)


@hypothesis.given(
  frames=st.integers(1, 40), height=st.integers(1, 900), width=st.integers(1, 900), most=st.integers(21, 400)
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_a_fitted_clip_keeps_its_budget_and_about_its_aspect(frames, height, width, most):
  grid = Grid((2, 4, 4), (1, 2, 2))
  fitted = grid.fit(frames, height, width, most)
  assert grid.tokens(frames, *fitted) <= most
  assert fitted[0] <= height and fitted[1] <= width
  if grid.tokens(frames, height, width) <= most:
    assert fitted == (height, width)
  scale = fitted[0] / height if height > width else fitted[1] / width  # the longer side is rounded the least
  assert abs(fitted[0] - height * scale) <= 1 and abs(fitted[1] - width * scale) <= 1
