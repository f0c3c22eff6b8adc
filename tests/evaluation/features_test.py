"""Features of clips: states as marks, a random network that is the same everywhere, and what it sees."""

import dataclasses

import numpy as np
import pytest

from sora_jax.checkpoints import safetensors
from sora_jax.errors import InputError
from sora_jax.evaluation import features
from sora_jax.worlds.world import get_world

WORLD = get_world("shapes")
STATE = dataclasses.replace(WORLD.sample(np.random.default_rng(0)), colour="red", shape="circle")


def clip(height=32, width=48, frames=9, **changes) -> np.ndarray:
  return WORLD.render(dataclasses.replace(STATE, **changes), height, width, frames, 8.0)


def test_clips_that_show_the_same_have_the_same_marks_and_others_do_not():
  found = features.of_states(WORLD, [clip(), clip(64, 64), clip(colour="blue")], [8.0] * 3)
  assert found.shape == (3, features.ANCHORS * len(WORLD.attributes))
  np.testing.assert_array_equal(found[0], found[1])
  assert np.any(found[0] != found[2]) and 0 <= found.min() <= found.max() <= 1


def test_the_random_network_sees_colour_and_motion_and_is_always_the_same():
  clips = [clip(), clip(), clip(colour="blue"), np.repeat(clip()[:1], 9, 0)]
  found = features.of_random3d(clips)
  np.testing.assert_array_equal(found, features.of_random3d(clips * 3)[:4])
  np.testing.assert_array_equal(found[0], found[1])
  scale = np.abs(found[0]).mean()
  assert all(np.abs(found[0] - other).mean() > 1e-3 * scale for other in found[2:])
  assert found.shape == (4, 2 * (64 + 128))


def test_its_features_stay():
  """Figures of different days are compared: a change of the network must be seen."""
  found = features.of_random3d([clip()])[0]
  np.testing.assert_allclose([found.mean(), found.std(), found[0], found[300]], STAYS, rtol=1e-3)


STAYS = (0.340555, 0.354238, 0.0188808, 0.0589429)  # of the first version


@pytest.mark.parametrize("shape", [(1, 8, 8), (33, 20, 90), (16, 64, 64)])
def test_clips_are_brought_to_one_shape(shape):
  found = features.fitted(np.full((*shape, 3), 0.5, np.float32), 16, 64)
  assert found.shape == (16, 64, 64, 3) and np.ptp(found) == 0 and found[0, 0, 0, 0] == pytest.approx(0.5, abs=0.005)


def test_pixels_that_are_no_numbers_are_grey():
  assert np.abs(features.fitted(np.full((2, 8, 8, 3), np.nan, np.float32), 4, 8)).max() < 0.01


def test_a_file_that_is_no_i3d_is_refused(tmp_path):
  safetensors.write(tmp_path / "x.safetensors", {"Conv3d_1a_7x7.conv3d.weight": np.zeros((64, 3, 7, 7, 7))}, {})
  with pytest.raises(InputError, match="no weights of I3D"):
    features.of_i3d(tmp_path / "x.safetensors")
