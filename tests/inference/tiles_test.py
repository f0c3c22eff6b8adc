"""Tiles: each place is kept once, far enough from a false edge; all have one size; chunks come before tiles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.inference import tiles
from sora_jax.inference.tiles import layout, tile_shape, windows

HALOS = st.integers(1, 9)


@given(st.integers(1, 300), HALOS, st.data())
def test_windows_of_one_size_keep_each_place_once_and_halos_from_false_edges(length, halo, data):
  size = data.draw(st.integers(min(length, 2 * halo + 1), length))
  found = windows(length, size, halo)
  assert {window.stop - window.start for window in found} == {size}
  assert [place for window in found for place in range(window.first, window.last)] == list(range(length))
  for window in found:
    assert window.start == 0 or window.first - window.start >= halo
    assert window.stop == length or window.stop - window.last >= halo


@given(st.tuples(st.integers(1, 120), st.integers(1, 120)), st.tuples(HALOS, HALOS), st.integers(1, 4000))
def test_a_tile_has_no_more_than_is_allowed_unless_it_is_the_smallest(frame, halo, most):
  tall, wide = tile_shape(frame, halo, most)
  assert tall <= frame[0] and wide <= frame[1]
  least = tuple(min(side, tiles.LEAST * reach) for side, reach in zip(frame, halo, strict=True))
  assert tall * wide <= most or (tall, wide) == least
  if math.prod(frame) <= most:
    assert (tall, wide) == frame


@pytest.mark.parametrize("frame", [(135, 240), (90, 160), (77, 31)])
def test_no_other_tile_takes_less_work(frame):
  halo, most = (6, 5), 900
  sides = range(24, 136), range(20, 241)
  work = lambda tall, wide: len(windows(frame[0], tall, halo[0])) * tall * len(windows(frame[1], wide, halo[1])) * wide
  fit = [(a, b) for a in sides[0] for b in sides[1] if a * b <= most and a <= frame[0] and b <= frame[1]]
  assert work(*tile_shape(frame, halo, most)) == min(work(*each) for each in fit)


@given(
  st.tuples(st.integers(1, 40), st.integers(1, 200), st.integers(1, 200)),
  st.sampled_from([(1, 1, 1), (4, 8, 8), (2, 4, 16)]),
  st.integers(2**14, 2**24),
)
def test_a_layout_codes_no_more_pixels_than_is_allowed(shape, compression, most):
  laid = layout(shape, compression, (3, 3), most)
  time, high, wide = compression
  longest = max(end - start for start, end in laid.chunks(shape[0]))
  pixels = (1 + (longest - 1) * time) * math.prod(laid.tile) * high * wide
  assert pixels <= most or laid.tile == tuple(min(side, 3 * tiles.LEAST) for side in shape[1:])
  assert laid.chunk == 1 or len(laid.tiles) == 1  # time is cut first: it costs nothing
  assert [n for start, end in laid.chunks(shape[0]) for n in range(start, end)] == list(range(shape[0]))


def test_short_clips_and_images_have_larger_tiles_than_long_ones():
  area = lambda frames: math.prod(layout((frames, 400, 400), (4, 8, 8), (6, 6), 2**21).tile)
  assert area(1) > area(2) == area(9)
