"""Video and image files <-> uint8 frames: probe, read at a constant rate, write, and encode for a web page.

How files are opened and decoded safely is `decode.py`, how frames are encoded `encoders.py`; this file picks frames by
time, and writes whole files or none.

Shape letters: T frames, H height, W width, C colours (red, green, blue).
"""

import base64
import io
import math
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from sora_jax.errors import InputError
from sora_jax.video import decode, encoders, orientation
from sora_jax.video.containers import UnreadableFile
from sora_jax.video.decode import Probe, probe
from sora_jax.video.timestamps import last_duration

__all__ = [
  "Probe",
  "UnreadableFile",
  "encode",
  "encode_data_uri",
  "frame_count",
  "probe",
  "read",
  "resize",
  "write",
  "write_pieces",
]

MAX_BYTES = 8 * 2**30  # of the frames that one read returns

_MIME = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp", "png": "image/png"}


def frame_count(seconds: float, fps: float, max_frames: int) -> int:
  """How many frames `read` gives of a clip that lasts `seconds`; at least 1.

  A frame that would start in the clip's last 5 ms (or last quarter of its own time) is left out: files round
  their durations, and an extra copy of the last frame would be the usual result.
  """
  slack = min(0.005, 0.25 / fps)
  return min(max_frames, max(1, math.ceil((seconds - slack) * fps)))


def read(
  path: str | os.PathLike,
  *,
  fps: float,
  max_frames: int,
  start: float = 0.0,
  size: tuple[int, int] | None = None,
) -> np.ndarray:
  """Frames of a clip at a constant rate, sampled by timestamp.

  Frame k is what the clip shows at start + k / fps seconds after its first frame: the last frame that has begun
  by then (`timestamps.py` says when one begins, where the file's clock is coarse). The last frame lasts for its own
  duration. Frames that don't decode are skipped: the one before stays on screen.

  Args:
    path: a local file.
    fps: wanted frames per second, above 0. A still image gives one frame at any rate.
    max_frames: at most this many frames, >= 1.
    start: seconds after the first frame, >= 0. Past the end gives the last frame alone.
    size: (height, width) to resize each frame to while decoding; None keeps the size that the first frame is shown at.

  Returns:
    uint8 frames_THWC, (T, H, W, 3), 1 <= T <= max_frames.

  Raises:
    UnreadableFile: nothing decodes, or a limit of this file or of `decode.py` is passed.
    ValueError: an argument out of range.
  """
  if not (0 < fps < math.inf and max_frames >= 1 and 0 <= start < math.inf):
    raise ValueError(f"read needs fps > 0, max_frames >= 1, start >= 0; got {fps}, {max_frames}, {start}")
  with decode.one_line_reasons(), decode.pictures(path, start) as (tolerance, pictures):
    shown = _Shown(max_frames, size)
    _pick(pictures, shown, fps, start, tolerance)
    return np.stack(shown.frames)


class _Shown:
  """The frames shown so far. Pixels are made, and resized, only of the pictures that are shown."""

  def __init__(self, max_frames: int, size: tuple[int, int] | None):
    self.max_frames, self.size = max_frames, size
    self.frames: list[np.ndarray] = []

  def until(self, picture: orientation.Stored, count: int) -> bool:
    """Shows the picture until there are `count` frames; True when the clip is full."""
    count = min(count, self.max_frames)
    if count > len(self.frames):
      self.size = self.size or orientation.size_of(picture)
      pixels = orientation.pixels(picture)
      if count * math.prod(self.size) * 3 > MAX_BYTES:
        height, width = self.size
        raise UnreadableFile(f"{count} frames of {width}x{height} pass {MAX_BYTES} bytes: ask for fewer or smaller")
      self.frames.extend([resize(pixels, self.size)] * (count - len(self.frames)))
    return len(self.frames) == self.max_frames


