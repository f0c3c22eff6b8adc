"""Training with a loss on held-out clips: which clips they are, and what is logged."""

import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.jobs import held_out
from sora_jax.jobs.train import train
from sora_jax.models.autoencoder import grid
from sora_jax.train.metrics import read_metrics


@pytest.fixture
def config(tiny_config, trained):
  tiny_config.autoencoder.checkpoint = str(trained / "autoencoder")
  tiny_config.train.update(eval_every=3, log_every=4)
  tiny_config.data.held_out_clips = 8
  return tiny_config


def test_of_worlds_they_are_states_that_training_never_shows(config):
  config.data.update(source="worlds:shapes,worlds:bites", held_out_clips=9)
  source = held_out.source_of(config, grid(config))
  assert {source.shape(index)[0] for index in range(5)} == {1, 5}  # all durations, though they are few
  assert len(source) == 10 and all(each.held_out and each.seed == held_out.SEED for each in source.sources)


def test_of_files_they_are_a_source_of_its_own(config):
  config.data.source = "clips"
  with pytest.raises(InputError, match="train.eval_every=3 with data.source=clips: name a source .* in data.held_out"):
    held_out.source_of(config, grid(config))
  config.data.held_out = "worlds:shapes"  # new states of what training has
  named = held_out.source_of(config, grid(config))
  assert len(named) == 8 and not named.held_out and named.seed == held_out.SEED


def test_a_mistake_is_told_before_anything_is_trained(config, tmp_path):
  config.data.held_out = "worlds:shape"
  with pytest.raises(InputError, match="unknown world 'shape'"):
    train(config, tmp_path / "w")
  assert not (tmp_path / "w" / "config.json").exists()


def test_losses_are_logged_at_their_steps_and_a_finished_run_gives_them_again(config, tmp_path):
  train(config, tmp_path / "w")
  rows = {row["step"]: row for row in read_metrics(tmp_path / "w" / "logs")}
  assert sorted(rows) == [3, 4, 6] and "held_out" not in rows[4]
  for step in (3, 6):
    names = {name for name in rows[step] if name.startswith("held_out")}
    averaged = {name for name in names if not name.endswith("_raw")}
    assert {"held_out", "held_out_t0.06", "held_out_images", "held_out_short", "held_out_small"} <= averaged
    assert names - averaged == {f"{name}_raw" for name in averaged}
    assert all(np.isfinite(rows[step][name]) for name in names)
  assert rows[3]["held_out"] != rows[6]["held_out"] != rows[6]["held_out_raw"]


@pytest.mark.slow
def test_another_run_of_the_same_config_has_the_same_losses(config, tmp_path):
  for name in ("a", "b"):
    train(config, tmp_path / name)
  first, second = (read_metrics(tmp_path / name / "logs") for name in "ab")
  held = lambda row: {name: value for name, value in row.items() if name.startswith("held_out")}
  assert [held(row) for row in first] == [held(row) for row in second]
