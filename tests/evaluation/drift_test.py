"""Drift of long clips: what is said of a model that knows the world, stands still, or shows nothing."""

import dataclasses

import ml_collections
import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.world_source import WorldSource
from sora_jax.evaluation import drift
from sora_jax.evaluation.prompting import Subject
from sora_jax.inference.generator import Sampling
from sora_jax.patches import Grid


@dataclasses.dataclass
class Model:
  """Goes on as the world does, holds what it was given, or shows nothing."""

  kind: str
  source: WorldSource
  grid: Grid = Grid((4, 8, 8), (1, 1, 1))

  def __post_init__(self):
    self.config = ml_collections.ConfigDict({"data": {"source": "clips", "max_frames": 9}})
    self.shown: dict[int, int] = {}  # frames of each clip so far

  def sample(self, requests, sampling):
    return [Clip(self.frames(request), request.fps, request.prompt, "") for request in requests]

  def frames(self, request) -> np.ndarray:
    given = request.conditions[0].frames_THWC
    if self.kind == "still":
      return np.concatenate([given, np.repeat(given[-1:], request.frames - len(given), axis=0)])
    if self.kind == "nothing":
      return np.zeros((request.frames, *given.shape[1:]), np.float32)
    number = next(n for n in range(len(self.source)) if self.source.captions(n)["long"] == request.prompt)
    end = self.shown.get(number, len(given)) + request.frames - len(given)
    self.shown[number] = end
    height, width = given.shape[1:3]
    return self.source.world.render(self.source.state(number), height, width, end, request.fps)[-request.frames :]


@dataclasses.dataclass
class Sampled:
  history_level: float = 0.0


def subject(kind: str) -> Subject:
  source = WorldSource("shapes", 4, [(32, 32)], (9,), 8.0, 1, held_out=True)
  return Subject.of(Model(kind, source), Sampled(), source)


def test_a_model_that_knows_the_world_does_not_drift():
  found = drift.long(subject("true"))
  assert len(found["error_by_frame"]) == 36 and max(found["error_by_frame"]) < 1e-6 and found["lost"] == 0
  minute = drift.minute(subject("true"), 6.0)
  assert minute["error_by_second"] == [0.0] * 6 and 0.1 < minute["chance"] < 1.0


def test_one_that_stands_still_drifts_away():
  found = drift.long(subject("still"))
  assert found["growth_inside"] > 0.1 and found["error_by_frame"][8] > 10 * max(found["error_by_frame"][0], 0.01)


def test_one_that_shows_nothing_has_no_error_but_is_lost():
  found = drift.minute(subject("nothing"), 4.0)
  assert found["error_by_second"][1:] == [None] * 3 and found["lost"] > 0.8
  assert drift.long(subject("nothing"))["growth_beyond"] is None


def test_means_leave_out_what_is_not_seen():
  errors = np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan]])
  np.testing.assert_array_equal(drift.mean_of(errors), [2.0, 2.0, np.nan])


def test_a_hardly_trained_model_is_measured(generator):
  """The whole way, with the tiny model."""
  sampling = dataclasses.replace(Sampling.of(generator.config), steps=1, guidance=1.0)
  source = WorldSource("shapes", 3, [(16, 16)], (5,), 8.0, 1, held_out=True)
  assert len(drift.minute(Subject.of(generator, sampling, source), 2.0)["error_by_second"]) == 2
