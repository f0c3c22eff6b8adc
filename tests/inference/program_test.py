"""The turning of loops: at each step their moments are the same ones in turn, and nothing else moves."""

import jax
import numpy as np
import pytest

from sora_jax.inference.program import Plan, turned
from sora_jax.packing.batch import RowShape, Segment, pack_row, stack
from sora_jax.patches import Grid

GRID, FPS = Grid((2, 4, 4), (1, 1, 1)), 8.0


@pytest.fixture(scope="module")
def batch():
  """A row of a clip of 5 frames and a loop of 8."""
  segments = []
  for number, frames in enumerate((5, 9)):
    positions = GRID.positions(frames, 4, 8, FPS)
    positions = positions[positions[:, 0] > 0] if number else positions
    tokens = np.zeros((len(positions), 3), np.float32)
    size = np.array([frames / FPS, 4, 8, FPS], np.float32)
    nothing = np.zeros(len(tokens), bool), np.zeros(len(tokens), np.float32)
    segments.append(Segment(tokens, positions, *nothing, np.ones(1, np.int32), size, number))
  return stack([pack_row(segments, RowShape(20, 4, 3), 3)])


def turn(batch, step: int) -> np.ndarray:
  nothing = np.zeros((1, 3), np.float32)
  plan = Plan(nothing, nothing, nothing, np.array([[0, 1.0, 0]], np.float32), np.full((1, 3), 2 / FPS, np.float32))
  return np.asarray(jax.jit(turned)(batch, plan, step))


def test_a_loop_turns_by_whole_latent_frames_and_each_comes_first_in_some_step(batch):
  loop = batch.segments_BL[0] == 2
  moments = np.unique(batch.positions_BL3[0, loop, 0])
  first = set()
  for step in range(12):
    found = turn(batch, step)[0, loop, 0].reshape(4, 2)
    np.testing.assert_allclose(found[:, 0], found[:, 1])
    np.testing.assert_allclose(np.sort(found[:, 0]), moments, atol=1e-5)
    begin = int(np.argmin(found[:, 0]))
    np.testing.assert_allclose(np.roll(found[:, 0], -begin), moments, atol=1e-5)
    first.add(begin)
  assert first == {0, 1, 2, 3}
  np.testing.assert_allclose(turn(batch, 0), batch.positions_BL3, atol=1e-6)


def test_places_in_the_frame_and_clips_that_are_no_loops_stay(batch):
  found, loop = turn(batch, 3), batch.segments_BL[0] == 2
  np.testing.assert_array_equal(found[..., 1:], batch.positions_BL3[..., 1:])
  np.testing.assert_array_equal(found[0, ~loop], batch.positions_BL3[0, ~loop])
