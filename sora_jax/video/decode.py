"""Untrusted video and image files -> pictures with their times; the lower half of `io.py`.

What a file is, is told by its first bytes and never by its name; only the named containers and codecs are
opened, from local regular files, under the limits below; whatever goes wrong inside a decoder becomes
`UnreadableFile` with a reason of one line. Decoding runs in this process on one thread: the same file gives
the same pictures, and a loader already runs many files at once.

What is not done here: sound, pixel aspect ratio (a stored pixel is a pixel), and Dolby Vision's own colours.
HDR video becomes SDR. Transparent pictures are laid on black. Of an animated PNG the default picture is read.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import contextlib
import dataclasses
import errno
import heapq
import itertools
import os
import stat
import struct
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError

from sora_jax.errors import InputError
from sora_jax.video.orientation import Matrix, Stored, sideways
from sora_jax.video.stills import image_pixels, webp_delays
from sora_jax.video.timestamps import HEAD, Clock, clock_of, find_clock, rate_of, tick_of, timed, walk

MAX_PIXELS = 8192 * 8192 // 2  # of one frame: 8K video fits
MAX_FRAMES = 20_000  # decoded by one read
MAX_FPS = 1000
MAX_WALK_BYTES = 64 * 2**20  # files above this are taken at their header's word by `probe`
MAX_IMAGE_BYTES = 256 * 2**20  # of an image file: its pixels, uncompressed and of 16 bits, take no more
MAX_HEAD_BYTES = 16 * 2**20  # of the packets that a clip's clock is told by

_CODECS = frozenset("h264 hevc vp8 vp9 av1 mpeg4 mjpeg prores ffv1 rawvideo png gif".split())
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders pass over a second, transparent layer
_STILLS = frozenset((b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"miaf"))  # brands of HEIF
_OPTIONS = {
  "protocol_whitelist": "file",
  "codec_whitelist": ",".join(sorted(_CODECS | {"libdav1d"})),  # this option takes decoder names
  "max_pixels": str(MAX_PIXELS),
}
_SEEK_MARGIN = 1.0  # seconds before `start`, so that frames leaning on an earlier group have settled
_STILL = 1e-6  # seconds that a still is "shown": one frame at any rate


class UnreadableFile(InputError):
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


# (seconds since the first frame, seconds it is shown or 0 where unknown, the picture: see `orientation.pixels`)
Picture = tuple[float, float, Stored]


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
  """Yields (by how many seconds a time may be late, the pictures in the order of showing).

  The pictures begin at the first one, or at any one not later than `start` seconds after it. Use it inside
  `one_line_reasons`: it raises what the decoders raise.
  """
  kind = _sniff(path)
  if kind == "image":
    with _open_image(path) as image:
      delays = webp_delays(path) if image.format == "WEBP" else []
      stamps = list(itertools.accumulate(delays, initial=0))
      clock = find_clock(stamps[:HEAD], 0.001)
      yield clock.tolerance, _image_pictures(image, [clock(stamp) for stamp in stamps])
    return
  with _open_video(path, kind) as (container, stream):
    packets = container.demux(stream)
    head = _head(packets)
    stamps = [packet.pts for packet in head if packet.size and packet.pts is not None and not packet.is_discard]
    clock = clock_of(stream, stamps)
    # Some writers store when a frame is decoded and not when it is shown, though these differ.
    in_turn = bool(stream.codec_context.has_b_frames) and stamps == sorted(stamps)
    frames = _decode(stream, itertools.chain(head, packets), in_turn)
    yield clock.tolerance, _video_pictures(container, stream, frames, clock, start, in_turn)


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
    head = file.read(64)
  if head[:6] in (b"GIF87a", b"GIF89a"):
    return "gif"
  if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff":
    return "image"
  if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
    return "image"
  if head[:4] == b"\x1aE\xdf\xa3":
    return "matroska"
  brands = head[8 : int.from_bytes(head[:4])] if head[4:8] == b"ftyp" else b""
  still = not _STILLS.isdisjoint(brands[at : at + 4] for at in range(0, len(brands), 4))
  if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot") and not still:
    return "mov"
  raise UnreadableFile("not one of mp4, mov, webm, mkv, gif, png, jpeg, webp")


def _check_pixels(height: int, width: int) -> None:
  if height < 1 or width < 1 or height * width > MAX_PIXELS:
    raise UnreadableFile(f"a picture of {width}x{height} is outside 1..{MAX_PIXELS} pixels: make it smaller")


# Still images and animated WebP, by Pillow.


@contextlib.contextmanager
def _open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
  if os.path.getsize(path) > MAX_IMAGE_BYTES:
    raise UnreadableFile(f"an image of more than {MAX_IMAGE_BYTES} bytes")
  with open(path, "rb") as file, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
    _check_pixels(image.height, image.width)  # by the header: no pixel memory yet
    yield image


def _probe_image(path: str | os.PathLike) -> Probe:
  with _open_image(path) as image:
    height, width = image.height, image.width
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # the orientations that swap the sides
      height, width = width, height
    delays = webp_delays(path) if image.format == "WEBP" else []
  if len(delays) < 2:
    return Probe(height, width, seconds=0.0, fps=0.0, frames=1)
  clock = find_clock(list(itertools.accumulate(delays[:-1], initial=0))[:HEAD], 0.001)
  last = clock(sum(delays[:-1]))
  return Probe(height, width, last + delays[-1] / 1000, (len(delays) - 1) / last, len(delays))


def _image_pictures(image: Image.Image, times: list[float]) -> Iterator[Picture]:
  """`times` are those of the frames, and of the end of the last one; a lone frame is a still."""
  if len(times) < 3:
    yield 0.0, _STILL, image_pixels(image)
    return
  for index, (time, end) in enumerate(itertools.pairwise(times)):
    if index == MAX_FRAMES:
      raise UnreadableFile(f"more than {MAX_FRAMES} frames to decode: ask for fewer, or start later")
    try:
      image.seek(index)
      pixels_HWC = image_pixels(image)
    except (EOFError, OSError):  # no later frame decodes either
      if not index:
        raise
      return
    yield time, end - time, pixels_HWC


# Videos and GIF, by PyAV.


@contextlib.contextmanager
def _open_video(path: str | os.PathLike, kind: str) -> Iterator[tuple[InputContainer, av.VideoStream]]:
  """Yields (container, stream), the stream ready to decode."""
  with av.open("file:" + os.path.abspath(path), format=kind, options=_OPTIONS, metadata_errors="replace") as container:
    covers = Disposition.attached_pic  # album art is a video stream to the demuxer
    tracks = [each for each in container.streams.video if not each.disposition & covers]
    if not tracks:
      raise UnreadableFile("no video track")
    best = container.streams.best("video")  # as players choose: a thumbnail or an empty track may come first
    stream = next((each for each in tracks if each is best), tracks[0])
    codec = stream.codec_context
    name = codec.codec.canonical_name if codec else "unknown"
    if name not in _CODECS:
      raise UnreadableFile(f"codec {name} is not one of {', '.join(sorted(_CODECS))}")
    _check_pixels(codec.height, codec.width)
    codec.options = {"max_pixels": _OPTIONS["max_pixels"]}
    codec.thread_count = 1
    yield container, stream


def _head(packets: Iterator[av.Packet]) -> list[av.Packet]:
  """The first packets; the decoder gets them later."""
  head, size = [], 0
  with contextlib.suppress(av.FFmpegError):
    for packet in packets:
      head.append(packet)
      size += packet.size
      if len(head) == HEAD or size > MAX_HEAD_BYTES:
        break
  return head


def _decode(stream: av.VideoStream, packets: Iterator[av.Packet], in_turn: bool = False) -> Iterator[av.VideoFrame]:
  """Frames in the order of showing; damaged packets are skipped, a damaged container ends the clip.

  Args:
    in_turn: frames take the packets' stamps in turn, whichever packet they are of.
  """
  stamps: list[int] = []
  decoder = _decoder(stream)
  for count in itertools.count():
    if count > MAX_FRAMES:
      raise UnreadableFile(f"more than {MAX_FRAMES} frames to decode: ask for fewer, or start later")
    try:
      packet = next(packets, None)
    except av.FFmpegError:
      packet = None
    if packet is not None and not packet.size and packet.dts is not None:  # an empty sample: the picture stays
      continue
    if packet is not None and packet.has_sidedata("encryption_info"):
      raise UnreadableFile("the track is encrypted")
    if in_turn and packet is not None and packet.pts is not None and not packet.is_discard:
      heapq.heappush(stamps, packet.pts)
    try:
      frames = decoder.decode(packet)
    except av.FFmpegError:
      frames = []
    for frame in frames:
      _check_pixels(frame.height, frame.width)  # a stream may change its size midway
      if stamps:
        frame.pts = heapq.heappop(stamps)
      yield frame
    if packet is None or not packet.size:  # the end: the decoder has been drained
      return


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
  codec = stream.codec_context
  name = _WITH_ALPHA.get(codec.codec.canonical_name, "")
  if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
    return codec
  decoder = av.CodecContext.create(name, "r")
  assert isinstance(decoder, av.VideoCodecContext)
  decoder.options = {"max_pixels": _OPTIONS["max_pixels"]}
  decoder.thread_count = 1
  return decoder


def _video_pictures(
  container: InputContainer,
  stream: av.VideoStream,
  frames: Iterator[av.VideoFrame],
  clock: Clock,
  start: float,
  in_turn: bool,
) -> Iterator[Picture]:
  """Pictures from no later than `start`; `frames` are those from the head of the file."""
  first = next(frames, None)
  if first is None:
    return
  matrix, pts = _display_matrix(first), first.pts
  frames = itertools.chain([first], frames)
  if container.format.name == "gif":
    second = next(itertools.islice(frames, 1, None), None)
    if second is None:
      yield 0.0, _STILL, (first, matrix)
      return
    frames = itertools.chain([first, second], frames)
  elif start > 2 * _SEEK_MARGIN and pts is not None:
    frames = _sought(container, stream, pts, start, in_turn)
  del first
  for time, duration, frame in timed(frames, stream, clock, pts):
    yield time, duration, (frame, matrix)


def _sought(
  container: InputContainer, stream: av.VideoStream, pts: int, start: float, in_turn: bool
) -> Iterator[av.VideoFrame]:
  """Frames from no later than `start` seconds after the stamp `pts`, the file's first."""
  tick = float(tick_of(stream))
  with contextlib.suppress(av.FFmpegError):
    container.seek(pts + int((start - _SEEK_MARGIN) / tick), stream=stream, backward=True)
    frames = _decode(stream, container.demux(stream), in_turn)
    landed = next(frames, None)
    if landed is not None and landed.pts is not None and landed.pts <= pts + start / tick:
      return itertools.chain([landed], frames)
  container.seek(pts, stream=stream, backward=True)  # no index to seek by: from the head
  return _decode(stream, container.demux(stream), in_turn)


