"""The world of permanence: one or two shapes pass behind a screen, or leave the frame, and come back as they were.

Lengths are in units of the frame's short side; the frame is a box of (H / short, W / short) with its origin at the top
left. Shapes move along lanes of their own between two turning points outside of the frame, so each is hidden again and
again, by the frame's edge and by the screen where there is one. Motion is closed form.

Shape letters: T frames, H height, W width, C colours; the last 2 of `centres_T2` is (row, column).
"""

import dataclasses

import numpy as np

from sora_jax.worlds import blobs, hues, scene, shapes

FIGURES = ("circle", "square", "triangle")
RADIUS = 0.1
REACH = 1.13 * RADIUS  # of the widest figure to either side
SPEEDS = {"slow": 0.4, "fast": 0.7}  # short sides per second
SCREEN_WIDTH = 0.4
LANES = {1: (0.5,), 2: (0.27, 0.73)}  # shares of the height, by how many shapes there are
LEAD, LEAST_LEAD = 0.2, 0.05  # how far the second shape is behind the first, and in frames without room for that
BEYOND = 0.08  # how far outside of the frame a shape turns, past the point where nothing of it is seen
GROUND, SCREEN = hues.GREYS["white"], (-0.45,) * 3
# Pairs that training never shows.
HELD_OUT = (("red", "triangle"), ("green", "square"), ("blue", "circle"), ("yellow", "triangle"), ("cyan", "circle"))

NEAR = 0.15  # short sides within which a place is right
_LEAST_AREA = 0.8 * RADIUS**2  # of a shape in sight; a whole one has 2.2 to 3.2
_STANDARD = (64, 64, 65, 16.0)  # the clip by which a state is described


@dataclasses.dataclass(frozen=True)
class OcclusionState:
  """What moves and what hides it.

  Attributes:
    colours, figures: of the first shape and, where there are two, of the one that follows it.
    screen: a screen stands in the middle; without it the frame's edges hide alone.
    direction: "left" or "right", the first one.
    speed: a key of SPEEDS.
    gap: short sides from the first shape's front to what hides it first; less where the frame has no room.
  """

  colours: tuple[str, ...]
  figures: tuple[str, ...]
  screen: bool
  direction: str
  speed: str
  gap: float


