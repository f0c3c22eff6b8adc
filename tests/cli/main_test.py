"""The `sora` command from outside: one JSON object on success, one line and a status of its own on a mistake."""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.jobs.workdir import flatten
from sora_jax.video import io as video_io

ROOT = pathlib.Path(__file__).resolve().parents[2]


def sora(*words: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "sora_jax.cli.main", *map(str, words)]
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  return subprocess.run(
    command, capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, check=False
  )


def changed(config: dict) -> list[tuple[str, Any]]:
  """(key, value) for what a config changes of configs/dit.py:runlocal=1."""
  tuples = lambda value: tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value
  before = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"]("runlocal=1").to_dict()
  old, new = flatten(before), flatten(config)
  return [(key, tuples(value)) for key, value in new.items() if tuples(old[key]) != tuples(value)]


def result(done: subprocess.CompletedProcess) -> dict:
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def complaint(done: subprocess.CompletedProcess, status: int) -> str:
  """The one line that a mistake is answered with."""
  assert done.returncode == status, done.stderr
  assert not done.stdout and "Traceback" not in done.stderr
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("sora: "), done.stderr
  return lines[0]


class TestMistakes:
  def test_no_words_print_the_usage(self):
    done = sora()
    assert done.returncode == 2
    for command in ("demo", "train", "sample", "animate", "data", "checkpoint", "doctor"):
      assert command in done.stdout + done.stderr

  def test_help_is_no_mistake(self):
    done = sora("help")
    assert done.returncode == 0 and "usage" in done.stdout

  @pytest.mark.parametrize(("word", "meant"), [("trian", "'train'"), ("smaple", "'sample'")])
  def test_an_unknown_command_is_answered_with_the_nearest(self, word, meant):
    said = complaint(sora(word), 2)
    assert word in said and meant in said

  def test_a_mistyped_key_of_the_config_is_answered_with_the_nearest(self, tmp_path):
    done = sora("train", "--config", "configs/dit.py:runlocal=1", "--workdir", tmp_path / "w", "--config.train.stepz=3")
    said = complaint(done, 2)
    assert "stepz" in said and '"steps"' in said.replace("'", '"')
    assert not (tmp_path / "w").exists()

  def test_a_mistyped_flag_is_named(self):
    assert "promt" in complaint(sora("sample", "--promt", "x"), 2)

  @pytest.mark.parametrize(
    ("words", "missing"),
    [
      (("train",), ("--config", "--workdir")),
      (("sample", "--prompt", "x"), ("--checkpoint", "--size", "--frames", "--out")),
      (("animate", "--prompt", "x"), ("--image",)),
      (("checkpoint", "verify"), ("list|",)),
      (("data", "tidy", "clips"), ("check|show|build",)),
      (("data", "build"), ("check|show|build",)),
      (("data", "show", "worlds:shapes"), ("--out",)),
      (("precompute", "--config", "configs/dit.py:runlocal=1"), ("--workdir",)),
    ],
  )
  def test_what_is_missing_is_named(self, words, missing):
    said = complaint(sora(*words), 2)
    assert all(part in said for part in missing)

  def test_an_unknown_config_argument_or_file_is_named(self, tmp_path):
    for config, part in (("configs/dit.py:variant=XXL", "XXL"), (str(tmp_path / "absent.py"), "absent.py")):
      done = sora("train", "--config", config, "--workdir", tmp_path / "w")
      assert done.returncode != 0 and part in done.stderr
      assert not (tmp_path / "w").exists()

  def test_a_folder_without_checkpoints_is_named(self, tmp_path):
    order = ("--prompt", "x", "--size", "16x16", "--frames", "1", "--out", tmp_path / "x.png")
    said = complaint(sora("sample", "--checkpoint", tmp_path / "nowhere", *order), 1)
    assert str(tmp_path / "nowhere") in said
    assert not list(tmp_path.iterdir())

  def test_a_foreign_folder_is_named(self, tmp_path):
    (tmp_path / "foreign" / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "foreign" / "checkpoints" / "10" / "weights.bin").write_bytes(b"abc")
    order = ("--prompt", "x", "--size", "16x16", "--frames", "1", "--out", tmp_path / "x.png")
    for words in (
      ("sample", "--checkpoint", tmp_path / "foreign", *order),
      ("checkpoint", "digest", tmp_path / "foreign"),
    ):
      done = sora(*words)
      assert done.returncode == 1 and "Traceback" not in done.stderr
      assert str(tmp_path / "foreign") in done.stderr.splitlines()[-1]

  def test_a_size_that_is_none_is_named(self, trained, tmp_path):
    order = ("--prompt", "x", "--size", "huge", "--frames", "1", "--out", tmp_path / "x.png")
    assert "'huge'" in complaint(sora("sample", "--checkpoint", trained, *order), 1)


