"""What each mode of an order reads from its files and asks of the generator: sample, animate, extend, loop, edit,
connect.

Shape letters: T frames, H height, W width.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sora_jax.clips import Clip, from_uint8
from sora_jax.data.sizes import parse_size
from sora_jax.errors import InputError
from sora_jax.inference import prompting
from sora_jax.inference.conditions import Condition, Edit
from sora_jax.inference.generator import MAX_FRAMES, Generator, Request, Sampling
from sora_jax.inference.prompting import Connection, Extension
from sora_jax.jobs.orders import Order, is_boxes, split_condition
from sora_jax.video import io as video_io
from sora_jax.video import isolated

EDIT_STRENGTH = 0.6  # of an edit of the whole frame; what a mask or a larger frame leaves free is made anew


class Media(NamedTuple):
  """A file: its size as it is shown, and its rate; None for a still image."""

  path: str
  height: int
  width: int
  fps: float | None

  @classmethod
  def open(cls, flag: str, path: str) -> "Media":
    """
    Raises:
      InputError: it can't be read; the message names the flag.
    """
    try:
      found = isolated.shared().probe(path)
    except (video_io.UnreadableFile, OSError) as error:
      raise InputError(f"--{flag} {path} can't be read: {error}") from error
    return cls(path, found.height, found.width, found.fps or None)

  def read(self, flag: str, fps: float, frames: int | None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Its first frames (T, H, W, 3), float32 in [-1, 1], at most `frames` of them at `fps`, or all; resized to `size`.

    Raises:
      InputError: it can't be read, or all of it is more than MAX_FRAMES.
    """
    try:
      found = isolated.shared().read(self.path, fps=fps, max_frames=frames or MAX_FRAMES + 1, size=size)
      if len(found) > MAX_FRAMES:
        raise InputError(f"--{flag} {self.path} has more than {MAX_FRAMES} frames at {fps:g} a second: cut it first")
      return from_uint8(found)
    except (video_io.UnreadableFile, OSError) as error:
      raise InputError(f"--{flag} {self.path} can't be read: {error}") from error


class Frame(NamedTuple):
  """Of the clips to make."""

  height: int
  width: int
  fps: float


class Mode(NamedTuple):
  """A mode of an order.

  Attributes:
    make: (order, generator, frame, sampling) -> a clip a prompt, as pieces of its frames (T, H, W, 3) in order.
    file: the flag of the file whose size and rate the clips have where the order says neither.
  """

  make: Callable[[Order, Generator, Frame, Sampling], list[Iterator[np.ndarray]]]
  file: str | None


def frame_of(order: Order, generator: Generator) -> Frame:
  """The size and rate of an order's clips: what it says, or those of its file, or of training.

  Raises:
    InputError: there is no size, or the file can't be read.
  """
  flag = MODES[order.mode].file
  given = order.given.get(flag) if flag else None
  media = Media.open(flag or "", given if isinstance(given, str) else given[0]) if given else None
  if order.size is None and media is None:
    raise InputError(f"sora {order.mode} needs --size WIDTHxHEIGHT")
  height, width = parse_size(order.size) if order.size else (media.height, media.width)  # type: ignore[union-attr]
  own = media.fps if media else None
  return Frame(height, width, float(order.fps or own or generator.config.data.fps or 24.0))


def requests_of(order: Order, frame: Frame, frames: int, **more: Any) -> list[Request]:
  """A request a prompt."""
  return [
    Request(prompt, frame.width, frame.height, frames, frame.fps, order.seed + number, **more)
    for number, prompt in enumerate(order.prompts)
  ]


def conditions_of(order: Order, frame: Frame) -> tuple[Condition, ...]:
  """What --condition names: an image, or all frames of a video, as large as covers the clip's frame."""
  found = []
  for text in order.given.get("condition") or ():
    path, seconds, strength = split_condition(text)
    found.append(Condition(covering("condition", path, frame), seconds, strength))
  return tuple(found)


def apart(conditions: Sequence[Condition], fps: float) -> tuple[Condition, ...]:
  """The conditions.

  Raises:
    InputError: two of them are of one frame.
  """
  shown: set[int] = set()
  for each in conditions:
    first = round(each.seconds * fps)
    frames = set(range(first, first + len(each.frames_THWC)))
    if both := shown & frames:
      raise InputError(f"two conditions show the frame at {min(both) / fps:g} seconds: give one, or other times")
    shown |= frames
  return tuple(conditions)


