"""Every mode from files to clips: what was given comes back as it was, masks are kept, mistakes are named."""

import copy
import dataclasses
import pathlib

import numpy as np
import pytest

from sora_jax.clips import from_uint8
from sora_jax.errors import InputError
from sora_jax.inference import prompting
from sora_jax.inference.generator import Sampling
from sora_jax.jobs import modes
from sora_jax.jobs.modes import MODES, Frame, Media, covering, frame_of, placed, read_mask
from sora_jax.jobs.orders import Order, is_boxes, split_condition
from sora_jax.video import io as video_io

FPS = 8.0


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
  """A still and two videos of other sizes; webp keeps every pixel as it is."""
  folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
  for name, frames, height, width in (("a.webp", 6, 16, 24), ("b.webp", 5, 24, 16), ("still.png", 1, 16, 24)):
    video_io.write(folder / name, rng.integers(0, 255, (frames, height, width, 3), np.uint8), FPS)
  return folder


def shown(path: pathlib.Path, frames: int = 99) -> np.ndarray:
  return from_uint8(video_io.read(path, fps=FPS, max_frames=frames))


def order_of(mode: str, given: dict, frames: int | None = 5, size: str | None = None) -> Order:
  return Order(mode, "w", ("a red circle", "a blue cross"), size, frames, None, 3, "x.mp4", given, None, {})


def made(generator, order: Order) -> list[np.ndarray]:
  frame = frame_of(order, generator)
  clips = MODES[order.mode].make(order, generator, frame, Sampling.of(generator.config))
  return [np.concatenate(list(pieces)) for pieces in clips]


class TestExtend:
  @pytest.mark.parametrize("direction", ["forward", "backward"])
  def test_the_given_frames_come_back_bit_for_bit_however_long_it_gets(self, generator, files, direction):
    """12 frames are three windows of the tiny model, which knows 5 at most."""
    given = shown(files / "a.webp")
    first, second = made(generator, order_of("extend", {"clip": str(files / "a.webp"), "direction": direction}, 12))
    kept, new = (slice(0, 6), slice(6, 18)) if direction == "forward" else (slice(12, 18), slice(0, 12))
    for clip in (first, second):
      assert clip.shape == (18, 16, 24, 3)
      np.testing.assert_array_equal(clip[kept], given)
    assert np.abs(first[new] - second[new]).max() > 1e-3

  def test_both_ways_at_once(self, generator, files):
    given = shown(files / "a.webp")
    extension = prompting.Extension(given, "x", FPS, 0, forward=3, backward=4)
    (clip,) = prompting.extend(generator, [extension], Sampling.of(generator.config))
    assert len(clip.frames_THWC) == 13
    np.testing.assert_array_equal(clip.frames_THWC[4:10], given)

  def test_an_image_can_be_extended(self, generator, files):
    (clip, _) = made(generator, order_of("extend", {"clip": str(files / "still.png")}))
    assert len(clip) == 6
    np.testing.assert_array_equal(clip[:1], shown(files / "still.png"))


def test_a_clip_longer_than_those_of_training_comes_window_by_window(generator):
  order = order_of("sample", {}, 12, "24x16")
  clips = MODES["sample"].make(order, generator, frame_of(order, generator), Sampling.of(generator.config))
  for pieces in clips:
    lengths = [len(piece) for piece in pieces]
    assert sum(lengths) == 12 and max(lengths) <= prompting.window(generator) == 5


class TestConnect:
  def test_both_clips_come_back_and_the_way_has_its_length(self, generator, files):
    """The second is scaled to cover the frame of the first and cut at its centre."""
    paths = [str(files / "a.webp"), str(files / "b.webp")]
    first, second = made(generator, order_of("connect", {"clip": paths}))
    assert first.shape == (6 + 5 + 5, 16, 24, 3)
    np.testing.assert_array_equal(first[:6], shown(files / "a.webp"))
    covering = np.stack([video_io.resize(frame, (36, 24)) for frame in video_io.read(paths[1], fps=FPS, max_frames=9)])
    np.testing.assert_array_equal(first[11:], from_uint8(covering[:, 10:26]))
    assert np.abs(first[6:11] - second[6:11]).max() > 1e-3

  @pytest.mark.parametrize("names", [["a.webp"], ["a.webp"] * 3])
  def test_two_clips_are_needed(self, generator, files, names):
    with pytest.raises(InputError, match=f"two clips.*not {len(names)}"):
      made(generator, order_of("connect", {"clip": [str(files / name) for name in names]}))


