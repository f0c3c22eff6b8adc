"""The world of several shapes: one to three beside each other, or one passing another, on plain or textured ground.

Lengths are in units of the frame's short side; the frame is a box of (H / short, W / short) with its origin at the top
left. Grounds are grey and shapes are saturated, see `hues.py`. Motion is closed form.

Shape letters: T frames, H height, W width, C colours, N hues; the last 2 of an array is (row, column).
"""

import dataclasses

import numpy as np

from sora_jax.worlds import blobs, hues, scene, shapes

FIGURES = shapes.SHAPES
RADII = {"small": 0.09, "large": 0.14}
MOTIONS = {"up": -0.3, "down": 0.3, "still": 0.0}  # short sides per second, rows downwards
PASSING = {"left": -0.5, "right": 0.5}
TEXTURES = ("plain", "striped", "checkered", "dotted")
GROUND, PATTERN = 0.85, 0.35
MARGIN = 0.16  # from the frame's sides to where centres turn
HELD_OUT = (("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square"), ("magenta", "triangle"))

# A figure's area in squared radii.
_AREAS = {"circle": np.pi, "square": 3.24, "triangle": 2.195, "cross": 2.59}
_REACH = 0.22  # short sides around a blob's centre that hold all of it
_LEAST_AREA = 1.2 * RADII["small"] ** 2
_STANDARD = (96, 96, 33, 8.0)  # the clip by which a state is described


@dataclasses.dataclass(frozen=True)
class Item:
  """One shape: keys of `hues.HUES`, of FIGURES, RADII and MOTIONS, and where it starts on its way, 0..1."""

  colour: str
  figure: str
  size: str
  motion: str
  start: float


@dataclasses.dataclass(frozen=True)
class GroupsState:
  """Several shapes.

  Attributes:
    items: from left to right; of two that pass, the one that moves and the one that stands.
    passing: "" where all keep to columns of their own; otherwise a key of PASSING: the way of the first.
    front: of two that pass, the first is in front.
    texture: of the ground.
  """

  items: tuple[Item, ...]
  passing: str
  front: bool
  texture: str


@dataclasses.dataclass(frozen=True)
class Group:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    tracks_NT2: centres of each hue of `hues.HUES`; NaN where none is seen.
    areas_NT: areas of each hue's largest blob in squared short sides.
    more_NT: areas of what else has that hue.
    figures_NT: names of the shapes, "none" where none fits.
    textures_T: the ground's, "none" where it is like none.
    box_2: height and width of the frame in short sides.
  """

  times_T: np.ndarray
  tracks_NT2: np.ndarray
  areas_NT: np.ndarray
  more_NT: np.ndarray
  figures_NT: np.ndarray
  textures_T: np.ndarray
  box_2: tuple[float, float]


def tracks(state: GroupsState, box_2: tuple[float, float], times_T: np.ndarray) -> list[np.ndarray]:
  """Centres (row, column) of each shape at the given seconds, (T, 2) in short sides."""
  high, wide = box_2
  found = []
  for number, item in enumerate(state.items):
    if state.passing:
      row_T, column_T = np.full_like(times_T, high / 2), np.full_like(times_T, wide / 2)
      if number == 0:
        length = wide - 2 * MARGIN
        path_T = item.start * length / 2 + abs(PASSING[state.passing]) * times_T
        column_T = MARGIN + scene.bounce(path_T, length)
        column_T = column_T if state.passing == "right" else wide - column_T
    else:
      column_T = np.full_like(times_T, (number + 0.5) / len(state.items) * wide)
      length = high - 2 * MARGIN
      row_T = MARGIN + scene.bounce(item.start * length + MOTIONS[item.motion] * times_T, length)
    found.append(np.stack([row_T, column_T], axis=1))
  return found


def ground(texture: str, height: int, width: int) -> np.ndarray:
  """The ground's brightness, float32 (H, W) in [-1, 1]."""
  rows_H, columns_W = scene.pixel_centres(height, width)
  short = np.float32(min(height, width))
  rows_H1, columns_1W = rows_H[:, None], columns_W[None]
  # Signed distances to the pattern's edges, below 0 inside, in short sides.
  stripe = lambda x, period: np.abs(np.mod(x, period) - np.float32(period / 2)) - np.float32(period / 4)
  distance_HW = np.ones((height, width), np.float32)
  if texture == "striped":
    distance_HW = distance_HW * 0 + stripe(columns_1W, 0.25)
  elif texture == "checkered":
    down_H1, across_1W = stripe(rows_H1, 0.4), stripe(columns_1W, 0.4)
    distance_HW = -np.sign(down_H1 * across_1W) * np.minimum(np.abs(down_H1), np.abs(across_1W))
  elif texture == "dotted":
    half = np.float32(0.125)
    distance_HW = np.hypot(np.mod(rows_H1, 0.25) - half, np.mod(columns_1W, 0.25) - half) - np.float32(0.06)
  return (GROUND + scene.coverage(distance_HW * short) * (PATTERN - GROUND)).astype(np.float32)


