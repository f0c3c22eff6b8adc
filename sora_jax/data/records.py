"""Clips in ArrayRecord shards: few large files that any number of readers opens anywhere, with an index beside them.

    folder/records.json                        version, shards, clips, and the digest of the index
    folder/index.jsonl                         a line a clip: id, captions, probe, digest of its file
    folder/clips-00000-of-00008.array_record   a record a clip: its line of the index, a line feed, its file's bytes

records.json is written last: without it the folder is not a source. Nothing in it is trusted: names of files are made
here, and a record is read only where it is the one that the index names.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from sora_jax.data.files import MAX_CAPTION, Entry, FileSource, Fit, View, fingerprint_of, is_clean, reopened
from sora_jax.errors import InputError
from sora_jax.runtime import storage
from sora_jax.video.io import Probe, UnreadableFile

VERSION = 1
META = "records.json"
INDEX = "index.jsonl"
MAX_SHARDS = 100_000
MAX_NUMBER = 2**31  # of pixels, frames, seconds or frames per second: more is nonsense, and overflows
MAX_ID = 5000  # characters: a path, and the times of a scene
_KEYS = {"id", "short", "long", "sha256", *(field.name for field in dataclasses.fields(Probe))}


class BadRecords(InputError):
  """A folder of records that is damaged, foreign or not complete; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One clip to be written: `media` is a whole video or image file."""

  id: str
  captions: dict[str, str]
  probe: Probe
  media: bytes


def shard_name(number: int, shards: int) -> str:
  return f"clips-{number:05d}-of-{shards:05d}.array_record"


def write_shard(path: str | os.PathLike, records: Iterable[Record]) -> list[str]:
  """Writes one shard, whole or not at all; the same records give the same bytes.

  Returns:
    The lines of the index, one a record.

  Raises:
    BadRecords: a record that could not be read back.
  """
  path, lines = epath.Path(path), []
  with storage.written_local(path) as local:
    writer = ArrayRecordWriter(local, "group_size:1")
    try:
      for record in records:
        lines.append(_line(record))
        _read_line(path, len(lines), lines[-1].encode())
        writer.write(lines[-1].encode() + b"\n" + record.media)
    finally:
      writer.close()
  return lines


def _line(record: Record) -> str:
  digest = hashlib.sha256(record.media).hexdigest()
  return json.dumps({"id": record.id, **record.captions, **vars(record.probe), "sha256": digest})


def finish(folder: str | os.PathLike, shards: Sequence[Sequence[str]]) -> None:
  """Makes a folder of written shards a source: `shards` are their lines of the index."""
  index = "".join(f"{line}\n" for lines in shards for line in lines)
  meta = {
    "version": VERSION,
    "shards": [len(lines) for lines in shards],
    "index": hashlib.sha256(index.encode()).hexdigest(),
  }
  storage.write_text(epath.Path(folder) / INDEX, index)
  storage.write_text(epath.Path(folder) / META, json.dumps(meta) + "\n")


def is_records(folder: str | os.PathLike) -> bool:
  return (epath.Path(folder) / META).exists()


class RecordSource(FileSource):
  """The clips of a folder of shards, in their order."""

  def __init__(self, folder: str | os.PathLike, *, fps: float = 0.0, max_frames: int, fit: Fit | None = None):
    """Reads the index; opens no shard yet.

    Args:
      folder: see the head of this file.
      fps, max_frames, fit: see `files.View`.

    Raises:
      BadRecords: the index is damaged or not of this version.
      ValueError: an argument out of range.
    """
    view = View(fps, max_frames, fit)
    view.check()
    self.folder = epath.Path(folder)
    self.shards, digest = _read_meta(self.folder)
    self.ends = list(itertools.accumulate(self.shards))
    entries, self.digests = _read_index(self.folder, sum(self.shards), digest)
    self._local: dict[int, str] = {}  # the file of a shard, or its copy
    media = fingerprint_of((each.file, digest.hex()) for each, digest in zip(entries, self.digests, strict=True))
    super().__init__(entries, (), media, view)

  def __reduce__(self):
    return reopened, (RecordSource, {"folder": os.fspath(self.folder), **self.view._asdict()}, self.fingerprint)

  @contextlib.contextmanager
  def open_file(self, index: int) -> Iterator[str]:
    shard, place = self._place(index)
    name = shard_name(shard, len(self.shards))
    try:
      line, _, media = self._read(shard, place).partition(b"\n")
      found = json.loads(line)["id"]
    except storage.StorageError:
      raise
    except Exception as error:  # as many kinds as there are ways for bytes to be wrong
      reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
      raise UnreadableFile(f"record {place} of {name} is damaged: {reason}") from error
    if found != self.entries[index].file:
      raise UnreadableFile(f"record {place} of {name} is of {found!r}: the index is of other shards")
    if hashlib.sha256(media).digest() != self.digests[index]:
      raise UnreadableFile(f"record {place} of {name} holds another file than the index names")
    with storage.bytes_as_file(media) as path:
      yield path

  def _read(self, shard: int, place: int) -> bytes:
    if shard not in self._local:
      self._local[shard] = storage.kept_local(self.folder / shard_name(shard, len(self.shards)))
    content = _reader(self._local[shard]).read([place])[0]
    if not content:  # what a reader gives where a shard was cut at the end of a block
      raise EOFError("the shard lacks it")
    return content

  def _place(self, index: int) -> tuple[int, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    shard = bisect.bisect_right(self.ends, index)
    return shard, index - self.ends[shard] + self.shards[shard]


def _reader(path: str) -> ArrayRecordReader:
  status = os.stat(path)
  return _open_reader(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)  # open files
def _open_reader(path: str, *version: int) -> ArrayRecordReader:
  del version  # a file that is written again is opened again
  reader = ArrayRecordReader(path)
  if not reader.ok():
    reader.read([0])  # raises the reason
  return reader


def _read_meta(folder: epath.Path) -> tuple[list[int], str]:
  """(records of each shard, digest of the index)."""
  path = folder / META
  try:
    meta = json.loads(storage.read_bytes(path))
    version, shards, digest = meta["version"], meta["shards"], meta["index"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise BadRecords(f"{path}: not the {META} of a folder of records ({type(error).__name__})") from error
  if version != VERSION:
    raise BadRecords(f"{path}: version {version!r}; this program reads {VERSION}: build the records again")
  whole = isinstance(shards, list) and all(type(count) is int and count >= 0 for count in shards)
  if not whole or not 0 < len(shards) <= MAX_SHARDS or not isinstance(digest, str):
    raise BadRecords(f"{path}: needs the count of each of 1 to {MAX_SHARDS} shards, and the digest of the index")
  return shards, digest


def _read_index(folder: epath.Path, count: int, digest: str) -> tuple[list[Entry], list[bytes]]:
  """(entries, digest of each one's file)."""
  path = folder / INDEX
  try:
    content = storage.read_bytes(path)
  except OSError as error:
    raise BadRecords(f"{path}: {error.strerror or 'missing'}") from error
  if hashlib.sha256(content).hexdigest() != digest:
    raise BadRecords(f"{path}: not the index that {META} names: it was changed, or is not whole")
  rows = [_read_line(path, number, line) for number, line in enumerate(content.splitlines(), 1)]
  if len(rows) != count:
    raise BadRecords(f"{path}: {len(rows)} lines for {count} records")
  if not rows:
    raise BadRecords(f"{path}: no clips")
  return [entry for entry, _ in rows], [digest for _, digest in rows]


def _read_line(path: epath.Path, number: int, line: bytes) -> tuple[Entry, bytes]:
  """
  Raises:
    BadRecords: a value is missing, of another type, or out of range.
  """
  try:
    row = json.loads(line)
    probe = Probe(**{name: row[name] for name in ("height", "width", "seconds", "fps", "frames")})
    texts = [row["id"], row["short"], row["long"]]
    digest = bytes.fromhex(row["sha256"])
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise BadRecords(f"{path} line {number}: not a clip with {', '.join(sorted(_KEYS))}") from error
  sizes = (probe.height, probe.width, probe.frames)
  times = (probe.seconds, probe.fps)
  if not all(type(size) is int and 0 < size < MAX_NUMBER for size in sizes):
    raise BadRecords(f"{path} line {number}: height, width and frames are whole numbers above 0, not {sizes}")
  if not all(type(time) in (int, float) and 0 <= time < MAX_NUMBER for time in times):
    raise BadRecords(f"{path} line {number}: seconds and fps are numbers from 0, not {times}")
  for text, most in zip(texts, (MAX_ID, MAX_CAPTION, MAX_CAPTION), strict=True):
    if not isinstance(text, str) or not text.strip() or len(text) > most or not is_clean(text):
      raise BadRecords(
        f"{path} line {number}: id and captions are texts of at most {MAX_ID} and {MAX_CAPTION} characters"
      )
  return Entry(texts[0], number, {"short": texts[1], "long": texts[2]}, probe), digest
