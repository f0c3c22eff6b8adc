"""Containers and codecs of data sets: what a file is taken for, and its frames, times, sizes and damage."""

import fractions
import pathlib

import av
import numpy as np
import pytest

from sora_jax.video import containers, decode
from sora_jax.video import io as video_io
from sora_jax.video.decode import UnreadableFile

SIZE = (48, 64)
STEP = 8  # of grey from frame to frame
CIF = (144, 176)  # of the codecs that know few sizes


def grey(index: int, height: int, width: int) -> np.ndarray:
  """A frame that tells its number, with a corner that tells up from down and left from right."""
  pixels = np.full((height, width, 3), index * STEP % 256, np.uint8)
  pixels[: height // 4, : width // 4] = [0, 0, 255]
  return pixels


def write(path: pathlib.Path, codec: str, count: int = 30, **how) -> pathlib.Path:
  """`how`: rate, size, pix_fmt, muxer, b_frames, aspect, options and offset (of all timestamps, in seconds)."""
  options = {"output_ts_offset": str(how["offset"])} if "offset" in how else {}
  with av.open(str(path), "w", format=how.get("muxer"), options=options) as container:
    stream = container.add_stream(codec, rate=fractions.Fraction(how.get("rate", 25)), options=how.get("options", {}))
    stream.height, stream.width = how.get("size", SIZE)
    stream.pix_fmt = how.get("pix_fmt", "yuv420p")
    context = stream.codec_context
    context.gop_size, context.bit_rate, context.max_b_frames = 12, 2_000_000, how.get("b_frames", 0)
    if "aspect" in how:
      context.sample_aspect_ratio = fractions.Fraction(how["aspect"])
    for index in range(count):
      frame = av.VideoFrame.from_ndarray(grey(index, stream.height, stream.width), format="rgb24")
      container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
    container.mux(stream.encode(None))
  return path


def numbers(frames_THWC: np.ndarray) -> list[int]:
  """Which frame each one is, up to 32."""
  centre = frames_THWC[:, frames_THWC.shape[1] // 2, frames_THWC.shape[2] // 2]
  return np.rint(centre.mean(-1) / STEP).astype(int).tolist()


@pytest.mark.parametrize(
  ("name", "codec", "how"),
  [
    ("xvid.avi", "mpeg4", {}),
    ("xvid_b.avi", "mpeg4", {"b_frames": 2}),
    ("h264.avi", "libx264", {"b_frames": 3}),
    ("mjpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("divx3.avi", "msmpeg4", {}),
    ("divx2.avi", "msmpeg4v2", {}),
    ("huffyuv.avi", "huffyuv", {"pix_fmt": "yuv422p"}),
    ("ffvhuff.avi", "ffvhuff", {}),
    ("utvideo.avi", "utvideo", {}),
    ("cinepak.avi", "cinepak", {"pix_fmt": "rgb24"}),
    ("raw.avi", "rawvideo", {"pix_fmt": "bgr24"}),
    ("dv.avi", "dvvideo", {"size": (576, 720), "count": 4}),
    ("mpeg1.mpg", "mpeg1video", {"b_frames": 2}),
    ("mpeg2.vob", "mpeg2video", {"b_frames": 2, "muxer": "vob"}),
    ("bare.m1v", "mpeg1video", {"b_frames": 2, "muxer": "mpeg1video"}),
    ("bare.m2v", "mpeg2video", {"b_frames": 2, "muxer": "mpeg2video"}),
    ("bare.m4v", "mpeg4", {"b_frames": 2, "muxer": "m4v"}),
    ("h264.ts", "libx264", {"b_frames": 2}),
    ("mpeg2.ts", "mpeg2video", {"b_frames": 2}),
    ("blu_ray.m2ts", "libx264", {}),
    ("apple.m4v", "libx264", {}),
    ("phone.3gp", "h263", {"size": CIF}),
    ("phone.3g2", "mpeg4", {}),
    ("sorenson.flv", "flv", {}),
    ("h264.flv", "libx264", {"b_frames": 2}),
    ("seven.wmv", "wmv1", {}),
    ("eight.wmv", "wmv2", {}),
    ("divx.asf", "msmpeg4", {}),
    ("vp8.ogv", "libvpx", {}),
    ("broadcast.mxf", "mpeg2video", {"b_frames": 2}),
    ("camera.dv", "dvvideo", {"size": (576, 720), "count": 4}),
    ("real.rm", "rv20", {"size": CIF}),
    ("vp9.ivf", "libvpx-vp9", {}),
    ("raw.y4m", "rawvideo", {"muxer": "yuv4mpegpipe"}),
    ("prores.mov", "prores_ks", {"pix_fmt": "yuv422p10le"}),
    ("cineform.mov", "cfhd", {"pix_fmt": "yuv422p10le"}),
    ("sorenson.mov", "svq1", {"pix_fmt": "yuv410p"}),
  ],
)
def test_every_frame_at_its_time(tmp_path: pathlib.Path, name: str, codec: str, how: dict):
  how = {"count": 30, **how}
  path = write(tmp_path / name, codec, **how)
  found, count = decode.probe(path), how["count"]
  frames_THWC = video_io.read(path, fps=25, max_frames=99)
  assert numbers(frames_THWC) == list(range(count))
  assert (found.frames, found.fps, found.seconds) == (count, pytest.approx(25), pytest.approx(count / 25))
  assert frames_THWC.shape[1:3] == (found.height, found.width)
  corner = frames_THWC[count // 2, 2, 2].astype(int)
  assert corner[2] > corner[0] + 60, "upside down, or colours exchanged"


@pytest.mark.parametrize(
  ("name", "codec", "how"),
  [
    ("a.avi", "mpeg4", {}),
    ("b.avi", "mpeg4", {"b_frames": 2}),
    ("c.avi", "libx264", {"b_frames": 3}),
    ("a.mpg", "mpeg2video", {"b_frames": 2, "muxer": "vob"}),
    ("a.ts", "libx264", {"b_frames": 2}),
    ("a.m2v", "mpeg2video", {"b_frames": 2, "muxer": "mpeg2video"}),
    ("a.wmv", "wmv2", {}),
    ("a.flv", "flv", {}),
    ("a.rm", "rv10", {"size": CIF}),
    ("a.ogv", "libvpx", {}),
    ("a.mxf", "mpeg2video", {"b_frames": 2}),
  ],
)
def test_a_start_midway_gives_the_same_frames(tmp_path: pathlib.Path, name: str, codec: str, how: dict):
  path = write(tmp_path / name, codec, 200, **how)
  for start in (2.04, 3.12, 5.2):
    frames_THWC = video_io.read(path, fps=25, max_frames=3, start=start)
    assert numbers(frames_THWC) == [(round(start * 25) + k) % 32 for k in range(3)], start


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mpg", "mpeg2video"), ("a.ts", "libx264")])
@pytest.mark.parametrize("rate", ["30000/1001", "24000/1001", "50"])
def test_rates(tmp_path: pathlib.Path, name: str, codec: str, rate: str):
  path = write(tmp_path / name, codec, 60, rate=rate, b_frames=2)
  found, fps = decode.probe(path), float(fractions.Fraction(rate))
  assert (found.frames, found.fps, found.seconds) == (
    60,
    pytest.approx(fps, rel=1e-4),
    pytest.approx(60 / fps, rel=1e-3),
  )
  assert numbers(video_io.read(path, fps=fps, max_frames=99)) == [k % 32 for k in range(60)]


def parted(path: pathlib.Path, chunks: list[bytes | None], extradata: bytes) -> None:
  """An AVI of MPEG-4 chunks as they are; None leaves a frame's place empty."""
  with av.open(str(path), "w", format="avi") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
    stream.codec_context.extradata = extradata
    for index, chunk in enumerate(chunks):
      if chunk is not None:
        packet = av.Packet(chunk)
        packet.stream, packet.pts, packet.dts = stream, index, index
        packet.time_base, packet.is_keyframe = fractions.Fraction(1, 25), index == 0
        container.mux(packet)


def mpeg4_packets(count: int, b_frames: int) -> tuple[list[bytes], bytes]:
  codec = av.CodecContext.create("mpeg4", "w")
  codec.height, codec.width, codec.pix_fmt = *SIZE, "yuv420p"
  codec.time_base = fractions.Fraction(1, 25)
  codec.max_b_frames, codec.gop_size, codec.bit_rate = b_frames, 12, 2_000_000
  frames = [av.VideoFrame.from_ndarray(grey(k, *SIZE), format="rgb24").reformat(format="yuv420p") for k in range(count)]
  for index, frame in enumerate(frames):
    frame.pts, frame.time_base = index, codec.time_base
  return [bytes(packet) for frame in [*frames, None] for packet in codec.encode(frame)], codec.extradata


def test_a_packed_bitstream(tmp_path: pathlib.Path):
  """DivX puts a picture and the one that it leans on into one chunk, and a chunk that shows nothing after it."""
  packets, extradata = mpeg4_packets(31, 1)
  chunks: list[bytes | None] = []
  for packet in packets:
    if packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 == 2:  # leans on both sides
      chunks[-1] += packet
      chunks.append(b"\x7f")
    else:
      chunks.append(packet)
  chunks[0] = b"\0\0\1\xb2DivX503b1393p\0" + chunks[0]
  parted(tmp_path / "packed.avi", chunks, extradata)
  assert decode.probe(tmp_path / "packed.avi").frames == 31
  assert numbers(video_io.read(tmp_path / "packed.avi", fps=25, max_frames=99)) == list(range(31))


def test_where_frames_were_dropped_the_picture_stays(tmp_path: pathlib.Path):
  packets, extradata = mpeg4_packets(20, 0)
  parted(tmp_path / "dropped.avi", [*packets[:10], *[None] * 5, *packets[10:]], extradata)
  assert decode.probe(tmp_path / "dropped.avi").seconds == pytest.approx(1.0)
  shown = numbers(video_io.read(tmp_path / "dropped.avi", fps=25, max_frames=99))
  assert shown == [*range(10), *[9] * 5, *range(10, 20)]


@pytest.mark.parametrize("offset", [50_000, 95_443.3, 95_443.717])
def test_a_clock_that_starts_late_or_wraps(tmp_path: pathlib.Path, offset: float):
  """A transport stream counts 33 bits of 1/90,000 s: 95,443.7 s."""
  path = write(tmp_path / "late.ts", "libx264", 60, offset=offset, b_frames=2)
  assert decode.probe(path).seconds == pytest.approx(2.4)
  assert numbers(video_io.read(path, fps=25, max_frames=99)) == [k % 32 for k in range(60)]


@pytest.mark.parametrize(("name", "codec"), [("a.mpg", "mpeg1video"), ("a.ts", "mpeg2video"), ("b.ts", "libx264")])
def test_recordings_joined_end_to_end(tmp_path: pathlib.Path, name: str, codec: str):
  """The second one's clock starts anew; also where one looks for a time that both have."""
  path = write(tmp_path / name, codec, 60, b_frames=2)
  path.write_bytes(path.read_bytes() * 2)
  found = decode.probe(path)
  assert (found.frames, found.seconds) == (120, pytest.approx(4.8))
  wanted = [k % 60 % 32 for k in range(120)]
  assert numbers(video_io.read(path, fps=25, max_frames=199)) == wanted
  assert numbers(video_io.read(path, fps=25, max_frames=3, start=4.0)) == wanted[100:103]


def test_a_gap_in_the_clock_is_no_pause(tmp_path: pathlib.Path):
  first, second = write(tmp_path / "a.ts", "libx264"), write(tmp_path / "b.ts", "libx264", offset=50_000)
  (tmp_path / "c.ts").write_bytes(first.read_bytes() + second.read_bytes())
  assert decode.probe(tmp_path / "c.ts").seconds == pytest.approx(2.4)


def test_a_recording_that_begins_within_a_packet(tmp_path: pathlib.Path):
  path = write(tmp_path / "a.ts", "libx264")
  path.write_bytes(path.read_bytes()[100:])
  assert containers.kind_of(path) == "mpegts"


@pytest.mark.parametrize(
  ("name", "codec"),
  [
    ("a.avi", "mpeg4"),
    ("a.mpg", "mpeg1video"),
    ("a.ts", "libx264"),
    ("a.flv", "flv"),
    ("a.wmv", "wmv2"),
    ("a.ogv", "libvpx"),
    ("a.mxf", "mpeg2video"),
  ],
)
def test_a_cut_file_gives_what_is_left_or_one_reason(tmp_path: pathlib.Path, name: str, codec: str):
  path = write(tmp_path / name, codec)
  data = path.read_bytes()
  for percent in (5, 20, 50, 80, 99):
    path.write_bytes(data[: len(data) * percent // 100])
    try:
      found = decode.probe(path)
      frames_THWC = video_io.read(path, fps=25, max_frames=99)
    except UnreadableFile as error:
      assert "\n" not in str(error) and percent <= 50
    else:
      assert 1 <= found.frames <= 30 and abs(len(frames_THWC) - found.seconds * 25) <= 2


@pytest.mark.parametrize(
  ("content", "kind"),
  [
    (b"RIFF\0\0\0\0AVI LIST", "avi"),
    (b"RIFF\0\0\0\0CDXA", "mpeg"),
    (b"RIFF\0\0\0\0WAVE", None),
    (b"\0\0\1\xba", "mpeg"),
    (b"\0\0\1\xb3", "mpegvideo"),
    (b"\0\0\1\xe0", None),
    (b"G" + bytes(187), None),
    ((b"G" + bytes(187)) * 6, "mpegts"),
    ((bytes(4) + b"G" + bytes(187)) * 6, "mpegts"),
    (b"\0\0\0\x18ftypM4V \0\0\0\0", "mov"),
    (b"\0\0\0\x18ftyp3gp4\0\0\0\0", "mov"),
    (b"\0\0\0\x18ftypheic\0\0\0\0", None),
    (b"\x30\x26\xb2\x75", None),
  ],
)
def test_kinds(tmp_path: pathlib.Path, content: bytes, kind: str | None):
  (tmp_path / "a").write_bytes(content + bytes(300))
  if kind:
    assert containers.kind_of(tmp_path / "a") == kind
  else:
    with pytest.raises(UnreadableFile, match="^not one of mp4, .*avi"):
      containers.kind_of(tmp_path / "a")


def test_what_is_read_can_be_decoded():
  assert not [name for name in containers.CODECS - {"av1", "rawvideo"} if not decodes(name)]


def decodes(name: str) -> bool:
  try:
    av.Codec(name, "r")
  except av.codec.codec.UnknownCodecError:
    return name in {"flv1", "msmpeg4v3", "cscd", "tscc"}  # codecs of which the decoder is called otherwise
  return True


@pytest.mark.parametrize(
  ("name", "codec", "sound", "rate"),
  [
    ("a.avi", "mpeg4", "libmp3lame", 44_100),
    ("a.mpg", "mpeg1video", "mp2", 44_100),
    ("a.vob", "mpeg2video", "ac3", 48_000),
    ("a.ts", "libx264", "aac", 44_100),
    ("a.m2ts", "libx264", "ac3", 48_000),
    ("a.flv", "flv", "libmp3lame", 44_100),
    ("a.3gp", "h263", "aac", 44_100),
  ],
)
def test_sound_changes_nothing(tmp_path: pathlib.Path, name: str, codec: str, sound: str, rate: int):
  size, count = CIF if codec == "h263" else SIZE, 100
  with av.open(str(tmp_path / name), "w") as container:
    audio, video = container.add_stream(sound, rate=rate), container.add_stream(codec, rate=25)
    video.height, video.width, video.pix_fmt = *size, "yuv420p"
    context, samples = video.codec_context, audio.codec_context.frame_size or 1152
    context.gop_size, context.bit_rate, context.max_b_frames = 12, 2_000_000, 0 if codec in ("h263", "flv") else 2
    times = sorted([*((k / 25, 0) for k in range(count)), *((t / rate, 1) for t in range(0, rate * 4, samples))])
    for time, is_sound in times:
      if is_sound:
        silence = av.AudioFrame(audio.codec_context.format.name, audio.codec_context.layout.name, samples)
        for plane in silence.planes:
          plane.update(bytes(plane.buffer_size))
        silence.sample_rate, silence.pts = rate, round(time * rate)
        container.mux(audio.encode(silence))
      else:
        frame = av.VideoFrame.from_ndarray(grey(round(time * 25), *size), format="rgb24")
        container.mux(video.encode(frame.reformat(format="yuv420p")))
    container.mux([*video.encode(None), *audio.encode(None)])
  found = decode.probe(tmp_path / name)
  assert (found.frames, found.fps) == (count, pytest.approx(25, rel=1e-4))
  assert numbers(video_io.read(tmp_path / name, fps=25, max_frames=199)) == [k % 32 for k in range(count)]
