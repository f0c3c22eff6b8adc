"""Which pieces of a clip training shows beside it as conditions: which are encoded, and which of them a step sees.

Each piece is encoded as a clip of its own, as sampling encodes what it is prompted with. The autoencoder is causal in
time, so a clip's first latent frames are those of its beginning alone, and the first latent frames of any piece those
of a shorter one: endings of a few lengths and one piece from the middle are encoded apart, and give all the others. A
beginning takes the place of the first tokens of the clip (see `segments.py`), so it needs no room of its own.

Shape letters: K slots of rows.
"""

import functools
import zlib
from typing import Any, NamedTuple

import numpy as np

ENDINGS = 6  # endings of 1, 2, 4, ... latent frames that are encoded, where a clip is twice as long
PIECES = ENDINGS + 1  # and one piece from the middle, the last
KINDS = ("first", "beginning", "ending", "ends", "anywhere")  # the first frame, first frames, last frames, both, any


class Span(NamedTuple):
  """A piece of a clip: its first frame, and its latent frames."""

  start: int
  latent_frames: int

  def frames(self, compression: int) -> slice:
    """The clip's frames that it is encoded from."""
    return slice(self.start, self.start + 1 + (self.latent_frames - 1) * compression)


class Arrangement(NamedTuple):
  """Conditions of one clip: latent frames of its beginning, of its ending, and of the piece from its middle."""

  beginning: int
  ending: int
  middle: int

  def token_frames(self, patch: int, loop: bool = False) -> int:
    """How many frames of tokens stand beside the clip's own, where a token has `patch` latent frames."""
    beside = self.ending, self.middle, self.beginning if loop or self.beginning % patch else 0
    return sum(-(-each // patch) for each in beside)


class Shares(NamedTuple):
  """How often training shows conditions.

  Attributes:
    clips: the share of the clips of more than one latent frame that have any.
    kinds: how these are shared out, a number for each of KINDS.
    noisy: the share of the conditions that are given with noise.
    most_noise: the noise level of these is drawn evenly from 0 to this.
  """

  clips: float
  kinds: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 0.0)
  noisy: float = 0.0
  most_noise: float = 0.0

  @classmethod
  def of(cls, config: Any) -> "Shares":
    """Of a run's config."""
    section = config.diffusion
    return cls(section.condition_share, tuple(section.condition_kinds), *section.condition_noise)


def spans(frames: int, compression: int, name: str, loop: bool = False) -> list[Span]:
  """The pieces of a clip that are encoded apart: endings from the shortest, and one from the middle; none of an image.

  A loop has no ending, and its latents are those of a clip that has gone on for a turn: it has its longest beginning
  in their place.

  Args:
    frames: of the clip.
    compression: frames of a latent frame.
    name: the clip's, the key of where the middle piece begins.
  """
  latent_frames = 1 + -(-(frames - 1) // compression)
  if latent_frames < 2:
    return []
  if loop:
    found = [Span(0, _lengths(frames // compression)[-1])]
  else:
    found = [Span(frames - 1 - (k - 1) * compression, k) for k in _lengths(latent_frames)[:ENDINGS]]
  middle = middle_frames(latent_frames)
  room = frames - 1 - (middle - 1) * compression  # the first frame is no middle
  return [*found, Span(1 + zlib.crc32(name.encode()) % room, middle)]


def middle_frames(latent_frames: int) -> int:
  """Latent frames of the middle piece of a clip: a quarter."""
  return -(-latent_frames // 4)


def _lengths(latent_frames: int) -> list[int]:
  """1, 2, 4, ... up to half of a clip."""
  return [2**bits for bits in range(latent_frames.bit_length()) if 2 ** (bits + 1) <= latent_frames]


NOTHING = Arrangement(0, 0, 0)


@functools.lru_cache(maxsize=1024)
def arrangements(latent_frames: int, shares: Shares, loop: bool = False) -> tuple[list[Arrangement], np.ndarray]:
  """All arrangements that a clip can have, NOTHING first, and how often each comes.

  Those of one kind share its share; a clip too short for any of a kind has the others more often. A loop has no
  ending: where others have both ends, it has a beginning and a piece from anywhere.
  """
  if latent_frames < 2:
    return [NOTHING], np.ones(1)
  lengths = _lengths(latent_frames)
  middle = middle_frames(latent_frames)
  by_kind = {
    "first": [Arrangement(1, 0, 0)],
    "beginning": [Arrangement(k, 0, 0) for k in lengths[1:]],
    "ending": [Arrangement(0, k, 0) for k in lengths[:ENDINGS]],
    "ends": [Arrangement(k, k, 0) for k in lengths[:ENDINGS]],
    "anywhere": [Arrangement(0, 0, k) for k in sorted({1, middle})] + [Arrangement(1, 1, 1)],
  }
  if loop:
    two = [Arrangement(k, 0, middle) for k in lengths]
    by_kind |= {"ending": [], "ends": two, "anywhere": by_kind["anywhere"][:-1]}
  found: list[Arrangement] = []
  each: list[float] = []
  for kind, share in zip(KINDS, shares.kinds, strict=True):
    found += by_kind[kind]
    each += [share / max(len(by_kind[kind]), 1)] * len(by_kind[kind])
  some = shares.clips if sum(each) else 0.0
  return [NOTHING, *found], np.array([1.0 - some, *(some * share / (sum(each) or 1.0) for share in each)])


def draw_rooms(
  frames_K: np.ndarray, loop_K: np.ndarray, most_K: np.ndarray, shares: Shares, patch: int, rng: np.random.Generator
) -> np.ndarray:
  """How many frames of condition tokens stand beside the clip in each slot of the rows, int32 (K,).

  Drawn once a run, as rows are packed once: each clip that takes the slot has conditions of this size.

  Args:
    frames_K: latent frames of a clip in each slot.
    loop_K: 1 where it is a loop.
    most_K: frames of tokens that a row has room for.
    patch: latent frames of a token.
  """
  rooms_K = np.zeros(len(frames_K), np.int32)
  kind_K = 2 * frames_K + loop_K
  for kind in np.unique(kind_K).tolist():
    mine = np.flatnonzero(kind_K == kind)
    latent_frames, loop = divmod(kind, 2)
    found, probability = arrangements(latent_frames, shares, bool(loop))
    sizes = np.array([each.token_frames(patch, bool(loop)) for each in found], np.int32)
    rooms_K[mine] = rng.choice(sizes, len(mine), p=probability)
  return np.minimum(rooms_K, most_K).astype(np.int32)


def arrange(
  latent_frames: int, loop: bool, room: int, shares: Shares, patch: int, rng: np.random.Generator
) -> Arrangement:
  """Draws a clip's conditions that fill `room` frames of tokens, or as much of it as any does."""
  found, probability = arrangements(latent_frames, shares, loop)
  sizes = np.array([each.token_frames(patch, loop) for each in found])
  fitting = (sizes <= room) & (probability > 0)
  if not fitting.any():
    return NOTHING
  weights = np.where(fitting & (sizes == sizes[fitting].max()), probability, 0.0)
  return found[rng.choice(len(found), p=weights / weights.sum())]


def draw_level(shares: Shares, rng: np.random.Generator) -> float:
  """The noise level of one condition."""
  noisy, level = rng.random(2)
  return float(level) * shares.most_noise if noisy < shares.noisy else 0.0
