"""The frames asked for are the frames got: clips count their frames in big cells, in every container and codec."""

import bisect
import contextlib
import dataclasses
import fractions
import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data.folder import FolderSource
from sora_jax.video import io as video_io
from sora_jax.video import isolated

Fraction = fractions.Fraction
Times = Sequence[Fraction]

ROWS, COLUMNS = 3, 4
CORNERS = {0: (230, 20, 20), COLUMNS - 1: (20, 20, 230), (ROWS - 1) * COLUMNS: (20, 200, 20)}
FREE = [place for place in range(ROWS * COLUMNS) if place not in CORNERS]  # a bit of the number each
NTSC = Fraction(30000, 1001)
MILLISECOND = Fraction(1, 1000)
COUNT = 32


def cells(number: int) -> np.ndarray:
  """uint8 (cells, 3): three corners of their own colours, and the number's bits between them, white for 1."""
  flat = np.zeros((ROWS * COLUMNS, 3), np.uint8)
  for place, colour in CORNERS.items():
    flat[place] = colour
  for bit, place in enumerate(FREE):
    flat[place] = 255 * (number >> bit & 1)
  return flat


def picture(number: int, height: int, width: int) -> np.ndarray:
  rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
  return cells(number).reshape(ROWS, COLUMNS, 3)[rows][:, columns]


def counted(frames_THWC: np.ndarray) -> list[int]:
  """The number of each frame; a frame that is turned, mirrored, torn or of other colours fails."""
  height, width = frames_THWC.shape[1:3]
  middles = []
  for place in range(ROWS * COLUMNS):
    top, left = place // COLUMNS * height / ROWS, place % COLUMNS * width / COLUMNS
    rows = slice(int(top + height / ROWS / 4), int(top + height / ROWS * 3 / 4))
    columns = slice(int(left + width / COLUMNS / 4), int(left + width / COLUMNS * 3 / 4))
    middles.append(frames_THWC[:, rows, columns].mean((1, 2)))
  found = np.stack(middles, 1)
  numbers = [int(sum(1 << bit for bit, place in enumerate(FREE) if cell[place].mean() > 128)) for cell in found]
  wanted = np.stack([cells(number) for number in numbers]).astype(np.float32)
  assert np.abs(found - wanted).max() < 70, "not a picture of the counter"
  return numbers


@dataclasses.dataclass(frozen=True)
class Kind:
  """A container, a codec and what they are told."""

  name: str
  codec: str
  pix_fmt: str = "yuv420p"
  options: str = ""
  muxer: str = ""

  def __str__(self) -> str:
    return f"{self.name}-{self.codec}-{self.pix_fmt}" + (f"-{self.muxer}" if self.muxer else "")


def parse_options(text: str) -> dict[str, str]:
  return dict(each.split("=", 1) for each in text.split())


FAST_VPX = "deadline=realtime cpu-used=8 crf=10"
QUIET_265 = "x265-params=log-level=error:keyint=15:bframes=3"
B_FRAMES = "bf=3 g=15"
KINDS = [
  Kind("clip.mp4", "libx264", options=B_FRAMES),
  Kind("clip.mp4", "libx264", options=B_FRAMES, muxer="movflags=frag_keyframe+empty_moov"),
  Kind("clip.mp4", "libx264", options=B_FRAMES, muxer="movflags=negative_cts_offsets"),
  Kind("clip.mp4", "libx264", options=B_FRAMES, muxer="use_editlist=0"),
  Kind("clip.mp4", "libx264", "yuv420p10le", B_FRAMES),
  Kind("clip.mov", "libx264", "yuv444p", B_FRAMES),
  Kind("clip.mkv", "libx264", options=B_FRAMES),
  Kind("clip.mp4", "libx265", options=QUIET_265),
  Kind("clip.mkv", "libx265", "yuv420p10le", QUIET_265),
  Kind("clip.mp4", "libsvtav1", options="preset=10 crf=15"),
  Kind("clip.webm", "libsvtav1", "yuv420p10le", "preset=10 crf=15"),
  Kind("clip.webm", "libvpx-vp9", options=FAST_VPX),
  Kind("clip.mkv", "libvpx-vp9", options=FAST_VPX),
  Kind("clip.webm", "libvpx", options=FAST_VPX),
  Kind("clip.mp4", "mpeg4", options="bf=2 qscale=2"),
  Kind("clip.mkv", "mpeg4", options="bf=2 qscale=2"),
  Kind("clip.mov", "mjpeg", "yuvj420p"),
  Kind("clip.mkv", "mjpeg", "yuvj420p"),
  Kind("clip.mov", "prores_ks", "yuv422p10le"),
  Kind("clip.mkv", "ffv1", "yuv422p10le"),
  Kind("clip.mkv", "rawvideo"),
  Kind("clip.mov", "png", "rgb24"),
]
PLAIN = KINDS[0]


