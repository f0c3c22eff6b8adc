"""Windows of long clips: what each is made from, that all frames come, and that conditions find their window."""

import types

import hypothesis
import ml_collections
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.clips import Clip
from sora_jax.errors import InputError
from sora_jax.inference import detail, prompting
from sora_jax.inference.conditions import Condition, Edit
from sora_jax.inference.generator import Request
from sora_jax.inference.prompting import Connection, Extension
from sora_jax.patches import Grid

FPS = 8.0
SCALE = 2048
SAMPLING = types.SimpleNamespace(history_level=0.25)


class Counting:
  """Makes clips whose every frame holds its own number within the clip's window; it notes the requests."""

  def __init__(self, frames: int = 9, time: int = 2, **data):
    self.grid = Grid((time, 4, 4), (1, 1, 1))
    self.config = ml_collections.ConfigDict({"data": {"source": "clips", "max_frames": frames} | data})
    self.requests: list[Request] = []

  def sample(self, requests, sampling):
    self.requests += requests
    return [Clip(ramp(request.frames), request.fps, request.prompt, "") for request in requests]


def ramp(frames: int, start: float = 0.0) -> np.ndarray:
  """Frames that hold `start`, `start` + 1, ... of SCALE."""
  return (start + np.arange(frames, dtype=np.float32)).reshape(-1, 1, 1, 1) / SCALE * np.ones((1, 4, 4, 3), np.float32)


def numbers(frames_THWC: np.ndarray) -> np.ndarray:
  return frames_THWC[:, 0, 0, 0] * SCALE


@pytest.fixture(autouse=True)
def _nothing_stands_still(monkeypatch):
  monkeypatch.setattr(detail, "STILL", 1e-9)


def extended(generator: Counting, frames: int, **count) -> np.ndarray:
  extension = Extension(ramp(frames, 1000), "x", FPS, 5, **count)
  return numbers(prompting.extend(generator, [extension], SAMPLING)[0].frames_THWC)


class TestWindow:
  def test_it_is_the_longest_clip_of_any_source(self):
    for source, wanted in (("clips", 9), ("gym:A-v0", 5), ("worlds:shapes", 5), ("worlds:shapes, clips", 9)):
      generator = Counting(source=source)
      generator.config.data.update(sizes=("16x16",), frames=(1, 5), max_tokens=0)
      assert prompting.window(generator) == wanted


class TestContext:
  @pytest.mark.parametrize(("frames", "time", "wanted"), [(9, 2, 3), (17, 2, 7), (33, 4, 13), (7, 2, 3), (2, 2, 1)])
  def test_it_is_what_training_shows_of_a_clip(self, frames, time, wanted):
    """Of 5, 9, 9, 4 and 2 latent frames: 2, 4, 4, 2 and 1."""
    assert prompting.context(Counting(frames, time).grid, frames) == wanted

  @hypothesis.given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4]))
  def test_a_cut_fills_latent_frames_whole(self, frames, most, time):
    clip = ramp(frames)
    for first in (True, False):
      found = prompting.cut(clip, most, Counting(time=time), first)
      assert 1 <= len(found) <= min(frames, max(most, 1)) and (len(found) - 1) % time == 0
      np.testing.assert_array_equal(found, clip[: len(found)] if first else clip[-len(found) :])


class TestSampled:
  @pytest.mark.parametrize(
    ("more", "as_given"),
    [
      ({}, True),
      ({"strength": 0.75}, True),  # a window's history, see SAMPLING
      ({"strength": 0.5}, False),
      ({"seconds": 2.4 / FPS}, False),
      ({"mask_HW": np.ones((4, 4), bool)}, False),
    ],
  )
  def test_whole_frames_of_the_clip_come_back_as_they_were_given(self, more, as_given):
    condition = Condition(ramp(2, 50), **({"seconds": 3 / FPS} | more))
    (clip,) = prompting.sampled(Counting(), [Request("x", 4, 4, 9, FPS, 0, conditions=(condition,))], SAMPLING)
    wanted = [0, 1, 2, 50, 51, 5, 6, 7, 8] if as_given else range(9)
    np.testing.assert_allclose(numbers(clip.frames_THWC), wanted, atol=1e-5)

  def test_outside_of_its_mask_a_clip_to_change_is_as_it_was_given(self):
    mask_THW = np.zeros((9, 4, 4), bool)
    mask_THW[2:, 1:3] = True
    edit = Edit(ramp(9, 50), 1.0, mask_THW)
    (clip,) = prompting.sampled(Counting(), [Request("x", 4, 4, 9, FPS, 0, edit=edit)], SAMPLING)
    np.testing.assert_array_equal(clip.frames_THWC[~mask_THW], edit.frames_THWC[~mask_THW])
    np.testing.assert_allclose(clip.frames_THWC[mask_THW], ramp(9)[mask_THW], atol=1e-5)


