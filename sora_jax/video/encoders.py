"""uint8 frames -> mp4, gif, webp and png, as the frames come; the files that they go to are `io.py`.

Shape letters: T frames, H height, W width, C colours (red, green, blue).
"""

import fractions
import io
import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from sora_jax import clips
from sora_jax.errors import InputError

GIF_SECONDS, WEBP_SECONDS = 655.35, 16_777.215  # a frame can be shown for: 16 bits of 1/100, 24 bits of 1/1000
# The boxes that lead to the description of a video's pixels.
_ENTRY_PATH = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")


class Frames:
  """The frames of pieces, one after another: uint8 (H, W, 3), all of the size of the first."""

  def __init__(self, pieces: Iterable[np.ndarray], kind: str):
    self.pieces, self.kind = pieces, kind
    self.size: tuple[int, int] | None = None  # height and width, once the first piece is there
    self.failure: BaseException | None = None  # of whoever makes the pieces

  def __iter__(self) -> Iterator[np.ndarray]:
    for piece in self._given():
      yield from self._checked(np.asarray(piece))
    if self.size is None:
      raise ValueError("a clip needs a frame: there are no pieces")

  def _given(self) -> Iterator[np.ndarray]:
    try:
      yield from self.pieces
    except Exception as failure:
      self.failure = failure
      raise

  def _checked(self, piece_THWC: np.ndarray) -> np.ndarray:
    if piece_THWC.ndim != 4 or piece_THWC.shape[-1] != 3 or not piece_THWC.size:
      raise ValueError(f"frames must be (T, H, W, 3) with no side 0, got {piece_THWC.shape}")
    height, width = piece_THWC.shape[1:3]
    if self.size not in (None, (height, width)):
      raise ValueError(f"a piece has frames of {width}x{height}, those before it {self.size[1]}x{self.size[0]}")
    self.size = height, width
    if self.kind == "webp" and max(self.size) > 16383:
      raise InputError(f"webp can't hold frames of {width}x{height}: its longest side is 16383")
    if piece_THWC.dtype == np.uint8:
      return piece_THWC
    if piece_THWC.dtype.kind not in "fV":  # V: bfloat16 and its like
      raise ValueError(f"frames must be uint8, or floats in [-1, 1], got {piece_THWC.dtype}")
    piece_THWC = piece_THWC.astype(np.float32)
    if not np.isfinite(piece_THWC).all():
      raise InputError("frames hold NaN or infinity")
    return clips.to_uint8(piece_THWC)


def encode(frames: Frames, fps: float, kind: str, file: BinaryIO, lossless: bool = False) -> None:
  """Writes frames to an open file, which can be read and sought in.

  Args:
    kind: mp4, gif, webp or png; see `io.write`.
    lossless: see `io.encode`.

  Raises:
    ValueError: as `io.write` does; what the frames are made by raises goes through.
  """
  if not 0 < fps <= 1000:
    raise InputError(f"fps must be above 0 and at most 1000, got {fps}")
  encoder = {"mp4": _lossless_mp4 if lossless else _mp4, "gif": _gif, "webp": _webp, "png": _png}[kind]
  try:
    encoder(iter(frames), fps, file)
  except (av.FFmpegError, _Refused) as error:
    if error is frames.failure:
      raise
    height, width = frames.size or (0, 0)
    raise InputError(f"{kind} can't hold frames of {width}x{height}: {error.strerror or error}") from error


class _Refused(OSError):
  """Pillow can't encode these frames."""


def _rate(fps: float) -> fractions.Fraction:
  """Frames per second as containers hold them: 30000/1001 comes back from 29.97003, and an hour a frame from 1/3600."""
  if fps >= 1:
    return fractions.Fraction(fps).limit_denominator(1001)
  return 1 / fractions.Fraction(1 / fps).limit_denominator(1001)


def _mp4(frames: Iterator[np.ndarray], fps: float, file: BinaryIO) -> None:
  first = next(frames)
  shown = first.shape[:2]
  # H.264 crops 4:2:0 by two pixels at a time, and few players show full chroma.
  even = [(0, shown[0] % 2), (0, shown[1] % 2), (0, 0)]
  stored = shown[0] + shown[0] % 2, shown[1] + shown[1] % 2
  rate = _rate(fps)
  with av.open(file, "w", format="mp4") as container:
    # With mbtree on, x264 gives other bytes now and then: it reads memory that it never set.
    options = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    (stream.height, stream.width), stream.pix_fmt = stored, "yuv420p"
    codec = stream.codec_context
    codec.thread_count = 1  # the bytes depend on the number of threads
    # Untagged video is shown as BT.601 by one player and as BT.709 by the next.
    codec.colorspace = codec.color_primaries = codec.color_trc = int(Colorspace.ITU709)
    codec.color_range = int(ColorRange.MPEG)
    for index, pixels in enumerate(itertools.chain([first], frames)):
      rgb = np.ascontiguousarray(np.pad(pixels, even, "edge") if shown != stored else pixels)
      frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
      )
      frame.pts, frame.time_base = index, 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  if shown != stored:
    add_aperture(file, stored, shown)


