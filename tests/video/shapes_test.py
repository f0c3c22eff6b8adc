"""Metadata that changes a picture: pixels that aren't square, turned files, untagged colours and edit lists."""

import fractions
import pathlib
import struct

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.video import decode
from sora_jax.video import io as video_io
from tests.faults.broken_files import four, patched
from tests.video.containers_test import numbers, write

STORED = (270, 360)


def both(path: pathlib.Path) -> tuple[int, int]:
  """(height, width) by probe, which a read agrees with."""
  found, frames_THWC = decode.probe(path), video_io.read(path, fps=5, max_frames=1)
  assert frames_THWC.shape[1:3] == (found.height, found.width)
  return found.height, found.width


@pytest.mark.parametrize(
  ("name", "codec"),
  [
    ("a.mp4", "libx264"),
    ("a.mov", "mjpeg"),
    ("a.mkv", "libx264"),
    ("a.avi", "mpeg4"),
    ("a.ts", "libx264"),
    ("a.wmv", "wmv2"),
    ("a.flv", "libx264"),
  ],
)
def test_a_video_is_shown_in_square_pixels(tmp_path: pathlib.Path, name: str, codec: str):
  pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
  path = write(tmp_path / name, codec, 3, size=STORED, aspect="4/3", pix_fmt=pix_fmt)
  assert both(path) == (270, 480)


@pytest.mark.parametrize(
  ("aspect", "shown"), [("1", (270, 360)), ("8/9", (270, 320)), ("64/45", (270, 512)), ("200", (270, 360))]
)
def test_aspects(tmp_path: pathlib.Path, aspect: str, shown: tuple[int, int]):
  assert both(write(tmp_path / "a.mp4", "libx264", 3, size=STORED, aspect=aspect)) == shown


def test_mpeg_2_states_the_shape_of_the_picture(tmp_path: pathlib.Path):
  assert both(write(tmp_path / "a.mpg", "mpeg2video", 3, size=(576, 720), aspect="64/45")) == (576, 1024)


def test_a_box_of_its_own_overrules_the_codec(tmp_path: pathlib.Path):
  path = write(tmp_path / "a.mp4", "libx264", 3, size=STORED, aspect="4/3")
  path.write_bytes(patched(path.read_bytes(), b"pasp", 4, four(16, 9)))
  assert both(path) == (270, 640)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_is_stretched_along_its_own_lines(tmp_path: pathlib.Path, rotation: int):
  with av.open(str(tmp_path / "a.mp4"), "w") as container:
    stream = container.add_stream("libx264", rate=5)
    stream.height, stream.width, stream.pix_fmt = *STORED, "yuv420p"
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(4, 3)
    stream.set_display_rotation(rotation)
    y, x = np.mgrid[: STORED[0], : STORED[1]]
    disc = np.uint8(255) * (((x - 180) * 4 / 3) ** 2 + (y - 135) ** 2 < 100**2)
    frame = av.VideoFrame.from_ndarray(np.repeat(disc[..., None], 3, -1), format="rgb24")
    container.mux([*stream.encode(frame), *stream.encode(None)])
  assert both(tmp_path / "a.mp4") == ((270, 480) if rotation == 180 else (480, 270))
  light = video_io.read(tmp_path / "a.mp4", fps=5, max_frames=1)[0].mean(-1) > 128
  assert abs(int(light.any(0).sum()) - int(light.any(1).sum())) <= 4, "a disc is round"


def test_a_size_that_is_asked_for_is_what_comes(tmp_path: pathlib.Path):
  path = write(tmp_path / "a.mp4", "libx264", 3, size=STORED, aspect="4/3")
  assert video_io.read(path, fps=5, max_frames=1, size=(27, 48)).shape == (1, 27, 48, 3)


def exif(across: float, down: float, orientation: int = 1) -> Image.Exif:
  tags = Image.Exif()
  tags[0x011A], tags[0x011B], tags[0x0128], tags[0x0112] = across, down, 2, orientation
  return tags


