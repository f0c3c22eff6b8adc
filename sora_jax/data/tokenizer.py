"""Captions -> token ids: a SentencePiece model trained on the run's own captions.

Byte fallback spells out words that training never saw, and characters too rare for a piece of their own, so every
string has ids and none is an error.
"""

import collections
import io
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence

import sentencepiece
from etils import epath

from sora_jax.errors import InputError
from sora_jax.runtime import storage

PAD, START, UNKNOWN = 0, 1, 2
RESERVED = {0x2581: " ", 0x2585: " "}  # which SentencePiece uses itself: it leaves out captions that have the second
FIXED = 256 + 3  # pieces that every vocabulary has: the bytes, and the three above


class Tokenizer:
  """Text -> int ids; each caption begins with START, which is all that an empty prompt has."""

  def __init__(self, model: bytes):
    self.model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

  @classmethod
  def train(cls, captions: Iterable[str], vocabulary: int) -> "Tokenizer":
    """A byte-pair model of at most `vocabulary` pieces, the 256 bytes included; the same captions give the same bytes.

    Raises:
      InputError: no caption has a word in it, or the vocabulary has no room for a single character.
    """
    captions = [text for caption in captions if (text := caption.translate(RESERVED)).strip()]
    if not captions:
      raise InputError("no caption to train a tokenizer on: every caption is empty")
    if vocabulary < (least := FIXED + 2):
      raise InputError(
        f"a vocabulary of {vocabulary} has no room beside the {FIXED} pieces that every one has: "
        f"set config.model.vocabulary to {least} or more"
      )
    room, used = vocabulary - FIXED, captions
    while True:
      try:
        return cls(_train(used, vocabulary))
      except RuntimeError as error:
        if "sentences_.empty()" in str(error):
          raise InputError("no caption to train a tokenizer on: none has a character that is shown") from error
        if "Vocabulary size is smaller" not in str(error) or room < 1:
          detail = " ".join(str(error).split())
          raise InputError(f"no tokenizer of {vocabulary} pieces can be made of these captions: {detail}") from error
      room -= max(room // 50, 1)  # one for the space between words, and what SentencePiece counts otherwise
      used = _of_commonest(captions, room)

  @classmethod
  def load(cls, path: str | os.PathLike) -> "Tokenizer":
    """
    Raises:
      ValueError: there is no such file, or it is no SentencePiece model.
    """
    file = epath.Path(path)
    if not file.exists():
      raise InputError(f"no tokenizer at {file}: it is written when training starts")
    model = file.read_bytes()
    if not model:  # which SentencePiece takes for "no model given"
      raise InputError(f"{file} is no SentencePiece model: it is empty")
    try:
      return cls(model)
    except (RuntimeError, OSError) as error:
      raise InputError(f"{file} is no SentencePiece model: {str(error).splitlines()[0]}") from error

  def save(self, path: str | os.PathLike) -> None:
    """Writes the file whole or not at all."""
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with storage.written_local(file) as local:
      pathlib.Path(local).write_bytes(self.model)

  @property
  def vocabulary(self) -> int:
    return self._processor.vocab_size()

  def encode(self, text: str, limit: int) -> list[int]:
    """START and the text's ids, cut to `limit` ids in all."""
    return [START, *self._processor.encode(text)][:limit]

  def count(self, text: str) -> int:
    """How many ids a text has where nothing is cut."""
    return 1 + len(self._processor.encode(text))

  def decode(self, ids: list[int]) -> str:
    return self._processor.decode([i for i in ids if i not in (PAD, START)])


def _train(captions: Sequence[str], vocabulary: int) -> bytes:
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions),
    model_writer=buffer,
    model_type="bpe",
    vocab_size=vocabulary,
    hard_vocab_limit=False,
    byte_fallback=True,
    character_coverage=0.9995,
    max_sentence_length=max(
      10, 1 + max(len(caption.encode()) for caption in captions)
    ),  # longer ones would be left out
    pad_id=PAD,
    bos_id=START,
    unk_id=UNKNOWN,
    eos_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  return buffer.getvalue()


def _of_commonest(captions: Sequence[str], most: int) -> list[str]:
  """The captions with a space for each character that is not one of the `most` commonest."""
  whole = [unicodedata.normalize("NFKC", caption) for caption in captions]
  counts = collections.Counter(character for caption in whole for character in caption)
  order = sorted(counts, key=lambda character: (-counts[character], character))
  return [caption.translate(dict.fromkeys(map(ord, order[most:]), " ")) for caption in whole]