def some(kinds: Sequence[Kind], fast: int) -> list:
  """Kinds for a test, of which the first `fast` are in the fast suite."""
  return [*kinds[:fast], *(pytest.param(kind, marks=pytest.mark.slow) for kind in kinds[fast:])]


@contextlib.contextmanager
def same_schedule() -> Iterator[None]:
  """SVT-AV1 makes a process that may do so a real-time one, and so all that it starts, until they starve each other."""
  if not hasattr(os, "sched_setscheduler"):  # macOS
    yield
    return
  before = os.sched_getscheduler(0), os.sched_getparam(0)
  try:
    yield
  finally:
    os.sched_setscheduler(0, *before)


def write(
  path: pathlib.Path,
  kind: Kind,
  timestamps: Sequence[int],
  tick: Fraction,
  rate: Fraction,
  size: tuple[int, int] = (48, 80),
  turns: int = 0,
) -> None:
  """Frame k is shown from timestamps[k] ticks; a player is asked for `turns` quarter turns, counter-clockwise."""
  if kind.codec not in av.codecs_available:
    pytest.skip(f"this build of FFmpeg has no {kind.codec}")
  with same_schedule(), av.open(str(path), "w", options=parse_options(kind.muxer)) as container:
    stream = container.add_stream(kind.codec, rate=rate, options=parse_options(kind.options))
    stream.height, stream.width = size[::-1] if turns % 2 else size
    stream.pix_fmt = kind.pix_fmt
    stream.time_base = stream.codec_context.time_base = tick
    stream.codec_context.thread_count = 1
    if turns:
      stream.set_display_rotation(90 * turns)
    for number, timestamp in enumerate(timestamps):
      pixels = np.ascontiguousarray(np.rot90(picture(number, *size), -turns))
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=kind.pix_fmt)
      frame.pts, frame.time_base = timestamp, tick
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def on_screen(times: Times, end: float, fps: Fraction, start: Fraction) -> list[int]:
  """The plain reference: at start + k / fps, the last frame that has begun; past the end, the last frame alone."""
  seen: list[int] = []
  while not seen or start + len(seen) / fps < end - min(0.005, 0.25 / fps):
    seen.append(bisect.bisect_right(times, start + len(seen) / fps + Fraction(1, 10**7)) - 1)
  return seen


