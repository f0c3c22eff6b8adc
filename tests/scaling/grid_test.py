"""Grids of runs: every combination once, keys that go together, names that tell them apart."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.errors import InputError
from sora_jax.scaling import grid


def test_every_combination_has_its_settings_and_a_name_of_what_varies():
  found = grid.combinations([
    ("model.width,model.heads", ((32, 1), (64, 2))), ("flops", (1e11, 3e12)), ("seed", (0,))
  ])  # fmt: skip
  assert list(found) == [
    "width=32_heads=1_flops=1e+11", "width=32_heads=1_flops=3e+12",
    "width=64_heads=2_flops=1e+11", "width=64_heads=2_flops=3e+12",
  ]  # fmt: skip
  assert found["width=64_heads=2_flops=1e+11"] == {"model.width": 64, "model.heads": 2, "flops": 1e11, "seed": 0}


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
def test_as_many_runs_as_combinations(values):
  keys = ["seed", "train.steps", "model.depth"][: len(values)]
  found = grid.combinations(list(zip(keys, values, strict=True)))
  assert [tuple(run.values()) for run in found.values()] == list(itertools.product(*values))


def test_keys_with_one_last_word_are_told_apart():
  found = grid.combinations([("train.steps", (1, 2)), ("sample.steps", (3, 4))])
  assert list(found)[0] == "train.steps=1_sample.steps=3"


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ([("seed", (0,)), ("seed", (1,))], "has seed twice"),
    ([("seed", (0, 1, 0))], "has the run seed=0 twice"),
    ([("model.width,model.heads", ((32, 1), (64,)))], "model.width,model.heads needs 2 values at a time"),
    ([("model.width,model.heads", (16,))], "model.width,model.heads needs 2 values at a time, not 16"),
    ([("seed", ())], "no values for seed"),
  ],
)
def test_what_is_no_grid_is_refused(values, words):
  with pytest.raises(InputError, match=words):
    grid.combinations(values)
