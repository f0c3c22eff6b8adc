"""The coordinate check: what a step moves is the same at every width with muP, and grows without."""

import pytest

from sora_jax.scaling import coordinates

WIDTHS = (32, 64, 128, 256)


def spread(moved, name: str) -> float:
  values = [getattr(each, name) for each in moved]
  return max(values) / min(values)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1], ids=["muon", "adam"])
def test_steps_move_as_far_at_eight_times_the_width(part):
  """Each optimiser's part by itself: the other's rate is next to nothing. Standard parametrisation fails the same."""
  rates = tuple(0.02 if number == part else 1e-5 for number in (0, 1))
  scaled = coordinates.measure(WIDTHS, 32, rates)
  assert spread(scaled, "features") < 2 and spread(scaled, "output") < 2
  plain = coordinates.measure(WIDTHS[::3], None, rates)
  assert spread(plain, "features") > 2 and spread(plain, "output") > 4


@pytest.mark.slow
def test_what_is_measured_is_what_moved():
  # The last layer starts at zero, so the first step moves nothing before it.
  still, moved = (coordinates.measure((32,), None, rates, steps=2)[0] for rates in ((1e-9, 1e-9), (0.02, 0.02)))
  assert still.width == moved.width == 32
  assert still.features < 1e-4 < moved.features and still.output < 1e-4 < moved.output