def add_aperture(file: BinaryIO, stored: tuple[int, int], shown: tuple[int, int]) -> None:
  """Makes an mp4 say that its picture is the upper left `shown` (height, width) of the `stored` ones.

  That is a box for the clean aperture (`clap` of ISO/IEC 14496-12).

  Args:
    file: of one video track, with its index (moov) behind the pixels, whose places must not move.
  """
  start, kind, size = 0, b"", 0
  while kind != _ENTRY_PATH[0]:
    start += size
    file.seek(start)
    size, kind = struct.unpack(">I4s", file.read(8))
    size = struct.unpack(">Q", file.read(8))[0] if size == 1 else size  # pixels of more than 4 GiB
  file.seek(start)
  index = bytearray(file.read())
  heads, at = [], 0
  for name in _ENTRY_PATH:
    while index[at + 4 : at + 8] != name:
      at += int.from_bytes(index[at : at + 4])
    heads.append(at)
    at += 16 if name == b"stsd" else 8
  (height, width), (full_height, full_width) = shown, stored
  moved = width - full_width, 2, height - full_height, 2
  box = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, *moved)
  end = heads[-1] + int.from_bytes(index[heads[-1] : heads[-1] + 4])
  for head in heads:
    index[head : head + 4] = (int.from_bytes(index[head : head + 4]) + len(box)).to_bytes(4)
  file.seek(start)
  file.write(index[:end] + box + index[end:])


def _lossless_mp4(frames: Iterator[np.ndarray], fps: float, file: BinaryIO) -> None:
  first = next(frames)
  rate = _rate(fps)
  with av.open(file, "w", format="mp4") as container:
    stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0", "preset": "medium"})
    stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "rgb24"
    stream.codec_context.thread_count = 1
    for index, pixels in enumerate(itertools.chain([first], frames)):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
      frame.pts, frame.time_base = index, 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _timestamps(count: int, fps: float, tick: float) -> np.ndarray:
  """Whole ticks at which frames 0..count begin; rounding each keeps the total."""
  return np.rint(np.arange(count + 1) / fps / tick).astype(np.int64)


def _shown_for(seconds_T: np.ndarray, most: float, kind: str) -> None:
  """
  Raises:
    InputError: a frame is shown for longer than the format can say.
  """
  if seconds_T.max() > most:
    raise InputError(f"{kind} shows a frame for {most:g} seconds at most, not {seconds_T.max():g}: use .mp4")


def _gif(frames: Iterator[np.ndarray], fps: float, file: BinaryIO) -> None:
  frames_THWC = np.stack(list(frames))  # the palette is of the whole clip
  timestamps = _timestamps(len(frames_THWC), fps, 0.01)
  kept = [0]
  for index in range(1, len(frames_THWC)):
    if timestamps[index] - timestamps[kept[-1]] >= 2:
      kept.append(index)
  delays = np.maximum(np.diff([*timestamps[kept], timestamps[-1]]), 2)
  _shown_for(delays / 100, GIF_SECONDS, "gif")
  # One palette and no dither, or still areas would flicker; it is drawn from at most a million pixels, spread
  # over the clip.
  pixels = frames_THWC.reshape(-1, 3)
  sample = pixels[:: -(-len(pixels) // 2**20)]
  palette = Image.fromarray(sample[None]).quantize(256, method=Image.Quantize.MEDIANCUT)
  images = [Image.fromarray(frames_THWC[k]).quantize(palette=palette, dither=Image.Dither.NONE) for k in kept]
  _save(images, file, "GIF", duration=[int(delay) * 10 for delay in delays], loop=0, optimize=False)


def _webp(frames: Iterator[np.ndarray], fps: float, file: BinaryIO) -> None:
  images = [Image.fromarray(pixels) for pixels in frames]
  if len(images) == 1:
    _save(images, file, "WEBP", lossless=True)
    return
  delays = [int(delay) for delay in np.diff(_timestamps(len(images), fps, 0.001))]
  _shown_for(np.array(delays) / 1000, WEBP_SECONDS, "webp")
  _save(images, file, "WEBP", duration=delays, loop=0, lossless=False, quality=90)


def _png(frames: Iterator[np.ndarray], fps: float, file: BinaryIO) -> None:
  images = [Image.fromarray(pixels) for pixels in frames]
  if len(images) != 1:
    raise InputError(f"png holds one image, got {len(images)} frames: use .mp4, .gif or .webp")
  _save(images, file, "PNG")


def _save(images: list[Image.Image], file: BinaryIO, kind: str, **options: bool | int | list[int]) -> None:
  buffer = io.BytesIO()
  more = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
  if not more:
    options = {key: value for key, value in options.items() if key not in ("duration", "loop")}
  try:
    images[0].save(buffer, kind, **more, **options)
  except OSError as error:
    raise _Refused(str(error)) from error
  file.write(buffer.getvalue())
