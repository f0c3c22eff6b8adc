"""Orders on disk: clips with sidecars, the same bits again from a sidecar, and refusals before anything is sampled."""

import copy
import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.inference.generator import Generator
from sora_jax.jobs import sample
from sora_jax.jobs.orders import Order, out_paths
from sora_jax.jobs.sample import again, make
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
    mode="sample",
    checkpoint=str(trained),
    prompts=("a red circle moves leftwards",),
    size="24x16",
    frames=5,
    fps=None,
    seed=7,
    out=str(tmp_path / "clips" / "one.mp4"),
    given={},
    step=None,
    overrides={"steps": 2, "method": None, "guidance": None},
  )


@pytest.fixture
def image(tmp_path) -> pathlib.Path:
  path = tmp_path / "first.png"
  video_io.write(path, np.random.default_rng(0).integers(0, 255, (1, 20, 12, 3), np.uint8), 1)
  return path


def sidecar(path) -> dict:
  return json.loads(pathlib.Path(f"{path}.json").read_text())


def recalled(path, out=None, overwrite=False, overrides=None, **changes) -> dict:
  return again(path, changes | ({} if out is None else {"out": str(out)}), overrides or {}, overwrite)


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
    assert folder_of(order) == ["one.mp4", "one.mp4.json"]
    assert video_io.read(order.out, fps=8, max_frames=99).shape == (5, 16, 24, 3)

  def test_a_gif_can_t_show_more_than_50_frames_a_second(self, order):
    with pytest.raises(InputError, match="gif shows 50 frames a second at most, not 60"):
      make(dataclasses.replace(order, out=order.out.replace(".mp4", ".gif"), fps=60.0))

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

  def test_an_image_gives_the_size(self, order, image):
    out = order.out.replace(".mp4", ".webp")
    made = make(dataclasses.replace(order, mode="animate", given={"image": str(image)}, size=None, out=out, frames=1))
    assert (made["width"], made["height"]) == (12, 20)
    assert video_io.read(made["out"], fps=8, max_frames=1).shape == (1, 20, 12, 3)

  def test_a_size_resizes_the_image(self, order, image):
    made = make(dataclasses.replace(order, mode="animate", given={"image": str(image)}, size="16x8"))
    assert video_io.read(made["out"], fps=8, max_frames=9).shape == (5, 8, 16, 3)


class TestAgain:
  @pytest.mark.parametrize(("suffix", "frames"), [("mp4", 5), ("png", 1), ("webp", 1)])
  def test_a_sidecar_makes_the_same_bytes(self, order, tmp_path, suffix, frames):
    order = dataclasses.replace(order, out=str(tmp_path / f"a.{suffix}"), frames=frames)
    make(order)
    made = recalled(tmp_path / f"a.{suffix}.json", tmp_path / f"b.{suffix}")
    assert made["out"] == str(tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    other = make(dataclasses.replace(order, seed=8, out=str(tmp_path / f"c.{suffix}")))
    assert pathlib.Path(other["out"]).read_bytes() != (tmp_path / f"a.{suffix}").read_bytes()

  def test_without_a_name_it_takes_the_old_one_s_place(self, order):
    make(order)
    bytes_before = pathlib.Path(order.out).read_bytes()
    with pytest.raises(ValueError, match="one.mp4 is there already.*--overwrite"):
      recalled(f"{order.out}.json")
    pathlib.Path(order.out).write_bytes(b"another")
    assert recalled(f"{order.out}.json", overwrite=True)["out"] == order.out
    assert pathlib.Path(order.out).read_bytes() == bytes_before

  def test_one_of_several_prompts_alone(self, order, tmp_path):
    made = make(dataclasses.replace(order, prompts=("a red circle", "a blue cross")))
    result = recalled(f"{made['out'][1]}.json", tmp_path / "second.mp4")
    assert result["out"] == str(tmp_path / "second.mp4")
    assert (tmp_path / "second.mp4").read_bytes() == pathlib.Path(made["out"][1]).read_bytes()
    assert sidecar(tmp_path / "second.mp4")["prompt"] == "a blue cross"

  def test_a_changed_image_is_refused_and_named(self, order, image):
    make(dataclasses.replace(order, mode="animate", given={"image": str(image)}, size=None))
    assert recalled(f"{order.out}.json", overwrite=True)
    other = image.with_name("second.png")
    other.write_bytes(image.read_bytes())
    assert recalled(f"{order.out}.json", image.with_name("other.mp4"), given={"image": str(other)})
    with pytest.raises(InputError, match="of sora animate: use that, not sora edit"):
      recalled(f"{order.out}.json", overwrite=True, mode="edit")
    video_io.write(image, np.zeros((1, 20, 12, 3), np.uint8), 1)
    with pytest.raises(ValueError, match="first.png.*changed"):
      recalled(f"{order.out}.json", overwrite=True)

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
      recalled(f"{order.out}.json", overwrite=True)

  @pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", "{}", '{"order": 5}', '{"order": {"prompts": []}}', '{"order": {"x": 1}}']
  )
  def test_what_is_no_sidecar_is_named(self, tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match="odd.json"):
      recalled(tmp_path / "odd.json")

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
      {"mode": "magic"},
      {"given": 5},
      {"given": {"image": "a.png"}},
      {"given": {"condition": [5]}},
    ],
    ids=str,
  )
  def test_a_sidecar_with_values_of_wrong_types_is_refused(self, order, change):
    make(order)
    path = pathlib.Path(f"{order.out}.json")
    whole = sidecar(order.out)
    path.write_text(json.dumps({**whole, "order": {**whole["order"], **change}}))
    with pytest.raises(ValueError, match="one.mp4.json"):
      recalled(path, overwrite=True)

  def test_bytes_that_are_no_text_and_a_missing_file_are_named(self, tmp_path):
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    for name in ("odd.json", "absent.json"):
      with pytest.raises(ValueError, match=name):
        recalled(tmp_path / name)


