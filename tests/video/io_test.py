"""Frames by time, to the number; what is written comes back."""

import base64
import fractions
import io
import math
import os
import pathlib

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_jax import clips
from sora_jax.video import decode
from sora_jax.video import io as video_io

MILLISECOND = fractions.Fraction(1, 1000)


def numbered(count: int) -> np.ndarray:
  """uint8 (count, 32, 128, 3); frame k holds k in binary as 8 big cells, white is 1."""
  bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
  rows = np.repeat(bits * 255, 16, axis=1).astype(np.uint8)
  return np.broadcast_to(rows[:, None, :, None], (count, 32, 128, 3))


def numbers(frames_THWC: np.ndarray) -> list[int]:
  """The numbers that `numbered` put in."""
  bits = frames_THWC[:, 16, 8::16, 0] > 128
  return (bits << np.arange(8)).sum(axis=1).tolist()


def smooth(count: int, height: int, width: int) -> np.ndarray:
  """uint8 (count, height, width, 3) of soft moving colours."""
  t, y, x = np.mgrid[:count, :height, :width].astype(np.float32)
  waves = [np.sin(x / 23 + t / 7), np.cos(y / 17 - t / 9), np.sin((x + y) / 31 + t / 5)]
  return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  error = np.mean((a.astype(np.float64) - b) ** 2)
  return 10 * math.log10(255**2 / error) if error else math.inf


