"""What the files of a folder hold, as digests: a file is read only where its size or times are not those it had.

The digests are kept in the user's cache folder. A file that was copied or touched has other times and the same digest,
so what was made from it stays good.
"""

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import IO

from etils import epath

from sora_jax.runtime import process, storage

WHOLE = 2**26  # bytes: of a larger file, SAMPLES pieces are read
SAMPLES, PIECE = 64, 2**20


def media_digests(folder: epath.Path, files: Iterable[str]) -> dict[str, str]:
  """The digest of each file; for one in a bucket, its size and time of change, which nobody can set there."""
  if storage.is_remote(folder):
    return {file: _remote(folder / file) for file in files}
  cache = _cache(os.path.realpath(folder))
  known = _read(cache)
  found: dict[str, list] = {}
  for file in files:
    status = os.stat(folder / file)
    times = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    old = known.get(file)
    found[file] = old if old and old[:3] == times else [*times, _content(os.fspath(folder / file))]
  if found != known:
    _write(cache, found)
  return {file: row[3] for file, row in found.items()}


def _remote(path: epath.Path) -> str:
  status = storage.tried(path, path.stat)
  if status.mtime:
    return f"{status.length} {status.mtime}"
  with storage.local_file(path) as local:
    return _content(local)


def _content(path: str) -> str:
  """sha256 (hex) of a file; of a large one, of its size and pieces that are spread evenly over it."""
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    return hashlib.file_digest(file, "sha256").hexdigest() if size <= WHOLE else _sampled(file, size)


def _sampled(file: IO[bytes], size: int) -> str:
  total = hashlib.sha256(str(size).encode())
  for sample in range(SAMPLES):
    file.seek((size - PIECE) * sample // (SAMPLES - 1))
    total.update(file.read(PIECE))
  return total.hexdigest()


def _cache(folder: str) -> pathlib.Path:
  return process.caches() / "media" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()}.json"


def _read(cache: pathlib.Path) -> dict[str, list]:
  try:
    known = json.loads(cache.read_bytes())
    return {file: row for file, row in known.items() if [*map(type, row)] == [int, int, int, str]}
  except (OSError, ValueError, TypeError, AttributeError, RecursionError):
    return {}  # none yet, or damaged


def _write(cache: pathlib.Path, found: dict[str, list]) -> None:
  try:
    cache.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(cache, json.dumps(found))
  except OSError as error:
    print(f"{cache}: {error.strerror}: all files are read again next time", file=sys.stderr)
