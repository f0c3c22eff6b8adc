"""Velocity errors of balls: whose they are, beside which others, at which levels."""

import ml_collections
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.errors import InputError
from sora_jax.evaluation import physics
from sora_jax.patches import Grid
from sora_jax.worlds.physics import LEVELS, RADIUS_RANGES, SPEED_RANGES
from tests.evaluation.worlds_test import Codec, Sampled


class Model:
  """Holds the last given frame."""

  grid, codec = Grid((4, 8, 8), (1, 1, 1)), Codec()

  def __init__(self, source="worlds:shapes,worlds:uniform,worlds:collision", frames=(1, 9, 17)):
    known = {"source": source, "sizes": ("64x64", "80x64"), "frames": frames, "fps": 8.0, "max_tokens": 0}
    self.config = ml_collections.ConfigDict({"data": {**known, "rates": (10.0,), "clips": 9, "max_frames": 17}})

  def sample(self, requests, sampling):
    frames = [request.conditions[0].frames_THWC for request in requests]
    assert {len(given) for given in frames} == {5}
    held = [given[np.minimum(np.arange(r.frames), 4)] for given, r in zip(frames, requests, strict=True)]
    return [Clip(each, request.fps, request.prompt, "") for each, request in zip(held, requests, strict=True)]


@pytest.fixture(scope="module")
def scores():
  return physics.examine(Model(), Sampled(), 6)


def test_every_level_of_every_world_of_balls_has_its_row(scores):
  assert list(scores) == [f"{world}.{level}" for world in ("uniform", "collision") for level in LEVELS]


def test_a_model_that_holds_the_last_frame_has_the_trivial_error(scores):
  for row in scores.values():
    assert row["mean"] == row["trivial"] and row["low"] <= row["mean"] <= row["high"]


def test_real_clips_and_straight_motion_are_nearly_right_and_other_clips_wrong(scores):
  for level in LEVELS:
    row = scores[f"uniform.{level}"]
    assert row["ceiling"] == row["autoencoder"] < 0.15 and row["linear"] < 0.5
    assert row["trivial"] > 0.3 and row["chance"] > row["ceiling"]
  straight, real = scores["collision.in"]["linear"], scores["collision.in"]["ceiling"]
  assert straight > 3 * real  # balls that go on as they went know no impact


def test_a_sheet_has_the_real_clip_and_the_model_s_of_each_level():
  sheet = physics.sheet(Model("worlds:uniform"), Sampled())
  rows = 2 * len(LEVELS)
  side = (len(sheet) - 2) // rows - 2
  assert sheet.dtype == np.uint8 and side in (64, 80)
  frames = [sheet[2 + row * (side + 2) :, 2 + 7 * 66 :][:side, :64].astype(int) for row in range(rows)]
  assert all((real != held).any() for real, held in zip(frames[::2], frames[1::2], strict=True))


def test_levels_are_those_of_the_ranges():
  for level, outside in LEVELS.items():
    clips = physics.asked(Model(), "uniform", level, 8)
    assert {len(clip.frames_THWC) for clip in clips.real} == {17}  # the longest of training
    for state in clips.states:
      for value, (inner, _), out in zip(
        (state.velocity, state.radius), (SPEED_RANGES, RADIUS_RANGES), outside, strict=True
      ):
        assert any(low <= value <= high for low, high in inner) == (not out)


@pytest.mark.parametrize(
  ("model", "words"),
  [(Model("worlds:shapes"), "physics is measured on uniform"), (Model(frames=(1, 5)), "physics needs longer")],
)
def test_other_models_are_refused(model, words):
  with pytest.raises(InputError, match=words):
    physics.examine(model, Sampled(), 2)
