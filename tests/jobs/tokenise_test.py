"""Captions' ids are kept on disk for just these captions, tokenizer and limit."""

import pickle

import numpy as np
import pytest

from sora_jax.data.captions import Texts
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.jobs import tokenise
from sora_jax.jobs.tokenise import kept_texts
from tests.data import captions_test
from tests.data.captions_test import CAPTIONS, assert_ids

tokenizer = captions_test.tokenizer  # the fixture


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
  (tmp_path / tokenise.KEY).write_text(content)
  assert_ids(kept_texts(tmp_path, CAPTIONS, tokenizer, 9), tokenizer, 9)


def test_stopping_while_ids_are_written_leaves_no_key(tmp_path, tokenizer, monkeypatch):
  kept_texts(tmp_path, CAPTIONS, tokenizer, 9)

  def stopped(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(np, "savez", stopped)
    kept_texts(tmp_path, CAPTIONS, tokenizer, 5)
  assert not (tmp_path / tokenise.KEY).exists()
  assert_ids(kept_texts(tmp_path, CAPTIONS, tokenizer, 9), tokenizer, 9)
