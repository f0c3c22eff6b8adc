"""Pixels of still images in every mode, and the delays of an animation by its chunk heads alone."""

import struct

import numpy as np
import pytest
from PIL import Image

from sora_jax.data.stills import DEFAULT_DELAY, image_pixels, on_black, webp_delays

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def test_any_mode_becomes_three_channels_with_the_colours_that_it_shows():
  image = Image.fromarray(RGB)
  grey = np.asarray(image.convert("L"))[..., None].repeat(3, -1)
  np.testing.assert_array_equal(image_pixels(image), RGB)
  np.testing.assert_array_equal(image_pixels(image.convert("L")), grey)
  np.testing.assert_array_equal(image_pixels(image.convert("RGBA")), RGB)
  assert np.abs(image_pixels(image.convert("CMYK")).astype(int) - RGB).max() <= 1
  assert set(np.unique(image_pixels(image.convert("1")))) <= {0, 255}


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_to_eight_and_rounded(mode):
  values = np.array([[0, 127, 128, 129, 257, 32896, 65407, 65535]], np.uint16)
  image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
  assert image.mode == mode
  np.testing.assert_array_equal(image_pixels(image)[0, :, 0], np.rint(values[0] / 257))


def test_what_is_beyond_sixteen_bits_clips():
  image = Image.fromarray(np.array([[-5, 10**6]], np.int32))
  assert image_pixels(image)[0, :, 0].tolist() == [0, 255]


def test_alpha_lies_on_black_rounded():
  alpha = np.arange(54, dtype=np.uint8).reshape(6, 9, 1) * 4
  found = on_black(np.concatenate([RGB, alpha], -1))
  np.testing.assert_allclose(found, RGB * (alpha / 255.0), atol=0.51)
  opaque = on_black(np.concatenate([RGB, np.full_like(alpha, 255)], -1))
  np.testing.assert_array_equal(opaque, RGB)


def animation(*delays: int) -> bytes:
  frame = lambda delay: b"ANMF" + struct.pack("<I", 17) + bytes(12) + delay.to_bytes(3, "little") + bytes(2 + 1)
  body = b"WEBP" + b"XXXX" + struct.pack("<I", 0) + b"".join(map(frame, delays))
  return b"RIFF" + struct.pack("<I", len(body)) + body


def test_delays_are_those_of_the_chunk_heads(tmp_path):
  path = tmp_path / "a.webp"
  path.write_bytes(animation(40, 0, 2**24 - 1))
  assert webp_delays(path) == [40, DEFAULT_DELAY, 2**24 - 1]
  path.write_bytes(animation(40, 50)[:-15])
  assert webp_delays(path) == [40]
  for content in (b"", b"RIFF", animation(), animation(40)[:20]):
    path.write_bytes(content)
    assert webp_delays(path) == []


def test_a_chunk_of_any_stated_size_ends_the_walk(tmp_path):
  path = tmp_path / "a.webp"
  for size in (0, 1, 7, 2**31, 2**32 - 1):
    path.write_bytes(animation(40) + b"ANMF" + struct.pack("<I", size) + bytes(100))
    assert webp_delays(path)[0] == 40