class TestLoop:
  def test_a_clip_is_closed_by_frames_that_lead_back(self, generator, files):
    (clip, _) = made(generator, order_of("loop", {"clip": str(files / "a.webp")}, 4))
    assert len(clip) == 10
    np.testing.assert_array_equal(clip[:6], shown(files / "a.webp"))

  def test_a_clip_that_a_model_without_loops_closes_is_warned_of(self, generator, files, capsys):
    for loops in (0.0, 0.5):
      known = copy.copy(generator)
      known.config = copy.deepcopy(generator.config)
      known.config.data.loops = loops
      made(known, order_of("loop", {"clip": str(files / "a.webp")}, 4))
      assert ("was trained on no loops" in capsys.readouterr().err) == (not loops)

  def test_a_loop_of_a_prompt_has_the_frames_asked_for(self, generator):
    assert [clip.shape for clip in made(generator, order_of("loop", {}, 4, "24x16"))] == [(4, 16, 24, 3)] * 2

  def test_one_that_latent_frames_don_t_fill_is_refused_with_the_nearest(self, generator):
    with pytest.raises(InputError, match="a multiple of 2 frames, not 5: ask for 4"):
      made(generator, order_of("loop", {}, 5, "24x16"))

  @pytest.mark.parametrize(
    ("loops", "frames", "warned"), [(0.0, 4, False), (0.0, 8, True), (0.5, 8, False), (0.5, 10, True)]
  )
  def test_one_longer_than_training_saw_is_warned_of(self, generator, capsys, loops, frames, warned):
    """Of clips of 5 frames: there and back they are loops of 8."""
    known = copy.copy(generator)
    known.config = copy.deepcopy(generator.config)
    known.config.data.loops = loops
    made(known, order_of("loop", {}, frames, "24x16"))
    said = capsys.readouterr().err
    assert ("made at once" in said) == warned and ("was trained on no loops" in said) == (not loops)


class TestEdit:
  def test_of_a_video_no_picture_is_made(self, generator, files):
    order = dataclasses.replace(order_of("edit", {"clip": str(files / "a.webp")}, None), out="x.PNG")
    with pytest.raises(InputError, match="png holds one frame, and .*a.webp is a video"):
      made(generator, order)

  def test_at_0_the_clip_is_back_as_the_autoencoder_has_it(self, generator, files):
    given = shown(files / "a.webp")
    wanted = generator.codec.decode(generator.codec.encode(given[None]), given.shape[:3])[0]
    clips = made(generator, order_of("edit", {"clip": str(files / "a.webp"), "strength": 0.0}, None))
    np.testing.assert_allclose(clips, [wanted] * 2, atol=1e-5)

  def test_outside_of_a_mask_every_pixel_is_kept(self, generator, files):
    given = shown(files / "a.webp")
    for clip in made(generator, order_of("edit", {"clip": str(files / "a.webp"), "mask": "8,4,16,12"}, None)):
      inside = np.zeros((6, 16, 24), bool)
      inside[:, 4:12, 8:16] = True
      np.testing.assert_array_equal(clip[~inside], given[~inside])
      assert np.abs(clip[inside] - given[inside]).mean() > 0.01

  def test_in_a_larger_frame_it_lies_in_the_middle_and_stays(self, generator, files):
    given = shown(files / "a.webp")
    for clip in made(generator, order_of("edit", {"clip": str(files / "a.webp")}, None, "40x24")):
      assert clip.shape == (6, 24, 40, 3)
      np.testing.assert_array_equal(clip[:, 4:20, 8:32], given)

  def test_a_smaller_frame_is_refused(self, generator, files):
    with pytest.raises(InputError, match="--size 16x16: .*at least as large, and it is 24x16"):
      made(generator, order_of("edit", {"clip": str(files / "a.webp")}, None, "16x16"))

  def test_frames_cut_the_clip(self, generator, files):
    clips = made(generator, order_of("edit", {"clip": str(files / "a.webp"), "strength": 0.0}, 3))
    assert len(clips[0]) == 3

  def test_more_frames_than_the_clip_has_are_refused(self, generator, files):
    with pytest.raises(InputError, match="--frames 7: .*a.webp has 6 at 8 a second"):
      made(generator, order_of("edit", {"clip": str(files / "a.webp"), "strength": 0.0}, 7))


