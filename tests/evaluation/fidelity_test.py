"""PSNR and SSIM against their formulas, and the linear code: exact with all values, better with more."""

import numpy as np
import pytest

from sora_jax.evaluation.fidelity import LinearCode, psnr, ssim
from sora_jax.worlds.world import get_world

BLOCK = (2, 4, 4)


def clips(count: int, shape=(5, 16, 16), seed=0) -> list[np.ndarray]:
  world = get_world("shapes")
  states = [world.sample(np.random.default_rng([seed, i])) for i in range(count)]
  return [world.render(state, shape[1], shape[2], shape[0], 8.0) for state in states]


@pytest.mark.parametrize("error", [0.5, 0.1, 0.001])
def test_psnr_of_a_known_error(error):
  wanted = [np.zeros((2, 3, 4, 3), np.float32)]
  assert psnr([np.full((2, 3, 4, 3), error, np.float32)], wanted) == pytest.approx(20 * np.log10(2 / error), abs=1e-4)


def test_psnr_counts_values_not_clips():
  small, large = np.zeros((1, 1, 1, 3)), np.zeros((3, 1, 1, 3))
  assert psnr([small + 1, large], [small, large]) == pytest.approx(10 * np.log10(4 / 0.25))


def test_psnr_of_equal_clips_is_finite_and_high():
  assert 100 < psnr(clips(1), clips(1)) < np.inf


def test_psnr_needs_as_many_clips_on_both_sides():
  with pytest.raises(ValueError):
    psnr(clips(2), clips(1))


def test_ssim_is_its_formula_window_by_window():
  some, others = clips(2, shape=(2, 9, 11))
  wanted = []
  for frame, colour in np.ndindex(2, 3):
    for top, left in np.ndindex(9 - 6, 11 - 6):
      x, y = (each[frame, top : top + 7, left : left + 7, colour].astype(np.float64).ravel() for each in (some, others))
      (var_x, both), (_, var_y) = np.cov(x, y)
      light = (2 * x.mean() * y.mean() + 4e-4) / (x.mean() ** 2 + y.mean() ** 2 + 4e-4)
      wanted.append(light * (2 * both + 36e-4) / (var_x + var_y + 36e-4))
  assert ssim(some, others) == pytest.approx(np.mean(wanted), abs=1e-9)
  assert ssim(some, some) == pytest.approx(1.0)


def test_ssim_needs_a_window():
  with pytest.raises(ValueError, match="7x7 pixels or more"):
    ssim(np.zeros((1, 6, 9, 3)), np.zeros((1, 6, 9, 3)))


def test_a_code_with_every_value_is_exact():
  code = LinearCode(clips(8), BLOCK, values=96)
  for shape in ((5, 16, 16), (1, 8, 8), (4, 15, 9), (2, 3, 5)):
    clip = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    assert code(clip).shape == clip.shape
    np.testing.assert_allclose(code(clip), clip, atol=1e-5)


def test_more_values_reconstruct_better():
  fitted, held_out = clips(40), clips(8, seed=1)
  scores = [psnr([LinearCode(fitted, BLOCK, values)(c) for c in held_out], held_out) for values in (2, 6, 18, 54)]
  assert all(better > worse + 1 for worse, better in zip(scores[:-1], scores[1:], strict=True)), scores


def test_the_fitted_directions_beat_random_ones():
  fitted, held_out = clips(40), clips(8, seed=1)
  code = LinearCode(fitted, BLOCK, 8)
  best = psnr([code(clip) for clip in held_out], held_out)
  code.directions = np.linalg.qr(np.random.default_rng(0).normal(size=(96, 8)))[0]
  assert best > psnr([code(clip) for clip in held_out], held_out) + 6


def test_the_first_frame_fills_its_block_alone():
  code = LinearCode(clips(8), BLOCK, values=8)
  clip = clips(1)[0]
  np.testing.assert_allclose(code(clip)[0], code(clip[:1])[0], atol=1e-6)


def test_what_comes_out_is_clipped():
  code = LinearCode(clips(8), BLOCK, values=8)
  found = code(np.full((1, 8, 8, 3), 9.0, np.float32))
  assert np.abs(found).max() <= 1 and found.dtype == np.float32
