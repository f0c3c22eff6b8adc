"""Weights that come with the package: found by name, checked, and used like a workdir."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint, export, pretrained
from sora_jax.checkpoints.manifest import CheckpointError
from sora_jax.errors import InputError
from sora_jax.inference.generator import Generator, Request, Sampling


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("package") / "tiny"
  export.export(trained, folder, dtype="bfloat16")
  return folder


@pytest.fixture
def known(exported, tmp_path, monkeypatch) -> pathlib.Path:
  """The folder of the one model that comes with the package."""
  shutil.copytree(exported, tmp_path / "tiny")
  monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
  return tmp_path / "tiny"


def test_a_name_is_the_folder_and_anything_else_itself(known):
  assert pretrained.names() == ["tiny"] and pretrained.located("pretrained:tiny") == str(known)
  assert pretrained.located("out/run") == "out/run" and pretrained.located(known) == str(known)


def test_an_unknown_name_tells_the_nearest(known, monkeypatch, tmp_path):
  with pytest.raises(InputError, match="pretrained:tine: no such weights: did you mean pretrained:tiny?"):
    pretrained.located("pretrained:tine")
  monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "nothing")
  with pytest.raises(InputError, match="none come with this package"):
    pretrained.located("pretrained:tiny")


@pytest.mark.parametrize(
  ("name", "harm"),
  [
    ("model.safetensors", "changed"),
    ("tokenizer.model", "changed"),
    ("autoencoder/model.safetensors", "changed"),
    ("autoencoder/model.safetensors", "missing"),
  ],
)
def test_a_file_that_is_not_as_it_was_is_named(known, name, harm):
  path = known / name
  content = path.read_bytes()
  path.unlink()
  if harm == "changed":
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(CheckpointError, match=f"{name} is not as SHA256SUMS says"):
    pretrained.located("pretrained:tiny")


def test_sums_that_are_missing_or_lead_elsewhere_are_refused(known, tmp_path):
  sums = known / "SHA256SUMS"
  text = sums.read_text()
  (tmp_path / "outside").write_text("x")
  sums.write_text(text + f"{hashlib.sha256(b'x').hexdigest()}  ../outside\n")
  with pytest.raises(CheckpointError, match="outside is not as"):
    pretrained.verify(known)
  sums.write_text("")
  with pytest.raises(CheckpointError, match="lacks autoencoder/model.safetensors"):
    pretrained.verify(known)
  sums.write_text("\n" + text)
  with pytest.raises(CheckpointError, match="can't be read"):
    pretrained.verify(known)
  sums.unlink()
  with pytest.raises(CheckpointError, match="can't be read"):
    pretrained.verify(known)


def test_it_samples_as_the_run_does_but_for_rounding(known, generator):
  other = Generator.load("pretrained:tiny")
  request, sampling = Request("a red circle moves leftwards", 16, 16, 5, 8.0, 3), Sampling.of(generator.config)
  frames, wanted = (each.sample([request], sampling)[0].frames_THWC for each in (other, generator))
  np.testing.assert_allclose(frames, wanted, atol=0.15)
  types = {leaf.dtype for leaf in checkpoint.flat(other.params).values()}
  assert types == {leaf.dtype for leaf in checkpoint.flat(generator.params).values()}


def test_matrices_take_half_the_room(exported, trained, tmp_path):
  whole = export.export(trained, tmp_path / "whole")
  small = sum(path.stat().st_size for path in exported.rglob("*.safetensors"))
  assert small < 0.7 * sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*.safetensors"))
  assert whole["tensors"] > 0


class TestWorlds:
  """The weights in this checkout."""

  FOLDER = pretrained.FOLDER / "worlds"

  def test_they_are_whole_small_and_from_nowhere(self):
    assert pretrained.names() == ["worlds"]
    pretrained.verify(self.FOLDER)
    assert sum(path.stat().st_size for path in self.FOLDER.rglob("*") if path.is_file()) <= 15 * 2**20
    config = json.loads((self.FOLDER / "config.json").read_text())
    assert config["data"]["prepared"] is config["autoencoder"]["checkpoint"] is None
    assert "worlds:camera3d" in config["data"]["source"]

  def test_they_show_what_is_asked_for(self):
    """Two colours at 64x64: no exam, but weights that were damaged or read wrongly would fail."""
    generator = Generator.load("pretrained:worlds")
    sampling = dataclasses.replace(Sampling.of(generator.config), steps=8)
    prompts = [f"A large {colour} circle near the centre of a dark background." for colour in ("red", "blue")]
    clips = generator.sample([Request(prompt, 64, 64, 1, 8.0, 0) for prompt in prompts], sampling)
    red, blue = (clip.frames_THWC[0, 20:44, 20:44].mean((0, 1)) for clip in clips)
    assert red[0] > red[2] + 0.3 and blue[2] > blue[0] + 0.3
