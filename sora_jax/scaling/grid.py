"""A sweep's runs: every combination of a grid's values, each with a name of its own.

A grid is a list of (key, values). A key is a setting of the config, several with commas between them whose values go
together, or FLOPS, the budget of a run.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from sora_jax.errors import InputError

FLOPS = "flops"  # floating-point operations of a run's forward and backward passes
LONGEST = 120  # letters of a name

Grid = Sequence[tuple[str, Sequence[Any]]]


def combinations(grid: Grid) -> dict[str, dict[str, Any]]:
  """{name: {key: value}} of every run, the last key varying fastest.

  Raises:
    InputError: a key or a run is there twice, or values don't go with their keys.
  """
  choices = [_choices(keys, values) for keys, values in grid]
  keys = [key for each in choices for key in each[0]]
  if twice := {key for key in keys if keys.count(key) > 1}:
    raise InputError(f"a grid has {min(twice)} twice: give all its values at once")
  varied = {key for each in choices for key in each[0] if len({repr(one[key]) for one in each}) > 1}
  runs: dict[str, dict[str, Any]] = {}
  for chosen in itertools.product(*choices):
    settings = {key: value for part in chosen for key, value in part.items()}
    name = name_of({key: value for key, value in settings.items() if key in varied})
    if name in runs:
      raise InputError(f"a grid has the run {name} twice: give each value once")
    runs[name] = settings
  return runs


def _choices(keys: str, values: Sequence[Any]) -> list[dict[str, Any]]:
  names = [key.strip() for key in keys.split(",")]
  if not len(values):
    raise InputError(f"a grid has no values for {keys}")
  together = len(names) > 1
  for value in values if together else ():
    if not isinstance(value, list | tuple) or len(value) != len(names):
      raise InputError(f"a grid's {keys} needs {len(names)} values at a time, not {value}")
  return [dict(zip(names, value if together else (value,), strict=True)) for value in values]


def name_of(settings: dict[str, Any]) -> str:
  """A folder's name that says what varies, by the last words of its keys."""
  last = {key: key.rpartition(".")[2] for key in settings}
  words = [
    f"{key if list(last.values()).count(last[key]) > 1 else last[key]}={shown(value)}"
    for key, value in settings.items()
  ]
  return re.sub(r"[^A-Za-z0-9.=_+-]+", "-", "_".join(words)).strip("-")[:LONGEST] or "run"


def shown(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)
