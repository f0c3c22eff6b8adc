"""A clip and its conditions as one segment of a row, in training as in sampling. Pure numpy.

Shape letters: N tokens, C values a token; t, h, w on the latent grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.packing.batch import Segment
from sora_jax.patches import Grid, patchify


class Piece(NamedTuple):
  """What a clip is made from, as latents: a piece of it that was encoded as a clip of its own.

  Attributes:
    latent_thwC: float32, normalised.
    seconds: where its first frame is in the clip.
    level: its noise level, 0 clean to 1 noise.
    kept_N: bool, which of its tokens are given; None is all.
  """

  latent_thwC: np.ndarray
  seconds: float
  level: float = 0.0
  kept_N: np.ndarray | None = None

  def tokens(self, grid: Grid, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Its tokens (N, C) and their positions (N, 3) in the clip, whose frames are `fps` a second."""
    t, h, w = self.latent_thwC.shape[:3]
    time, rows, columns = grid.compression
    tokens_NC = np.asarray(patchify(self.latent_thwC, grid.patch))
    positions_N3 = grid.positions(1 + (t - 1) * time, h * rows, w * columns, fps)
    positions_N3 = positions_N3 + np.array([self.seconds, 0.0, 0.0], np.float32)
    if self.kept_N is not None:
      tokens_NC, positions_N3 = tokens_NC[self.kept_N], positions_N3[self.kept_N]
    return tokens_NC, positions_N3


def make_segment(
  grid: Grid,
  tokens_NC: np.ndarray,
  positions_N3: np.ndarray,
  pieces: Sequence[Piece],
  text_M: np.ndarray,
  size_4: np.ndarray,
  index: int,
  turn: int = 0,
) -> Segment:
  """The tokens of a clip's grid, and beside them those of its conditions.

  Args:
    tokens_NC, positions_N3: of the grid.
    size_4: (seconds, height, width, fps) of the clip.
    text_M, index, turn: see `Segment`.
  """
  given = [piece.tokens(grid, float(size_4[3])) for piece in pieces]
  levels = [np.full(len(tokens), piece.level, np.float32) for piece, (tokens, _) in zip(pieces, given, strict=True)]
  own = len(tokens_NC)
  tokens_NC = np.concatenate([tokens_NC, *(tokens for tokens, _ in given)])
  return Segment(
    tokens_NC=tokens_NC,
    positions_N3=np.concatenate([positions_N3, *(positions for _, positions in given)]),
    condition_N=np.arange(len(tokens_NC)) >= own,
    level_N=np.concatenate([np.zeros(own, np.float32), *levels]),
    text_M=text_M,
    size_4=size_4,
    index=index,
    turn=turn,
  )
