"""Token ids of captions: those of the tokenizer, kept on disk for just these captions, tokenizer and limit."""

import pickle

import numpy as np
import pytest

from sora_jax.data import texts
from sora_jax.data.texts import STYLES, Texts, kept_texts
from sora_jax.data.tokenizer import Tokenizer

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


def test_what_was_kept_is_read_and_not_made_again(tmp_path, tokenizer, monkeypatch):
  assert_ids(kept_texts(tmp_path / "w", CAPTIONS, tokenizer, 9), tokenizer, 9)
  monkeypatch.setattr(Texts, "of", None)
  again = kept_texts(tmp_path / "w", CAPTIONS, tokenizer, 9)
  assert_ids(pickle.loads(pickle.dumps(again)), tokenizer, 9)


def test_other_captions_limits_or_tokenizers_are_named_and_made_again(tmp_path, tokenizer, capsys):
  """F30."""
  kept_texts(tmp_path, CAPTIONS, tokenizer, 9)
  assert_ids(kept_texts(tmp_path, CAPTIONS, tokenizer, 5), tokenizer, 5)
  assert "other limit\n" in capsys.readouterr().err
  other = Tokenizer.train(["something else"], 290)
  assert_ids(kept_texts(tmp_path, CAPTIONS, other, 5), other, 5)
  assert "other tokenizer\n" in capsys.readouterr().err
  assert len(kept_texts(tmp_path, CAPTIONS[:2], other, 5)) == 2
  assert "other captions\n" in capsys.readouterr().err
  kept_texts(tmp_path, CAPTIONS[:2], other, 5)
  assert not capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_key_is_not_trusted(tmp_path, tokenizer, content):
  kept_texts(tmp_path, CAPTIONS, tokenizer, 9)
  (tmp_path / texts.KEY).write_text(content)
  assert_ids(kept_texts(tmp_path, CAPTIONS, tokenizer, 9), tokenizer, 9)


def test_stopping_while_ids_are_written_leaves_no_key(tmp_path, tokenizer, monkeypatch):
  kept_texts(tmp_path, CAPTIONS, tokenizer, 9)

  def stopped(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(np, "savez", stopped)
    kept_texts(tmp_path, CAPTIONS, tokenizer, 5)
  assert not (tmp_path / texts.KEY).exists()
  assert_ids(kept_texts(tmp_path, CAPTIONS, tokenizer, 9), tokenizer, 9)
