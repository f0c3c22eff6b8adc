"""Captions' ids are kept on disk for just these captions, tokenizer and limit."""

import pickle

import ml_collections
import numpy as np
import pytest
from etils import epath

from sora_jax.data import latents
from sora_jax.data.captions import Texts, write_captions
from sora_jax.data.latents import LatentStore
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.errors import InputError
from sora_jax.jobs import tokenise
from sora_jax.jobs.tokenise import kept_texts
from tests.data import captions_test
from tests.data.captions_test import CAPTIONS, assert_ids

tokenizer = captions_test.tokenizer  # the fixture


def store_of(folder, captions=CAPTIONS) -> LatentStore:
  """A store without clips whose captions are these."""
  folder.mkdir(exist_ok=True)
  if not latents.begin(folder, {}):
    latents.finish(folder, 0)
  write_captions(folder, captions, "")
  return LatentStore(folder)


def test_what_was_kept_is_read_and_not_made_again(tmp_path, tokenizer, monkeypatch):
  assert_ids(kept_texts(store_of(tmp_path / "w"), tokenizer, 9), tokenizer, 9)
  monkeypatch.setattr(Texts, "save", None)
  again = kept_texts(store_of(tmp_path / "w"), tokenizer, 9)
  assert_ids(pickle.loads(pickle.dumps(again)), tokenizer, 9)


def test_other_captions_limits_or_tokenizers_are_named_and_made_again(tmp_path, tokenizer, capsys):
  """F30."""
  kept_texts(store_of(tmp_path), tokenizer, 9)
  assert_ids(kept_texts(store_of(tmp_path), tokenizer, 5), tokenizer, 5)
  assert "other limit\n" in capsys.readouterr().err
  other = Tokenizer.train(["something else"], 290)
  assert_ids(kept_texts(store_of(tmp_path), other, 5), other, 5)
  assert "other tokenizer\n" in capsys.readouterr().err
  assert len(kept_texts(store_of(tmp_path, CAPTIONS[:2]), other, 5)) == 2
  assert "other captions\n" in capsys.readouterr().err
  kept_texts(store_of(tmp_path, CAPTIONS[:2]), other, 5)
  assert not capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_key_is_not_trusted(tmp_path, tokenizer, content):
  kept_texts(store_of(tmp_path), tokenizer, 9)
  (tmp_path / tokenise.KEY).write_text(content)
  assert_ids(kept_texts(store_of(tmp_path), tokenizer, 9), tokenizer, 9)


def test_ids_that_another_run_has_not_made_are_not_made_for_it(tmp_path, tokenizer):
  store = store_of(tmp_path)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(InputError, match="its captions have no ids: run sora precompute"):
    kept_texts(store, tokenizer, 9, owned=False)
  assert sorted(tmp_path.iterdir()) == before


def test_stopping_while_ids_are_written_leaves_no_key(tmp_path, tokenizer, monkeypatch):
  kept_texts(store_of(tmp_path), tokenizer, 9)

  def stopped(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(Tokenizer, "encode", stopped)
    kept_texts(store_of(tmp_path), tokenizer, 5)
  assert not (tmp_path / tokenise.KEY).exists()
  assert_ids(kept_texts(store_of(tmp_path), tokenizer, 9), tokenizer, 9)


class Source:
  def __init__(self, captions: list[str]):
    self.texts = captions

  def __len__(self) -> int:
    return len(self.texts)

  def captions(self, index: int) -> dict[str, str]:
    return {"short": self.texts[index], "long": self.texts[index]}

  def where(self, index: int) -> tuple[str, int]:
    return f"{index}.png", index + 1


def limits(vocabulary: int, row_text: int) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({"model": {"vocabulary": vocabulary}, "train": {"row_text": row_text}})


def test_a_tokenizer_is_tried_before_the_workdir_is_touched(tmp_path):
  source, workdir = Source(["a dog", "a cat " * 40]), epath.Path(tmp_path / "run")
  with pytest.raises(InputError, match=r"config\.model\.vocabulary"):
    tokenise.try_tokenizer(limits(100, 9), source, workdir)
  made = tokenise.try_tokenizer(limits(300, 9), source, workdir)
  assert made and not workdir.exists()


def test_it_is_kept_and_what_its_limit_cuts_is_said_at_every_start(tmp_path, capsys):
  source, workdir = Source(["a dog", "a cat " * 40]), epath.Path(tmp_path)
  for _ in range(2):
    made = tokenise.try_tokenizer(limits(300, 9), source, workdir)
    tokenise.keep_tokenizer(made, source, limits(300, 9), workdir)
    said = capsys.readouterr().err
    assert "captions of 1 of 2 clips are cut at config.train.row_text=9 ids: 1.png (line 2, " in said
  assert Tokenizer.load(workdir / tokenise.MODEL).model == made.model
  tokenise.keep_tokenizer(made, source, limits(300, 999), workdir)
  assert not capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"nonsense" * 40])
def test_damaged_ids_are_made_again(tmp_path, tokenizer, content, capsys):
  kept_texts(store_of(tmp_path), tokenizer, 9)
  (tmp_path / "text-ids.npy").write_bytes(content)
  assert_ids(kept_texts(store_of(tmp_path), tokenizer, 9), tokenizer, 9)
  assert "tokenising again: other ids, which are damaged\n" in capsys.readouterr().err


def test_kept_ids_are_mapped_and_sent_as_the_name_of_their_folder(tmp_path, tokenizer):
  texts = kept_texts(store_of(tmp_path), tokenizer, 9)
  assert isinstance(texts.ids_M, np.memmap) and len(pickle.dumps(texts)) < 500


def test_a_tokenizer_learns_from_clips_that_are_evenly_spread(tmp_path, monkeypatch):
  monkeypatch.setattr(tokenise, "TRAINED_ON", 3)
  learnt = []
  monkeypatch.setattr(Tokenizer, "train", lambda texts, size: learnt.extend(texts) or Tokenizer(b""))
  monkeypatch.setattr(Tokenizer, "save", lambda self, path: None)
  monkeypatch.setattr(Tokenizer, "load", lambda path: None)
  captions = [{"short": f"s{i}", "long": f"l{i}"} for i in range(8)]
  store = store_of(tmp_path, captions)
  monkeypatch.setattr(LatentStore, "__len__", lambda self: 8)
  tokenise.get_tokenizer(ml_collections.ConfigDict({"model": {"vocabulary": 300}}), store, epath.Path(tmp_path))
  assert learnt == ["s0", "l0", "s3", "l3", "s6", "l6"]
