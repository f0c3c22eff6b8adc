"""The tokenizer of a run and its captions as ids: made once and kept on disk, so that a second start makes neither.

workdir/tokenizer.model; what is kept of the ids is at the head of `data/captions.py`.
"""

import json
import sys
from typing import Any

from etils import epath

from sora_jax.data import caption_limits, latents
from sora_jax.data.captions import Texts
from sora_jax.data.columns import BadColumn
from sora_jax.data.latents import LatentStore
from sora_jax.data.sources import Source
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.errors import InputError
from sora_jax.runtime import storage
from sora_jax.runtime.hosts import ALONE, LONG, Hosts

MODEL, KEY = "tokenizer.model", "text.json"
TEXT_FORMAT = "1"  # raised by hand when ids on disk can no longer be used
TRAINED_ON = 500_000  # clips whose captions a tokenizer learns from: evenly spread, all where there are fewer


def try_tokenizer(
  config: Any, source: Source, workdir: epath.Path, hosts: Hosts = ALONE, given: epath.Path | None = None
) -> Tokenizer | None:
  """On the first host the tokenizer in the workdir or in `given`, or one trained now on the source's captions and not
  yet kept.

  It is made before anything is: a vocabulary that is too small shows here, and binds no workdir.
  """
  path = workdir / MODEL
  made: list[Tokenizer] = []

  def make() -> None:
    if given is not None or path.exists():
      made.append(Tokenizer.load(path if path.exists() or given is None else given / MODEL))
    else:
      some = range(0, len(source), -(-len(source) // TRAINED_ON))
      made.append(Tokenizer.train(caption_limits.captions_of(source, some), config.model.vocabulary))

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
      some = store.all_captions().every(-(-len(store) // TRAINED_ON))
      Tokenizer.train((text for each in some for text in each.values()), config.model.vocabulary).save(path)

  hosts.decide("training the tokenizer", make, LONG)
  return Tokenizer.load(path)


def kept_texts(store: LatentStore, tokenizer: Tokenizer, limit: int, hosts: Hosts = ALONE, owned: bool = True) -> Texts:
  """The ids of the store's captions, kept beside them; where those are of others, stderr says what differs.

  Of several hosts the first makes them, and all read them.

  Args:
    limit: most tokens of a caption.
    owned: the store is this run's, which may make the ids again.

  Raises:
    InputError: the ids of a store of another run are missing, or of another tokenizer or limit.
  """
  root = store.folder
  key = {
    "tokenizer": latents.digest([tokenizer.model.hex()]),
    "captions": store.all_captions().digest,
    "limit": str(limit),
    "format of ids": TEXT_FORMAT,
  }

  def make() -> None:
    if (root / KEY).exists():
      changed = latents.differing(latents.read_key(root / KEY), key) or _damage(root)
      if not changed:
        return
      if not owned:
        raise InputError(f"{root}: its captions' ids are of other {', '.join(changed)}: use these, or prepare again")
      print(f"{root / KEY}: tokenising again: other {', '.join(changed)}", file=sys.stderr)
    elif not owned:
      raise InputError(f"{root}: its captions have no ids: run sora precompute with its workdir again")
    (root / KEY).unlink(missing_ok=True)  # a stop here leaves no key, so ids are never taken for others
    Texts.save(root, store.all_captions(), tokenizer, limit)
    storage.write_text(root / KEY, json.dumps(key, indent=1, sort_keys=True))

  hosts.decide("tokenising captions", make, LONG)
  return Texts.load(root)


def _damage(root: epath.Path) -> list[str]:
  try:
    Texts.load(root)
  except BadColumn:
    return ["ids, which are damaged"]
  return []
