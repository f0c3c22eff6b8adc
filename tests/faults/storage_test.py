"""Row F28 of the fault table: buckets that fail for a moment, are slow, or give nothing at all."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from sora_jax.data import latents, records
from sora_jax.data.folder import FolderSource
from sora_jax.data.records import RecordSource
from sora_jax.jobs.train import train
from sora_jax.runtime import storage
from sora_jax.video import io as video_io
from sora_jax.video import isolated
from tests.runtime.storage_test import bucket  # noqa: F401  a fixture

CLIPS = 3


class HttpError(Exception):
  """As gcsfs raises it: no OSError."""


class Faults:
  """What becomes of each read of an object's bytes: the next of `answers`, then all is well."""

  def __init__(self, monkeypatch, kind: type):
    self.answers, self.reads, self.seconds = [], 0, 0.0
    whole = kind._fetch_range

    def fetch(file, start: int, end: int) -> bytes:
      self.reads += 1
      time.sleep(self.seconds)
      if self.answers and (answer := self.answers.pop(0)) is not None:
        raise answer
      return whole(file, start, end)

    monkeypatch.setattr(kind, "_fetch_range", fetch)


@pytest.fixture
def faults(bucket, monkeypatch, tmp_path) -> Faults:  # noqa: F811
  """A bucket with a folder of clips, the same on this machine, whose answers a test decides."""
  (tmp_path / "own").mkdir()
  for number in range(CLIPS):
    frames = np.random.default_rng(number).integers(0, 255, (5, 16, 16, 3)).astype(np.uint8)
    video_io.write(tmp_path / "own" / f"{number}.mp4", frames, 8.0)
  Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "own" / "still.png")
  names = [*(f"{number}.mp4" for number in range(CLIPS)), "still.png"]
  lines = "".join(json.dumps({"file": name, "caption": f"clip {name}"}) + "\n" for name in names)
  (tmp_path / "own" / "captions.jsonl").write_text(lines)
  for path in (tmp_path / "own").iterdir():
    bucket.objects[f"b/own/{path.name}"] = path.read_bytes()
  monkeypatch.setattr(storage, "PAUSE", 0.01)
  kind = type(bucket._open("b/own/still.png"))
  return Faults(monkeypatch, kind)


def unavailable(count: int) -> list[Exception]:
  return [HttpError("503, Service\nUnavailable") for _ in range(count)]