def _probe_video(path: str | os.PathLike, kind: str) -> Probe:
  with _open_video(path, kind) as (container, stream):
    frame = next(_decode(stream, container.demux(stream)), None)
    if frame is None:
      raise UnreadableFile("no frame decodes")
    height, width, origin = frame.height, frame.width, frame.pts
    if sideways(_display_matrix(frame)):
      height, width = width, height
  try:
    with _open_video(path, kind) as (container, stream):
      long = os.path.getsize(path) > MAX_WALK_BYTES
      times = (None if long else walk(_packets(container, stream), stream, origin)) or _header_times(container, stream)
  except (av.FFmpegError, EOFError):  # a cut file: some of its last packets lack what they lean on
    with _open_video(path, kind) as (container, stream):
      frames = _decode(stream, container.demux(stream))
      times = walk(frames, stream, origin) or _header_times(container, stream)
  if kind == "gif" and times[2] == 1:
    times = 0.0, 0.0, 1
  if times[1] > MAX_FPS:
    raise UnreadableFile(f"{times[1]:.4g} frames a second, more than {MAX_FPS}: its stamps are damaged")
  return Probe(height, width, *times)


def _packets(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
  count = 0
  for packet in container.demux(stream):
    count += packet.size > 0
    if packet.size and not packet.is_discard:
      yield packet
  if count < stream.frames:
    raise EOFError("fewer packets than the header lists")


def _header_times(container: InputContainer, stream: av.VideoStream) -> tuple[float, float, int]:
  if stream.duration:
    seconds = float(stream.duration * tick_of(stream))
  elif container.duration:
    seconds = container.duration / av.time_base
  else:
    raise UnreadableFile("the file is long and doesn't state its duration: cut it, or write it again")
  frames = stream.frames or max(1, round(seconds * rate_of(stream)))
  return seconds, frames / seconds, frames


def _display_matrix(frame: av.VideoFrame) -> Matrix:
  # PyAV never frees a frame that was asked for its side data: so a tiny copy is asked, and once a file.
  try:
    small = frame.reformat(width=16, height=16, format="rgb24")
  except av.FFmpegError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise
    layout, matrix = frame.format.name, frame.colorspace  # by its number in ITU-T H.273
    raise UnreadableFile(f"pixels of {layout} with colour matrix {matrix} can't be made RGB") from error
  side_data: SideDataContainer = small.side_data  # type: ignore[assignment]  # PyAV's stubs say a TypedDict
  for data in side_data:
    if data.type.name == "DISPLAYMATRIX":
      a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
      return a, b, c, d
  return 65536, 0, 0, 65536