class TestAnswers:
  def test_doctor_tells_versions_and_devices(self):
    found = result(sora("doctor", "--json"))
    assert {"jax", "jaxlib", "flax", "orbax-checkpoint", "av"} <= found["versions"].keys()
    assert found["ffmpeg"] and found["devices"][0].startswith("cpu")

  def test_data_check_counts_what_is_kept_and_names_what_is_dropped(self, tmp_path):
    video_io.write(tmp_path / "still.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
    lines = ['{"file": "still.png", "caption": "black"}', '{"file": "absent.mp4", "caption": "absent"}']
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    done = sora("data", "check", tmp_path, "--json")
    found = result(done)
    assert (found["clips"], found["kept"]) == (2, 1)
    assert found["dropped"] == [{"file": "absent.mp4", "line": 2, "reason": "file missing"}]
    assert "dropped absent.mp4 (line 2): file missing" in done.stderr
    (tmp_path / "captions.jsonl").write_text(lines[1])
    none = sora("data", "check", tmp_path, "--json")
    assert none.returncode == 1 and none.stderr.splitlines()[-1].startswith("sora: ")
    assert json.loads(none.stdout.splitlines()[-1])["kept"] == 0

  def test_data_build_writes_shards_that_check_and_show_read(self, tmp_path):
    rng = np.random.default_rng(0)
    video_io.write(tmp_path / "still.png", rng.integers(0, 255, (1, 24, 16, 3), np.uint8), 1)
    video_io.write(tmp_path / "blink.mp4", rng.integers(0, 255, (3, 24, 16, 3), np.uint8), 10)
    lines = ['{"file": "still.png", "caption": "noise"}', '{"file": "blink.mp4", "caption": "a <b>blink</b>"}']
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    done = sora("data", "build", tmp_path, "--out", tmp_path / "shards", "--min_seconds", "0.4", "--json")
    found = result(done)
    assert (found["clips"], found["kept"], found["shards"]) == (2, 1, 1)
    assert "dropped blink.mp4 (line 2): too short" in done.stderr
    assert result(sora("data", "check", tmp_path / "shards", "--json"))["kept"] == 1
    words = ("--config", "configs/dit.py:runlocal=1", "--out", tmp_path / "page", "--json")
    page = result(sora("data", "show", tmp_path, *words))
    text = pathlib.Path(page["page"]).read_text()
    assert page["shown"] == 2 and "tokens" in text and "a &lt;b&gt;blink&lt;/b&gt;" in text

  def test_precompute_leaves_what_training_begins_with(self, trained, tmp_path):
    shutil.copytree(trained / "autoencoder", tmp_path / "w" / "autoencoder")
    shutil.copy(trained / "config.json", tmp_path / "w")
    config = json.loads((trained / "config.json").read_text())
    words = [f"--config.{name}={value!r}" for name, value in changed(config)]
    done = sora("precompute", "--config", "configs/dit.py:runlocal=1", *words, "--workdir", tmp_path / "w", "--json")
    assert result(done)["clips"] == 24
    assert (tmp_path / "w" / "latents" / "index.json").read_text() == (trained / "latents" / "index.json").read_text()
    assert (tmp_path / "w" / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()

  def test_sample_writes_the_clip_and_tells_what_it_is(self, trained, tmp_path):
    words = ("--checkpoint", trained, "--prompt", "a red circle", "--size", "24x16", "--frames", "5", "--fps", "8")
    found = result(sora("sample", *words, "--seed", "3", "--out", "x.mp4", "--json", cwd=tmp_path))
    assert found.keys() >= {"out", "width", "height", "frames", "fps", "seconds"}
    assert (found["width"], found["height"], found["frames"], found["fps"]) == (24, 16, 5, 8.0)
    assert video_io.read(tmp_path / found["out"], fps=8, max_frames=99).shape == (5, 16, 24, 3)
    again = result(sora("sample", "--from", "x.json", "--out", "y.mp4", "--json", cwd=tmp_path))
    assert again["out"] == "y.mp4"
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()

  def test_animate_takes_the_image_s_size(self, trained, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (1, 20, 12, 3), np.uint8)
    video_io.write(tmp_path / "first.png", image, 1)
    words = ("--checkpoint", trained, "--image", tmp_path / "first.png", "--frames", "3", "--sample_steps", "2")
    found = result(sora("animate", *words, "--out", tmp_path / "x.webp", "--json"))
    assert (found["width"], found["height"], found["frames"]) == (12, 20, 3)
    assert (tmp_path / "x.webp").is_file()

  def test_checkpoint_lists_and_digests(self, trained):
    assert result(sora("checkpoint", "list", trained, "--json"))["steps"] == [3, 6]
    found = result(sora("checkpoint", "digest", trained, "--step", "3", "--json"))
    assert found == checkpoint.digest(trained, 3)
    assert found.keys() == {"step", "params", "optimizer", "ema", "rng", "data"}

  def test_without_json_the_answer_is_lines_for_people(self, trained):
    done = sora("checkpoint", "list", trained)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "steps: [3, 6]"
