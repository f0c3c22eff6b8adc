"""Decoded frames of video -> upright RGB pixels, and the size that they are shown at. `decode.py` makes the frames.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import math
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from sora_jax.video import tonemap
from sora_jax.video.apertures import Crop
from sora_jax.video.stills import on_black

# (a, b, c, d) of a display matrix: shown x = a x + c y, shown y = b x + d y, in 1/65536.
Matrix = tuple[int, int, int, int]
UNTURNED: Matrix = (65536, 0, 0, 65536)
QUARTER: Matrix = (0, 65536, -65536, 0)
MAX_ASPECT = 16  # of a pixel, either way: beyond, it is a damaged header
HD_LINES, HD_COLUMNS = 720, 1280  # from which on either way players take an untagged video for BT.709
_UNTAGGED = 2  # matrix and primaries by their numbers in ITU-T H.273
_MATRIX_OF = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601}  # by primaries
_MATRIX_OF |= {7: Colorspace.SMPTE240M, 9: Colorspace.BT2020}
_WIDER = np.rint(np.clip((np.arange(256) - 16.0) * 255 / 219, 0, 255)).astype(np.uint8)  # limited range -> full range


class Stored(NamedTuple):
  """A picture before it is shown.

  Attributes:
    picture: a frame as it is stored, or upright pixels (H, W, 3).
    matrix: how a frame is turned when it is shown; how upright pixels have been turned.
    aspect: width of a pixel by its height, before the turn.
    crop: what is not shown of a frame.
  """

  picture: av.VideoFrame | np.ndarray
  matrix: Matrix = UNTURNED
  aspect: float = 1.0
  crop: Crop = Crop()


def pixel_aspect(stated: Fraction | float | None) -> float:
  """The aspect of a pixel that a file states; square where it states none, or nonsense."""
  aspect = float(stated or 1)
  return aspect if math.isfinite(aspect) and 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else 1.0


def shown_size(height: int, width: int, matrix: Matrix = UNTURNED, aspect: float = 1.0) -> tuple[int, int]:
  """(height, width) in square pixels, upright, of a stored picture: lines stay, the width follows the aspect."""
  width = max(1, round(width * aspect))
  return (width, height) if sideways(matrix) else (height, width)


def sideways(matrix: Matrix) -> bool:
  """Whether width and height change places."""
  a, b, c, d = map(abs, matrix)
  return b + c > a + d


def size_of(stored: Stored) -> tuple[int, int]:
  """(height, width) that a picture is shown at."""
  if isinstance(stored.picture, np.ndarray):
    height, width = stored.picture.shape[:2]
    if sideways(stored.matrix):
      height, width = width, height
    return shown_size(height, width, stored.matrix, stored.aspect)
  top, bottom, left, right = stored.crop.of(stored.picture.height, stored.picture.width)
  height, width = stored.picture.height - top - bottom, stored.picture.width - left - right
  return shown_size(height, width, stored.matrix, stored.aspect)


def pixels(stored: Stored) -> np.ndarray:
  """Upright uint8 (H, W, 3) of a picture, a pixel for each that is stored; a turn that isn't a right angle goes to the
  nearest one."""
  frame = stored.picture
  if isinstance(frame, np.ndarray):
    return frame
  if any(component.is_alpha for component in frame.format.components):
    upright = on_black(frame.to_ndarray(format="rgba", src_colorspace=_likely_matrix(frame)))
  elif frame.color_trc in (tonemap.PQ, tonemap.HLG):
    upright = tonemap.to_sdr(frame.to_ndarray(format="rgb48le", src_colorspace=_likely_matrix(frame)), frame.color_trc)
  else:
    upright = _rgb(frame)
  crop = stored.crop.of(frame.height, frame.width)
  upright = upright[crop.top : frame.height - crop.bottom, crop.left : frame.width - crop.right]
  a, b, c, d = stored.matrix
  if sideways(stored.matrix):
    upright, flip_x, flip_y = upright.swapaxes(0, 1), c < 0, b < 0
  else:
    flip_x, flip_y = a < 0, d < 0
  return upright[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _likely_matrix(frame: av.VideoFrame) -> int | None:
  """The colour matrix of a frame that states none, by its primaries, else by its size; None where it states one."""
  if frame.colorspace != _UNTAGGED or frame.format.is_rgb:
    return None
  if frame.color_trc in (tonemap.PQ, tonemap.HLG):
    return int(Colorspace.BT2020)
  large = frame.height >= HD_LINES or frame.width >= HD_COLUMNS
  likely = Colorspace.ITU709 if large else Colorspace.ITU601
  return int(_MATRIX_OF.get(frame.color_primaries, likely))


def _rgb(frame: av.VideoFrame) -> np.ndarray:
  """uint8 (H, W, 3) as stored.

  Left alone, swscale makes 253 of the white of deep pixels and of those of an odd height, and takes all grey for
  full-range.
  """
  name, matrix = frame.format.name, _likely_matrix(frame)
  if name.startswith("yuv4") and name[7:]:  # such as yuv420p10le
    frame = frame.reformat(format=name[:7])
  chroma = Interpolation.FULL_CHR_H_INT if frame.height % 2 else 0
  rgb = frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC | chroma, src_colorspace=matrix)
  limited = name.startswith("gray") and frame.color_range == ColorRange.MPEG
  return _WIDER[rgb] if limited else rgb
