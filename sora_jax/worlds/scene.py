"""What every world draws with: the pixel grid, frame times, soft edges, bouncing motion, caption styles.

Nothing here knows a world. The tools that read clips back are in `blobs.py`.

Shape letters: T frames, H height, W width, C colours.
"""

import numpy as np

Colour = tuple[float, float, float]  # red, green and blue in [-1, 1]


def frame_times(frames: int, fps: float) -> np.ndarray:
  """Seconds at which the frames are shown, float64 (T,).

  Raises:
    ValueError: frames below 1, or fps not above 0 and finite.
  """
  if frames < 1:
    raise ValueError(f"a clip has at least 1 frame, not {frames}")
  if not (fps > 0 and np.isfinite(fps)):
    raise ValueError(f"fps must be above 0 and finite, not {fps}")
  return np.arange(frames, dtype=np.float64) / fps


def pixel_centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Centres of the pixel rows and columns in units of the short side, float32 (H,) and (W,).

  Raises:
    ValueError: a side below 1 pixel.
  """
  if min(height, width) < 1:
    raise ValueError(f"a frame has at least 1x1 pixels, not {width}x{height}")
  short = min(height, width)
  rows_H = (np.arange(height) + 0.5) / short
  columns_W = (np.arange(width) + 0.5) / short
  return rows_H.astype(np.float32), columns_W.astype(np.float32)


def box_size(height: int, width: int) -> tuple[float, float]:
  """(height, width) of the frame in units of its short side; the smaller of the two is 1."""
  short = min(height, width)
  return height / short, width / short


def bounce(path: np.ndarray, length: float) -> np.ndarray:
  """Folds a straight path into [0, length] as a ball between two walls moves: a triangle wave.

  Args:
    path: distances travelled along the axis, any shape; 0 is the first wall.
    length: distance between the walls; 0 or less holds the ball at the first wall.
  """
  if length <= 0:
    return np.zeros_like(path)
  phase = np.mod(path, 2 * length)
  return length - np.abs(phase - length)


def coverage(distance_px: np.ndarray, edge_px: float = 1.0) -> np.ndarray:
  """How much of a pixel a shape covers, 0..1, from the signed distance (below 0 inside) in pixels.

  Args:
    distance_px: signed distances of the pixel centres to the outline, any shape.
    edge_px: width of the ramp from 1 to 0; 1 is an anti-aliased edge, more is a blurred one.
  """
  return np.clip(0.5 - distance_px / np.float32(edge_px), 0.0, 1.0)


def paint(background: Colour, layers: list[tuple[np.ndarray, Colour]]) -> np.ndarray:
  """Adds coloured layers to a plain background.

  Layers add up where soft edges meet, so that the share of each in a pixel can be solved for afterwards.

  Args:
    background: its colour.
    layers: pairs of coverage (T, H, W) in 0..1 and colour.

  Returns:
    float32 (T, H, W, 3) in [-1, 1].
  """
  background_C = np.asarray(background, np.float32)
  frames_THWC = np.broadcast_to(background_C, layers[0][0].shape + (3,)).copy()
  for cover_THW, colour in layers:
    frames_THWC += cover_THW.astype(np.float32)[..., None] * (np.asarray(colour, np.float32) - background_C)
  return np.clip(frames_THWC, -1.0, 1.0, out=frames_THWC)


def frame_blocks(frames: int, height: int, width: int) -> list[slice]:
  """Slices that cover the frames in blocks of about a quarter of a million pixels: this bounds memory."""
  block = max(1, 2**18 // (height * width))
  return [slice(start, start + block) for start in range(0, frames, block)]


def in_style(captions: dict[str, str], style: str) -> str:
  """The caption of that style.

  Raises:
    ValueError: an unknown style; the message names the known ones.
  """
  if style not in captions:
    raise ValueError(f"unknown caption style {style!r}: the styles are {', '.join(captions)}")
  return captions[style]
