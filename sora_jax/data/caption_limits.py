"""Captions that are longer than a model reads: which ones, by how much, and what to say of them."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from sora_jax.data.captions import STYLES
from sora_jax.data.files import printable
from sora_jax.data.sources import Source
from sora_jax.data.tokenizer import Tokenizer

LOOKED = 100_000  # clips whose captions are counted, spread over the source
NAMED = 5  # in a message


@dataclasses.dataclass(frozen=True)
class Cut:
  """A clip with a caption that is cut, and the ids of its longer one."""

  file: str
  line: int
  ids: int


@dataclasses.dataclass(frozen=True)
class CutCaptions:
  """What a limit cuts of a source.

  Attributes:
    limit: ids of a caption that a model reads, the start included.
    looked: clips that were looked at.
    clips: those with a caption that is cut.
  """

  limit: int
  looked: int
  clips: Sequence[Cut]

  def summary(self) -> dict:
    """For JSON."""
    longest = max((each.ids for each in self.clips), default=0)
    return {"limit": self.limit, "clips": len(self.clips), "longest": longest, "files": [*map(vars, self.clips)]}

  def message(self) -> str:
    """One line; empty where nothing is cut."""
    if not self.clips:
      return ""
    named = [f"{printable(each.file)} (line {each.line}, {each.ids} ids)" for each in self.clips[:NAMED]]
    more = f" and {len(self.clips) - NAMED} more" if len(self.clips) > NAMED else ""
    longest = max(each.ids for each in self.clips)
    return (
      f"captions of {len(self.clips)} of {self.looked} clips are cut at config.train.row_text={self.limit} ids: "
      f"{', '.join(named)}{more}; config.train.row_text={longest} takes them whole, and a larger "
      "config.model.vocabulary makes them shorter"
    )


def captions_of(source: Source, clips: Iterable[int] | None = None) -> list[str]:
  """The short and long caption of each clip, or of the given ones."""
  found = (source.captions(clip) for clip in (range(len(source)) if clips is None else clips))
  return [each[style] for each in found for style in STYLES]


def cut_captions(source: Source, tokenizer: Tokenizer, limit: int, clips: Sequence[int] | None = None) -> CutCaptions:
  """What `limit` cuts of the captions of a source, or of the given clips of it; LOOKED of them at most."""
  among = np.arange(len(source)) if clips is None else np.asarray(clips, np.int64)
  if len(among) > LOOKED:
    among = among[np.linspace(0, len(among) - 1, LOOKED).astype(int)]
  cut = []
  for clip in among.tolist():
    ids = max(tokenizer.count(text) for text in set(source.captions(clip).values()))
    if ids > limit:
      cut.append(Cut(*source.where(clip), ids))
  return CutCaptions(limit, len(among), cut)


def cut_prompt(prompt: str, tokenizer: Tokenizer, limit: int) -> str:
  """What to say of a prompt that is longer than a model reads; empty where it is not."""
  ids = tokenizer.encode(prompt, limit + 1)
  if len(ids) <= limit:
    return ""
  kept = tokenizer.decode(ids[:limit])
  return (
    f"the prompt has {tokenizer.count(prompt)} ids and is cut at the model's {limit} "
    f"(config.train.row_text): it ends with {kept[-40:]!r}"
  )
