"""The tokenizer: deterministic, never at a loss for a string, and files that are no model are named."""

import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sora_jax.data.tokenizer import START, Tokenizer
from sora_jax.errors import InputError

CAPTIONS = ["a red circle moves leftwards", "a blue square moves rightwards", "a green cross on a dark background"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer.train(CAPTIONS, 320)


def test_the_same_captions_give_the_same_bytes(tokenizer):
  assert Tokenizer.train(CAPTIONS, 320).model == tokenizer.model
  assert Tokenizer.train(CAPTIONS[:2], 320).model != tokenizer.model


def test_start_comes_first_and_is_all_of_an_empty_prompt(tokenizer):
  assert tokenizer.encode("a red circle", 99)[0] == START
  assert START not in tokenizer.encode("a red circle", 99)[1:]
  assert tokenizer.encode("", 99) == [START]


def test_frequent_words_are_pieces_and_the_vocabulary_is_bounded(tokenizer):
  assert 256 < tokenizer.vocabulary <= 320
  assert len(tokenizer.encode("moves", 99)) - 1 < len("moves")


@pytest.mark.parametrize(
  "text", ["a red circle moves leftwards", "zyxwvq", "a fox \N{FOX FACE} jumps", "\u4e00\u53ea\u732b", "caf\u00e9 5%"]
)
def test_every_string_reads_back(tokenizer, text):
  ids = tokenizer.encode(text, 999)
  assert tokenizer.decode(ids) == text
  assert all(0 <= i < tokenizer.vocabulary for i in ids)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(text=st.text(max_size=40))
def test_no_string_is_an_error(tokenizer, text):
  ids = tokenizer.encode(text, 999)
  assert ids[0] == START and all(0 <= i < tokenizer.vocabulary for i in ids)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_cuts_and_counts_the_start(tokenizer, limit):
  whole = tokenizer.encode("a green cross on a dark background", 99)
  assert len(whole) > 5
  assert tokenizer.encode("a green cross on a dark background", limit) == whole[:limit]


@pytest.mark.parametrize("captions", [[], ["", "  \n"], ["\u200b"], ["\x01"], ["\u2581 \u2585"]])
def test_captions_without_a_word_are_refused(captions):
  with pytest.raises(ValueError, match="caption"):
    Tokenizer.train(captions, 320)


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path: pathlib.Path):
  path = tmp_path / "new" / "tokenizer.model"
  tokenizer.save(path)
  loaded = Tokenizer.load(path)
  assert loaded.model == tokenizer.model
  assert loaded.encode("a red cross", 99) == tokenizer.encode("a red cross", 99)


def test_a_missing_file_is_named(tmp_path: pathlib.Path):
  with pytest.raises(ValueError, match="absent.model"):
    Tokenizer.load(tmp_path / "absent.model")


@pytest.mark.parametrize("content", [b"garbage", b"", b"\x00" * 100, bytes(range(256)) * 4])
def test_a_file_that_is_no_model_is_named(tmp_path: pathlib.Path, content):
  (tmp_path / "bad.model").write_bytes(content)
  with pytest.raises(ValueError, match="bad.model"):
    Tokenizer.load(tmp_path / "bad.model")


def test_a_model_cut_short_is_named(tokenizer, tmp_path: pathlib.Path):
  (tmp_path / "cut.model").write_bytes(tokenizer.model[: len(tokenizer.model) // 2])
  with pytest.raises(ValueError, match="cut.model"):
    Tokenizer.load(tmp_path / "cut.model")


def chinese(count: int = 120, kinds: int = 380) -> list[str]:
  """Captions of more characters than a small vocabulary has room for, some common and most rare."""
  rng = np.random.default_rng(0)
  places = np.minimum(rng.geometric(0.01, (count, 30)), kinds)
  return ["".join(chr(0x4E00 + place) for place in row) for row in places.tolist()]


@pytest.mark.parametrize("vocabulary", [261, 300, 512])
def test_rare_characters_fall_back_to_bytes(vocabulary: int):
  captions = chinese()
  assert len(set("".join(captions))) > 256
  tokenizer = Tokenizer.train(captions, vocabulary)
  assert tokenizer.vocabulary <= vocabulary
  assert all(tokenizer.decode(tokenizer.encode(caption, 10**4)) == caption for caption in captions)
  common, rare = chr(0x4E00 + 1), chr(0x4E00 + 5000)
  if vocabulary > 300:
    assert len(tokenizer.encode(common * 4, 99)) < len(tokenizer.encode(rare * 4, 99)) == 2 + 4 * 3
  assert Tokenizer.train(captions, vocabulary).model == tokenizer.model


@pytest.mark.parametrize("words", [20, 900])
def test_long_captions_are_trained_on(words: int):
  """SentencePiece leaves out what is longer than 4,192 bytes, unless it is told otherwise."""
  rng = np.random.default_rng(0)
  captions = [" ".join(rng.choice(["brown", "dog", "waves", "camera", "slowly"], words)) for _ in range(4)]
  tokenizer = Tokenizer.train([*captions, "x" * 9999], 512)
  assert len(tokenizer.encode("brown dog waves camera slowly", 99)) < 12


@pytest.mark.parametrize(
  "captions", [["a\tb"], ["\u2581a"], ["\u200b", "a"], ["\x01 a"], ["a\nb"], ["<unk>"], ["\u2585 x"]]
)
def test_odd_captions_are_trained_on_too(captions: list[str]):
  assert Tokenizer.train(captions, 300).encode("a", 9)


@pytest.mark.parametrize("vocabulary", [0, 100, 260])
def test_a_vocabulary_without_room_is_named(vocabulary: int):
  with pytest.raises(InputError, match=rf"vocabulary of {vocabulary} .* set config.model.vocabulary to 261 or more"):
    Tokenizer.train(["a red circle"], vocabulary)
