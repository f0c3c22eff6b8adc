"""A clip's segment: a beginning in its grid, other conditions beside it at their own times."""

import numpy as np
import pytest

from sora_jax.data.segments import Piece, with_conditions
from sora_jax.packing.batch import Segment
from sora_jax.patches import Grid, patchify

GRID = Grid((2, 4, 4), (1, 2, 2))
SHAPE = (7, 16, 24)
FPS = 8.0
SIZE_4 = np.array([7 / FPS, 16, 24, FPS], np.float32)


def latent(frames: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(*GRID.latent_shape(frames, 16, 24), 3)).astype(np.float32)


def plain(grid: Grid = GRID) -> Segment:
  tokens = np.asarray(patchify(latent(7), grid.patch))
  nothing = np.zeros(len(tokens), bool), np.zeros(len(tokens), np.float32)
  return Segment(tokens, grid.positions(*SHAPE, FPS), *nothing, np.array([1], np.int32), SIZE_4, 5, turn=2)


def segment(*pieces: Piece, kept=None) -> Segment:
  return with_conditions(plain(), GRID, pieces, kept)


def test_without_conditions_it_is_the_grid():
  found = segment()
  np.testing.assert_array_equal(found.tokens_NC, patchify(latent(7), GRID.patch))
  np.testing.assert_array_equal(found.positions_N3, GRID.positions(*SHAPE, FPS))
  assert not found.condition_N.any() and not found.level_N.any()
  assert (found.index, found.turn, found.weight) == (5, 2, 1.0)


def test_a_beginning_takes_the_place_of_the_first_tokens_and_the_others_come_after_the_grid():
  first, last = Piece(latent(1, 1), 0.0, 0.5), Piece(latent(3, 2), 4 / FPS, 0.25)
  found, own = segment(last, first), GRID.tokens(*SHAPE)
  np.testing.assert_array_equal(found.tokens_NC[:6], patchify(first.latent_thwC, GRID.patch))
  np.testing.assert_array_equal(found.tokens_NC[6:own], segment().tokens_NC[6:])
  np.testing.assert_array_equal(found.positions_N3[:own], segment().positions_N3)
  np.testing.assert_array_equal(np.flatnonzero(found.condition_N), [*range(6), *range(own, own + 12)])
  np.testing.assert_array_equal(found.level_N, [0.5] * 6 + [0.0] * (own - 6) + [0.25] * 12)
  np.testing.assert_array_equal(found.tokens_NC[own:], patchify(last.latent_thwC, GRID.patch))
  wanted = GRID.positions(3, 16, 24, FPS) + np.array([[4 / FPS, 0, 0]], np.float32)
  np.testing.assert_allclose(found.positions_N3[own:], wanted)


@pytest.mark.parametrize("fps", [7.43, 29.97, 24000 / 1001])
def test_a_beginning_is_known_at_any_rate(fps):
  base = plain()._replace(positions_N3=GRID.positions(*SHAPE, fps), size_4=np.array([7 / fps, 16, 24, fps], np.float32))
  found = with_conditions(base, GRID, [Piece(latent(3), 0.0)])
  assert len(found.tokens_NC) == GRID.tokens(*SHAPE) and found.condition_N.sum() == 12


def test_tokens_that_are_left_out_are_those_of_the_grid():
  kept = np.array([1, 4, 7, 20])
  whole, some = (segment(Piece(latent(1), 0.0), Piece(latent(1), 0.5), kept=each) for each in (None, kept))
  chosen = [*kept, *range(GRID.tokens(*SHAPE), len(whole.tokens_NC))]
  for name in ("tokens_NC", "positions_N3", "condition_N", "level_N"):
    np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[chosen])


def test_tokens_outside_of_a_mask_are_not_given():
  mask = np.array([True, False, False, True, False, True])
  for seconds in (0.0, 0.5):
    some = segment(Piece(latent(1), seconds, kept_N=mask))
    own = GRID.tokens(*SHAPE)
    np.testing.assert_array_equal(some.tokens_NC[own:], np.asarray(patchify(latent(1), GRID.patch))[mask])
    assert len(some.level_N) == len(some.condition_N) == own + 3 and not some.condition_N[:own].any()


def test_half_a_token_s_latent_frames_stand_beside_the_grid():
  grid = Grid((2, 4, 4), (2, 2, 2))
  make = lambda piece: with_conditions(plain(grid), grid, [piece])
  tokens = plain(grid).tokens_NC
  assert len(make(Piece(latent(3), 0.0)).tokens_NC) == len(tokens)
  assert len(make(Piece(latent(1), 0.0)).tokens_NC) == len(tokens) + grid.tokens(1, 16, 24)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_token_of_several_latent_frames_holds_an_image_as_a_clip_of_its_own_does(patch):
  grid = Grid((2, 4, 4), (patch, 2, 2))
  tokens, positions = Piece(latent(1), 0.0).tokens(grid, FPS)
  np.testing.assert_array_equal(tokens, patchify(latent(1), grid.patch))
  np.testing.assert_array_equal(positions, grid.positions(1, 16, 24, FPS))
