"""The captions of encoded clips, kept beside the latents, and as token ids: two columns however many clips there are.

    folder/captions.array_record    a record a clip, in the store's order: JSON of its captions
    folder/captions.json            what they were written from, and their digest; written last

    folder/text.json                what the ids are made from: tokenizer, captions, limit
    folder/text-ids.npy             the ids of all captions one after another
    folder/text-starts.npy          where a clip's short caption begins, then its long one, and where all end

Shape letters: N clips, M ids.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from sora_jax.data import columns
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.errors import InputError
from sora_jax.runtime import storage

STYLES = ("short", "long")
RECORDS, META = "captions.array_record", "captions.json"
TOGETHER = 4096  # captions read or tokenised at a time


class Captions:
  """The captions of a store's clips by number.

  Attributes:
    digest: of all captions in their order.
  """

  def __init__(self, folder: str | os.PathLike):
    """
    Raises:
      InputError: there are none, or they are damaged.
    """
    root = epath.Path(folder)
    meta = _read_meta(root)
    self.digest: str = meta["digest"]
    self._count: int = meta["clips"]
    self._path = root / RECORDS
    self._reader: ArrayRecordReader | None = None
    if not self._path.exists():
      raise InputError(f"{self._path}: missing: run the command again, and captions are written again")

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, number: int) -> dict[str, str]:
    if not 0 <= number < len(self):
      raise IndexError(number)
    return self._read([number])[0]

  def __iter__(self) -> Iterator[dict[str, str]]:
    return self.every(1)

  def every(self, step: int) -> Iterator[dict[str, str]]:
    """The captions of clips 0, step, 2 * step, ..."""
    for start in range(0, len(self), TOGETHER * step):
      yield from self._read(list(range(start, min(start + TOGETHER * step, len(self)), step)))

  def _read(self, numbers: list[int]) -> list[dict[str, str]]:
    try:
      if self._reader is None:
        self._reader = ArrayRecordReader(storage.kept_local(self._path))
      return [json.loads(record) for record in self._reader.read(numbers)]
    except storage.StorageError:
      raise
    except Exception as error:  # as many kinds as there are ways for bytes to be wrong
      reason = str(error).partition("\n")[0]
      meta = self._path.with_name(META)
      raise InputError(f"{self._path}: damaged ({reason}): delete {meta}, and captions are written again") from error

  def __reduce__(self) -> tuple[Any, ...]:
    return Captions, (os.fspath(self._path.parent),)


def written_from(folder: str | os.PathLike) -> str:
  """What the captions in a folder were written from; empty where there are none."""
  root = epath.Path(folder)
  try:
    return _read_meta(root)["from"] if (root / RECORDS).exists() else ""
  except InputError:
    return ""


def write_captions(folder: str | os.PathLike, captions: Iterable[Mapping[str, str]], made_from: str) -> None:
  """Writes the captions of all clips of a store, in its order.

  Args:
    made_from: what `written_from` says of them from here on.
  """
  root, count, seen = epath.Path(folder), 0, hashlib.sha256()
  (root / META).unlink(missing_ok=True)  # a stop here leaves no captions rather than those of other clips
  with storage.written_local(root / RECORDS) as local:
    writer = ArrayRecordWriter(local, "group_size:64")
    try:
      for each in captions:
        record = json.dumps({style: each[style] for style in STYLES}).encode()
        writer.write(record)
        seen.update(record + b"\n")
        count += 1
    finally:
      writer.close()
  meta = {"from": made_from, "clips": count, "digest": seen.hexdigest()}
  storage.write_text(root / META, json.dumps(meta))


def _read_meta(root: epath.Path) -> dict:
  try:
    meta = json.loads(storage.read_bytes(root / META))
    if all(isinstance(meta[name], kind) for name, kind in (("from", str), ("clips", int), ("digest", str))):
      return meta
    reason = "a value of another type"
  except FileNotFoundError:
    reason = "missing"
  except (ValueError, KeyError, TypeError) as error:
    reason = f"damaged ({type(error).__name__})"
  raise InputError(f"{root / META}: {reason}: run the command again, and captions are written again")


class Texts:
  """The token ids of each clip's captions."""

  def __init__(self, ids_M: np.ndarray, starts: np.ndarray):
    """`starts`, (2 N + 1,), is where in the ids a clip's short caption begins, then its long one, and where all end."""
    self.ids_M, self.starts = ids_M, starts
    self.folder: str | None = None

  @classmethod
  def of(cls, captions: Iterable[Mapping[str, str]], tokenizer: Tokenizer, limit: int) -> "Texts":
    """Tokenises the captions of N clips, each cut to `limit` ids."""
    counts: list[np.ndarray] = []
    ids = [np.zeros(0, np.int32), *_tokenised(captions, tokenizer, limit, counts)]
    return cls(np.concatenate(ids), _starts(counts))

  @classmethod
  def load(cls, folder: str | os.PathLike) -> "Texts":
    """Those that `save` has written, memory-mapped."""
    root = epath.Path(folder)
    texts = cls(columns.read(root / "text-ids.npy", np.int32), columns.read(root / "text-starts.npy", np.int64))
    texts.folder = os.fspath(folder)
    return texts

  @staticmethod
  def save(folder: str | os.PathLike, captions: Iterable[Mapping[str, str]], tokenizer: Tokenizer, limit: int) -> None:
    """Writes the ids of captions as they are made."""
    root = epath.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    counts: list[np.ndarray] = []
    columns.write(root / "text-ids.npy", _tokenised(captions, tokenizer, limit, counts), np.int32)
    columns.write(root / "text-starts.npy", [_starts(counts)], np.int64)

  def __reduce__(self) -> tuple[Any, ...]:
    # Another process maps the files itself.
    return (Texts.load, (self.folder,)) if self.folder is not None else (Texts, (self.ids_M, self.starts))

  def __len__(self) -> int:
    return len(self.starts) // len(STYLES)

  def __call__(self, clip: int, style: str) -> np.ndarray:
    """int32 ids of a clip's caption."""
    place = clip * len(STYLES) + STYLES.index(style)
    return np.asarray(self.ids_M[self.starts[place] : self.starts[place + 1]])

  @property
  def longest_N(self) -> np.ndarray:
    """Ids of each clip's longer caption, int32."""
    return np.diff(self.starts).astype(np.int32).reshape(-1, len(STYLES)).max(1)


def _tokenised(
  captions: Iterable[Mapping[str, str]], tokenizer: Tokenizer, limit: int, counts: list[np.ndarray]
) -> Iterator[np.ndarray]:
  """The ids of some captions at a time; how many each has is added to `counts`."""
  texts = (each[style] for each in captions for style in STYLES)
  while some := list(itertools.islice(texts, TOGETHER)):
    ids = [tokenizer.encode(text, limit) for text in some]
    counts.append(np.fromiter(map(len, ids), np.int32, len(ids)))
    yield np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(counts[-1].sum()))


def _starts(counts: Sequence[np.ndarray]) -> np.ndarray:
  return np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]), dtype=np.int64)
