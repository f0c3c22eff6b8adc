"""`sora compare`: what two runs' exams and losses differ by, with intervals."""

import json
from typing import Any

from etils import epath

from sora_jax.errors import InputError
from sora_jax.evaluation.worlds import difference
from sora_jax.jobs import exams
from sora_jax.train.metrics import read_metrics

SUITE = "worlds"
# Settings of the data that held-out clips are made by.
HELD_OUT = ("source", "held_out", "held_out_clips", "sizes", "frames", "rates", "fps", "max_frames", "max_tokens")


def compare(first: str, second: str) -> dict[str, Any]:
  """The second run beside the first.

  Args:
    first, second: workdirs in which `sora evaluate --suite worlds` has left its JSON, or such files themselves; of
      workdirs without exams the losses alone are compared.

  Returns:
    {first, second, protocol, scores: {name: {first, second, difference, low, high}}, left_out: names that only one has,
    curves: {name: [[step, first, second], ...]}}: a difference is of the second less the first, clip by clip, with
    its 95 % interval; curves are of the losses on held-out clips at the steps that both logged, for workdirs that
    have them, of the same clips.

  Raises:
    InputError: a run has no exam and the other has, or both have none and no losses of the same clips either, or exams
      are of unlike protocols.
  """
  curves = _curves(first, second)
  examined = any(exams.path_of(run, SUITE).is_file() for run in (first, second))
  if other := curves and _other_clips(first, second):
    if not examined:
      raise InputError(
        f"{first} and {second} have other held-out clips ({other} differs): their losses can't be compared"
      )
    curves = {}
  if curves and not examined:
    return {"first": first, "second": second, "protocol": None, "scores": {}, "left_out": [], "curves": curves}
  found = [exams.read(run, SUITE) for run in (first, second)]
  protocols = [exam["protocol"] for exam in found]
  if protocols[0] != protocols[1]:
    raise InputError(
      f"{first} was examined by protocol {protocols[0]} and {second} by {protocols[1]}: figures of unlike protocols "
      "can't be compared; run sora evaluate --suite worlds on both with the same --clips"
    )
  scores = {}
  for name in sorted(found[0]["marks"].keys() & found[1]["marks"].keys()):
    some, others = (exam["marks"][name] for exam in found)
    if len(some) == len(others) and any(None not in pair for pair in zip(some, others, strict=True)):
      gap, low, high = difference(some, others)
      means = (exam["scores"][name]["mean"] for exam in found)
      numbers = (*means, *(round(value, 4) for value in (gap, low, high)))
      scores[name] = dict(zip(("first", "second", "difference", "low", "high"), numbers, strict=True))
  left_out = sorted((found[0]["marks"].keys() | found[1]["marks"].keys()) - scores.keys())
  return {
    "first": first,
    "second": second,
    "protocol": protocols[0],
    "scores": scores,
    "left_out": left_out,
    "curves": curves,
  }


def _other_clips(first: str, second: str) -> str | None:
  """A setting by which two runs' held-out clips differ; None where there is none, or a run has no config."""
  paths = [epath.Path(run) / "config.json" for run in (first, second)]
  if not all(path.is_file() for path in paths):
    return None
  try:
    some, others = (json.loads(path.read_text())["data"] for path in paths)
    return next((f"data.{name}" for name in HELD_OUT if some.get(name) != others.get(name)), None)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{paths[0]} or {paths[1]} is no run's config: {error!r}") from error


def _curves(first: str, second: str) -> dict[str, list[list[float]]]:
  """Losses on held-out clips at the steps that both runs logged."""
  logs = [epath.Path(run) / "logs" for run in (first, second)]
  if not all(log.is_dir() for log in logs):
    return {}
  some, others = ({row["step"]: row for row in read_metrics(log)} for log in logs)
  curves: dict[str, list[list[float]]] = {}
  for step in sorted(some.keys() & others.keys()):
    for name in sorted(some[step].keys() & others[step].keys()):
      if name.startswith("held_out"):
        curves.setdefault(name, []).append([step, some[step][name], others[step][name]])
  return curves