@pytest.mark.parametrize(
  ("name", "options", "shown"),
  [
    ("a.jpg", {"dpi": (72, 96)}, (270, 480)),
    ("a.jpg", {"dpi": (96, 72)}, (270, 270)),
    ("a.jpg", {"dpi": (300, 300)}, (270, 360)),
    ("a.png", {"dpi": (72, 96)}, (270, 480)),
    ("a.png", {"dpi": (72, 72)}, (270, 360)),
    ("a.jpg", {"exif": exif(72, 96)}, (270, 480)),
    ("a.webp", {"exif": exif(72, 96)}, (270, 480)),
    ("a.jpg", {"exif": exif(72, 96, orientation=6)}, (480, 270)),
    ("a.png", {"exif": exif(72, 96, orientation=8)}, (480, 270)),
    ("a.jpg", {"exif": exif(72, 0)}, (270, 360)),
    ("a.jpg", {"exif": exif(1, 9000)}, (270, 360)),
  ],
)
def test_an_image_is_shown_in_square_pixels(tmp_path: pathlib.Path, name: str, options: dict, shown: tuple[int, int]):
  Image.fromarray(np.zeros((*STORED, 3), np.uint8)).save(tmp_path / name, **options)
  assert both(tmp_path / name) == shown


def test_densities_without_a_unit_are_a_shape(tmp_path: pathlib.Path):
  path = tmp_path / "a.jpg"
  Image.fromarray(np.zeros((*STORED, 3), np.uint8)).save(path)
  path.write_bytes(patched(path.read_bytes(), b"JFIF\0", 7, struct.pack(">BHH", 0, 3, 4)))
  assert both(path) == (270, 480)


@pytest.mark.parametrize(
  ("height", "width", "standard"),
  [
    (480, 640, 601),
    (576, 720, 601),
    (720, 1280, 709),
    (544, 1280, 709),
    (1080, 608, 709),
    (1280, 720, 709),
    (2160, 3840, 709),
  ],
)
def test_untagged_colours_are_those_that_players_take(tmp_path: pathlib.Path, height: int, width: int, standard: int):
  """Red of either standard: BT.709's has luma 63, BT.601's 81."""
  luma, blue, red = {709: (63, 102, 240), 601: (81, 90, 240)}[standard]
  frame = av.VideoFrame(width, height, "yuv420p")
  for plane, value in zip(frame.planes, (luma, blue, red), strict=True):
    plane.update(bytes([value]) * plane.buffer_size)
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=5)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    container.mux([*stream.encode(frame), *stream.encode(None)])
  with av.open(str(path)) as container:
    assert next(container.decode(video=0)).colorspace == 2, "the test's own file has a tag"
  shown = video_io.read(path, fps=5, max_frames=1, size=(8, 8))[0, 4, 4].astype(int)
  assert np.abs(shown - [255, 0, 0]).max() <= 3, shown


def trimmed(path: pathlib.Path, count: int = 250) -> pathlib.Path:
  """An mp4 of 10 s that shows those from 2 to 6 s."""
  write(path, "libx264", count, b_frames=2)
  data = path.read_bytes()
  scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4])
  start = data.index(b"elst") + 8
  first = int.from_bytes(data[start + 8 :][:4])  # B-frames shift it
  path.write_bytes(patched(data, b"elst", 12, four(4 * 1000, first + 2 * scale)))
  return path


@pytest.mark.parametrize("larger", [0, 64 * 2**20, 5 * 2**30])
def test_an_edit_list_counts_at_any_size(tmp_path: pathlib.Path, larger: int):
  path = trimmed(tmp_path / "a.mp4")
  if larger:
    with open(path, "ab") as file:
      file.write(four(1) + b"free" + (larger + 16).to_bytes(8))
      file.truncate(file.tell() + larger)
  found = decode.probe(path)
  assert (found.frames, found.fps, found.seconds) == (100, pytest.approx(25), pytest.approx(4))
  assert numbers(video_io.read(path, fps=25, max_frames=999)) == [(50 + k) % 32 for k in range(100)]


def test_an_edit_list_counts_where_the_track_is_too_long_to_read(tmp_path: pathlib.Path, monkeypatch):
  path = trimmed(tmp_path / "a.mp4")
  monkeypatch.setattr(decode, "MAX_WALK_BYTES", 1000)
  found = decode.probe(path)
  assert (found.fps, found.seconds) == (pytest.approx(25), pytest.approx(4, abs=0.1)) and abs(found.frames - 100) <= 2


def test_a_wrong_duration_is_not_believed_either(tmp_path: pathlib.Path):
  """Of a Matroska file with 64 MiB of nothing in it."""
  path = write(tmp_path / "a.mkv", "libx264", 50)
  data = path.read_bytes()
  at = data.index(bytes.fromhex("4489")) + 3  # the duration, in milliseconds
  data = data[:at] + struct.pack(">d", 99_000.0) + data[at + 8 :]
  path.write_bytes(data + b"\xec\x01" + (64 * 2**20).to_bytes(7) + bytes(64 * 2**20))
  found = decode.probe(path)
  assert (found.frames, found.fps, found.seconds) == (50, pytest.approx(25), pytest.approx(2))
