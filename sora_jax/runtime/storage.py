"""Files on this machine or in a bucket. Decoders and ArrayRecord read local files: others are copied first.

What is read from a bucket is asked for again where the bucket fails for a moment. A file that a bucket does not give is
an error that ends a run: it says nothing of the file, so no clip may be lost for it.
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

from etils import epath

from sora_jax.errors import SoraError

TRIES, PAUSE = 5, 1.0  # of a request to a bucket; seconds before the second, and twice as many before each one after it
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)  # answers that stay

Found = TypeVar("Found")


class StorageError(SoraError, RuntimeError):
  """A bucket does not give a file; the message names it."""


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address, such as gs://bucket/name."""
  return "://" in os.fspath(path)


def tried(path: str | os.PathLike, read: Callable[[], Found]) -> Found:
  """What `read` makes of `path`; where that fails and it is in a bucket, it is tried again, and stderr says so.

  Raises:
    StorageError: all tries have failed.
  """
  number = 0
  while True:
    number += 1
    try:
      return read()
    except LASTING:
      raise
    except Exception as error:  # clients of buckets have kinds of their own
      if not is_remote(path) or isinstance(error, OSError) and error.errno == errno.ENOSPC:  # this machine's disk
        raise
      said = f"{os.fspath(path)}: can't be read ({' '.join(str(error).split())[:300] or type(error).__name__})"
      if number == TRIES:
        raise StorageError(f"{said}, tried {TRIES} times: run the command again when the bucket answers") from error
      pause = PAUSE * 2 ** (number - 1)
      print(f"{said}: try {number + 1} of {TRIES} in {pause:g} s", file=sys.stderr)
      time.sleep(pause)


def read_bytes(path: str | os.PathLike) -> bytes:
  """The content of a file.

  Raises:
    OSError, StorageError: it can't be read.
  """
  return tried(path, epath.Path(path).read_bytes)


def size(path: str | os.PathLike) -> int:
  """Bytes of a file."""
  if is_remote(path):
    return tried(path, epath.Path(path).stat).length
  return os.path.getsize(path)  # epath also looks the owner up by name, which fails where there is none


@contextlib.contextmanager
def local_file(path: str | os.PathLike) -> Iterator[str]:
  """A local file with the content of `path`: itself, or a copy that is gone afterwards."""
  if not is_remote(path):
    yield os.fspath(path)
    return
  with tempfile.NamedTemporaryFile(prefix="sora-") as copy:
    _download(path, copy)
    yield copy.name


@contextlib.contextmanager
def bytes_as_file(content: bytes) -> Iterator[str]:
  """A local file that holds `content`, gone afterwards."""
  with tempfile.NamedTemporaryFile(prefix="sora-") as file:
    file.write(content)
    file.flush()
    yield file.name


def kept_local(path: str | os.PathLike) -> str:
  """A local file with the content of `path`; a copy is kept until this process ends, and made again when it changes."""
  if not is_remote(path):
    return os.fspath(path)
  status = tried(path, epath.Path(path).stat)
  with _keeping:  # two threads that want one file copy it once
    return _kept_copy(os.fspath(path), status.length, status.mtime)


_keeping = threading.Lock()


@functools.cache
def _kept_copy(path: str, *version: int) -> str:
  del version  # a copy for each
  handle, kept = tempfile.mkstemp(dir=_kept_folder())
  with os.fdopen(handle, "wb") as copy:
    _download(path, copy)
  return kept


@functools.cache
def _kept_folder() -> str:
  """A folder of this process, which holds its lock as long as it lives; those of processes that were killed go."""
  for other in pathlib.Path(tempfile.gettempdir()).glob(f"{_KEPT}*"):
    with contextlib.suppress(OSError), open(other / _LOCK) as lock:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(other, ignore_errors=True)
  folder = tempfile.mkdtemp(prefix=_KEPT)
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  _locks.append(open(os.path.join(folder, _LOCK), "w"))
  fcntl.flock(_locks[0], fcntl.LOCK_EX)
  return folder


_KEPT, _LOCK = "sora-kept-", "lock"
_locks: list[IO[str]] = []  # open as long as this process lives


def _download(path: str | os.PathLike, to: IO[bytes]) -> None:
  def copy() -> None:
    to.seek(0)
    to.truncate()  # what an earlier try has left
    with epath.Path(path).open("rb") as content:
      shutil.copyfileobj(content, to, 2**20)
    to.flush()

  tried(path, copy)


@contextlib.contextmanager
def written_local(path: str | os.PathLike) -> Iterator[str]:
  """A local file to write, which becomes `path`, whole, when the context ends without an error."""
  if is_remote(path):
    with tempfile.TemporaryDirectory(prefix="sora-") as folder:
      written = os.path.join(folder, "file")
      yield written
      with open(written, "rb") as content:
        _upload(content, epath.Path(path))
    return
  part = f"{os.fspath(path)}.{uuid.uuid4().hex}.part"  # of its own: another process may write the same file
  try:
    yield part
    os.replace(part, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(part)


def _upload(content: IO[bytes], path: epath.Path) -> None:
  try:
    with path.open("wb") as to:
      shutil.copyfileobj(content, to, 2**20)
  except BaseException:
    # Leaving the context has closed the object, and so made one of the part that was written.
    with contextlib.suppress(Exception):
      path.unlink()
    raise


def check_writable(path: str | os.PathLike) -> None:
  """Makes a file's folder, and sees that the file can be written in it, before long work whose result it is to hold.

  Raises:
    OSError: it can't; of a bucket only what making the folder tells.
  """
  here = epath.Path(path)
  here.parent.mkdir(parents=True, exist_ok=True)
  if not is_remote(path):
    if os.path.isdir(path):
      raise IsADirectoryError(errno.EISDIR, "a folder stands where a file must be", os.fspath(path))
    tempfile.TemporaryFile(dir=here.parent).close()


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all: on this machine by renaming; a bucket shows an object when it is complete."""
  with written_local(path) as local:
    pathlib.Path(local).write_bytes(text.encode())
