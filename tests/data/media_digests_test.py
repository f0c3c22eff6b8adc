"""Digests of a folder's files: of their contents, which are read only where size or times are not what they were."""

import hashlib
import os
import shutil

import pytest
from etils import epath

from sora_jax.data import media_digests as module
from sora_jax.data.media_digests import media_digests
from tests.runtime.storage_test import bucket  # noqa: F401  a fixture


@pytest.fixture
def folder(tmp_path, monkeypatch) -> epath.Path:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / "in").mkdir()
  for name in ("a", "b", "c"):
    (tmp_path / "in" / name).write_bytes(name.encode() * 1000)
  return epath.Path(tmp_path / "in")


@pytest.fixture
def read(monkeypatch) -> list[str]:
  """The names of the files that were read."""
  names, whole = [], module._content
  monkeypatch.setattr(module, "_content", lambda path: names.append(os.path.basename(path)) or whole(path))
  return names


def test_a_digest_is_of_the_content_and_a_file_is_read_once(folder, read):
  found = media_digests(folder, "abc")
  assert found == {name: hashlib.sha256(name.encode() * 1000).hexdigest() for name in "abc"}
  assert media_digests(folder, "abc") == found and read == ["a", "b", "c"]


def test_a_file_of_the_same_size_and_time_of_writing_is_read_where_it_was_changed(folder, read):
  before, times = media_digests(folder, "abc"), (folder / "b").stat()
  (folder / "b").write_bytes(b"x" * 1000)
  os.utime(folder / "b", (times.mtime, times.mtime))
  after = media_digests(folder, "abc")
  assert after["b"] != before["b"] and {**after, "b": ""} == {**before, "b": ""} and read == [*"abc", "b"]


def test_a_copy_and_a_touched_file_have_the_same_digest(folder, read, tmp_path):
  before = media_digests(folder, "abc")
  os.utime(folder / "a")
  shutil.copytree(folder, tmp_path / "copy")
  assert media_digests(folder, "abc") == media_digests(epath.Path(tmp_path / "copy"), "abc") == before
  assert read == [*"abc", "a", *"abc"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": [1, 2, 3, 4]}', b'{"a": 3}', b"\xff"])
def test_a_damaged_cache_is_not_trusted(folder, read, content):
  before = media_digests(folder, "abc")
  (cache,) = (folder.parent / "cache" / "sora_jax" / "media").glob("*.json")
  cache.write_bytes(content)
  assert media_digests(folder, "abc") == before and len(read) == 6


def test_a_cache_that_can_t_be_written_costs_time_alone(folder, read, capsys):
  (folder.parent / "cache").write_text("no folder")
  assert media_digests(folder, "abc") == media_digests(folder, "abc")
  assert "all files are read again next time" in capsys.readouterr().err and len(read) == 6


def test_of_a_large_file_pieces_are_read_from_end_to_end(folder, monkeypatch):
  monkeypatch.setattr(module, "WHOLE", 900)
  monkeypatch.setattr(module, "PIECE", 10)
  seen = {media_digests(folder, "a")["a"]}
  for place in (0, 400, 999):
    content = bytearray(b"a" * 1000)
    content[place : place + 20] = b"x" * len(content[place : place + 20])
    (folder / "a").write_bytes(content)
    seen.add(media_digests(folder, "a")["a"])
  (folder / "a").write_bytes(b"a" * 1001)
  seen.add(media_digests(folder, "a")["a"])
  assert len(seen) == 5


def test_in_a_bucket_the_time_of_change_tells_and_nothing_is_read(bucket, read):  # noqa: F811
  path = epath.Path("gs://b/own/a")
  path.write_bytes(b"first")
  before = media_digests(path.parent, ["a"])
  assert media_digests(path.parent, ["a"]) == before
  path.write_bytes(b"other!")
  assert media_digests(path.parent, ["a"]) != before
