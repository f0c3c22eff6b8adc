"""Pixels of still images in every mode, and the delays of an animation by its chunk heads alone."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from sora_jax.video import stills
from sora_jax.video.stills import DEFAULT_DELAY, image_pixels, on_black, webp_delays

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


def swapping_profile(name: bytes, swaps: int = 1) -> bytes:
  """sRGB with red and blue in each other's place, under another name."""
  profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
  red, blue = (profile.index(tag, 128) + 4 for tag in (b"rXYZ", b"bXYZ"))
  for _ in range(swaps):
    profile[red : red + 8], profile[blue : blue + 8] = profile[blue : blue + 8], profile[red : red + 8]
  for code in ("ascii", "utf-16-be"):
    profile = profile.replace("sRGB".encode(code), name.decode().encode(code))
  return bytes(profile)


def saved(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return Image.open(buffer)


def test_a_colour_profile_is_followed_in_every_mode_that_it_is_for():
  profile, image = swapping_profile(b"BGRs"), Image.fromarray(RGB)
  swapped, half = RGB[..., ::-1].astype(int), Image.new("L", image.size, 128)
  assert np.abs(image_pixels(saved(image, icc_profile=profile)) - swapped).max() <= 1
  assert np.abs(image_pixels(saved(image, "WEBP", lossless=True, icc_profile=profile)) - swapped).max() <= 1
  few = Image.fromarray(RGB // 128 * 255).quantize(8)
  colours = np.asarray(few.convert("RGB"))[..., ::-1].astype(int)
  assert np.abs(image_pixels(saved(few, icc_profile=profile)) - colours).max() <= 1
  see_through = image.copy()
  see_through.putalpha(half)
  assert np.abs(image_pixels(saved(see_through, icc_profile=profile)) - swapped * 128 / 255).max() <= 2


@pytest.mark.parametrize(
  "profile", [swapping_profile(b"sRGB", 0), b"noise" * 40, swapping_profile(b"BGRs")[:300], b"\0"]
)
def test_a_profile_of_srgb_or_of_no_sense_changes_nothing(profile):
  np.testing.assert_array_equal(image_pixels(saved(Image.fromarray(RGB), icc_profile=profile)), RGB)


def test_a_profile_that_only_says_srgb_is_followed():
  """As phones' do: "Display P3 Gamut with sRGB Transfer"."""
  followed = image_pixels(saved(Image.fromarray(RGB), icc_profile=swapping_profile(b"BGRs")))
  np.testing.assert_array_equal(
    image_pixels(saved(Image.fromarray(RGB), icc_profile=swapping_profile(b"sRGB"))), followed
  )
  assert np.abs(followed.astype(int) - RGB).max() > 50


def test_a_profile_for_other_colours_changes_nothing():
  image = Image.fromarray(RGB).convert("CMYK")
  plain = image_pixels(saved(image, "JPEG"))
  np.testing.assert_array_equal(image_pixels(saved(image, "JPEG", icc_profile=swapping_profile(b"BGRs"))), plain)


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


def test_a_walk_over_empty_chunks_ends(tmp_path, monkeypatch):
  """A file of gigabytes of zeros is a chunk every eight bytes."""
  monkeypatch.setattr(stills, "MAX_CHUNKS", 50)
  path = tmp_path / "a.webp"
  path.write_bytes(animation(40) + bytes(8) * 100 + animation(40)[12:])
  assert webp_delays(path) == [40]
