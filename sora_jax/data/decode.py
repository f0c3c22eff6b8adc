"""Untrusted video and image files -> pictures with their times; the lower half of `video_io.py`.

What a file is, is told by its first bytes and never by its name; only the named containers and codecs are
opened, from local regular files, under the limits below; whatever goes wrong inside a decoder becomes
`UnreadableFile` with a reason of one line. Decoding runs in this process on one thread: the same file gives
the same pictures, and a loader already runs many files at once.

What is not done here: sound, colour profiles of images, and pixel aspect ratio (a stored pixel is a pixel).
HDR video becomes SDR. Transparent pictures are laid on black. Of an animated PNG the default picture is read.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import contextlib
import dataclasses
import itertools
import os
import stat
import struct
from collections.abc import Iterator

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps, UnidentifiedImageError

from sora_jax.data import tone

MAX_PIXELS = 8192 * 8192 // 2  # of one frame: 8K video fits
MAX_FRAMES = 20_000  # decoded by one read
MAX_WALK_BYTES = 64 * 2**20  # files above this are taken at their header's word by `probe`
MAX_WALK_PACKETS = 200_000

_CODECS = frozenset("h264 hevc vp8 vp9 av1 mpeg4 mjpeg prores ffv1 rawvideo png gif".split())
_OPTIONS = {
  "protocol_whitelist": "file",
  "codec_whitelist": ",".join(sorted(_CODECS | {"libdav1d"})),  # this option takes decoder names
  "max_pixels": str(MAX_PIXELS),
}
_SEEK_MARGIN = 1.0  # seconds before `start`, so that frames leaning on an earlier group have settled
_DEFAULT_DELAY = 0.1  # seconds: what players show for a picture whose stated delay is 0
_STILL = 1e-6  # seconds that a still is "shown": one frame at any rate


class UnreadableFile(ValueError):
  """A file that gives no frames; the message is the reason, in one line, without the file's name."""


@dataclasses.dataclass(frozen=True)
class Probe:
  """What a file holds.

  Attributes:
    height, width: of the shown picture, after the display matrix (video) or EXIF orientation (images).
    seconds: from the first frame to the end of the last one; 0 for a still image.
    fps: mean rate by the timestamps, (frames - 1) / (last - first); 0 for a still image.
    frames: number of frames; 1 for a still image. Damaged frames are counted.
  """

  height: int
  width: int
  seconds: float
  fps: float
  frames: int


# (seconds since the first frame, seconds it is shown or 0 where unknown, the picture: see `pixels`)
Picture = tuple[float, float, av.VideoFrame | np.ndarray]


def probe(path: str | os.PathLike) -> Probe:
  """Size, duration and rate of a video or image, decoding at most its first frame.

  Raises:
    UnreadableFile: not a known video or image, above a limit, or its first frames don't decode.
  """
  with one_line_reasons():
    kind = _sniff(path)
    return _probe_image(path) if kind == "image" else _probe_video(path, kind)


@contextlib.contextmanager
def pictures(path: str | os.PathLike, start: float) -> Iterator[tuple[float, Iterator[Picture]]]:
  """Yields (tolerance of the times in seconds, the pictures in the order of showing).

  The pictures begin at the first one, or at any one not later than `start` seconds after it. Use it inside
  `one_line_reasons`: it raises what the decoders raise.
  """
  kind = _sniff(path)
  if kind == "image":
    with _open_image(path) as image:
      yield 0.0005 + 1e-6, _image_pictures(path, image)  # the clock ticks in milliseconds
    return
  with _open_video(path, kind) as (container, stream):
    # A stamp is off by up to half a tick of the container's clock. Many a finer clock holds stamps that were
    # rounded to milliseconds before; a very coarse one (a tick a frame) isn't off at all. And floats add up.
    tolerance = max(min(float(stream.time_base) / 2, 0.005) + 1e-6, 0.000499)
    yield tolerance, _video_pictures(container, stream, 0.0 if kind == "gif" else start)


@contextlib.contextmanager
def one_line_reasons() -> Iterator[None]:
  """Turns whatever a decoder raises on bad bytes into UnreadableFile; the list of types has no end."""
  try:
    yield
  except UnreadableFile:
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise UnreadableFile(f"the picture has more than {MAX_PIXELS} pixels: make it smaller") from None
  except UnidentifiedImageError:
    raise UnreadableFile("the image's header is damaged") from None
  except (av.FFmpegError, OSError) as error:
    raise UnreadableFile(error.strerror or str(error).partition("\n")[0] or type(error).__name__) from error
  except Exception as error:
    text = str(error).partition("\n")[0]
    raise UnreadableFile(f"{type(error).__name__}: {text}".removesuffix(": ")) from error


