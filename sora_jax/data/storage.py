"""Files on this machine or in a bucket. Decoders and ArrayRecord read local files: others are copied first."""

import atexit
import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from typing import IO

from etils import epath


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address, such as gs://bucket/name."""
  return "://" in os.fspath(path)


def size(path: str | os.PathLike) -> int:
  """Bytes of a file."""
  if is_remote(path):
    return epath.Path(path).stat().length
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
  status = epath.Path(path).stat()
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
  folder = tempfile.mkdtemp(prefix="sora-")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


def _download(path: str | os.PathLike, to: IO[bytes]) -> None:
  with epath.Path(path).open("rb") as content:
    shutil.copyfileobj(content, to, 2**20)
  to.flush()


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


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all: on this machine by renaming; a bucket shows an object when it is complete."""
  with written_local(path) as local:
    pathlib.Path(local).write_bytes(text.encode())
