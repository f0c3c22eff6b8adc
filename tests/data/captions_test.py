"""Token ids of captions: those of the tokenizer, cut to the limit."""

import numpy as np
import pytest

from sora_jax.data.captions import STYLES, Texts
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