@dataclasses.dataclass(frozen=True)
class Lane:
  """What is seen along one lane.

  Attributes:
    colours_T: name of the hue that is seen in each frame, "none" where none is.
    x_T: column of its centre in short sides; NaN where none is seen.
    figures_T: the shape read in each frame, "none" where none fits.
    more_T: bool, something else is seen too.
  """

  colours_T: tuple[str, ...]
  x_T: np.ndarray
  figures_T: tuple[str, ...]
  more_T: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sighting:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    lanes: by how many shapes there might be, what is seen along each lane.
    screen_T: bool, a dark screen stands in the middle.
    box_2: height and width of the frame in short sides.
  """

  times_T: np.ndarray
  lanes: dict[int, tuple[Lane, ...]]
  screen_T: np.ndarray
  box_2: tuple[float, float]


def centres(state: OcclusionState, height: int, width: int, times_T: np.ndarray) -> list[np.ndarray]:
  """Centres (row, column) of each shape at the given seconds, (T, 2) in short sides; outside of the frame too."""
  box_h, box_w = scene.box_size(height, width)
  low, length = -(REACH + BEYOND), box_w + 2 * (REACH + BEYOND)
  hidden_at, lanes = (box_w - SCREEN_WIDTH) / 2 if state.screen else box_w, LANES[len(state.colours)]
  whole = REACH + 0.01  # where the last one is first: all of it is in sight
  start = max(hidden_at - REACH - state.gap, whole + LEAST_LEAD * (len(lanes) - 1))
  lead = min(LEAD, start - whole)
  found = []
  for number, lane in enumerate(lanes):
    ahead_T = start - number * lead + SPEEDS[state.speed] * times_T
    x_T = low + scene.bounce(ahead_T - low, length)
    x_T = x_T if state.direction == "right" else box_w - x_T
    found.append(np.stack([np.full_like(x_T, lane * box_h), x_T], axis=1))
  return found


def seen_share(state: OcclusionState, height: int, width: int, x_T: np.ndarray) -> np.ndarray:
  """About how much of a shape is in sight at the given columns, 0..1, (T,): of its width, not of its area."""
  box_w = scene.box_size(height, width)[1]
  overlap = lambda low, high: np.clip(np.minimum(x_T + REACH, high) - np.maximum(x_T - REACH, low), 0, None)
  hidden_T = overlap(-9.0, 0.0) + overlap(box_w, 99.0)
  if state.screen:
    hidden_T = hidden_T + overlap((box_w - SCREEN_WIDTH) / 2, (box_w + SCREEN_WIDTH) / 2)
  return 1 - hidden_T / (2 * REACH)


class Occlusion:
  """The world of permanence; see the module's docstring and `world.World`.

  Attributes of its exam: colour, shape, direction: of each shape before it is hidden; nothing else is seen. hidden:
  nothing is seen where all is hidden. identity: what comes back, after it was gone, has the colour and shape of what
  went, by the clip's own showing. place: what comes back is where and when the speed in the caption brings it. order:
  of two, the first to go is the first back.
  """

  name = "occlusion"
  version = 2
  attributes: tuple[str, ...] = ("screen", "colour", "shape", "direction", "hidden", "identity", "place", "order")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> OcclusionState:
    """A random state; held_out: every shape is of a pair that is held out, otherwise none is."""
    pairs = [
      (colour, figure) for colour in hues.HUES for figure in FIGURES if ((colour, figure) in HELD_OUT) == held_out
    ]
    first = pairs[rng.integers(len(pairs))]
    others = [pair for pair in pairs if pair[0] != first[0]]
    chosen = [first, others[rng.integers(len(others))]][: int(rng.integers(1, 3))]
    colours, figures = zip(*chosen, strict=True)
    direction, speed = str(rng.choice(["left", "right"])), str(rng.choice(list(SPEEDS)))
    return OcclusionState(colours, figures, bool(rng.integers(2)), direction, speed, float(rng.uniform(0.02, 0.2)))

  def render(self, state: OcclusionState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    rows_H, columns_W = scene.pixel_centres(height, width)
    tracks = centres(state, height, width, scene.frame_times(frames, fps))
    short, box_w = np.float32(min(height, width)), scene.box_size(height, width)[1]
    screen_W = scene.coverage((np.abs(columns_W - np.float32(box_w / 2)) - np.float32(SCREEN_WIDTH / 2)) * short)
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    for block in scene.frame_blocks(frames, height, width):
      layers = []
      for colour, figure, track_T2 in zip(state.colours, state.figures, tracks, strict=True):
        dy_TH1 = (rows_H - track_T2[block, :1].astype(np.float32))[:, :, None]
        dx_T1W = (columns_W - track_T2[block, 1:].astype(np.float32))[:, None, :]
        cover_THW = scene.coverage(shapes.outline_distance(figure, np.float32(RADIUS), dy_TH1, dx_T1W) * short)
        layers.append((cover_THW * (1 - screen_W) if state.screen else cover_THW, hues.HUES[colour]))
      if state.screen:
        layers.append((np.broadcast_to(screen_W, layers[0][0].shape), SCREEN))
      frames_THWC[block] = scene.paint(GROUND, layers)
    return frames_THWC

  def caption(self, state: OcclusionState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    things = [f"a {colour} {figure}" for colour, figure in zip(state.colours, state.figures, strict=True)]
    short, scene_words = " and ".join(things), " and ".join(things)
    if len(things) == 2:
      scene_words = f"{things[0]} above {things[1]}"
    scene_words += " beside a dark screen" if state.screen else " in an empty room"
    long = f"{scene_words[0].upper()}{scene_words[1:]}"
    if not still:
      one = len(things) == 1
      where = "behind the screen" if state.screen else "out of the frame"
      short += f" {'goes' if one else 'go'} {where} and {'comes' if one else 'come'} back"
      speed = {"slow": "slowly", "fast": "fast"}[state.speed]
      goes = f"It moves {speed}" if one else f"Both move {speed}, the {state.colours[0]} one ahead,"
      long += f". {goes} {state.direction}wards, {where}, and {'comes' if one else 'come'} out again unchanged"
    return scene.in_style({"short": short, "long": long + "."}, style)

  def read(self, frames_THWC: np.ndarray, fps: float) -> Sighting:
    """What is seen along the lanes; see `Sighting`. Values outside [-1, 1] are clipped."""
    frames, height, width = frames_THWC.shape[:3]
    frames_THWC = hues.clean(frames_THWC)
    share_NTHW = hues.shares(frames_THWC)
    middle = frames_THWC[:, :, width // 2 - width // 16 : width // 2 + width // 16 + 1].mean(axis=-1)
    lanes = {}
    for count, places in LANES.items():
      found = []
      for number in range(len(places)):
        rows = slice(height * number // len(places), max(1, height * (number + 1) // len(places)))
        found.append(_along(share_NTHW[:, :, rows], min(height, width)))
      lanes[count] = tuple(found)
    screen_T = np.median(middle, axis=(1, 2)) < 0.2
    return Sighting(scene.frame_times(frames, fps), lanes, screen_T, scene.box_size(height, width))

  def describe(self, state: OcclusionState) -> Sighting:
    """What a perfect reading of the standard clip would be."""
    height, width, frames, fps = _STANDARD
    times_T = scene.frame_times(frames, fps)
    found, nothing_T = [], np.zeros(frames, bool)
    tracks = centres(state, height, width, times_T)
    for colour, figure, track_T2 in zip(state.colours, state.figures, tracks, strict=True):
      seen_T = seen_share(state, height, width, track_T2[:, 1]) > 0.3
      colours_T = tuple(np.where(seen_T, colour, "none").tolist())
      found.append(Lane(colours_T, np.where(seen_T, track_T2[:, 1], np.nan), (figure,) * frames, nothing_T))
    empty = Lane(("none",) * frames, np.full(frames, np.nan), ("none",) * frames, nothing_T)
    return Sighting(
      times_T,
      {count: tuple(found) if count == len(found) else (empty,) * count for count in LANES},
      np.full(frames, state.screen),
      scene.box_size(height, width),
    )

  def compare(self, reading: Sighting, state: OcclusionState) -> dict[str, float]:
    """1.0 or 0.0 for each attribute that applies; what needs a return is left out of a clip without one."""
    height, width = (round(1000 * side) for side in reading.box_2)
    right: dict[str, list[bool]] = {name: [] for name in self.attributes}
    screen_T = reading.screen_T == state.screen
    right["screen"].append(screen_T.mean() >= 0.8)
    returns = []  # of each that comes back: its column as seen, its true one, and when it is back
    truth = [track_T2[:, 1] for track_T2 in centres(state, height, width, reading.times_T)]
    for lane, colour, figure, x_T in zip(
      reading.lanes[len(state.colours)], state.colours, state.figures, truth, strict=True
    ):
      phases = Phases.of(seen_share(state, height, width, x_T))
      colours_T, figures_T = np.array(lane.colours_T), np.array(lane.figures_T)
      if phases.before_T.any():
        right["colour"].append(blobs.shown(colours_T[phases.before_T], colour) and lane.more_T.mean() < 0.1)
        right["shape"].append(blobs.shown(figures_T[phases.before_T], figure))
      if phases.before_T.sum() > 1:
        seen_T = phases.before_T & ~np.isnan(lane.x_T)
        right["direction"].append(blobs.goes(np.diff(lane.x_T[seen_T]), np.diff(x_T[seen_T]), 0.7))
      gone = not phases.hidden_T.any() or (colours_T[phases.hidden_T] == "none").mean() > 0.7
      if phases.hidden_T.any():
        right["hidden"].append(gone)
        right["screen"].append(screen_T[phases.hidden_T].mean() >= 0.8)
      if phases.after_T.any():
        off_T = np.nan_to_num(np.abs(lane.x_T - x_T)[phases.after_T], nan=9.0)
        right["place"].append(np.median(off_T) <= NEAR)
        if phases.before_T.any():
          same = [
            blobs.shown(seen_T[phases.after_T], blobs.commonest(seen_T[phases.before_T]))
            for seen_T in (colours_T, figures_T)
          ]
          right["identity"].append(gone and all(same))
        returns.append((lane.x_T, x_T, phases.after_T))
    if len(returns) == 2:
      (first_T, true_first_T, back_T), (second_T, true_second_T, also_back_T) = returns
      ahead_T, true_ahead_T = first_T - second_T, true_first_T - true_second_T
      asked_T = back_T & also_back_T & (np.abs(true_ahead_T) > LEAD / 2)
      if asked_T.any():
        right["order"].append((np.sign(ahead_T) == np.sign(true_ahead_T))[asked_T].mean() > 0.7)
    return {name: float(all(marks)) for name, marks in right.items() if marks}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: OcclusionState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)


@dataclasses.dataclass(frozen=True)
class Phases:
  """Which frames show a shape whole before it is first hidden, hide all of it, and show it whole again; bool (T,)."""

  before_T: np.ndarray
  hidden_T: np.ndarray
  after_T: np.ndarray

  @classmethod
  def of(cls, share_T: np.ndarray) -> "Phases":
    """From the share of it that is in sight; see `seen_share`."""
    gone_T = np.cumsum(share_T < 0.5) > 0
    whole_T = share_T > 0.99
    return cls(whole_T & ~gone_T, share_T <= 0, whole_T & gone_T)


def _along(share_NTHW: np.ndarray, short: int) -> Lane:
  """What moves in one band of the frame, given the hues' shares in it; `short` is the whole frame's short side."""
  mass_NT = share_NTHW.sum(axis=(2, 3), dtype=np.float64) / short**2
  number_T = mass_NT.argmax(axis=0)
  share_THW = np.take_along_axis(share_NTHW, number_T[None, :, None, None], axis=0)[0]
  scale = min(share_THW.shape[1:]) / short  # short sides of the frame in one of the band's
  centres_T2 = hues.track(share_THW, 2 * RADIUS / scale, _LEAST_AREA / scale**2)
  figures_T = hues.figures(share_THW, centres_T2, (RADIUS / scale,), FIGURES)
  names = list(hues.HUES)
  seen_T = ~np.isnan(centres_T2[:, 0])
  colours_T = tuple(names[number] if seen else "none" for number, seen in zip(number_T, seen_T, strict=True))
  own_T = hues.mass_near(share_THW, centres_T2, 2 * RADIUS / scale) * scale**2
  more_T = mass_NT.sum(axis=0) - own_T >= _LEAST_AREA
  return Lane(colours_T, centres_T2[:, 1] * scale, figures_T, more_T & seen_T)
