"""The format: what is written is read again, by its library too, and a malformed file is an error of one line."""

import json
import pathlib

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import strategies

from sora_jax.checkpoints import safetensors
from sora_jax.errors import InputError

ARRAYS = {
  "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.array(2.5, np.float32),
  "c.odd": np.arange(3, dtype=ml_dtypes.bfloat16),  # what follows is not aligned
  "d": np.array([1, -2], np.int32),
  "e.none": np.zeros((0, 4), np.float32),
  "f": np.array([True, False]),
}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def put(path: pathlib.Path, header: object, values: bytes = bytes(8)) -> pathlib.Path:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + values)
  return path


def test_what_is_written_is_read_again(tmp_path):
  path = epath.Path(tmp_path / "x")
  size = safetensors.write(path, ARRAYS, {"step": "3"})
  found, about = safetensors.read(path)
  assert size == path.stat().length and about == {"step": "3"} == safetensors.read_about(path)
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found[name], array)


def test_the_library_and_we_read_each_other(tmp_path):
  library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
  safetensors.write(epath.Path(tmp_path / "x"), ARRAYS, {"step": "3"})
  library.save_file(ARRAYS, tmp_path / "y", {"step": "3"})
  for found in (library.load_file(tmp_path / "x"), safetensors.read(tmp_path / "y")[0]):
    for name, array in ARRAYS.items():
      assert found[name].dtype == array.dtype
      np.testing.assert_array_equal(found[name], array)


def test_a_file_that_could_not_be_finished_is_not_left(tmp_path, monkeypatch):
  path = epath.Path(tmp_path / "x")
  safetensors.write(path, ARRAYS, {})
  before = path.read_bytes()

  def full(file, head, tensors):
    file.write(head)
    raise OSError("No space left on device")

  monkeypatch.setattr(safetensors, "_write", full)
  with pytest.raises(OSError, match="No space left"):
    safetensors.write(path, {"a": np.zeros(2)}, {})
  assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_type_that_the_format_lacks_is_named():
  with pytest.raises(InputError, match="^a.b is of type complex64, which safetensors files can't hold$"):
    safetensors.header({"a.b": np.zeros(2, np.complex64)}, {})


@pytest.mark.parametrize(
  ("header", "said"),
  [
    ({"a": ENTRY | {"dtype": "F128"}}, "'a' is of type 'F128'"),
    ({"a": ENTRY | {"dtype": ["F32"]}}, "'a' is of type"),
    ({"a": ENTRY | {"shape": [3]}}, "'a' needs 12 bytes and has 8"),
    ({"a": ENTRY | {"shape": [-2]}}, "no whole numbers from 0 on"),
    ({"a": ENTRY | {"shape": [2.0]}}, "no whole numbers from 0 on"),
    ({"a": ENTRY | {"shape": [True, 2]}}, "no whole numbers from 0 on"),
    ({"a": ENTRY | {"shape": [2**62, 2**62]}}, "'a' needs"),
    ({"a": ENTRY | {"shape": [2**64]}}, "no whole numbers from 0 on"),
    ({"a": ENTRY | {"shape": [1] * 33 + [2]}}, "no whole numbers from 0 on"),
    ({"a": ENTRY | {"shape": 2}}, "no whole numbers from 0 on"),
    ({"a": ENTRY | {"data_offsets": [8, 16]}}, "'a' begins at byte 8"),
    ({"a": ENTRY | {"data_offsets": [8, 0]}}, "'a' needs 8 bytes and has -8"),
    ({"a": ENTRY | {"data_offsets": [0, 8, 8]}}, "no whole numbers from 0 on"),
    ({"a": ENTRY, "b": ENTRY}, "begins at byte 0 of the values, the one before it ends at 8"),
    ({"a": {"dtype": "F32"}}, "dtype, shape and data_offsets alone"),
    ({"a": ENTRY | {"more": 1}}, "dtype, shape and data_offsets alone"),
    ({"a": 3}, "dtype, shape and data_offsets alone"),
    ({"a": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}}, "its tensors have 4 bytes, the file holds 8"),
    ({}, "its tensors have 0 bytes, the file holds 8"),
    ({"a": ENTRY, "__metadata__": {"step": 3}}, "are not texts by name"),
    ({"a": ENTRY, "__metadata__": []}, "are not texts by name"),
    ([], "no JSON object"),
    (b'{"a": NaN}', "its header holds NaN"),
    (b'{"a": 1, "a": 2}', "a name stands twice"),
    (b"\xff\xfe", "no safetensors file"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 8]}}', "no safetensors file"),
  ],
)
def test_a_header_that_can_t_be_is_refused_in_one_line(tmp_path, header, said):
  with pytest.raises(InputError, match=said) as caught:
    safetensors.read(put(tmp_path / "x", header))
  assert str(tmp_path / "x") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x01", bytes(7), b"\xff" * 16, (2**40).to_bytes(8, "little") + b"{}"])
def test_a_length_past_the_file_s_end_is_refused(tmp_path, content):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(InputError, match="its header would have"):
    safetensors.read(tmp_path / "x")


def test_no_file_is_an_error_of_one_line(tmp_path):
  for path in (tmp_path / "nowhere", tmp_path):
    with pytest.raises(InputError, match="can't be read: "):
      safetensors.read(path)


@hypothesis.given(place=strategies.integers(0, 10**6), value=strategies.integers(0, 255), length=strategies.integers(0))
@hypothesis.settings(max_examples=200, deadline=None)
def test_no_damage_crashes_the_reader(tmp_path_factory, place, value, length):
  path = tmp_path_factory.mktemp("damaged") / "x"
  safetensors.write(epath.Path(path), ARRAYS, {"step": "3"})
  content = bytearray(path.read_bytes())
  content[place % len(content)] = value
  path.write_bytes(content[: length % (2 * len(content))])
  try:
    found, _ = safetensors.read(path)
  except InputError:
    return
  assert sum(array.nbytes for array in found.values()) <= len(content)
