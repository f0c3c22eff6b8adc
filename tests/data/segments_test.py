"""A clip's segment: its grid as it is without conditions, and these beside it at their own times."""

import numpy as np
import pytest

from sora_jax.data.segments import Piece, make_segment
from sora_jax.patches import Grid, patchify

GRID = Grid((2, 4, 4), (1, 2, 2))
SHAPE = (7, 16, 24)
FPS = 8.0
SIZE_4 = np.array([7 / FPS, 16, 24, FPS], np.float32)


def latent(frames: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(*GRID.latent_shape(frames, 16, 24), 3)).astype(np.float32)


def segment(*pieces: Piece):
  tokens = np.asarray(patchify(latent(7), GRID.patch))
  return make_segment(GRID, tokens, GRID.positions(*SHAPE, FPS), pieces, np.array([1], np.int32), SIZE_4, 5, 2)


def test_without_conditions_it_is_the_grid():
  found = segment()
  np.testing.assert_array_equal(found.tokens_NC, patchify(latent(7), GRID.patch))
  np.testing.assert_array_equal(found.positions_N3, GRID.positions(*SHAPE, FPS))
  assert not found.condition_N.any() and not found.level_N.any()
  assert (found.index, found.turn, found.weight) == (5, 2, 1.0)


def test_conditions_come_after_the_grid_each_with_its_level_and_its_time():
  first, last = Piece(latent(1, 1), 0.0), Piece(latent(3, 2), 4 / FPS, 0.25)
  found, own = segment(first, last), GRID.tokens(*SHAPE)
  np.testing.assert_array_equal(found.tokens_NC[:own], segment().tokens_NC)
  np.testing.assert_array_equal(np.flatnonzero(found.condition_N), np.arange(own, own + 6 + 12))
  np.testing.assert_array_equal(found.level_N[own:], [0.0] * 6 + [0.25] * 12)
  np.testing.assert_array_equal(found.tokens_NC[own : own + 6], patchify(first.latent_thwC, GRID.patch))
  np.testing.assert_array_equal(found.positions_N3[own : own + 6], GRID.positions(1, 16, 24, FPS))
  wanted = GRID.positions(3, 16, 24, FPS) + np.array([[4 / FPS, 0, 0]], np.float32)
  np.testing.assert_allclose(found.positions_N3[own + 6 :], wanted)


def test_a_piece_of_an_image_lies_where_its_frame_is_shown():
  """The grid's first token frame is at frame 0, and so is a condition of frame 0."""
  found, own = segment(Piece(latent(1), 0.0)), GRID.tokens(*SHAPE)
  np.testing.assert_array_equal(found.positions_N3[own:], found.positions_N3[:6])


def test_tokens_outside_of_a_mask_are_not_given():
  kept = np.array([True, False, False, True, False, True])
  whole, some = segment(Piece(latent(1), 0.5)), segment(Piece(latent(1), 0.5, kept_N=kept))
  own = GRID.tokens(*SHAPE)
  np.testing.assert_array_equal(some.tokens_NC[own:], whole.tokens_NC[own:][kept])
  np.testing.assert_array_equal(some.positions_N3[own:], whole.positions_N3[own:][kept])
  assert len(some.level_N) == len(some.condition_N) == own + 3


@pytest.mark.parametrize("patch", [1, 2])
def test_a_token_of_several_latent_frames_holds_an_image_as_a_clip_of_its_own_does(patch):
  grid = Grid((2, 4, 4), (patch, 2, 2))
  tokens, positions = Piece(latent(1), 0.0).tokens(grid, FPS)
  np.testing.assert_array_equal(tokens, patchify(latent(1), grid.patch))
  np.testing.assert_array_equal(positions, grid.positions(1, 16, 24, FPS))
