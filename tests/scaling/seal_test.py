"""Sealed predictions: written once, and whoever changes them is found out."""

import json

import pytest

from sora_jax.errors import InputError
from sora_jax.scaling import seal

CONTENT = {"predictions": {"large": {"predicted": 0.25, "flops": 1e14}}, "law": {"E": 0.1}}


def test_what_is_sealed_is_read_again(tmp_path):
  assert seal.read(tmp_path) is None
  sealed = seal.write(tmp_path, CONTENT)
  assert seal.read(tmp_path) == sealed and sealed["predictions"] == CONTENT["predictions"]
  assert sealed["sha256"] == seal.digest(sealed) and sealed["sealed_at"].endswith("Z")


def test_it_is_not_written_again(tmp_path):
  seal.write(tmp_path, CONTENT)
  with pytest.raises(InputError, match="is there already: what is sealed stays"):
    seal.write(tmp_path, CONTENT)


@pytest.mark.parametrize(
  "change", [lambda c: c["law"].update(E=0.2), lambda c: c.update(sealed_at="2020"), lambda c: c.pop("law")]
)
def test_a_changed_file_is_refused(tmp_path, change):
  content = seal.write(tmp_path, CONTENT)
  change(content)
  (tmp_path / seal.FILE).write_text(json.dumps(content))
  with pytest.raises(InputError, match="was changed after it was sealed"):
    seal.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"sha256": 3}'])
def test_what_is_no_seal_is_refused(tmp_path, text):
  (tmp_path / seal.FILE).write_text(text)
  with pytest.raises(InputError, match="can't be read as sealed|was changed"):
    seal.read(tmp_path)
