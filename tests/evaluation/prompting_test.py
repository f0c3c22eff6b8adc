"""Measures of prompting: what real, cut and returned clips score, and all of the suite on a hardly trained model."""

import dataclasses

import numpy as np
import pytest

from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import prompting
from sora_jax.evaluation.prompting import SUITE, Measure, Subject, changes, jump
from sora_jax.inference.generator import Sampling


@pytest.fixture(scope="module")
def subject(generator) -> Subject:
  sampling = dataclasses.replace(Sampling.of(generator.config), steps=1, guidance=1.0)
  return Subject.of(generator, sampling, WorldSource("shapes", 4, [(16, 16)], (1, 5), 8.0, 1, held_out=True))


class TestJump:
  def test_an_even_movement_has_none_and_a_cut_has_one(self):
    even = np.arange(8.0).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 3))
    assert jump(even, 4) == pytest.approx(1.0)
    assert jump(np.concatenate([even[:4], even[4:] + 5]), 4) == pytest.approx(6.0)

  def test_a_clip_that_stands_still_has_no_measure(self):
    assert np.isnan(jump(np.ones((5, 2, 2, 3)), 2))

  def test_changes_are_between_neighbours(self):
    frames = np.zeros((3, 2, 2, 3))
    frames[1] = 0.5
    np.testing.assert_allclose(changes(frames), [0.5, 0.5])


def test_a_measure_leaves_out_what_does_not_apply():
  found = Measure.of([1.0, 3.0, float("nan")], [4.0, float("nan")], None)
  assert (found.mean, found.ceiling, found.chance) == (2.0, 4.0, None) and 1 <= found.low <= found.high <= 3
  assert found.rounded()["ceiling"] == 4.0


def test_a_measure_that_applies_to_no_clip_is_none():
  nan = float("nan")
  assert Measure.of([nan, nan], [nan]).rounded() == dict.fromkeys(("mean", "low", "high", "ceiling", "chance"))


def test_nan_is_none_in_json():
  assert Measure.of([1.0], [float("nan")]).rounded()["ceiling"] is None


def test_few_clips_are_of_few_sizes_so_that_each_has_others(generator):
  sizes = [(16, 16), (16, 24), (24, 16), (24, 24)]
  of = lambda count: Subject.of(generator, None, WorldSource("shapes", count, sizes, (5,), 8.0, 1, held_out=True))
  for count in (3, 7, 12):
    found = of(count)
    shapes = [found.source.shape(number) for number in range(count)]
    assert min(shapes.count(shape) for shape in shapes) >= 2
  with pytest.raises(InputError, match="1 clips: prompting is measured on 2 or more"):
    of(1)


def test_the_subject_is_of_the_longest_clips_and_knows_what_comes_after(subject):
  assert subject.frames == 5 and len(subject) == 4
  whole = subject.real(2, 12)
  np.testing.assert_array_equal(whole[:5], subject.source[2].frames_THWC)
  np.testing.assert_array_equal(subject.real(2, 4, 6), whole[6:10])


def test_beginnings_come_back_as_the_autoencoder_has_them(subject):
  found = prompting.animate(subject)
  assert found["conditioned_db"].mean == pytest.approx(found["autoencoder_db"].mean, abs=0.01)
  assert found["conditioned_db"].ceiling == pytest.approx(found["autoencoder_db"].mean)


def test_an_edit_at_0_returns_the_clip_and_real_joins_are_smooth(subject):
  found = prompting.edit(subject)
  assert found["returned_at_0_db"].mean == pytest.approx(found["returned_at_0_db"].ceiling, abs=0.01)
  assert {f"follows_prompt_{strength:g}" for strength in prompting.EDIT_STRENGTHS} <= set(found)
  forward = prompting.extend(subject, backward=False)["boundary_jump"]
  assert forward.ceiling == pytest.approx(1.0, abs=0.5) and forward.chance > 2


def test_endings_of_several_beginnings_are_equal(subject):
  found = prompting.backward_variety(subject, seeds=2)
  assert found["endings_equal"].mean == 1.0 and found["beginnings_differ"].mean > 0


@pytest.mark.slow
def test_every_mode_has_its_scores(subject):
  for name, measure in SUITE.items():
    found = measure(subject)
    assert found, name
    for key, value in found.items():
      if isinstance(value, Measure):
        assert value.low <= value.mean <= value.high, (name, key)
