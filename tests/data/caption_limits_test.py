"""Captions longer than the limit: which are named, and what is said."""

from typing import NamedTuple

import pytest

from sora_jax.data import caption_limits
from sora_jax.data.caption_limits import captions_of, cut_captions, cut_prompt
from sora_jax.data.tokenizer import Tokenizer

LONG = " ".join(["a small brown dog runs along the wet beach while waves break"] * 9)


class Source(NamedTuple):
  texts: list[tuple[str, str]]

  def __len__(self) -> int:
    return len(self.texts)

  def captions(self, index: int) -> dict[str, str]:
    return dict(zip(("short", "long"), self.texts[index], strict=True))

  def where(self, index: int) -> tuple[str, int]:
    return f"{index}.png", index + 1


@pytest.fixture(scope="module")
def source() -> Source:
  return Source([("a dog", LONG), ("a dog", "a beach"), (LONG, LONG), ("waves", "waves")])


@pytest.fixture(scope="module")
def tokenizer(source: Source) -> Tokenizer:
  return Tokenizer.train(captions_of(source), 400)


def test_what_is_cut_is_counted_and_named(source: Source, tokenizer: Tokenizer):
  ids = tokenizer.count(LONG)
  assert ids == len(tokenizer.encode(LONG, 10**6)) > 90
  found = cut_captions(source, tokenizer, 20)
  assert found.summary() == {
    "limit": 20,
    "clips": 2,
    "longest": ids,
    "files": [{"file": "0.png", "line": 1, "ids": ids}, {"file": "2.png", "line": 3, "ids": ids}],
  }
  for part in ("of 2 of 4 clips are cut at config.train.row_text=20", f"0.png (line 1, {ids} ids)", f"={ids} takes"):
    assert part in found.message()
  assert "\n" not in found.message()


def test_at_the_limit_nothing_is_cut(source: Source, tokenizer: Tokenizer):
  ids = tokenizer.count(LONG)
  assert cut_captions(source, tokenizer, ids).message() == ""
  assert len(cut_captions(source, tokenizer, ids - 1).clips) == 2
  assert cut_captions(source, tokenizer, 20, clips=[1, 2]).summary()["clips"] == 1


def test_of_very_many_clips_some_are_looked_at(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(caption_limits, "LOOKED", 10)
  found = cut_captions(Source([(LONG, LONG)] * 99), tokenizer, 20)
  assert found.looked == len(found.clips) == 10 and "and 5 more" in found.message()


def test_a_long_prompt_is_named_with_where_it_ends(tokenizer: Tokenizer):
  assert cut_prompt("a small brown dog", tokenizer, 20) == ""
  message = cut_prompt(LONG, tokenizer, 20)
  assert f"has {tokenizer.count(LONG)} ids and is cut at the model's 20" in message
  assert tokenizer.decode(tokenizer.encode(LONG, 20))[-20:] in message
