"""A clip and its conditions as one segment of a row, in training as in sampling. Pure numpy.

The autoencoder is causal in time, so the latents of a clip's beginning are the same in the clip as alone: such a
condition takes the place of the grid's first tokens. Any other piece has latents of its own, and its tokens stand
beside the grid; so do all of a loop, which has no beginning.

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


def with_conditions(segment: Segment, grid: Grid, pieces: Sequence[Piece], kept: np.ndarray | None = None) -> Segment:
  """A clip's segment with its conditions: a beginning among the tokens of its grid, others beside them.

  Args:
    segment: the clip's grid alone.
    kept: the numbers of the grid's tokens that are shown; None is all.
  """
  arrays = segment.tokens_NC, segment.positions_N3, segment.condition_N, segment.level_N
  tokens, positions, condition, level = ([array.copy()] for array in arrays)
  for piece in pieces:
    given_NC, given_N3 = piece.tokens(grid, float(segment.size_4[3]))
    here = slice(len(given_NC))
    whole = len(piece.latent_thwC) % grid.patch[0] == 0 and piece.kept_N is None
    if not segment.period and whole and _same_places(given_N3, segment.positions_N3[here]):
      tokens[0][here], condition[0][here], level[0][here] = given_NC, True, piece.level
      continue
    tokens.append(given_NC)
    positions.append(given_N3)
    condition.append(np.ones(len(given_NC), bool))
    level.append(np.full(len(given_NC), piece.level, np.float32))
  if kept is not None:
    for parts in (tokens, positions, condition, level):
      parts[0] = parts[0][kept]
  return segment._replace(
    tokens_NC=np.concatenate(tokens),
    positions_N3=np.concatenate(positions),
    condition_N=np.concatenate(condition),
    level_N=np.concatenate(level),
  )


def _same_places(some_N3: np.ndarray, others_N3: np.ndarray) -> bool:
  """Whether positions are equal but for rounding: a rate is rounded in `size_4`."""
  return some_N3.shape == others_N3.shape and np.allclose(some_N3, others_N3, rtol=1e-5, atol=1e-5)
