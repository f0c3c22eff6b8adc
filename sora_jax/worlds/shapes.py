"""The world of moving shapes: one coloured shape on a plain background bounces between the walls.

Lengths are in units of the frame's short side, so a state means the same at any size and aspect: the
frame is a box of (H / short, W / short) with its origin at the top left. Motion is closed form, so any
rate and duration shows the same motion.

Shape letters: T frames, K frames picked from them, H height, W width, C colours.
"""

import dataclasses
import functools

import numpy as np

from sora_jax.worlds import blobs, scene

COLOURS = {
  "red": (0.9, -0.8, -0.8),
  "green": (-0.8, 0.7, -0.8),
  "blue": (-0.8, -0.8, 0.9),
  "yellow": (0.9, 0.9, -0.8),
  "magenta": (0.9, -0.8, 0.9),
  "cyan": (-0.8, 0.9, 0.9),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": 0.17, "large": 0.26}
BACKGROUNDS = {"dark": (-0.85, -0.85, -0.85), "light": (0.75, 0.75, 0.75)}
# (rows, columns) of one step; rows grow downwards.
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
SPEEDS = {"slow": 0.25, "fast": 0.6}  # short sides per second

# Pairs that training never shows; every colour and every shape still occurs in other pairs.
HELD_OUT = (("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square"))
# Settings are chosen on these in the world "shapes_validation", whose training shows neither them nor HELD_OUT.
VALIDATION = (("magenta", "triangle"), ("cyan", "cross"), ("green", "circle"), ("red", "square"))

# Shapes of one radius look equally large though their areas differ a little: all as multiples of it.
_SQUARE_HALF = 0.9  # half the side
_TRIANGLE_OUT = 1.3  # centre of mass to a corner; half of that to a side
_CROSS_LENGTH, _CROSS_WIDTH = 1.08, 0.36  # half the length and half the width of an arm

# How far each shape reaches from its centre of mass (up, down, left, right), as multiples of the radius.
_REACH = {
  "circle": (1.0, 1.0, 1.0, 1.0),
  "square": (_SQUARE_HALF,) * 4,
  "triangle": (_TRIANGLE_OUT, _TRIANGLE_OUT / 2, _TRIANGLE_OUT * 0.75**0.5, _TRIANGLE_OUT * 0.75**0.5),
  "cross": (_CROSS_LENGTH,) * 4,
}
# Fifths of the free way down and across, as captions name them.
_ROWS = ("at the top", "near the top", "in the middle", "near the bottom", "at the bottom")
_COLUMNS = ("far left", "left", "centre", "right", "far right")
_NOTHING = "none"  # what is read where the pixels do not show it

# What the examiner still accepts.
_LEAST_LIKENESS = 0.88  # cosine between a colour's and the palette's difference from the background: 28 degrees
_MOST_GAP = 0.6  # largest difference of any channel between a background and its named colour
_DISTINCT = 0.05  # share of the blob's power by which another drawing is the better one of a frame
_MORE = 0.02  # area in squared short sides of what is seen beside the blob that is something; small shapes have 0.06
_LEAST_EXPLAINED = 0.6  # share of the blob's power that the best drawing explains


@dataclasses.dataclass(frozen=True)
class ShapesState:
  """One moving shape.

  Attributes:
    colour, shape, size, background, direction, speed: keys of the tables above; direction is the
      first one, before any wall is met.
    x, y: start of the shape in its free area, 0 at the left or top wall, 1 at the right or bottom wall.
  """

  colour: str
  shape: str
  size: str
  background: str
  direction: str
  speed: str
  x: float
  y: float


def outline_distance(shape: str, radius: float | np.float32, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
  """Signed distance to the outline (below 0 inside), exact at the outline and near it.

  Args:
    shape: one of SHAPES.
    radius: its radius, in the unit of dy and dx.
    dy, dx: offsets from the centre of mass, rows downwards; any shapes that broadcast.
  """
  if shape == "circle":
    return np.sqrt(dx * dx + dy * dy) - radius
  if shape == "triangle":  # three half planes, apex up
    slanted = np.float32(0.75**0.5) * np.abs(dx) - np.float32(0.5) * dy
    return np.maximum(slanted, dy) - _TRIANGLE_OUT / 2 * radius
  across, down = np.abs(dx), np.abs(dy)
  if shape == "square":
    return np.maximum(across, down) - _SQUARE_HALF * radius
  if shape == "cross":
    longer, shorter = np.maximum(across, down), np.minimum(across, down)
    return np.maximum(longer - _CROSS_LENGTH * radius, shorter - _CROSS_WIDTH * radius)
  raise ValueError(f"unknown shape {shape!r}: the shapes are {', '.join(SHAPES)}")


def free_range(shape: str, size: str, box_2: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
  """Least (row, column) of the centre of mass and the lengths of its free way, (2,) each, in short sides."""
  up, down, left, right = (reach * RADII[size] for reach in _REACH[shape])
  return np.array([up, left]), np.maximum(np.array(box_2) - [up + down, left + right], 0.0)


def track(state: ShapesState, height: int, width: int, times_T: np.ndarray) -> np.ndarray:
  """Centres of mass (row, column) at the given seconds, (T, 2) float64 in short sides."""
  low_2, length_2 = free_range(state.shape, state.size, scene.box_size(height, width))
  step_2 = np.array(DIRECTIONS[state.direction]) * SPEEDS[state.speed]
  path_T2 = np.array([state.y, state.x]) * length_2 + times_T[:, None] * step_2
  return low_2 + np.stack([scene.bounce(path_T2[:, axis], length_2[axis]) for axis in (0, 1)], axis=1)


def _draw(shape: str, size: str, centres_T2: np.ndarray, rows_H: np.ndarray, columns_W: np.ndarray) -> np.ndarray:
  """Signed distances (T, H, W) float32 in short sides of a shape whose centre moves along a track."""
  dy_TH1 = (rows_H - centres_T2[:, :1].astype(np.float32))[:, :, None]
  dx_T1W = (columns_W - centres_T2[:, 1:].astype(np.float32))[:, None, :]
  return outline_distance(shape, np.float32(RADII[size]), dy_TH1, dx_T1W)


class Shapes:
  """The world of moving shapes; see the module's docstring and `world.World`."""

  version = 1
  attributes: tuple[str, ...] = ("colour", "shape", "size", "background", "direction", "speed")

  def __init__(self, name: str = "shapes", held_out: tuple[tuple[str, str], ...] = HELD_OUT):
    """`held_out` are the pairs of (colour, shape) of its exams; training shows none of them, and none of HELD_OUT."""
    self.name, self.held_out = name, held_out

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> ShapesState:
    """A random state; held_out draws from the pairs that are held out, otherwise only from the other pairs."""
    if held_out:
      pairs = list(self.held_out)
    else:
      unseen = {*HELD_OUT, *self.held_out}
      pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in unseen]
    colour, shape = pairs[rng.integers(len(pairs))]
    direction = str(rng.choice(list(DIRECTIONS)))
    size, background = str(rng.choice(list(RADII))), str(rng.choice(list(BACKGROUNDS)))
    speed = str(rng.choice(list(SPEEDS)))
    # Starting in the half that it leaves shows the first direction before the first wall is met.
    ahead, beside = rng.uniform(0.0, 0.5), rng.uniform(0.0, 1.0)
    ahead = ahead if direction in ("right", "down") else 1.0 - ahead
    x, y = (ahead, beside) if direction in ("left", "right") else (beside, ahead)
    return ShapesState(colour, shape, size, background, direction, speed, float(x), float(y))

  def render(self, state: ShapesState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    rows_H, columns_W = scene.pixel_centres(height, width)
    centres_T2 = track(state, height, width, scene.frame_times(frames, fps))
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    for block in scene.frame_blocks(frames, height, width):
      distance_THW = _draw(state.shape, state.size, centres_T2[block], rows_H, columns_W)
      cover_THW = scene.coverage(distance_THW * np.float32(min(height, width)))
      layers = [(cover_THW, COLOURS[state.colour])]
      frames_THWC[block] = scene.paint(BACKGROUNDS[state.background], layers)
    return frames_THWC

  def caption(self, state: ShapesState, style: str, still: bool = False) -> str:
    """The state in words.

    The long caption also says in which fifth of its free way the shape starts, down and across. The direction is
    the first one and the walls are the world's rule, so the words fit any duration. No word of motion is a word of
    place too: "leftwards" is never "left".

    Args:
      state: what is shown.
      style: "short" or "long".
      still: for an image: says nothing of motion.
    """
    short = f"a {state.colour} {state.shape}"
    row, column = (names[min(int(5 * part), 4)] for names, part in ((_ROWS, state.y), (_COLUMNS, state.x)))
    long = f"A {state.size} {state.colour} {state.shape} {row} {column} of a {state.background} background"
    if not still:
      speed = {"slow": "slowly", "fast": "fast"}[state.speed]
      short += f" moves {state.direction}wards"
      long += f" moves {speed} {state.direction}wards and bounces off the walls"
    return scene.in_style({"short": short, "long": long + "."}, style)

  def describe(self, state: ShapesState) -> dict[str, str]:
    """The value of each attribute of the state."""
    return {attribute: getattr(state, attribute) for attribute in self.attributes}

  def compare(self, reading: dict[str, str], state: ShapesState) -> dict[str, float]:
    """1.0 or 0.0 for each attribute in the reading, in report order."""
    return {a: float(reading[a] == getattr(state, a)) for a in self.attributes if a in reading}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: ShapesState) -> dict[str, float]:
    """Reads the clip and compares; direction and speed are left out for a clip of one frame."""
    return self.compare(self.read(frames_THWC, fps), state)

  def read(self, frames_THWC: np.ndarray, fps: float) -> dict[str, str]:
    """The value of each attribute that the pixels show, "none" where they show none.

    Analysis by synthesis: the blob that differs from the background is tracked, then every shape and
    size is drawn along the track and the closest wins; then every direction and speed is tried on the
    track, walls included.

    Args:
      frames_THWC: (T, H, W, 3) in [-1, 1]; values outside are clipped.
      fps: frames per second.
    """
    keys = self.attributes if len(frames_THWC) > 1 else self.attributes[:4]
    sight = _look(np.clip(np.nan_to_num(frames_THWC), -1.0, 1.0))
    if sight is None:
      return dict.fromkeys(keys, _NOTHING)
    shape, size, fits_K = _fit_shape(sight)
    if shape == _NOTHING:
      return dict.fromkeys(keys, _NOTHING)
    found = {"colour": sight.colour, "background": sight.background}
    for key, name, names_K in zip(("shape", "size"), (shape, size), zip(*fits_K, strict=True), strict=True):
      found[key] = name if blobs.shown(names_K, name) else _NOTHING
    if len(frames_THWC) > 1:
      ways = free_range(shape, size, sight.box_2)
      found["direction"], found["speed"] = _fit_motion(sight, ways, scene.frame_times(len(frames_THWC), fps))
    return {key: found[key] for key in keys}


def locate(frames_THWC: np.ndarray) -> np.ndarray:
  """Centres of mass (row, column) of the shape in each frame, (T, 2) in short sides; NaN where none is seen.

  Args:
    frames_THWC: (T, H, W, 3) in [-1, 1]; values outside are clipped.
  """
  sight = _look(np.clip(np.nan_to_num(frames_THWC), -1.0, 1.0))
  if sight is None:
    return np.full((len(frames_THWC), 2), np.nan)
  return np.where(sight.seen_T[:, None], sight.centres_T2, np.nan)


@dataclasses.dataclass(frozen=True)
class _Sight:
  """What is seen before shapes and motions are tried.

  Attributes:
    colour, background: names.
    mask_THW: how much of the shape's colour is in each pixel, about 0..1, 0 away from the blob.
    centres_T2: the blob's centre (row, column) in short sides.
    seen_T: bool, the frames in which there is a blob.
    pixel: side of a pixel of mask_THW in short sides.
    box_2: height and width of the frame in short sides.
  """

  colour: str
  background: str
  mask_THW: np.ndarray
  centres_T2: np.ndarray
  seen_T: np.ndarray
  pixel: float
  box_2: tuple[float, float]


def _name_colours(ground_C: np.ndarray, contrast_C: np.ndarray) -> tuple[str, str]:
  """Names of (colour, background) from the background and the shape's difference from it, (3,) each.

  Blur and fading scale the difference but keep its direction: the angle decides, not the length. What is
  like none of the names is "none".
  """

  def gap(name: str) -> float:
    return float(np.abs(ground_C - BACKGROUNDS[name]).max())

  def likeness(name: str) -> float:
    expected_C = np.array(COLOURS[name]) - ground_C
    lengths = np.linalg.norm(expected_C) * np.linalg.norm(contrast_C)
    return float(expected_C @ contrast_C / max(lengths, 1e-9))

  colour, background = max(COLOURS, key=likeness), min(BACKGROUNDS, key=gap)
  return (
    colour if likeness(colour) > _LEAST_LIKENESS else _NOTHING,
    background if gap(background) < _MOST_GAP else _NOTHING,
  )


def _look(frames_THWC: np.ndarray) -> _Sight | None:
  """Finds the blob, its colour and its track; None if nothing can be seen."""
  height, width = frames_THWC.shape[1:3]
  short = min(height, width)
  # About 32 pixels tell the shapes apart; averaging more of them takes noise away and saves time.
  factor = max(1, short // 32)
  frames_THWC = blobs.shrink(frames_THWC, factor)
  scale = short / factor
  ground_C = blobs.border_colour(frames_THWC)
  contrast_THWC = frames_THWC - ground_C
  smooth_THWC = np.stack([blobs.box_mean(contrast_THWC[..., c], 1) for c in range(3)], axis=-1)
  strength_THW = np.sqrt((smooth_THWC**2).sum(axis=-1))
  # The smallest shape fills 4 % of a frame of aspect 2: the strongest 1 % of the clip lies in it.
  peak = np.quantile(strength_THW, 0.99)
  if peak < 0.4:
    return None
  core_THW = strength_THW > 0.6 * peak
  there = np.flatnonzero(core_THW.any(axis=(1, 2)))
  colours = [smooth_THWC[t][core_THW[t]].mean(axis=0) for t in there]
  contrast_C = np.median(colours, axis=0)
  if np.linalg.norm(contrast_C) < 0.2:  # frames of opposite colours: no one blob
    return None
  mask_THW = contrast_THWC @ (contrast_C / (contrast_C @ contrast_C))
  mask_THW = np.where(mask_THW > 0.25, np.minimum(mask_THW, 1.2), 0.0)
  centres_T2 = blobs.densest_point(mask_THW, round(0.15 * scale))
  for reach in (0.45, 0.4):
    near_THW = blobs.near(centres_T2, reach * scale, *mask_THW.shape[1:])
    centres_T2, mass_T = blobs.centroid(mask_THW * near_THW)
  seen_T = mass_T > 0.3 * np.median(mass_T)
  if not seen_T.any() or np.median(mass_T) < 0.02 * scale**2:
    return None
  grounds = [blobs.border_colour(frames_THWC[t : t + 1]) for t in there]
  colours_K, backgrounds_K = zip(*map(_name_colours, grounds, colours), strict=True)
  colour, background = _name_colours(ground_C, contrast_C)
  more_T = (core_THW & ~near_THW).sum(axis=(1, 2)) > _MORE * scale**2
  if not blobs.shown(colours_K, colour) or max(more_T.mean(), 1 - seen_T.mean()) > 0.2:
    colour = _NOTHING
  if not blobs.shown(backgrounds_K, background):
    background = _NOTHING
  box_2 = scene.box_size(height, width)
  return _Sight(colour, background, mask_THW * near_THW, centres_T2 / scale, seen_T, 1 / scale, box_2)


def _fit_shape(sight: _Sight, most: int = 64) -> tuple[str, str, list[tuple[str, str]]]:
  """The (shape, size) whose drawing along the track leaves the least squared error, "none" if all miss, and the same of
  single frames: another one only where it is distinctly better, "none" where all miss."""
  seen = np.flatnonzero(sight.seen_T)
  pick_K = seen[np.linspace(0, len(seen) - 1, min(most, len(seen))).round().astype(int)]
  mask_KHW = sight.mask_THW[pick_K].astype(np.float32)
  rows_H, columns_W = (((np.arange(n) + 0.5) * sight.pixel).astype(np.float32) for n in sight.mask_THW.shape[1:])
  errors: dict[tuple[str, str], np.ndarray] = {}
  for shape in SHAPES:
    for size in RADII:
      distance_KHW = _draw(shape, size, sight.centres_T2[pick_K], rows_H, columns_W) / sight.pixel
      # A sharp and a blurred edge: lossy clips are blurred, and blur must not look like another shape.
      for edge in (1.0, 2.5):
        cover_KHW = scene.coverage(distance_KHW, edge)
        both_K, own_K = (np.einsum("khw,khw->k", cover_KHW, other) for other in (mask_KHW, cover_KHW))
        gain_K = np.clip(both_K / np.maximum(own_K, 1e-6), 0.7, 1.3)
        error_K = gain_K * (gain_K * own_K - 2 * both_K)
        errors[shape, size] = np.minimum(errors.get((shape, size), np.inf), error_K)
  # Broken frames fit nothing: the frames that the best drawing explains worst don't vote.
  table_NK = np.stack(list(errors.values()))
  power_K = np.einsum("khw,khw->k", mask_KHW, mask_KHW)
  worst_first_K = np.argsort(-(table_NK.min(axis=0) + power_K))
  voters = worst_first_K[len(worst_first_K) // 5 :]
  totals_N = table_NK[:, voters].sum(axis=1)
  if -totals_N.min() < _LEAST_EXPLAINED * power_K[voters].sum():
    return _NOTHING, _NOTHING, []
  names, best = list(errors), int(totals_N.argmin())
  best_K = np.where(table_NK[best] - table_NK.min(axis=0) > _DISTINCT * power_K, table_NK.argmin(axis=0), best)
  told_K = -table_NK.min(axis=0) >= _LEAST_EXPLAINED * power_K
  return *names[best], [names[each] if told else (_NOTHING,) * 2 for each, told in zip(best_K, told_K, strict=True)]


@functools.lru_cache(maxsize=64)
def _phases(length: float, step: float = 0.01) -> np.ndarray:
  """Starts of a bouncing path, (P, 1): the first half of the period moves on, the second half back."""
  return np.linspace(0.0, 2 * length, max(4, int(np.ceil(2 * length / step))), endpoint=False)[:, None]


def _fit_motion(
  sight: _Sight, ways: tuple[np.ndarray, np.ndarray], times_T: np.ndarray, scatter: float = 0.1
) -> tuple[str, str]:
  """The (direction, speed) whose bouncing path fits the track best, "none" for rest and for disorder.

  Args:
    sight: the track.
    ways: what `free_range` gives for the shape.
    times_T: seconds of the frames.
    scatter: short sides at which a frame's misfit counts half of what the worst outlier counts.
  """
  track_S2, times_S = sight.centres_T2[sight.seen_T] - ways[0], times_T[sight.seen_T]
  if len(track_S2) < max(2, len(times_T) / 2):
    return _NOTHING, _NOTHING

  def misfit(square: np.ndarray) -> np.ndarray:
    return (square / (square + scatter**2)).mean(axis=-1)

  rest_S2 = (track_S2 - np.median(track_S2, axis=0)) ** 2
  best, loss = (_NOTHING, _NOTHING), min(float(misfit(rest_S2.sum(axis=1))), 0.25)
  for axis, (back, ahead) in enumerate((("up", "down"), ("left", "right"))):
    length = float(ways[1][axis])
    start_P1 = _phases(length)
    for speed, rate in SPEEDS.items():
      path_PS = scene.bounce(start_P1 + rate * times_S, length)
      loss_P = misfit((path_PS - track_S2[:, axis]) ** 2 + rest_S2[:, 1 - axis])
      if loss_P.min() < loss:
        loss = float(loss_P.min())
        best = (ahead if start_P1[loss_P.argmin(), 0] < length else back, speed)
        way_S, found_S = np.diff(path_PS[loss_P.argmin()]), np.diff(track_S2[:, axis])
  # A clip that stands still for half of the time fits a way too, and goes along it in half of the frames alone.
  return best if best[0] == _NOTHING or (way_S * found_S > 0).mean() > 0.6 else (_NOTHING, _NOTHING)
