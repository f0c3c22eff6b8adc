"""The worlds as a data set: the clips that come back are those that the world renders, split by split."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sora_jax import clips
from sora_jax.data import world_source
from sora_jax.data.files import View
from sora_jax.data.tfds_source import TfdsSource
from sora_jax.data.tfds_worlds import SPLITS, SoraWorlds, WorldConfig
from sora_jax.data.world_source import WorldSource
from sora_jax.worlds.world import world_names

FEW = {"train": 14, "held_out": 5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
  """The folder of a few clips of the shapes world."""
  config = WorldConfig("few", "shapes", FEW)
  builder = tfds.builder(
    "sora_worlds", config=config, data_dir=tmp_path_factory.mktemp("sets"), file_format="array_record"
  )
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def world(split: str) -> WorldSource:
  sizes, frames, fps = world_source.SIZES, world_source.FRAMES, world_source.FPS
  return WorldSource("shapes", FEW[split], sizes, frames, fps, seed=0, held_out=split == "held_out")


@pytest.mark.parametrize("split", list(FEW))
def test_clips_are_those_of_the_world_rounded_to_bytes(prepared, split):
  source, wanted = TfdsSource(f"{prepared}@{split}", View()), world(split)
  assert len(source) == len(wanted) == FEW[split] and source.dropped == []
  for index in range(len(source)):
    assert source.shape(index) == wanted.shape(index)
    assert source.captions(index) == wanted.captions(index)
    assert wanted.shape(index)[0] == 1 or source.fps(index) == wanted.fps(index)
    found, rendered = source[index], wanted[index]
    np.testing.assert_array_equal(clips.to_uint8(found.frames_THWC), clips.to_uint8(rendered.frames_THWC))
    assert np.abs(found.frames_THWC - rendered.frames_THWC).max() <= 0.5 / 127.5 + 1e-6
    assert found.caption == rendered.caption


def test_held_out_clips_are_of_combinations_that_training_never_sees(prepared):
  told = {split: TfdsSource(f"{prepared}@{split}", View()) for split in FEW}
  pairs = {}
  for split, source in told.items():
    states = [world(split).state(index) for index in range(FEW[split])]
    pairs[split] = {(state.colour, state.shape) for state in states}
    for index, state in enumerate(states):
      assert state.colour in source.captions(index)["long"] and state.shape in source.captions(index)["long"]
  assert pairs["train"] and pairs["held_out"] and not pairs["train"] & pairs["held_out"]


def test_every_world_is_a_data_set_of_as_many_clips_as_it_is_opened_with(tmp_path):
  assert [config.name for config in SoraWorlds.BUILDER_CONFIGS] == list(world_names())
  for name in world_names():
    builder = tfds.builder(f"sora_worlds/{name}", data_dir=tmp_path, file_format="array_record")
    assert (builder.builder_config.world, builder.builder_config.clips) == (name, SPLITS)
  assert SPLITS["train"] == world_source.CLIPS


def test_what_the_error_for_a_set_that_is_not_prepared_tells_to_do_prepares_it(tmp_path):
  code = """
from sora_jax.data import tfds_worlds, world_source
tfds_worlds.SPLITS.update(train=3, held_out=1)
from sora_jax.data.sources import open_native
import tensorflow_datasets as tfds
try:
  open_native("tfds:sora_worlds/parabola")
except ValueError as error:
  how = str(error).partition("1.0.0: ")[2].partition(" does it")[0]
exec(how)
for split in ("", "@held_out"):
  source = open_native(f"tfds:sora_worlds/parabola{split}")
  print(len(source), source[0].id)
"""
  env = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "sets")}
  told = subprocess.check_output([sys.executable, "-c", code], text=True, env=env).splitlines()
  assert [line for line in told if line[:1].isdigit()] == [f"{count} sora_worlds/parabola/1.0.0-0" for count in (3, 1)]
