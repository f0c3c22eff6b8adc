"""Where the JSON of `sora evaluate` is kept, and how it is read again."""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from sora_jax.checkpoints.pretrained import is_pretrained
from sora_jax.errors import InputError, path_errors

FOLDER = "evaluations"  # in the workdir
MARKED = ("worlds", "framing")  # suites that keep a mark a clip


def folder_of(checkpoint: str) -> epath.Path:
  """Where a model's evaluations are kept: in its workdir; of weights that come with the package, here."""
  return epath.Path(checkpoint.replace(":", "-") if is_pretrained(checkpoint) else checkpoint) / FOLDER


def path_of(run: str, suite: str) -> epath.Path:
  """The file of a run's evaluation, which need not be there; `run` may be that file itself."""
  path = epath.Path(run)
  return path if path.is_file() else folder_of(run) / f"{suite}.json"


def read(run: str, suite: str) -> dict[str, Any]:
  """What `sora evaluate` left of a suite.

  Args:
    run: a workdir, pretrained:NAME, or the file itself.

  Raises:
    InputError: there is none, or it is of something else.
  """
  path = path_of(run, suite)
  if not path.is_file():
    raise InputError(f"{run} has no exam: run sora evaluate --suite {suite} --checkpoint {run} first")
  try:
    with path_errors(str(path)):
      found = json.loads(path.read_text())
    marks = found["marks"] if suite in MARKED else {}
    scored = all("mean" in found["scores"][name] for name in [*found["scores"], *marks])
    marked = all(mark is None or isinstance(mark, float | int) for each in marks.values() for mark in each)
    ok = (
      scored
      and marked
      and found["suite"] == suite
      and isinstance(found["protocol"], str)
      and isinstance(found["step"], int)
    )
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{path} is no JSON of sora evaluate --suite {suite}: {error!r}") from error
  if not ok:
    raise InputError(f"{path} is no JSON of sora evaluate --suite {suite}")
  return found


def of_sweep(workdir: epath.Path, steps: Mapping[str, int], suite: str) -> dict[str, dict[str, Any]]:
  """The exams of a sweep's runs, of those that have one.

  Args:
    steps: of each run's whole training.

  Raises:
    InputError: one can't be read, or is of a run that had not ended.
  """
  found = {}
  for name, whole in steps.items():
    run = os.fspath(workdir / name)
    if path_of(run, suite).is_file():
      found[name] = read(run, suite)
      if found[name]["step"] != whole:
        raise InputError(
          f"{run} was examined at step {found[name]['step']} of {whole}: once it is done, run sora evaluate --suite "
          f"{suite} --checkpoint {run} again"
        )
  return found
