"""What the worlds of balls share: drawing discs on white, and reading their tracks back.

World units: x to the right, y upwards, both 0..10 in the centre square of the frame. A frame that isn't
square shows more of the plane beyond it. How the balls move is in `physics.py`.

Shape letters: N balls, T frames, H height, W width, C colours; the 2 of `centres_NT2` is (x, y).
"""

import abc
import dataclasses
from typing import Any

import numpy as np

from sora_jax.worlds import blobs, scene

WORLD_SIDE = 10.0
STANDARD_FRAMES, STANDARD_FPS = 32, 10.0
BACKGROUND = (1.0, 1.0, 1.0)
BALL_COLOURS = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}

VELOCITY_TOLERANCE = 0.3  # units per second, mean over balls and frames
RADIUS_TOLERANCE = 0.1  # share of the radius
_SPOT = 0.4  # radius in world units of what is no speck
_LAG_SECONDS = 0.3  # the exam measures velocities over about this long: less noise than frame to frame


@dataclasses.dataclass(frozen=True)
class Tracks:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    centres_NT2: (x, y) of each ball in world units; NaN in frames where it isn't seen.
    radii_N: world units; NaN for a ball that is never seen, or whose size changes.
    more_T: bool, something else has a ball's colour.
    half_width, half_height: how far the frame shows the world on both sides of its middle, world units.
  """

  times_T: np.ndarray
  centres_NT2: np.ndarray
  radii_N: np.ndarray
  more_T: np.ndarray
  half_width: float
  half_height: float


def _scale(height: int, width: int) -> float:
  """Pixels per world unit."""
  return min(height, width) / WORLD_SIDE


class Balls(abc.ABC):
  """What the three worlds share; a world adds its states, motion and words."""

  name: str
  attributes: tuple[str, ...]
  colours: tuple[str, ...]

  @abc.abstractmethod
  def radii(self, state: Any) -> np.ndarray:
    """(N,) world units."""

  @abc.abstractmethod
  def centres(self, state: Any, times_T: np.ndarray) -> np.ndarray:
    """(N, T, 2): x and y of every ball at the given seconds."""

  def render(self, state: Any, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    return self._drawn(self.centres(state, scene.frame_times(frames, fps)), self.radii(state), height, width)

  def extrapolate(self, given_THWC: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """The clip of one who knows no forces: the given frames, and balls that go on as they moved in the last two.

    Returns:
      float32 (frames, H, W, 3); a ball that isn't seen in both stays where it was last seen, or away.
    """
    given, height, width = given_THWC.shape[:3]
    tracks = self.read(given_THWC, fps)
    last_N2 = tracks.centres_NT2[:, -1]
    step_N2 = np.nan_to_num(last_N2 - tracks.centres_NT2[:, -2]) if given > 1 else np.zeros_like(last_N2)
    ahead_T = np.arange(1, frames - given + 1)
    centres_NT2 = last_N2[:, None] + step_N2[:, None] * ahead_T[None, :, None]
    centres_NT2 = np.nan_to_num(centres_NT2, nan=-9.0 * WORLD_SIDE)
    if not len(ahead_T):
      return given_THWC[:frames].astype(np.float32)
    rest_THWC = self._drawn(centres_NT2, np.nan_to_num(tracks.radii_N), height, width)
    return np.concatenate([given_THWC.astype(np.float32), rest_THWC])

  def _drawn(self, centres_NT2: np.ndarray, radii_N: np.ndarray, height: int, width: int) -> np.ndarray:
    """Balls of the world's colours at (x, y) in world units: frames (T, H, W, 3)."""
    rows_H, columns_W = (centres * min(height, width) for centres in scene.pixel_centres(height, width))
    frames, scale = centres_NT2.shape[1], _scale(height, width)
    x_NT = (width / 2 + (centres_NT2[..., 0] - WORLD_SIDE / 2) * scale).astype(np.float32)
    y_NT = (height / 2 - (centres_NT2[..., 1] - WORLD_SIDE / 2) * scale).astype(np.float32)
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    for block in scene.frame_blocks(frames, height, width):
      layers = []
      for colour, radius, x_T, y_T in zip(self.colours, radii_N, x_NT, y_NT, strict=True):
        dx_T1W = (columns_W - x_T[block, None])[:, None, :]
        dy_TH1 = (rows_H - y_T[block, None])[:, :, None]
        distance_THW = np.sqrt(dx_T1W**2 + dy_TH1**2) - np.float32(radius * scale)
        layers.append((scene.coverage(distance_THW), BALL_COLOURS[colour]))
      frames_THWC[block] = scene.paint(BACKGROUND, layers)
    return frames_THWC

  def read(self, frames_THWC: np.ndarray, fps: float) -> Tracks:
    """Centres and radii of the balls, told apart by colour; see `Tracks`.

    Args:
      frames_THWC: (T, H, W, 3) in [-1, 1]; values outside are clipped.
      fps: frames per second.
    """
    frames, height, width = frames_THWC.shape[:3]
    # Block means keep centres of mass: beyond about 100 pixels they only cost time.
    factor = max(1, min(height, width) // 96)
    frames_THWC = np.clip(np.nan_to_num(blobs.shrink(frames_THWC, factor)), -1.0, 1.0)
    # Every pixel is a mix of background, red and blue; both shares are solved for in every world, so
    # that a ball of the wrong colour is not taken for the right one.
    ground_C = blobs.border_colour(frames_THWC)
    contrasts_C2 = np.stack([np.array(rgb) - BACKGROUND for rgb in BALL_COLOURS.values()], axis=1)
    shares_2THW = np.moveaxis((frames_THWC - ground_C) @ np.linalg.pinv(contrasts_C2).T, -1, 0)
    order = list(BALL_COLOURS)
    middle_2, scale = np.array([height, width]) / (2 * factor), _scale(height, width) / factor
    found = [_follow(shares_2THW[order.index(colour)], middle_2, scale) for colour in self.colours]
    tracked = dict(zip(self.colours, found, strict=True))
    nobody = (np.full((frames, 2), np.nan), float("nan"))
    rest_2T = [
      _beside(share_THW, *tracked.get(colour, nobody), middle_2, scale)
      for colour, share_THW in zip(order, shares_2THW, strict=True)
    ]
    half_width, half_height = (WORLD_SIDE / 2 * side / min(height, width) for side in (width, height))
    return Tracks(
      times_T=scene.frame_times(frames, fps),
      centres_NT2=np.stack([centres_T2 for centres_T2, _ in found]),
      radii_N=np.array([radius for _, radius in found]),
      more_T=np.max(rest_2T, axis=0) > np.pi * _SPOT**2,
      half_width=half_width,
      half_height=half_height,
    )

  def describe(self, state: Any) -> Tracks:
    """The tracks of the standard square clip: what a perfect reading of it would be."""
    times_T = scene.frame_times(STANDARD_FRAMES, STANDARD_FPS)
    centres_NT2, radii_N = self.centres(state, times_T), self.radii(state)
    half = WORLD_SIDE / 2
    outside_NT = (np.abs(centres_NT2 - half) > half + radii_N[:, None, None]).any(axis=-1)
    centres_NT2[outside_NT] = np.nan
    return Tracks(times_T, centres_NT2, radii_N, np.zeros(len(times_T), bool), half, half)

  def _inside(self, tracks: Tracks, state: Any) -> np.ndarray:
    """bool (N, T): the ball should be wholly inside the frame."""
    half_2 = np.array([tracks.half_width, tracks.half_height])
    off_NT2 = np.abs(self.centres(state, tracks.times_T) - WORLD_SIDE / 2)
    return (off_NT2 + self.radii(state)[:, None, None] <= half_2 + 1e-9).all(axis=-1)

  def _velocity_gap(self, tracks: Tracks, state: Any, lag: int, axis: int) -> float | None:
    """Mean |parsed - true| velocity along an axis, over balls and pairs of frames `lag` apart.

    Both frames must show the ball wholly inside. The true velocity is the true way over the same time,
    so it holds through an impact. A ball that isn't seen counts as standing still. None: no such pair.
    """
    inside_NT = self._inside(tracks, state)
    pairs_NT = inside_NT[:, lag:] & inside_NT[:, :-lag]
    if not pairs_NT.any():
      return None
    seconds_T = tracks.times_T[lag:] - tracks.times_T[:-lag]
    true_NT, parsed_NT = (
      (track_NT2[:, lag:, axis] - track_NT2[:, :-lag, axis]) / seconds_T
      for track_NT2 in (self.centres(state, tracks.times_T), tracks.centres_NT2)
    )
    return float(np.abs(np.nan_to_num(parsed_NT) - true_NT)[pairs_NT].mean())

  def velocity_error(self, frames_THWC: np.ndarray, fps: float, state: Any, given: int = 0) -> float:
    """Mean |parsed - true| horizontal velocity, world units per second, frame to frame (Kang et al.).

    Only frames in which the ball should be wholly inside count, and of them those after the first `given`, which
    nobody had to predict; a ball that isn't seen counts as standing still. NaN when no two such frames follow each
    other (an image, or a ball already leaving).
    """
    if len(frames_THWC) < 2:
      return float("nan")
    tracks, before = self.read(frames_THWC, fps), max(given - 1, 0)
    after = dataclasses.replace(tracks, times_T=tracks.times_T[before:], centres_NT2=tracks.centres_NT2[:, before:])
    gap = self._velocity_gap(after, state, 1, 0)
    return float("nan") if gap is None else gap

  def compare(self, reading: Tracks, state: Any) -> dict[str, float]:
    """1.0 or 0.0 for each attribute that applies.

    present: every ball is seen in its colour in every frame where it should be wholly inside, and nothing else is.
    size: every radius is within RADIUS_TOLERANCE of the true one.
    velocity: the mean |parsed - true| horizontal velocity is within VELOCITY_TOLERANCE, measured over
      0.3 s with single broken frames mended, and so is the vertical one where balls don't fall; left out for an
      image, and when the ball leaves too early.
    fall (parabola): the same for the vertical velocity.
    A ball that is never seen makes everything that applies wrong.
    """
    inside_NT = self._inside(reading, state)
    seen_NT = ~np.isnan(reading.centres_NT2[..., 0])
    some = bool(seen_NT.any(axis=1).all())
    radii_N = self.radii(state)
    right = {"present": seen_NT[inside_NT].all() and reading.more_T.mean() <= 0.2} if inside_NT.any() else {}
    right["size"] = (np.abs(reading.radii_N - radii_N) <= RADIUS_TOLERANCE * radii_N).all()
    frames = len(reading.times_T)
    if frames > 1:
      # An impact in the last frames looks like a broken one, so a clip is right as it is read or mended.
      readings = (reading, dataclasses.replace(reading, centres_NT2=_mend(reading.centres_NT2)))
      lag = int(np.clip(round(_LAG_SECONDS / float(reading.times_T[1])), 1, frames - 1))
      gaps = [[self._velocity_gap(each, state, lag, axis) for each in readings] for axis in (0, 1)]
      if all(gap is not None for both in gaps for gap in both):
        across, down = (min(gap for gap in both if gap is not None) <= VELOCITY_TOLERANCE for both in gaps)
        right |= {"velocity": across, "fall": down} if "fall" in self.attributes else {"velocity": across and down}
    return {a: float(some and right[a]) for a in self.attributes if a in right}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: Any) -> dict[str, float]:
    """Reads the clip and compares; see `compare` for what each attribute asks."""
    return self.compare(self.read(frames_THWC, fps), state)


