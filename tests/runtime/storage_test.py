"""Files here and in a bucket: read, kept, and written whole or not at all; sources and stores with gs:// roots."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from sora_jax.data import latents, records
from sora_jax.data.folder import FolderSource
from sora_jax.data.records import RecordSource
from sora_jax.runtime import storage
from sora_jax.video import io as video_io


class _Object(AbstractBufferedFile):
  """An object: there, whole, when it is closed, as those of the real clients are."""

  def _initiate_upload(self):
    self.parts = []

  def _upload_chunk(self, final: bool = False) -> bool:
    self.parts.append(self.buffer.getvalue())
    if final:
      self.fs.objects[self.path] = b"".join(self.parts)
      self.fs.written.append(self.path)
    return True

  def _fetch_range(self, start: int, end: int) -> bytes:
    return self.fs.objects[self.path][start:end]


class Bucket(AbstractFileSystem):
  """What epath takes for a bucket's client: names with bytes, and no folders but those in the names.

  Attributes:
    objects, written, read: what there is; the names of what was written and read, in order.
  """

  protocol = ("gcs", "gs")
  cachable = False

  def __init__(self, **unused):
    super().__init__()
    self.objects, self.written, self.read, self.times = {}, [], [], {}

  def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **unused) -> _Object:
    if mode == "rb":
      self.read.append(path)
    return _Object(self, path, mode, block_size=2**21)

  def info(self, path: str, **unused) -> dict:
    path = self._strip_protocol(path)
    if path in self.objects:
      return {"name": path, "size": len(self.objects[path]), "type": "file", "mtime": self.times.get(path, 0)}
    if any(name.startswith(f"{path}/") for name in self.objects):
      return {"name": path, "size": 0, "type": "directory"}
    raise FileNotFoundError(path)

  def ls(self, path: str, detail: bool = True, **unused) -> list:
    path = self._strip_protocol(path)
    below = [name for name in self.objects if name.startswith(f"{path}/")] or [self.info(path)["name"]]
    names = sorted({"/".join(name.split("/")[: path.count("/") + 2]) for name in below})
    return [self.info(name) for name in names] if detail else names

  def mkdir(self, path: str, create_parents: bool = True, **unused):
    pass

  def makedirs(self, path: str, exist_ok: bool = False):
    pass

  def rm_file(self, path: str):
    if self.objects.pop(self._strip_protocol(path), None) is None:
      raise FileNotFoundError(path)


@pytest.fixture
def bucket(monkeypatch) -> Bucket:
  """Every gs:// address, in the memory of this process."""
  found = Bucket()
  monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: found)
  monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)  # it would be asked instead
  storage._kept_copy.cache_clear()
  return found


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def left_in(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


class TestReading:
  def test_a_file_on_this_machine_is_read_where_it_is(self, tmp_path):
    with storage.local_file(tmp_path / "a") as path:
      assert path == str(tmp_path / "a")
    assert storage.kept_local(tmp_path / "a") == str(tmp_path / "a")
    assert not storage.is_remote(tmp_path / "a") and storage.is_remote(epath.Path("gs://b/a"))

  def test_a_copy_of_an_object_lasts_as_long_as_the_context(self, bucket):
    bucket.objects["b/a"] = content = os.urandom(5_000_000)
    with storage.local_file("gs://b/a") as path:
      assert pathlib.Path(path).read_bytes() == content
    assert not os.path.exists(path)

  def test_bytes_are_a_file_as_long_as_the_context(self):
    with storage.bytes_as_file(b"abc") as path:
      assert pathlib.Path(path).read_bytes() == b"abc"
    assert not os.path.exists(path)

  def test_a_kept_copy_is_made_once_and_again_when_the_object_changes(self, bucket):
    bucket.objects["b/a"] = b"old"
    first = storage.kept_local("gs://b/a")
    assert storage.kept_local(epath.Path("gs://b/a")) == first and bucket.read == ["b/a"]
    bucket.objects["b/a"], bucket.times["b/a"] = b"new", 7  # as long, but later
    second = storage.kept_local("gs://b/a")
    assert pathlib.Path(second).read_bytes() == b"new" and pathlib.Path(first).read_bytes() == b"old"

  def test_threads_that_want_one_object_copy_it_once(self, bucket):
    bucket.objects |= {"b/a": b"x" * 3_000_000, "b/c": b"y"}
    together, found = threading.Barrier(8), []

    def keep(name: str):
      together.wait()
      found.append((name, pathlib.Path(storage.kept_local(name)).read_bytes()))

    threads = [threading.Thread(target=keep, args=(f"gs://b/{name}",)) for name in "ac" * 4]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert sorted(bucket.read) == ["b/a", "b/c"] and len(found) == 8
    assert all(content == bucket.objects[name.removeprefix("gs://")] for name, content in found)

  def test_kept_copies_are_gone_when_the_process_ends(self, tmp_path):
    code = f"""
from etils import epath
from sora_jax.runtime import storage
storage.is_remote = lambda path: True
kept = storage.kept_local({str(tmp_path / "a")!r})
print(kept, open(kept).read())
"""
    (tmp_path / "a").write_text("kept")
    kept, content = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert content == "kept" and not os.path.exists(kept) and not os.path.exists(os.path.dirname(kept))

  def test_copies_of_a_process_that_was_killed_go_with_the_next_one_and_those_of_others_stay(self, tmp_path):
    code = f"""
import os, sys
from sora_jax.runtime import storage
storage.is_remote = lambda path: True
print(storage.kept_local({str(tmp_path / "a")!r}), flush=True)
sys.stdin.read() == "end" or os._exit(1)
"""
    (tmp_path / "a").write_text("kept")
    start = lambda: subprocess.Popen(
      [sys.executable, "-c", code],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    processes = [start() for _ in range(2)]
    kept = [process.stdout.readline().strip() for process in processes]
    processes[0].communicate("killed")
    assert [os.path.exists(path) for path in kept] == [True, True]
    start().communicate("end")
    assert [os.path.exists(path) for path in kept] == [False, True]
    processes[1].communicate("end")
    assert not os.path.exists(kept[1])

  def test_a_missing_object_is_an_error_and_leaves_nothing_behind(self, bucket):
    for read in (storage.kept_local, storage.size, lambda path: storage.local_file(path).__enter__()):
      with pytest.raises(FileNotFoundError):
        read("gs://b/nowhere")

  def test_sizes(self, bucket, tmp_path, monkeypatch):
    bucket.objects["b/a"] = b"four"
    (tmp_path / "a").write_bytes(b"three")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a user without a name, as containers have
    assert (storage.size("gs://b/a"), storage.size(tmp_path / "a")) == (4, 5)


class TestWriting:
  @pytest.mark.parametrize("text", ["", "a\r\nb\n", "\N{FOX FACE} é"])
  def test_a_text_is_written_as_it_is_and_replaces_the_old_one(self, bucket, tmp_path, text):
    for path in (tmp_path / "a.json", "gs://b/a.json"):
      storage.write_text(path, "the old one")
      storage.write_text(path, text)
      assert epath.Path(path).read_bytes() == text.encode()
    assert left_in(tmp_path) == ["a.json"] and bucket.written == ["b/a.json"] * 2

  @pytest.mark.parametrize("old", [True, False])
  def test_a_file_that_was_not_finished_is_not_there(self, bucket, tmp_path, old):
    for path in (tmp_path / "a", "gs://b/a"):
      if old:
        storage.write_text(path, "old")
      with pytest.raises(KeyboardInterrupt), storage.written_local(path) as local:
        pathlib.Path(local).write_bytes(b"half")
        raise KeyboardInterrupt
      assert epath.Path(path).exists() == old and (not old or epath.Path(path).read_text() == "old")
    assert left_in(tmp_path) == ["a"] * old and list(bucket.objects) == ["b/a"] * old

  @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
  def test_an_upload_that_stops_midway_leaves_no_half_object(self, bucket, monkeypatch, error):
    copied = []

    def stop(self, content):
      copied.append(len(content))
      if len(copied) == 3:
        raise error
      return AbstractBufferedFile.write(self, content)

    monkeypatch.setattr(_Object, "write", stop)
    with pytest.raises(error), storage.written_local("gs://b/a") as local:
      pathlib.Path(local).write_bytes(b"x" * 4 * 2**20)
    assert not bucket.objects and bucket.written == ["b/a"]  # the half that closing it made was taken away

  def test_a_failure_to_write_is_told(self, tmp_path):
    with pytest.raises(OSError):
      storage.write_text(tmp_path / "nowhere" / "a", "x")

  def test_whether_a_file_can_be_written_is_told_before(self, bucket, tmp_path):
    storage.check_writable(tmp_path / "new" / "a")
    storage.check_writable("gs://b/a")
    assert left_in(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "new", tmp_path / "file" / "a"):
      with pytest.raises(OSError):
        storage.check_writable(path)

  def test_two_that_write_the_same_file_at_once_leave_the_last_one_whole(self, bucket, tmp_path):
    for path in (tmp_path / "a", "gs://b/a"):
      with storage.written_local(path) as slow:
        pathlib.Path(slow).write_text("slow")
        storage.write_text(path, "fast")
        assert epath.Path(path).read_text() == "fast"
      assert epath.Path(path).read_text() == "slow"
    assert left_in(tmp_path) == ["a"]


class TestRoots:
  """A root in a bucket gives what the same files give here."""

  def test_a_folder_of_files(self, bucket, tmp_path):
    video_io.write(tmp_path / "a.mp4", frames(6, 16, 24), 8)
    (tmp_path / "more").mkdir()
    video_io.write(tmp_path / "more" / "b.png", frames(1, 20, 12), 1)
    (tmp_path / "torn.mp4").write_bytes(b"torn")
    table = 'file,caption\na.mp4,"Snow, and\nmore."\nmore/b.png,Rain.\ngone.mp4,x\n../a.mp4,x\ntorn.mp4,x\n'
    (tmp_path / "captions.csv").write_text(table)
    for path in tmp_path.rglob("*"):
      if path.is_file():
        bucket.objects[f"b/own/{path.relative_to(tmp_path)}"] = path.read_bytes()
    here = FolderSource(tmp_path, fps=4.0, max_frames=5)
    there = FolderSource("gs://b/own", fps=4.0, max_frames=5)
    assert_same_clips(here, there)
    assert there.fingerprint == here.fingerprint
    assert there.dropped == here.dropped and [each.line for each in there.dropped] == [5, 6, 7]
    assert_same_clips(there, pickle.loads(pickle.dumps(there)))

  def test_captions_as_json_and_what_is_missing_in_a_bucket(self, bucket):
    bucket.objects["b/own/captions.jsonl"] = b'\xef\xbb\xbf{"file": "a.png", "caption": "A."}\n{"file": "gs://b/x"}\n'
    with pytest.raises(ValueError, match=r"nothing usable: 2 dropped \(1 absolute path, 1 file missing\)"):
      FolderSource("gs://b/own", max_frames=1)
    with pytest.raises(ValueError, match=r"gs://b/other: no such folder"):
      FolderSource("gs://b/other", max_frames=1)
    bucket.objects["b/other/a.png"] = b""
    with pytest.raises(ValueError, match=r"gs://b/other: no captions.jsonl or captions.csv"):
      FolderSource("gs://b/other", max_frames=1)

  def test_an_object_that_is_gone_later_is_an_unreadable_file(self, bucket, tmp_path):
    video_io.write(tmp_path / "a.png", frames(1, 8, 8), 1)
    bucket.objects["b/own/a.png"] = (tmp_path / "a.png").read_bytes()
    bucket.objects["b/own/captions.jsonl"] = json.dumps({"file": "a.png", "caption": "A."}).encode()
    source = FolderSource("gs://b/own", max_frames=1)
    del bucket.objects["b/own/a.png"]
    with pytest.raises(video_io.UnreadableFile, match=r"^a.png: "):
      source[0]

  def test_records(self, bucket, tmp_path):
    made = []
    for index in range(5):
      media = video_io.encode(frames(1 + index % 2 * 3, 16, 20, index), 8, "gif")
      with storage.bytes_as_file(media) as path:
        probe = video_io.probe(path)
      made.append(records.Record(f"{index}", {"short": f"{index}.", "long": f"{index}!"}, probe, media))
    for root in (tmp_path, epath.Path("gs://b/built")):
      lines = [records.write_shard(root / records.shard_name(k, 2), made[3 * k : 3 * k + 3]) for k in range(2)]
      records.finish(root, lines)
    assert {name.removeprefix("b/built/"): content for name, content in bucket.objects.items()} == {
      path.name: path.read_bytes() for path in tmp_path.iterdir()
    }
    assert bucket.written[-1] == "b/built/records.json"
    assert records.is_records("gs://b/built") and not records.is_records("gs://b")
    here, there = RecordSource(tmp_path, max_frames=9), RecordSource("gs://b/built", max_frames=9)
    bucket.read.clear()
    assert_same_clips(here, there)
    assert bucket.read == [f"b/built/{records.shard_name(k, 2)}" for k in range(2)]  # each once
    assert_same_clips(there, pickle.loads(pickle.dumps(there)))

  def test_latents(self, bucket, tmp_path):
    for root in (tmp_path / "store", "gs://b/store"):
      for seed, key in enumerate(({"weights": "a"}, {"weights": "b"})):  # the second in the place of the first
        assert not latents.begin(root, key)
        for unit in latents.missing_units(root, 2):
          latents.write_unit(root, unit, latent_clips(unit, seed), [])
        assert latents.missing_units(root, 2) == []
        store = latents.finish(root, 2)
        bucket.times |= dict.fromkeys(bucket.objects, seed + 1)
        wanted = [*latent_clips(0, seed), *latent_clips(1, seed)]
        assert [store[k][1:] for k in range(len(store))] == [clip[1:] for clip in wanted]
        for k, clip in enumerate(wanted):
          np.testing.assert_array_equal(store[k].latent_thwC, clip.latent_thwC)
        assert latents.begin(root, key)
      latents.forget_bad(root)
      assert latents.missing_units(root, 2) == [] and not latents.begin(root, key)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(bucket.objects) == sorted(f"b/{path}" for path in files)


def latent_clips(unit: int, seed: int) -> list[latents.LatentClip]:
  rng = np.random.default_rng([unit, seed])
  make = lambda k: rng.normal(size=(1 + k, 2, 3, 4)).astype(ml_dtypes.bfloat16).astype(np.float32)
  return [latents.LatentClip(make(k), (0.5, 8.0, 12.0, 8.0), 1, f"{unit}-{k}") for k in range(3)]


def assert_same_clips(first, second) -> None:
  assert len(first) == len(second) > 0
  for index in range(len(first)):
    assert first.shape(index) == second.shape(index) and first.fps(index) == second.fps(index)
    assert first.captions(index) == second.captions(index) and first.where(index) == second.where(index)
    one, other = first[index], second[index]
    assert (one.fps, one.caption, one.id) == (other.fps, other.caption, other.id)
    np.testing.assert_array_equal(one.frames_THWC, other.frames_THWC)