class Groups:
  """The world of several shapes; see the module's docstring and `world.World`.

  Attributes of its exam, each of all shapes at once and throughout the clip (`blobs.shown`): colour: their colours are
  seen, and no others. shape, size. relation: their order from left to right; or of two, that one passes the other.
  motion: up, down or none of each, or the way of the one that passes, at about the world's speed. front: who covers
  whom. ground: the texture.
  """

  name = "groups"
  version = 1
  attributes: tuple[str, ...] = ("colour", "shape", "size", "relation", "motion", "front", "ground")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> GroupsState:
    """A random state; held_out: the first shape is of a pair that is held out, otherwise none is."""
    while True:
      count = int(rng.integers(1, 4))
      passing = str(rng.choice(list(PASSING))) if count == 2 and rng.integers(2) else ""
      items = []
      for colour in rng.permutation(list(hues.HUES))[:count].tolist():
        figure, size = str(rng.choice(FIGURES)), str(rng.choice(list(RADII)))
        motion = "still" if passing else str(rng.choice(list(MOTIONS)))
        # Starting in the half that it leaves shows the way before the first wall is met.
        start = rng.uniform(0.5, 1.0) if motion == "up" else rng.uniform(0.0, 0.5)
        start = 0.2 * start if passing else start  # those that pass begin apart
        items.append(Item(colour, figure, size, motion, float(start)))
      unseen = [(item.colour, item.figure) in HELD_OUT for item in items]
      if unseen[0] if held_out else not any(unseen):
        return GroupsState(tuple(items), passing, bool(rng.integers(2)) or not passing, str(rng.choice(TEXTURES)))

  def render(self, state: GroupsState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    rows_H, columns_W = scene.pixel_centres(height, width)
    short = np.float32(min(height, width))
    centres = tracks(state, scene.box_size(height, width), scene.frame_times(frames, fps))
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    frames_THWC[:] = ground(state.texture, height, width)[..., None]
    drawn = list(zip(state.items, centres, strict=True))
    for item, track_T2 in drawn[::-1] if state.front else drawn:
      radius = np.float32(RADII[item.size])
      # Only the rows and columns that the shape ever touches.
      low_2, high_2 = track_T2.min(axis=0) - 1.4 * radius, track_T2.max(axis=0) + 1.4 * radius
      rows, columns = (
        slice(max(0, int(low * short)), int(high * short) + 2) for low, high in zip(low_2, high_2, strict=True)
      )
      dy_TH1 = (rows_H[rows] - track_T2[:, :1].astype(np.float32))[:, :, None]
      dx_T1W = (columns_W[columns] - track_T2[:, 1:].astype(np.float32))[:, None, :]
      cover_THW1 = scene.coverage(shapes.outline_distance(item.figure, radius, dy_TH1, dx_T1W) * short)[..., None]
      part = frames_THWC[:, rows, columns]
      part += cover_THW1 * (np.asarray(hues.HUES[item.colour], np.float32) - part)
    return frames_THWC

  def caption(self, state: GroupsState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    things = [f"a {item.colour} {item.figure}" for item in state.items]
    sized = [f"a {item.size} {item.colour} {item.figure}" for item in state.items]
    background = f"on a {state.texture} background"
    if state.passing:
      front = "in front of" if state.front else "behind"
      goes = "" if still else f" passes {front}"
      short = f"{things[0]}{goes} {things[1]}" if not still else f"{things[0]} beside {things[1]}"
      side = "left" if state.passing == "right" else "right"
      long = (
        f"{sized[0]} on the {side} of {sized[1]}"
        if still
        else f"{sized[0]} moves {state.passing}wards and{goes} {sized[1]}"
      )
    else:
      short = " left of ".join(things)
      does = {"up": " that moves upwards", "down": " that moves downwards", "still": " that stands still"}
      long = ", left of ".join(
        thing + ("" if still else does[item.motion]) for thing, item in zip(sized, state.items, strict=True)
      )
    return scene.in_style({"short": short, "long": f"{long[0].upper()}{long[1:]}, {background}."}, style)

  def read(self, frames_THWC: np.ndarray, fps: float) -> Group:
    """What is seen of each hue; see `Group`. Values outside [-1, 1] are clipped."""
    frames, height, width = frames_THWC.shape[:3]
    frames_THWC = hues.clean(frames_THWC)
    share_NTHW = hues.shares(frames_THWC)
    total_NT = np.stack([hues.mass(share_THW) for share_THW in share_NTHW])
    areas_NT, tracks_NT2 = np.zeros_like(total_NT), np.full((len(hues.HUES), frames, 2), np.nan)
    figures_NT = np.full((len(hues.HUES), frames), "none", dtype="<U8")
    for number, share_THW in enumerate(share_NTHW):
      if total_NT[number].max() < _LEAST_AREA:
        continue
      tracks_NT2[number] = hues.track(share_THW, _REACH, _LEAST_AREA)
      areas_NT[number] = hues.mass_near(share_THW, tracks_NT2[number], _REACH)
      figures_NT[number] = hues.figures(share_THW, tracks_NT2[number], tuple(RADII.values()), FIGURES)
    textures_T = _textures(frames_THWC, share_NTHW.max(axis=0))
    times_T, box_2 = scene.frame_times(frames, fps), scene.box_size(height, width)
    return Group(times_T, tracks_NT2, areas_NT, total_NT - areas_NT, figures_NT, textures_T, box_2)

  def describe(self, state: GroupsState) -> Group:
    """What is read from the standard clip."""
    return self.read(self.render(state, *_STANDARD), _STANDARD[-1])

  def compare(self, reading: Group, state: GroupsState) -> dict[str, float]:
    """1.0 or 0.0 for each attribute that applies; an image shows no motion, and no order of depth."""
    numbers = [list(hues.HUES).index(item.colour) for item in state.items]
    truth = tracks(state, reading.box_2, reading.times_T)
    apart_T = np.ones(len(reading.times_T), bool)  # none covers another
    if state.passing:
      gap_T = np.abs(truth[0][:, 1] - truth[1][:, 1])
      apart_T = gap_T > 1.05 * sum(RADII[item.size] for item in state.items)
    right = {}
    if apart_T.any():
      seen_NT = ~np.isnan(reading.tracks_NT2[..., 0])
      others = [number for number in range(len(hues.HUES)) if number not in numbers]
      seen_N = seen_NT[:, apart_T].mean(axis=1) > 0.8
      alone_N = (reading.more_NT[numbers][:, apart_T] < _LEAST_AREA / 2).mean(axis=1) > 0.8
      none_N = seen_NT[others].mean(axis=1) < 0.2
      right["colour"] = float(seen_N[numbers].all() and alone_N.all() and none_N.all())
    figures, sizes = [], []
    for item, number in zip(state.items, numbers, strict=True):
      figures.append(blobs.shown(reading.figures_NT[number, apart_T], item.figure))
      radii = np.sqrt(reading.areas_NT[number, apart_T] / _AREAS[item.figure])
      sizes.append(blobs.shown([_size(radius) for radius in radii.tolist()], item.size))
    if apart_T.any():
      right |= {"shape": float(all(figures)), "size": float(all(sizes))}
    found = [reading.tracks_NT2[number] for number in numbers]
    if len(state.items) > 1:
      if state.passing:
        ahead = _sides(found[0][apart_T, 1], found[1][apart_T, 1])
        wanted = _sides(truth[0][apart_T, 1], truth[1][apart_T, 1])
        if apart_T.any():
          right["relation"] = float(np.mean(ahead == wanted) > 0.8)
      else:  # in four of five frames, and where all are seen
        columns_NT = np.stack([track_T2[:, 1] for track_T2 in found])
        right["relation"] = float((np.diff(columns_NT, axis=0) > 0.1).all(axis=0).mean() > 0.8)
    if apart_T.sum() > 1:
      right["motion"] = float(
        all(_moves(track_T2[apart_T], true_T2[apart_T]) for track_T2, true_T2 in zip(found, truth, strict=True))
      )
      covered_T = (gap_T < 0.4 * min(RADII[item.size] for item in state.items)) if state.passing else ~apart_T  # none
      if covered_T.any() and apart_T.any():
        fronts, backs = numbers if state.front else numbers[::-1]
        kept = [
          np.median(reading.areas_NT[number, covered_T]) / max(np.median(reading.areas_NT[number, apart_T]), 1e-6)
          for number in (fronts, backs)
        ]
        right["front"] = float(kept[0] > 0.8 and kept[1] < 0.9 and kept[0] > kept[1])
    right["ground"] = float(blobs.shown(reading.textures_T, state.texture))
    return {name: right[name] for name in self.attributes if name in right}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: GroupsState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)


def _sides(x_T: np.ndarray, other_T: np.ndarray) -> np.ndarray:
  """-1, 0 or 1 a frame: on which side of the other one is; 0 where one isn't seen."""
  return np.nan_to_num(np.sign(x_T - other_T))


def _moves(found_T2: np.ndarray, truth_T2: np.ndarray, least: float = 0.1) -> bool:
  """Whether a track moves as it should: from frame to frame it goes where it should, about as far in all (half to twice
  of it), and not sideways; or it stays where it is."""
  seen_T = ~np.isnan(found_T2[:, 0])
  if seen_T.sum() < 2:
    return False
  axis = int(np.ptp(truth_T2, axis=0).argmax())
  way, true_way = np.diff(found_T2[seen_T, axis]), np.diff(truth_T2[seen_T, axis])
  if not true_way.any():
    return bool(np.ptp(found_T2[seen_T], axis=0).max() < least)
  moving = np.abs(true_way) > 0.5 * np.median(np.abs(true_way))
  sideways = np.ptp(np.percentile(found_T2[seen_T, 1 - axis], (10, 90)))
  return blobs.goes(way[moving], true_way[moving], 0.8) and bool(sideways < least)


def _size(radius: float) -> str:
  """The nearest of RADII, "none" where it is much smaller than all."""
  return min(RADII, key=lambda name: abs(np.log(radius / RADII[name]))) if radius > 0.06 else "none"


def _textures(frames_THWC: np.ndarray, covered_THW: np.ndarray) -> np.ndarray:
  """The texture that the pixels which no shape covers are most like, in each frame."""
  grounds = np.stack([ground(name, *covered_THW.shape[1:]) for name in TEXTURES])
  free_THW, grey_THW = covered_THW < 0.1, frames_THWC.mean(axis=-1)
  errors_TK = np.stack([(free_THW * (grey_THW - each_HW) ** 2).sum(axis=(1, 2)) for each_HW in grounds], axis=1)
  like_T = errors_TK.min(axis=1) < 0.04 * free_THW.sum(axis=(1, 2))
  return np.where(like_T, np.array(TEXTURES)[errors_TK.argmin(axis=1)], "none")