def check_reads(path: pathlib.Path, times: Times, end: float | None = None) -> None:
  """Reads at several rates from several starts what is on screen by `times`, seconds from the first frame."""
  probe = video_io.probe(path)
  assert probe.frames == len(times)
  if end is None:  # the last frame's own time is the container's to say
    end = probe.seconds
    assert end > times[-1]
  assert probe.seconds == pytest.approx(end, abs=0.002)
  assert probe.fps == pytest.approx((len(times) - 1) / float(times[-1]), rel=1e-4)
  native = 1 / times[1]
  rates = (native, native / 2, Fraction(8), Fraction(24), Fraction(25, 2))
  starts = (Fraction(0), times[len(times) // 2], times[-2], times[-1] + 7)
  for start in starts:
    for fps in rates if start in starts[:2] else rates[:1]:
      got = counted(video_io.read(path, fps=float(fps), max_frames=999, start=float(start)))
      assert got == on_screen(times, end, fps, start), (float(fps), float(start))


def even(rate: Fraction, count: int = COUNT) -> list[Fraction]:
  return [k / rate for k in range(count)]


class TestConstantRate:
  @pytest.mark.parametrize("kind", KINDS, ids=str)
  def test_every_container_and_codec_at_a_rate_that_few_clocks_divide(self, tmp_path, kind):
    """29.97 a second: timestamps in milliseconds waver by half of one."""
    write(tmp_path / kind.name, kind, range(COUNT), 1 / NTSC, NTSC)
    check_reads(tmp_path / kind.name, even(NTSC), float(COUNT / NTSC))

  @pytest.mark.parametrize("rate", [Fraction(30), Fraction(60), Fraction(24000, 1001), Fraction(73, 10)], ids=str)
  @pytest.mark.parametrize("kind", some([KINDS[5], KINDS[11], KINDS[15]], 1), ids=str)
  def test_other_rates_at_an_odd_size(self, tmp_path, kind, rate):
    write(tmp_path / kind.name, kind, range(COUNT), 1 / rate, rate, size=(49, 81))
    check_reads(tmp_path / kind.name, even(rate), float(COUNT / rate))

  @pytest.mark.parametrize("kind", [PLAIN, KINDS[6], KINDS[11]], ids=str)
  def test_far_seeks_to_few_keyframes(self, tmp_path, kind):
    """Open groups, so that a seek lands beside frames that lean on others."""
    options = "bf=3 x264-params=open-gop=1:keyint=50" if kind.codec == "libx264" else kind.options
    write(tmp_path / kind.name, dataclasses.replace(kind, options=options), range(240), 1 / NTSC, NTSC)
    check_reads(tmp_path / kind.name, even(NTSC, 240), float(240 / NTSC))

  def test_whole_hundredths_in_a_gif(self, tmp_path):
    kind = Kind("clip.gif", "gif", "rgb8")
    for rate in (Fraction(25), Fraction(50)):
      write(tmp_path / kind.name, kind, range(COUNT), 1 / rate, rate)
      check_reads(tmp_path / kind.name, even(rate), float(COUNT / rate))

  @pytest.mark.parametrize("rate", [Fraction(30), NTSC, Fraction(60)], ids=str)
  def test_milliseconds_in_a_webp(self, tmp_path, rate):
    timestamps = [round(1000 * time) for time in even(rate, COUNT + 1)]
    first, *rest = [Image.fromarray(picture(number, 48, 80)) for number in range(COUNT)]
    delays = [after - before for before, after in zip(timestamps, timestamps[1:], strict=False)]
    first.save(tmp_path / "clip.webp", save_all=True, append_images=rest, duration=delays, lossless=True)
    check_reads(tmp_path / "clip.webp", even(rate), float(COUNT / rate))


class TestVariableRate:
  @pytest.mark.parametrize(
    "kind", some([*KINDS[:3], KINDS[11], *KINDS[3:7], *KINDS[8:11], KINDS[15], KINDS[20]], 4), ids=str
  )
  def test_stamps_at_random_from_a_start_of_their_own(self, tmp_path, kind):
    steps = np.random.default_rng(len(str(kind))).integers(17, 300, COUNT - 1)
    timestamps = [0, *np.cumsum(steps).tolist()]
    write(tmp_path / kind.name, kind, [1234 + timestamp for timestamp in timestamps], MILLISECOND, Fraction(30))
    check_reads(tmp_path / kind.name, [timestamp * MILLISECOND for timestamp in timestamps])

  def test_delays_of_a_gif(self, tmp_path):
    timestamps = np.cumsum([0, *np.random.default_rng(1).integers(2, 30, COUNT - 1)]).tolist()
    write(tmp_path / "clip.gif", Kind("clip.gif", "gif", "rgb8"), timestamps, Fraction(1, 100), Fraction(30))
    check_reads(tmp_path / "clip.gif", [Fraction(timestamp, 100) for timestamp in timestamps])

  @pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
  def test_a_recording_that_pauses(self, tmp_path, name):
    """30 a second for a second, nothing for two, and on at 30: the rate is constant as far as it goes."""
    timestamps = [*range(30), *range(90, 90 + COUNT)]
    write(tmp_path / name, Kind(name, "libx264", options=B_FRAMES), timestamps, Fraction(1, 30), Fraction(30))
    check_reads(tmp_path / name, [Fraction(timestamp, 30) for timestamp in timestamps])


def copy_packets(source: pathlib.Path, path: pathlib.Path, change: Callable[[int, av.Packet], bool]) -> None:
  """Writes the packets that `change` says yes to, as it has changed them."""
  with av.open(str(source)) as old, av.open(str(path), "w") as new:
    stream = new.add_stream_from_template(old.streams.video[0])
    for number, packet in enumerate(old.demux(video=0)):
      if packet.dts is not None and change(number, packet):
        packet.stream = stream
        new.mux(packet)


class TestStampsThatMislead:
  @pytest.mark.parametrize("offset", [17, 100_000])
  @pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv"])
  def test_time_counts_from_the_first_frame(self, tmp_path, name, offset):
    write(tmp_path / name, Kind(name, "libx264", options=B_FRAMES), range(offset, offset + COUNT), 1 / NTSC, NTSC)
    check_reads(tmp_path / name, even(NTSC), float(COUNT / NTSC))

  def test_a_start_before_zero_in_a_container_without_edit_lists(self, tmp_path):
    write(tmp_path / "clip.mkv", KINDS[6], range(-9, COUNT - 9), 1 / NTSC, NTSC)
    check_reads(tmp_path / "clip.mkv", even(NTSC), float(COUNT / NTSC))

  def test_what_an_edit_list_cuts_is_not_shown(self, tmp_path):
    """Frames before zero go into an edit list; the first that is shown is no keyframe."""
    write(tmp_path / "clip.mp4", PLAIN, range(-9, COUNT - 9), 1 / NTSC, NTSC)
    probe = video_io.probe(tmp_path / "clip.mp4")
    assert probe.frames == COUNT - 9
    for start in (0, 5):
      got = counted(video_io.read(tmp_path / "clip.mp4", fps=float(NTSC), max_frames=99, start=float(start / NTSC)))
      assert got == list(range(9 + start, COUNT))

  @pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
  @pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
  def test_stamps_of_decoding_in_the_place_of_those_of_showing(self, tmp_path, name, codec):
    """Frames are decoded in another order than they are shown in, and the file says the first alone."""

    def forget(number: int, packet: av.Packet) -> bool:
      packet.dts += int(1 / packet.time_base)
      packet.pts = packet.dts
      return True

    options = {"libx264": B_FRAMES, "libx265": QUIET_265, "mpeg4": "bf=2 qscale=2"}[codec]
    write(tmp_path / "whole.mp4", Kind("whole.mp4", codec, options=options), range(COUNT), 1 / NTSC, Fraction(30))
    copy_packets(tmp_path / "whole.mp4", tmp_path / name, forget)
    check_reads(tmp_path / name, even(NTSC))

  def test_milliseconds_that_were_copied_to_a_finer_clock(self, tmp_path):
    def round_timestamps(number: int, packet: av.Packet) -> bool:
      base = packet.time_base
      packet.pts, packet.dts = round(packet.pts * base * 1000), round(packet.dts * base * 1000)
      packet.duration, packet.time_base = 33, MILLISECOND
      return True

    write(tmp_path / "whole.mp4", PLAIN, range(COUNT), 1 / NTSC, NTSC)
    copy_packets(tmp_path / "whole.mp4", tmp_path / "clip.mp4", round_timestamps)
    check_reads(tmp_path / "clip.mp4", even(NTSC))

  def test_a_file_that_was_cut_off_a_keyframe_begins_at_its_first_whole_picture(self, tmp_path):
    write(tmp_path / "whole.mp4", PLAIN, range(COUNT), 1 / NTSC, NTSC)
    copy_packets(tmp_path / "whole.mp4", tmp_path / "clip.mp4", lambda number, packet: number >= 5)
    assert video_io.probe(tmp_path / "clip.mp4").frames == COUNT - 15
    assert counted(video_io.read(tmp_path / "clip.mp4", fps=float(NTSC), max_frames=99)) == list(range(15, COUNT))


def element(identifier: str, *content: bytes) -> bytes:
  whole = b"".join(content)
  return bytes.fromhex(identifier) + (1 << 56 | len(whole)).to_bytes(8) + whole


def number(value: int) -> bytes:
  return value.to_bytes(8)


def matroska(blocks: Sequence[tuple[int, bytes]], codec: str, private: bytes, frame_ns: int, seconds: float) -> bytes:
  """A file of one cluster; `blocks` are (milliseconds, packet), a negative time marking one that is no keyframe."""
  video = element("E0", element("B0", number(80)), element("BA", number(48)))
  rate = element("23E383", number(frame_ns)) if frame_ns else b""
  track = element(
    "AE",
    *(element("D7", number(1)), element("73C5", number(1)), element("83", number(1)), rate),
    *(element("86", codec.encode()), element("63A2", private), video),
  )
  data = [element("A3", b"\x81", struct.pack(">hB", abs(at), 0x80 * (at >= 0)), packet) for at, packet in blocks]
  return element("1A45DFA3", element("4282", b"matroska")) + element(
    "18538067",
    element("1549A966", element("2AD7B1", number(10**6)), element("4489", struct.pack(">d", seconds * 1000))),
    element("1654AE6B", track),
    element("1F43B675", element("E7", number(0)), *data),
  )


def encoded(codec: str, pix_fmt: str, bframes: int = 0) -> list[av.Packet]:
  context = av.CodecContext.create(codec, "w")
  context.height, context.width, context.pix_fmt, context.time_base = 48, 80, pix_fmt, Fraction(1, 30)
  context.framerate, context.options, context.max_b_frames = Fraction(30), {"qscale": "2"}, bframes
  packets = []
  for k in range(COUNT):
    frame = av.VideoFrame.from_ndarray(picture(k, 48, 80), format="rgb24").reformat(format=pix_fmt)
    frame.pts, frame.time_base = k, Fraction(1, 30)
    packets += context.encode(frame)
  return packets + context.encode(None)


class TestHeadersThatMislead:
  def test_no_stamps_of_showing_at_all(self, tmp_path):
    """As AVI had it: blocks are stamped by decoding, and the demuxer says so."""
    private = struct.pack("<IiiHH4sIiiII", 40, 80, 48, 1, 24, b"XVID", 80 * 48 * 3, 0, 0, 0, 0)
    packets = encoded("mpeg4", "yuv420p", 2)
    blocks = [(round(k * 1000 / 30) * (1 if each.is_keyframe else -1), bytes(each)) for k, each in enumerate(packets)]
    (tmp_path / "clip.mkv").write_bytes(matroska(blocks, "V_MS/VFW/FOURCC", private, 0, COUNT / 30))
    check_reads(tmp_path / "clip.mkv", even(Fraction(30)))

  @pytest.mark.parametrize("claimed", [0, 10**9 // 25, 10**9 // 60, 10**9, 10**5])
  @pytest.mark.parametrize("seconds", [0.001, 3600.0])
  def test_a_claimed_rate_and_duration_yield_to_the_timestamps(self, tmp_path, claimed, seconds):
    blocks = [(round(k * 1000 / 30), bytes(each)) for k, each in enumerate(encoded("mjpeg", "yuvj420p"))]
    (tmp_path / "clip.mkv").write_bytes(matroska(blocks, "V_MJPEG", b"", claimed, seconds))
    got = counted(video_io.read(tmp_path / "clip.mkv", fps=15.0, max_frames=99))
    assert got[:-1] == list(range(0, COUNT, 2))[: len(got) - 1] and len(got) >= COUNT // 2
    assert video_io.probe(tmp_path / "clip.mkv").fps == pytest.approx(30, rel=1e-4)

  def test_an_empty_packet_leaves_the_picture_on_screen(self, tmp_path):
    blocks = [(round(k * 1000 / 30), bytes(each)) for k, each in enumerate(encoded("mjpeg", "yuvj420p"))]
    blocks[10] = (blocks[10][0], b"")
    (tmp_path / "clip.mkv").write_bytes(matroska(blocks, "V_MJPEG", b"", 0, COUNT / 30))
    got = counted(video_io.read(tmp_path / "clip.mkv", fps=30.0, max_frames=99))
    assert got == [*range(10), 9, *range(11, COUNT)]


class TestTurned:
  @pytest.mark.parametrize("turns", [1, 2, 3])
  @pytest.mark.parametrize("kind", some([PLAIN, KINDS[6], KINDS[18]], 1), ids=str)
  def test_frames_come_upright_after_any_seek(self, tmp_path, kind, turns):
    write(tmp_path / kind.name, kind, range(100), 1 / NTSC, NTSC, size=(48, 80), turns=turns)
    probe = video_io.probe(tmp_path / kind.name)
    assert (probe.height, probe.width) == (48, 80)
    check_reads(tmp_path / kind.name, even(NTSC, 100), float(100 / NTSC))


class TestB02:
  """Variable rate, no timestamps, turned, a wrong count of frames: the counters of what training gets are exact."""

  def test_clips_of_a_folder_at_their_own_and_at_one_rate(self, tmp_path):
    vfr = np.cumsum([0, *np.random.default_rng(5).integers(17, 300, COUNT - 1)]).tolist()
    write(tmp_path / "constant.mp4", PLAIN, range(COUNT), 1 / NTSC, NTSC)
    write(tmp_path / "sixty.webm", KINDS[11], range(COUNT), Fraction(1, 60), Fraction(60), size=(49, 81))
    write(tmp_path / "turned.mov", Kind("turned.mov", "libx264"), range(COUNT), 1 / NTSC, NTSC, turns=3)
    write(tmp_path / "varies.mkv", KINDS[6], vfr, MILLISECOND, Fraction(30))
    blocks = [(round(k * 1000 / 30), bytes(each)) for k, each in enumerate(encoded("mjpeg", "yuvj420p"))]
    (tmp_path / "claims.mkv").write_bytes(matroska(blocks, "V_MJPEG", b"", 10**9 // 50, 3600.0))
    rates = {"constant.mp4": NTSC, "sixty.webm": Fraction(60), "turned.mov": NTSC, "claims.mkv": Fraction(30)}
    names = [*rates, "varies.mkv"]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps({"file": n, "caption": n}) + "\n" for n in names))
    native, slow = (FolderSource(tmp_path, fps=fps, max_frames=999) for fps in (0.0, 8.0))
    assert not native.dropped
    for index, name in enumerate(names):
      times = even(rates[name]) if name in rates else [timestamp * MILLISECOND for timestamp in vfr]
      own, eight = (counted((source[index].frames_THWC + 1) * 127.5) for source in (native, slow))
      assert eight == on_screen(times, video_io.probe(tmp_path / name).seconds, Fraction(8), Fraction(0))
      if name in rates:
        assert own == list(range(COUNT)) and native.fps(index) == pytest.approx(float(rates[name]), rel=1e-4)

  def test_the_decoder_s_process_gives_the_same(self, tmp_path):
    write(tmp_path / "clip.mkv", KINDS[6], range(COUNT), 1 / NTSC, NTSC)
    for start in (0.0, 0.7):
      read = isolated.shared().read(tmp_path / "clip.mkv", fps=24.0, max_frames=99, start=start)
      assert counted(read) == counted(video_io.read(tmp_path / "clip.mkv", fps=24.0, max_frames=99, start=start))
      assert len(set(counted(read))) >= 8
