"""`sora compare`: what two runs' exams and losses differ by, with intervals."""

import json
from typing import Any

from etils import epath

from sora_jax.errors import InputError, path_errors
from sora_jax.evaluation.worlds import difference
from sora_jax.jobs.evaluate import folder_of
from sora_jax.train.metrics import read_metrics


def compare(first: str, second: str) -> dict[str, Any]:
  """The second run beside the first.

  Args:
    first, second: workdirs in which `sora evaluate --suite worlds` has left its JSON, or such files themselves; of
      workdirs without exams the losses alone are compared.

  Returns:
    {first, second, protocol, scores: {name: {first, second, difference, low, high}}, left_out: names that only one has,
    curves: {name: [[step, first, second], ...]}}: a difference is of the second less the first, clip by clip, with
    its 95 % interval; curves are of the losses on held-out clips at the steps that both logged, for workdirs that
    have them.

  Raises:
    InputError: a run has no exam and the other has, or both have none and no losses either, or exams are of unlike
      protocols.
  """
  curves = _curves(first, second)
  if curves and not any(exam_of(run).is_file() for run in (first, second)):
    return {"first": first, "second": second, "protocol": None, "scores": {}, "left_out": [], "curves": curves}
  exams = [_exam(run) for run in (first, second)]
  protocols = [exam["protocol"] for exam in exams]
  if protocols[0] != protocols[1]:
    raise InputError(
      f"{first} was examined by protocol {protocols[0]} and {second} by {protocols[1]}: figures of unlike protocols "
      "can't be compared; run sora evaluate --suite worlds on both with the same --clips"
    )
  scores = {}
  for name in sorted(exams[0]["marks"].keys() & exams[1]["marks"].keys()):
    some, others = (exam["marks"][name] for exam in exams)
    if len(some) == len(others) and any(None not in pair for pair in zip(some, others, strict=True)):
      gap, low, high = difference(some, others)
      means = (exam["scores"][name]["mean"] for exam in exams)
      numbers = (*means, *(round(value, 4) for value in (gap, low, high)))
      scores[name] = dict(zip(("first", "second", "difference", "low", "high"), numbers, strict=True))
  left_out = sorted((exams[0]["marks"].keys() | exams[1]["marks"].keys()) - scores.keys())
  return {
    "first": first,
    "second": second,
    "protocol": protocols[0],
    "scores": scores,
    "left_out": left_out,
    "curves": curves,
  }


def exam_of(run: str) -> epath.Path:
  """The file of a run's exam, which need not be there."""
  path = epath.Path(run)
  return path if path.is_file() else folder_of(run) / "worlds.json"


def _exam(run: str) -> dict[str, Any]:
  """
  Raises:
    InputError: there is none, or it can't be read.
  """
  path = exam_of(run)
  if not path.is_file():
    raise InputError(f"{run} has no exam: run sora evaluate --suite worlds --checkpoint {run} first")
  try:
    with path_errors(str(path)):
      found = json.loads(path.read_text())
    ok = isinstance(found["protocol"], str) and all("mean" in found["scores"][name] for name in found["marks"])
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path} is no JSON of sora evaluate --suite worlds: {error!r}") from error
  if not ok:
    raise InputError(f"{path} is no JSON of sora evaluate --suite worlds")
  return found


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
