"""Decoded frames of video -> upright RGB pixels. `decode.py` makes the frames.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation

from sora_jax.video import tonemap
from sora_jax.video.stills import on_black

# (a, b, c, d) of a display matrix: shown x = a x + c y, shown y = b x + d y, in 1/65536.
Matrix = tuple[int, int, int, int]
# A frame that is turned when it is shown, or upright pixels (H, W, 3).
Stored = tuple[av.VideoFrame, Matrix] | np.ndarray
_WIDER = np.rint(np.clip((np.arange(256) - 16.0) * 255 / 219, 0, 255)).astype(np.uint8)  # limited range -> full range


def sideways(matrix: Matrix) -> bool:
  """Whether width and height change places."""
  a, b, c, d = map(abs, matrix)
  return b + c > a + d


def pixels(picture: Stored) -> np.ndarray:
  """Upright uint8 (H, W, 3) of a picture; a turn that isn't a right angle goes to the nearest one."""
  if isinstance(picture, np.ndarray):
    return picture
  frame, matrix = picture
  if any(component.is_alpha for component in frame.format.components):
    upright = on_black(frame.to_ndarray(format="rgba"))
  elif frame.color_trc in (tonemap.PQ, tonemap.HLG):
    upright = tonemap.to_sdr(frame.to_ndarray(format="rgb48le"), frame.color_trc)
  else:
    upright = _rgb(frame)
  a, b, c, d = matrix
  if sideways(matrix):
    upright, flip_x, flip_y = upright.swapaxes(0, 1), c < 0, b < 0
  else:
    flip_x, flip_y = a < 0, d < 0
  return upright[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _rgb(frame: av.VideoFrame) -> np.ndarray:
  """uint8 (H, W, 3) as stored.

  Left alone, swscale makes 253 of the white of deep pixels and of those of an odd height, and takes all grey for
  full-range.
  """
  name = frame.format.name
  if name.startswith("yuv4") and name[7:]:  # such as yuv420p10le
    frame = frame.reformat(format=name[:7])
  chroma = Interpolation.FULL_CHR_H_INT if frame.height % 2 else 0
  rgb = frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC | chroma)
  limited = name.startswith("gray") and frame.color_range == ColorRange.MPEG
  return _WIDER[rgb] if limited else rgb
