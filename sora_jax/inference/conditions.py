"""What a clip is made from besides its prompt: pieces of pixels at their times, or a clip to change.

Shape letters: T frames, H height, W width, N tokens; t, h, w on the latent grid.
"""

import dataclasses

import numpy as np

from sora_jax.data.conditions import Span
from sora_jax.data.segments import Piece
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.patches import Grid, pad_edge


@dataclasses.dataclass(frozen=True)
class Condition:
  """Frames that a clip shows at a time: its first frame, its ending, a keyframe, or any others.

  Attributes:
    frames_THWC: float32 in [-1, 1], at the clip's size and rate.
    seconds: where the first of them is in the clip.
    strength: 1 is as they are; below it the model is told that they have noise of the level 1 - strength.
    mask_HW: bool, where they hold; None is everywhere.
  """

  frames_THWC: np.ndarray
  seconds: float = 0.0
  strength: float = 1.0
  mask_HW: np.ndarray | None = None

  def check(self, shape_THW: tuple[int, int, int], fps: float) -> None:
    """
    Raises:
      InputError: it does not agree with a clip of `shape_THW` at `fps`.
    """
    frames, *size = shape_THW
    given = self.frames_THWC.shape
    if len(given) != 4 or given[3] != 3 or not given[0]:
      raise InputError(f"the frames of a condition have the shape (frames, height, width, 3), not {given}")
    check_values("the frames of a condition", self.frames_THWC)
    if list(given[1:3]) != size:
      raise InputError(f"a condition is {given[2]}x{given[1]} and the clip {size[1]}x{size[0]}: they must be equal")
    if self.mask_HW is not None and list(self.mask_HW.shape) != size:
      shown = "x".join(map(str, self.mask_HW.shape[::-1]))
      raise InputError(f"the mask of a condition is {shown} and the clip {size[1]}x{size[0]}: they must be equal")
    check_strength("strength of a condition", self.strength)
    last = self.seconds + (given[0] - 1) / fps
    if not -1e-6 <= self.seconds or not last <= (frames - 1) / fps + 1e-6:
      raise InputError(
        f"a condition is from {self.seconds:g} to {last:g} seconds, and the clip's frames from 0 to "
        f"{(frames - 1) / fps:g}: it must lie inside"
      )

  def pieces(self, codec: Codec, grid: Grid, fps: float) -> list[Piece]:
    """Its latents, each piece encoded as a clip of its own."""
    found = []
    for span in spans(len(self.frames_THWC), grid.compression[0]):
      frames = self.frames_THWC[span.frames(grid.compression[0])]
      latent = codec.encode(frames[None])[0]
      kept_N = None
      if self.mask_HW is not None:
        kept_N = token_mask(np.broadcast_to(self.mask_HW, frames.shape[:3]), grid, every=True)
      found.append(Piece(latent, self.seconds + span.start / fps, 1.0 - self.strength, kept_N))
    return found


@dataclasses.dataclass(frozen=True)
class Edit:
  """A clip to change, after Meng et al. 2022, "SDEdit".

  Attributes:
    frames_THWC: float32 in [-1, 1], of the shape of the clip to make.
    strength: 0 returns the clip as the autoencoder has it, 1 makes another from the prompt alone.
    mask_THW: bool, what may change; None is everything.
  """

  frames_THWC: np.ndarray
  strength: float
  mask_THW: np.ndarray | None = None

  def check(self, shape_THW: tuple[int, int, int]) -> None:
    """
    Raises:
      InputError: it does not agree with a clip of `shape_THW`.
    """
    if self.frames_THWC.shape != (*shape_THW, 3):
      raise InputError(f"the clip to change has the shape {self.frames_THWC.shape}, and the one to make {shape_THW}")
    check_values("the frames of the clip to change", self.frames_THWC)
    if self.mask_THW is not None and self.mask_THW.shape != shape_THW:
      raise InputError(f"the mask has the shape {self.mask_THW.shape}, and the clip {shape_THW}: they must be equal")
    check_strength("strength", self.strength)


def check_values(name: str, frames_THWC: np.ndarray) -> None:
  """
  Raises:
    InputError: it is not of finite floats.
  """
  if not np.issubdtype(frames_THWC.dtype, np.floating):
    raise InputError(f"{name} are floats from -1 to 1 (clips.from_uint8 makes them), not {frames_THWC.dtype}")
  if not np.isfinite(frames_THWC).all():
    raise InputError(f"{name} are not finite")


def check_strength(name: str, value: float) -> None:
  """
  Raises:
    InputError: it is not from 0 to 1.
  """
  if not 0.0 <= value <= 1.0:
    raise InputError(f"{name} {value:g} is not from 0 to 1")


def spans(frames: int, compression: int) -> list[Span]:
  """Pieces that cover so many frames and need no padding: from the first frame on, and one for what is left over."""
  whole, left = divmod(frames - 1, compression)
  found = [Span(0, 1 + whole)]
  if left and whole:
    return [*found, Span(frames - 1 - compression, 2)]
  return found + [Span(frame, 1) for frame in range(1, frames)] if left else found


def token_mask(mask_THW: np.ndarray, grid: Grid, every: bool) -> np.ndarray:
  """Which tokens of a clip a mask of its pixels covers, bool (N,).

  Args:
    every: those whose pixels are all in the mask; otherwise those of which any is.
  """
  frames, height, width = mask_THW.shape
  t, h, w = (n * p for n, p in zip(grid.token_shape(frames, height, width), grid.patch, strict=True))
  time, rows, columns = grid.compression
  # The first latent frame shows one frame; it is repeated so that each shows as many.
  mask = np.concatenate([np.repeat(mask_THW[:1], time - 1, axis=0), mask_THW])
  mask = np.asarray(pad_edge(mask, (t * time, h * rows, w * columns)))
  pt, ph, pw = grid.patch
  mask = mask.reshape(t // pt, pt * time, h // ph, ph * rows, w // pw, pw * columns)
  return (mask.all((1, 3, 5)) if every else mask.any((1, 3, 5))).reshape(-1)