def _follow(share_THW: np.ndarray, middle_2: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
  """Centres (T, 2) as (x, y) and radius of the largest blob of one colour, world units; NaN if not seen.

  Args:
    share_THW: how much of the colour each pixel holds, about 0..1.
    middle_2: (row, column) of the middle of the world in pixels.
    scale: pixels per world unit.
  """
  strong_THW = np.where(share_THW > 0.35, share_THW, 0.0)
  centres_T2 = blobs.densest_point(strong_THW, max(1, round(0.5 * scale)))
  _, mass_T = _near_mass(strong_THW, centres_T2, 2.2 * scale)
  for grow, source_THW in ((1.5, strong_THW), (1.3, strong_THW), (1.15, share_THW)):
    # The last look weighs every pixel, faint edges too: a cut-off there would move the centre.
    reach_T = grow * np.sqrt(np.maximum(mass_T, 0) / np.pi) + 1.5
    centres_T2, mass_T = _near_mass(source_THW, centres_T2, reach_T)
  least = np.pi * (0.2 * scale) ** 2
  usual = np.median(mass_T[mass_T > least]) if (mass_T > least).any() else np.inf
  _, firm_T = _near_mass(strong_THW, centres_T2, reach_T)
  # A ball that leaves shrinks to a sliver: seen as long as a tenth of it is left.
  seen_T = (mass_T > max(least, 0.1 * usual)) & (firm_T > 0.5 * mass_T)
  if not seen_T.any():
    return np.full((len(mass_T), 2), np.nan), float("nan")
  radius_T = np.sqrt(np.maximum(mass_T, 0) / np.pi)
  edges_T2 = np.minimum(centres_T2, 2 * middle_2 - centres_T2)
  whole_T = seen_T & (edges_T2.min(axis=1) >= 0.95 * radius_T)
  radius = np.median(radius_T[whole_T]) if whole_T.any() else radius_T[seen_T].max()
  if whole_T.any() and (np.abs(radius_T[whole_T] / radius - 1) > 2 * RADIUS_TOLERANCE).mean() > 0.2:
    radius = np.nan
  xy_T2 = WORLD_SIDE / 2 + (centres_T2 - middle_2)[:, ::-1] * [1, -1] / scale
  return np.where(seen_T[:, None], xy_T2, np.nan), float(radius / scale)


def _beside(
  share_THW: np.ndarray, centres_T2: np.ndarray, radius: float, middle_2: np.ndarray, scale: float
) -> np.ndarray:
  """Area of a colour away from its ball in each frame, (T,) in squared world units; arguments as `_follow` has them."""
  pixels_T2 = (centres_T2[:, ::-1] - WORLD_SIDE / 2) * [-1, 1] * scale + middle_2
  pixels_T2 = np.nan_to_num(pixels_T2, nan=-1e6)
  near_THW = blobs.near(pixels_T2, (1.3 * np.nan_to_num(radius, nan=2.0) + 0.5) * scale + 1.5, *share_THW.shape[1:])
  return np.where(near_THW | (share_THW < 0.5), 0.0, share_THW).sum(axis=(1, 2)) / scale**2


def _near_mass(
  mask_THW: np.ndarray, centres_T2: np.ndarray, reach_T: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
  """Centre of mass (T, 2) and mass (T,) of what lies within `reach_T` pixels of the given centres."""
  return blobs.centroid(mask_THW * blobs.near(centres_T2, reach_T, *mask_THW.shape[1:]))


def _mend(centres_NT2: np.ndarray, least: float = 0.25) -> np.ndarray:
  """Tracks (N, T, 2) with lone gaps closed and one broken frame a ball put between its neighbours.

  The broken frame is the one whose repair takes most off the sum of the track's turns (second
  differences, world units), if that is more than `least`. An impact is left alone: one turn is the least
  that joins two straight ways.
  """
  if centres_NT2.shape[1] < 3:
    return centres_NT2
  mended_NT2 = centres_NT2.copy()
  for track_T2 in mended_NT2:
    between_T2 = _between(track_T2)
    gap_T2 = np.isnan(track_T2)
    track_T2[gap_T2] = between_T2[gap_T2]
    between_T2 = _between(track_T2)
    between_T2 = np.where(np.isnan(between_T2), track_T2, between_T2)
    trials_TT2 = np.where(np.eye(len(track_T2), dtype=bool)[..., None], between_T2, track_T2)
    gain_T = _turns(track_T2) - _turns(trials_TT2)
    if gain_T.max() > least:
      track_T2[gain_T.argmax()] = between_T2[gain_T.argmax()]
  return mended_NT2


def _between(track_T2: np.ndarray) -> np.ndarray:
  """Where each frame's neighbours put it: their middle; at both ends the next two frames, continued."""
  first_12 = 2 * track_T2[1:2] - track_T2[2:3]
  last_12 = 2 * track_T2[-2:-1] - track_T2[-3:-2]
  return np.concatenate([first_12, (track_T2[:-2] + track_T2[2:]) / 2, last_12])


def _turns(track_T2: np.ndarray) -> np.ndarray:
  """Sum of the lengths of a track's second differences; (..., T, 2) to (...,). Gaps count 0."""
  return np.nansum(np.linalg.norm(np.diff(track_T2, n=2, axis=-2), axis=-1), axis=-1)
