"""Saturated things on grey ground: what they are painted with, and how they are found again.

Mixing a colour with a grey keeps its hue and scales its saturation by the share of the colour. So where the ground is
grey, saturation tells how much of a pixel a thing covers and hue tells which thing, soft edges, blur and texture of the
ground notwithstanding.

Shape letters: T frames, H height, W width, C colours, N hues, K frames picked from T; the last 2 is (row, column).
"""

import numpy as np

from sora_jax.worlds import blobs, scene, shapes

# In the order of the colour wheel, 60 degrees apart; every one has the same saturation.
HUES: dict[str, scene.Colour] = {
  "red": (0.9, -0.8, -0.8),
  "yellow": (0.9, 0.9, -0.8),
  "green": (-0.8, 0.9, -0.8),
  "cyan": (-0.8, 0.9, 0.9),
  "blue": (-0.8, -0.8, 0.9),
  "magenta": (0.9, -0.8, 0.9),
}
_SATURATION = 1.7  # largest less smallest channel of each
_LEAST = 0.25  # of coverage; less is noise and the colour cast of lossy clips

# Greys of grounds and of what hides things; far from each other, so that they are told apart too.
GREYS: dict[str, scene.Colour] = {"white": (0.85,) * 3, "black": (-0.85,) * 3}


def clean(frames_THWC: np.ndarray) -> np.ndarray:
  """Frames as an examiner takes them: finite, within [-1, 1], float32."""
  return np.clip(np.nan_to_num(frames_THWC), -1.0, 1.0).astype(np.float32)


def shares(frames_THWC: np.ndarray) -> np.ndarray:
  """How much of each pixel each hue covers, 0..1, float32 (N, T, H, W) in the order of HUES.

  Args:
    frames_THWC: in [-1, 1].
  """
  high_THW, low_THW = frames_THWC.max(axis=-1), frames_THWC.min(axis=-1)
  cover_THW = (high_THW - low_THW) / np.float32(_SATURATION)
  cover_THW = np.where(cover_THW > _LEAST, np.minimum(cover_THW, 1.0), 0.0).astype(np.float32)
  nearest_THW = _wheel(frames_THWC, high_THW, high_THW - low_THW)
  return np.stack([np.where(nearest_THW == number, cover_THW, 0.0) for number in range(len(HUES))])


def _wheel(frames_THWC: np.ndarray, high_THW: np.ndarray, spread_THW: np.ndarray) -> np.ndarray:
  """The nearest hue's number of each pixel, by the usual hexagonal hue angle."""
  red, green, blue = np.moveaxis(frames_THWC, -1, 0)
  safe = np.where(spread_THW > 1e-6, spread_THW, 1.0)
  angle = np.where(
    high_THW == red,
    (green - blue) / safe,
    np.where(high_THW == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
  )
  return np.rint(angle).astype(int) % len(HUES)


def mass(share_THW: np.ndarray) -> np.ndarray:
  """Area of a hue in each frame in units of the squared short side, (T,)."""
  return share_THW.sum(axis=(1, 2), dtype=np.float64) / min(share_THW.shape[1:]) ** 2


def mass_near(share_THW: np.ndarray, centres_T2: np.ndarray, reach: float) -> np.ndarray:
  """Area of a hue within `reach` of the given centres, short sides and their square, (T,); 0 where a centre is NaN."""
  short = min(share_THW.shape[1:])
  near_THW = blobs.near(np.nan_to_num(centres_T2, nan=-9.0) * short, reach * short, *share_THW.shape[1:])
  return mass(share_THW * near_THW)


def track(share_THW: np.ndarray, reach: float, least: float) -> np.ndarray:
  """Centres of the largest blob of a hue, (T, 2) in short sides; NaN in frames that hold less than `least` of it.

  Args:
    share_THW: one hue's coverage.
    reach: short sides from the densest point that belong to the blob.
    least: area in squared short sides.
  """
  short = min(share_THW.shape[1:])
  centres_T2 = blobs.densest_point(share_THW, max(1, round(0.5 * reach * short)))
  for _ in range(2):
    near_THW = blobs.near(centres_T2, reach * short, *share_THW.shape[1:])
    centres_T2, mass_T = blobs.centroid(share_THW * near_THW)
  return np.where((mass_T >= least * short**2)[:, None], centres_T2 / short, np.nan)


def figures(
  share_THW: np.ndarray, centres_T2: np.ndarray, radii: tuple[float, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
  """Which of the named shapes of `shapes.SHAPES` each frame's blob is: the drawing that leaves the least squared error.

  Args:
    share_THW: one hue's coverage.
    centres_T2: the blob's centre in each frame, short sides; NaN where there is none.
    radii: those that it may have, short sides; a seventh more and less of each is tried too.
    names: the shapes that it may be.

  Returns:
    a name for each frame, or "none" where there is no blob or no drawing explains half of it.
  """
  short = min(share_THW.shape[1:])
  blob_TSS, dy_TS1, dx_T1S = _around(share_THW, np.nan_to_num(centres_T2) * short, int(1.6 * max(radii) * short) + 2)
  power_T = (blob_TSS**2).sum(axis=(1, 2))
  found, errors = ["none"], [0.5 * power_T]
  for name in names:
    for radius in (scale * radius for radius in radii for scale in (0.86, 1.0, 1.14)):
      distance_TSS = shapes.outline_distance(name, np.float32(radius * short), dy_TS1, dx_T1S)
      for edge in (1.0, 2.5):  # a blurred edge must not look like another shape
        found.append(name)
        errors.append(((blob_TSS - scene.coverage(distance_TSS, edge)) ** 2).sum(axis=(1, 2)))
  best_T = np.where(np.isnan(centres_T2[:, 0]) | (power_T < 1e-6), 0, np.stack(errors).argmin(axis=0))
  return tuple(found[number] for number in best_T.tolist())


def _around(share_THW: np.ndarray, centres_T2: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The square of `half` pixels around each centre, (T, S, S), and its pixels' offsets from it, down and across."""
  padded_THW = np.pad(share_THW, ((0, 0), (half, half), (half, half)))
  steps_S = np.arange(-half, half + 1)
  pixels_T2 = np.floor(centres_T2).astype(int)
  rows_TS, columns_TS = (pixels_T2[:, axis, None] + half + steps_S for axis in (0, 1))
  rows_TS, columns_TS = (
    np.clip(at, 0, size - 1) for at, size in zip((rows_TS, columns_TS), padded_THW.shape[1:], strict=True)
  )
  blob_TSS = padded_THW[np.arange(len(share_THW))[:, None, None], rows_TS[:, :, None], columns_TS[:, None, :]]
  dy_TS, dx_TS = (
    (pixels_T2[:, axis, None] + steps_S + 0.5 - centres_T2[:, axis, None]).astype(np.float32) for axis in (0, 1)
  )
  return blob_TSS, dy_TS[:, :, None], dx_TS[:, None, :]
