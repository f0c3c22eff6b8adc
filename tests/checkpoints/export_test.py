"""Exported weights: what is in the file and the folder, and that the format's own library reads them."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint, export, exported, pretrained, safetensors
from sora_jax.checkpoints.checkpoint import CheckpointError
from sora_jax.errors import InputError
from sora_jax.train.state import TrainState

META = {"config": {"seed": 0}, "config_hash": "c0ffee", "task": "dit", "sora_jax": "1.2.3"}


def make_state(step: int) -> TrainState:
  draw = lambda seed, *shape: np.random.default_rng([step, seed]).normal(size=shape)
  params = {
    "blocks": {"qkv": {"kernel": jnp.asarray(draw(0, 2, 3, 5), jnp.float32)}, "bias": jnp.float32(step)},
    "encoder": {0: {"table": jnp.asarray(draw(1, 7), jnp.bfloat16)}},
    "counts": jnp.arange(3, dtype=jnp.int32) + step,
  }
  ema = jax.tree.map(lambda x: (x * 2).astype(x.dtype), params)
  return TrainState(params, {"mu": params}, ema, jnp.int32(step), jax.random.key_data(jax.random.key(0)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> pathlib.Path:
  """Steps 3 and 5; read only."""
  folder = tmp_path_factory.mktemp("run")
  with checkpoint.manager(folder) as steps:
    for step in (3, 5):
      assert checkpoint.save(steps, make_state(step), {}, META)
  return folder


def assert_same(found: dict[str, np.ndarray], tree: dict) -> None:
  wanted = {path.replace("/", "."): np.asarray(leaf) for path, leaf in checkpoint.flat(tree).items()}
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert found[name].tobytes() == array.tobytes()


def test_the_newest_average_unless_told_otherwise(kept, tmp_path):
  path = tmp_path / "a" / "x.safetensors"
  found = export.export(kept, path)
  tensors, about = safetensors.read(path)
  assert_same(tensors, make_state(5).ema)
  assert "blocks.qkv.kernel" in tensors and "encoder.0.table" in tensors
  assert found == {"out": str(path), "step": 5, "item": "ema", "tensors": 4, "bytes": path.stat().st_size}
  export.export(kept, tmp_path / "y.safetensors", step=3, item="params", licence="CC-BY-4.0")
  tensors, about = safetensors.read(tmp_path / "y.safetensors")
  assert_same(tensors, make_state(3).params)
  assert (about["step"], about["item"], about["weights_licence"]) == ("3", "params", "CC-BY-4.0")


def test_the_file_says_all_that_its_weights_need(kept, tmp_path):
  export.export(kept, tmp_path / "x.safetensors")
  about = safetensors.read_about(tmp_path / "x.safetensors")
  assert json.loads(about.pop("config")) == META["config"]
  assert "(in, out)" in about.pop("layout") and about.pop("licence").startswith("Apache-2.0")
  wanted = {"format": "pt", "config_hash": "c0ffee", "step": "5", "item": "ema", "sora_jax": "1.2.3", "task": "dit"}
  assert about == wanted | {"weights_licence": "not stated"}


def test_workdirs_that_the_run_took_things_from_are_not_handed_on():
  config = {"data": {"source": "clips", "prepared": "/home/me/x"}, "autoencoder": {"checkpoint": "/home/me/y"}}
  about = export.metadata({"config": config | {"train": {"init": None}}}, 1, "ema", None)
  kept = {"data": {"source": "clips", "prepared": None}, "autoencoder": {"checkpoint": None}, "train": {"init": None}}
  assert json.loads(about["config"]) == kept and config["data"]["prepared"] == "/home/me/x"


def test_the_library_of_the_format_reads_it(kept, tmp_path):
  library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
  export.export(kept, tmp_path / "x.safetensors")
  assert_same(library.load_file(tmp_path / "x.safetensors"), make_state(5).ema)
  with pytest.importorskip("safetensors").safe_open(tmp_path / "x.safetensors", "np") as file:
    assert file.metadata()["config_hash"] == "c0ffee"


def test_the_same_step_makes_the_same_bytes(kept, tmp_path):
  export.export(kept, tmp_path / "x.safetensors")
  export.export(kept, tmp_path / "y.safetensors")
  assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_damage_is_not_exported(kept, tmp_path, capfd):
  own = pathlib.Path(shutil.copytree(kept, tmp_path / "run"))
  [path] = (own / "checkpoints" / "5" / "ema" / "d").iterdir()
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(CheckpointError, match=f"step 5 is damaged: 5/ema/d/{path.name}"):
    export.export(own, tmp_path / "x.safetensors", step=5)
  assert not (tmp_path / "x.safetensors").exists()
  assert export.export(own, tmp_path / "x.safetensors")["step"] == 3
  assert f"5/ema/d/{path.name} is not what was written" in capfd.readouterr().err


class TestFolder:
  def test_a_folder_of_something_else_is_left_alone(self, kept, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
      export.export(kept, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]

  def test_one_that_was_stopped_is_none_yet(self, trained, tmp_path, monkeypatch):
    write = safetensors.write

    def full(path, *args):
      if path.parent == tmp_path / "x":
        raise OSError("No space left on device")
      return write(path, *args)

    export.export(trained, tmp_path / "x")
    monkeypatch.setattr(safetensors, "write", full)
    with pytest.raises(OSError, match="No space left"):
      export.export(trained, tmp_path / "x")
    assert not exported.is_exported(tmp_path / "x")
    monkeypatch.setattr(safetensors, "write", write)
    export.export(trained, tmp_path / "x")
    pretrained.verify(tmp_path / "x")

  def test_one_that_can_not_be_made_leaves_the_old_one(self, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    export.export(tmp_path / "run", tmp_path / "x")
    shutil.rmtree(tmp_path / "run" / "autoencoder")
    with pytest.raises(CheckpointError):
      export.export(tmp_path / "run", tmp_path / "x")
    pretrained.verify(tmp_path / "x")

  def test_a_card_is_one_of_its_files_until_it_is_exported_without(self, trained, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("# About")
    export.export(trained, tmp_path / "x", card=card)
    assert (tmp_path / "x" / "README.md").read_text() == "# About"
    pretrained.verify(tmp_path / "x")
    export.export(trained, tmp_path / "x")
    assert not (tmp_path / "x" / "README.md").exists()
    pretrained.verify(tmp_path / "x")
    with pytest.raises(InputError, match="a card is of a folder"):
      export.export(trained, tmp_path / "x.safetensors", card=card)
    with pytest.raises(InputError, match="absent.md"):
      export.export(trained, tmp_path / "x", card=tmp_path / "absent.md")

  def test_an_autoencoder_is_a_model_too(self, trained, tiny_config, tmp_path):
    found = export.export(trained / "autoencoder", tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"SHA256SUMS", "config.json", "model.safetensors"}
    assert found["step"] == tiny_config.autoencoder.steps
