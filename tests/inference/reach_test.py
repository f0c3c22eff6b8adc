"""Larger frames than training's are shown to the model as if they were as large as those."""

import ml_collections
import numpy as np
import pytest

from sora_jax.inference.generator import Request
from sora_jax.inference.reach import Reach, within
from sora_jax.packing.batch import Segment
from sora_jax.patches import Grid

GRID = Grid((2, 4, 4), (1, 1, 1))


def section(**changes):
  known = {"source": "worlds:shapes", "sizes": ("32x16", "24x24"), "frames": (1, 9), "max_tokens": 0, "max_frames": 9}
  return ml_collections.ConfigDict({**known, **changes})


def segment(height: int, width: int) -> Segment:
  positions_N3 = GRID.positions(3, height, width, 8.0)
  count = len(positions_N3)
  size_4 = np.array([3 / 8, height, width, 8.0], np.float32)
  tokens, flags, levels = np.zeros((count, 2), np.float32), np.zeros(count, bool), np.zeros(count, np.float32)
  return Segment(tokens, positions_N3, flags, levels, np.zeros(1, np.int32), size_4, 0)


def test_of_a_world_it_is_its_largest_side_and_area():
  assert Reach.of(section(), GRID, 5) == Reach(32, 576)


def test_of_a_world_whose_sizes_depend_on_the_duration_it_is_that_of_the_nearest():
  data = section(sizes=("16..64x16..64",), frames=(1, "5..9"), max_tokens=100)
  image, video = Reach.of(data, GRID, 1), Reach.of(data, GRID, 30)
  assert image.area > 2 * video.area


def test_of_files_it_is_the_budget_of_tokens():
  """100 tokens of 4x4 pixels in one frame; of 5 latent frames 20 each, of which a square has 16."""
  data = section(source="clips", max_tokens=100)
  assert Reach.of(data, GRID, 1) == Reach(np.inf, pytest.approx(40 * 40, rel=0.03))
  assert Reach.of(data, GRID, 99) == Reach(np.inf, pytest.approx(16 * 16, rel=0.03))
  assert Reach.of(section(source="clips"), GRID, 1) == Reach(np.inf, np.inf)


def test_of_files_beside_a_world_it_is_the_larger():
  mixed = section(source="clips, worlds:shapes", max_tokens=400)
  assert Reach.of(mixed, GRID, 1) == Reach(np.inf, pytest.approx(80 * 80, rel=0.03))
  assert Reach.of(section(source="clips,worlds:shapes", max_tokens=9), GRID, 1).area == 576


def test_what_is_within_stays_as_it_is():
  small = segment(24, 24)
  assert within(small, Reach(32, 576)) is small and within(small, Reach(np.inf, np.inf)) is small


@pytest.mark.parametrize(("height", "width", "scale"), [(16, 64, 0.5), (48, 48, 0.5), (24, 32, 0.75**0.5)])
def test_a_larger_one_is_pressed_into_the_reach_by_side_or_area(height, width, scale):
  large, reach = segment(height, width), Reach(32, 576)
  found = within(large, reach)
  np.testing.assert_allclose(found.positions_N3[:, 1:], large.positions_N3[:, 1:] * scale, rtol=1e-6)
  np.testing.assert_array_equal(found.positions_N3[:, 0], large.positions_N3[:, 0])
  np.testing.assert_allclose(found.size_4, large.size_4 * [1, scale, scale, 1], rtol=1e-6)
  assert found.size_4[1:3].max() <= 32 and found.size_4[1] * found.size_4[2] <= 577


def test_the_generator_presses_clips_and_their_conditions(generator):
  """The tiny model was trained at 24x16 at most."""
  height = width = 48
  made = generator._segment(Request("a red circle", width, height, 1, 8.0, 0), [], 0)
  assert made.size_4[1] * made.size_4[2] == pytest.approx(24 * 16, rel=1e-5)
  assert made.positions_N3[:, 1:].max() < 20
