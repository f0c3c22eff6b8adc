"""The exam over sizes: points follow from the ranges, each is of the kind that it says, and marks stay with theirs."""

import dataclasses
import json
import math

import ml_collections
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import sizes
from sora_jax.inference.generator import Sampling
from sora_jax.patches import Grid

GRID = Grid((2, 4, 4), (1, 1, 1))
SEED, CLIPS = 70, 3
SAMPLING = Sampling(1, "euler", 1.0, 1.0, (0.0, 1.0), False, 0.1)
LISTS = {"frames": (1,) * 9 + (3, 5, 7)}
RANGES = {"frames": (1,) * 9 + ("3..13",), "rates": ("5..20",)}


def section(**changes) -> ml_collections.ConfigDict:
  given = {"source": "worlds:shapes", "sizes": ("20..43x20..43",), "fps": 10.0, "rates": (), "max_tokens": 264}
  return ml_collections.ConfigDict(given | changes)


def kinds(found: list[sizes.Point]) -> list[int]:
  return [sum(point.kind == kind for point in found) for kind in sizes.KINDS]


class TestPoints:
  def test_half_are_trained_on_half_never_and_some_beyond(self):
    found = sizes.points(section(**RANGES), GRID)
    assert found == sizes.points(section(**RANGES), GRID)
    assert kinds(found) == [16, 16, 8]
    trained = [point for point in found if point.kind == "trained"]
    assert len({point.frames for point in trained}) == sizes.DURATIONS
    assert {point.fps for point in trained} == {5.0, 10.0, 20.0} == {point.fps for point in found}
    for frames in {point.frames for point in trained}:
      assert sum(point.frames == frames for point in trained) == sizes.SIZES // 2
    assert len({round(point.width / point.height, 1) for point in trained}) >= 6

  @pytest.mark.parametrize("changes", [LISTS, RANGES])
  def test_each_is_of_its_kind(self, changes):
    data = section(**changes)
    shapes = WorldShapes.of(data, GRID).distinct()
    trained_sizes, durations = {shape[1:] for shape in shapes}, {shape[0] for shape in shapes}
    found = sizes.points(data, GRID)
    assert len(set(found)) == len(found)
    for point in found:
      shape = (point.frames, point.height, point.width)
      within = 20 <= min(shape[1:]) and max(shape[1:]) <= 43 and point.frames <= max(durations)
      assert (shape in shapes) == (point.kind == "trained")
      assert within == (point.kind != "outside") and point.frames > 1
      if point.kind == "inside":
        assert shape[1:] not in trained_sizes and GRID.tokens(*shape) <= 264
    inside = [point.frames in durations for point in found if point.kind == "inside"]
    assert inside.count(True) == inside.count(False)

  def test_beyond_are_sides_and_durations_half_as_large_again(self):
    beyond = [point for point in sizes.points(section(**RANGES), GRID) if point.kind == "outside"]
    sides = [(point.width, point.height) for point in beyond if point.frames == 3]
    assert sides == [(64, 29), (29, 64), (64, 64), (13, 13)]
    assert {point.frames for point in beyond} == {3, 21}  # the first that fills latent frames from 19.5 on

  def test_one_size_and_duration_have_no_inside(self):
    found = sizes.points(section(sizes=("32x32",), frames=(5,)), GRID)
    assert kinds(found) == [1, 0, 5]

  def test_images_alone_are_examined_as_images(self):
    found = sizes.points(section(frames=(1,)), GRID)
    assert {point.frames for point in found if point.kind != "outside"} == {1} and kinds(found)[0] == 4

  @pytest.mark.parametrize(("fps", "kind"), [(4.9, "outside"), (5.0, "trained"), (12.0, "inside"), (16.0, "trained")])
  def test_a_rate_is_trained_inside_or_outside_too(self, fps, kind):
    known = sizes.Known(section(sizes=("32x32",), frames=(5,), rates=("5..10", 16)), GRID)
    assert known.kind((5, 32, 32), fps) == kind


