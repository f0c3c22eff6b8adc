"""Three worlds of rolling, thrown and colliding balls with exact motion, after Kang et al.

"How Far is Video Generation from World Model: A Physical Law Perspective" (arXiv 2411.02385) measures
whether a video model learns mechanics inside and outside the ranges it was trained on. The ranges, the
10 x 10 world, gravity, the 32 frames at 10 per second and the error of the parsed velocity are theirs;
drawing and parsing are ours. Their discs have a soft edge of 3 % of the radius, about one pixel at their
256 x 256; ours is one pixel at any size.

World units: x to the right, y upwards, both 0..10 in the centre square of the frame. A frame that isn't
square shows more of the plane beyond it. Motion is closed form, so any rate and duration will do.

Shape letters: N balls, T frames, H height, W width, C colours; the 2 of `centres_NT2` is (x, y).
"""

import dataclasses

import numpy as np

from sora_jax.worlds import balls, scene
from sora_jax.worlds.balls import STANDARD_FPS, STANDARD_FRAMES, WORLD_SIDE

GRAVITY = -2.5  # world units per second squared

# (low, high) ranges; a held-out draw takes at least one of speed and radius from the second list.
SPEED_RANGES = [(1.0, 4.0)], [(0.0, 0.8), (4.5, 6.0)]
RADIUS_RANGES = [(0.7, 1.4)], [(0.3, 0.6), (1.5, 2.0)]
COLLISION_RADIUS_RANGES = [(0.5, 1.5)], [(0.3, 0.4), (1.7, 2.0)]
# Seconds at which balls may meet: at least 8 of the 32 standard frames lie before, and 8 after.
IMPACT_SECONDS = (0.8, 2.3)
# Which lists of ranges (speed, radius) come from: those of training, or one or both from outside of them.
Level = tuple[int, int]
LEVELS: dict[str, Level] = {"in": (0, 0), "speed": (1, 0), "radius": (0, 1), "both": (1, 1)}
_LEAST_CLOSING_SPEED = 0.3  # slower pairs start so close that no meeting can be seen


@dataclasses.dataclass(frozen=True)
class BallState:
  """One ball at time 0: radius, centre (x, y) in world units, horizontal velocity in units per second."""

  radius: float
  x: float
  y: float
  velocity: float


@dataclasses.dataclass(frozen=True)
class PairState:
  """Two balls at time 0 on one height y; the red one is on the left, the blue one moves left (below 0)."""

  red_radius: float
  red_x: float
  red_velocity: float
  blue_radius: float
  blue_x: float
  blue_velocity: float
  y: float


def _draw_from(rng: np.random.Generator, ranges: list[tuple[float, float]]) -> float:
  """A uniform draw from a union of ranges."""
  lengths = np.array([high - low for low, high in ranges])
  low, high = ranges[rng.choice(len(ranges), p=lengths / lengths.sum())]
  return float(rng.uniform(low, high))


def _draw_level(rng: np.random.Generator, held_out: bool) -> Level:
  """That of training, or any other when held out."""
  return LEVELS[("radius", "speed", "both")[rng.integers(3)]] if held_out else LEVELS["in"]


def collide(state: PairState) -> tuple[float, float, float]:
  """(seconds until impact, red velocity after, blue velocity after): head-on, elastic, mass ~ radius^2."""
  gap = state.blue_x - state.red_x - state.red_radius - state.blue_radius
  seconds = gap / (state.red_velocity - state.blue_velocity)
  red_mass, blue_mass = state.red_radius**2, state.blue_radius**2
  momentum = red_mass * state.red_velocity + blue_mass * state.blue_velocity
  # Seen from the common centre of mass, an elastic impact turns both velocities round.
  common = momentum / (red_mass + blue_mass)
  return seconds, 2 * common - state.red_velocity, 2 * common - state.blue_velocity


def _size_word(radius: float) -> str:
  return "small" if radius < 1.0 else "large"


def _speed_word(velocity: float) -> str:
  return "slowly" if abs(velocity) < 2.5 else "fast"


class Uniform(balls.Balls):
  """A red ball rolls to the right at a constant velocity."""

  name = "uniform"
  version = 1
  attributes: tuple[str, ...] = ("present", "size", "velocity")
  colours = ("red",)

  def _heights(self, radius: float) -> tuple[float, float]:
    """Lowest and highest start."""
    return radius, WORLD_SIDE - radius

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> BallState:
    """A random state; held_out takes speed, radius or both from outside the training ranges."""
    return self.sample_at(rng, _draw_level(rng, held_out))

  def sample_at(self, rng: np.random.Generator, level: Level) -> BallState:
    """A random state of a level, of LEVELS."""
    speed_level, radius_level = level
    velocity = _draw_from(rng, SPEED_RANGES[speed_level])
    radius = _draw_from(rng, RADIUS_RANGES[radius_level])
    # Fast balls start at the left, slow ones anywhere that keeps them in sight for the standard clip.
    way = velocity * (STANDARD_FRAMES - 1) / STANDARD_FPS
    x = rng.uniform(radius, max(radius + 0.5, WORLD_SIDE - radius - way))
    return BallState(radius, float(x), float(rng.uniform(*self._heights(radius))), velocity)

  def radii(self, state: BallState) -> np.ndarray:
    """(1,) world units."""
    return np.array([state.radius])

  def centres(self, state: BallState, times_T: np.ndarray) -> np.ndarray:
    """(1, T, 2): x and y at the given seconds."""
    return np.stack([state.x + state.velocity * times_T, np.full_like(times_T, state.y)], axis=1)[None]

  def caption(self, state: BallState, style: str, still: bool = False) -> str:
    """The state in words, style "short" or "long"; still leaves out the motion."""
    short, long = "a red ball", f"A {_size_word(state.radius)} red ball on a white background"
    if not still:
      short += " moves right"
      long += f" moves {_speed_word(state.velocity)} to the right"
    return scene.in_style({"short": short, "long": long + "."}, style)


