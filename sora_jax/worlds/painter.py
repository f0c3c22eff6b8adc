"""The world of lasting change: a brush leaves strokes that stay.

Strokes go straight from one of nine places to another, one after the other; some may be there when the clip begins.
Lengths are in units of the frame's short side; the frame is a box of (H / short, W / short) with its origin at the top
left, in which the nine places keep their shares of height and width.

Shape letters: T frames, H height, W width, K strokes, P paths between two places, Q points along a path; the last 2 of
an array is (row, column).
"""

import dataclasses
import itertools

import numpy as np

from sora_jax.worlds import hues, scene

PLACES = {
  "top left": (0.18, 0.18),
  "top": (0.18, 0.5),
  "top right": (0.18, 0.82),
  "left": (0.5, 0.18),
  "centre": (0.5, 0.5),
  "right": (0.5, 0.82),
  "bottom left": (0.82, 0.18),
  "bottom": (0.82, 0.5),
  "bottom right": (0.82, 0.82),
}
STROKE_SECONDS = 0.8
STROKE_RADIUS, BRUSH_RADIUS = 0.06, 0.05
CANVAS, BRUSH = hues.GREYS["white"], hues.GREYS["black"]
# A stroke of such a colour towards such a place is never shown in training.
HELD_OUT = (("red", "top left"), ("green", "bottom right"), ("blue", "centre"), ("yellow", "right"), ("cyan", "top"))

