"""Clips cropped to squares: the middle of each, and nothing else of the source changed."""

import ml_collections
import numpy as np

from sora_jax.data import sources
from sora_jax.data.squares import Squares
from sora_jax.data.world_source import WorldSource

SOURCE = WorldSource("shapes", 4, [(16, 24), (32, 16)], [1, 5], 8.0, 0)


def test_the_middle_square_of_every_clip_is_left():
  squares = Squares(SOURCE)
  assert len(squares) == 4 and squares.dropped == ()
  for index in range(4):
    frames, height, width = SOURCE.shape(index)
    side = min(height, width)
    assert squares.shape(index) == (frames, side, side)
    top, left = (height - side) // 2, (width - side) // 2
    whole, cropped = SOURCE[index], squares[index]
    np.testing.assert_array_equal(cropped.frames_THWC, whole.frames_THWC[:, top : top + side, left : left + side])
    assert (cropped.caption, cropped.fps, cropped.id) == (whole.caption, whole.fps, whole.id)
    assert squares.captions(index) == SOURCE.captions(index) and squares.where(index) == SOURCE.where(index)


def test_latents_of_squares_are_not_taken_for_those_of_the_whole():
  squares = Squares(SOURCE)
  assert squares.media_fingerprint != SOURCE.media_fingerprint and squares.fingerprint != SOURCE.fingerprint
  assert squares.captions_fingerprint == SOURCE.captions_fingerprint


def test_a_config_asks_for_them():
  section = ml_collections.ConfigDict(
    {
      "source": "worlds:shapes, worlds:bites",
      "weights": (),
      "clips": 3,
      "sizes": ("24x16",),
      "frames": (3,),
      "fps": 8.0,
    }
  )
  section.update(rates=(), max_frames=3, max_tokens=0, square=True)
  found = sources.open_source(section, 0)
  assert [found.shape(index) for index in range(6)] == [(3, 16, 16)] * 6 and found.component(5) == 1
  assert sources.shapes_of(found).shape_N3.tolist() == [[3, 16, 16]] * 6
