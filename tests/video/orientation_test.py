"""Pixels of decoded frames: white is white at any depth, height and range, and a display matrix turns them."""

import av
import numpy as np
import pytest

from sora_jax.video import orientation
from sora_jax.video.orientation import Stored

LIMITED, FULL = 1, 2  # ranges by their numbers in FFmpeg


def flat(layout: str, bits: int, luma: int, height: int = 16, colour_range: int = LIMITED) -> av.VideoFrame:
  """A frame of one grey, `luma` of 8 bits."""
  frame = av.VideoFrame(16, height, layout)
  for index, plane in enumerate(frame.planes):
    value = (128 if index else luma) << bits - 8
    plane.update(np.full(plane.buffer_size // (2 if bits > 8 else 1), value, f"u{2 if bits > 8 else 1}").tobytes())
  frame.colorspace, frame.color_range = 1, colour_range
  return frame


@pytest.mark.parametrize("height", [16, 15])
@pytest.mark.parametrize(
  ("layout", "bits"),
  [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv422p10le", 10), ("yuv444p12le", 12), ("yuv420p12le", 12)]
  + [("gray", 8), ("gray10le", 10), ("gray12le", 12), ("gray16le", 16)],
)
def test_greys_of_a_limited_range_are_stretched_to_the_full_one(layout, bits, height):
  for luma, shown in ((0, 0), (16, 0), (126, 128), (235, 255), (255, 255)):
    pixels = orientation.pixels(Stored(flat(layout, bits, luma, height)))
    assert pixels.shape == (height, 16, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - shown).max() <= (1 if shown == 128 else 0)


@pytest.mark.parametrize(("layout", "bits"), [("yuv420p", 8), ("yuv420p10le", 10), ("gray", 8), ("gray10le", 10)])
def test_greys_of_the_full_range_stay(layout, bits):
  for luma in (0, 16, 126, 235, 255):
    pixels = orientation.pixels(Stored(flat(layout, bits, luma, colour_range=FULL)))
    assert np.abs(pixels.astype(int) - luma).max() <= 1


def test_a_matrix_turns_and_mirrors():
  stored = np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8)
  shown = lambda a, b, c, d: orientation.pixels(
    Stored(av.VideoFrame.from_ndarray(stored, format="rgb24"), (a, b, c, d))
  )
  np.testing.assert_array_equal(shown(1, 0, 0, 1), stored)
  np.testing.assert_array_equal(shown(-1, 0, 0, -1), stored[::-1, ::-1])
  np.testing.assert_array_equal(shown(0, 1, -1, 0), np.rot90(stored, -1))
  np.testing.assert_array_equal(shown(0, 1, 1, 0), stored.swapaxes(0, 1))
  np.testing.assert_array_equal(shown(9, 4, -4, 9), stored)  # to the nearest right angle


def test_arrays_are_upright_already():
  pixels = np.zeros((2, 3, 3), np.uint8)
  assert orientation.pixels(Stored(pixels)) is pixels
