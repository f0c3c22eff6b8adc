"""The tokenizer of a run and its captions as ids: made once and kept on disk, so that a second start makes neither.

workdir/tokenizer.model
folder/text.json     what the ids are made from: tokenizer, captions, limit, version
folder/text.npz      ids of all captions one after another, and where each starts
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sora_jax import __version__
from sora_jax.data import latents
from sora_jax.data.captions import STYLES, Texts
from sora_jax.data.latents import LatentStore
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.runtime import storage
from sora_jax.runtime.hosts import ALONE, LONG, Hosts

KEY, IDS = "text.json", "text.npz"


def get_tokenizer(config: Any, store: LatentStore, workdir: epath.Path, hosts: Hosts = ALONE) -> Tokenizer:
  """The one in the workdir, or one trained now on the store's captions."""
  path = workdir / "tokenizer.model"

  def make() -> None:
    if not path.exists():
      captions = (text for entry in store.entries for text in entry["captions"].values())
      Tokenizer.train(captions, config.model.vocabulary).save(path)

  hosts.decide("training the tokenizer", make, LONG)
  return Tokenizer.load(path)


def kept_texts(
  folder: str | os.PathLike,
  captions: Sequence[Mapping[str, str]],
  tokenizer: Tokenizer,
  limit: int,
  hosts: Hosts = ALONE,
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

  hosts.decide("tokenising captions", make, LONG)
  with (root / IDS).open("rb") as file, np.load(file, allow_pickle=False) as found:
    return Texts(found["ids"], found["starts"])


def _read_key(path: epath.Path) -> dict[str, str]:
  try:
    key = json.loads(path.read_text())
  except ValueError:
    return {}
  return key if isinstance(key, dict) else {}
