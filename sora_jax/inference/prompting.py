"""Prompting with images and videos: extend a clip both ways, make long ones, connect two, close one to a loop.

All of it is conditions: frames at their times beside the clip to make. Where more is asked for than training saw, a
clip is made window by window, each from the last frames of the one before. Given frames come back as they were given.

Shape letters: T frames, H height, W width.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.errors import InputError
from sora_jax.inference import detail
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.patches import Grid

SEEDS = 2**31  # there are so many
NEXT_SEED = 1_000_003  # from one window's seed to the next one's
CLOSE = 0.1  # of a frame: so far from it a condition may be and still be it


@dataclasses.dataclass(frozen=True)
class Extension:
  """A clip to extend.

  Attributes:
    frames_THWC: float32 in [-1, 1].
    forward, backward: frames to add after and before it.
    conditions: what the frames after it show besides; times count from the clip's first frame.
  """

  frames_THWC: np.ndarray
  prompt: str
  fps: float
  seed: int
  forward: int = 0
  backward: int = 0
  conditions: tuple[Condition, ...] = ()

  def __post_init__(self):
    if self.forward < 0 or self.backward < 0:
      raise InputError(f"a clip can't be extended by {self.forward} and {self.backward} frames")


@dataclasses.dataclass(frozen=True)
class Connection:
  """Two clips of one size and rate, and how many frames lead from the last of the first to the first of the second."""

  first_THWC: np.ndarray
  second_THWC: np.ndarray
  frames: int
  prompt: str
  fps: float
  seed: int

  def __post_init__(self):
    first, second = (clip.shape[1:3] for clip in (self.first_THWC, self.second_THWC))
    if first != second:
      raise InputError(f"clips to connect are of one size: these are {first[1]}x{first[0]} and {second[1]}x{second[0]}")
    if self.frames < 1:
      raise InputError(f"{self.frames} frames between two clips: at least 1 is needed")


def window(generator: Generator) -> int:
  """Frames of the longest clip that the model was trained on."""
  return longest_of(generator.config.data, generator.grid)


def longest_of(data: Any, grid: Grid) -> int:
  """Frames of the longest clip of a config's data."""
  names = names_of(data)
  files = any(not name.startswith(("worlds:", "gym:")) for name in names)
  longest = [data.max_frames] if files else []
  if any(name.startswith("worlds:") for name in names):
    longest += [frames for frames, _, _ in WorldShapes.of(data, grid).distinct()]
  if any(name.startswith("gym:") for name in names):
    longest += [min(frames, data.max_frames) for frames in data.frames]
  return max(longest)


