"""Clips of a world by number: shapes are told without rendering, and a number is always the same clip."""

import pickle

import ml_collections
import numpy as np
import pytest

from sora_jax.data.sources import shapes_of
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.patches import Grid
from sora_jax.worlds.world import world_names

SIZES = [(16, 16), (12, 20)]


def make_source(**changes) -> WorldSource:
  given = {"world": "shapes", "clips": 12, "sizes": SIZES, "frames": (1, 5), "fps": 8.0, "seed": 3}
  return WorldSource(**(given | changes))


def test_shapes_are_those_of_the_clips():
  source = make_source()
  for index in range(len(source)):
    clip = source[index]
    assert clip.frames_THWC.shape == (*source.shape(index), 3)
    assert clip.frames_THWC.dtype == np.float32 and np.abs(clip.frames_THWC).max() <= 1
    assert clip.fps == 8.0


def test_every_size_and_duration_has_as_many_clips():
  source = make_source()
  shapes = [source.shape(index) for index in range(12)]
  assert {shapes.count(shape) for shape in shapes} == {3}
  assert set(shapes) == {(t, h, w) for t in (1, 5) for h, w in SIZES}


def test_every_other_image_s_caption_tells_no_motion():
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


def test_a_number_is_the_same_clip_whatever_was_asked_before():
  first, second = make_source(), make_source()
  _ = [second[index] for index in (7, 2)]
  np.testing.assert_array_equal(first[5].frames_THWC, second[5].frames_THWC)
  assert first.captions(5) == second.captions(5)


def test_ids_are_unique_and_clips_differ():
  source = make_source()
  assert len({source[index].id for index in range(len(source))}) == len(source)
  assert len({source.state(index) for index in range(len(source))}) == len(source)
  assert make_source(seed=4).state(0) != source.state(0)


def test_held_out_combinations_are_never_trained_on():
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
def test_the_fingerprint_changes_with_the_clips(change):
  assert make_source().fingerprint == make_source().fingerprint
  assert make_source(**change).fingerprint != make_source().fingerprint


def drawn(clips: int = 40, seed: int = 3, **changes) -> WorldSource:
  """Clips whose sizes, durations and rates are from ranges."""
  given = {"clips": clips, "sizes": ("12..24x12..24",), "frames": (1, "3..9"), "max_tokens": 60, "fps": 8.0}
  section = ml_collections.ConfigDict(given | {"rates": ("5..20",)} | changes)
  return WorldSource.of(section, "shapes", WorldShapes.of(section, Grid((2, 4, 4), (1, 1, 1))), seed)


def test_each_clip_draws_its_own_rate_and_the_columns_tell_it():
  source, longer = drawn(), drawn(clips=5000)
  shapes = shapes_of(source)
  for index in range(len(source)):
    clip = source[index]
    assert clip.frames_THWC.shape[:3] == source.shape(index) == tuple(shapes.shape_N3[index])
    assert clip.fps == source.fps(index) == shapes.fps_N[index] == longer.fps(index)
  rates = shapes_of(longer).fps_N
  assert 5 <= rates.min() < rates.max() <= 20 and len(np.unique(rates)) > 500
  assert abs((rates < 10).mean() - 0.5) < 0.03  # half of the clips are below the middle of the logarithm
  assert (drawn(seed=4).fps_column() != source.fps_column()).mean() > 0.9


def test_rates_are_as_even_within_a_shape():
  source = drawn(clips=20_000)
  shapes = shapes_of(source)
  alike = np.unique(shapes.shape_N3, axis=0, return_inverse=True)[1].reshape(-1)
  for number in range(alike.max() + 1):
    own = shapes.fps_N[alike == number]
    assert abs((own < 10).mean() - 0.5) < 3 / np.sqrt(len(own))


@pytest.mark.parametrize("change", [{"rates": ("5..21",)}, {"rates": ()}, {"frames": (1, "3..7")}, {"frames": (1, 3)}])
def test_the_fingerprint_changes_with_what_is_drawn(change):
  assert drawn().fingerprint == drawn().fingerprint != drawn(**change).fingerprint


@pytest.mark.parametrize("index", [12, -1, 10**9])
def test_there_are_as_many_clips_as_it_was_opened_with(index):
  source = make_source()
  with pytest.raises(IndexError):
    source[index]
  assert len(list(source)) == len(source) == 12


@pytest.mark.parametrize("world", world_names())
def test_a_source_that_is_sent_to_another_process_gives_the_same_clips(world):
  source = make_source(world=world, held_out=True)
  sent = pickle.loads(pickle.dumps(source))
  assert sent.fingerprint == source.fingerprint
  for index in (0, 2, 11):
    np.testing.assert_array_equal(sent[index].frames_THWC, source[index].frames_THWC)
    assert sent.captions(index) == source.captions(index) and sent.where(index) == source.where(index)


def test_a_clip_is_named_by_its_world_seed_and_number():
  assert make_source().where(4) == ("shapes-3-4", 0)
  assert make_source()[4].id == "shapes-3-4" and make_source().dropped == ()


@pytest.mark.parametrize("change", [{"frames": (0,)}, {"frames": ()}, {"sizes": []}, {"clips": 0}, {"fps": 0.0}])
def test_a_world_with_nothing_to_show_is_refused(change):
  given = {"world": "shapes", "clips": 2, "sizes": [(8, 8)], "frames": (1,), "fps": 8.0, "seed": 0}
  with pytest.raises(ValueError, match="above 0"):
    WorldSource(**(given | change))
