"""The world of solid objects seen by a camera that orbits, dollies, pans or stands, on a chequered ground.

World units: x to the right, y away from where the camera starts, z upwards; the ground is z = 0. The camera is a
pinhole whose focal length is FOCAL short sides of the frame; every path starts at the same pose. How rigid a clip's
motion is, is measured in `tracking.py`.

Shape letters: T frames, H height, W width; 3 is (x, y, z) of the world, or right, down and ahead of the camera; the
last 2 of an image point is (row, column) from the frame's middle, in short sides.
"""

import dataclasses
import functools

import numpy as np

from sora_jax.worlds import hues, scene, tracking

SOLIDS = ("box", "sphere", "cylinder", "cone")
SLOTS = {"left": (-1.15, 0.1), "middle": (0.0, 0.55), "right": (1.15, 0.1)}  # (x, y) of the objects
MOVES = ("orbits left", "orbits right", "dollies in", "dollies out", "pans left", "pans right", "stands still")
FOCAL = 1.1  # short sides
DISTANCE, HEIGHT, AIM = 4.3, 1.7, (0.0, 0.2, 0.35)  # from where the camera starts, and what it looks at
ORBIT, DOLLY, PAN = 0.3, 0.6, 0.2  # radians, units and radians per second
REACH = {"dollies": 1.5, "pans": 0.3}  # how far it goes before it comes back
HELD_OUT = (("red", "cone"), ("green", "box"), ("blue", "sphere"), ("yellow", "cylinder"), ("cyan", "cone"))

RIGID = 1 / 64  # short sides: the median reprojection error of a rigid clip, 2 pixels of 128
_FITS = 1.5 * RIGID  # that of a clip's camera: its places are not searched for, so real ones have up to 0.9 of RIGID
_SMALL = 40  # pixels of the short side of the render that a clip's hues are compared with
_WIDE, _TALL = 0.42, 0.84  # half the width and the height of every solid
_CELL = 0.7  # of the ground's pattern
_GREYS, _SKY = (0.45, -0.25), 0.8
_LIGHT = np.array([-0.45, -0.6, 0.66], np.float32)
_LEAST_AREA = 0.008  # squared short sides of a hue that is in sight
_STANDARD = (48, 48, 9, 8.0)  # the clip by which a state is described


@dataclasses.dataclass(frozen=True)
class Solid:
  """One object: keys of `hues.HUES`, SOLIDS and SLOTS, how far it is from its slot, and its turn in radians."""

  colour: str
  solid: str
  slot: str
  off_x: float
  off_y: float
  turn: float


@dataclasses.dataclass(frozen=True)
class Camera3dState:
  """Objects from left to right, and what the camera does, one of MOVES."""

  solids: tuple[Solid, ...]
  move: str


@dataclasses.dataclass(frozen=True)
class View:
  """What is read from a clip.

  Attributes:
    seen: the hues in sight in the first frame.
    solids: by slot, the (colour, solid) that the first frame shows there; slots without one are left out.
    errors: median reprojection error of each of MOVES with the depths that suit it best, short sides.
    rigid: that of the best rigid camera; infinite where too little can be followed.
    times_T: seconds of the frames.
    areas_TN: area of each hue in each frame, in squared short sides.
    box_2: height and width of the frame in short sides.
  """

  seen: tuple[str, ...]
  solids: dict[str, tuple[str, str]]
  errors: dict[str, float]
  rigid: float
  times_T: np.ndarray
  areas_TN: np.ndarray
  box_2: tuple[float, float]


