"""Orders on disk: clips with sidecars, the same bits again from a sidecar, and refusals before anything is sampled."""

import copy
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from sora_jax.clips import to_uint8
from sora_jax.inference.generator import Generator
from sora_jax.jobs import sample
from sora_jax.jobs.sample import Order, again, make, out_paths
from sora_jax.video import io as video_io


@pytest.fixture(autouse=True)
def loaded_once(generator, trained, monkeypatch):
  """Loads the shared generator instead of compiling one an order; other folders and steps load as they do."""
  load = Generator.load

  def cached(workdir, step=None):
    same = pathlib.Path(workdir) == trained and step in (None, generator.step)
    return generator if same else load(workdir, step)

  monkeypatch.setattr(Generator, "load", staticmethod(cached))


@pytest.fixture
def order(trained, tmp_path) -> Order:
  return Order(
    checkpoint=str(trained),
    prompts=("a red circle moves leftwards",),
    size="24x16",
    frames=5,
    fps=None,
    seed=7,
    out=str(tmp_path / "clips" / "one.mp4"),
    image=None,
    step=None,
    overrides={"steps": 2, "method": None, "guidance": None},
  )


@pytest.fixture
def image(tmp_path) -> pathlib.Path:
  path = tmp_path / "first.png"
  video_io.write(path, np.random.default_rng(0).integers(0, 255, (1, 20, 12, 3), np.uint8), 1)
  return path


def sidecar(path) -> dict:
  return json.loads(pathlib.Path(path).with_suffix(".json").read_text())


def folder_of(order: Order) -> list[str]:
  folder = pathlib.Path(order.out).parent
  return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class TestMake:
  def test_the_clip_and_its_sidecar_are_written(self, order):
    made = make(order)
    assert {name: made[name] for name in ("out", "width", "height", "frames", "fps")} == {
      "out": order.out,
      "width": 24,
      "height": 16,
      "frames": 5,
      "fps": 8.0,  # the rate that the run trained at
    }
    assert made["seconds"] > 0
    assert folder_of(order) == ["one.json", "one.mp4"]
    assert video_io.read(order.out, fps=8, max_frames=99).shape == (5, 16, 24, 3)

  def test_the_sidecar_holds_what_was_resolved(self, order, generator):
    make(order)
    written = sidecar(order.out)
    assert (written["prompt"], written["seed"], written["step"]) == (order.prompts[0], 7, generator.step)
    assert written["order"]["fps"] == 8.0
    settings = written["order"]["overrides"]
    assert (settings["steps"], settings["guidance"]) == (2, generator.config.sample.guidance)
    assert pathlib.Path(written["order"]["checkpoint"]).is_absolute()

  def test_several_prompts_are_numbered_and_differ(self, order):
    order = dataclasses.replace(order, prompts=("a red circle", "a red circle", "a blue cross"), frames=1)
    order = dataclasses.replace(order, out=order.out.replace(".mp4", ".png"))
    made = make(order)
    assert [pathlib.Path(out).name for out in made["out"]] == ["one_0.png", "one_1.png", "one_2.png"]
    assert len({pathlib.Path(out).read_bytes() for out in made["out"]}) == 3
    assert [sidecar(out)["seed"] for out in made["out"]] == [7, 8, 9]
    assert sidecar(made["out"][2])["prompt"] == "a blue cross"

  def test_an_image_gives_the_size_and_the_first_frame(self, order, image, generator):
    out = order.out.replace(".mp4", ".webp")
    made = make(dataclasses.replace(order, image=str(image), size=None, out=out, frames=1))
    assert (made["width"], made["height"]) == (12, 20)
    given = sample.load_image(str(image), None)
    kept = to_uint8(generator.codec.decode(generator.codec.encode(given[None]), (1, 20, 12))[0])
    found = video_io.read(made["out"], fps=8, max_frames=1)
    assert np.abs(found.astype(int) - kept).max() <= 1

  def test_a_size_resizes_the_image(self, order, image):
    made = make(dataclasses.replace(order, image=str(image), size="16x8"))
    assert video_io.read(made["out"], fps=8, max_frames=9).shape == (5, 8, 16, 3)


