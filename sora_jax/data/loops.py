"""Clips played there and back: loops of which training has no others.

The first frames of a clip, and then those between its last and its first again in reverse, come round to where they
began: what moves turns at two moments, and no frame is seen that the clip does not have.
"""

import zlib
from typing import Any, NamedTuple

import numpy as np

from sora_jax.errors import InputError
from sora_jax.patches import Grid

SPREAD = 2**16  # of the numbers that choose clips


class Loops(NamedTuple):
  """Which clips are loops besides, played there and back.

  Attributes:
    share: of the clips of two latent frames or more.
    most_tokens: of a loop: a longer clip is played as far as they reach.
  """

  share: float
  grid: Grid
  most_tokens: int

  @classmethod
  def of(cls, config: Any, grid: Grid) -> "Loops":
    """Of a run's config.

    Raises:
      InputError: loops for tokens that have several latent frames, which a loop's could not fill.
    """
    share = config.data.loops
    if share and grid.patch[0] > 1:
      raise InputError(f"config.data.loops={share}: loops need a model.patch that begins with 1, not {grid.patch}")
    return cls(share, grid, config.train.row_tokens)

  def frames(self, shape_THW: tuple[int, int, int], name: str) -> int:
    """The first frames of a clip that are played there and back; 0 where it is no loop.

    Args:
      name: the clip's, by which it is chosen.
    """
    time = self.grid.compression[0]
    steps = (shape_THW[0] - 1) // time  # latent frames on the way there, and on the way back
    frame_tokens = self.grid.tokens(1, *shape_THW[1:])
    steps = min(steps, self.most_tokens // (2 * frame_tokens))
    chosen = zlib.crc32(name.encode()) % SPREAD < self.share * SPREAD
    return 1 + steps * time if chosen and steps > 0 else 0


def there_and_back(frames: int) -> np.ndarray:
  """The frames of one turn of a clip's first `frames`, at least 2: 2 (frames - 1) numbers, from the first frame on."""
  return np.concatenate([np.arange(frames), np.arange(frames - 2, 0, -1)])