class Parabola(Uniform):
  """A red ball is thrown to the right and falls."""

  name = "parabola"
  version = 1
  attributes: tuple[str, ...] = ("present", "size", "velocity", "fall")

  def _heights(self, radius: float) -> tuple[float, float]:
    """The upper half, so that the fall can be seen."""
    return WORLD_SIDE / 2 + radius, WORLD_SIDE - radius

  def centres(self, state: BallState, times_T: np.ndarray) -> np.ndarray:
    """(1, T, 2): x and y at the given seconds."""
    y_T = state.y + 0.5 * GRAVITY * times_T**2
    return np.stack([state.x + state.velocity * times_T, y_T], axis=1)[None]

  def caption(self, state: BallState, style: str, still: bool = False) -> str:
    """The state in words, style "short" or "long"; still leaves out the motion."""
    if still:
      return super().caption(state, style, still)
    long = f"A {_size_word(state.radius)} red ball on a white background is thrown"
    long += f" {_speed_word(state.velocity)} to the right and falls in a curve."
    return scene.in_style({"short": "a red ball is thrown to the right and falls", "long": long}, style)


class Collision(balls.Balls):
  """A red ball from the left and a blue ball from the right meet head-on and bounce without loss."""

  name = "collision"
  version = 1
  attributes: tuple[str, ...] = ("present", "size", "velocity")
  colours = ("red", "blue")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> PairState:
    """A random state; held_out takes both speeds, both radii or all four from outside the training ranges."""
    while True:
      if (state := self._try_sample(rng, _draw_level(rng, held_out))) is not None:
        return state

  def sample_at(self, rng: np.random.Generator, level: Level) -> PairState:
    """A random state of a level, of LEVELS."""
    while (state := self._try_sample(rng, level)) is None:
      pass
    return state

  def _try_sample(self, rng: np.random.Generator, level: Level) -> PairState | None:
    """None where the balls would have to start outside the world to meet in time."""
    speed_level, radius_level = level
    red_speed, blue_speed = (_draw_from(rng, SPEED_RANGES[speed_level]) for _ in range(2))
    red_radius, blue_radius = (_draw_from(rng, COLLISION_RADIUS_RANGES[radius_level]) for _ in range(2))
    gap = (red_speed + blue_speed) * rng.uniform(*IMPACT_SECONDS)
    spare = WORLD_SIDE - 2 * red_radius - 2 * blue_radius - gap
    if spare < 0 or red_speed + blue_speed < _LEAST_CLOSING_SPEED:
      return None
    red_x = red_radius + rng.uniform(0.0, spare)
    largest = max(red_radius, blue_radius)
    return PairState(
      red_radius=red_radius,
      red_x=float(red_x),
      red_velocity=red_speed,
      blue_radius=blue_radius,
      blue_x=float(red_x + red_radius + gap + blue_radius),
      blue_velocity=-blue_speed,
      y=float(rng.uniform(largest, WORLD_SIDE - largest)),
    )

  def radii(self, state: PairState) -> np.ndarray:
    """(2,) world units: red, blue."""
    return np.array([state.red_radius, state.blue_radius])

  def centres(self, state: PairState, times_T: np.ndarray) -> np.ndarray:
    """(2, T, 2): x and y of red and blue at the given seconds."""
    impact, red_after, blue_after = collide(state)
    before_T, after_T = np.minimum(times_T, impact), np.maximum(times_T - impact, 0.0)
    red_T = state.red_x + state.red_velocity * before_T + red_after * after_T
    blue_T = state.blue_x + state.blue_velocity * before_T + blue_after * after_T
    y_T = np.full_like(times_T, state.y)
    return np.stack([np.stack([red_T, y_T], axis=1), np.stack([blue_T, y_T], axis=1)])

  def caption(self, state: PairState, style: str, still: bool = False) -> str:
    """The state in words, style "short" or "long"; still leaves out the motion.

    A moving clip is said to show the impact, which it does from 2.3 seconds on.
    """
    red = f"A {_size_word(state.red_radius)} red ball"
    blue = f"a {_size_word(state.blue_radius)} blue ball"
    if still:
      short, long = "a red ball and a blue ball", f"{red} and {blue} on a white background."
    else:
      short = "a red ball and a blue ball collide"
      long = f"{red} moves {_speed_word(state.red_velocity)} to the right and {blue} moves"
      long += f" {_speed_word(state.blue_velocity)} to the left on a white background; they collide."
    return scene.in_style({"short": short, "long": long}, style)