class TestAgain:
  @pytest.mark.parametrize(("suffix", "frames"), [("mp4", 5), ("png", 1), ("webp", 1)])
  def test_a_sidecar_makes_the_same_bytes(self, order, tmp_path, suffix, frames):
    order = dataclasses.replace(order, out=str(tmp_path / f"a.{suffix}"), frames=frames)
    make(order)
    made = again(tmp_path / "a.json", str(tmp_path / f"b.{suffix}"))
    assert made["out"] == str(tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    other = make(dataclasses.replace(order, seed=8, out=str(tmp_path / f"c.{suffix}")))
    assert pathlib.Path(other["out"]).read_bytes() != (tmp_path / f"a.{suffix}").read_bytes()

  def test_without_a_name_it_takes_the_old_one_s_place(self, order):
    make(order)
    bytes_before = pathlib.Path(order.out).read_bytes()
    pathlib.Path(order.out).unlink()
    assert again(pathlib.Path(order.out).with_suffix(".json"))["out"] == order.out
    assert pathlib.Path(order.out).read_bytes() == bytes_before

  def test_one_of_several_prompts_alone(self, order, tmp_path):
    made = make(dataclasses.replace(order, prompts=("a red circle", "a blue cross")))
    result = again(pathlib.Path(made["out"][1]).with_suffix(".json"), str(tmp_path / "second.mp4"))
    assert result["out"] == str(tmp_path / "second.mp4")
    assert (tmp_path / "second.mp4").read_bytes() == pathlib.Path(made["out"][1]).read_bytes()
    assert sidecar(tmp_path / "second.mp4")["prompt"] == "a blue cross"

  def test_a_changed_image_is_refused_and_named(self, order, image):
    make(dataclasses.replace(order, image=str(image), size=None))
    assert again(pathlib.Path(order.out).with_suffix(".json"))
    video_io.write(image, np.zeros((1, 20, 12, 3), np.uint8), 1)
    with pytest.raises(ValueError, match="first.png.*changed"):
      again(pathlib.Path(order.out).with_suffix(".json"))

  @pytest.mark.parametrize("part", ["transformer", "autoencoder"])
  def test_changed_weights_are_refused(self, order, generator, monkeypatch, part):
    make(order)
    other = copy.copy(generator)
    if part == "transformer":
      other.params = {**generator.params, "patch_out": {"kernel": np.zeros(3), "bias": np.zeros(3)}}
    else:
      other.codec = copy.copy(generator.codec)
      other.codec.params = {**generator.codec.params, "latent_mean": np.ones(4, np.float32)}
    monkeypatch.setattr(Generator, "load", staticmethod(lambda workdir, step=None: other))
    with pytest.raises(ValueError, match="weights.*changed"):
      again(pathlib.Path(order.out).with_suffix(".json"))

  @pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", "{}", '{"order": 5}', '{"order": {"prompts": []}}', '{"order": {"x": 1}}']
  )
  def test_what_is_no_sidecar_is_named(self, tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match="odd.json"):
      again(tmp_path / "odd.json")

  @pytest.mark.parametrize(
    "change",
    [
      {"checkpoint": 5},
      {"prompts": 5},
      {"prompts": [3]},
      {"frames": "x"},
      {"overrides": 3},
      {"overrides": {"steps": "x"}},
      {"overrides": {"unknown": 1}},
    ],
    ids=str,
  )
  def test_a_sidecar_with_values_of_wrong_types_is_refused(self, order, change):
    make(order)
    path = pathlib.Path(order.out).with_suffix(".json")
    whole = sidecar(order.out)
    path.write_text(json.dumps({**whole, "order": {**whole["order"], **change}}))
    with pytest.raises(ValueError, match="one.json"):
      again(path)

  def test_bytes_that_are_no_text_and_a_missing_file_are_named(self, tmp_path):
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    for name in ("odd.json", "absent.json"):
      with pytest.raises(ValueError, match=name):
        again(tmp_path / name)


class TestRefusals:
  @pytest.mark.parametrize(
    ("change", "message"),
    [
      ({"out": "x.avi"}, "x.avi.*mp4"),
      ({"out": "x"}, "suffix"),
      ({"out": "x.png"}, "png.*5"),
      ({"size": "24"}, "'24'"),
      ({"frames": 0}, "frames 0"),
      ({"fps": -1.0}, "fps -1"),
      ({"image": "nowhere.png"}, "nowhere.png"),
      ({"overrides": {"method": "magic"}}, "'magic'"),
      ({"overrides": {"steps": 0}}, "0 sampling steps"),
    ],
    ids=str,
  )
  def test_what_can_t_be_is_named_and_nothing_is_written(self, order, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
      make(dataclasses.replace(order, **change))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

  def test_an_image_that_is_none_is_named(self, order, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="bad.png"):
      make(dataclasses.replace(order, image=str(tmp_path / "bad.png")))


def test_out_paths_are_the_name_itself_or_numbered(order):
  assert out_paths(order) == [pathlib.Path(order.out)]
  names = [path.name for path in out_paths(dataclasses.replace(order, prompts=("a", "b")))]
  assert names == ["one_0.mp4", "one_1.mp4"]
