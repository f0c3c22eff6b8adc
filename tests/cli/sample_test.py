"""`sora sample`, `animate` and the others: what is asked for reaches the order, and nothing is dropped in silence."""

import pathlib

import numpy as np
import pytest

from sora_jax.jobs import sample as job
from sora_jax.video import io as video_io
from tests.cli.runs import complaint, result, run

ORDER = ("--prompt", "x", "--size", "16x16", "--frames", "1")


@pytest.fixture
def sora(capsys):
  return lambda *words: run(capsys, *words)


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
  """What the job is asked for, in the place of doing it."""
  calls: list[tuple] = []
  for name in ("make", "again"):
    monkeypatch.setattr(job, name, lambda *given, name=name: calls.append((name, *given)) or {"out": "x"})
  return calls


class TestMistakes:
  @pytest.mark.parametrize(
    ("words", "parts"),
    [
      (("sample", "--prompt", "x"), ("--checkpoint", "--size", "--frames", "--out")),
      (("animate", "--prompt", "x"), ("--image",)),
      (("sample", "--promt", "x"), ("--promt", "--prompt")),
      (("sample", "--checkpoint", "w", "--prompt", "a", "red", "circle"), ("'red' 'circle'", "quotes")),
      (("sample", *ORDER, "--fps", "0"), ("--fps",)),
      (("sample", *ORDER, "--fps", "-8"), ("--fps",)),
      (("sample", *ORDER, "--fps", "nan"), ("--fps",)),
      (("sample", *ORDER, "--frames", "0"), ("--frames",)),
      (("sample", *ORDER, "--seed", "-1"), ("--seed",)),
      (("sample", *ORDER, "--sample_steps", "0"), ("--sample_steps",)),
      (("sample", *ORDER, "--method", "magic"), ("--method", "euler")),
      (("sample", *ORDER, "--image", "a.png"), ("--image",)),
      (("sample", *ORDER, "--workdir", "w"), ("--workdir",)),
      (("animate", "--first_frame"), ("--first_frame",)),
      (("extend", "--clip", "c.mp4"), ("--checkpoint", "--frames", "--out")),
      (("extend", "--direction", "sideways"), ("--direction", "backward")),
      (("edit", "--strength", "1.5"), ("--strength",)),
      (("edit", "--image", "a.png"), ("--image",)),
      (("connect", "--frames", "5", "--out", "x.mp4", "--checkpoint", "w"), ("--clip",)),
    ],
    ids=str,
  )
  def test_a_wrong_command_line_is_named_in_one_line(self, sora, words, parts):
    said = complaint(sora(*words), 2)
    assert all(part in said for part in parts), said

  def test_a_folder_without_checkpoints_is_named(self, sora, tmp_path):
    said = complaint(sora("sample", "--checkpoint", tmp_path / "nowhere", *ORDER, "--out", tmp_path / "x.png"), 1)
    assert str(tmp_path / "nowhere") in said
    assert not list(tmp_path.iterdir())

  def test_a_foreign_folder_is_named(self, sora, tmp_path):
    (tmp_path / "foreign" / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "foreign" / "checkpoints" / "10" / "weights.bin").write_bytes(b"abc")
    for words in (
      ("sample", "--checkpoint", tmp_path / "foreign", *ORDER, "--out", tmp_path / "x.png"),
      ("checkpoint", "digest", tmp_path / "foreign"),
    ):
      done = sora(*words)
      assert done.returncode == 1 and str(tmp_path / "foreign") in done.stderr.splitlines()[-1]

  def test_a_size_that_is_none_is_named(self, sora, trained, tmp_path):
    words = ("--prompt", "x", "--size", "huge", "--frames", "1", "--out", tmp_path / "x.png")
    assert "'huge'" in complaint(sora("sample", "--checkpoint", trained, *words), 1)


