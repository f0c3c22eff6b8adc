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
from sora_jax.data import caption_limits, latents
from sora_jax.data.captions import STYLES, Texts
from sora_jax.data.latents import LatentStore
from sora_jax.data.sources import Source
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.runtime import storage
from sora_jax.runtime.hosts import ALONE, LONG, Hosts

MODEL, KEY, IDS = "tokenizer.model", "text.json", "text.npz"


def try_tokenizer(config: Any, source: Source, workdir: epath.Path, hosts: Hosts = ALONE) -> Tokenizer | None:
  """On the first host the tokenizer in the workdir, or one trained now on the source's captions and not yet kept.

  It is made before anything is: a vocabulary that is too small shows here, and binds no workdir.
  """
  path = workdir / MODEL
  made: list[Tokenizer] = []

  def make() -> None:
    if path.exists():
      made.append(Tokenizer.load(path))
    else:
      made.append(Tokenizer.train(caption_limits.captions_of(source), config.model.vocabulary))

  hosts.decide("training the tokenizer", make, LONG)
  return made[0] if made else None


def keep_tokenizer(tokenizer: Tokenizer, source: Source, config: Any, workdir: epath.Path) -> None:
  """Writes it into the workdir where there is none yet, and says on stderr which captions are cut."""
  if not (workdir / MODEL).exists():
    tokenizer.save(workdir / MODEL)
  if message := caption_limits.cut_captions(source, tokenizer, config.train.row_text).message():
    print(message, file=sys.stderr)


def get_tokenizer(config: Any, store: LatentStore, workdir: epath.Path, hosts: Hosts = ALONE) -> Tokenizer:
  """The one in the workdir, or one trained now on the store's captions."""
  path = workdir / MODEL

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
