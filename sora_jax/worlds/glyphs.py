"""Moving glyphs: two letters of a font bounce in a black frame, by the recipe of Moving MNIST.

Srivastava et al. 2015 ("Unsupervised Learning of Video Representations using LSTMs", section 3.1): two digits of 28x28
pixels in frames of 64x64 begin anywhere and go a tenth of the free way a frame in a random direction; at a wall a digit
is put on it and its velocity along that axis turns round; where they overlap, the lighter pixel counts. That is what is
rendered at 64x64 and RATE frames a second, to the pixel; at other sizes glyphs grow with the short side, and at other
rates they are between the places of two steps. Letters take the place of digits: figures are not those of Moving MNIST.

Shape letters: T frames, H height, W width, G glyphs, P pairs of letters.
"""

import dataclasses
import functools
import itertools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sora_jax.worlds import scene

LETTERS = "ABCDEGHKMNRSWXYZ"  # none is a part of another
SIDE, INNER = 28 / 64, 20 / 28  # a glyph's box in short sides, and what of the box the glyph fills
STEP, RATE = 0.1, 10.0  # of the free way a step; steps a second
PAIRS = tuple(itertools.combinations(LETTERS, 2))
HELD_OUT = PAIRS[::7]

_LARGE = 160  # pixels at which glyphs are drawn before they are shrunk
_STROKE = 5  # pixels of these that outlines are thickened by: digits of a pen are bold
_MOST_SIDE = 128  # pixels of the short side of what is read
_READ = 6  # frames by which letters are told
_NEAR = 0.08  # of the free way
_LEAST_EXPLAINED = 0.5  # share of the light in a clip that the best pair of letters explains
_STANDARD = (64, 64, 20, RATE)  # the clip by which a state is described


@dataclasses.dataclass(frozen=True)
class GlyphsState:
  """Two letters.

  Attributes:
    letters: which, in alphabetical order.
    places: where each begins, (row, column) as shares of its free way.
    angles: the direction in which each goes, radians.
  """

  letters: tuple[str, str]
  places: tuple[tuple[float, float], tuple[float, float]]
  angles: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    letters: the two letters that explain it best; none where nothing does.
    places_TG2: where they are, (row, column) as shares of the free way.
  """

  times_T: np.ndarray
  letters: tuple[str, ...]
  places_TG2: np.ndarray


def path(state: GlyphsState, times_T: np.ndarray) -> np.ndarray:
  """Where the glyphs are at these seconds, shares of the free way, (T, G, 2)."""
  steps = int(np.ceil(times_T.max() * RATE)) + 1
  place_G2 = np.array(state.places, np.float64)
  step_G2 = STEP * np.stack([np.sin(state.angles), np.cos(state.angles)], 1)
  found = []
  for _ in range(steps + 1):
    place_G2 = place_G2 + step_G2
    step_G2 = np.where((place_G2 <= 0) | (place_G2 >= 1), -step_G2, step_G2)
    place_G2 = np.clip(place_G2, 0.0, 1.0)
    found.append(place_G2)
  at_T = np.round(times_T * RATE, 6)
  before_T = np.floor(at_T).astype(int)
  share_T11 = (at_T - before_T)[:, None, None]
  path_SG2 = np.stack(found)
  return path_SG2[before_T] * (1 - share_T11) + path_SG2[before_T + 1] * share_T11


def box(height: int, width: int) -> int:
  """Pixels a side of a glyph's box."""
  return max(round(SIDE * min(height, width)), 1)