class TestShownIn:
  def test_a_keyframe_between_two_frames_stays_between_them_in_every_window(self):
    condition = Condition(ramp(1, 50), 2.4 / FPS)
    assert [each.seconds for each in prompting.shown_in([condition], 0, 9, FPS)] == [2.4 / FPS]
    (later,) = prompting.shown_in([condition], 2, 9, FPS)
    assert later.seconds == pytest.approx(0.4 / FPS)
    assert not prompting.shown_in([condition], 3, 9, FPS) and not prompting.shown_in([condition], 0, 2, FPS)

  def test_frames_of_a_condition_are_shared_out_to_windows(self):
    condition = Condition(ramp(6, 50), 2 / FPS)
    first, second = (prompting.shown_in([condition], start, 5, FPS)[0] for start in (0, 4))
    assert (first.seconds, second.seconds) == (2 / FPS, 0.0)
    np.testing.assert_array_equal(numbers(first.frames_THWC), numbers(ramp(6, 50))[:3])
    np.testing.assert_array_equal(numbers(second.frames_THWC), numbers(ramp(6, 50))[2:])

  @hypothesis.given(st.floats(0, 3), st.integers(1, 9), st.integers(0, 20), st.integers(1, 12))
  def test_what_is_shown_lies_in_the_window(self, seconds, count, start, frames):
    for each in prompting.shown_in([Condition(ramp(count), seconds)], start, frames, FPS):
      each.check((frames, 4, 4), FPS)


class TestWindows:
  @hypothesis.given(st.integers(1, 60), st.sampled_from([1, 2, 4]))
  def test_they_are_those_in_which_a_clip_is_made(self, frames, time):
    generator = Counting(time=time)
    list(prompting.make(generator, Request("x", 4, 4, frames, FPS, 0), SAMPLING))
    wanted = prompting.windows(generator.config.data, generator.grid, frames)
    assert [request.frames for request in generator.requests] == wanted


class TestExtend:
  @hypothesis.given(st.integers(1, 12), st.integers(0, 25), st.integers(0, 25))
  @hypothesis.settings(max_examples=40, deadline=None)
  def test_as_many_frames_as_asked_for_come_on_each_side(self, frames, forward, backward):
    found = extended(Counting(), frames, forward=forward, backward=backward)
    assert len(found) == backward + frames + forward
    np.testing.assert_array_equal(found[backward : backward + frames], 1000 + np.arange(frames))

  def test_each_window_begins_with_the_last_frames_of_the_one_before(self):
    """Windows of 9 frames, 3 of them known: 6 new ones each, the last one's 2."""
    generator = Counting()
    found = extended(generator, 5, forward=14)
    assert [request.frames for request in generator.requests] == [9, 9, 5]
    np.testing.assert_allclose(found[5:], [3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7, 8, 3, 4], rtol=1e-5)
    known = [request.conditions[0] for request in generator.requests]
    np.testing.assert_array_equal(known[0].frames_THWC, ramp(3, 1002))
    np.testing.assert_allclose(known[1].frames_THWC, ramp(9)[6:])
    assert [each.strength for each in known] == [1.0, 0.75, 0.75] and {each.seconds for each in known} == {0.0}
    assert len({request.seed for request in generator.requests}) == 3

  def test_backward_windows_end_with_the_first_frames_of_the_one_after(self):
    generator = Counting()
    found = extended(generator, 5, backward=8)
    np.testing.assert_allclose(found[:8], [0, 1, 0, 1, 2, 3, 4, 5], atol=1e-4)
    first, second = (request.conditions[0] for request in generator.requests)
    np.testing.assert_array_equal(first.frames_THWC, ramp(3, 1000))
    np.testing.assert_allclose(second.frames_THWC, ramp(3))
    assert (first.seconds, second.seconds) == (6 / FPS, 2 / FPS)

  def test_clips_that_need_fewer_windows_are_done_earlier(self):
    generator = Counting()
    extensions = [Extension(ramp(5), "x", FPS, number, forward=frames) for number, frames in enumerate((2, 20, 0))]
    clips = prompting.extend(generator, extensions, SAMPLING)
    assert [len(clip.frames_THWC) for clip in clips] == [7, 25, 5]
    assert len(generator.requests) == 1 + 4

  def test_a_number_below_none_is_refused(self):
    with pytest.raises(InputError, match="-1 and 0 frames"):
      Extension(ramp(5), "x", FPS, 0, forward=-1)


