"""How large the frames are that a model was trained on, and larger ones shown to it as if they were as large.

A transformer knows distances up to the largest that training showed. The positions of a larger clip are pressed into
that range, and its size with them: tokens stand closer, and none is further from another than training saw (Chen et al.
2023, "Extending context window of large language models via positional interpolation").
"""

import math
from typing import Any, NamedTuple

import numpy as np

from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.packing.batch import Segment
from sora_jax.patches import Grid

_HUGE = 1 << 14  # pixels along a side, larger than any budget of tokens


class Reach(NamedTuple):
  """The longest side and the largest area, in pixels, of training's clips of one duration; infinite where unknown."""

  side: float
  area: float

  @classmethod
  def of(cls, data: Any, grid: Grid, frames: int) -> "Reach":
    """Of a config's `data` section: a world's sizes at the nearest duration, and the token budget of other sources."""
    names = names_of(data)
    worlds = [name for name in names if name.startswith("worlds:")]
    side = area = 0.0
    if worlds:
      shapes = WorldShapes.of(data, grid).distinct()
      near = min((t for t, _, _ in shapes), key=lambda t: (abs(math.log(t / frames)), t))
      own = [(h, w) for t, h, w in shapes if t == near]
      side, area = max(map(max, own)), max(h * w for h, w in own)
    if len(worlds) == len(names):
      return cls(side, area)
    if not data.max_tokens:
      return cls(math.inf, math.inf)
    height, width = grid.fit(min(frames, data.max_frames), _HUGE, _HUGE, data.max_tokens)
    return cls(math.inf, max(area, height * width))

  def scale(self, height: float, width: float) -> float:
    """By how much a frame's positions are shrunk: 1 within the reach."""
    return min(1.0, self.side / max(height, width), math.sqrt(self.area / (height * width)))


def within(segment: Segment, reach: Reach) -> Segment:
  """The segment with the positions of all its tokens, and its size, within the reach."""
  seconds, height, width, fps = map(float, segment.size_4)
  scale = reach.scale(height, width)
  if scale == 1.0:
    return segment
  return segment._replace(
    positions_N3=segment.positions_N3 * np.array([1.0, scale, scale], np.float32),
    size_4=np.array([seconds, height * scale, width * scale, fps], np.float32),
  )
