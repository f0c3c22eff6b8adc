"""Conditions as latents: every given frame is in a piece that needs no padding, and masks find the right tokens."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.errors import InputError
from sora_jax.inference.conditions import Condition, Edit, spans, token_mask
from sora_jax.patches import Grid, pad_edge


class TestSpans:
  @hypothesis.given(st.integers(1, 100), st.sampled_from([1, 2, 3, 4, 8]))
  def test_every_frame_is_covered_and_none_is_made_up(self, frames, compression):
    seen = np.zeros(frames, int)
    for span in spans(frames, compression):
      here = span.frames(compression)
      assert 0 <= here.start and here.stop <= frames
      seen[here] += 1
    assert seen.min() >= 1

  @pytest.mark.parametrize(("frames", "count"), [(1, 1), (5, 1), (9, 1), (6, 2), (8, 2), (2, 2), (4, 4)])
  def test_frames_that_fill_latent_frames_are_one_piece(self, frames, count):
    assert len(spans(frames, 4)) == count


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_a_condition_is_encoded_piece_by_piece_as_clips_of_their_own(generator, strength):
  frames = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
  pieces = Condition(frames, 0.5, strength).pieces(generator.codec, generator.grid, 8.0)
  for piece, (start, stop) in zip(pieces, [(0, 3), (1, 4)], strict=True):  # of 2 frames a latent frame
    np.testing.assert_allclose(piece.latent_thwC, generator.codec.encode(frames[None, start:stop])[0], atol=1e-6)
    assert piece.seconds == pytest.approx(0.5 + start / 8) and piece.level == pytest.approx(1 - strength)


@pytest.mark.parametrize(
  ("frames", "words"),
  [
    (np.zeros((3, 4, 4, 3), np.uint8), "floats from -1 to 1 .*not uint8"),
    (np.full((3, 4, 4, 3), np.nan), "not finite"),
  ],
)
def test_frames_are_finite_floats(frames, words):
  with pytest.raises(InputError, match=f"the frames of a condition are {words}"):
    Condition(frames).check((3, 4, 4), 8.0)
  with pytest.raises(InputError, match=f"the frames of the clip to change are {words}"):
    Edit(frames, 0.5).check((3, 4, 4))


class TestTokenMask:
  @hypothesis.given(
    st.tuples(st.integers(1, 7), st.integers(1, 19), st.integers(1, 19)),
    st.sampled_from([Grid((2, 4, 4), (1, 1, 1)), Grid((4, 4, 4), (1, 2, 2)), Grid((2, 4, 4), (2, 1, 1))]),
    st.integers(0, 99),
  )
  def test_it_is_what_a_loop_over_pixels_finds(self, shape, grid, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.choice([0.02, 0.5, 0.98])
    t, h, w = grid.token_shape(*shape)
    (ct, ch, cw), (pt, ph, pw) = grid.compression, grid.patch
    latent = lambda frame: 0 if frame == 0 else 1 + (frame - 1) // ct
    full = np.asarray(pad_edge(mask, (1 + (t * pt - 1) * ct, h * ph * ch, w * pw * cw)))
    found = {True: np.ones((t, h, w), bool), False: np.zeros((t, h, w), bool)}
    for (frame, row, column), on in np.ndenumerate(full):
      token = latent(frame) // pt, row // (ph * ch), column // (pw * cw)
      found[True][token] &= on
      found[False][token] |= on
    for every in (True, False):
      np.testing.assert_array_equal(token_mask(mask, grid, every), found[every].reshape(-1))
