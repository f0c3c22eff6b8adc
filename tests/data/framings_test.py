"""Clips cut to squares or buckets: the middle of each, and nothing else of the source changed."""

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.data import sources
from sora_jax.data.framings import Framed, bucket, bucketed
from sora_jax.data.world_source import WorldSource

SOURCE = WorldSource("shapes", 4, [(16, 24), (32, 16)], [1, 5], 8.0, 0)


def test_the_middle_square_of_every_clip_is_left():
  squares = Framed(SOURCE, "square")
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


@pytest.mark.parametrize(
  ("shape", "wanted"),
  [
    ((33, 128, 128), (33, 128, 128)),
    ((32, 130, 131), (17, 128, 128)),
    ((1, 90, 160), (1, 72, 128)),
    ((200, 160, 90), (129, 128, 72)),
    ((3, 20, 60), (3, 24, 40)),
    ((9, 70, 60), (9, 72, 56)),
    ((7, 9, 20), (5, 16, 32)),
  ],
)
def test_a_clip_has_the_largest_bucket_that_it_fills(shape, wanted):
  assert bucket(shape) == wanted
  assert bucketed(np.zeros((*shape, 3), np.float32)).shape == (*wanted, 3)


@given(st.tuples(st.integers(1, 300), st.integers(8, 2000), st.integers(8, 2000)))
def test_buckets_are_of_the_table_and_shrink_clips_that_are_large_enough(shape):
  frames, height, width = bucket(shape)
  assert frames <= shape[0] and height % 8 == width % 8 == 0
  if shape[1] * shape[2] >= 24**2:
    assert height * width <= 1.15 * shape[1] * shape[2]  # sides are rounded to 8 pixels


def test_a_bucket_shows_the_middle_of_a_clip_whole_in_the_side_that_binds():
  clip = WorldSource("shapes", 1, [(96, 100)], [5], 8.0, 0)[0].frames_THWC
  found = Framed(WorldSource("shapes", 1, [(96, 100)], [5], 8.0, 0), "buckets")
  assert found.shape(0) == found[0].frames_THWC.shape[:3] == (5, 96, 96)
  np.testing.assert_allclose(found[0].frames_THWC, clip[:, :, 2:98], atol=0.01)
  assert np.abs(found[0].frames_THWC).max() <= 1


@pytest.mark.parametrize("name", ["square", "buckets"])
def test_latents_of_what_is_cut_are_not_taken_for_those_of_the_whole(name):
  cut = Framed(SOURCE, name)
  assert cut.media_fingerprint != SOURCE.media_fingerprint and cut.fingerprint != SOURCE.fingerprint
  assert cut.captions_fingerprint == SOURCE.captions_fingerprint


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
  section.update(rates=(), max_frames=3, max_tokens=0, framing="square")
  found = sources.open_source(section, 0)
  assert [found.shape(index) for index in range(6)] == [(3, 16, 16)] * 6 and found.component(5) == 1
  assert sources.shapes_of(found).shape_N3.tolist() == [[3, 16, 16]] * 6