class TestOrders:
  def test_what_is_given_is_asked_for(self, sora, asked):
    words = ("--checkpoint", "w", *ORDER, "--prompt", "y", "--out", "x.png", "--fps", "8", "--sample_steps", "3")
    assert sora("sample", *words, "--nofirst_frame", "--step", "7", "--overwrite").returncode == 0
    ((name, order, overwrite),) = asked
    assert (name, overwrite) == ("make", True)
    assert (order.checkpoint, order.prompts, order.size, order.frames) == ("w", ("x", "y"), "16x16", 1)
    assert (order.fps, order.seed, order.out, order.mode, order.step) == (8.0, 0, "x.png", "sample", 7)
    assert order.given == {}
    assert order.overrides == {
      "steps": 3,
      "method": None,
      "guidance": None,
      "condition_guidance": None,
      "first_frame": False,
    }

  def test_from_changes_what_is_given_and_that_alone(self, sora, asked):
    assert sora("sample", "--from", "a.mp4.json").returncode == 0
    words = ("--seed", "0", "--prompt", "a cat", "--guidance", "4", "--out", "b.mp4")
    assert sora("sample", "--from", "a.mp4.json", *words, "--overwrite").returncode == 0
    changes = {"seed": 0, "prompts": ("a cat",), "out": "b.mp4"}
    assert asked == [
      ("again", "a.mp4.json", {}, {}, False),
      ("again", "a.mp4.json", changes, {"guidance": 4.0, "condition_guidance": 4.0}, True),
    ]

  def test_animate_needs_no_prompt_and_takes_another_picture_for_a_recipe(self, sora, asked):
    assert sora("animate", "--checkpoint", "w", "--image", "i.png", "--frames", "3", "--out", "x.mp4").returncode == 0
    assert sora("animate", "--from", "a.mp4.json", "--image", "j.png").returncode == 0
    assert (asked[0][1].mode, asked[0][1].prompts, asked[0][1].given) == ("animate", ("",), {"image": "i.png"})
    assert asked[1][2:] == ({"mode": "animate", "given": {"image": "j.png"}}, {}, False)

  @pytest.mark.parametrize(
    ("mode", "words", "given"),
    [
      (
        "sample",
        (*ORDER, "--condition", "a.png@0", "--condition", "b@c.mp4@1.5:0.7"),
        {"condition": ["a.png@0", "b@c.mp4@1.5:0.7"]},
      ),
      ("animate", ("--image", "i.png", "--at", "1.5", "--frames", "9"), {"image": "i.png", "at": 1.5}),
      (
        "extend",
        ("--clip", "c.mp4", "--direction", "backward", "--frames", "9"),
        {"clip": "c.mp4", "direction": "backward"},
      ),
      ("loop", ("--clip", "c.mp4", "--frames", "8"), {"clip": "c.mp4"}),
      ("loop", ("--prompt", "x", "--size", "16x16", "--frames", "8"), {}),
      (
        "edit",
        ("--clip", "c.mp4", "--strength", "0", "--mask", "0,0,8,8"),
        {"clip": "c.mp4", "strength": 0.0, "mask": "0,0,8,8"},
      ),
      ("connect", ("--clip", "a.mp4", "--clip", "b.mp4", "--frames", "9"), {"clip": ["a.mp4", "b.mp4"]}),
    ],
    ids=str,
  )
  def test_every_mode_takes_what_it_is_made_from(self, sora, asked, mode, words, given):
    assert sora(mode, "--checkpoint", "w", "--out", "x.mp4", *words).returncode == 0
    ((name, order, _),) = asked
    assert (name, order.mode, order.given) == ("make", mode, given)


def test_animate_takes_the_image_s_size(sora, trained, tmp_path):
  image = np.random.default_rng(0).integers(0, 255, (1, 20, 12, 3), np.uint8)
  video_io.write(tmp_path / "first.png", image, 1)
  words = ("--checkpoint", trained, "--image", tmp_path / "first.png", "--frames", "3", "--sample_steps", "2")
  found = result(sora("animate", *words, "--out", tmp_path / "x.webp", "--json"))
  assert (found["width"], found["height"], found["frames"]) == (12, 20, 3)
  assert (tmp_path / "x.webp").is_file()
  said = complaint(sora("animate", *words, "--out", tmp_path / "x.webp", "--json"), 1)
  assert str(pathlib.Path(found["out"])) in said and "--overwrite" in said