@functools.lru_cache(maxsize=256)
def glyph(letter: str, side: int) -> np.ndarray:
  """The letter in a box of side x side pixels, float32 (side, side): 0 is black, 1 is white. Pillow's own font."""
  font = ImageFont.load_default(_LARGE)
  large = Image.new("L", (2 * _LARGE, 2 * _LARGE))
  ImageDraw.Draw(large).text((_LARGE // 2, _LARGE // 4), letter, 255, font, stroke_width=_STROKE)
  cut = large.crop(large.getbbox())
  room = Image.new("L", (max(cut.size),) * 2)
  room.paste(cut, ((room.width - cut.width) // 2, (room.height - cut.height) // 2))
  inner = max(round(INNER * side), 1)
  shrunk = np.asarray(room.resize((inner, inner), Image.Resampling.BOX), np.float32) / 255
  left = (side - inner) // 2
  return np.pad(shrunk, ((left, side - inner - left),) * 2)


def corners(places: np.ndarray, height: int, width: int, side: int) -> np.ndarray:
  """Top left pixels (row, column) of boxes at these shares of the free way; (..., 2) to (..., 2)."""
  return (np.array([height - side, width - side]) * places).astype(np.int32)


class Glyphs:
  """The world of moving glyphs; see the module's docstring and `world.World`.

  Attributes of its exam: letters: the share of the two that is right. path: the share of the frames in which they are
  where they should be.
  """

  name = "glyphs"
  version = 1
  attributes: tuple[str, ...] = ("letters", "path")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> GlyphsState:
    """Two letters anywhere, in any directions; held_out takes pairs of letters that training never has."""
    pairs = HELD_OUT if held_out else [pair for pair in PAIRS if pair not in HELD_OUT]
    letters = pairs[int(rng.integers(len(pairs)))]
    first, second = rng.random((2, 2)).tolist()
    one, other = (rng.random(2) * 2 * np.pi).tolist()
    return GlyphsState(letters, (tuple(first), tuple(second)), (one, other))

  def render(self, state: GlyphsState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    times_T, side = scene.frame_times(frames, fps), box(height, width)
    corners_TG2 = corners(path(state, times_T), height, width, side)
    light_THW = np.zeros((frames, height, width), np.float32)
    for letter, corners_T2 in zip(state.letters, corners_TG2.swapaxes(0, 1), strict=True):
      drawn = glyph(letter, side)
      for light_HW, (top, left) in zip(light_THW, corners_T2, strict=True):
        room = light_HW[top : top + side, left : left + side]
        np.maximum(room, drawn, out=room)
    return np.repeat(2 * light_THW[..., None] - 1, 3, -1)

  def caption(self, state: GlyphsState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    one, other = state.letters
    moves = "" if still else " that move and bounce off the walls"
    long = f"The white letters {one} and {other} on black{moves}."
    return scene.in_style({"short": f"{one} and {other}", "long": long}, style)

  def read(self, frames_THWC: np.ndarray, fps: float) -> Seen:
    """The two letters that explain the light best, and where they are; see `Seen`."""
    light_THW = _light(frames_THWC)
    frames, height, width = light_THW.shape
    side = box(height, width)
    times_T = scene.frame_times(frames, fps)
    if side < 4:
      return Seen(times_T, (), np.zeros((frames, 0, 2)))
    picked = np.unique(np.linspace(0, frames - 1, min(frames, _READ)).round().astype(int))
    errors_P = np.sum([_pair_errors(light_THW[frame], side) for frame in picked], axis=0)
    total = float(np.square(light_THW[picked]).sum())
    best = int(np.argmin(errors_P))
    if not errors_P[best] < (1 - _LEAST_EXPLAINED) * total:
      return Seen(times_T, (), np.zeros((frames, 0, 2)))
    letters = PAIRS[best]
    free_2 = np.maximum([height - side, width - side], 1)
    tops = np.stack([_best_corners(light_THW, glyph(letter, side)) for letter in letters], 1)
    return Seen(times_T, letters, (tops + 0.5) / free_2)  # corners are rounded down

  def describe(self, state: GlyphsState) -> Seen:
    """What a perfect reading of the standard clip is."""
    times_T = scene.frame_times(_STANDARD[2], _STANDARD[3])
    return Seen(times_T, state.letters, path(state, times_T))

  def compare(self, reading: Seen, state: GlyphsState) -> dict[str, float]:
    """The shares that are right; see the class."""
    there = [letter for letter in state.letters if letter in reading.letters]
    wanted_TG2, shares = path(state, reading.times_T), []
    for number, letter in enumerate(state.letters):
      if letter in there:
        found_T2 = reading.places_TG2[:, reading.letters.index(letter)]
        shares.append(float((np.abs(found_T2 - wanted_TG2[:, number]).max(-1) < _NEAR).mean()))
    return {"letters": len(there) / 2, "path": sum(shares) / 2}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: GlyphsState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)


def _light(frames_THWC: np.ndarray) -> np.ndarray:
  """0 black to 1 white, (T, H, W); large frames are shrunk."""
  grey = np.nan_to_num(np.asarray(frames_THWC, np.float32), posinf=1, neginf=-1).mean(-1)
  light_THW = np.clip(0.5 + 0.5 * grey, 0.0, 1.0)
  shrink = _MOST_SIDE / min(light_THW.shape[1:])
  if shrink >= 1:
    return light_THW
  size = tuple(round(each * shrink) for each in light_THW.shape[:0:-1])
  return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in light_THW])


def _missing(dark_HW: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  """How much of a glyph's light is missing with its corner at each pixel where it fits."""
  shape, side = dark_HW.shape, len(drawn)
  spectrum = np.fft.rfft2(dark_HW) * np.conj(np.fft.rfft2(drawn, shape))
  return np.fft.irfft2(spectrum, shape)[: shape[0] - side + 1, : shape[1] - side + 1]


def _best_corners(light_THW: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  """The corner (row, column) at which least of a glyph is missing, of each frame: (T, 2)."""
  found = []
  for light_HW in light_THW:
    missing = _missing(1 - light_HW, drawn)
    found.append(np.unravel_index(missing.argmin(), missing.shape))
  return np.array(found)


def _pair_errors(light_HW: np.ndarray, side: int) -> np.ndarray:
  """The squared error of each pair of letters, each at its best place: (P,)."""
  drawn = np.zeros((len(LETTERS), *light_HW.shape), np.float32)
  for canvas, letter in zip(drawn, LETTERS, strict=True):
    ((top, left),) = _best_corners(light_HW[None], glyph(letter, side))
    canvas[top : top + side, left : left + side] = glyph(letter, side)
  one, other = np.array(list(itertools.combinations(range(len(LETTERS)), 2))).T
  errors = [np.square(np.maximum(drawn[a], drawn[b]) - light_HW).sum() for a, b in zip(one, other, strict=True)]
  return np.array(errors)
