"""The world of eating: a mouth bites pieces out of a round cake, and they are gone for good.

Lengths are in units of the frame's short side; the cake is in the middle of the frame.

Shape letters: T frames, H height, W width, C colours, S sides of the cake, N hues.
"""

import dataclasses

import numpy as np

from sora_jax.worlds import blobs, hues, scene

_SLANT = 0.5**0.5
# (rows, columns) of the way out of the cake.
SIDES = {
  "top": (-1.0, 0.0),
  "top right": (-_SLANT, _SLANT),
  "right": (0.0, 1.0),
  "bottom right": (_SLANT, _SLANT),
  "bottom": (1.0, 0.0),
  "bottom left": (_SLANT, -_SLANT),
  "left": (0.0, -1.0),
  "top left": (-_SLANT, -_SLANT),
}
CAKE_RADIUS, BITE_RADIUS, MOUTH_RADIUS = 0.3, 0.13, 0.11
BITE_SECONDS = 0.8  # from bite to bite; the first is half of it after the clip's begin
MOUTH_AWAY = 0.25  # how far from the cake's edge the mouth begins and ends
GROUND, MOUTH = hues.GREYS["white"], hues.GREYS["black"]
HELD_OUT = (("red", "left"), ("green", "top"), ("blue", "right"), ("yellow", "bottom"), ("magenta", "top right"))

_MOUTH_THERE = 0.1  # seconds around a bite in which the mouth touches the cake
_SPOT = 0.01  # area of a hue beside the cake's in squared short sides that is something
_NEAR_BITE = 0.3  # seconds around a bite in which the mouth hides it
_STANDARD = (48, 48, 49, 16.0)  # the clip by which a state is described


@dataclasses.dataclass(frozen=True)
class BitesState:
  """A cake and its bites.

  Attributes:
    colour: of the cake, a key of `hues.HUES`.
    sides: where it is bitten, keys of SIDES, in order; no two are neighbours.
    done: how many of the bites are gone when the clip begins.
  """

  colour: str
  sides: tuple[str, ...]
  done: int


@dataclasses.dataclass(frozen=True)
class Remains:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    colour: name of the cake's hue, "none" where no cake is seen.
    colours_T: the same of each frame.
    more_T: bool, something of another hue is seen too.
    left_TS: share of the cake at each of SIDES that is left, about 0..1.
    dark_TS: how dark it is beside the cake at each of SIDES, 0..1: a mouth.
  """

  times_T: np.ndarray
  colour: str
  colours_T: np.ndarray
  more_T: np.ndarray
  left_TS: np.ndarray
  dark_TS: np.ndarray


def bite_times(state: BitesState) -> np.ndarray:
  """Seconds of each bite, (len(sides),); minus infinity for those that are gone when the clip begins."""
  turns = np.arange(len(state.sides)) - state.done
  return np.where(turns < 0, -np.inf, (turns + 0.5) * BITE_SECONDS)


def _edge(side: str, height: int, width: int, beyond: float = 0.0) -> tuple[np.float32, np.float32]:
  """(row, column) of a point of the cake's edge in short sides, or as far beyond it."""
  middle = np.array(scene.box_size(height, width)) / 2
  row, column = middle + (CAKE_RADIUS + beyond) * np.array(SIDES[side])
  return np.float32(row), np.float32(column)


