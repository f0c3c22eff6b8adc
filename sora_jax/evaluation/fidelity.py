"""How close decoded clips are to the clips they come from: PSNR, SSIM, and the best linear code as what to beat."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

PEAK = 2.0  # clips span [-1, 1]


def squared_error(found: np.ndarray, wanted: np.ndarray) -> float:
  return float(np.mean(np.square(found.astype(np.float64) - wanted)))


def psnr(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
  """Peak signal-to-noise ratio in dB over all values of all clips together; clips in [-1, 1], pairs of equal shape."""
  total = sum(squared_error(a, b) * b.size for a, b in zip(found, wanted, strict=True))
  mean = total / sum(b.size for b in wanted)
  return float(10 * np.log10(PEAK**2 / max(mean, 1e-12)))


WINDOW = 7  # pixels a side of SSIM's windows


def ssim(found_THWC: np.ndarray, wanted_THWC: np.ndarray, peak: float = PEAK) -> float:
  """Structural similarity of two clips of one shape, the mean over frames, colours and windows (Wang et al. 2004).

  Windows are 7x7 pixels, all alike, with the sample's covariances, as scikit-image has them unless told otherwise.

  Args:
    peak: between black and white.

  Raises:
    ValueError: frames are smaller than a window.
  """
  if min(wanted_THWC.shape[1:3]) < WINDOW:
    raise ValueError(f"SSIM needs frames of {WINDOW}x{WINDOW} pixels or more, not {wanted_THWC.shape[1:3]}")
  x, y = found_THWC.astype(np.float64), wanted_THWC.astype(np.float64)
  half = WINDOW // 2
  mean = lambda each: ndimage.uniform_filter(each, (0, WINDOW, WINDOW, 0))[:, half:-half, half:-half]
  sample = WINDOW**2 / (WINDOW**2 - 1)
  mean_x, mean_y = mean(x), mean(y)
  var_x, var_y = sample * (mean(x * x) - mean_x**2), sample * (mean(y * y) - mean_y**2)
  covariance = sample * (mean(x * y) - mean_x * mean_y)
  small, less = (0.01 * peak) ** 2, (0.03 * peak) ** 2
  light = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
  return float(np.mean(light * (2 * covariance + less) / (var_x + var_y + less)))


class LinearCode:
  """Principal components of blocks: the best linear autoencoder of one block size and code size (Baldi & Hornik 1989).

  Frames are grouped as the causal autoencoder does: the first frame fills its time block by itself.
  """

  def __init__(self, clips: Sequence[np.ndarray], block_THW: tuple[int, int, int], values: int):
    """Fits to `clips` (T, H, W, 3); a block of `block_THW` pixels becomes `values` numbers."""
    self.block = block_THW
    blocks = np.concatenate([self.split(clip)[0] for clip in clips])
    self.mean = blocks.mean(0)
    covariance = np.cov((blocks - self.mean).T)
    self.directions = np.linalg.eigh(covariance)[1][:, -values:]

  def split(self, frames_THWC: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """A clip as blocks (N, block values), padded by its last frame, row and column; and the padded grid."""
    T, H, W, _ = frames_THWC.shape
    t, h, w = self.block
    lead = np.repeat(frames_THWC[:1], t - 1, 0)
    x = np.concatenate([lead, frames_THWC])
    tail = [(0, -len(x) % t), (0, -H % h), (0, -W % w), (0, 0)]
    x = np.pad(x, tail, mode="edge")
    grid = (x.shape[0] // t, x.shape[1] // h, x.shape[2] // w)
    x = x.reshape(grid[0], t, grid[1], h, grid[2], w, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(-1, t * h * w * 3), grid

  def __call__(self, frames_THWC: np.ndarray) -> np.ndarray:
    """The clip coded and decoded, cropped to its own size and clipped to [-1, 1]."""
    T, H, W, _ = frames_THWC.shape
    t, h, w = self.block
    blocks, grid = self.split(frames_THWC)
    blocks = (blocks - self.mean) @ self.directions @ self.directions.T + self.mean
    x = blocks.reshape(*grid, t, h, w, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    x = x.reshape(grid[0] * t, grid[1] * h, grid[2] * w, 3)
    return np.clip(x[t - 1 : t - 1 + T, :H, :W], -1.0, 1.0).astype(np.float32)
