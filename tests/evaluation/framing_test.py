"""Framing: whole subjects, cut ones, their place, and what models of either kind are asked."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.data.framings import middle_square
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import framing
from sora_jax.patches import Grid
from tests.evaluation.worlds_test import Sampled

WORLD = WorldSource("shapes", 12, [(48, 80), (72, 40), (48, 48)], [5], 8.0, 0)


def test_a_real_clip_shows_its_subject_whole_and_a_crop_may_not():
  whole, cut = [], []
  for index in range(12):
    frames, state = WORLD[index].frames_THWC, WORLD.state(index)
    whole.append(framing.framing(frames, state, WORLD))
    cut.append(framing.framing(middle_square(frames), state, WORLD))
  assert all(each.whole == 1.0 and each.seen > 0.95 for each in whole)
  assert 0 < np.mean([each.whole for each in cut]) < 1 and min(each.seen for each in cut) < 0.5


def test_a_subject_in_the_middle_is_centred_and_one_at_the_wall_is_not():
  state = WORLD.state(0)
  places = {"middle": (0.5, 0.5), "corner": (0.0, 0.0)}
  found = {
    name: framing.framing(WORLD.world.render(dataclasses.replace(state, x=x, y=y), 64, 96, 1, 8.0), state, WORLD)
    for name, (x, y) in places.items()
  }
  assert found["middle"].off_centre < 0.05 < 0.3 < found["corner"].off_centre


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_of_nothing_nothing_is_seen(value):
  state = dataclasses.replace(WORLD.state(0), background="dark", colour="red")
  found = framing.framing(np.full((3, 16, 24, 3), value, np.float32), state, WORLD)
  assert found.whole == 0.0 and np.isnan(found.off_centre)


class Model:
  """Shows what is asked, at the size that is asked, as training did: whole, or as the middle of something wider."""

  grid = Grid((4, 8, 8), (1, 1, 1))

  def __init__(self, crops: bool, source: str = "worlds:shapes"):
    self.crops = crops
    known = {"source": source, "sizes": ("64x40", "48x48"), "frames": (1, 5), "fps": 8.0, "max_tokens": 0}
    self.config = ml_collections.ConfigDict({"data": {**known, "rates": (), "clips": 9, "max_frames": 5}})

  def sample(self, requests, sampling):
    asked = {
      (s.shape(i), s.captions(i)["long"]): s.state(i) for s in framing.sources(self, 12).values() for i in range(12)
    }
    return [Clip(self.frames(r, asked[(r.frames, r.height, r.width), r.prompt]), r.fps, r.prompt, "") for r in requests]

  def frames(self, request, state):
    if not self.crops:
      return WORLD.world.render(state, request.height, request.width, request.frames, request.fps)
    wide = WORLD.world.render(state, request.height, 2 * request.width, request.frames, request.fps)
    return wide[:, :, request.width // 2 : request.width // 2 + request.width]


def test_a_model_of_crops_is_told_from_one_of_native_sizes():
  found = framing.examine(Model(False), Sampled(), 12)
  native, crops = found["scores"], framing.examine(Model(True), Sampled(), 12)["scores"]
  assert found["marks"].keys() == native.keys() and len(found["marks"]["native.seen"]) == 12
  assert set(native) == {f"{kind}.{name}" for kind in ("native", "square") for name in framing.Framing._fields}
  for kind in ("native", "square"):
    assert native[f"{kind}.whole"]["mean"] == native[f"{kind}.whole"]["ceiling"] == 1.0
    assert crops[f"{kind}.whole"]["high"] < 1.0
  assert native["native.whole"]["crops"] < 1.0 == native["square.whole"]["crops"]  # squares lose nothing


def test_other_worlds_are_refused():
  with pytest.raises(InputError, match="framing is measured on worlds:shapes"):
    framing.sources(Model(False, "worlds:groups"), 3)
