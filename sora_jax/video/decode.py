"""Untrusted video and image files -> pictures with their times; the lower half of `io.py`.

Only the containers and codecs of `containers.py` are opened, from local regular files, under the limits below;
whatever goes wrong inside a decoder becomes
`UnreadableFile` with a reason of one line. Decoding runs in this process on one thread: the same file gives
the same pictures, and a loader already runs many files at once.

What is not done here: sound, deinterlacing, and Dolby Vision's own colours. HDR video becomes SDR.
Transparent pictures are laid on black. Of an animated PNG the default picture is read.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import contextlib
import dataclasses
import errno
import heapq
import itertools
import os
import struct
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError

from sora_jax.video.apertures import Crop, crop_of
from sora_jax.video.containers import CODECS, IMAGE, UNSEEKABLE, UnreadableFile, kind_of
from sora_jax.video.orientation import QUARTER, UNTURNED, Matrix, Stored, pixel_aspect, shown_size, size_of
from sora_jax.video.packets import TooLongError, demuxed, from_key_frame, shown
from sora_jax.video.stills import ORIENTATION, SIDEWAYS, image_pixels, stated_aspect, webp_delays
from sora_jax.video.timestamps import HEAD, Clock, clock_of, find_clock, rate_of, tick_of, timed, walk

MAX_PIXELS = 8192 * 8192 // 2  # of one frame: 8K video fits
MAX_FRAMES = 20_000  # decoded by one read
MAX_FPS = 1000
MAX_WALK_BYTES = 8 * 2**30  # of packets that `probe` reads; of a longer track it reads the index or header alone
MAX_IMAGE_BYTES = 256 * 2**20  # of an image file: its pixels, uncompressed and of 16 bits, take no more
MAX_HEAD_BYTES = 16 * 2**20  # of the packets that are read to find the clock of a clip

_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders ignore the layer of transparency
_OPTIONS = {
  "protocol_whitelist": "file",
  "codec_whitelist": ",".join(sorted(CODECS | {"libdav1d"})),  # this option takes decoder names
  "max_pixels": str(MAX_PIXELS),
}
_SEEK_MARGIN = 1.0  # seconds before `start`, so that frames leaning on an earlier group have settled
_STILL = 1e-6  # seconds that a still is "shown": one frame at any rate


@dataclasses.dataclass(frozen=True)
class Probe:
  """What a file holds.

  Attributes:
    height, width: of the shown picture, in square pixels, after the display matrix or EXIF orientation.
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
    kind = kind_of(path)
    return _probe_image(path) if kind == IMAGE else _probe_video(path, kind)


@contextlib.contextmanager
def pictures(path: str | os.PathLike, start: float) -> Iterator[tuple[float, Iterator[Picture]]]:
  """Yields (by how many seconds a time may be late, the pictures in the order of showing).

  The pictures begin at the first one, or at any one not later than `start` seconds after it. Use it inside
  `one_line_reasons`: it raises what the decoders raise.
  """
  kind = kind_of(path)
  if kind == IMAGE:
    with _open_image(path) as image:
      delays = webp_delays(path) if image.format == "WEBP" else []
      timestamps = list(itertools.accumulate(delays, initial=0))
      clock = find_clock(timestamps[:HEAD], 0.001)
      yield clock.tolerance, _image_pictures(image, [clock(timestamp) for timestamp in timestamps])
    return
  with _open_video(path, kind) as (container, stream):
    packets = demuxed(container, stream)
    head = _head(packets)
    timestamps = [packet.pts for packet in head if packet.size and packet.pts is not None and not packet.is_discard]
    clock = clock_of(stream, timestamps)
    # Some writers store the time of decoding in the place of the time of showing, though these differ.
    in_turn = bool(stream.codec_context.has_b_frames) and timestamps == sorted(timestamps)
    frames = _decode(stream, itertools.chain(head, packets), in_turn)
    yield clock.tolerance, _video_pictures(container, stream, frames, clock, start, in_turn)


@contextlib.contextmanager
def one_line_reasons() -> Iterator[None]:
  """Turns whatever a decoder raises on bad bytes into UnreadableFile: the types that it may raise can't be listed."""
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
    height, width = shown_size(image.height, image.width, *_turn_and_aspect(image))
    _check_pixels(height, width)
    delays = webp_delays(path) if image.format == "WEBP" else []
  if len(delays) < 2:
    return Probe(height, width, seconds=0.0, fps=0.0, frames=1)
  clock = find_clock(list(itertools.accumulate(delays[:-1], initial=0))[:HEAD], 0.001)
  last = clock(sum(delays[:-1]))
  return Probe(height, width, last + delays[-1] / 1000, (len(delays) - 1) / last, len(delays))


def _turn_and_aspect(image: Image.Image) -> tuple[Matrix, float]:
  turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
  return QUARTER if turned else UNTURNED, pixel_aspect(stated_aspect(image))


def _image_pictures(image: Image.Image, times: list[float]) -> Iterator[Picture]:
  """`times` are those of the frames, and of the end of the last one; a lone frame is a still."""
  how = _turn_and_aspect(image)
  if len(times) < 3:
    yield 0.0, _STILL, Stored(image_pixels(image), *how)
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
    yield time, end - time, Stored(pixels_HWC, *how)


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
    if name not in CODECS:
      raise UnreadableFile(f"codec {name} is not one of those that are read: encode it again, as H.264 for example")
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


