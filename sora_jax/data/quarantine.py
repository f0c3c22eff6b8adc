"""The clips that a run does without: a list on disk with their reasons, and the share of them at which it stops."""

import json
import os
from collections.abc import Sequence

from etils import epath

from sora_jax.data.files import Dropped, describe_dropped
from sora_jax.data.folder import UNNAMED
from sora_jax.errors import InputError
from sora_jax.runtime import storage

FILE = "quarantine.jsonl"


class TooManyBad(InputError):
  """More of the source can't be used than the config allows."""


def write(folder: str | os.PathLike, bad: Sequence[Dropped]) -> None:
  """Lists `bad` in the folder's quarantine.jsonl, {file, line, reason} a line."""
  epath.Path(folder).mkdir(parents=True, exist_ok=True)
  storage.write_text(epath.Path(folder) / FILE, "".join(json.dumps(vars(each)) + "\n" for each in bad))


def stop_at(max_bad: float, bad: Sequence[Dropped], good: int) -> None:
  """Stops a run where too many lines can't be used. Files that no line names are not counted.

  Args:
    max_bad: the share of all lines that may be bad.
    good: how many lines are not.

  Raises:
    TooManyBad: more are; the message has the counts and reasons.
  """
  asked = [each for each in bad if each.reason != UNNAMED]
  if len(asked) > max_bad * (len(asked) + good):
    raise TooManyBad(
      f"{len(asked)} of {len(asked) + good} clips can't be used, more than config.data.max_bad={max_bad:g} allows: "
      f"{describe_dropped(asked)}; sora data check names them"
    )
