"""How like real clips those of a model are: of one who knows all, no motion, or nothing."""

import numpy as np
import pytest

from sora_jax.data.sources import Mixture
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import features, likeness
from tests.evaluation.worlds_test import Model, Sampled

SIZES = [(32, 32), (24, 40)]
SOURCE = Mixture([WorldSource(world, 12, SIZES, [5], 8.0, 0) for world in ("shapes", "uniform")])


class Knows(Model):
  """Shows the real clip of a caption, its first frame held, or noise."""

  def __init__(self, what: str):
    super().__init__()
    self.what = what

  def frames(self, request) -> np.ndarray:
    real = SOURCE[request.seed - likeness.SEED].frames_THWC
    noise = np.random.default_rng(request.seed).uniform(-1, 1, real.shape).astype(np.float32)
    return {"all": real, "stills": np.repeat(real[:1], len(real), 0), "nothing": noise}[self.what]


def examined(what: str) -> dict:
  return likeness.examine(Knows(what), Sampled(), SOURCE, 99, {"random": features.of_random3d})


def test_figures_of_one_who_knows_all_are_the_floor_and_others_are_further_away():
  knows, stills, nothing = map(examined, ("all", "stills", "nothing"))
  for name in ("random.frechet", "random.kernel", "states of shapes.frechet", "states of uniform.kernel"):
    assert knows[name]["mean"] == knows[name]["floor"] == knows[name]["autoencoder"]
    assert stills[name]["mean"] == stills[name]["trivial"] and nothing[name]["mean"] > knows[name]["mean"], name
    assert knows[name]["low"] <= knows[name]["mean"] <= knows[name]["high"]
  assert nothing["random.kernel"]["mean"] > knows["random.kernel"]["high"]
  assert stills["states of shapes.kernel"]["mean"] > knows["states of shapes.kernel"]["mean"]
  assert knows["reconstruction.ssim"]["mean"] == 1.0  # its autoencoder loses nothing
  assert knows["prediction.ssim"]["mean"] == 1.0 > knows["prediction.ssim"]["trivial"]
  assert nothing["prediction.psnr_db"]["mean"] < 10 < nothing["prediction.psnr_db"]["trivial"]


def test_no_more_clips_than_asked_for_are_taken_from_all_over():
  told = []
  found = likeness.examine(Knows("all"), Sampled(), SOURCE, 16, {}, told.append)
  assert "states of uniform.frechet" in found and told[-1] == "states of uniform"
  images = Mixture([WorldSource("shapes", 2, SIZES, [1], 8.0, 0)])
  assert likeness.predicted(Knows("all"), Sampled(), [], [images[0].frames_THWC], []) == {}


def test_of_too_few_clips_states_have_no_distance_and_sets_none_at_all():
  found = likeness.examine(Knows("all"), Sampled(), SOURCE, 8, {})
  assert found and not any(name.startswith("states") for name in found)
  with pytest.raises(InputError, match="5 held-out clips: sets of 3 or more are compared, give --clips 6"):
    likeness.examine(Knows("all"), Sampled(), SOURCE, 5, {})