def _sample(order: Order, generator: Generator, frame: Frame, sampling: Sampling) -> list[Iterator[np.ndarray]]:
  given = apart(conditions_of(order, frame), frame.fps)
  return _made(generator, requests_of(order, frame, _frames(order), conditions=given), sampling)


def _animate(order: Order, generator: Generator, frame: Frame, sampling: Sampling) -> list[Iterator[np.ndarray]]:
  image = covering("image", order.given["image"], frame, 1)
  given = apart((Condition(image, float(order.given.get("at") or 0.0)), *conditions_of(order, frame)), frame.fps)
  return _made(generator, requests_of(order, frame, _frames(order), conditions=given), sampling)


def _made(generator: Generator, requests: list[Request], sampling: Sampling) -> list[Iterator[np.ndarray]]:
  """Clips within the durations of training packed together, longer ones window by window as they are written."""
  if requests[0].frames <= prompting.window(generator):
    return whole(prompting.sampled(generator, requests, sampling))
  return [prompting.make(generator, each, sampling) for each in requests]


def whole(clips: Sequence[Clip]) -> list[Iterator[np.ndarray]]:
  """Clips of one piece each."""
  return [iter([clip.frames_THWC]) for clip in clips]


def _extend(order: Order, generator: Generator, frame: Frame, sampling: Sampling) -> list[Iterator[np.ndarray]]:
  direction = order.given.get("direction") or "forward"
  if direction not in ("forward", "backward"):
    raise InputError(f"--direction {direction}: it is forward or backward")
  clip = _clip(order, frame)
  after, before = (_frames(order) if direction == each else 0 for each in ("forward", "backward"))
  extensions = [
    Extension(clip, prompt, frame.fps, order.seed + number, after, before)
    for number, prompt in enumerate(order.prompts)
  ]
  if after > prompting.window(generator):
    return [prompting.onward(generator, each, sampling) for each in extensions]
  return whole(prompting.extend(generator, extensions, sampling))


def _loop(order: Order, generator: Generator, frame: Frame, sampling: Sampling) -> list[Iterator[np.ndarray]]:
  known = prompting.longest_loop(generator)
  if not known:
    print("the model was trained on no loops (data.loops=0): the clip may be poor", file=sys.stderr)
  if order.given.get("clip") is None:
    warn_of_length(_frames(order), known or prompting.window(generator))
    return whole(generator.sample(requests_of(order, frame, _frames(order), loop=True), sampling))
  clip = _clip(order, frame)
  extensions = [
    Extension(clip, prompt, frame.fps, order.seed + number, forward=_frames(order))
    for number, prompt in enumerate(order.prompts)
  ]
  return whole(prompting.close(generator, extensions, sampling))


def _connect(order: Order, generator: Generator, frame: Frame, sampling: Sampling) -> list[Iterator[np.ndarray]]:
  paths = order.given["clip"]
  if len(paths) != 2:
    raise InputError(f"sora connect takes two clips, --clip A --clip B, not {len(paths)}")
  first, second = (covering("clip", path, frame) for path in paths)
  connections = [
    Connection(first, second, _frames(order), prompt, frame.fps, order.seed + number)
    for number, prompt in enumerate(order.prompts)
  ]
  return whole(prompting.connect(generator, connections, sampling))


def covering(flag: str, path: str, frame: Frame, frames: int | None = None) -> np.ndarray:
  """A file's first frames, or all (T, H, W, 3), which fill a frame: scaled to cover it, aspect ratio kept, cut at the
  centre.

  Raises:
    InputError: it can't be read, or all of it is too long.
  """
  media = Media.open(flag, path)
  scale = max(frame.height / media.height, frame.width / media.width)
  size = max(round(media.height * scale), frame.height), max(round(media.width * scale), frame.width)
  frames_THWC = media.read(flag, frame.fps, frames, size)
  top, left = (size[0] - frame.height) // 2, (size[1] - frame.width) // 2
  return frames_THWC[:, top : top + frame.height, left : left + frame.width]


def _edit(order: Order, generator: Generator, frame: Frame, sampling: Sampling) -> list[Iterator[np.ndarray]]:
  media = Media.open("clip", order.given["clip"])
  if media.fps and order.out.lower().endswith(".png"):
    raise InputError(f"--out {order.out}: png holds one frame, and {media.path} is a video: use .mp4, .gif or .webp")
  frames_THWC = media.read("clip", frame.fps, order.frames)
  if len(frames_THWC) < (order.frames or 1):
    raise InputError(f"--frames {order.frames}: {media.path} has {len(frames_THWC)} at {frame.fps:g} a second")
  frames_THWC, mask_THW = placed(frames_THWC, frame)
  if order.given.get("mask"):
    mask_THW |= read_mask(order.given["mask"], media, mask_THW.shape, frame)
  some = bool(mask_THW.any())
  strength = order.given.get("strength")
  strength = float(strength) if strength is not None else 1.0 if some else EDIT_STRENGTH
  warn_of_length(len(frames_THWC), prompting.window(generator))
  edit = Edit(frames_THWC, strength, mask_THW if some else None)
  return whole(prompting.sampled(generator, requests_of(order, frame, len(frames_THWC), edit=edit), sampling))