def _sniff(path: str | os.PathLike) -> str:
  """The kind of a file by its first bytes: mov, matroska or gif (demuxer names), or image."""
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):  # a pipe would hang, a device would never end
    raise UnreadableFile("not a regular file")
  if not status.st_size:
    raise UnreadableFile("the file is empty")
  with open(path, "rb") as file:
    head = file.read(16)
  if head[:6] in (b"GIF87a", b"GIF89a"):
    return "gif"
  if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff":
    return "image"
  if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
    return "image"
  if head[:4] == b"\x1aE\xdf\xa3":
    return "matroska"
  stills = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
  if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot") and head[8:12] not in stills:
    return "mov"
  raise UnreadableFile("not one of mp4, mov, webm, mkv, gif, png, jpeg, webp")


def _check_pixels(height: int, width: int) -> None:
  if height < 1 or width < 1 or height * width > MAX_PIXELS:
    raise UnreadableFile(f"a picture of {width}x{height} is outside 1..{MAX_PIXELS} pixels: make it smaller")


# Still images and animated WebP, by Pillow.


@contextlib.contextmanager
def _open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
  with open(path, "rb") as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
    _check_pixels(image.height, image.width)  # by the header: no pixel memory yet
    yield image


def _probe_image(path: str | os.PathLike) -> Probe:
  with _open_image(path) as image:
    height, width = image.height, image.width
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # the orientations that swap the sides
      height, width = width, height
    delays = _webp_delays(path) if image.format == "WEBP" else []
  if len(delays) < 2:
    return Probe(height, width, seconds=0.0, fps=0.0, frames=1)
  return Probe(height, width, sum(delays), (len(delays) - 1) / sum(delays[:-1]), len(delays))


def _webp_delays(path: str | os.PathLike) -> list[float]:
  """Seconds that each frame of an animated WebP is shown; empty for a still one. Reads chunk heads alone."""
  delays = []
  with open(path, "rb") as file:
    file.seek(12)
    while len(head := file.read(24)) >= 8:
      tag, size = struct.unpack("<4sI", head[:8])
      if tag == b"ANMF" and len(head) == 24:
        delays.append(int.from_bytes(head[20:23], "little") / 1000 or _DEFAULT_DELAY)
      file.seek(size + size % 2 + 8 - len(head), os.SEEK_CUR)
  return delays


def _image_pictures(path: str | os.PathLike, image: Image.Image) -> Iterator[Picture]:
  delays = _webp_delays(path) if image.format == "WEBP" else []
  time = 0.0
  for index, delay in enumerate(delays if len(delays) > 1 else [_STILL]):
    if index:
      image.seek(index)
    yield time, delay, _image_pixels(image)
    time += delay