def _decode(
  stream: av.VideoStream, packets: Iterator[av.Packet], in_turn: bool = False, lag: int | None = None
) -> Iterator[av.VideoFrame]:
  """Frames in the order of showing; damaged packets are skipped, a damaged container ends the clip.

  Args:
    in_turn: frames take the packets' timestamps in increasing order, whichever packet each frame comes from.
    lag: the decoding time of the packet that makes a frame come out, less the frame's timestamp. It is given where the
      packets begin midway: frames that refer to earlier ones are then dropped, and their timestamps must be too.
  """
  timestamps: list[int] = []
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
      heapq.heappush(timestamps, packet.pts)
    try:
      frames = decoder.decode(packet)
    except av.FFmpegError:
      frames = []
    for frame in frames:
      _check_pixels(frame.height, frame.width)  # a stream may change its size midway
      while lag is not None and frame.dts is not None and timestamps and timestamps[0] < frame.dts - lag:
        heapq.heappop(timestamps)
      lag = None
      if timestamps:
        frame.pts = heapq.heappop(timestamps)
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
  pts, how = first.pts, (_display_matrix(first), _aspect(stream), _crop(container, stream, first))
  frames = itertools.chain([first], frames)
  if container.format.name == "gif":
    second = next(itertools.islice(frames, 1, None), None)
    if second is None:
      yield 0.0, _STILL, Stored(first, *how)
      return
    frames = itertools.chain([first, second], frames)
  elif start > 2 * _SEEK_MARGIN and pts is not None:
    lag = first.dts - pts if in_turn and first.dts is not None else None
    frames = _sought(container, stream, pts, start, (in_turn, lag))
  del first
  for time, duration, frame in timed(frames, stream, clock, pts):
    yield time, duration, Stored(frame, *how)


def _sought(
  container: InputContainer, stream: av.VideoStream, pts: int, start: float, turns: tuple[bool, int | None]
) -> Iterator[av.VideoFrame]:
  """Frames from no later than `start` seconds after `pts`, the file's first; `turns` go to `_decode`."""
  tick = float(tick_of(stream))
  if (kind := container.format.name) in UNSEEKABLE:
    path = container.name.removeprefix("file:")
    return _searched(path, kind, pts + int((start - _SEEK_MARGIN) / tick), turns)
  with contextlib.suppress(av.FFmpegError):
    container.seek(pts + int((start - _SEEK_MARGIN) / tick), stream=stream, backward=True)
    frames = _decode(stream, demuxed(container, stream), *turns)
    landed = next(frames, None)
    if landed is not None and landed.pts is not None and landed.pts <= pts + start / tick:
      return itertools.chain([landed], frames)
  container.seek(pts, stream=stream, backward=True)  # no index to seek by: from the head
  return _decode(stream, demuxed(container, stream), turns[0])


def _searched(path: str, kind: str, until: int, turns: tuple[bool, int | None]) -> Iterator[av.VideoFrame]:
  """Frames from the last key frame no later than the timestamp `until`, found by reading all packets before."""
  with _open_video(path, kind) as (container, stream):
    yield from _decode(stream, from_key_frame(demuxed(container, stream), until), *turns)


def _probe_video(path: str | os.PathLike, kind: str) -> Probe:
  with _open_video(path, kind) as (container, stream):
    frame = next(_decode(stream, demuxed(container, stream)), None)
    if frame is None:
      raise UnreadableFile("no frame decodes")
    shown_as = Stored(frame, _display_matrix(frame), _aspect(stream), _crop(container, stream, frame))
    (height, width), origin = size_of(shown_as), frame.pts
    _check_pixels(height, width)
  try:
    with _open_video(path, kind) as (container, stream):
      times = walk(shown(container, stream, MAX_WALK_BYTES), stream, origin) or _header_times(container, stream)
  except TooLongError:
    with _open_video(path, kind) as (container, stream):
      times = _header_times(container, stream)
  except (av.FFmpegError, EOFError):  # a cut file: some of its last packets lack what they lean on
    with _open_video(path, kind) as (container, stream):
      frames = _decode(stream, demuxed(container, stream))
      times = walk(frames, stream, origin) or _header_times(container, stream)
  if kind == "gif" and times[2] == 1:
    times = 0.0, 0.0, 1
  if times[1] > MAX_FPS:
    raise UnreadableFile(f"{times[1]:.4g} frames a second, more than {MAX_FPS}: its timestamps are damaged")
  return Probe(height, width, *times)


def _header_times(container: InputContainer, stream: av.VideoStream) -> tuple[float, float, int]:
  """(seconds, fps, frames) of a track that is too long to be read: by its index, or where it has none, its header."""
  listed = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
  tick = float(tick_of(stream))
  if container.format.name.startswith("mov") and len(listed) > 1 and max(listed) > min(listed):
    fps = (len(listed) - 1) / (max(listed) - min(listed)) / tick
    return len(listed) / fps, fps, len(listed)
  if stream.duration:
    seconds = stream.duration * tick
  elif container.duration:
    seconds = container.duration / av.time_base
  else:
    raise UnreadableFile("the file is long and doesn't state its duration: cut it, or write it again")
  frames = stream.frames or max(1, round(seconds * rate_of(stream)))
  return seconds, frames / seconds, frames


def _aspect(stream: av.VideoStream) -> float:
  """Of a pixel: as the container says, or where it is silent, the codec. The first frame has been decoded."""
  return pixel_aspect(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio)


def _crop(container: InputContainer, stream: av.VideoStream, frame: av.VideoFrame) -> Crop:
  if (frame.height, frame.width) != (stream.codec_context.height, stream.codec_context.width):
    return Crop()  # not the size that the container speaks of
  path, kind = container.name.removeprefix("file:"), container.format.name.partition(",")[0]
  return crop_of(path, kind, stream.id, frame.height, frame.width)


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
  return UNTURNED