class TestMake:
  def made(self, generator, frames, **more) -> np.ndarray:
    request = Request("x", 4, 4, frames, FPS, 3, **more)
    return np.concatenate(list(prompting.make(generator, request, SAMPLING)))

  @pytest.mark.parametrize("frames", [1, 9, 10, 33])
  def test_all_frames_come(self, frames):
    generator = Counting()
    assert len(self.made(generator, frames)) == frames
    assert max(request.frames for request in generator.requests) <= 9

  def test_a_condition_is_given_to_the_windows_that_show_it(self):
    """Frames 0 to 8, then 6 to 14 and 12 to 20: frames 13 to 15 are shown by the second and the third."""
    generator, given = Counting(), Condition(ramp(3, 500), 13 / FPS, 0.5)
    self.made(generator, 21, conditions=(given,))
    shown = [[each for each in request.conditions if each.strength == 0.5] for request in generator.requests]
    assert [len(each) for each in shown] == [0, 1, 1]
    np.testing.assert_array_equal(shown[1][0].frames_THWC, ramp(2, 500))
    np.testing.assert_array_equal(shown[2][0].frames_THWC, ramp(3, 500))
    assert (shown[1][0].seconds, shown[2][0].seconds) == (7 / FPS, 1 / FPS)

  def test_later_windows_have_noise_of_their_own_and_a_history_that_was_made(self):
    generator = Counting()
    self.made(generator, 21)
    history = [request.conditions[0].strength for request in generator.requests[1:]]
    assert history == [0.75, 0.75] and len({request.seed for request in generator.requests}) == 3
    clips, alone = Counting(), generator.requests
    prompting.clips(clips, [Request("x", 4, 4, 21, FPS, 3)], SAMPLING)
    assert [request.seed for request in clips.requests] == [request.seed for request in alone]

  def test_a_clip_goes_on_as_it_is_extended(self):
    extension = Extension(ramp(5, 1000), "x", FPS, 5, forward=14)
    pieces = list(prompting.onward(Counting(), extension, SAMPLING))
    assert len(pieces) == 4
    np.testing.assert_array_equal(numbers(np.concatenate(pieces)), extended(Counting(), 5, forward=14))

  def test_a_longer_clip_to_change_is_refused(self):
    with pytest.raises(InputError, match="20 frames.*at most 9"):
      self.made(Counting(), 20, edit=Edit(ramp(20), 0.5))


class TestClips:
  def test_short_ones_are_made_at_once_and_longer_ones_go_on_window_by_window(self):
    generator = Counting()
    requests = [Request("x", 4, 4, frames, FPS, number) for number, frames in enumerate((5, 20, 9))]
    made = prompting.clips(generator, requests, SAMPLING)
    assert [len(clip.frames_THWC) for clip in made] == [5, 20, 9]
    assert [request.frames for request in generator.requests] == [5, 9, 9, 9, 8]
    alone = np.concatenate(list(prompting.make(Counting(), requests[1], SAMPLING)))
    np.testing.assert_array_equal(made[1].frames_THWC, alone)

  def test_a_loop_is_made_whole(self):
    generator = Counting()
    prompting.clips(generator, [Request("x", 4, 4, 16, FPS, 0, loop=True)], SAMPLING)
    assert [(request.frames, request.loop) for request in generator.requests] == [(16, True)]


