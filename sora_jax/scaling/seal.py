"""Predictions that are written down before what they predict is run: a file with the hash of its own content.

A sweep's large runs don't start without it. The hash finds what was changed by accident; that the file is older than
what it predicts is shown by whoever keeps its history, as a commit does.
"""

import hashlib
import json
import os
import time
from typing import Any

from etils import epath

from sora_jax.errors import InputError
from sora_jax.runtime import storage

FILE = "sealed.json"


def digest(content: dict[str, Any]) -> str:
  """The sha256 of everything but the hash itself."""
  kept = {key: value for key, value in content.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def write(folder: str | os.PathLike, content: dict[str, Any]) -> dict[str, Any]:
  """Seals predictions, once.

  Raises:
    InputError: the folder has sealed ones already.
  """
  path = epath.Path(folder) / FILE
  if path.exists():
    raise InputError(f"{path} is there already: what is sealed stays; use another workdir for other predictions")
  sealed = json.loads(json.dumps(content)) | {"sealed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
  sealed["sha256"] = digest(sealed)
  storage.write_text(path, json.dumps(sealed, indent=1) + "\n")
  return sealed


def read(folder: str | os.PathLike) -> dict[str, Any] | None:
  """The sealed predictions; None where there are none.

  Raises:
    InputError: the file was changed, or can't be read.
  """
  path = epath.Path(folder) / FILE
  if not path.exists():
    return None
  try:
    content = json.loads(path.read_text())
    whole = content["sha256"] == digest(content)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{path} can't be read as sealed predictions: {error!r}") from error
  if not whole:
    raise InputError(f"{path} was changed after it was sealed: its sha256 is another one")
  return content
