"""Clips played there and back: every step is one of the clip's, forward or backward, and the seam is one of them."""

import hypothesis
import hypothesis.strategies as st
import ml_collections
import numpy as np
import pytest

from sora_jax.data.loops import Loops, there_and_back
from sora_jax.errors import InputError
from sora_jax.patches import Grid

GRID = Grid((2, 4, 4), (1, 1, 1))


@pytest.mark.parametrize("frames", range(2, 12))
def test_a_turn_has_every_step_once_each_way(frames):
  turn = there_and_back(frames)
  steps = np.stack([turn, np.roll(turn, -1)], 1)
  assert len(turn) == 2 * (frames - 1) and turn[0] == 0
  wanted = {(t, t + 1) for t in range(frames - 1)} | {(t + 1, t) for t in range(frames - 1)}
  assert set(map(tuple, steps.tolist())) == wanted


@hypothesis.given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 200))
def test_a_loop_fills_latent_frames_and_its_row(frames, side, most):
  found = Loops(1.0, GRID, most).frames((frames, side, side), "x")
  if not found:
    assert frames < 3 or GRID.tokens(5, side, side) - GRID.tokens(1, side, side) > most
    return
  assert found <= frames and (found - 1) % 2 == 0
  assert len(GRID.positions(2 * (found - 1), side, side, 8.0, loop=True)) <= most


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_clips_that_are_loops(share):
  loops = Loops(share, GRID, 1000)
  found = [loops.frames((7, 8, 8), str(number)) for number in range(4000)]
  assert set(found) <= {0, 7} and np.mean(np.array(found) > 0) == pytest.approx(share, abs=0.03)


def test_tokens_of_several_latent_frames_have_no_loops():
  config = ml_collections.ConfigDict({"data": {"loops": 0.1}, "train": {"row_tokens": 10}})
  with pytest.raises(InputError, match=r"config.data.loops=0.1: loops need a model.patch that begins with 1"):
    Loops.of(config, Grid((2, 4, 4), (2, 1, 1)))
