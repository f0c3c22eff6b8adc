"""Captions as token ids: made once a run and kept on disk, so that a run that is taken up again doesn't tokenise.

    folder/text.json     what the ids are made from: tokenizer, captions, limit, version
    folder/text.npz      ids of all captions one after another, and where each starts

Shape letters: N clips, M ids.
"""

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from sora_jax import __version__, hosts
from sora_jax.data import latents, storage
from sora_jax.data.tokenizer import Tokenizer

KEY, IDS = "text.json", "text.npz"
STYLES = ("short", "long")


class Texts:
  """The token ids of each clip's captions."""

  def __init__(self, ids_M: np.ndarray, starts: np.ndarray):
    """`starts`, (2 N + 1,), is where in the ids a clip's short caption begins, then its long one, and where all end."""
    self.ids_M, self.starts = ids_M, starts

  @classmethod
  def of(cls, captions: Sequence[Mapping[str, str]], tokenizer: Tokenizer, limit: int) -> "Texts":
    """Tokenises the captions of N clips, each cut to `limit` ids."""
    ids = [tokenizer.encode(each[style], limit) for each in captions for style in STYLES]
    starts = np.cumsum([0, *map(len, ids)])
    return cls(np.fromiter(itertools.chain.from_iterable(ids), np.int32, starts[-1]), starts)

  def __len__(self) -> int:
    return len(self.starts) // len(STYLES)

  def __call__(self, clip: int, style: str) -> np.ndarray:
    """int32 ids of a clip's caption."""
    place = clip * len(STYLES) + STYLES.index(style)
    return self.ids_M[self.starts[place] : self.starts[place + 1]]

  @property
  def longest_N(self) -> np.ndarray:
    """Ids of each clip's longer caption."""
    return np.diff(self.starts).reshape(-1, len(STYLES)).max(1)


def kept_texts(
  folder: str | os.PathLike, captions: Sequence[Mapping[str, str]], tokenizer: Tokenizer, limit: int
) -> Texts:
  """`Texts.of`, kept in the folder; where it holds others, what differs is named on stderr and they are made again.

  Of several hosts the first makes them, and all read them.
  """
  root = epath.Path(folder)
  key = {
    "tokenizer": latents.digest([tokenizer.model.hex()]),
    "captions": latents.digest(each[style] for each in captions for style in STYLES),
    "limit": str(limit),
    "version of sora_jax": __version__,
  }

  def make() -> None:
    if (root / KEY).exists() and (root / IDS).exists():
      changed = latents.differing(_read_key(root / KEY), key)
      if not changed:
        return
      print(f"{root / KEY}: tokenising again: other {', '.join(changed)}", file=sys.stderr)
    texts = Texts.of(captions, tokenizer, limit)
    root.mkdir(parents=True, exist_ok=True)
    (root / KEY).unlink(missing_ok=True)  # a stop here leaves no key, so ids are never taken for others
    with (root / IDS).open("wb") as file:
      np.savez(file, ids=texts.ids_M, starts=texts.starts)
    storage.write_text(root / KEY, json.dumps(key, indent=1, sort_keys=True))

  hosts.decide("tokenising captions", make, hosts.LONG)
  with (root / IDS).open("rb") as file, np.load(file, allow_pickle=False) as found:
    return Texts(found["ids"], found["starts"])


def _read_key(path: epath.Path) -> dict[str, str]:
  try:
    key = json.loads(path.read_text())
  except ValueError:
    return {}
  return key if isinstance(key, dict) else {}
