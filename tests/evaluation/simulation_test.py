"""The exam: real renders pass it whole, grey clips fail it, and every line stands beside its ceiling and chance."""

import ml_collections
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.data.world_source import WorldSource
from sora_jax.evaluation import simulation
from sora_jax.evaluation.simulation import examine, requests_of, through
from sora_jax.patches import Grid

SEED = 50


class FakeCodec:
  """Its latents are the frames, dimmed by `factor`; it notes the sizes it codes."""

  def __init__(self, factor: float = 1.0):
    self.factor, self.seen = factor, []

  def encode(self, frames):
    self.seen.append(frames.shape)
    return frames * self.factor

  def decode(self, latent, shape):
    assert latent.shape[1:4] == tuple(shape)
    return latent


class FakeGenerator:
  """Returns `make(index)` for the request of clip `index`."""

  grid = Grid((4, 8, 8), (1, 1, 1))
  config = ml_collections.ConfigDict({"data": {"source": "clips", "max_frames": 99}})

  def __init__(self, make, codec=None):
    self.make, self.codec, self.batches = make, codec or FakeCodec(), []

  def sample(self, requests, sampling):
    self.batches.append(len(requests))
    return [Clip(self.make(r.seed - SEED, r), r.fps, r.prompt, str(r.seed)) for r in requests]


@pytest.fixture(scope="module")
def source() -> WorldSource:
  return WorldSource("shapes", 12, [(32, 32), (24, 40)], (9,), 8.0, 1, held_out=True)


def grey(_, request) -> np.ndarray:
  return np.zeros((request.frames, request.height, request.width, 3), np.float32)


def test_real_renders_have_the_ceiling_as_score(source):
  exam = examine(FakeGenerator(lambda i, _: source[i].frames_THWC), source, None, SEED)
  assert {score.attribute for score in exam.scores} >= {"colour", "shape", "direction"}
  for score in exam.scores:
    assert score.mean == score.low == score.high == score.ceiling == score.autoencoder == 1.0
    assert 0 < score.chance < 0.7
  assert len(exam.clips) == len(exam.marks) == len(source)
  assert all(set(mark.values()) == {1.0} for mark in exam.marks)


def test_grey_clips_have_none_right(source):
  exam = examine(FakeGenerator(grey), source, None, SEED)
  assert exam.scores
  for score in exam.scores:
    assert (score.mean, score.low, score.high, score.ceiling) == (0.0, 0.0, 0.0, 1.0)


def test_chance_is_not_a_number_where_no_guess_applies(source, monkeypatch):
  monkeypatch.setattr(simulation, "chance", lambda world, *_: dict.fromkeys(world.attributes))
  exam = examine(FakeGenerator(grey), source, None, SEED)
  assert exam.scores and all(np.isnan(score.chance) for score in exam.scores)


def test_half_right_is_between_and_each_clip_keeps_its_mark(source):
  make = lambda i, request: source[i].frames_THWC if i % 2 else grey(i, request)
  exam = examine(FakeGenerator(make), source, None, SEED)
  colour = next(score for score in exam.scores if score.attribute == "colour")
  assert colour.mean == 0.5 and 0 <= colour.low < 0.5 < colour.high <= 1
  assert [mark["colour"] for mark in exam.marks] == [0.0, 1.0] * 6


def test_what_the_autoencoder_loses_shows_in_its_own_line(source):
  generator = FakeGenerator(lambda i, _: source[i].frames_THWC, FakeCodec(factor=0.0))
  for score in examine(generator, source, None, SEED).scores:
    assert (score.mean, score.autoencoder) == (1.0, 0.0)


def test_clips_are_asked_for_by_caption_alone_in_batches(source, monkeypatch):
  monkeypatch.setattr(simulation, "BATCH", 5)
  generator = FakeGenerator(grey)
  done = []
  examine(generator, source, None, SEED, progress=done.append)
  assert generator.batches == [5, 5, 2] and done == [5, 10, 12]


@pytest.mark.parametrize("style", ["short", "long"])
def test_a_request_is_the_clip_s_caption_size_and_rate(source, style):
  requests = requests_of(source, style, SEED)
  assert len(requests) == len(source)
  for index, request in enumerate(requests):
    assert (request.frames, request.height, request.width) == source.shape(index)
    assert (request.prompt, request.seed, request.fps) == (source.captions(index)[style], SEED + index, 8.0)
    assert request.conditions == () and request.edit is None


def test_through_keeps_order_and_shapes_and_codes_a_size_at_once():
  rng = np.random.default_rng(0)
  shapes = [(1, 4, 4, 3), (3, 4, 6, 3), (1, 4, 4, 3), (3, 6, 4, 3), (3, 4, 6, 3)]
  clips = [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]
  codec = FakeCodec(0.5)
  for found, clip in zip(through(codec, clips), clips, strict=True):
    np.testing.assert_array_equal(found, clip * 0.5)
  assert sorted(codec.seen) == sorted([(2, 1, 4, 4, 3), (2, 3, 4, 6, 3), (1, 3, 6, 4, 3)])


def test_beside_given_frames_stand_those_who_know_no_motion_and_no_forces():
  source = WorldSource("uniform", 6, [(48, 48)], (9,), 8.0, 1)
  held = lambda i, request: simulation.held_from(source[i].frames_THWC, 3)
  exam = examine(FakeGenerator(held), source, None, SEED, given=3)
  velocity = next(score for score in exam.scores if score.attribute == "velocity")
  assert velocity.mean == velocity.trivial < velocity.linear == velocity.ceiling == 1.0
  assert simulation.figures(velocity)["linear"] == 1.0
  alone = examine(FakeGenerator(held), source, None, SEED)
  assert not any("trivial" in simulation.figures(score) for score in alone.scores)


def test_what_a_world_measures_beside_its_marks_is_told_by_its_median():
  class Measured:
    def errors(self, frames, fps, state):
      return {} if state is None else {"px": float(frames) * fps * state}

  states, rates = [1.0, 2.0, 3.0, None], [10.0] * 4
  whose = {"median": [1.0, np.inf, 1.0, 1.0], "ceiling": [0.1, 0.1, 0.1, 9.0], "autoencoder": [1.0, *[np.inf] * 3]}
  found = simulation.medians(Measured(), states, rates, whose)
  assert found == {"px": {"median": 30.0, "ceiling": 2.0, "autoencoder": None}}
  assert simulation.medians(object(), states, rates, whose) == {}
