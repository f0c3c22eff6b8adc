"""The base of every error that a user can mend: a command prints it as one line, and any other keeps its traceback."""

import contextlib
import os
from collections.abc import Iterator


class SoraError(Exception):
  """One line that says what is wrong, where, and what to do."""


class InputError(SoraError, ValueError):
  """A setting, an argument or a file is not what it must be."""


@contextlib.contextmanager
def path_errors(name: str) -> Iterator[None]:
  """Turns the system's errors about a user's files (missing, forbidden, disk full) into one line that names the file.

  Args:
    name: what is being read or written, for errors that don't say.

  Raises:
    InputError: in the place of an OSError, or of the error of an address whose client is missing.
  """
  try:
    yield
  except OSError as error:
    where = error.filename if isinstance(error.filename, str) else name
    is_file = isinstance(error, FileExistsError | NotADirectoryError) and not os.path.isdir(where)
    what = "a file stands where a folder must be" if is_file else error.strerror or error
    raise InputError(f"{where}: {what}") from error
  except ImportError as error:
    if "://" not in name or isinstance(error, ModuleNotFoundError):
      raise
    raise InputError(f"{name}: {error}") from error  # the client of this kind of bucket is not installed