PATHS = tuple(itertools.combinations(PLACES, 2))
THERE, AWAY = 0.7, 0.4  # a stroke whose colour is on so much of its path is there; on less than that it isn't
BRUSH_OFF = 0.12  # short sides within which the brush is where it should be
_POINTS = 24  # along a path
_BEGUN = 0.3  # share of a stroke that is enough to tell its colour
_SPOT = 0.015  # share of the frame that a hue may cover without a stroke of it
_MOST_HIDDEN = 0.25  # share of a stroke that later ones may cover
_STANDARD = (48, 48, 57, 16.0)  # the clip by which a state is described
_BOXES = ((1.0, 1.0), (1.0, 2.0), (2.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Stroke:
  """A straight stroke: its colour, a key of `hues.HUES`, and the places where it begins and ends, keys of PLACES."""

  colour: str
  start: str
  end: str


@dataclasses.dataclass(frozen=True)
class PainterState:
  """What is painted.

  Attributes:
    strokes: in the order in which they are made, each of a colour of its own.
    done: how many of them are there when the clip begins.
  """

  strokes: tuple[Stroke, ...]
  done: int


@dataclasses.dataclass(frozen=True)
class Canvas:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    hues_TPQ: number of the hue at the points of each path of PATHS, -1 where there is none.
    painted_NT: share of the frame that each hue covers.
    brush_T2: centre of the brush in short sides; NaN where none is seen.
    box_2: height and width of the frame in short sides.
  """

  times_T: np.ndarray
  hues_TPQ: np.ndarray
  painted_NT: np.ndarray
  brush_T2: np.ndarray
  box_2: tuple[float, float]


def place(name: str, box_2: tuple[float, float]) -> np.ndarray:
  """(row, column) of a place in short sides, (2,) float64."""
  return np.array(PLACES[name]) * np.array(box_2)


def progress(state: PainterState, times_T: np.ndarray) -> np.ndarray:
  """How much of each stroke is painted at the given seconds, 0..1, (K, T)."""
  turn_T = times_T / STROKE_SECONDS + state.done
  return np.stack([np.clip(turn_T - number, 0.0, 1.0) for number in range(len(state.strokes))])


def brush(state: PainterState, box_2: tuple[float, float], times_T: np.ndarray) -> np.ndarray:
  """Centre of the brush at the given seconds, (T, 2) in short sides; after the last stroke it rests at its end."""
  share_KT = progress(state, times_T)
  current_T = np.minimum((share_KT >= 1).sum(axis=0), len(state.strokes) - 1)
  starts_K2, ends_K2 = (
    np.stack([place(getattr(stroke, end), box_2) for stroke in state.strokes]) for end in ("start", "end")
  )
  share_T1 = share_KT[current_T, np.arange(len(times_T)), None]
  return starts_K2[current_T] * (1 - share_T1) + ends_K2[current_T] * share_T1


def _hidden(under: Stroke, over: Stroke, box_2: tuple[float, float]) -> float:
  """Share of a stroke's middle line that a later stroke covers."""
  line_Q2 = _line(under.start, under.end, box_2)
  start, end = place(over.start, box_2), place(over.end, box_2)
  distance_Q = _to_segment(line_Q2[:, 0], line_Q2[:, 1], start, end - start)
  return float((distance_Q < STROKE_RADIUS).mean())


def _line(start: str, end: str, box_2: tuple[float, float]) -> np.ndarray:
  """Points along a path, (Q, 2) in short sides."""
  share_Q1 = np.linspace(0, 1, _POINTS)[:, None]
  return place(start, box_2) * (1 - share_Q1) + place(end, box_2) * share_Q1


def _to_segment(rows: np.ndarray, columns: np.ndarray, start_2: np.ndarray, way_2: np.ndarray) -> np.ndarray:
  """Distances of points to a segment from `start_2` along `way_2`; all in one unit, shapes that broadcast."""
  dy, dx = rows - np.float32(start_2[0]), columns - np.float32(start_2[1])
  along = (dy * np.float32(way_2[0]) + dx * np.float32(way_2[1])) / np.float32(max(float(way_2 @ way_2), 1e-9))
  along = np.clip(along, 0, 1)
  return np.sqrt((dy - along * np.float32(way_2[0])) ** 2 + (dx - along * np.float32(way_2[1])) ** 2)


class Painter:
  """The world of lasting change; see the module's docstring and `world.World`.

  Attributes of its exam: strokes: share of the strokes finished by the end that are there at the end in their colours,
  and of the one that is being made, what is made of it. stays: share of the strokes that the clip itself once shows
  finished that stay so to its end. order: each stroke of the clip grows within its own time. brush: the brush is at its
  tip, in three frames of five or more. clean: nothing else is ever painted.
  """

  name = "painter"
  version = 2
  attributes: tuple[str, ...] = ("strokes", "stays", "order", "brush", "clean")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> PainterState:
    """Two or three strokes; held_out: the first is of a pair that is held out, otherwise none is."""
    while True:
      colours = rng.permutation(list(hues.HUES))[: int(rng.integers(2, 4))].tolist()
      ends = [rng.choice(list(PLACES), 2, replace=False).tolist() for _ in colours]
      strokes = tuple(Stroke(colour, *both) for colour, both in zip(colours, ends, strict=True))
      unseen = [(stroke.colour, stroke.end) in HELD_OUT for stroke in strokes]
      pairs = list(itertools.combinations(strokes, 2))
      hidden = max(
        sum(_hidden(under, over, box) for under, over in pairs if under == stroke)
        for stroke in strokes
        for box in _BOXES
      )
      if (unseen[0] if held_out else not any(unseen)) and hidden <= _MOST_HIDDEN:
        return PainterState(strokes, int(rng.integers(len(strokes))))

  def render(self, state: PainterState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    box_2, times_T = scene.box_size(height, width), scene.frame_times(frames, fps)
    rows_H, columns_W = scene.pixel_centres(height, width)
    rows_H1, columns_1W, short = rows_H[:, None], columns_W[None], np.float32(min(height, width))
    share_KT, brush_T2 = progress(state, times_T), brush(state, box_2, times_T)
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    whole_HWC, counted = np.broadcast_to(np.asarray(CANVAS, np.float32), (height, width, 3)).copy(), 0
    for frame in range(frames):
      picture_HWC = whole_HWC.copy()
      for number in range(counted, len(state.strokes)):
        stroke, share = state.strokes[number], share_KT[number, frame]
        if share > 0:
          start_2 = place(stroke.start, box_2)
          distance_HW = _to_segment(rows_H1, columns_1W, start_2, (place(stroke.end, box_2) - start_2) * share)
          _over(picture_HWC, (distance_HW - np.float32(STROKE_RADIUS)) * short, hues.HUES[stroke.colour])
        if share >= 1 and number == counted:  # a finished stroke is never painted again
          whole_HWC, counted = picture_HWC.copy(), counted + 1
      distance_HW = np.hypot(rows_H1 - np.float32(brush_T2[frame, 0]), columns_1W - np.float32(brush_T2[frame, 1]))
      _over(picture_HWC, (distance_HW - np.float32(BRUSH_RADIUS)) * short, BRUSH)
      frames_THWC[frame] = picture_HWC
    return frames_THWC

  def caption(self, state: PainterState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    words = [f"a {stroke.colour} stroke from the {stroke.start} to the {stroke.end}" for stroke in state.strokes]
    there, coming = words[: state.done], words[state.done :]
    canvas = f"a white canvas with {' and '.join(there)}" if there else "an empty white canvas"
    long = f"{canvas[0].upper()}{canvas[1:]}"
    short = f"a brush on {canvas}"
    if still:
      long = f"A brush on {canvas}"
    else:
      colours = [stroke.colour for stroke in state.strokes[state.done :]]
      short = f"a brush paints {' and '.join(f'a {colour} stroke' for colour in colours)} on a canvas"
      long += f". A brush paints {', then '.join(coming)}"
    return scene.in_style({"short": short, "long": long + "."}, style)

  def read(self, frames_THWC: np.ndarray, fps: float) -> Canvas:
    """What is on the canvas; see `Canvas`. Values outside [-1, 1] are clipped."""
    frames, height, width = frames_THWC.shape[:3]
    frames_THWC = hues.clean(frames_THWC)
    short, box_2 = min(height, width), scene.box_size(height, width)
    share_NTHW = hues.shares(frames_THWC)
    number_THW = np.where(share_NTHW.max(axis=0) > 0.4, share_NTHW.argmax(axis=0), -1)
    points_PQ2 = (np.stack([_line(*path, box_2) for path in PATHS]) * short).astype(int)
    rows_PQ, columns_PQ = (np.clip(points_PQ2[..., axis], 0, (height, width)[axis] - 1) for axis in (0, 1))
    dark_THW = (np.float32(0.5) - frames_THWC.max(axis=-1)) / np.float32(0.5 - BRUSH[0])
    dark_THW = np.where(dark_THW > 0.3, np.minimum(dark_THW, 1), 0)
    brush_T2 = hues.track(dark_THW, 2 * BRUSH_RADIUS, BRUSH_RADIUS**2)
    painted_NT = share_NTHW.sum(axis=(2, 3)) / (height * width)
    hues_TPQ = number_THW[:, rows_PQ, columns_PQ].astype(np.int8)
    return Canvas(scene.frame_times(frames, fps), hues_TPQ, painted_NT, brush_T2, box_2)

  def describe(self, state: PainterState) -> Canvas:
    """What is read from the standard clip."""
    return self.read(self.render(state, *_STANDARD), _STANDARD[-1])

  def compare(self, reading: Canvas, state: PainterState) -> dict[str, float]:
    """A mark from 0 to 1 for each attribute that applies; an image is asked for what is on the canvas alone."""
    share_KT = progress(state, reading.times_T)
    there_KT = np.stack([_there(reading, stroke) for stroke in state.strokes])
    finished_KT = share_KT >= 1
    right = {}
    begun = [number for number in range(len(state.strokes)) if share_KT[number, -1] >= _BEGUN]
    if begun:
      made = [_there(reading, state.strokes[number], float(share_KT[number, -1]))[-1] >= THERE for number in begun]
      right["strokes"] = float(np.mean(made))
    if len(reading.times_T) > 1 and finished_KT[:, -1].any():
      shown_KT = (there_KT >= THERE) & finished_KT
      since_KT = np.cumsum(shown_KT, axis=1) > 0
      kept_K = shown_KT.sum(axis=1) >= 0.8 * since_KT.sum(axis=1)
      still_K = kept_K & shown_KT[:, -1]
      shown_K = since_KT[:, -1]
      right["stays"] = float(still_K[shown_K].mean()) if shown_K.any() else 0.0
    in_time = [
      own_T[share_T >= 1][0] >= THERE
      and own_T[share_T <= 0].max(initial=0.0) < AWAY
      and _grows(reading, stroke, share_T)
      for stroke, own_T, share_T in zip(state.strokes, there_KT, share_KT, strict=True)
      if (share_T >= 1).any() and len(share_T) > 1
    ]
    if in_time:
      right["order"] = float(all(in_time))
    off_T = np.linalg.norm(reading.brush_T2 - brush(state, reading.box_2, reading.times_T), axis=1)
    right["brush"] = float((np.nan_to_num(off_T, nan=9.0) <= BRUSH_OFF).mean() >= 0.6)
    right["clean"] = float(_clean(reading, state, share_KT))
    return {name: right[name] for name in self.attributes if name in right}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: PainterState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)


def _over(picture_HWC: np.ndarray, distance_HW: np.ndarray, colour: scene.Colour) -> None:
  """Paints over the picture in place, where the signed distance in pixels is below 0."""
  cover_HW1 = scene.coverage(distance_HW)[..., None]
  picture_HWC += cover_HW1 * (np.asarray(colour, np.float32) - picture_HWC)


def _there(reading: Canvas, stroke: Stroke, share: float = 1.0) -> np.ndarray:
  """Share of a stroke's path, or of its first part up to the brush, that has its colour in each frame, (T,)."""
  if share < 1:
    length = float(np.linalg.norm(place(stroke.end, reading.box_2) - place(stroke.start, reading.box_2)))
    share -= 1.3 * BRUSH_RADIUS / length
  both = (stroke.start, stroke.end)
  hues_TQ = reading.hues_TPQ[:, PATHS.index(both if both in PATHS else both[::-1])]
  hues_TQ = hues_TQ if both in PATHS else hues_TQ[:, ::-1]
  points = max(1, int(share * _POINTS))
  return (hues_TQ[:, :points] == list(hues.HUES).index(stroke.colour)).mean(axis=1)


def _grows(reading: Canvas, stroke: Stroke, share_T: np.ndarray) -> bool:
  """Whether a stroke follows its brush: while it is made, its first part is there in half of the frames or more."""
  making = np.flatnonzero((share_T >= _BEGUN) & (share_T < 1))
  made = [_there(reading, stroke, float(share_T[frame]))[frame] >= THERE for frame in making]
  return not made or bool(np.mean(made) >= 0.5)


def _clean(reading: Canvas, state: PainterState, share_KT: np.ndarray) -> bool:
  """Whether each hue covers no more than its stroke should by then, in nine frames of ten."""
  most_NT = np.full_like(reading.painted_NT, _SPOT)
  for stroke, share_T in zip(state.strokes, share_KT, strict=True):
    length = np.linalg.norm(place(stroke.end, reading.box_2) - place(stroke.start, reading.box_2))
    area_T = (2 * STROKE_RADIUS * length * share_T + np.pi * STROKE_RADIUS**2) * (share_T > 0) / np.prod(reading.box_2)
    most_NT[list(hues.HUES).index(stroke.colour)] += 1.15 * area_T
  return bool((reading.painted_NT <= most_NT).all(axis=0).mean() >= 0.9)
