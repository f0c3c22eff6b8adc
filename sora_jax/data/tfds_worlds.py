"""The worlds as a data set of `tensorflow-datasets`, once this module is imported:

    tfds.builder("sora_worlds/shapes", file_format="array_record").download_and_prepare()

Clips are stored without loss. Splits are "train", and "held_out": the combinations that training never sees.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sora_jax.clips import to_uint8
from sora_jax.data.world_source import CLIPS, FPS, FRAMES, SIZES, WorldSource
from sora_jax.worlds.world import world_names

SPLITS = {"train": CLIPS, "held_out": CLIPS // 10}


class WorldConfig(tfds.core.BuilderConfig):
  """A world and how many clips of it are rendered. Other numbers of clips than SPLITS need a name of their own."""

  def __init__(self, name: str, world: str = "", clips: dict[str, int] | None = None):
    self.world, self.clips = world or name, clips or SPLITS
    super().__init__(name=name, description=f"Clips of the world {self.world!r}, with their captions.")


class SoraWorlds(tfds.core.GeneratorBasedBuilder):
  """Simulated clips of mixed sizes and durations, with a short and a long caption."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = tuple(WorldConfig(name) for name in world_names())
  code_path = None  # where checksums of downloads would lie; to find it takes a package that tfds does not require

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      "id": tfds.features.Text(),
      "video": tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="zlib"),
      "fps": np.float32,
      "short": tfds.features.Text(),
      "long": tfds.features.Text(),
    }
    # Not shuffled: clips keep their numbers.
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in self.builder_config.clips}

  def _generate_examples(self, split: str) -> Any:
    clips = self.builder_config.clips[split]
    held_out = split == "held_out"
    source = WorldSource(self.builder_config.world, clips, SIZES, FRAMES, FPS, seed=0, held_out=held_out)
    for index in range(len(source)):
      clip = source[index]
      video = to_uint8(clip.frames_THWC)
      yield index, {"id": clip.id, "video": video, "fps": clip.fps, **source.captions(index)}
