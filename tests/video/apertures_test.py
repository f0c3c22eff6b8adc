"""What a container says is not shown: clean apertures of MP4 and crops of Matroska, and damaged ones."""

import pathlib
import struct

import numpy as np
import pytest

from sora_jax.video import apertures, decode
from sora_jax.video import io as video_io
from sora_jax.video.apertures import Crop
from tests.faults.broken_files import box, element, image, matroska
from tests.video.containers_test import write

STORED = (48, 64)


def with_clap(path: pathlib.Path, *numbers: int) -> pathlib.Path:
  """An MP4 with a clean aperture in the place of what says its bit rate."""
  write(path, "libx264", 3, size=STORED, options={"crf": "1"})
  data = path.read_bytes()
  clap = box(b"clap", struct.pack(">IIIIiIiI", *numbers))
  for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
    at = data.index(name, data.index(b"moov"))
    data = data[: at - 4] + struct.pack(">I", int.from_bytes(data[at - 4 : at]) + len(clap)) + data[at:]
  at += 4 + 78
  path.write_bytes(data[:at] + clap + data[at:])
  return path


def both(path: pathlib.Path) -> tuple[int, int]:
  found, frames_THWC = decode.probe(path), video_io.read(path, fps=5, max_frames=1)
  assert frames_THWC.shape[1:3] == (found.height, found.width)
  return found.height, found.width


@pytest.mark.parametrize(
  ("numbers", "crop"),
  [
    ((56, 1, 40, 1, 0, 1, 0, 1), Crop(4, 4, 4, 4)),
    ((112, 2, 40, 1, 4, 1, -4, 1), Crop(0, 8, 8, 0)),
    ((64, 1, 48, 1, 0, 1, 0, 1), Crop()),
    ((999, 1, 40, 1, 0, 1, 0, 1), Crop()),
    ((56, 0, 40, 1, 0, 1, 0, 1), Crop()),
    ((0, 1, 0, 1, 0, 1, 0, 1), Crop()),
    ((56, 1, 40, 1, 2**31 - 1, 1, 0, 1), Crop()),
  ],
)
def test_a_clean_aperture(tmp_path: pathlib.Path, numbers: tuple, crop: Crop):
  path = with_clap(tmp_path / "a.mp4", *numbers)
  assert apertures.crop_of(path, "mov", 1, *STORED) == crop
  assert apertures.crop_of(path, "mov", 2, *STORED) == Crop(), "of another track"
  assert both(path) == (48 - crop.top - crop.bottom, 64 - crop.left - crop.right)


def test_a_crop_of_matroska_takes_the_right_sides(tmp_path: pathlib.Path):
  photo = np.zeros((*STORED, 3), np.uint8)
  photo[6:46, 8:60] = 255
  crops = element("54BB", 6) + element("54AA", 2) + element("54CC", 8) + element("54DD", 4)
  data = matroska([image("PNG", photo)] * 3, codec="V_MS/VFW/FOURCC", private=bitmap(b"MPNG"))
  video = element("E0", element("B0", STORED[1]), element("BA", STORED[0]))
  cropped = element("E0", element("B0", STORED[1]), element("BA", STORED[0]), crops)
  head, size = data.index(bytes.fromhex("1654AE6B")), len(cropped) - len(video)
  for at in (head + 4, head + 12 + 1, data.index(bytes.fromhex("18538067")) + 4):
    grown = (int.from_bytes(data[at : at + 8]) + size).to_bytes(8)
    data = data[:at] + grown + data[at + 8 :]
  (tmp_path / "a.mkv").write_bytes(data.replace(video, cropped))
  assert apertures.crop_of(tmp_path / "a.mkv", "matroska", 1, *STORED) == Crop(6, 2, 8, 4)
  assert both(tmp_path / "a.mkv") == (40, 52)
  assert (video_io.read(tmp_path / "a.mkv", fps=5, max_frames=1) == 255).all()


def bitmap(code: bytes) -> bytes:
  return struct.pack("<IiiHH4sIiiII", 40, STORED[1], STORED[0], 1, 24, code, STORED[0] * STORED[1] * 3, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["mov", "matroska", "avi"])
@pytest.mark.parametrize("content", [b"", bytes(99), b"\0\0\0\x08moov" * 3, b"\x16\x54\xae\x6b\xff\xae\x01"])
def test_nonsense_crops_nothing(tmp_path: pathlib.Path, kind: str, content: bytes):
  (tmp_path / "a").write_bytes(content)
  assert apertures.crop_of(tmp_path / "a", kind, 1, *STORED) == Crop()
