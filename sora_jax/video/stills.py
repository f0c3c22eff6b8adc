"""Pixels and delays of still images and animated WebP, by Pillow. `decode.py` opens the files.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import functools
import io
import math
import os
import struct

import numpy as np
from PIL import Image, ImageCms, ImageOps

MAX_CHUNKS = 200_000  # of a WebP that are looked at
ORIENTATION, ACROSS, DOWN = 0x0112, 0x011A, 0x011B  # tags of EXIF: how it is turned, and its two resolutions
SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations that swap the sides
SQUARE = 0.02  # by which densities that are rounded to whole numbers may differ
SAME = 4  # of 255, by which two versions of sRGB differ at most
DEFAULT_DELAY = 100  # milliseconds: what players show for a picture whose stated delay is 0


def webp_delays(path: str | os.PathLike) -> list[int]:
  """Milliseconds that each frame of an animated WebP is shown; empty for a still one. Reads chunk heads alone."""
  delays = []
  with open(path, "rb") as file:
    file.seek(12)
    for _ in range(MAX_CHUNKS):
      if len(head := file.read(24)) < 8:
        break
      tag, size = struct.unpack("<4sI", head[:8])
      if tag == b"ANMF" and len(head) == 24:
        delays.append(int.from_bytes(head[20:23], "little") or DEFAULT_DELAY)
      file.seek(size + size % 2 + 8 - len(head), os.SEEK_CUR)
  return delays


def stated_aspect(image: Image.Image) -> float:
  """Width of a stored pixel by its height: by JFIF's densities, PNG's pHYs or EXIF's resolutions, else 1."""
  exif = image.getexif()
  stated = [image.info.get("jfif_density") if image.format == "JPEG" else image.info.get("aspect")]
  stated += [image.info.get("dpi") if image.format == "PNG" else None, (exif.get(ACROSS), exif.get(DOWN))]
  for pair in stated:
    try:
      across, down = map(float, pair or ())
      aspect = down / across
    except (TypeError, ValueError, ZeroDivisionError):
      continue
    if across > 0 and down > 0 and abs(math.log(aspect)) > SQUARE:
      return aspect
  return 1.0


def image_pixels(image: Image.Image) -> np.ndarray:
  """Upright uint8 (H, W, 3) of an image of any mode."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
    grey = (np.clip(np.asarray(image), 0, 65535).astype(np.uint32) + 128) // 257
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
  if image.has_transparency_data:
    return on_black(np.asarray(_in_srgb(image.convert("RGBA"))))
  if image.mode not in ("L", "CMYK"):  # which have profiles of their own
    image = image.convert("RGB")
  return np.asarray(_in_srgb(image).convert("RGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
  """An image with a colour profile in the colours of sRGB; as it is where the profile is sRGB's or makes no sense."""
  profile = image.info.get("icc_profile", b"")
  if not profile or _is_srgb(profile):
    return image
  try:
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(image, given, _srgb(), outputMode="RGBA" if image.mode == "RGBA" else "RGB")
  except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
    return image
  assert shown is not None  # only what is done in place gives none
  return shown


@functools.lru_cache(maxsize=8)
def _is_srgb(profile: bytes) -> bool:
  """Whether a profile names sRGB and means it: "Display P3 Gamut with sRGB Transfer" has other colours."""
  if b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile:
    return False
  steps = np.linspace(0, 255, 6).astype(np.uint8)
  colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
  try:
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(Image.fromarray(colours), given, _srgb(), outputMode="RGB")
  except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
    return True  # of another mode than it says, or damaged: its colours are what its name says
  return bool(np.abs(np.asarray(shown).astype(int) - colours).max() <= SAME)


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
  return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def on_black(rgba: np.ndarray) -> np.ndarray:
  """uint8 (H, W, 4) -> (H, W, 3), laid on black."""
  rgb, alpha = rgba[..., :3].copy(), rgba[..., 3:]
  if alpha.min() < 255:
    for row, opaque in zip(rgb, alpha, strict=True):  # a row at a time: products need twice the memory
      row[:] = (row.astype(np.uint16) * opaque + 127) // 255
  return rgb
