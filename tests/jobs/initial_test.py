"""A run that starts from another run's weights: what it takes, what it leaves, and that it takes it once."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint, export
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.inference.generator import Generator
from sora_jax.jobs import initial
from sora_jax.jobs.train import train
from tests.jobs.train_test import stopped_after


def states(folder: pathlib.Path) -> dict[str, str]:
  """What became of each parameter, by the table in the workdir."""
  return {row["name"]: row["state"] for row in json.loads((folder / initial.FILE).read_text())["parameters"]}


def started(config, trained, folder: pathlib.Path) -> pathlib.Path:
  config.train.init = str(trained)
  config.train.update(steps=2, checkpoint_every=1)
  train(config, folder)
  return folder


def averages(folder: pathlib.Path) -> dict[str, np.ndarray]:
  return checkpoint.load_arrays(folder, "ema")[0]


def test_it_begins_as_the_other_run_s_average_with_its_autoencoder_and_tokenizer(
  trained, tiny_config, tmp_path, capsys, monkeypatch
):
  begun = []
  starter = initial.starter

  def watched(*args):
    start = starter(*args)
    return lambda state: begun.append(jax.device_get(start(state))) or start(state)

  with monkeypatch.context() as patched:
    patched.setattr(initial, "starter", watched)
    folder = started(tiny_config, trained, tmp_path / "w")
  (state,), wanted = begun, averages(trained)
  for tree in (state.params, state.ema):
    assert checkpoint.tree_digest(tree) == checkpoint.tree_digest(wanted)
  assert int(state.step) == 0
  assert all(not np.any(leaf) for path, leaf in checkpoint.flat(state.optimizer).items() if "blocks" in path)
  assert (folder / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
  codecs = [Codec.load(each / "autoencoder", tiny_config.autoencoder) for each in (folder, trained)]
  jax.tree.map(np.testing.assert_array_equal, *(codec.params for codec in codecs))
  assert not (folder / "autoencoder" / "logs").exists()  # it was not trained
  said = capsys.readouterr().err
  assert f"train.init: 100.0% of the parameters are those of {trained} step 6" in said
  assert all(f"  {path} " in said for path in wanted)
  assert set(states(folder).values()) == {"loaded"} and states(folder).keys() == wanted.keys()
  assert json.loads((folder / "config.json").read_text())["train"]["init"] == str(trained)


@pytest.mark.slow
def test_a_second_start_loads_nothing_again_and_ends_as_if_it_had_not_been_stopped(
  trained, tiny_config, tmp_path, monkeypatch
):
  other = pathlib.Path(shutil.copytree(trained, tmp_path / "other"))
  tiny_config.train.init = str(other)
  unbroken = tmp_path / "unbroken"
  train(tiny_config, unbroken)
  with stopped_after(5, monkeypatch):
    train(tiny_config, tmp_path / "w")
  shutil.rmtree(other)
  assert train(tiny_config, tmp_path / "w").resumed_from == 3
  assert checkpoint.digest(tmp_path / "w") == checkpoint.digest(unbroken)
  assert checkpoint.digest(unbroken)["params"] != checkpoint.digest(trained)["params"]
  Generator.load(tmp_path / "w")


def test_what_is_prepared_has_its_own_autoencoder_and_tokenizer(trained, tiny_config, tmp_path):
  tiny_config.train.init = str(trained)
  found = initial.find(tiny_config, tmp_path)
  assert found.autoencoder and found.tokenizer
  tiny_config.data.prepared = str(tmp_path / "prepared")
  found = initial.find(tiny_config, tmp_path)
  assert not found.autoencoder and not found.tokenizer


@pytest.mark.slow
def test_an_exported_folder_does_as_well(trained, tiny_config, tmp_path, capsys):
  export.export(trained, tmp_path / "exported")
  folder = started(tiny_config, tmp_path / "exported", tmp_path / "w")
  assert set(states(folder).values()) == {"loaded"} and "warning" not in capsys.readouterr().err
  assert (folder / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()


@pytest.mark.slow
def test_what_has_other_shapes_starts_fresh_and_is_told_with_both(trained, tiny_config, tmp_path, capsys):
  tiny_config.model.update(depth=2, seconds=(0.5, 8.0))
  found = states(started(tiny_config, trained, tmp_path / "w"))
  blocks = {path for path in found if path.startswith("blocks/")}
  assert blocks and all(found[path].startswith("fresh: shape (1, ") for path in blocks)
  assert {found[path] for path in found.keys() - blocks} == {"loaded"}
  said = capsys.readouterr().err
  (line,) = (line for line in said.splitlines() if "blocks/qkv/kernel" in line and "text_encoder" not in line)
  assert "(1, 32, 3, 32) there" in line and "(2, 32, 3, 32)" in line.partition("there")[2]
  assert "warning: the loaded weights were trained otherwise: config.model.seconds is [0.5, 240.0] there" in said


@pytest.mark.slow
def test_another_vocabulary_makes_a_tokenizer_and_a_table_of_its_own(trained, tiny_config, tmp_path):
  tiny_config.model.vocabulary = 300
  folder = started(tiny_config, trained, tmp_path / "w")
  found = states(folder)
  assert found.pop("text_encoder/embedding") == "fresh: other tokenizer" and set(found.values()) == {"loaded"}
  assert (folder / "tokenizer.model").read_bytes() != (trained / "tokenizer.model").read_bytes()


class TestAnotherAutoencoder:
  FRESH = {f"{layer}/{name}" for layer in ("patch_in", "patch_out", "skip") for name in ("kernel", "bias")}

  @pytest.mark.slow
  def test_one_of_the_same_shape_makes_the_layers_beside_it_fresh(self, trained, tiny_config, tmp_path):
    own = pathlib.Path(shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder"))
    alone = tiny_config.copy_and_resolve_references()
    alone.task, alone.seed = "autoencoder", 1
    alone.train.steps = 1
    shutil.rmtree(own)
    train(alone, own)
    tiny_config.autoencoder.checkpoint = str(own)
    found = states(started(tiny_config, trained, tmp_path / "w"))
    assert {path for path, what in found.items() if what == "fresh: other autoencoder"} == self.FRESH
    assert {what for path, what in found.items() if path not in self.FRESH} == {"loaded"}

  @pytest.mark.slow
  def test_the_same_one_by_its_name_changes_nothing(self, trained, tiny_config, tmp_path):
    tiny_config.autoencoder.checkpoint = str(trained / "autoencoder")
    assert set(states(started(tiny_config, trained, tmp_path / "w")).values()) == {"loaded"}

  @pytest.mark.slow
  def test_one_of_other_channels_is_trained_here(self, trained, tiny_config, tmp_path):
    tiny_config.autoencoder.channels = 6
    folder = started(tiny_config, trained, tmp_path / "w")
    assert {path for path, what in states(folder).items() if what.startswith("fresh")} == self.FRESH
    assert (folder / "autoencoder" / "logs").exists()


def test_a_run_of_no_common_size_is_refused(trained, tiny_config, tmp_path):
  tiny_config.model.update(width=48, depth=2, text_width=32)
  with pytest.raises(InputError, match=r"config.train.init='.*': not one matrix there"):
    started(tiny_config, trained, tmp_path / "w")
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_an_autoencoder_starts_from_the_one_of_a_transformer_or_from_one_alone(trained, tiny_config, tmp_path, capsys):
  tiny_config.task = "autoencoder"
  first = started(tiny_config, trained, tmp_path / "first")
  assert set(states(first).values()) == {"loaded"}
  tiny_config.train.init = str(first)
  tiny_config.autoencoder.channels = 6
  found = states(started(tiny_config, first, tmp_path / "second"))
  assert {what.partition(":")[0] for what in found.values()} == {"loaded", "fresh"}
  assert f"of {trained / 'autoencoder'} step 6" in capsys.readouterr().err


def test_a_transformer_does_not_start_from_an_autoencoder(trained, tiny_config, tmp_path):
  tiny_config.train.init = str(trained / "autoencoder")
  with pytest.raises(InputError, match="config.autoencoder.checkpoint instead"):
    train(tiny_config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_a_run_that_is_not_there_is_named_and_binds_no_folder(tiny_config, tmp_path):
  tiny_config.train.init = str(tmp_path / "nowhere")
  with pytest.raises(InputError, match="nowhere"):
    train(tiny_config, tmp_path / "w")
  assert not (tmp_path / "w").exists()