def _image_pixels(image: Image.Image) -> np.ndarray:
  """Upright uint8 (H, W, 3) of an image of any mode."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
    grey = np.clip(np.rint(np.asarray(image).astype(np.float64) / 257), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  if image.has_transparency_data:
    return _on_black(np.asarray(image.convert("RGBA")))
  return np.asarray(image.convert("RGB"))


def _on_black(rgba: np.ndarray) -> np.ndarray:
  return ((rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255).astype(np.uint8)


# Videos and GIF, by PyAV.


@contextlib.contextmanager
def _open_video(path: str | os.PathLike, kind: str) -> Iterator[tuple]:
  """Yields (container, stream), the stream ready to decode."""
  with av.open("file:" + os.path.abspath(path), format=kind, options=_OPTIONS, metadata_errors="replace") as container:
    covers = Disposition.attached_pic  # album art is a video stream to the demuxer
    stream = next((each for each in container.streams.video if not each.disposition & covers), None)
    if stream is None:
      raise UnreadableFile("no video track")
    codec = stream.codec_context
    name = codec.codec.canonical_name if codec else "unknown"
    if name not in _CODECS:
      raise UnreadableFile(f"codec {name} is not one of {', '.join(sorted(_CODECS))}")
    _check_pixels(codec.height, codec.width)
    codec.options = {"max_pixels": _OPTIONS["max_pixels"]}
    codec.thread_count = 1
    yield container, stream


def _decode(container, stream) -> Iterator[av.VideoFrame]:
  """Frames in the order of showing; damaged packets are skipped, a damaged container ends the clip."""
  packets = container.demux(stream)
  for count in itertools.count():
    if count > MAX_FRAMES:
      raise UnreadableFile(f"more than {MAX_FRAMES} frames to decode: ask for fewer, or start later")
    try:
      packet = next(packets, None)
    except av.FFmpegError:
      packet = None
    try:
      frames = stream.codec_context.decode(packet)
    except av.FFmpegError:
      frames = []
    for frame in frames:
      _check_pixels(frame.height, frame.width)  # a stream may change its size midway
      yield frame
    if packet is None or not packet.size:  # the end: the decoder has been drained
      return


def _rate(stream) -> float:
  return float(stream.average_rate or stream.guessed_rate or 25)


def _video_pictures(container, stream, start: float) -> Iterator[Picture]:
  frames = _decode(container, stream)
  first = next(frames, None)
  if first is None:
    return
  if container.format.name == "gif":
    second = next(frames, None)
    if second is None:
      yield 0.0, _STILL, first
      return
    frames = itertools.chain([second], frames)
  if start <= 2 * _SEEK_MARGIN or first.pts is None:
    yield from _timed(itertools.chain([first], frames), stream, first.pts)
    return
  tick = float(stream.time_base)
  sought = _seek(container, stream, first.pts + int((start - _SEEK_MARGIN) / tick), first.pts + start / tick)
  if sought is None:  # no index to seek by: from the head
    container.seek(first.pts, stream=stream, backward=True)
    sought = _decode(container, stream)
  yield from _timed(sought, stream, first.pts)


def _seek(container, stream, pts: int, latest_pts: float) -> Iterator[av.VideoFrame] | None:
  """Frames from a keyframe at or before pts; None where the seek fails or lands after latest_pts."""
  try:
    container.seek(pts, stream=stream, backward=True)
  except av.FFmpegError:
    return None
  frames = _decode(container, stream)
  first = next(frames, None)
  if first is None or first.pts is None or first.pts > latest_pts:
    return None
  return itertools.chain([first], frames)


def _timed(frames: Iterator[av.VideoFrame], stream, origin: int | None) -> Iterator[Picture]:
  """Adds times: by timestamp, and one frame after the last where it is missing; never backwards."""
  tick, step = float(stream.time_base), 1 / _rate(stream)
  time = -step
  for frame in frames:
    if frame.pts is None:
      time += step
    else:
      origin = frame.pts if origin is None else origin
      time = max(time, (frame.pts - origin) * tick)
    yield time, (frame.duration or 0) * tick, frame


def _probe_video(path: str | os.PathLike, kind: str) -> Probe:
  with _open_video(path, kind) as (container, stream):
    frame = next(_decode(container, stream), None)
    if frame is None:
      raise UnreadableFile("no frame decodes")
    height, width = frame.height, frame.width
    if _sideways(_display_matrix(frame)):
      height, width = width, height
  try:
    with _open_video(path, kind) as (container, stream):
      long = os.path.getsize(path) > MAX_WALK_BYTES
      times = (None if long else _walk(_packets(container, stream), stream)) or _header_times(container, stream)
  except (av.FFmpegError, EOFError):  # a cut file: some of its last packets lack what they lean on
    with _open_video(path, kind) as (container, stream):
      times = _walk(_decode(container, stream), stream) or _header_times(container, stream)
  if kind == "gif" and times[2] == 1:
    times = 0.0, 0.0, 1
  return Probe(height, width, *times)


def _packets(container, stream) -> Iterator[av.Packet]:
  count = 0
  for packet in container.demux(stream):
    count += packet.size > 0
    if packet.size and not packet.is_discard:
      yield packet
  if count < stream.frames:
    raise EOFError("fewer packets than the header lists")


def _walk(items: Iterator[av.Packet | av.VideoFrame], stream) -> tuple[float, float, int] | None:
  """(seconds, fps, frames) by the stamps of packets, cheaply, or of frames; None above the limit.

  Headers are often wrong: cut files, edit lists, variable rates.
  """
  count, stamps = 0, []
  for count, item in enumerate(items, 1):
    if count > MAX_WALK_PACKETS:
      return None
    if item.pts is not None:
      stamps.append((item.pts, item.duration or 0))
  rate, tick = _rate(stream), float(stream.time_base)
  if not stamps:
    return max(count, 1) / rate, rate, max(count, 1)
  (first, _), (last, duration) = min(stamps), max(stamps)
  fps = (len(stamps) - 1) / ((last - first) * tick) if last > first else rate
  return (last - first) * tick + (duration * tick or 1 / fps), fps, count


def _header_times(container, stream) -> tuple[float, float, int]:
  if stream.duration:
    seconds = float(stream.duration * stream.time_base)
  elif container.duration:
    seconds = container.duration / av.time_base
  else:
    raise UnreadableFile("the file is long and doesn't state its duration: cut it, or write it again")
  frames = stream.frames or max(1, round(seconds * _rate(stream)))
  return seconds, frames / seconds, frames


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
  """(a, b, c, d) of the display matrix: shown x = a x + c y, shown y = b x + d y, in 1/65536."""
  for data in frame.side_data:
    if data.type.name == "DISPLAYMATRIX":
      a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
      return a, b, c, d
  return 65536, 0, 0, 65536


def _sideways(matrix: tuple[int, int, int, int]) -> bool:
  a, b, c, d = map(abs, matrix)
  return b + c > a + d


def pixels(picture: av.VideoFrame | np.ndarray) -> np.ndarray:
  """Upright uint8 (H, W, 3) of a picture; a turn that isn't a right angle goes to the nearest one."""
  if isinstance(picture, np.ndarray):
    return picture
  frame = picture
  if any(component.is_alpha for component in frame.format.components):
    upright = _on_black(frame.to_ndarray(format="rgba"))
  elif frame.color_trc in (tone.PQ, tone.HLG):
    upright = tone.to_sdr(frame.to_ndarray(format="rgb48le"), frame.color_trc)
  else:
    upright = frame.to_ndarray(format="rgb24")
  a, b, c, d = matrix = _display_matrix(frame)
  if _sideways(matrix):
    upright, flip_x, flip_y = upright.swapaxes(0, 1), c < 0, b < 0
  else:
    flip_x, flip_y = a < 0, d < 0
  return upright[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
