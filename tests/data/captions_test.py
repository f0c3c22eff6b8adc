"""Captions on disk, and their token ids: those of the tokenizer, cut to the limit."""

import pickle

import numpy as np
import pytest

from sora_jax.data import captions
from sora_jax.data.captions import STYLES, Captions, Texts
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.errors import SoraError

CAPTIONS = [
  {"short": "a red ball", "long": "a red ball falls slowly to the right"},
  {"short": "", "long": "\N{FOX FACE} jumps"},
  {"short": "a blue square that is longer than the long one", "long": "a square"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer.train([text for each in CAPTIONS for text in each.values()], 300)


def assert_ids(found: Texts, tokenizer: Tokenizer, limit: int):
  assert len(found) == len(CAPTIONS)
  for clip, each in enumerate(CAPTIONS):
    for style in STYLES:
      ids = found(clip, style)
      assert ids.dtype == np.int32 and ids.tolist() == tokenizer.encode(each[style], limit)
    assert found.longest_N[clip] == max(len(tokenizer.encode(text, limit)) for text in each.values())


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_ids_are_the_tokenizer_s_cut_to_the_limit(tokenizer, limit):
  assert_ids(Texts.of(CAPTIONS, tokenizer, limit), tokenizer, limit)


def test_no_clips(tokenizer):
  none = Texts.of([], tokenizer, 8)
  assert len(none) == 0 and none.longest_N.shape == (0,)


class TestCaptions:
  def test_what_is_written_is_read_by_number_in_order_and_evenly_spread(self, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "TOGETHER", 3)
    wanted = [{"short": f"s{i}", "long": f"l{i} \N{FOX FACE}"} for i in range(10)]
    captions.write_captions(tmp_path, iter(wanted), "here")
    found = Captions(tmp_path)
    assert [found[i] for i in range(10)] == list(found) == wanted and len(found) == 10
    assert list(found.every(4)) == wanted[::4]
    assert pickle.loads(pickle.dumps(found))[7] == wanted[7]
    assert captions.written_from(tmp_path) == "here"
    with pytest.raises(IndexError):
      found[10]

  def test_the_digest_is_of_the_captions_and_their_order(self, tmp_path):
    prints = []
    for each in (CAPTIONS, CAPTIONS, CAPTIONS[::-1], CAPTIONS[:2]):
      captions.write_captions(tmp_path, each, "")
      prints.append(Captions(tmp_path).digest)
    assert prints[0] == prints[1] and len(set(prints)) == 3

  def test_stopping_while_they_are_written_leaves_none(self, tmp_path):
    captions.write_captions(tmp_path, CAPTIONS, "first")

    def stopped():
      yield CAPTIONS[0]
      raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      captions.write_captions(tmp_path, stopped(), "second")
    assert captions.written_from(tmp_path) == ""
    with pytest.raises(SoraError, match="captions are written again"):
      Captions(tmp_path)

  @pytest.mark.parametrize("content", [b"", b"nonsense" * 999])
  def test_damaged_records_are_one_line(self, tmp_path, content):
    captions.write_captions(tmp_path, CAPTIONS, "")
    (tmp_path / captions.RECORDS).write_bytes(content)
    with pytest.raises(SoraError, match="captions are written again") as caught:
      list(Captions(tmp_path))
    assert "\n" not in str(caught.value)

  @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"from": 1, "clips": 2, "digest": "x"}'])
  def test_a_damaged_account_of_them_is_one_line(self, tmp_path, content):
    captions.write_captions(tmp_path, CAPTIONS, "")
    (tmp_path / captions.META).write_text(content)
    with pytest.raises(SoraError, match="captions are written again"):
      Captions(tmp_path)
    assert captions.written_from(tmp_path) == ""
