"""How clips are marked: marks, means, chance and intervals."""

import numpy as np
import pytest

from sora_jax.evaluation import marks
from sora_jax.worlds import world


def _exam_inputs(frame_counts):
  simulator, rng = world.get_world("shapes"), np.random.default_rng(0)
  states = [simulator.sample(rng) for _ in frame_counts]
  clips = [(simulator.render(s, 32, 32, t, 8.0), 8.0) for s, t in zip(states, frame_counts, strict=True)]
  return simulator, states, clips


def test_exam_leaves_out_what_does_not_apply():
  simulator, states, clips = _exam_inputs([1, 1])
  scores = marks.exam(simulator, states, clips)
  assert scores["colour"] == 1.0 and scores["direction"] is None and scores["speed"] is None
  simulator, states, clips = _exam_inputs([1, 9])
  assert marks.exam(simulator, states, clips)["direction"] == 1.0
  assert {key: len(values) for key, values in marks.marks(simulator, states, clips).items()} == {
    "colour": 2, "shape": 2, "size": 2, "background": 2, "direction": 1, "speed": 1
  }  # fmt: skip


def test_an_exam_needs_a_clip_a_state():
  simulator, states, clips = _exam_inputs([1, 1])
  with pytest.raises(ValueError, match="1 clips for 2 states"):
    marks.exam(simulator, states, clips[:1])


def test_chance_is_the_share_of_equal_values():
  simulator, rng = world.get_world("shapes"), np.random.default_rng(0)
  states = [simulator.sample(rng) for _ in range(100)]
  scores = marks.chance(simulator, states, rng)
  expected = {
    "colour": 1 / 6,
    "shape": 1 / 4,
    "size": 1 / 2,
    "background": 1 / 2,
    "direction": 1 / 4,
    "speed": 1 / 2,
  }
  for attribute, value in expected.items():
    assert scores[attribute] == pytest.approx(value, abs=0.05)


def test_interval_holds_the_mean_and_narrows_with_more_values():
  values = [0.0, 1.0] * 20
  mean, low, high = marks.interval(values)
  assert mean == 0.5 and low < 0.5 < high
  _, narrow_low, narrow_high = marks.interval(values * 10)
  assert narrow_high - narrow_low < high - low
  # Two standard errors either side of the mean of 40 fair coins.
  assert high - low == pytest.approx(4 * 0.5 / 40**0.5, rel=0.15)
  assert marks.interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
  assert marks.interval(values) == (mean, low, high)
  with pytest.raises(ValueError, match="at least one"):
    marks.interval([])


def test_a_summary_leaves_out_what_does_not_apply():
  assert marks.summary([1.0, float("nan"), 1.0]) == {"mean": 1.0, "low": 1.0, "high": 1.0}
  assert marks.summary([float("nan")]) == {"mean": None, "low": None, "high": None}
  assert marks.summary([1 / 3], digits=2)["mean"] == 0.33
