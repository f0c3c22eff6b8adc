"""`sora data`: what is kept and dropped, shards and pages, and which flag is whose."""

import json
import pathlib

import numpy as np
import pytest

from sora_jax.video import io as video_io
from tests.cli.runs import complaint, result, run


@pytest.fixture
def sora(capsys):
  return lambda *words: run(capsys, *words)


@pytest.mark.parametrize(
  ("words", "parts"),
  [
    (("show", "worlds:shapes"), ("--out",)),
    (("build", "clips"), ("--out",)),
    (("check", "clips", "--workers", "2"), ("--workers",)),
    (("check", "clips", "more"), ("'more'",)),
    (("build", "clips", "--out", "x", "--min_side", "0"), ("--min_side",)),
    (("build", "clips", "--out", "x", "--min_secs", "1"), ("--min_seconds",)),
  ],
  ids=str,
)
def test_a_wrong_command_line_is_named_in_one_line(sora, words, parts):
  said = complaint(sora("data", *words), 2)
  assert all(part in said for part in parts), said


def test_a_folder_that_is_not_there_is_named(sora, tmp_path):
  for action in (("check",), ("show", "--out", tmp_path / "p"), ("build", "--out", tmp_path / "s")):
    assert str(tmp_path / "absent") in complaint(sora("data", *action, tmp_path / "absent"), 1)


def test_check_counts_what_is_kept_and_names_what_is_dropped(sora, tmp_path):
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


def test_build_writes_shards_that_check_and_show_read(sora, tmp_path):
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


def test_a_config_that_is_none_of_a_run_is_refused(sora, tmp_path):
  video_io.write(tmp_path / "still.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
  (tmp_path / "captions.jsonl").write_text('{"file": "still.png", "caption": "black"}')
  said = complaint(sora("data", "check", tmp_path, "--config", "configs/sweep_isoflop.py"), 1)
  assert "config" in said


def test_a_folder_that_can_t_be_written_is_named(sora, tmp_path):
  video_io.write(tmp_path / "still.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
  (tmp_path / "captions.jsonl").write_text('{"file": "still.png", "caption": "black"}')
  for action in ("show", "build"):
    said = complaint(sora("data", action, tmp_path, "--out", tmp_path / "still.png" / "inside"), 1)
    assert str(tmp_path / "still.png") in said
