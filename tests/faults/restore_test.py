"""Row F10 of the fault table: a checkpoint of another model names the leaf that differs and the settings that explain
it."""

import re
import shutil

import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.checkpoints.checkpoint import CheckpointError
from sora_jax.jobs.train import train

# The settings that change, and a leaf that then does not fit.
CHANGES = [
  ({"model.width": 64}, r"params/blocks/[\w/]+ is float32 \(1, .*32.* there and float32 \(1, .*64.* here"),
  ({"model.depth": 2}, r"params/blocks/[\w/]+ is float32 \(1, .* there and float32 \(2, .* here"),
  ({"model.text_width": 32}, "params/blocks/key_value/kernel is"),
  ({"model.text_depth": 2}, "params/text_encoder/"),
  ({"model.patch": (1, 1, 2)}, "params/patch_in/kernel is"),
  ({"model.vocabulary": 300}, "params/text_encoder/[\\w/]*embedding"),
  ({"model.width": 64, "model.depth": 2}, "params/blocks/"),
  ({"autoencoder.channels": 6}, r"autoencoder/checkpoints step 6 does not fit this config: ema/\w+"),
  (
    {"autoencoder.stages": (((2, 4, 4), 16, 2),)},
    r"autoencoder/checkpoints step 6 does not fit this config: ema/\w+",
  ),
]


def change(config, changes: dict) -> dict[str, tuple]:
  """{key: (old, new)}."""
  found = {}
  for key, value in changes.items():
    section, name = key.split(".")
    found[key] = (config[section][name], value)
    config[section][name] = value
  return found


@pytest.mark.parametrize(
  ("changes", "leaf"), CHANGES, ids=lambda each: "+".join(each) if isinstance(each, dict) else ""
)
def test_the_leaf_and_the_setting_are_named_and_nothing_is_touched(trained, tiny_config, tmp_path, changes, leaf):
  """F10: what was there is as it was."""
  workdir = shutil.copytree(trained, tmp_path / "w")
  (workdir / "config.json").unlink()  # which would be compared first
  if "model.vocabulary" in changes:
    (workdir / "tokenizer.model").unlink()
  before = checkpoint.digest(workdir), checkpoint.digest(workdir / "autoencoder")
  values = change(tiny_config, changes)
  with pytest.raises(CheckpointError) as caught:
    train(tiny_config, workdir)
  said = str(caught.value)
  assert re.search(leaf, said) and re.search(r"\(\d+ differ\)", said), said
  assert said.count("config.") == len(values), said
  for key, (old, new) in values.items():
    spelled = lambda value: re.sub(r"[()]", lambda m: "[" if m[0] == "(" else "]", str(value)).replace(",]", "]")
    assert f"config.{key} is {spelled(old)} there and {spelled(new)} here" in said, said
  assert (checkpoint.digest(workdir), checkpoint.digest(workdir / "autoencoder")) == before


def test_an_autoencoder_of_other_settings_is_named_with_them(trained, tiny_config, tmp_path):
  """F10, of the autoencoder that a config takes from another run."""
  tiny_config.autoencoder.update(checkpoint=str(trained / "autoencoder"), channels=6)
  with pytest.raises(CheckpointError, match="ema/.* is .*config.autoencoder.channels is 4 there and 6 here"):
    train(tiny_config, tmp_path / "w")
  assert not (tmp_path / "w").exists()
