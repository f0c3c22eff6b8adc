"""Video and image files <-> uint8 frames: probe, read at a constant rate, write, and encode for a web page.

How files are opened and decoded safely is `decode.py`; this file picks frames by time, and encodes.

Shape letters: T frames, H height, W width, C colours (red, green, blue).
"""

import base64
import fractions
import io
import math
import os
import pathlib
import struct
import uuid
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from sora_jax import clips
from sora_jax.errors import InputError
from sora_jax.video import decode, orientation
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
]

MAX_BYTES = 8 * 2**30  # of the frames that one read returns

# The boxes that lead to the description of a video's pixels.
_ENTRY_PATH = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")
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
  path = pathlib.Path(path)
  kind = path.suffix.lower().removeprefix(".")
  if kind not in _MIME:
    raise InputError(
      f"{path.name}: can't write {path.suffix or 'a name without extension'}: use .mp4, .gif, .webp or .png"
    )
  try:
    data = encode(frames, fps, kind)
  except ValueError as error:
    kind_of_error = InputError if isinstance(error, InputError) else ValueError
    raise kind_of_error(f"{path.name}: {error}") from error
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
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
  frames = np.asarray(frames)
  if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
    raise ValueError(f"frames must be (T, H, W, 3) with no side 0, got {frames.shape}")
  if not 0 < fps <= 1000:
    raise InputError(f"fps must be above 0 and at most 1000, got {fps}")
  if frames.dtype != np.uint8:
    if frames.dtype.kind not in "fV":  # V: bfloat16 and its like
      raise ValueError(f"frames must be uint8, or floats in [-1, 1], got {frames.dtype}")
    frames = frames.astype(np.float32)
    if not np.isfinite(frames).all():
      raise InputError("frames hold NaN or infinity")
    frames = clips.to_uint8(frames)
  if kind == "webp" and max(frames.shape[1:3]) > 16383:
    raise InputError(f"webp can't hold frames of {frames.shape[2]}x{frames.shape[1]}: its longest side is 16383")
  encoder = {"mp4": _lossless_mp4 if lossless else _mp4, "gif": _gif, "webp": _webp, "png": _png}[kind]
  try:
    return encoder(frames, fps)
  except (av.FFmpegError, OSError) as error:
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raise InputError(f"{kind} can't hold frames of {size}: {error.strerror or error}") from error


def _mp4(frames_THWC: np.ndarray, fps: float) -> bytes:
  shown = frames_THWC.shape[1:3]
  # H.264 crops 4:2:0 by two pixels at a time, and few players show full chroma.
  frames_THWC = np.pad(frames_THWC, [(0, 0), (0, shown[0] % 2), (0, shown[1] % 2), (0, 0)], "edge")
  height, width = stored = frames_THWC.shape[1:3]
  rate = fractions.Fraction(fps).limit_denominator(1001)  # 30000/1001 comes back from 29.97003
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    # With mbtree on, x264 gives other bytes now and then: it reads memory that it never set.
    options = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    codec = stream.codec_context
    codec.thread_count = 1  # the bytes depend on the number of threads
    # Untagged video is shown as BT.601 by one player and as BT.709 by the next.
    codec.colorspace = codec.color_primaries = codec.color_trc = int(Colorspace.ITU709)
    codec.color_range = int(ColorRange.MPEG)
    for index, pixels in enumerate(frames_THWC):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
        format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
      )
      frame.pts, frame.time_base = index, 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue() if shown == stored else _with_aperture(buffer.getvalue(), stored, shown)


def _with_aperture(mp4: bytes, stored: tuple[int, int], shown: tuple[int, int]) -> bytes:
  """An mp4 that says that its picture is the upper left `shown` (height, width) of the `stored` ones.

  That is a box for the clean aperture (`clap` of ISO/IEC 14496-12).

  Args:
    mp4: of one video track, with its index (moov) behind the pixels, whose places must not move.
  """
  heads, start = [], 0
  for name in _ENTRY_PATH:
    while mp4[start + 4 : start + 8] != name:
      start += int.from_bytes(mp4[start : start + 4])
    heads.append(start)
    start += 16 if name == b"stsd" else 8
  (height, width), (full_height, full_width) = shown, stored
  moved = width - full_width, 2, height - full_height, 2
  box = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, *moved)
  out = bytearray(mp4)
  for head in heads:
    size = int.from_bytes(mp4[head : head + 4])
    out[head : head + 4] = (size + len(box)).to_bytes(4)
  end = heads[-1] + int.from_bytes(mp4[heads[-1] : heads[-1] + 4])
  return bytes(out[:end]) + box + bytes(out[end:])


def _lossless_mp4(frames_THWC: np.ndarray, fps: float) -> bytes:
  rate = fractions.Fraction(fps).limit_denominator(1001)
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0", "preset": "medium"})
    stream.height, stream.width, stream.pix_fmt = *frames_THWC.shape[1:3], "rgb24"
    stream.codec_context.thread_count = 1
    for index, pixels in enumerate(frames_THWC):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
      frame.pts, frame.time_base = index, 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()


def _timestamps(count: int, fps: float, tick: float) -> np.ndarray:
  """Whole ticks at which frames 0..count begin; rounding each keeps the total."""
  return np.rint(np.arange(count + 1) / fps / tick).astype(np.int64)


def _gif(frames_THWC: np.ndarray, fps: float) -> bytes:
  timestamps = _timestamps(len(frames_THWC), fps, 0.01)
  kept = [0]
  for index in range(1, len(frames_THWC)):
    if timestamps[index] - timestamps[kept[-1]] >= 2:
      kept.append(index)
  delays = np.maximum(np.diff([*timestamps[kept], timestamps[-1]]), 2)
  # One palette and no dither, or still areas would flicker; it is drawn from at most a million pixels, spread
  # over the clip.
  pixels = frames_THWC.reshape(-1, 3)
  sample = pixels[:: -(-len(pixels) // 2**20)]
  palette = Image.fromarray(sample[None]).quantize(256, method=Image.Quantize.MEDIANCUT)
  images = [Image.fromarray(frames_THWC[k]).quantize(palette=palette, dither=Image.Dither.NONE) for k in kept]
  return _save(images, "GIF", duration=[int(delay) * 10 for delay in delays], loop=0, optimize=False)


def _webp(frames_THWC: np.ndarray, fps: float) -> bytes:
  images = [Image.fromarray(pixels) for pixels in frames_THWC]
  if len(images) == 1:
    return _save(images, "WEBP", lossless=True)
  delays = [int(delay) for delay in np.diff(_timestamps(len(images), fps, 0.001))]
  return _save(images, "WEBP", duration=delays, loop=0, lossless=False, quality=90)


def _png(frames_THWC: np.ndarray, fps: float) -> bytes:
  if len(frames_THWC) != 1:
    raise InputError(f"png holds one image, got {len(frames_THWC)} frames: use .mp4, .gif or .webp")
  return _save([Image.fromarray(frames_THWC[0])], "PNG")


def _save(images: list[Image.Image], kind: str, **options: bool | int | list[int]) -> bytes:
  buffer = io.BytesIO()
  more = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
  if not more:
    options = {key: value for key, value in options.items() if key not in ("duration", "loop")}
  images[0].save(buffer, kind, **more, **options)
  return buffer.getvalue()
