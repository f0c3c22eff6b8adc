"""Points followed through a clip, and how well a rigid scene before a moving camera explains their ways.

Corners are found and followed by pyramids of Lucas and Kanade's method (Shi and Tomasi, "Good features to track", 1994;
Bouguet, "Pyramidal implementation of the Lucas Kanade feature tracker", 2000). For a camera whose poses are known each
point has one unknown, its depth; the best rigid camera is found from there by turns of depths and poses.

Shape letters: P points, T frames, H height, W width, S pixels of a window; 3 is right, down and ahead of the camera;
the last 2 of a point is (row, column) from the frame's middle, in short sides.
"""

import numpy as np

MOST = 80  # points begun in a frame
_HALF = 4  # pixels from a window's middle to its side
_LEVELS, _ROUNDS = 3, 8
_LEAST_TRACKS = 8  # fewer tell nothing of a camera
_SPAN = 24  # frames that a point is followed each way: small errors add up


def follow(grey_THW: np.ndarray) -> np.ndarray:
  """Ways of corners through a clip, (P, T, 2); NaN where a point isn't followed.

  Corners are begun in every _SPAN-th frame, and in the middle one of a short clip, and followed both ways from there.
  """
  frames, height, width = grey_THW.shape
  pyramids = [_pyramid(grey_HW) for grey_HW in grey_THW]
  found = []
  for begin in sorted({*range(0, frames, _SPAN), frames // 2 if frames <= _SPAN else 0}):
    corners_P2 = _corners(grey_THW[begin])
    ways_PT2 = np.full((len(corners_P2), frames, 2), np.nan)
    ways_PT2[:, begin] = corners_P2
    for steps in (range(begin + 1, min(begin + _SPAN, frames)), range(begin - 1, max(begin - _SPAN, -1), -1)):
      points_P2, last = corners_P2, begin
      for frame in steps:
        points_P2 = _step(pyramids[last], pyramids[frame], points_P2)
        ways_PT2[:, frame], last = points_P2, frame
    found.append(ways_PT2)
  pixels_PT2 = np.concatenate(found)
  return (pixels_PT2 + 0.5 - np.array([height, width]) / 2) / min(height, width)


def _pyramid(grey_HW: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """The image and its gradients down and across, at halved sizes; the finest first."""
  levels = []
  for _ in range(_LEVELS):
    smooth = _smoothed(grey_HW)
    levels.append((smooth, *np.gradient(smooth)) if min(smooth.shape) > 1 else (smooth, smooth * 0, smooth * 0))
    if min(grey_HW.shape) < 4 * _HALF:
      break
    grey_HW = smooth[: smooth.shape[0] // 2 * 2 : 2, : smooth.shape[1] // 2 * 2 : 2]
  return levels


def _smoothed(grey_HW: np.ndarray) -> np.ndarray:
  """Weights 1, 2, 1 along both axes."""
  for axis in (0, 1):
    padded = np.pad(grey_HW, [(1, 1) if at == axis else (0, 0) for at in (0, 1)], mode="edge")
    before, after = (padded.take(range(at, at + grey_HW.shape[axis]), axis=axis) for at in (0, 2))
    grey_HW = (before + 2 * grey_HW + after) / 4
  return grey_HW


def _corners(grey_HW: np.ndarray) -> np.ndarray:
  """(row, column) in pixels of the strongest corners, none too close to another: (P, 2)."""
  if min(grey_HW.shape) < 2 * _HALF + 3:
    return np.zeros((0, 2))
  smooth = _smoothed(grey_HW)
  down, across = np.gradient(smooth)
  sums = [_smoothed(_smoothed(product)) for product in (down * down, across * across, down * across)]
  least = (sums[0] + sums[1]) / 2 - np.sqrt(((sums[0] - sums[1]) / 2) ** 2 + sums[2] ** 2)
  inner = least[_HALF:-_HALF, _HALF:-_HALF]
  order = np.argsort(-inner, axis=None)
  order = order[inner.reshape(-1)[order] > max(1e-5, 0.02 * float(inner.max()))][: 40 * MOST]
  taken, found, apart = np.zeros(grey_HW.shape, bool), [], max(2, min(grey_HW.shape) // 24)
  for flat in order.tolist():
    row, column = divmod(flat, inner.shape[1])
    row, column = row + _HALF, column + _HALF
    if not taken[row, column]:
      found.append((row, column))
      taken[max(0, row - apart) : row + apart + 1, max(0, column - apart) : column + apart + 1] = True
      if len(found) == MOST:
        break
  return np.array(found, np.float64).reshape(-1, 2)


def _step(here: list, there: list, points_P2: np.ndarray) -> np.ndarray:
  """Where the points of one image are in another, (P, 2) in pixels; NaN where it doesn't look the same."""
  known_P = ~np.isnan(points_P2[:, 0])
  at_K2, moved_K2 = points_P2[known_P], np.zeros((int(known_P.sum()), 2))
  found_P2 = np.full_like(points_P2, np.nan)
  if not len(at_K2):
    return found_P2
  for level in range(len(here) - 1, -1, -1):
    scale = 0.5**level
    image, down, across = here[level]
    template_KSS, down_KSS, across_KSS = (_windows(each, at_K2 * scale) for each in (image, down, across))
    a, b, c = ((x * y).sum((1, 2)) for x, y in ((down_KSS, down_KSS), (across_KSS, across_KSS), (down_KSS, across_KSS)))
    safe = np.maximum(a * b - c * c, 1e-9)
    for _ in range(_ROUNDS):
      off_KSS = template_KSS - _windows(there[level][0], (at_K2 + moved_K2) * scale)
      e, f = (off_KSS * down_KSS).sum((1, 2)), (off_KSS * across_KSS).sum((1, 2))
      change_K2 = np.stack([(b * e - c * f) / safe, (a * f - c * e) / safe], axis=1)
      moved_K2 = moved_K2 + np.clip(change_K2, -2, 2) / scale
      if np.abs(change_K2).max() < 0.02:
        break
  off_K = np.sqrt((off_KSS**2).mean((1, 2)))
  contrast_K = template_KSS.std((1, 2))
  new_K2 = at_K2 + moved_K2
  height, width = here[0][0].shape
  inside_K = ((new_K2 >= 1) & (new_K2 <= np.array([height, width]) - 2)).all(axis=1)
  same_K = inside_K & (off_K < 0.5 * contrast_K + 1e-6) & (contrast_K > 1e-3)
  found_P2[np.flatnonzero(known_P)[same_K]] = new_K2[same_K]
  return found_P2


def _windows(image_HW: np.ndarray, points_K2: np.ndarray) -> np.ndarray:
  """Squares around points, bilinear, float64 (K, S, S); the image's edge goes on."""
  steps_S = np.arange(-_HALF, _HALF + 1)
  low_K2 = np.floor(points_K2).astype(int)
  part_K2 = points_K2 - low_K2
  rows_KS, columns_KS = (low_K2[:, axis, None] + steps_S for axis in (0, 1))
  pick = lambda down, across: image_HW[
    np.clip(rows_KS + down, 0, image_HW.shape[0] - 1)[:, :, None],
    np.clip(columns_KS + across, 0, image_HW.shape[1] - 1)[:, None, :],
  ]
  down_K11, across_K11 = part_K2[:, 0, None, None], part_K2[:, 1, None, None]
  top = pick(0, 0) * (1 - across_K11) + pick(0, 1) * across_K11
  bottom = pick(1, 0) * (1 - across_K11) + pick(1, 1) * across_K11
  return top * (1 - down_K11) + bottom * down_K11


def _project(points_P3: np.ndarray, turns_T33: np.ndarray, places_T3: np.ndarray, focal: float) -> np.ndarray:
  """World points as (row, column), (P, T, 2); points behind the camera are far off."""
  camera_PT3 = np.einsum("tij,ptj->pti", turns_T33, points_P3[:, None] - places_T3)
  ahead_PT1 = np.where(camera_PT3[..., 2:] > 1e-3, camera_PT3[..., 2:], 1e-3)
  return focal * camera_PT3[..., 1::-1] / ahead_PT1


def _depths(ways_PT2: np.ndarray, turns_T33: np.ndarray, places_T3: np.ndarray, focal: float) -> np.ndarray:
  """World points (P, 3) that lie on the ray of each way's first sight and suit its other sights best.

  The best of depths from near to far on a scale of inverse depth, then of finer ones beside it. None is so far that no
  move of the camera would show: a still clip must not pass for a moving one.
  """
  first_P = (~np.isnan(ways_PT2[..., 0])).argmax(axis=1)
  start_P2 = ways_PT2[np.arange(len(ways_PT2)), first_P]
  ray_P3 = np.concatenate([start_P2[:, ::-1] / focal, np.ones((len(start_P2), 1))], axis=1)
  world_P3 = np.einsum("pji,pj->pi", turns_T33[first_P], ray_P3)
  at = lambda inverse_P: places_T3[first_P] + world_P3 / np.maximum(inverse_P, 0.05)[:, None]
  middle_P, width = np.full(len(ways_PT2), 0.5), 0.43  # inverse depths
  for _ in range(5):
    tries_NP = middle_P + width * np.linspace(-1, 1, 9)[:, None]
    errors_NP = np.stack([_errors(ways_PT2, at(tries), turns_T33, places_T3, focal) for tries in tries_NP])
    middle_P = tries_NP[errors_NP.argmin(axis=0), np.arange(len(ways_PT2))]
    width /= 4
  return at(middle_P)


def _errors(
  ways_PT2: np.ndarray, points_P3: np.ndarray, turns_T33: np.ndarray, places_T3: np.ndarray, focal: float
) -> np.ndarray:
  """Mean reprojection error of each point over the frames in which it is seen, (P,), short sides."""
  off_PT = np.linalg.norm(_project(points_P3, turns_T33, places_T3, focal) - ways_PT2, axis=-1)
  return np.nanmean(off_PT, axis=1)


def _long(ways_PT2: np.ndarray) -> np.ndarray:
  """The ways that are followed through a third of the clip, or of _SPAN frames, or more."""
  seen_P = (~np.isnan(ways_PT2[..., 0])).sum(axis=1)
  return ways_PT2[seen_P >= max(2, min(ways_PT2.shape[1], _SPAN) / 3)]


def depth_errors(ways_PT2: np.ndarray, turns_T33: np.ndarray, places_T3: np.ndarray, focal: float) -> np.ndarray:
  """Reprojection error of each point for a camera of known poses, with the depth that suits it best; short sides.

  Args:
    ways_PT2: see `follow`.
    turns_T33, places_T3: the camera in each frame.
    focal: short sides.
  """
  ways_PT2 = _long(ways_PT2)
  if not len(ways_PT2):
    return np.zeros(0)
  points_P3 = _depths(ways_PT2, turns_T33, places_T3, focal)
  return _errors(ways_PT2, points_P3, turns_T33, places_T3, focal)


def middle(errors_P: np.ndarray) -> float:
  """The median, infinite where too few points are left to tell."""
  return float(np.median(errors_P)) if len(errors_P) >= _LEAST_TRACKS else float("inf")


def rigid_error(
  ways_PT2: np.ndarray, turns_T33: np.ndarray, places_T3: np.ndarray, focal: float, rounds: int = 3
) -> float:
  """Median reprojection error before the best rigid camera: depths and poses, found by turns from the given poses.

  Args:
    rounds: turns; a pose takes one step of Gauss and Newton's method on robust weights in each.
  """
  ways_PT2 = _long(ways_PT2)
  if len(ways_PT2) < _LEAST_TRACKS:
    return float("inf")
  turns_T33, places_T3 = turns_T33.copy(), places_T3.copy()
  best = np.inf
  for _ in range(rounds):
    points_P3 = _depths(ways_PT2, turns_T33, places_T3, focal)
    best = min(best, middle(_errors(ways_PT2, points_P3, turns_T33, places_T3, focal)))
    for frame in range(1, len(turns_T33)):  # the first frame is where all is measured from
      seen_P = ~np.isnan(ways_PT2[:, frame, 0])
      if seen_P.sum() >= _LEAST_TRACKS:
        pose = turns_T33[frame], places_T3[frame]
        turns_T33[frame], places_T3[frame] = _refined(points_P3[seen_P], ways_PT2[seen_P, frame], *pose, focal)
  return best


def _refined(
  points_P3: np.ndarray, seen_P2: np.ndarray, turn_33: np.ndarray, place_3: np.ndarray, focal: float
) -> tuple[np.ndarray, np.ndarray]:
  """A pose that projects the points nearer to where they are seen."""
  camera_P3 = (points_P3 - place_3) @ turn_33.T
  right_P, down_P, ahead_P = camera_P3[:, 0], camera_P3[:, 1], np.maximum(camera_P3[:, 2], 1e-3)
  off_P2 = seen_P2 - focal * camera_P3[:, 1::-1] / ahead_P[:, None]
  zero_P = np.zeros_like(ahead_P)
  # Derivatives of (row, column) by the camera's point, then by a small turn and a small shift of the camera.
  by_point_P23 = focal * np.stack(
    [
      np.stack([zero_P, 1 / ahead_P, -down_P / ahead_P**2], axis=-1),
      np.stack([1 / ahead_P, zero_P, -right_P / ahead_P**2], axis=-1),
    ],
    axis=1,
  )
  cross_P33 = np.stack(
    [
      np.stack([zero_P, camera_P3[:, 2], -down_P], axis=-1),
      np.stack([-camera_P3[:, 2], zero_P, right_P], axis=-1),
      np.stack([down_P, -right_P, zero_P], axis=-1),
    ],
    axis=1,
  )
  by_pose_P26 = np.concatenate([by_point_P23 @ cross_P33, by_point_P23], axis=-1)
  size_P = np.linalg.norm(off_P2, axis=1)
  weight_P = 1 / (1 + (size_P / 0.02) ** 2)
  normal_66 = np.einsum("p,pai,paj->ij", weight_P, by_pose_P26, by_pose_P26) + 1e-4 * np.eye(6)
  step_6 = np.linalg.solve(normal_66, np.einsum("p,pai,pa->i", weight_P, by_pose_P26, off_P2))
  return _turned(step_6[:3]) @ turn_33, place_3 - turn_33.T @ step_6[3:]


def _turned(axis_3: np.ndarray) -> np.ndarray:
  """The rotation by a vector's length around it (Rodrigues)."""
  angle = float(np.linalg.norm(axis_3))
  x, y, z = axis_3 / max(angle, 1e-12)
  skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew
