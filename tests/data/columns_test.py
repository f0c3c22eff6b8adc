"""Columns on disk: what is written piece by piece is one array, and what is damaged or foreign is refused by name."""

import numpy as np
import pytest
from etils import epath

from sora_jax.data import columns
from sora_jax.data.columns import BadColumn
from tests.runtime.storage_test import bucket  # noqa: F401  a fixture


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_pieces_become_one_mapped_array(tmp_path, count):
  wanted = np.arange(4 * count, dtype=np.int32).reshape(count, 4)
  pieces = np.array_split(wanted, 7)
  assert columns.write(tmp_path / "a.npy", pieces, np.int32, (4,)) == count
  found = columns.read(tmp_path / "a.npy", np.int32, (4,), count)
  assert isinstance(found, np.memmap)
  np.testing.assert_array_equal(found, wanted)
  np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), wanted)  # as anyone reads it
  np.testing.assert_array_equal(columns.read(tmp_path / "a.npy", np.int32, (4,)), wanted)


def test_a_head_has_room_for_any_count(tmp_path, monkeypatch):
  """Written for none first, and again when the count is known."""
  sizes = set()
  for count in (0, 9, 10**6):
    columns.write(tmp_path / "a.npy", [np.zeros(count, np.uint8)], np.uint8)
    sizes.add((tmp_path / "a.npy").stat().st_size - count)
  assert len(sizes) == 1


def test_no_pieces_are_an_empty_array_and_a_failure_leaves_nothing(tmp_path):
  assert columns.write(tmp_path / "a.npy", [], np.float64, (3,)) == 0
  assert columns.read(tmp_path / "a.npy", np.float64, (3,), 0).shape == (0, 3)

  def failing():
    yield np.zeros(3, np.int32)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    columns.write(tmp_path / "b.npy", failing(), np.int32)
  assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
  "values", [np.zeros(4, np.int64), np.zeros(5, np.int32), np.zeros((4, 1), np.int32), np.int32(4)], ids=str
)
def test_another_type_or_shape_is_refused(tmp_path, values):
  np.save(tmp_path / "a.npy", values)
  with pytest.raises(BadColumn, match=r"a.npy: holds .*not int32 \(4,\)"):
    columns.read(tmp_path / "a.npy", np.int32, (), 4)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", b"PK\x03\x04 no archive"])
def test_damaged_and_missing_files_are_named_in_one_line(tmp_path, content):
  (tmp_path / "a.npy").write_bytes(content)
  for read, name in ((lambda path: columns.read(path, np.int32), "a.npy"), (columns.load_together, "a.npy")):
    for path in (tmp_path / name, tmp_path / "missing.npy"):
      with pytest.raises(BadColumn, match="can't be read") as caught:
        read(path)
      assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
  class Bomb:
    def __reduce__(self):
      return open, (str(tmp_path / "opened"), "w")

  np.save(tmp_path / "a.npy", np.array([Bomb()], object), allow_pickle=True)
  np.savez(tmp_path / "a.npz", a=np.array([Bomb()], object), allow_pickle=True)
  with pytest.raises(BadColumn):
    columns.read(tmp_path / "a.npy", object)
  with pytest.raises(BadColumn):
    columns.load_together(tmp_path / "a.npz")
  assert not (tmp_path / "opened").exists()


def test_arrays_that_are_saved_together_come_back(tmp_path):
  arrays = {"a": np.arange(3), "b": np.zeros((0, 2), np.uint8)}
  columns.save_together(tmp_path / "a.npz", **arrays)
  found = columns.load_together(tmp_path / "a.npz")
  assert found.keys() == arrays.keys()
  for name, values in arrays.items():
    np.testing.assert_array_equal(found[name], values)


def test_columns_lie_in_a_bucket_too(bucket):  # noqa: F811
  path = epath.Path("gs://b/columns/a.npy")
  columns.write(path, [np.arange(3), np.arange(3, 7)], np.int64)
  np.testing.assert_array_equal(columns.read(path, np.int64, (), 7), np.arange(7))