def mux(
  path: pathlib.Path,
  pts: list[int],
  time_base: fractions.Fraction,
  rate: fractions.Fraction | int = 30,
  **options: str,
) -> None:
  """Writes numbered frames at the given timestamps, by x264 with B-frames where the options ask for them."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "g": "12"} | options)
    stream.height, stream.width, stream.pix_fmt = 32, 128, "yuv420p"
    stream.time_base = stream.codec_context.time_base = time_base
    stream.codec_context.thread_count = 1
    for timestamp, pixels in zip(pts, numbered(len(pts)), strict=True):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format="yuv420p")
      frame.pts, frame.time_base = timestamp, time_base
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def plan(times: list[float], end: float, fps: float, max_frames: int, start: float = 0.0) -> list[int]:
  """The rule in its plainest form: the last frame that has begun, up to the end."""
  wanted = [start + k / fps for k in range(max_frames)]
  begun = [sum(time <= want + 1e-6 for time in times) - 1 for want in wanted if want < end - 5e-3]
  return begun or [len(times) - 1]


TARGETS = [1.0, 7.0, 12.5, 24.0, 29.97, 30.0, 48.0, 60.0]


class TestSampling:
  @pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv"])
  @pytest.mark.parametrize("rate", [fractions.Fraction(24), fractions.Fraction(30000, 1001)])
  @pytest.mark.parametrize("bframes", ["0", "3"])
  def test_constant_rate(self, tmp_path: pathlib.Path, name: str, rate: fractions.Fraction, bframes: str):
    path = tmp_path / name
    mux(path, list(range(50)), 1 / rate, rate, bf=bframes)
    times = [k / float(rate) for k in range(50)]
    for fps in TARGETS:
      got = numbers(video_io.read(path, fps=fps, max_frames=90))
      assert got == plan(times, 50 / float(rate), fps, 90)
    probe = video_io.probe(path)
    assert (probe.height, probe.width, probe.frames) == (32, 128, 50)
    assert probe.fps == pytest.approx(float(rate), rel=1e-6)
    assert probe.seconds == pytest.approx(50 / float(rate), abs=0.002)
    assert numbers(video_io.read(path, fps=probe.fps, max_frames=99)) == list(range(50))

  @pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
  @pytest.mark.parametrize("offset", [0, 12345])
  def test_variable_rate(self, tmp_path: pathlib.Path, name: str, offset: int):
    """17 to 700 ms between frames, from the first frame on: the file's own zero doesn't count."""
    path = tmp_path / name
    steps = np.random.default_rng(3).integers(17, 700, 39)
    timestamps = [0, *np.cumsum(steps).tolist()]
    mux(path, [offset + timestamp for timestamp in timestamps], MILLISECOND, bf="2")
    probe = video_io.probe(path)
    assert probe.frames == 40 and probe.fps == pytest.approx(39 / (timestamps[-1] / 1000), rel=1e-3)
    for fps in TARGETS:
      got = numbers(video_io.read(path, fps=fps, max_frames=2000))
      assert got == plan([timestamp / 1000 for timestamp in timestamps], probe.seconds, fps, 2000)

  @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
  @given(
    steps=st.lists(st.integers(5, 400), min_size=0, max_size=30),
    fps=st.floats(0.5, 120),
    start=st.floats(0, 6),
    max_frames=st.integers(1, 64),
  )
  def test_any_timestamps(self, tmp_path: pathlib.Path, steps: list[int], fps: float, start: float, max_frames: int):
    path = tmp_path / "clip.mkv"
    timestamps = [0, *np.cumsum(steps, dtype=int).tolist()]
    mux(path, timestamps, MILLISECOND)
    probe = video_io.probe(path)
    got = numbers(video_io.read(path, fps=fps, max_frames=max_frames, start=start))
    assert got == sorted(got) and len(got) == video_io.frame_count(probe.seconds - start, fps, max_frames)
    times = [timestamp / 1000 for timestamp in timestamps]
    for k, number in enumerate(
      got[:-1]
    ):  # a timestamp that may have been rounded may stand for half a tick more or less
      want = start + k / fps
      assert times[number] <= want + 0.00051 and (number + 1 == len(times) or times[number + 1] > want - 0.00051)

  def test_start_by_seek_equals_start_from_the_head(self, tmp_path: pathlib.Path):
    """Open groups with B-frames, where a seek lands between; also in a file that nothing can be sought in."""
    times = [k / 30 for k in range(240)]
    for name in ("clip.mp4", "clip.mkv"):
      mux(tmp_path / name, list(range(240)), fractions.Fraction(1, 30), bf="3", **{"x264-params": "open-gop=1"})
      for start in (0.5, 2.5, 3.21, 5.0, 7.9, 20.0):
        got = numbers(video_io.read(tmp_path / name, fps=30, max_frames=12, start=start))
        assert got == plan(times, 8.0, 30, 12, start)

  def test_a_seek_needs_no_more_than_its_part(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    mux(tmp_path / "clip.mp4", list(range(240)), fractions.Fraction(1, 30))
    monkeypatch.setattr(decode, "MAX_FRAMES", 80)
    assert numbers(video_io.read(tmp_path / "clip.mp4", fps=30, max_frames=2, start=7.0)) == [210, 211]

  def test_gif_delays(self, tmp_path: pathlib.Path):
    """Mixed delays; one of 0 is shown as players do, for 100 ms."""
    delays = [40, 120, 0, 250, 40, 70, 500]
    first, *rest = [Image.fromarray(frame) for frame in numbered(len(delays))]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest, duration=delays, loop=0)
    shown = [delay or 100 for delay in delays]
    probe = video_io.probe(tmp_path / "clip.gif")
    assert probe.frames == 7 and probe.seconds == pytest.approx(sum(shown) / 1000)
    times = [sum(shown[:k]) / 1000 for k in range(7)]
    for fps in (4.0, 10.0, 25.0, 100.0):
      assert numbers(video_io.read(tmp_path / "clip.gif", fps=fps, max_frames=500)) == plan(
        times, sum(shown) / 1000, fps, 500
      )

  def test_size_and_arguments(self, tmp_path: pathlib.Path):
    path = tmp_path / "clip.mp4"
    video_io.write(path, smooth(6, 48, 64), 10)
    small = video_io.read(path, fps=10, max_frames=4, size=(24, 32))
    assert small.shape == (4, 24, 32, 3)
    assert psnr(small, smooth(6, 48, 64)[:4].reshape(4, 24, 2, 32, 2, 3).mean((2, 4))) > 30
    for bad in ({"fps": 0}, {"fps": math.nan}, {"max_frames": 0}, {"start": -1.0}, {"start": math.inf}):
      with pytest.raises(ValueError, match="read needs") as caught:
        video_io.read(path, **({"fps": 10, "max_frames": 4} | bad))
      assert not isinstance(caught.value, video_io.UnreadableFile)

  def test_memory_is_bounded(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    video_io.write(tmp_path / "clip.mp4", smooth(6, 48, 64), 10)
    monkeypatch.setattr(video_io, "MAX_BYTES", 3 * 48 * 64 * 3)
    assert len(video_io.read(tmp_path / "clip.mp4", fps=10, max_frames=3)) == 3
    with pytest.raises(video_io.UnreadableFile, match="ask for fewer"):
      video_io.read(tmp_path / "clip.mp4", fps=10, max_frames=4)


class TestWrite:
  @pytest.mark.parametrize("size", [(96, 128), (95, 127), (96, 127), (2, 2), (1, 1), (17, 400)])
  @pytest.mark.parametrize("count", [1, 12])
  @pytest.mark.parametrize("name", ["clip.mp4", "clip.webp", "clip.gif"])
  def test_round_trip(self, tmp_path: pathlib.Path, name: str, count: int, size: tuple[int, int]):
    frames = smooth(count, *size)
    video_io.write(tmp_path / name, frames, 24)
    probe = video_io.probe(tmp_path / name)
    assert (probe.height, probe.width) == size
    back = video_io.read(tmp_path / name, fps=24, max_frames=99)
    assert back.shape == frames.shape
    if min(size) > 16:
      assert psnr(back, frames) > {"mp4": 35, "webp": 33, "gif": 26}[name[5:]]
    if name == "clip.mp4" or count > 1:
      assert probe.seconds == pytest.approx(count / 24, abs=0.006)

  @pytest.mark.parametrize("size", [(23, 43), (24, 43), (23, 44), (1, 1), (1, 30)], ids=str)
  def test_an_odd_mp4_is_stored_even_in_4_2_0_and_read_as_it_was(self, tmp_path: pathlib.Path, size: tuple[int, int]):
    path, frames = tmp_path / "odd.mp4", smooth(3, *size)
    video_io.write(path, frames, 8)
    with av.open(str(path)) as container:
      stored = container.streams.video[0]
      assert stored.pix_fmt == "yuv420p"
      assert (stored.height, stored.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    probe = video_io.probe(path)
    assert (probe.height, probe.width, probe.frames) == (*size, 3)
    back = video_io.read(path, fps=8, max_frames=9)
    assert back.shape == frames.shape and np.abs(back.astype(int) - frames).mean() < 6

  def test_an_even_mp4_says_nothing_of_its_pixels(self, tmp_path: pathlib.Path):
    video_io.write(tmp_path / "even.mp4", smooth(3, 24, 44), 8)
    assert b"clap" not in (tmp_path / "even.mp4").read_bytes()

  def test_one_frame_is_exact(self, tmp_path: pathlib.Path):
    noise = np.random.default_rng(0).integers(0, 256, (1, 33, 47, 3), np.uint8)
    for name in ("still.png", "still.webp", "STILL.PNG"):
      video_io.write(tmp_path / name, noise, 24)
      assert (video_io.read(tmp_path / name, fps=24, max_frames=9) == noise).all()
      assert video_io.probe(tmp_path / name) == video_io.Probe(33, 47, 0.0, 0.0, 1)

  @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
  def test_floats(self, tmp_path: pathlib.Path, dtype: type):
    frames = smooth(1, 16, 16)
    video_io.write(tmp_path / "still.png", clips.from_uint8(frames).astype(dtype), 24)
    back = video_io.read(tmp_path / "still.png", fps=24, max_frames=1)
    assert np.abs(back.astype(int) - frames).max() <= (dtype == np.float16)

  @pytest.mark.parametrize("fps", [1.0, 7.3, 23.976, 30000 / 1001, 50.0, 60.0])
  @pytest.mark.parametrize("name", ["clip.mp4", "clip.webp", "clip.gif"])
  def test_rates(self, tmp_path: pathlib.Path, name: str, fps: float):
    """The total time is kept; each frame comes back in its place, unless a gif can't be that fast."""
    video_io.write(tmp_path / name, numbered(40), fps)
    assert video_io.probe(tmp_path / name).seconds == pytest.approx(40 / fps, abs=0.006)
    got = numbers(video_io.read(tmp_path / name, fps=fps, max_frames=99))
    assert len(got) == 40
    slip = 1 if name == "clip.gif" and fps > 50 else 0
    assert max(abs(number - k) for k, number in enumerate(got)) <= slip

  def test_bytes_are_the_same_each_time(self):
    frames = smooth(8, 64, 96)
    for kind in ("mp4", "webp", "gif"):
      assert len({video_io.encode_data_uri(frames, 24, kind) for _ in range(12)}) == 1

  def test_colours_are_tagged(self, tmp_path: pathlib.Path):
    pure = np.zeros((3, 32, 48, 3), np.uint8)
    pure[0, ..., 0] = pure[1, ..., 1] = pure[2, ..., 2] = 255
    video_io.write(tmp_path / "clip.mp4", pure, 10)
    assert np.abs(video_io.read(tmp_path / "clip.mp4", fps=10, max_frames=3).astype(int) - pure).max() < 8
    with av.open(str(tmp_path / "clip.mp4")) as container:
      frame = next(container.decode(video=0))
      assert (frame.colorspace, frame.color_range, frame.color_primaries) == (1, 1, 1)

  @pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
      ("clip.avi", np.zeros((1, 8, 8, 3), np.uint8), 24, ".mp4, .gif, .webp or .png"),
      ("clip", np.zeros((1, 8, 8, 3), np.uint8), 24, ".mp4, .gif, .webp or .png"),
      ("clip.png", np.zeros((2, 8, 8, 3), np.uint8), 24, "2 frames: use .mp4"),
      ("clip.mp4", np.zeros((8, 8, 3), np.uint8), 24, "T, H, W, 3"),
      ("clip.mp4", np.zeros((0, 8, 8, 3), np.uint8), 24, "no side 0"),
      ("clip.mp4", np.zeros((1, 8, 8, 4), np.uint8), 24, "T, H, W, 3"),
      ("clip.mp4", np.zeros((1, 8, 8, 3), np.int32), 24, "int32"),
      ("clip.mp4", np.full((1, 8, 8, 3), np.nan), 24, "NaN"),
      ("clip.mp4", np.zeros((1, 8, 8, 3), np.uint8), 0, "fps"),
      ("clip.webp", np.zeros((1, 8, 17000, 3), np.uint8), 24, "17000x8"),
      ("clip.mp4", np.zeros((1, 8, 17000, 3), np.uint8), 24, "17000x8"),
    ],
  )
  def test_refused(self, tmp_path: pathlib.Path, name: str, frames: np.ndarray, fps: float, message: str):
    with pytest.raises(ValueError, match=message) as caught:
      video_io.write(tmp_path / name, frames, fps)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not list(tmp_path.iterdir())

  def test_a_failed_write_keeps_the_old_file(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "clip.png"
    video_io.write(path, smooth(1, 8, 8), 24)
    before = path.read_bytes()

    def fail(*names):
      raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
      video_io.write(path, smooth(1, 9, 9), 24)
    assert [each.name for each in tmp_path.iterdir()] == ["clip.png"] and path.read_bytes() == before

  @pytest.mark.parametrize("kind", ["webp", "png", "mp4", "gif"])
  def test_data_uri(self, tmp_path: pathlib.Path, kind: str):
    frames = smooth(1 if kind == "png" else 3, 16, 24)
    head, _, body = video_io.encode_data_uri(frames, 8, kind).partition(",")
    assert head == f"data:{'video' if kind == 'mp4' else 'image'}/{kind};base64"
    data = base64.b64decode(body, validate=True)
    video_io.write(tmp_path / f"clip.{kind}", frames, 8)
    assert data == (tmp_path / f"clip.{kind}").read_bytes()
    if kind != "mp4":
      assert Image.open(io.BytesIO(data)).size == (24, 16)

  def test_unknown_data_uri(self):
    with pytest.raises(ValueError, match="svg"):
      video_io.encode_data_uri(smooth(1, 8, 8), 8, "svg")