class TestF28:
  """Read again with growing pauses, counted; then an error that names the path. No clip is lost for it."""

  def test_three_failures_are_told_and_the_clips_are_all_there(self, faults, tmp_path, capfd):
    here = FolderSource(tmp_path / "own", max_frames=5)
    faults.answers = unavailable(3)  # of the list
    there = FolderSource("gs://b/own", max_frames=5)
    assert not there.dropped and len(there) == CLIPS + 1
    faults.answers = [*unavailable(1), None, *unavailable(2)]
    for index in range(len(here)):
      np.testing.assert_array_equal(there[index].frames_THWC, here[index].frames_THWC)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 6 and not faults.answers
    assert said[0] == ("gs://b/own/captions.jsonl: can't be read (503, Service Unavailable): try 2 of 5 in 0.01 s"), (
      said
    )
    assert [line.rpartition(": ")[2] for line in said[1:3]] == ["try 3 of 5 in 0.02 s", "try 4 of 5 in 0.04 s"]

  def test_a_slow_answer_is_waited_for(self, faults, capfd):
    faults.seconds = 0.3
    source = FolderSource("gs://b/own", max_frames=5)
    assert source[0].frames_THWC.shape == (5, 16, 16, 3) and faults.reads >= CLIPS + 2
    assert not source.dropped and not capfd.readouterr().err

  def test_a_part_of_a_copy_that_came_before_the_failure_is_not_kept(self, faults, bucket):  # noqa: F811
    bucket.objects["b/large"] = content = np.random.default_rng(0).bytes(9 * 2**20)
    faults.answers = [None, None, *unavailable(1)]
    with storage.local_file("gs://b/large") as path, open(path, "rb") as file:
      assert file.read() == content

  @pytest.mark.parametrize("error", [HttpError("503"), TimeoutError("no answer"), ConnectionResetError("reset")])
  def test_no_answer_at_all_is_an_error_with_the_path_and_loses_no_clip(self, faults, error, capfd):
    source = FolderSource("gs://b/own", max_frames=5)
    faults.answers = [error] * 100
    with pytest.raises(storage.StorageError, match="gs://b/own/1.mp4: can't be read .*, tried 5 times"):
      source[1]
    assert len(faults.answers) == 100 - storage.TRIES
    with pytest.raises(storage.StorageError, match="gs://b/own/captions.jsonl"):
      FolderSource("gs://b/own", max_frames=5)
    with pytest.raises(storage.StorageError, match="gs://b/own/0.mp4"):
      faults.answers = [None, *[error] * 100]
      FolderSource("gs://b/own", max_frames=5)
    faults.answers = []
    assert not FolderSource("gs://b/own", max_frames=5).dropped

  def test_an_object_that_is_gone_is_no_such_failure(self, faults, bucket):  # noqa: F811
    source = FolderSource("gs://b/own", max_frames=5)
    del bucket.objects["b/own/1.mp4"]
    before = faults.reads
    with pytest.raises(video_io.UnreadableFile, match="1.mp4"):
      source[1]
    assert faults.reads == before

  def test_records_and_latents_too(self, faults, bucket, tmp_path, capfd):  # noqa: F811
    media = (tmp_path / "own" / "0.mp4").read_bytes()
    probe = isolated.shared().probe(tmp_path / "own" / "0.mp4")
    line = records.Record("0", {"short": "a clip", "long": "a clip"}, probe, media)
    records.finish("gs://b/shards", [records.write_shard(f"gs://b/shards/{records.shard_name(0, 1)}", [line])])
    clip = latents.LatentClip(np.ones((1, 2, 2, 4), np.float32), (0.6, 16.0, 16.0, 8.0), 5, "0")
    latents.begin("gs://b/latents", {})
    latents.write_unit("gs://b/latents", 0, [clip], [])
    latents.finish("gs://b/latents", 1)
    faults.answers = unavailable(3)
    source, store = RecordSource("gs://b/shards", max_frames=5), latents.LatentStore("gs://b/latents")
    faults.answers = [*unavailable(3), None, *unavailable(3)]
    assert source[0].frames_THWC.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(store[0].latent_thwC, clip.latent_thwC)
    assert capfd.readouterr().err.count("503") == 9
    faults.answers = unavailable(100)
    for read, name in ((RecordSource, "shards/"), (lambda path, **_: latents.LatentStore(path), "latents/index.json")):
      with pytest.raises(storage.StorageError, match=name):
        read(f"gs://b/{name.split('/')[0]}", max_frames=5)

  def test_a_run_ends_with_one_line_and_drops_nothing(self, trained, tiny_config, faults, tmp_path, monkeypatch):
    """The bucket is gone while clips are encoded; when it is back the same command goes on."""
    tiny_config.data.update(source="gs://b/own", weights=(), fps=8.0, max_frames=5, max_tokens=24)
    tiny_config.autoencoder.checkpoint = str(trained / "autoencoder")
    tiny_config.train.steps = 2
    opened = FolderSource("gs://b/own", max_frames=5)
    whole, asked = type(opened).__getitem__, []

    def gone(source, index):
      asked.append(index)
      faults.answers = unavailable(100) if len(asked) == 2 else []
      return whole(source, index)

    monkeypatch.setattr(FolderSource, "__getitem__", gone)
    with pytest.raises(storage.StorageError, match="gs://b/own/.*503"):
      train(tiny_config, tmp_path / "w")
    assert not (tmp_path / "w" / "latents" / "index.json").exists()
    faults.answers = []
    assert train(tiny_config, tmp_path / "w").step == 2
    assert json.loads((tmp_path / "w" / "latents" / "index.json").read_text())["dropped"] == []