class Bites:
  """The world of eating; see the module's docstring and `world.World`.

  Attributes of its exam: colour: the cake's, and nothing else has one. bitten: what is gone at the end is what should
  be. stays: what the clip itself shows bitten off doesn't come back. mouth: a mouth is seen at each bite, and each
  goes in its time, not before and not later.
  """

  name = "bites"
  version = 1
  attributes: tuple[str, ...] = ("colour", "bitten", "stays", "mouth")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> BitesState:
    """Two or three bites; held_out: the first is of a pair that is held out, otherwise none is."""
    names, count = list(SIDES), len(SIDES)
    while True:
      colour = str(rng.choice(list(hues.HUES)))
      picked = rng.permutation(count)[: int(rng.integers(2, 4))].tolist()
      apart = all((a - b) % count not in (1, count - 1) for a in picked for b in picked)
      unseen = [(colour, names[number]) in HELD_OUT for number in picked]
      if apart and (unseen[0] if held_out else not any(unseen)):
        return BitesState(colour, tuple(names[number] for number in picked), int(rng.integers(len(picked))))

  def render(self, state: BitesState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    times_T, short = scene.frame_times(frames, fps), np.float32(min(height, width))
    rows_H, columns_W = scene.pixel_centres(height, width)

    def disc(centre: tuple[np.float32, np.float32], radius: float) -> np.ndarray:
      distance_HW = np.hypot(rows_H[:, None] - centre[0], columns_W[None] - centre[1])
      return scene.coverage((distance_HW - np.float32(radius)) * short)[..., None]

    middle = (np.float32(height / short / 2), np.float32(width / short / 2))
    cake_HW1, bitten = disc(middle, CAKE_RADIUS), 0
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    ground_C, cake_C, mouth_C = (np.asarray(colour, np.float32) for colour in (GROUND, hues.HUES[state.colour], MOUTH))
    bites_N = bite_times(state)
    for frame, time in enumerate(times_T):
      while bitten < len(state.sides) and bites_N[bitten] <= time:
        cake_HW1 = cake_HW1 * (1 - disc(_edge(state.sides[bitten], height, width), BITE_RADIUS))
        bitten += 1
      picture_HWC = ground_C + cake_HW1 * (cake_C - ground_C)
      nearest = int(np.abs(bites_N - time).argmin())
      away = abs(bites_N[nearest] - time) / (BITE_SECONDS / 2)
      if away < 1:
        mouth_HW1 = disc(_edge(state.sides[nearest], height, width, away * MOUTH_AWAY), MOUTH_RADIUS)
        picture_HWC = picture_HWC + mouth_HW1 * (mouth_C - picture_HWC)
      frames_THWC[frame] = picture_HWC
    return frames_THWC

  def caption(self, state: BitesState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    gone, coming = state.sides[: state.done], state.sides[state.done :]
    long = f"A round {state.colour} cake"
    if gone:
      long += f", bitten off at the {' and the '.join(gone)},"
    long += " on a white table"
    short = f"a {state.colour} cake"
    if not still:
      short = f"a mouth eats a {state.colour} cake"
      long += f". A mouth bites it at the {', then at the '.join(coming)}, and what is bitten off is gone"
    return scene.in_style({"short": short, "long": long + "."}, style)

  def read(self, frames_THWC: np.ndarray, fps: float) -> Remains:
    """What is left of the cake; see `Remains`. Values outside [-1, 1] are clipped."""
    frames, height, width = frames_THWC.shape[:3]
    frames_THWC = hues.clean(frames_THWC)
    share_NTHW = hues.shares(frames_THWC)
    dark_THW = frames_THWC.max(axis=-1) < 0.0
    rows_H, columns_W = scene.pixel_centres(height, width)
    middle = (height / min(height, width) / 2, width / min(height, width) / 2)
    inside_HW = np.hypot(rows_H[:, None] - middle[0], columns_W[None] - middle[1]) < CAKE_RADIUS - 0.02
    area_NT, whole = (share_NTHW * inside_HW).sum(axis=(2, 3)), float(inside_HW.sum())
    names, number = np.array(list(hues.HUES)), int(area_NT.sum(axis=1).argmax())
    colour = str(names[number]) if area_NT[number].mean() > 0.25 * whole > 0 else "none"
    colours_T = np.where(area_NT.max(axis=0) > 0.25 * whole, names[area_NT.argmax(axis=0)], "none")
    others_NT = np.delete(np.stack([hues.mass(share_THW) for share_THW in share_NTHW]), number, axis=0)
    left, dark = [], []
    for side in SIDES:
      row, column = _edge(side, height, width)
      near_HW = inside_HW & (np.hypot(rows_H[:, None] - row, columns_W[None] - column) < 0.8 * BITE_RADIUS)
      left.append(share_NTHW[number][:, near_HW].sum(axis=1) / max(int(near_HW.sum()), 1))
      row, column = _edge(side, height, width, MOUTH_AWAY / 4)
      beside_HW = np.hypot(rows_H[:, None] - row, columns_W[None] - column) < MOUTH_RADIUS
      dark.append(dark_THW[:, beside_HW].mean(axis=1) if beside_HW.any() else np.zeros(frames))
    left_TS, dark_TS = np.stack(left, axis=1), np.stack(dark, axis=1)
    more_T = others_NT.max(axis=0) > _SPOT
    return Remains(scene.frame_times(frames, fps), colour, colours_T, more_T, left_TS, dark_TS)

  def describe(self, state: BitesState) -> Remains:
    """What is read from the standard clip."""
    return self.read(self.render(state, *_STANDARD), _STANDARD[-1])

  def compare(self, reading: Remains, state: BitesState) -> dict[str, float]:
    """1.0 or 0.0 for each attribute that applies; an image is asked for its colour and bites alone."""
    times_T, gone_TS = reading.times_T, reading.left_TS < 0.4
    bites_S = np.full(len(SIDES), np.inf)
    bites_S[[list(SIDES).index(side) for side in state.sides]] = bite_times(state)
    clear_TS = np.abs(times_T[:, None] - bites_S) > _NEAR_BITE  # elsewhere the mouth hides the side
    due_TS = times_T[:, None] > bites_S
    right = {"colour": blobs.shown(reading.colours_T, state.colour) and reading.more_T.mean() <= 0.2}
    right["bitten"] = (gone_TS == due_TS)[-1][clear_TS[-1]].all()
    if len(times_T) > 1:
      # From the first clear frame on in which a side is gone, it must be.
      later_TS = clear_TS & (np.cumsum(gone_TS & clear_TS, axis=0) > 0)
      if later_TS.any():
        right["stays"] = all(gone_TS[later_TS[:, side], side].mean() > 0.9 for side in np.flatnonzero(later_TS.any(0)))
      elif (due_TS & clear_TS)[:-1].any():
        right["stays"] = False  # nothing was ever bitten off
      near_TS = np.abs(times_T[:, None] - bites_S) <= _MOUTH_THERE
      asked_S = near_TS.any(axis=0)
      if asked_S.any():
        seen = [(reading.dark_TS[near_TS[:, side], side] > 0.3).any() for side in np.flatnonzero(asked_S)]
        ever_TS = np.cumsum(gone_TS & clear_TS, axis=0) > 0
        early_S, late_S = (
          (wrong_TS & asked_TS & clear_TS).sum(axis=0) > 0.2 * (asked_TS & clear_TS).sum(axis=0)
          for wrong_TS, asked_TS in ((gone_TS, ~due_TS), (~ever_TS, due_TS))
        )
        right["mouth"] = all(seen) and not (early_S | late_S).any()
    return {name: float(reading.colour != "none" and right[name]) for name in self.attributes if name in right}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: BitesState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)