class TestConnect:
  def test_both_clips_go_on_towards_each_other_and_one_fades_into_the_other(self):
    generator = Counting()
    way = Connection(ramp(7, 100), ramp(6, 200), 4, "x", FPS, 0)
    (clip,) = prompting.connect(generator, [way], SAMPLING)
    onward, before = generator.requests
    assert (onward.prompt, before.prompt) == ("x", "")
    np.testing.assert_array_equal(onward.conditions[0].frames_THWC, ramp(3, 104))
    np.testing.assert_array_equal(before.conditions[0].frames_THWC, ramp(3, 200))
    assert (onward.conditions[0].seconds, before.conditions[0].seconds) == (0.0, 4 / FPS)
    fade = numbers(prompting.faded(ramp(4, 3), ramp(4, 0)))
    np.testing.assert_allclose(numbers(clip.frames_THWC), [*range(100, 107), *fade, *range(200, 206)], rtol=1e-5)

  @pytest.mark.parametrize("loops", [0.0, 0.1])
  def test_a_clip_longer_than_known_loops_leads_from_its_last_frames_to_its_first(self, loops):
    generator = Counting(loops=loops)
    (clip,) = prompting.close(generator, [Extension(ramp(20, 100), "x", FPS, 0, forward=4)], SAMPLING)
    onward, before = generator.requests
    assert not onward.loop
    np.testing.assert_array_equal(onward.conditions[0].frames_THWC, ramp(3, 117))
    np.testing.assert_array_equal(before.conditions[0].frames_THWC, ramp(3, 100))
    assert len(clip.frames_THWC) == 24

  def test_a_loop_within_those_of_training_is_made_as_one_from_the_clip_s_ends(self):
    generator = Counting(loops=0.1)
    (clip,) = prompting.close(generator, [Extension(ramp(7, 100), "x", FPS, 0, forward=5)], SAMPLING)
    (request,) = generator.requests
    start, end = request.conditions
    assert request.loop and request.frames == 12 and (start.seconds, end.seconds) == (0.0, 4 / FPS)
    np.testing.assert_array_equal(start.frames_THWC, ramp(3, 100))
    np.testing.assert_array_equal(end.frames_THWC, ramp(3, 104))
    wanted = [*range(100, 107), 7, 8, 9, 10, 11]
    np.testing.assert_allclose(numbers(clip.frames_THWC), wanted, rtol=1e-5)

  def test_an_image_is_one_condition_of_its_loop(self):
    generator = Counting(loops=0.1)
    prompting.close(generator, [Extension(ramp(1), "x", FPS, 0, forward=7)], SAMPLING)
    assert [len(each.frames_THWC) for each in generator.requests[0].conditions] == [1]

  def test_a_loop_that_latent_frames_don_t_fill_is_refused_with_numbers_that_do(self):
    with pytest.raises(InputError, match="7 frames and 4 more are no multiple of 2: ask for 3 or 5 more"):
      prompting.close(Counting(loops=0.1), [Extension(ramp(7), "x", FPS, 0, forward=4)], SAMPLING)

  def test_a_fade_goes_from_one_into_the_other_without_a_step_back(self):
    found = prompting.faded(ramp(5, 0) * 0, ramp(5, 0) * 0 + 1)[:, 0, 0, 0]
    assert (np.diff([0, *found, 1]) > 0).all() and found[2] == pytest.approx(0.5)
    np.testing.assert_allclose(found + found[::-1], 1, atol=1e-6)
    np.testing.assert_allclose(prompting.faded(ramp(5), ramp(5)), ramp(5), atol=1e-6)

  def test_clips_of_two_sizes_and_no_frames_are_refused(self):
    with pytest.raises(InputError, match="4x4 and 5x4"):
      Connection(ramp(3), np.zeros((3, 4, 5, 3), np.float32), 4, "x", FPS, 0)
    with pytest.raises(InputError, match="0 frames"):
      Connection(ramp(3), ramp(3), 0, "x", FPS, 0)