def _pick(pictures: Iterator[decode.Picture], shown: _Shown, fps: float, start: float, tolerance: float) -> None:
  """Each picture is shown until the first wanted time that the next one covers, the last until its end."""
  held: orientation.Stored | None = None
  time, first_time, seen = 0.0, 0.0, 0
  claims: set[float] = set()
  for next_time, duration, picture in pictures:
    if held is None:
      first_time = next_time
    elif shown.until(held, math.ceil((next_time - tolerance - start) * fps)):
      return
    claims.add(duration)
    held, time, seen = picture, next_time, seen + 1
  if held is None:
    raise UnreadableFile("no frame decodes")
  lasts = last_duration(duration, claims, (time - first_time) / max(seen - 1, 1))
  shown.until(held, frame_count(time + lasts - start, fps, shown.max_frames))


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 (H, W, 3) -> uint8 (size[0], size[1], 3), averaged over area where it shrinks (no aliasing)."""
  if pixels.shape[:2] == tuple(size):
    return pixels
  image = Image.fromarray(np.ascontiguousarray(pixels))
  return np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=3.0))


def write(path: str | os.PathLike, frames: np.ndarray, fps: float) -> None:
  """Writes a clip to .mp4, .gif, .webp or .png; a killed run leaves the old file or none, never half a one.

  .mp4 is H.264 at CRF 16 with 4:2:0 chroma, which all players show, its bytes the same each time. That stores even
  sides alone: an odd one gets its last row or column twice, and the file says which pixels count: players that
  don't know how show one more.
  .gif and .webp loop for ever. .gif has 256 colours for the whole clip and no more than 50 frames a second,
  since players slow those down. .png, and .webp of one frame, are exact.

  Args:
    path: the file; its extension names the format.
    frames: (T, H, W, 3), uint8, or floats in [-1, 1].
    fps: frames per second, above 0; frame t is shown at t / fps.

  Raises:
    ValueError: another extension, frames of a wrong shape or type or not finite, or too large for the format.
  """
  write_pieces(path, [frames], fps)


def write_pieces(path: str | os.PathLike, pieces: Iterable[np.ndarray], fps: float) -> None:
  """Writes a clip as its pieces come: the same file as `write` makes of them all, and nothing if they end early.

  Memory does not grow with the duration of an .mp4; .gif and .webp hold all frames, a byte a value.

  Args:
    pieces: each (t, H, W, 3) as `write` takes them, of one size, in order. What they raise goes through as it is.

  Raises:
    ValueError: as `write` does; pieces of several sizes, or none.
  """
  path = pathlib.Path(path)
  kind = path.suffix.lower().removeprefix(".")
  if kind not in _MIME:
    raise InputError(
      f"{path.name}: can't write {path.suffix or 'a name without extension'}: use .mp4, .gif, .webp or .png"
    )
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  frames = encoders.Frames(pieces, kind)
  try:
    with temporary.open("w+b") as file:
      encoders.encode(frames, fps, kind, file)
    os.replace(temporary, path)
  except ValueError as error:
    if error is frames.failure:
      raise
    kind_of_error = InputError if isinstance(error, InputError) else ValueError
    raise kind_of_error(f"{path.name}: {error}") from error
  finally:
    temporary.unlink(missing_ok=True)


def encode_data_uri(frames: np.ndarray, fps: float, kind: str = "webp") -> str:
  """The clip as a `data:` address for a page that needs no other file; kind is webp, png, mp4 or gif.

  Raises:
    ValueError: as `write` does.
  """
  if kind not in _MIME:
    raise ValueError(f"can't encode {kind!r}: use webp, png, mp4 or gif")
  return f"data:{_MIME[kind]};base64,{base64.b64encode(encode(frames, fps, kind)).decode('ascii')}"


def encode(frames: np.ndarray, fps: float, kind: str, lossless: bool = False) -> bytes:
  """The clip as the bytes of a file, of kind mp4, gif, webp or png; see `write`.

  Args:
    lossless: for mp4, exact frames in a file that browsers don't play.

  Raises:
    ValueError: as `write` does.
  """
  buffer = io.BytesIO()
  encoders.encode(encoders.Frames([frames], kind), fps, kind, buffer, lossless)
  return buffer.getvalue()
