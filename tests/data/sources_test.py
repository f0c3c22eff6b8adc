"""Sources: shapes are told without rendering, a number is always the same clip, and folders and worlds look alike."""

import json
import pathlib

import ml_collections
import numpy as np
import pytest

from sora_jax.data import video_io
from sora_jax.data.sources import WorldSource, open_source, parse_size

SIZES = [(16, 16), (12, 20)]


def make_source(**changes) -> WorldSource:
  given = {"world": "shapes", "clips": 12, "sizes": SIZES, "frames": (1, 5), "fps": 8.0, "seed": 3}
  return WorldSource(**(given | changes))


def section(**changes) -> ml_collections.ConfigDict:
  given = {"source": "worlds:shapes", "clips": 7, "sizes": ("20x12",), "frames": (1, 3), "fps": 8.0, "max_frames": 4}
  return ml_collections.ConfigDict(given | changes)


class TestWorldSource:
  def test_shapes_are_those_of_the_clips(self):
    source = make_source()
    for index in range(len(source)):
      clip = source[index]
      assert clip.frames_THWC.shape == (*source.shape(index), 3)
      assert clip.frames_THWC.dtype == np.float32 and np.abs(clip.frames_THWC).max() <= 1
      assert clip.fps == 8.0

  def test_every_size_and_duration_has_as_many_clips(self):
    source = make_source()
    shapes = [source.shape(index) for index in range(12)]
    assert {shapes.count(shape) for shape in shapes} == {3}
    assert set(shapes) == {(t, h, w) for t in (1, 5) for h, w in SIZES}

  def test_every_other_image_s_caption_tells_no_motion(self):
    source, found = make_source(), []
    for index in range(len(source)):
      frames = source.shape(index)[0]
      still = source.world.caption(source.state(index), "long", still=True)
      moving = source.world.caption(source.state(index), "long", still=False)
      assert still != moving
      said = source.captions(index)["long"]
      assert said in ((still, moving) if frames == 1 else (moving,))
      found += [said == still] if frames == 1 else []
      assert source[index].caption == source.captions(index)["long"]
    assert 0.2 < np.mean(found) < 0.8

  def test_a_number_is_the_same_clip_whatever_was_asked_before(self):
    first, second = make_source(), make_source()
    _ = [second[index] for index in (7, 2)]
    np.testing.assert_array_equal(first[5].frames_THWC, second[5].frames_THWC)
    assert first.captions(5) == second.captions(5)

  def test_ids_are_unique_and_clips_differ(self):
    source = make_source()
    assert len({source[index].id for index in range(len(source))}) == len(source)
    assert len({source.state(index) for index in range(len(source))}) == len(source)
    assert make_source(seed=4).state(0) != source.state(0)

  def test_held_out_combinations_are_never_trained_on(self):
    pairs = lambda source: {(source.state(i).colour, source.state(i).shape) for i in range(len(source))}
    training, exam = pairs(make_source(clips=200)), pairs(make_source(clips=200, held_out=True))
    assert training and exam and not training & exam

  @pytest.mark.parametrize(
    "change",
    [
      {"seed": 4},
      {"clips": 13},
      {"sizes": [(16, 16)]},
      {"frames": (1, 6)},
      {"fps": 9.0},
      {"held_out": True},
      {"world": "uniform"},
    ],
    ids=lambda change: next(iter(change)),
  )
  def test_the_fingerprint_changes_with_the_clips(self, change):
    assert make_source().fingerprint == make_source().fingerprint
    assert make_source(**change).fingerprint != make_source().fingerprint


class TestParseSize:
  def test_width_comes_first_in_text_and_height_in_arrays(self):
    assert parse_size("320x192") == (192, 320)
    assert parse_size("1X8192") == (8192, 1)

  @pytest.mark.parametrize("text", ["", "32", "x", "32x", "0x32", "32x0", "-1x5", "8193x5", "5x8193", "1.5x2", "3x4x5"])
  def test_what_is_no_size_is_named(self, text):
    with pytest.raises(ValueError, match="WIDTHxHEIGHT") as caught:
      parse_size(text)
    assert repr(text) in str(caught.value)


class TestOpenSource:
  def test_a_world(self):
    source = open_source(section(), seed=5)
    assert len(source) == 7
    assert {source.shape(index) for index in range(7)} == {(1, 12, 20), (3, 12, 20)}
    assert source.fingerprint == WorldSource("shapes", 7, [(12, 20)], (1, 3), 8.0, 5).fingerprint

  def test_held_out_states_of_a_world(self):
    assert open_source(section(), 5, held_out=True).held_out

  def test_an_unknown_world_is_answered_with_the_nearest(self):
    with pytest.raises(ValueError, match="'shaped'.*'shapes'"):
      open_source(section(source="worlds:shaped"), 0)

  def test_a_folder(self, tmp_path: pathlib.Path):
    rng = np.random.default_rng(0)
    video_io.write(tmp_path / "a.mp4", rng.integers(0, 255, (8, 16, 24, 3), np.uint8), 8)
    video_io.write(tmp_path / "b.png", rng.integers(0, 255, (1, 40, 20, 3), np.uint8), 1)
    rows = [{"file": "a.mp4", "caption": "Snow."}, {"file": "b.png", "short": "Rain.", "long": "Rain falls."}]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(section(source=str(tmp_path)), 0, fit=lambda frames, height, width: (height - frames, width))
    assert [source.shape(0), source.shape(1)] == [(4, 12, 24), (1, 39, 20)]  # cut to 4 frames, then fitted
    assert source.captions(1) == {"short": "Rain.", "long": "Rain falls."}
    for index in range(2):
      assert source[index].frames_THWC.shape == (*source.shape(index), 3)

  def test_a_missing_folder_is_named(self, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="nowhere"):
      open_source(section(source=str(tmp_path / "nowhere")), 0)