class TestMasks:
  MEDIA, FRAME = Media("c.mp4", 16, 24, FPS), Frame(16, 24, FPS)

  def mask(self, text: str) -> np.ndarray:
    return read_mask(text, self.MEDIA, (6, 16, 24), self.FRAME)

  def test_boxes_are_in_pixels_and_seconds_and_add_up(self):
    wanted = np.zeros((6, 16, 24), bool)
    wanted[:, 2:5, 1:4] = True
    wanted[2:4, 8:16, 20:24] = True
    np.testing.assert_array_equal(self.mask("1,2,4,5; 20,8,30,99,0.25,0.5"), wanted)

  def test_a_box_may_begin_before_the_clip_and_outside_of_it(self):
    wanted = np.zeros((6, 16, 24), bool)
    wanted[:2, :5, :4] = True
    np.testing.assert_array_equal(self.mask("-3,-9,4,5,-0.5,0.25"), wanted)

  @pytest.mark.parametrize(
    "text", ["1,2,3", "1,2,3,4,5", "30,0,40,8", "4,4,4,8", "0,0,4,4,2,3", "0,0,4,4,-2,-1", "-4,0,-1,8", "-", ";", " "]
  )
  def test_what_is_no_box_of_the_clip_is_named(self, text):
    with pytest.raises(InputError, match=f"--mask {text}"):
      self.mask(text)

  def test_an_image_s_light_parts_may_change_throughout(self, tmp_path):
    light = np.zeros((1, 16, 24, 3), np.uint8)
    light[:, :5] = 200
    video_io.write(tmp_path / "mask.png", light, FPS)
    found = self.mask(str(tmp_path / "mask.png"))
    assert found[:, :5].all() and not found[:, 5:].any()

  def test_a_mask_without_a_light_part_is_refused(self, tmp_path):
    video_io.write(tmp_path / "m.png", np.zeros((1, 16, 24, 3), np.uint8), FPS)
    with pytest.raises(InputError, match="m.png is dark all over"):
      read_mask(str(tmp_path / "m.png"), Media("a", 16, 24, FPS), (3, 16, 24), Frame(16, 24, FPS))

  def test_a_box_with_a_letter_is_no_file(self):
    with pytest.raises(InputError, match="--mask 0,0,x,5: no such file, and a box is x0,y0,x1,y1"):
      read_mask("0,0,x,5", Media("a", 16, 24, FPS), (3, 16, 24), Frame(16, 24, FPS))

  def test_a_mask_of_another_size_is_refused_with_both(self, files):
    with pytest.raises(InputError, match="is 16x24 and the clip 24x16"):
      self.mask(str(files / "b.webp"))

  def test_around_a_clip_its_edge_is_repeated_and_all_may_change(self):
    clip = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    frames, mask = placed(clip, Frame(6, 4, FPS))
    np.testing.assert_array_equal(frames[:, 1:4], clip)
    np.testing.assert_array_equal(frames[:, 4:], clip[:, -1:].repeat(2, 1))
    assert mask[:, 0].all() and mask[:, 4:].all() and not mask[:, 1:4].any()


class TestConditions:
  def test_keyframes_reach_the_clip(self, generator, files):
    order = order_of("sample", {}, 5, "24x16")
    plain = made(generator, order)
    given = {"condition": [f"{files / 'still.png'}@0", f"{files / 'still.png'}@0.5:0.5"]}
    assert np.abs(np.stack(made(generator, order_of("sample", given, 5, "24x16"))) - plain).max() > 1e-4

  def test_two_of_one_frame_are_refused(self, generator, files):
    given = {"condition": [f"{files / 'still.png'}@0.125", f"{files / 'a.webp'}@0"]}
    with pytest.raises(InputError, match="two conditions show the frame at 0.125 seconds"):
      made(generator, order_of("sample", given, 6, "24x16"))
    with pytest.raises(InputError, match="two conditions show the frame at 0 seconds"):
      made(generator, order_of("animate", {"image": str(files / "still.png"), "condition": given["condition"][1:]}))

  def test_a_file_of_another_shape_covers_the_frame_and_is_cut(self, files):
    square = covering("image", str(files / "still.png"), Frame(16, 16, FPS), 1)
    np.testing.assert_array_equal(square, shown(files / "still.png")[:, :, 4:20])

  def test_a_condition_beyond_the_clip_is_refused(self, generator, files):
    with pytest.raises(InputError, match="from 0.75 to 0.75 seconds.*0 to 0.5"):
      made(generator, order_of("sample", {"condition": [f"{files / 'still.png'}@0.75"]}, 5, "24x16"))

  @pytest.mark.parametrize(
    ("text", "parts"), [("a.png@1", ("a.png", 1, 1)), ("a@b.png@1.5:0.25", ("a@b.png", 1.5, 0.25))]
  )
  def test_a_condition_is_a_file_a_time_and_a_strength(self, text, parts):
    assert split_condition(text) == parts

  @pytest.mark.parametrize("text", ["a.png", "@1", "a.png@x", "a.png@1:", "a.png@1:x", "a@inf", "a@nan", "a@0:nan"])
  def test_what_is_none_is_named(self, text):
    with pytest.raises(InputError, match="FILE@SECONDS"):
      split_condition(text)

  def test_boxes_are_told_from_files(self):
    assert is_boxes("0,0,8,8") and is_boxes("0,0,8,8,0,1.5; 1,2,3,4") and not is_boxes("mask.png") and not is_boxes("")


def test_a_video_that_is_too_long_to_be_read_whole_is_refused_and_not_cut(files, monkeypatch):
  assert covering("clip", str(files / "a.webp"), Frame(16, 24, FPS)).shape == (6, 16, 24, 3)
  monkeypatch.setattr(modes, "MAX_FRAMES", 5)
  with pytest.raises(InputError, match="--clip .*a.webp has more than 5 frames at 8 a second: cut it first"):
    covering("clip", str(files / "a.webp"), Frame(16, 24, FPS))
  assert len(covering("image", str(files / "a.webp"), Frame(16, 24, FPS), 1)) == 1


def test_a_clip_s_own_size_and_rate_are_taken_where_none_is_asked_for(generator, files):
  found = frame_of(order_of("extend", {"clip": str(files / "a.webp")}), generator)
  assert found == Frame(16, 24, FPS)
  order = order_of("animate", {"image": str(files / "still.png")}, size="8x4")
  assert frame_of(order, generator) == Frame(4, 8, generator.config.data.fps)
