"""An exported folder does what the workdir does, and one that was tampered with is refused in one line."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from sora_jax.checkpoints import checkpoint, export, exported, safetensors
from sora_jax.checkpoints.checkpoint import CheckpointError
from sora_jax.inference.codec import Codec
from sora_jax.inference.generator import Generator, Request, Sampling


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> pathlib.Path:
  """The trained run, exported and moved; read only."""
  made = tmp_path_factory.mktemp("exported")
  export.export(trained, made / "x")
  return made / "x"


def changed(folder: pathlib.Path, out: pathlib.Path, **about: str | None) -> pathlib.Path:
  """A copy with other metadata; None takes a name away."""
  shutil.copytree(folder, out)
  tensors, old = safetensors.read(folder / exported.MODEL)
  new = {name: value for name, value in (old | about).items() if value is not None}
  safetensors.write(epath.Path(out / exported.MODEL), tensors, new)
  return out


def test_it_holds_all_that_sampling_needs_and_samples_the_same(trained, generator, folder, tmp_path):
  alone = pathlib.Path(shutil.move(shutil.copytree(folder, tmp_path / "a"), tmp_path / "b"))
  names = {path.relative_to(alone).as_posix() for path in alone.rglob("*") if path.is_file()}
  assert names == {
    "SHA256SUMS",
    "model.safetensors",
    "config.json",
    "tokenizer.model",
    "autoencoder/model.safetensors",
  }
  found = Generator.load(alone)
  assert (found.step, found.config.to_dict()) == (generator.step, generator.config.to_dict())
  for ours, theirs in ((found.params, generator.params), (found.codec.params, generator.codec.params)):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  order = [Request("a red circle", 16, 16, 1, 8.0, 0)], Sampling.of(generator.config)
  np.testing.assert_array_equal(found.sample(*order)[0].frames_THWC, generator.sample(*order)[0].frames_THWC)


def test_what_it_says_is_what_the_checkpoint_says(trained, folder):
  meta = checkpoint.load_meta(trained)
  assert exported.load_meta(folder) == {key: meta[key] for key in ("config", "task", "config_hash", "sora_jax")}
  assert json.loads((folder / "config.json").read_text()) == meta["config"]
  assert exported.is_exported(folder) and not exported.is_exported(trained)


def test_it_is_of_one_step(folder):
  assert checkpoint.load_arrays(folder, "ema", 6)[2] == 6
  with pytest.raises(CheckpointError, match="holds step 6 alone, not step 3"):
    Generator.load(folder, 3)


def test_an_autoencoder_that_does_not_fit_names_the_setting(folder, tiny_config):
  tiny_config.autoencoder.channels = 6
  with pytest.raises(CheckpointError, match=r"config.autoencoder.channels is 4 there and 6 here"):
    Codec.load(folder / "autoencoder", tiny_config.autoencoder)


def test_a_run_starts_from_it_as_from_the_workdir(trained, folder):
  like = checkpoint.flat(Generator.load(trained).params)
  found, there, step = checkpoint.load_fitting(folder, like)
  assert step == 6 and there == {path: leaf.shape for path, leaf in like.items()}
  for path, leaf in like.items():
    np.testing.assert_array_equal(found[path], leaf)
    assert found[path].sharding == leaf.sharding


@pytest.mark.parametrize(
  ("about", "said"),
  [
    ({"config": None}, "metadata lack config, task or version"),
    ({"config": "{"}, "metadata lack config, task or version"),
    ({"config": "[" * 100_000}, "metadata lack config, task or version"),
    ({"config": "[]"}, "its config is no JSON object"),
    ({"task": None}, "metadata lack config, task or version"),
    ({"step": "-1"}, "metadata lack the step"),
    ({"step": "9" * 5000}, "metadata lack the step"),
  ],
)
def test_metadata_that_can_t_be_are_refused(folder, tmp_path, about, said):
  with pytest.raises(CheckpointError, match=said):
    checkpoint.load_arrays(changed(folder, tmp_path / "x", **about), "ema")


def test_a_file_cut_short_is_refused(folder, tmp_path):
  own = pathlib.Path(shutil.copytree(folder, tmp_path / "x"))
  (own / exported.MODEL).write_bytes((folder / exported.MODEL).read_bytes()[:-1])
  with pytest.raises(CheckpointError, match="its tensors have"):
    Generator.load(own)