class Codec:
  def encode(self, frames):
    return frames

  def decode(self, latent, shape):
    return latent[:, : shape[0], : shape[1], : shape[2]]


@dataclasses.dataclass
class Generator:
  """Renders the right clip at the points of some kinds, and grey at the others."""

  config: ml_collections.ConfigDict
  points: list[sizes.Point]
  right: tuple[str, ...]
  grid = GRID
  codec = Codec()

  def sample(self, requests, sampling):
    return [self.one(request) for request in requests]

  def one(self, request) -> Clip:
    if request.conditions:  # a window that goes on from another, with a seed of its own
      return Clip(np.zeros((request.frames, request.height, request.width, 3), np.float32), request.fps, "", "")
    number, index = divmod(request.seed - SEED, CLIPS)
    point = self.points[number]
    assert (request.width, request.height, request.fps) == (point.width, point.height, point.fps)
    assert request.frames == min(point.frames, max(frames for frames in LISTS["frames"]))
    size = [(point.height, point.width)]
    source = WorldSource("shapes", CLIPS, size, [point.frames], point.fps, SEED + number, held_out=True)
    frames = source[index].frames_THWC[: request.frames]
    assert request.prompt == source.captions(index)["long"]
    return Clip(frames if point.kind in self.right else np.zeros_like(frames), request.fps, request.prompt, "")


@pytest.fixture(scope="module")
def rows() -> list[sizes.Row]:
  wanted = sizes.points(section(**LISTS), GRID)[::3]
  generator = Generator(ml_collections.ConfigDict({"data": section(**LISTS)}), wanted, ("trained", "inside"))
  told = []
  found = sizes.examine(generator, wanted, SAMPLING, CLIPS, SEED, told.append)
  assert found == told and [row.point for row in found] == wanted
  return found


def test_marks_stay_with_their_point(rows):
  assert {row.point.kind for row in rows} == set(sizes.KINDS)
  for row in rows:
    assert row.tokens == GRID.tokens(row.point.frames, row.point.height, row.point.width)
    for score in row.scores:
      assert score.mean == (0.0 if row.point.kind == "outside" else score.ceiling)


def test_kinds_are_taken_together_over_their_clips(rows):
  found = sizes.together(rows)
  for kind, scores in found.items():
    own = [row for row in rows if row.point.kind == kind]
    for score in scores:
      each = [line.mean for row in own for line in row.scores if line.attribute == score.attribute]
      assert score.mean == pytest.approx(np.mean(each)) and score.low <= score.mean <= score.high
      assert 0 < score.chance < 0.7


def test_the_report_is_json_with_every_point_and_kind(rows):
  found = json.loads(json.dumps(sizes.report(rows), allow_nan=False))
  assert [each["kind"] for each in found["points"]] == [row.point.kind for row in rows]
  assert sum(each["clips"] for each in found["kinds"].values()) == CLIPS * len(rows)
  colour = found["kinds"]["trained"]["scores"]["colour"]
  assert set(colour) == {"mean", "low", "high", "ceiling", "autoencoder", "chance"} and colour["mean"] == 1.0
  rows[0].scores[0] = rows[0].scores[0]._replace(chance=math.nan)
  assert sizes.report(rows[:1])["points"][0]["scores"]["colour"]["chance"] is None


@pytest.mark.parametrize("source", ["clips", "worlds:shapes,clips"])
def test_what_is_no_world_has_no_exam(source):
  generator = Generator(ml_collections.ConfigDict({"data": section(source=source)}), [], ())
  with pytest.raises(InputError, match="one world"):
    sizes.examine(generator, [], SAMPLING, CLIPS)
  with pytest.raises(InputError, match="one world"):
    sizes.examine(generator, [], SAMPLING, CLIPS, world="bites")


def test_of_several_worlds_one_is_chosen():
  generator = Generator(ml_collections.ConfigDict({"data": section(source="worlds:bites, worlds:shapes")}), [], ())
  assert sizes.examine(generator, [], SAMPLING, CLIPS, world="shapes") == []