def context(grid: Grid, frames: int) -> int:
  """How many frames of its surroundings a window is made from: those of 1, 2, 4, ... latent frames, as in training.

  Args:
    frames: of the window; at most half of its latent frames are given.
  """
  latent_frames = grid.latent_shape(frames, 1, 1)[0]
  return 1 + (2 ** ((max(latent_frames, 2) // 2).bit_length() - 1) - 1) * grid.compression[0]


def windows(data: Any, grid: Grid, frames: int) -> list[int]:
  """Frames of each window in which a clip of a prompt is made, those that it is made from among them."""
  most = longest_of(data, grid)
  found, known = [min(frames, most)], context(grid, most)
  left = frames - found[0]
  while left > 0:
    new = min(max(most - known, 1), left)
    found.append(known + new)
    left -= new
  return found


def sampled(generator: Generator, requests: Sequence[Request], sampling: Sampling) -> list[Clip]:
  """The generator's clips with the frames that they were made from as these were given, and with their detail.

  Of a clip to change, what lies outside of its mask is as it was given too.

  Not so with conditions that hold in a part of the frame, fall between two frames, or have less than the strength of a
  window's history.
  """

  def given(request: Request) -> list[detail.Given]:
    found = []
    for each in request.conditions:
      start = round(each.seconds * request.fps)
      close = abs(each.seconds * request.fps - start) < CLOSE
      if close and each.mask_HW is None and each.strength >= 1.0 - sampling.history_level:
        found.append(detail.Given(start, each.frames_THWC))
    return found

  def kept(request: Request, frames_THWC: np.ndarray) -> np.ndarray:
    if request.edit is None or request.edit.mask_THW is None:
      return frames_THWC
    return np.where(request.edit.mask_THW[..., None], frames_THWC, request.edit.frames_THWC)

  return [
    dataclasses.replace(
      clip, frames_THWC=kept(request, detail.restored(clip.frames_THWC, given(request), request.loop))
    )
    for clip, request in zip(generator.sample(requests, sampling), requests, strict=True)
  ]


def roll_out(
  generator: Generator, extensions: Sequence[Extension], sampling: Sampling, backward: bool = False, made: int = 0
) -> Iterator[list[np.ndarray]]:
  """Makes what comes after (or before) clips, window by window, all clips together.

  Args:
    made: windows of the clips that the model has made before; what it made itself it is given at a slight noise level.

  Yields:
    For each clip the frames (T, H, W, 3) of the window, in the clip's order: of backward windows each comes before
    those yielded earlier. No frames where a clip has all that was asked for. Memory does not grow with the windows.
  """
  whole = window(generator)
  most = context(generator.grid, whole)
  left = [each.backward if backward else each.forward for each in extensions]
  known = [cut(each.frames_THWC, most, generator, backward) for each in extensions]
  done = [len(each.frames_THWC) for each in extensions]
  turn = made
  while any(left):
    numbers = [number for number, frames in enumerate(left) if frames]
    strength = 1.0 if turn == 0 else 1.0 - sampling.history_level  # of what was given, and of what was made
    requests = []
    for number in numbers:
      each, history = extensions[number], known[number]
      new = min(max(whole - len(history), 1), left[number])
      shown = [] if backward else shown_in(each.conditions, done[number] - len(history), len(history) + new, each.fps)
      conditions = Condition(history, new / each.fps if backward else 0.0, strength), *shown
      seed = (each.seed + (2 * turn + backward) * NEXT_SEED) % SEEDS
      height, width = history.shape[1:3]
      requests.append(Request(each.prompt, width, height, len(history) + new, each.fps, seed, conditions))
    news = [np.zeros((0, *each.frames_THWC.shape[1:]), np.float32) for each in extensions]
    for number, clip in zip(numbers, sampled(generator, requests, sampling), strict=True):
      new = len(clip.frames_THWC) - len(known[number])
      news[number] = clip.frames_THWC[:new] if backward else clip.frames_THWC[-new:]
      joined = [news[number], known[number]] if backward else [known[number], news[number]]
      known[number] = cut(np.concatenate(joined), most, generator, backward)
      left[number] -= new
      done[number] += new
    turn += 1
    yield news


def cut(frames_THWC: np.ndarray, most: int, generator: Generator, first: bool) -> np.ndarray:
  """The first or last frames of a clip, at most so many and as many as fill latent frames whole."""
  time = generator.grid.compression[0]
  count = 1 + (min(len(frames_THWC), most) - 1) // time * time
  return frames_THWC[:count] if first else frames_THWC[-count:]


def shown_in(conditions: Sequence[Condition], start: int, frames: int, fps: float) -> list[Condition]:
  """What a window of a clip, `frames` from frame `start` on, shows of the clip's conditions; times are the window's."""
  found = []
  for each in conditions:
    first = each.seconds * fps - start  # it may lie between two frames
    before, after = max(math.ceil(-first - CLOSE), 0), max(math.floor(frames - 1 - first + CLOSE) + 1, 0)
    if len(here := each.frames_THWC[before:after]):
      begins = min(max(first + before, 0.0), frames - len(here))
      found.append(dataclasses.replace(each, frames_THWC=here, seconds=begins / fps))
  return found


def extend(generator: Generator, extensions: Sequence[Extension], sampling: Sampling, made: int = 0) -> list[Clip]:
  """Clips extended forward and backward by any duration; their own frames are as they were given.

  Args:
    made: see `roll_out`.
  """
  before: list[list[np.ndarray]] = [[] for _ in extensions]
  after: list[list[np.ndarray]] = [[] for _ in extensions]
  for news in roll_out(generator, extensions, sampling, True, made):
    before = [[new, *found] for new, found in zip(news, before, strict=True)]
  for news in roll_out(generator, extensions, sampling, False, made):
    after = [[*found, new] for new, found in zip(news, after, strict=True)]
  return [
    Clip(np.concatenate([*early, each.frames_THWC, *late]), each.fps, each.prompt, f"extended-seed-{each.seed}")
    for each, early, late in zip(extensions, before, after, strict=True)
  ]


def clips(generator: Generator, requests: Sequence[Request], sampling: Sampling) -> list[Clip]:
  """Clips of any duration: those within the durations of training at once, longer ones window by window; all together.

  The first window is as it was decoded: exams see what the model makes of given frames.

  Raises:
    InputError: a longer clip that is to be changed.
  """
  begun = generator.sample([_begun(request, window(generator)) for request in requests], sampling)
  rest = [_rest(*both) for both in zip(requests, begun, strict=True)]
  return [
    dataclasses.replace(clip, frames_THWC=whole.frames_THWC)
    for clip, whole in zip(begun, extend(generator, rest, sampling, 1), strict=True)
  ]


def make(generator: Generator, request: Request, sampling: Sampling) -> Iterator[np.ndarray]:
  """The frames of one clip of any duration, some at a time, in order: float32 (T, H, W, 3); see `clips`, `sampled`."""
  (begun,) = sampled(generator, [_begun(request, window(generator))], sampling)
  yield begun.frames_THWC
  for (new,) in roll_out(generator, [_rest(request, begun)], sampling, made=1):
    yield new


def onward(generator: Generator, extension: Extension, sampling: Sampling) -> Iterator[np.ndarray]:
  """The frames of a clip that is extended forward, some at a time, in order: float32 (T, H, W, 3); see `extend`."""
  yield extension.frames_THWC
  for (new,) in roll_out(generator, [extension], sampling):
    yield new


def _begun(request: Request, most: int) -> Request:
  """The first window of a clip that is longer than one; a loop is made whole."""
  if request.frames <= most or request.loop:
    return request
  if request.edit is not None:
    raise InputError(f"a clip to change has {request.frames} frames, and the model makes at most {most} at once")
  shown = tuple(shown_in(request.conditions, 0, most, request.fps))
  return dataclasses.replace(request, frames=most, conditions=shown)


def _rest(request: Request, begun: Clip) -> Extension:
  """What is left to make of a clip whose first window is made."""
  left = request.frames - len(begun.frames_THWC)
  return Extension(begun.frames_THWC, request.prompt, request.fps, request.seed, left, 0, request.conditions)


def between(generator: Generator, connections: Sequence[Connection], sampling: Sampling) -> list[np.ndarray]:
  """The frames (T, H, W, 3) that lead from each first clip to its second.

  The first is extended forward, led by the prompt, and the second backward, without words; one fades into the other.
  """
  onward = [Extension(each.first_THWC, each.prompt, each.fps, each.seed, forward=each.frames) for each in connections]
  before = [Extension(each.second_THWC, "", each.fps, each.seed, backward=each.frames) for each in connections]
  sides = extend(generator, onward, sampling), extend(generator, before, sampling)
  return [
    faded(after.frames_THWC[-each.frames :], ahead.frames_THWC[: each.frames])
    for each, after, ahead in zip(connections, *sides, strict=True)
  ]


def faded(first_THWC: np.ndarray, second_THWC: np.ndarray) -> np.ndarray:
  """One clip that turns into another of its shape, slowly at both ends (cubic Hermite weights)."""
  share_T = np.arange(1, len(first_THWC) + 1, dtype=np.float32) / (len(first_THWC) + 1)
  weight_T111 = (share_T**2 * (3 - 2 * share_T)).reshape(-1, 1, 1, 1)
  return (1 - weight_T111) * first_THWC + weight_T111 * second_THWC


def connect(generator: Generator, connections: Sequence[Connection], sampling: Sampling) -> list[Clip]:
  """Two clips as one, with a gradual way from one into the other; their own frames are as they were given."""
  return [
    Clip(np.concatenate([each.first_THWC, new, each.second_THWC]), each.fps, each.prompt, f"connected-seed-{each.seed}")
    for each, new in zip(connections, between(generator, connections, sampling), strict=True)
  ]


def close(generator: Generator, extensions: Sequence[Extension], sampling: Sampling) -> list[Clip]:
  """Clips as loops: `forward` frames lead from the last frame back to the first; the end runs into the start.

  Loops within the durations that training saw are made as such, of which the clip's ends are conditions. A longer one
  is closed by a way from its last frames to its first.

  Raises:
    InputError: a loop that latent frames don't fill; the message has numbers that do.
  """
  most = longest_loop(generator)
  if all(len(each.frames_THWC) + each.forward <= most for each in extensions):
    made = [clip.frames_THWC for clip in sampled(generator, [_turn(generator, each) for each in extensions], sampling)]
    news = [whole[len(each.frames_THWC) :] for whole, each in zip(made, extensions, strict=True)]
  else:
    clips = [each.frames_THWC for each in extensions]
    ways = [
      Connection(clip, clip, each.forward, each.prompt, each.fps, each.seed)
      for clip, each in zip(clips, extensions, strict=True)
    ]
    news = between(generator, ways, sampling)
  return [
    Clip(np.concatenate([each.frames_THWC, new]), each.fps, each.prompt, f"loop-seed-{each.seed}")
    for each, new in zip(extensions, news, strict=True)
  ]


def longest_loop(generator: Generator) -> int:
  """Frames of the longest loop that the model was trained on: its longest clip there and back; 0 without loops."""
  return 2 * (window(generator) - 1) if generator.config.data.get("loops") else 0  # configs of older runs have none


def _turn(generator: Generator, extension: Extension) -> Request:
  """The whole loop that a clip becomes, from the clip's first frames and its last."""
  given, fps, time = extension.frames_THWC, extension.fps, generator.grid.compression[0]
  frames = len(given) + extension.forward
  if frames % time:
    less, more = extension.forward - frames % time, extension.forward + -frames % time
    asked = f"{less} or {more}" if less > 0 else more
    raise InputError(
      f"{len(given)} frames and {extension.forward} more are no multiple of {time}: ask for {asked} more"
    )
  start, end = (cut(given, context(generator.grid, window(generator)), generator, first) for first in (True, False))
  conditions = [Condition(start)]
  if len(start) < len(given):
    conditions.append(Condition(end, (len(given) - len(end)) / fps))
  height, width = given.shape[1:3]
  return Request(extension.prompt, width, height, frames, fps, extension.seed, tuple(conditions), loop=True)