def placed(frames_THWC: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
  """A clip in the middle of a frame at least as large, its edge repeated around it; and a mask of what is around.

  Raises:
    InputError: the frame is smaller.
  """
  T, H, W, _ = frames_THWC.shape
  if frame.height < H or frame.width < W:
    raise InputError(
      f"--size {frame.width}x{frame.height}: sora edit places a clip in a frame at least as large, and it is {W}x{H}"
    )
  top, left = (frame.height - H) // 2, (frame.width - W) // 2
  around = ((0, 0), (top, frame.height - H - top), (left, frame.width - W - left))
  mask_THW = np.pad(np.zeros((T, H, W), bool), around, constant_values=True)
  return np.pad(frames_THWC, (*around, (0, 0)), mode="edge"), mask_THW


def read_mask(given: str, media: Media, shape_THW: tuple[int, ...], frame: Frame) -> np.ndarray:
  """What may change, bool (T, H, W): the light parts of an image or video, or boxes.

  Args:
    given: a file of the clip's own size, or x0,y0,x1,y1[,t0,t1] in pixels and seconds, several with ; between.
    media: the clip that it is for; it lies in the middle of the frame.

  Raises:
    InputError: another size, or a box that has no pixel of the clip.
  """
  T, height, width = shape_THW
  top, left = (height - media.height) // 2, (width - media.width) // 2
  mask_THW = np.zeros((T, height, width), bool)
  own_THW = mask_THW[:, top : top + media.height, left : left + media.width]
  if not is_boxes(given):
    if "," in given and not os.path.exists(given):
      raise InputError(f"--mask {given}: no such file, and a box is x0,y0,x1,y1 or x0,y0,x1,y1,t0,t1")
    found = Media.open("mask", given)
    if (found.height, found.width) != (media.height, media.width):
      sizes = f"{found.width}x{found.height} and the clip {media.width}x{media.height}"
      raise InputError(f"--mask {given} is {sizes}: they must be equal")
    values = found.read("mask", frame.fps, T).mean(-1) > 0
    if not values.any():
      raise InputError(f"--mask {given} is dark all over: what may change is light")
    own_THW[: len(values)] = values
    own_THW[len(values) :] = values[-1]  # an image holds throughout, a shorter video its last frame
    return mask_THW
  boxes = [text for text in given.replace(" ", "").split(";") if text]
  for text in boxes or [given]:
    try:
      x0, y0, x1, y1, *times = (float(value) for value in text.split(","))
      begin, end = times or (0.0, T / frame.fps)
    except ValueError:
      raise InputError(f"--mask {text}: a box is x0,y0,x1,y1 or x0,y0,x1,y1,t0,t1") from None
    rows, columns = slice(round(max(y0, 0)), round(max(y1, 0))), slice(round(max(x0, 0)), round(max(x1, 0)))
    box = own_THW[round(max(begin, 0) * frame.fps) : round(max(end, 0) * frame.fps), rows, columns]
    if not box.size:
      raise InputError(f"--mask {text}: no pixel of the clip, {media.width}x{media.height}, lies in it")
    box[:] = True
  return mask_THW


def _clip(order: Order, frame: Frame) -> np.ndarray:
  """The clip that is given, at the size of the frame."""
  return covering("clip", order.given["clip"], frame)


def _frames(order: Order) -> int:
  if order.frames is None:
    raise InputError(f"sora {order.mode} needs --frames")
  return order.frames


def warn_of_length(frames: int, known: int) -> None:
  """Says on stderr that a clip made at once is longer than the `known` frames of training."""
  if frames > known:
    print(f"{frames} frames are made at once, and training saw {known} at most: the clip may be poor", file=sys.stderr)


MODES = {
  "sample": Mode(_sample, None),
  "animate": Mode(_animate, "image"),
  "extend": Mode(_extend, "clip"),
  "loop": Mode(_loop, "clip"),
  "edit": Mode(_edit, "clip"),
  "connect": Mode(_connect, "clip"),
}