def poses(move: str, times_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The camera at the given seconds: rotations from world to camera (T, 3, 3) and positions (T, 3)."""
  verb, _, way = move.partition(" ")
  sign = 1.0 if way in ("right", "out") else -1.0
  angle_T, distance_T, yaw_T = np.zeros_like(times_T), np.full_like(times_T, DISTANCE), np.zeros_like(times_T)
  if verb == "orbits":
    angle_T = sign * ORBIT * times_T
  elif verb == "dollies":
    distance_T = DISTANCE + sign * scene.bounce(DOLLY * times_T, REACH[verb])
  elif verb == "pans":
    yaw_T = sign * scene.bounce(PAN * times_T, REACH[verb])
  aim_3 = np.array(AIM)
  slope = np.array([0.0, -1.0, (HEIGHT - AIM[2]) / DISTANCE])
  away_T3 = np.stack([np.sin(angle_T), -np.cos(angle_T), np.full_like(angle_T, slope[2])], axis=1)
  places_T3 = aim_3 + distance_T[:, None] * away_T3
  ahead_T3 = aim_3 - places_T3
  ahead_T3 = np.stack(
    [
      ahead_T3[:, 0] * np.cos(yaw_T) + ahead_T3[:, 1] * np.sin(yaw_T),
      ahead_T3[:, 1] * np.cos(yaw_T) - ahead_T3[:, 0] * np.sin(yaw_T),
      ahead_T3[:, 2],
    ],
    axis=1,
  )
  ahead_T3 /= np.linalg.norm(ahead_T3, axis=1, keepdims=True)
  right_T3 = np.cross(ahead_T3, [0.0, 0.0, 1.0])
  right_T3 /= np.linalg.norm(right_T3, axis=1, keepdims=True)
  return np.stack([right_T3, np.cross(ahead_T3, right_T3), ahead_T3], axis=1), places_T3


def likeliest(errors: dict[str, float]) -> str:
  """The move that explains a clip best. Errors of pans and of a camera that stands count half: they show no depth, so
  an orbit with depths that suit it fits them too, and the few frames of a short clip better than what they are."""
  return min(errors, key=lambda move: errors[move] * (1.0 if move.startswith(("orbits", "dollies")) else 0.5))


def _place(solid: Solid) -> np.ndarray:
  x, y = SLOTS[solid.slot]
  return np.array([x + solid.off_x, y + solid.off_y, 0.0], np.float32)


class Camera3d:
  """The world of solid objects; see the module's docstring and `world.World`.

  Attributes of its exam: colour: the objects' colours are seen, and no others, in every frame that should show them.
  solid: each is the solid that it should be, where it should stand, in the first frame. camera: of all moves, the one
  in the caption fits best. rigid: the median reprojection error of what can be followed is within RIGID of the best
  rigid camera's.
  """

  name = "camera3d"
  version = 1
  attributes: tuple[str, ...] = ("colour", "solid", "camera", "rigid")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> Camera3dState:
    """A random state; held_out: the first object is of a pair that is held out, otherwise none is."""
    while True:
      count = int(rng.integers(1, 4))
      slots = list(SLOTS)
      kept = sorted(rng.permutation(3)[:count].tolist())
      solids = []
      for colour, number in zip(rng.permutation(list(hues.HUES))[:count].tolist(), kept, strict=True):
        solid, (off_x, off_y) = str(rng.choice(SOLIDS)), rng.uniform(-0.12, 0.12, 2).tolist()
        solids.append(Solid(colour, solid, slots[number], off_x, off_y, float(rng.uniform(0, 1.5))))
      unseen = [(solid.colour, solid.solid) in HELD_OUT for solid in solids]
      if unseen[0] if held_out else not any(unseen):
        return Camera3dState(tuple(solids), str(rng.choice(MOVES)))

  def render(self, state: Camera3dState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    turns_T33, places_T3 = poses(state.move, scene.frame_times(frames, fps))
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    for frame in range(frames):
      if frame and state.move == "stands still":
        frames_THWC[frame] = frames_THWC[0]
        continue
      frames_THWC[frame] = _picture(state, turns_T33[frame], places_T3[frame], height, width)
    return frames_THWC

  def caption(self, state: Camera3dState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    things = [f"a {solid.colour} {solid.solid}" for solid in state.solids]
    sides = [f"{thing} {_WHERE[solid.slot]}" for thing, solid in zip(things, state.solids, strict=True)]
    short, long = " and ".join(things), ", ".join(sides)
    long = f"{long[0].upper()}{long[1:]}, on a chequered floor"
    if not still:
      short += f", the camera {state.move}"
      long += f". The camera {state.move}"
    return scene.in_style({"short": short, "long": long + "."}, style)

  def read(self, frames_THWC: np.ndarray, fps: float) -> View:
    """What is seen, and how rigidly it moves; see `View`. Values outside [-1, 1] are clipped."""
    frames, height, width = frames_THWC.shape[:3]
    frames_THWC = hues.clean(frames_THWC)
    times_T, box_2 = scene.frame_times(frames, fps), scene.box_size(height, width)
    share_NTHW = hues.shares(frames_THWC)
    areas_TN = np.stack([hues.mass(share_THW) for share_THW in share_NTHW], axis=1)
    seen = tuple(name for name, area in zip(hues.HUES, areas_TN[0], strict=True) if area > _LEAST_AREA)
    solids = _standing(frames_THWC[0], share_NTHW[:, 0], seen)
    if frames == 1:
      return View(seen, solids, {}, float("inf"), times_T, areas_TN, box_2)
    points_PT2 = tracking.follow(frames_THWC.mean(axis=-1))
    fits = {move: tracking.depth_errors(points_PT2, *poses(move, times_T), FOCAL) for move in MOVES}
    errors = {move: tracking.middle(each) for move, each in fits.items()}
    best = likeliest(errors)
    rigid = tracking.rigid_error(points_PT2, *poses(best, times_T), FOCAL) if np.isfinite(errors[best]) else np.inf
    return View(seen, solids, errors, float(rigid), times_T, areas_TN, box_2)

  def describe(self, state: Camera3dState) -> View:
    """What is read from the standard clip."""
    return self.read(self.render(state, *_STANDARD), _STANDARD[-1])

  def compare(self, reading: View, state: Camera3dState) -> dict[str, float]:
    """1.0 or 0.0 for each attribute that applies; an image shows no camera."""
    right = {
      "colour": set(reading.seen) == {solid.colour for solid in state.solids} and self._coloured(reading, state),
      "solid": reading.solids == {solid.slot: (solid.colour, solid.solid) for solid in state.solids},
    }
    if len(reading.times_T) > 1:
      best = likeliest(reading.errors)
      right |= {"camera": best == state.move and reading.errors[best] <= _FITS, "rigid": reading.rigid <= RIGID}
    return {name: float(right[name]) for name in self.attributes if name in right}

  def errors(self, frames_THWC: np.ndarray, fps: float, state: Camera3dState) -> dict[str, float]:
    """Median reprojection errors, in pixels of a short side of 128, before the best rigid camera and before the camera
    in the caption; infinite where too little can be followed. An image has none."""
    reading = self.read(frames_THWC, fps)
    if len(reading.times_T) < 2:
      return {}
    return {"reprojection_px": 128 * reading.rigid, "caption_camera_px": 128 * reading.errors[state.move]}

  def _coloured(self, reading: View, state: Camera3dState) -> bool:
    """Whether in most frames about as much of each hue is seen as should be, and none of the others."""
    height, width = (round(_SMALL * side) for side in reading.box_2)
    fps = 1 / float(reading.times_T[1]) if len(reading.times_T) > 1 else 1.0
    true_NTHW = hues.shares(self.render(state, height, width, len(reading.times_T), fps))
    true_TN = np.stack([hues.mass(share_THW) for share_THW in true_NTHW], axis=1)
    missing_T = ((true_TN > 2 * _LEAST_AREA) & (reading.areas_TN < 0.3 * true_TN)).any(axis=1)
    strange_T = ((true_TN.max(axis=0) == 0) & (reading.areas_TN > _LEAST_AREA)).any(axis=1)
    return bool((missing_T | strange_T).mean() <= 0.2)

  def examine(self, frames_THWC: np.ndarray, fps: float, state: Camera3dState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)


_WHERE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def _rays(turn_33: np.ndarray, height: int, width: int, sub: int) -> np.ndarray:
  """Directions of the rays through `sub` x `sub` points of each pixel, float32 (3, H sub, W sub), not normed."""
  rows, columns = scene.pixel_centres(height * sub, width * sub)
  short = min(height, width)
  down = ((rows * min(height * sub, width * sub) / sub - height / 2) / short / FOCAL).astype(np.float32)
  across = ((columns * min(height * sub, width * sub) / sub - width / 2) / short / FOCAL).astype(np.float32)
  right, below, ahead = turn_33.astype(np.float32)
  return right[:, None, None] * across[None, None] + below[:, None, None] * down[None, :, None] + ahead[:, None, None]


def _picture(
  state: Camera3dState, turn_33: np.ndarray, place_3: np.ndarray, height: int, width: int, sub: int = 2
) -> np.ndarray:
  """One frame, float32 (H, W, 3): the mean of `sub` x `sub` rays a pixel."""
  ray_3HW = _rays(turn_33, height, width, sub)
  place_3 = place_3.astype(np.float32)
  grey_HW, reach_HW = _ground(ray_3HW, place_3, state)
  picture_HWC = np.repeat(grey_HW[..., None], 3, axis=-1)
  for solid in state.solids:
    window = _window(solid, turn_33, place_3, height * sub, width * sub)
    if window is None:
      continue
    far, shade = _hit(solid, ray_3HW[(slice(None), *window)], place_3)
    front = far < reach_HW[window]
    reach_HW[window] = np.where(front, far, reach_HW[window])
    colour_C = (np.asarray(hues.HUES[solid.colour], np.float32) + 1) / 2
    lit = 2 * shade[..., None] * colour_C - 1
    picture_HWC[window] = np.where(front[..., None], lit, picture_HWC[window])
  return picture_HWC.reshape(height, sub, width, sub, 3).mean(axis=(1, 3))


def _ground(ray_3HW: np.ndarray, place_3: np.ndarray, state: Camera3dState) -> tuple[np.ndarray, np.ndarray]:
  """Brightness of ground and sky, and how many ray lengths away it is; far squares fade into the sky."""
  falls_HW = ray_3HW[2] < -1e-3
  far_HW = np.where(falls_HW, -place_3[2] / np.where(falls_HW, ray_3HW[2], -1), np.float32(1e4)).astype(np.float32)
  x_HW, y_HW = place_3[0] + far_HW * ray_3HW[0], place_3[1] + far_HW * ray_3HW[1]
  odd_HW = (np.floor(x_HW / _CELL) + np.floor(y_HW / _CELL)) % 2
  haze_HW = np.exp(-((far_HW / np.float32(9.0)) ** 2))
  ground_HW = _GREYS[1] + odd_HW * np.float32(_GREYS[0] - _GREYS[1])
  for solid in state.solids:  # what an object takes from the light of the sky around its foot
    x, y, _ = _place(solid)
    near_HW = (x_HW - x) ** 2 + (y_HW - y) ** 2
    ground_HW = ground_HW - np.float32(0.5) * np.exp(-near_HW / np.float32(0.18))
  return (_SKY + haze_HW * (ground_HW - _SKY)).astype(np.float32), far_HW


def _window(
  solid: Solid, turn_33: np.ndarray, place_3: np.ndarray, rows: int, columns: int
) -> tuple[slice, slice] | None:
  """The rows and columns of rays that may hit a solid, or None where none does."""
  radius = float(np.hypot(1.42 * _WIDE, _TALL / 2))
  right, down, ahead = turn_33 @ (_place(solid) + np.array([0, 0, _TALL / 2]) - place_3)
  if ahead < radius:
    return None
  short, half = min(rows, columns), FOCAL * radius / (ahead - radius)
  windows = []
  for along, size in ((down, rows), (right, columns)):
    middle = size / 2 + FOCAL * along / ahead * short
    low, high = int(middle - half * short), int(middle + half * short) + 2
    windows.append(slice(max(low, 0), min(max(high, 0), size)))
  return (windows[0], windows[1]) if all(each.start < each.stop for each in windows) else None


def _hit(solid: Solid, ray_3HW: np.ndarray, place_3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ray lengths to a solid, infinite where it isn't hit, and how light it is there, 0..1; (H, W) each."""
  origin_3 = place_3 - _place(solid)
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    if solid.solid == "box":
      far, normal_3HW = _box(ray_3HW, origin_3, solid.turn)
    elif solid.solid == "sphere":
      far, normal_3HW = _sphere(ray_3HW, origin_3)
    else:
      far, normal_3HW = _round(ray_3HW, origin_3, slope=_WIDE / _TALL if solid.solid == "cone" else 0.0)
    light = np.einsum("d,dhw->hw", _LIGHT, normal_3HW)
  far = np.where(far > 0, far, np.inf)  # also where it is no number
  return far, 0.4 + 0.6 * np.clip(np.nan_to_num(light), 0, 1)


def _box(ray_3HW: np.ndarray, origin_3: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
  """A box with a square base, by its three slabs."""
  cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
  turned = lambda x, y: (cos * x + sin * y, cos * y - sin * x)
  ways = (*turned(ray_3HW[0], ray_3HW[1]), ray_3HW[2])
  starts = (*turned(origin_3[0], origin_3[1]), origin_3[2] - _TALL / 2)
  near, far, face = -np.inf, np.inf, None
  for axis, (way, start) in enumerate(zip(ways, starts, strict=True)):
    half = np.float32(_TALL / 2)
    low, high = (-half * np.sign(way) - start) / way, (half * np.sign(way) - start) / way
    face = np.where(low > near, axis, 0 if face is None else face)
    near, far = np.maximum(near, low), np.minimum(far, high)
  signs = [-np.sign(way) * (face == axis) for axis, way in enumerate(ways)]
  normal = np.stack([cos * signs[0] - sin * signs[1], sin * signs[0] + cos * signs[1], signs[2]])
  return np.where(near <= far, near, np.inf), normal


def _sphere(ray_3HW: np.ndarray, origin_3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A sphere on the ground."""
  start_3 = origin_3 - np.array([0, 0, _WIDE], np.float32)
  square = (ray_3HW**2).sum(axis=0)
  half = np.einsum("d,dhw->hw", start_3, ray_3HW)
  root = half**2 - square * np.float32(start_3 @ start_3 - _WIDE**2)
  far = (-half - np.sqrt(root)) / square
  return far, (start_3[:, None, None] + far * ray_3HW) / np.float32(_WIDE)


def _round(ray_3HW: np.ndarray, origin_3: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
  """A cylinder (slope 0), or a cone whose radius falls by `slope` a unit of height to nothing at the top."""
  # x^2 + y^2 = (wide - slope z)^2 along the ray.
  wide = np.float32(_WIDE)
  edge, falls = wide - np.float32(slope) * origin_3[2], np.float32(slope) * ray_3HW[2]
  a = ray_3HW[0] ** 2 + ray_3HW[1] ** 2 - falls**2
  b = origin_3[0] * ray_3HW[0] + origin_3[1] * ray_3HW[1] + edge * falls
  c = origin_3[0] ** 2 + origin_3[1] ** 2 - edge**2
  root = np.sqrt(b**2 - a * c)
  far = np.full(a.shape, np.inf, np.float32)
  for length in ((-b - root) / a, (-b + root) / a):
    z = origin_3[2] + length * ray_3HW[2]
    ok = (length > 0) & (z >= 0) & (z <= _TALL) & (length < far)
    far = np.where(ok, length, far)
  x, y = origin_3[0] + far * ray_3HW[0], origin_3[1] + far * ray_3HW[1]
  scale = np.float32(1 / np.hypot(1, slope)) / np.maximum(np.hypot(x, y), 1e-6)
  found = np.stack([x * scale, y * scale, np.full_like(x, slope / np.hypot(1, slope))])
  if slope == 0:  # the lid
    lid = (np.float32(_TALL) - origin_3[2]) / ray_3HW[2]
    on = (lid > 0) & (lid < far) & (np.hypot(origin_3[0] + lid * ray_3HW[0], origin_3[1] + lid * ray_3HW[1]) <= wide)
    far = np.where(on, lid, far)
    found = np.where(on, np.array([0, 0, 1], np.float32)[:, None, None], found)
  return far, found


@functools.lru_cache(maxsize=64)
def _drawings(solid: str, slot: str, height: int, width: int) -> tuple[np.ndarray, ...]:
  """How light the first frame shows such a solid in such a slot, at places and turns within it; NaN beside it."""
  turns, places = (value[0] for value in poses("stands still", np.zeros(1)))
  found = []
  for off_x, off_y in ((0.0, 0.0), (-0.1, 0.0), (0.1, 0.0), (0.0, -0.1), (0.0, 0.1)):
    for turn in np.arange(0.0, 1.5, 0.25).tolist() if solid == "box" else (0.0,):
      thing = Solid("red", solid, slot, off_x, off_y, turn)
      picture_HWC = _picture(Camera3dState((thing,), "stands still"), turns, places, height, width)
      light_HW, low_HW = picture_HWC.max(axis=-1), picture_HWC.min(axis=-1)
      found.append(np.where(light_HW - low_HW > 0.3, light_HW, np.nan))
  return tuple(found)


def _standing(picture_HWC: np.ndarray, share_NHW: np.ndarray, seen: tuple[str, ...]) -> dict[str, tuple[str, str]]:
  """What stands in each slot, by how well each hue's outline and shading are those of each solid."""
  found, light_HW = {}, picture_HWC.max(axis=-1)
  for colour in seen:
    mask_HW = share_NHW[list(hues.HUES).index(colour)] > 0.2
    best, place = 0.4, None
    for slot in SLOTS:
      for solid in SOLIDS:
        for other_HW in _drawings(solid, slot, *light_HW.shape):
          both_HW = mask_HW & ~np.isnan(other_HW)
          if both_HW.any():
            overlap = both_HW.sum() / (mask_HW | ~np.isnan(other_HW)).sum()
            score = overlap - 0.5 * np.abs(light_HW - other_HW)[both_HW].mean()
            best, place = (score, (slot, solid)) if score > best else (best, place)
    if place:
      found[place[0]] = (colour, place[1])
  return found
