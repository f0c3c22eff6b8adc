"""`check`: what is kept, what is dropped with its line and reason, and statistics of what is kept."""

import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest

from sora_jax.curation.check import check
from sora_jax.data.world_source import WorldSource
from sora_jax.video import io as video_io
from sora_jax.video.io import UnreadableFile


def noise(frames: int, height: int, width: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


@pytest.fixture
def own(tmp_path) -> pathlib.Path:
  video_io.write(tmp_path / "long.mp4", noise(30, 64, 96), 10)
  video_io.write(tmp_path / "short.gif", noise(5, 24, 24), 10)
  video_io.write(tmp_path / "still.png", noise(1, 40, 24), 1)
  video_io.write(tmp_path / "unnamed.png", noise(1, 8, 8), 1)
  whole = (tmp_path / "long.mp4").read_bytes()
  (tmp_path / "cut.png").write_bytes((tmp_path / "still.png").read_bytes()[:400])
  (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
  lines = [
    {"file": "cut.png", "caption": "cut off"},
    {"file": "long.mp4", "short": "noise", "long": "grey noise"},
    {"file": "absent.mp4", "caption": "absent"},
    {"file": "short.gif", "caption": "noise"},
    {"file": "cut.mp4", "caption": "cut off"},
    {"file": "still.png", "caption": "a still"},
  ]
  (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return tmp_path


def test_kept_and_dropped_are_all_there_is(own):
  found = check(own)
  assert (found["clips"], found["kept"]) == (7, 3)
  assert [(each["file"], each["line"]) for each in found["dropped"]] == [
    ("cut.png", 1),
    ("absent.mp4", 3),
    ("cut.mp4", 5),
    ("unnamed.png", 0),
  ]
  reasons = [each["reason"] for each in found["dropped"]]
  assert reasons[0].startswith("unreadable: ") and reasons[1] == "file missing"
  assert reasons[2].startswith("unreadable: ") and reasons[3] == "no caption"
  json.dumps(found)


def test_statistics_are_of_what_is_kept(own):
  found = check(own)
  assert (found["images"], found["videos"], found["frames"]) == (1, 2, 35)
  assert found["seconds"] == pytest.approx(3.5, abs=0.05)
  assert found["sizes"] == {"96x64": 1, "24x24": 1, "24x40": 1}
  assert found["width"] == [24, 24, 96] and found["height"] == [24, 40, 64]
  assert found["fps"] == pytest.approx([10, 10, 10], abs=0.1)
  assert found["caption_characters"][0] == 5 and found["caption_characters"][2] == 10


def test_a_folder_with_nothing_usable_is_told_in_full(tmp_path):
  (tmp_path / "captions.jsonl").write_text('{"file": "absent.mp4", "caption": "a"}\nnonsense\n')
  found = check(tmp_path)
  assert (found["clips"], found["kept"], found["images"], found["videos"]) == (2, 0, 0, 0)
  assert [each["line"] for each in found["dropped"]] == [1, 2]
  with pytest.raises(ValueError, match="no such folder"):
    check(tmp_path / "nowhere")


class SecondDamaged(WorldSource):
  def __getitem__(self, index):
    if index == 1:
      raise UnreadableFile(f"{self.where(index)[0]}: cut off")
    return super().__getitem__(index)


def test_what_no_line_names_is_told_too(monkeypatch):
  source = SecondDamaged("shapes", 3, [(16, 16)], [1], 8.0, seed=0)
  monkeypatch.setattr("sora_jax.curation.check.open_native", lambda name: source)
  found = check("a source without a list")
  assert (found["clips"], found["kept"]) == (3, 2)
  assert found["dropped"] == [{"file": source.where(1)[0], "line": 0, "reason": "unreadable: cut off"}]


def test_every_broken_file_of_the_corpus_is_kept_or_named(corpus):
  folder = corpus / "broken"
  found = check(folder)
  expected = {row["file"]: row for row in map(json.loads, (folder / "expected.jsonl").read_text().splitlines())}
  dropped = {each["file"]: each["reason"] for each in found["dropped"]}
  hopeless = ("truncated_moov_missing.mp4", "zero_byte.mp4", "audio_only.mp4", "bomb_declared_100000x100000.png")
  assert set(hopeless) <= set(dropped) <= set(expected)
  for file in set(expected) - set(dropped) - {"captions.jsonl"}:
    assert "cannot be opened" not in expected[file]["expect"], file


def test_the_corpus_is_kept_whole(corpus, tmp_path):
  for path in corpus.iterdir():
    if path.is_file() and path.stat().st_size < 600_000:
      shutil.copy(path, tmp_path)
  named = (corpus / "captions.jsonl").read_text().splitlines()
  lines = [line for line in named if (tmp_path / json.loads(line)["file"]).exists()]
  (tmp_path / "captions.jsonl").write_text("\n".join(lines))
  found = check(tmp_path)
  assert found["kept"] == len(lines) and not found["dropped"]


def test_with_a_config_the_captions_that_it_would_cut_are_named(tmp_path: pathlib.Path, capsys):
  long = " ".join(["a small brown dog runs along the wet beach"] * 12)
  for number in range(3):
    video_io.write(tmp_path / f"{number}.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
  rows = [{"file": f"{number}.png", "caption": [long, "a dog", "a beach"][number]} for number in range(3)]
  (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  config = ml_collections.ConfigDict({"model": {"vocabulary": 300}, "train": {"row_text": 40}})
  found = check(tmp_path, config)["captions_cut"]
  assert (found["limit"], found["clips"]) == (40, 1) and found["longest"] > 90
  assert [(each["file"], each["line"]) for each in found["files"]] == [("0.png", 1)]
  assert "captions of 1 of 3 clips are cut at config.train.row_text=40 ids: 0.png (line 1, " in capsys.readouterr().err
  assert "captions_cut" not in check(tmp_path)
