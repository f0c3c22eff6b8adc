"""The clips that a run does without: a list on disk with their reasons, and the share of them at which it stops."""

import json
import pathlib
from collections.abc import Sequence

from sora_jax.data.folder import UNNAMED, Dropped, describe_dropped

FILE = "quarantine.jsonl"


class TooManyBad(ValueError):
  """More of the source can't be used than the config allows."""


def write(folder: pathlib.Path, bad: Sequence[Dropped]) -> None:
  """Lists `bad` in the folder's quarantine.jsonl, {file, line, reason} a line."""
  folder.mkdir(parents=True, exist_ok=True)
  part = folder / f"{FILE}.part"
  part.write_text("".join(json.dumps(vars(each)) + "\n" for each in bad))
  part.replace(folder / FILE)


def stop_at(max_bad: float, bad: Sequence[Dropped], good: int) -> None:
  """Stops a run that lacks too much. A file that no line names doesn't count: nobody asked for it.

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
