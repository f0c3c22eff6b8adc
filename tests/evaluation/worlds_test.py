"""The exam of all worlds: which clips, which prompts, what its protocol depends on."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.errors import InputError
from sora_jax.evaluation import worlds
from sora_jax.patches import Grid


def test_of_a_world_s_mean_ceiling_and_chance_weigh_attributes_as_its_clips_do():
  marks = {"w.a": [1.0, 1.0, 0.0, 0.0, None], "w.b": [1.0, None, 0.0, None, None], "w.a, short prompt": [1.0] * 5}
  scores = {name: {"ceiling": 1.0, "autoencoder": None, "chance": 0.2} for name in marks}
  scores["w.b"] = {"ceiling": 0.6, "autoencoder": 0.5, "chance": 0.8}
  found = worlds.means({"scores": scores, "marks": marks})["w"]
  # Of clips with 1 and 1, 1, 0 and 0, 0; three quarters of which are "a".
  assert found["mean"] == 0.5 and found["low"] < 0.5 < found["high"]
  assert (found["ceiling"], found["autoencoder"], found["chance"]) == (0.9, 0.5, 0.35)


@dataclasses.dataclass(frozen=True)
class Sampled:
  history_level: float = 0.1
  steps: int = 4


class Codec:
  def encode(self, frames):
    return frames

  def decode(self, latent, shape):
    return latent


class Model:
  """Holds the last given frame, or shows the true clip of a long prompt, or nothing."""

  grid, codec = Grid((2, 4, 4), (1, 1, 1)), Codec()

  def __init__(self, source="worlds:shapes,worlds:bites", **data):
    known = {"source": source, "sizes": ("32x32",), "frames": (1, 5), "fps": 8.0, "max_frames": 5, "max_tokens": 0}
    self.config = ml_collections.ConfigDict({"data": {**known, "rates": (), "clips": 9, **data}})

  def sample(self, requests, sampling):
    return [Clip(self.frames(request), request.fps, request.prompt, "") for request in requests]

  def frames(self, request) -> np.ndarray:
    if request.conditions:
      given = request.conditions[0].frames_THWC
      return given[np.minimum(np.arange(request.frames), len(given) - 1)]
    for source in worlds.sources(self, 4).values():
      for index in range(len(source)):
        if source.captions(index)["long"] == request.prompt:
          return source[index].frames_THWC
    return np.zeros((request.frames, request.height, request.width, 3), np.float32)


def test_each_world_is_examined_with_long_and_short_prompts_and_from_first_frames():
  model, told = Model(), []
  found = worlds.examine(model, Sampled(), worlds.sources(model, 4), told.append)
  endings = [ending for ending, _, _ in worlds.KINDS.values()]
  assert told == [world + ending for world in ("shapes", "bites") for ending in endings]
  for world, attribute in (("shapes", "direction"), ("bites", "colour")):
    long, short, given = (found["scores"][f"{world}.{attribute}{ending}"] for ending in endings)
    assert long["mean"] == long["ceiling"] == 1.0 and short["mean"] == 0.0
    assert given["mean"] == given["trivial"] and "trivial" not in long  # this model knows no motion
    assert len(found["marks"][f"{world}.{attribute}"]) == 4
  assert found["marks"].keys() == found["scores"].keys() and found["errors"] == {}
  some = worlds.examine(model, Sampled(), worlds.sources(model, 4), kinds=("short",))
  assert some["protocol"] == found["protocol"] and all(name.endswith(", short prompt") for name in some["scores"])
  assert {name: found["scores"][name] for name in some["scores"]} == some["scores"]


def test_clips_from_first_frames_are_longer_than_these():
  """Of 3 frames two latent ones are all; a model whose clips have no more is not asked."""
  mixed = worlds.examine(Model(frames=(3, 5)), Sampled(), worlds.sources(Model(frames=(3, 5)), 4))
  assert mixed["scores"]["bites.colour, frames given"]["mean"] > 0
  assert worlds.longer(worlds.sources(Model(frames=(3, 5)), 4)["bites"], 3).shapes.distinct() == [(5, 32, 32)]
  short = worlds.examine(Model(frames=(3,)), Sampled(), worlds.sources(Model(frames=(3,)), 4))
  assert not any(name.endswith("frames given") for name in short["scores"])


def test_a_model_of_images_is_asked_for_images():
  model = Model(source="worlds:shapes, worlds:bites", frames=(1,))
  found = worlds.sources(model, 2)
  assert list(found) == ["shapes", "bites"] and found["bites"].shape(0) == (1, 32, 32)


def test_clips_are_held_out_videos():
  for source in worlds.sources(Model(), 6).values():
    assert source.held_out and len(source) == 6 and {source.shape(index)[0] for index in range(6)} == {5}


@pytest.mark.parametrize("source", ["clips", "worlds:shapes,clips"])
def test_other_clips_than_worlds_are_refused(source):
  with pytest.raises(InputError, match="an exam reads clips of worlds"):
    worlds.sources(Model(source), 2)


def test_the_protocol_is_of_all_that_is_asked():
  model = Model()
  asked = worlds.sources(model, 4)
  same = worlds.protocol(asked, Sampled(), 3)
  assert same == worlds.protocol(worlds.sources(Model(), 4), Sampled(), 3) and len(same) == 16
  others = [
    worlds.protocol(asked, Sampled(steps=5), 3),
    worlds.protocol(asked, Sampled(), 5),
    worlds.protocol(worlds.sources(model, 5), Sampled(), 3),
    worlds.protocol(worlds.sources(Model(sizes=("32x40",)), 4), Sampled(), 3),
    worlds.protocol(dict(list(asked.items())[:1]), Sampled(), 3),
  ]
  assert len({same, *others}) == 6


def test_another_version_of_a_world_is_another_protocol(monkeypatch):
  asked = worlds.sources(Model(), 2)
  before = worlds.protocol(asked, Sampled(), 3)
  monkeypatch.setattr(asked["bites"].world, "version", 99)
  assert worlds.protocol(asked, Sampled(), 3) != before


def test_a_difference_has_an_interval_around_its_mean():
  gap, low, high = worlds.difference([0, 0, 1, 1] * 10, [0, 1, 1, 1] * 10)
  assert worlds.difference([0.0, None, 1.0], [1.0, 1.0, None]) == (1.0, 1.0, 1.0)
  assert gap == 0.25 and 0.1 < low < gap < high < 0.5
