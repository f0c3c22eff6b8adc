"""Clips written as their pieces come: the bytes of the whole at once, flat memory, and nothing where they end early."""

import errno
import io
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Iterator

import av
import numpy as np
import pytest

from sora_jax import clips
from sora_jax.errors import InputError
from sora_jax.video import encoders
from sora_jax.video import io as video_io
from tests.video.io_test import smooth

ROOT = pathlib.Path(__file__).resolve().parents[2]


def cut(frames: np.ndarray, *counts: int) -> Iterator[np.ndarray]:
  yield from np.split(frames, np.cumsum(counts))


@pytest.mark.parametrize("size", [(32, 48), (31, 47)], ids=str)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp"])
def test_pieces_make_the_file_that_the_whole_makes(tmp_path: pathlib.Path, name: str, size: tuple[int, int]):
  frames = clips.from_uint8(smooth(23, *size))
  video_io.write(tmp_path / name, frames, 24)
  whole = (tmp_path / name).read_bytes()
  for counts in [(1, 8, 8), (22,), (1,) * 22]:
    video_io.write_pieces(tmp_path / name, cut(frames, *counts), 24)
    assert (tmp_path / name).read_bytes() == whole
  assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["still.png", "still.webp", "still.gif", "still.mp4"])
def test_a_piece_of_one_frame_is_a_still(tmp_path: pathlib.Path, name: str):
  video_io.write_pieces(tmp_path / name, iter([smooth(1, 16, 24)]), 24)
  assert (tmp_path / name).read_bytes() == video_io.encode(smooth(1, 16, 24), 24, name[6:])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "clip.png"])
@pytest.mark.parametrize("failure", [ValueError("no such latents"), OSError("gone"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("before", [None, b"old"])
def test_pieces_that_end_early_leave_what_was_there(tmp_path, name, failure, before):
  def broken() -> Iterator[np.ndarray]:
    yield smooth(1, 16, 16)
    raise failure

  if before:
    (tmp_path / name).write_bytes(before)
  with pytest.raises(type(failure)) as caught:
    video_io.write_pieces(tmp_path / name, broken(), 24)
  assert caught.value is failure  # as it was raised: it isn't about this file
  assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == ({name: before} if before else {})


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "clip.png"])
@pytest.mark.parametrize(
  ("pieces", "message"),
  [
    ([], "needs a frame"),
    ([smooth(1, 16, 16), smooth(1, 16, 18)], "18x16, those before it 16x16"),
    ([smooth(1, 16, 16), smooth(1, 16, 16)[0]], "T, H, W, 3"),
    ([clips.from_uint8(smooth(1, 16, 16)), np.full((1, 16, 16, 3), np.inf)], "NaN or infinity"),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_pieces_that_are_no_clip_are_named_with_the_file(tmp_path, name, pieces, message):
  with pytest.raises(ValueError, match=message) as caught:
    video_io.write_pieces(tmp_path / name, iter(pieces), 24)
  assert str(caught.value).startswith(f"{name}: ") and not list(tmp_path.iterdir())


def test_an_encoder_that_gives_up_says_of_what_size(tmp_path):
  with pytest.raises(InputError, match=r"clip.mp4: mp4 can't hold frames of 17000x8"):
    video_io.write_pieces(tmp_path / "clip.mp4", [smooth(1, 8, 17000)], 24)


@pytest.mark.parametrize("fps", [0.00028, 0.0007, 0.3, 1.0, 30_000 / 1001])
def test_a_rate_comes_back_also_where_a_frame_lasts_for_hours(tmp_path, fps):
  video_io.write(tmp_path / "x.mp4", np.zeros((3, 16, 16, 3), np.uint8), fps)
  assert video_io.probe(tmp_path / "x.mp4").fps == pytest.approx(fps, rel=2e-3)


@pytest.mark.parametrize(("name", "fps"), [("x.gif", 0.0007), ("x.webp", 0.00005)])
def test_a_frame_that_lasts_longer_than_a_format_can_say_is_refused(tmp_path, name, fps):
  with pytest.raises(InputError, match=f"{name[2:]} shows a frame for .* seconds at most"):
    video_io.write(tmp_path / name, np.zeros((3, 8, 8, 3), np.uint8), fps)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_full_disk_is_no_fault_of_the_frames(kind):
  class Full(io.BytesIO):
    def write(self, data) -> int:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with pytest.raises(OSError, match="No space") as caught:
    encoders.encode(encoders.Frames([smooth(3, 16, 16)], kind), 24, kind, Full())
  assert not isinstance(caught.value, InputError)


def test_an_aperture_is_added_behind_pixels_of_more_than_4_gib():
  data = video_io.encode(smooth(3, 32, 48), 8, "mp4")
  at = data.index(b"moov") - 4
  large = struct.pack(">I4sQ", 1, b"free", 24) + b"8 bytes."  # a box whose size has 64 bits, as such pixels have
  file = io.BytesIO(data[:at] + large + data[at:])
  encoders.add_aperture(file, (32, 48), (31, 47))
  assert b"clap" in file.getvalue()
  with av.open(io.BytesIO(file.getvalue())) as container:
    assert len(list(container.decode(video=0))) == 3


CHILD = """
import resource, sys
import numpy as np
from sora_jax.video import io as video_io
piece = np.random.default_rng(0).uniform(-1, 1, (4, 480, 641, 3)).astype(np.float32)  # an odd side has an aperture
video_io.write_pieces(sys.argv[1], (piece for _ in range(int(sys.argv[2]))), 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_memory_of_an_mp4_does_not_grow_with_its_duration(tmp_path):
  def peak(pieces: int) -> int:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "clip.mp4"), str(pieces)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, capture_output=True, env=environment, check=True).stdout)

  short, long = peak(20), peak(60)
  assert (tmp_path / "clip.mp4").stat().st_size > 40e6  # nor are its bytes held
  assert long - short < 30_000, (short, long)  # KiB: the frames between have 577,000