class TestChanges:
  def test_what_is_given_is_changed_and_that_alone(self, order, tmp_path):
    make(order)
    changes = {"seed": 9, "prompts": ("a blue cross",)}
    made = recalled(f"{order.out}.json", tmp_path / "changed.mp4", **changes)
    direct = make(dataclasses.replace(order, **changes, out=str(tmp_path / "direct.mp4")))
    assert (made["fps"], made["frames"]) == (direct["fps"], direct["frames"])
    assert (tmp_path / "changed.mp4").read_bytes() == (tmp_path / "direct.mp4").read_bytes()
    written = sidecar(tmp_path / "changed.mp4")
    assert (written["prompt"], written["seed"], written["order"]["overrides"]["steps"]) == ("a blue cross", 9, 2)

  def test_a_setting_of_the_sampler_alone(self, order, tmp_path):
    make(order)
    recalled(f"{order.out}.json", tmp_path / "more.mp4", overrides={"steps": 3})
    assert sidecar(tmp_path / "more.mp4")["order"]["overrides"]["steps"] == 3
    assert sidecar(tmp_path / "more.mp4")["seed"] == order.seed

  def test_one_of_several_keeps_its_own_seed_and_prompt(self, order, tmp_path):
    made = make(dataclasses.replace(order, prompts=("a red circle", "a blue cross")))
    recalled(f"{made['out'][1]}.json", tmp_path / "short.png", frames=1)
    written = sidecar(tmp_path / "short.png")
    assert (written["prompt"], written["seed"], written["order"]["prompts"]) == ("a blue cross", 8, ["a blue cross"])

  def test_changes_are_of_the_same_weights_unless_others_are_named(self, order, trained, tmp_path):
    make(order)
    path = pathlib.Path(f"{order.out}.json")
    path.write_text(json.dumps({**sidecar(order.out), "weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="weights.*changed"):
      recalled(path, tmp_path / "b.mp4", seed=9)
    assert recalled(path, tmp_path / "b.mp4", checkpoint=str(trained))["out"] == str(tmp_path / "b.mp4")

  def test_weights_are_loaded_and_hashed_once(self, order, tmp_path, monkeypatch):
    made = make(dataclasses.replace(order, prompts=("a red circle", "a blue cross")))
    calls = []
    load, digest = Generator.load, Generator.digest
    monkeypatch.setattr(Generator, "load", staticmethod(lambda *where: calls.append("load") or load(*where)))
    monkeypatch.setattr(Generator, "digest", lambda generator: calls.append("hash") or digest(generator))
    make(dataclasses.replace(order, prompts=("a red circle", "a blue cross"), out=str(tmp_path / "new.mp4")))
    assert calls == ["load", "hash"]
    recalled(f"{made['out'][1]}.json", tmp_path / "again.mp4")
    assert calls == ["load", "hash"] * 2


class TestOverwriting:
  @pytest.fixture
  def unloadable(self, monkeypatch):
    """Nothing may be loaded: a refusal comes before the work."""
    monkeypatch.setattr(Generator, "load", staticmethod(lambda *where: pytest.fail("loaded")))

  @pytest.mark.parametrize("there", ["one.mp4", "one.mp4.json"])
  def test_what_is_there_is_refused_before_any_work(self, order, unloadable, there):
    path = pathlib.Path(order.out).with_name(there)
    path.parent.mkdir()
    path.write_text("a user's own")
    with pytest.raises(ValueError, match=f"{there} is there already.*--overwrite"):
      make(order)
    assert folder_of(order) == [there] and path.read_text() == "a user's own"

  def test_one_of_several_clips_is_enough(self, order, unloadable):
    path = pathlib.Path(order.out).with_name("one_1.mp4")
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(ValueError, match="one_1.mp4 is there already"):
      make(dataclasses.replace(order, prompts=("a", "b")))

  def test_overwrite_writes_both_anew(self, order):
    make(order)
    before = pathlib.Path(order.out).read_bytes()
    make(dataclasses.replace(order, seed=8), overwrite=True)
    assert pathlib.Path(order.out).read_bytes() != before and sidecar(order.out)["seed"] == 8

  def test_clips_of_one_name_and_two_formats_keep_their_own_recipes(self, order):
    make(order)
    make(dataclasses.replace(order, seed=8, out=order.out.replace(".mp4", ".gif")))
    assert folder_of(order) == ["one.gif", "one.gif.json", "one.mp4", "one.mp4.json"]
    assert sidecar(order.out)["seed"] == 7

  def test_a_folder_that_can_t_be_made_is_named(self, order, unloadable, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
      make(dataclasses.replace(order, out=str(tmp_path / "file" / "x.mp4")))

  def test_a_full_disk_is_named(self, order, monkeypatch):
    def full(*given):
      raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_io, "write_pieces", full)
    with pytest.raises(InputError, match="one.mp4: No space left on device"):
      make(order)


class TestSizes:
  def test_an_odd_size_comes_back_true(self, order):
    made = make(dataclasses.replace(order, size="23x15"))
    assert (made["width"], made["height"]) == (23, 15)
    written = sidecar(order.out)
    assert (written["width"], written["height"], written["frames"], written["fps"]) == (23, 15, 5, 8.0)
    assert video_io.read(order.out, fps=8, max_frames=9).shape == (5, 15, 23, 3)

  @pytest.mark.parametrize(("size", "nearest"), [((80, 120), "24x16"), ((16, 60), "24x16"), ((16, 20), None)])
  def test_a_picture_far_from_the_sizes_of_training_is_told(self, order, tmp_path, capsys, size, nearest):
    video_io.write(tmp_path / "big.png", np.zeros((1, *size, 3), np.uint8), 1)
    given = {"image": str(tmp_path / "big.png")}
    out = str(tmp_path / "x.png")
    make(dataclasses.replace(order, mode="animate", given=given, size=None, frames=1, out=out))
    said = capsys.readouterr().err
    assert (f"{size[1]}x{size[0]} is far" in said and f"--size {nearest}" in said) if nearest else not said

  def test_ranges_are_compared_at_the_nearest_duration(self, generator, monkeypatch):
    config = generator.config.copy_and_resolve_references()
    config.data.update(sizes=("16..64x16..64",), frames=(1, "5..9"), max_tokens=96)
    monkeypatch.setattr(generator, "config", config)
    assert sample.far_from_training(generator, 1, 40, 40) is None
    said = sample.far_from_training(generator, 12, 56, 56)
    width, height = map(int, re.search(r"of which (\d+)x(\d+) is the nearest", said).groups())
    assert generator.grid.tokens(9, height, width) <= 96 < generator.grid.tokens(9, 56, 56)
    assert sample.far_from_training(generator, 12, height, width) is None

  def test_files_were_shrunk_to_their_budget(self, generator, monkeypatch):
    data = generator.config.data.copy_and_resolve_references()
    data.source, data.max_tokens = "clips", 24
    config = generator.config.copy_and_resolve_references()
    config.data = data
    monkeypatch.setattr(generator, "config", config)
    height, width = generator.grid.fit(1, 400, 600, 24)
    assert f"{width}x{height} is the nearest" in sample.far_from_training(generator, 1, 400, 600)
    assert sample.far_from_training(generator, 1, height, width) is None
    data.update(max_frames=5)  # longer files were cut
    assert sample.far_from_training(generator, 700, height, width) == sample.far_from_training(
      generator, 5, height, width
    )
    data.source = "clips,worlds:shapes"  # whose sizes are among 16x24
    assert sample.far_from_training(generator, 1, 16, 24) is None
    data.max_tokens = 0
    assert sample.far_from_training(generator, 1, 400, 600) is None


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
      ({"mode": "animate", "given": {"image": "nowhere.png"}}, "--image nowhere.png can't be read"),
      ({"given": {"condition": ["nowhere.png@0"]}}, "--condition nowhere.png can't be read"),
      ({"given": {"condition": ["nowhere.png"]}}, "--condition nowhere.png: it is FILE@SECONDS"),
      ({"size": None}, "sora sample needs --size"),
      ({"frames": None}, "sora sample needs --frames"),
      ({"mode": "connect", "given": {"clip": ["a.mp4"]}}, "--clip a.mp4 can't be read"),
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
      make(dataclasses.replace(order, mode="animate", given={"image": str(tmp_path / "bad.png")}))


def test_out_paths_are_the_name_itself_or_numbered(order):
  assert out_paths(order) == [pathlib.Path(order.out)]
  names = [path.name for path in out_paths(dataclasses.replace(order, prompts=("a", "b")))]
  assert names == ["one_0.mp4", "one_1.mp4"]
