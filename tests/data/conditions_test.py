"""Which pieces of clips are conditions: always inside the clip, in the shares that are asked for, never too many."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.data import conditions
from sora_jax.data.conditions import KINDS, NOTHING, PIECES, Arrangement, Shares
from sora_jax.patches import Grid

EVEN = (0.2,) * 5
lengths = st.tuples(st.integers(1, 300), st.sampled_from([1, 2, 4, 8]))


def latent_frames(frames: int, compression: int) -> int:
  return Grid((compression, 1, 1), (1, 1, 1)).latent_shape(frames, 1, 1)[0]


class TestSpans:
  @hypothesis.given(lengths, st.text(max_size=8))
  def test_every_piece_lies_inside_and_needs_no_padding(self, length, name):
    frames, compression = length
    found = conditions.spans(frames, compression, name)
    assert len(found) <= PIECES and bool(found) == (latent_frames(frames, compression) > 1)
    for span in found:
      here = span.frames(compression)
      assert 0 <= here.start < here.stop <= frames
      assert latent_frames(here.stop - here.start, compression) == span.latent_frames
      assert (here.stop - here.start - 1) % compression == 0

  @hypothesis.given(lengths)
  def test_endings_end_with_the_clip_and_the_middle_is_no_beginning(self, length):
    frames, compression = length
    *endings, middle = conditions.spans(frames, compression, "a") or [None]
    assert [span.latent_frames for span in endings] == [2**bits for bits in range(len(endings))]
    assert all(span.frames(compression).stop == frames for span in endings)
    if middle:
      assert middle.start >= 1

  def test_middles_of_many_clips_begin_everywhere_and_of_one_clip_at_one_frame(self):
    starts = [conditions.spans(33, 4, f"clip {number}")[-1].start for number in range(2000)]
    assert set(starts) == set(range(1, 33 - 8))  # three latent frames are nine frames
    assert starts[7] == conditions.spans(33, 4, "clip 7")[-1].start

  def test_what_is_kept_is_little_more_than_the_clip(self):
    for frames in (5, 17, 33, 65, 241):
      kept = sum(span.latent_frames for span in conditions.spans(frames, 4, "a"))
      assert kept <= 1.3 * latent_frames(frames, 4) + 1


class TestLoops:
  @hypothesis.given(st.integers(2, 150), st.sampled_from([1, 2, 4, 8]))
  def test_each_arrangement_is_cut_from_a_beginning_and_a_middle(self, latent_frames, compression):
    beginning, middle = conditions.spans(latent_frames * compression, compression, "a", loop=True)
    assert beginning.start == 0 and middle.start > 0
    assert all(span.frames(compression).stop <= latent_frames * compression for span in (beginning, middle))
    found, probability = conditions.arrangements(latent_frames, Shares(0.7, EVEN), loop=True)
    assert probability.sum() == pytest.approx(1.0) and probability[0] == pytest.approx(0.3)
    for each in found[1:]:
      assert not each.ending and each.beginning <= beginning.latent_frames and each.middle <= middle.latent_frames
      assert each.token_frames(1, loop=True) == each.beginning + each.middle >= 1

  def test_what_is_drawn_has_room(self):
    rng, shares = np.random.default_rng(0), Shares(1.0, EVEN)
    frames, loops = np.full(2000, 6), np.arange(2000) % 2
    rooms = conditions.draw_rooms(frames, loops, np.full(2000, 9), shares, 1, rng)
    assert rooms[loops == 1].min() == 1 and rooms[loops == 0].min() == 0
    for room in range(4):
      assert conditions.arrange(6, True, room, shares, 1, rng).token_frames(1, loop=True) <= room


class TestArrangements:
  @hypothesis.given(st.integers(2, 400))
  def test_each_is_cut_from_what_is_encoded(self, frames):
    found, probability = conditions.arrangements(frames, Shares(0.7, EVEN))
    kept = [span.latent_frames for span in conditions.spans(1 + (frames - 1) * 4, 4, "a")]
    assert probability.sum() == pytest.approx(1.0) and probability[0] == pytest.approx(0.3)
    for each in found[1:]:
      assert each.beginning <= frames // 2 and sum(each) >= 1
      assert not each.ending or each.ending in kept[:-1]
      assert each.middle <= kept[-1]

  @pytest.mark.parametrize("frames", [2, 4, 9, 40])
  def test_a_kind_that_is_alone_is_all_there_is(self, frames):
    shows = {
      "first": lambda each: each == Arrangement(1, 0, 0),
      "beginning": lambda each: each.beginning > 1 and each.ending == each.middle == 0,
      "ending": lambda each: each.ending and each.beginning == each.middle == 0,
      "ends": lambda each: each.beginning == each.ending > 0 and not each.middle,
      "anywhere": lambda each: each.middle > 0,
    }
    for number, kind in enumerate(KINDS):
      found, probability = conditions.arrangements(frames, Shares(1.0, tuple(np.eye(5)[number].tolist())))
      drawn = [each for each, share in zip(found, probability, strict=True) if share]
      none = kind == "beginning" and frames < 4
      assert drawn == [NOTHING] if none else all(map(shows[kind], drawn))


class TestDraws:
  def test_kinds_come_in_their_shares(self):
    """A room is drawn once a run, and what fills it each time: together they are as the shares say."""
    shares = Shares(0.8, (0.4, 0.1, 0.1, 0.2, 0.2))
    rng = np.random.default_rng(0)
    rooms = conditions.draw_rooms(np.full(20000, 9), np.zeros(20000, int), np.full(20000, 99), shares, 1, rng)
    drawn = collections.Counter(conditions.arrange(9, False, room, shares, 1, rng) for room in rooms.tolist())
    found, probability = conditions.arrangements(9, shares)
    for each, share in zip(found, probability, strict=True):
      assert drawn[each] / 20000 == pytest.approx(share, abs=0.01)

  @hypothesis.given(st.integers(1, 60), st.integers(0, 40), st.sampled_from([1, 2]), st.integers(0, 99))
  def test_what_is_drawn_fits_its_room(self, frames, room, patch, seed):
    found = conditions.arrange(frames, False, room, Shares(1.0, EVEN), patch, np.random.default_rng(seed))
    assert found.token_frames(patch) <= room
    assert (found == NOTHING) == (frames == 1 or (patch == 2 and room == 0 and frames < 4))

  def test_a_beginning_needs_no_room(self):
    assert Arrangement(4, 0, 0).token_frames(1) == Arrangement(4, 0, 0).token_frames(2) == 0
    assert Arrangement(1, 2, 0).token_frames(1) == 2 and Arrangement(1, 2, 0).token_frames(2) == 2

  def test_images_have_none_and_no_row_is_filled_beyond_its_end(self):
    rng = np.random.default_rng(0)
    frames, most = np.array([1, 9, 9, 9] * 500), np.array([9, 0, 1, 9] * 500)
    rooms = conditions.draw_rooms(frames, np.zeros_like(frames), most, Shares(1.0, EVEN), 1, rng).reshape(-1, 4)
    assert (rooms[:, :2] == 0).all() and rooms[:, 2].max() == 1
    assert rooms[:, 3].max() == 4  # the ending of half the clip

  def test_some_conditions_are_noisy_and_none_above_the_most(self):
    rng, shares = np.random.default_rng(0), Shares(1.0, EVEN, 0.25, 0.4)
    levels = np.array([conditions.draw_level(shares, rng) for _ in range(4000)])
    assert np.mean(levels > 0) == pytest.approx(0.25, abs=0.03)
    assert levels.max() <= 0.4 and levels[levels > 0].mean() == pytest.approx(0.2, abs=0.02)
