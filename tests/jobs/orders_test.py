"""Orders: which files they name, where these are, and that a sidecar holds them by their digests."""

import dataclasses
import pathlib

import pytest

from sora_jax.errors import InputError
from sora_jax.jobs.orders import GIVEN, Order, Recipe, check, check_types, describe, make_room, out_paths, sha256

SETTINGS = dataclasses.make_dataclass("Settings", ["steps"])


def order_of(mode: str, **given) -> Order:
  return Order(mode, "w", ("a",), None, 5, 8.0, 0, "x.mp4", given, None, {})


@pytest.mark.parametrize(
  ("order", "files"),
  [
    (order_of("sample"), []),
    (order_of("sample", condition=["a.png@0", "b@c.mp4@1:0.5"]), ["a.png", "b@c.mp4"]),
    (order_of("animate", image="i.png", at=1.0, condition=("e.png@2",)), ["i.png", "e.png"]),
    (order_of("edit", clip="c.mp4", mask="m.png", strength=0.5), ["c.mp4", "m.png"]),
    (order_of("edit", clip="c.mp4", mask="0,0,8,8"), ["c.mp4"]),
    (order_of("connect", clip=["a.mp4", "b.mp4"]), ["a.mp4", "b.mp4"]),
  ],
  ids=lambda value: value.mode if isinstance(value, Order) else "",
)
def test_the_files_of_an_order(order, files):
  assert order.files() == files
  assert check_types(order) is order


def test_a_sidecar_names_files_by_their_whole_path_and_digest(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("a.png", "m.png"):
    pathlib.Path(name).write_text(name)
  order = order_of("edit", clip="a.png", mask="m.png")
  about = {"width": 1, "height": 1, "frames": 1, "fps": 8.0, "step": 3, "weights_sha256": "0"}
  found = describe(order, 0, SETTINGS(5), about)
  assert found["files"] == {str(tmp_path / name): sha256(name) for name in ("a.png", "m.png")}
  assert found["order"]["given"] == {"clip": str(tmp_path / "a.png"), "mask": str(tmp_path / "m.png")}
  keyframes = describe(order_of("sample", condition=["a.png@1:0.5"]), 0, SETTINGS(5), about)
  assert keyframes["order"]["given"]["condition"] == [f"{tmp_path / 'a.png'}@1:0.5"]
  boxes = describe(order_of("edit", clip="a.png", mask="0,0,4,4"), 0, SETTINGS(5), about)
  assert boxes["order"]["given"]["mask"] == "0,0,4,4"


def test_a_sidecar_names_its_weights_so_that_another_folder_finds_them(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  about = {"width": 1, "height": 1, "frames": 1, "fps": 8.0, "step": 3, "weights_sha256": "0"}
  kept = {"runs/w": str(tmp_path / "runs" / "w"), "pretrained:worlds": "pretrained:worlds", "gs://b/run": "gs://b/run"}
  for checkpoint, wanted in kept.items():
    order = dataclasses.replace(order_of("sample"), checkpoint=checkpoint)
    assert describe(order, 0, SETTINGS(5), about)["order"]["checkpoint"] == wanted


def test_a_clip_is_not_written_over_what_it_is_made_from(tmp_path):
  path = tmp_path / "a.mp4"
  path.write_text("a")
  with pytest.raises(InputError, match="a.mp4 is what the clip is made from: give another --out"):
    make_room([path], True, [str(tmp_path / "." / "a.mp4")])
  make_room([path], True, [str(tmp_path / "b.mp4"), "0,0,4,4"])


def test_no_folder_is_made_before_there_is_a_clip(tmp_path):
  make_room([tmp_path / "a" / "b" / "c.mp4"], False, [])
  assert not list(tmp_path.iterdir())
  (tmp_path / "a").write_text("no folder")
  with pytest.raises(InputError, match="c.mp4: .*a is no folder"):
    make_room([tmp_path / "a" / "b" / "c.mp4"], False, [])


def test_of_the_files_that_are_still_used_none_may_have_changed(tmp_path):
  path = tmp_path / "a.png"
  path.write_text("a")
  recipe = Recipe(order_of("animate", image=str(path)), 0, {str(path): sha256(str(path))}, "0")
  recipe.check_files("x.json", [str(path)])
  path.write_text("b")
  recipe.check_files("x.json", ["another.png"])
  with pytest.raises(InputError, match="a.png has changed since x.json"):
    recipe.check_files("x.json", [str(path)])
  path.unlink()
  with pytest.raises(InputError, match="a.png"):
    recipe.check_files("x.json", [str(path)])


@pytest.mark.parametrize(
  ("order", "words"),
  [
    (order_of("extend"), "sora extend needs --clip"),
    (order_of("extend", clip="a.mp4", condition=["p.png@0"]), "sora extend: 'condition' can't be"),
    (order_of("animate", image="a.png", at=float("inf")), "sora animate: at=inf is no finite number"),
    (order_of("edit", clip="a.mp4", strength=float("nan")), "strength=nan"),
    (dataclasses.replace(order_of("sample"), fps=float("nan")), "fps=nan"),
    (dataclasses.replace(order_of("sample"), overrides={"interval": [1, 2, 3]}), "is two noise levels"),
    (dataclasses.replace(order_of("sample"), overrides={"interval": ["a", "b"]}), "is two noise levels"),
  ],
)
def test_what_can_t_be_made_is_named_before_anything_is_loaded(order, words):
  with pytest.raises(InputError, match=words):
    check(order)


def test_a_video_by_its_mode_is_no_picture():
  for mode in ("extend", "connect"):
    with pytest.raises(InputError, match=f"png holds one frame, and sora {mode} makes a video"):
      out_paths(dataclasses.replace(order_of(mode), frames=1, out="x.png"))
  with pytest.raises(InputError, match="png holds one frame, and sora loop makes a video"):
    out_paths(dataclasses.replace(order_of("loop", clip="a.mp4"), frames=1, out="x.png"))


@pytest.mark.parametrize("mode", GIVEN)
def test_what_another_mode_is_given_is_refused(mode):
  with pytest.raises(TypeError, match="'speed' can't be 5"):
    check_types(order_of(mode, speed=5, **{name: "x" for name, kind in GIVEN[mode].items() if kind is str}))
