"""What a model of all worlds can do: how far each score is on the way from guessing to its own autoencoder.

    python benchmarks/exam_table.py EXAM.json [--base EXAM.json] [--json]

EXAM.json is what `sora evaluate --suite worlds` has left in a workdir's folder `evaluations`, or that workdir; --base
is the exam of the same model with less compute. A table; the last line is one JSON object: {worlds: {NAME: {way, low,
high, base, attributes: {NAME: {...}}}}, errors, way, protocol}. The way is (score - chance) / (through the autoencoder
- chance), averaged over a world's attributes on long prompts; attributes that guessing gets right within 5 points are
left out.
"""

import argparse
import json
from collections.abc import Iterable

import numpy as np

from sora_jax.jobs import exams

LEAST = 0.05  # between chance and the autoencoder: less tells nothing


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("exam")
  parser.add_argument("--base", help="the exam of a model with less compute")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  found = measured(exams.read(given.exam, "worlds"), exams.read(given.base, "worlds") if given.base else None)
  if not given.json:
    print(table(found))
  print(json.dumps(found))


def measured(exam: dict, base: dict | None) -> dict:
  if base and base["protocol"] != exam["protocol"]:
    raise SystemExit(f"the exams are of unlike protocols: {exam['protocol']} and {base['protocol']}")
  worlds: dict[str, dict] = {}
  for name, score in exam["scores"].items():
    world, attribute = name.split(".", 1)
    row = {key: score[key] for key in ("mean", "low", "high", "autoencoder", "ceiling", "chance")}
    row["way"] = way(score)
    if base:  # which may have been asked with long prompts alone
      row["base"] = base["scores"].get(name, {}).get("mean")
    worlds.setdefault(world, {"attributes": {}})["attributes"][attribute] = row
  for world, found in worlds.items():
    named = {name: row for name, row in found["attributes"].items() if "," not in name and row["way"] is not None}
    found["way"] = mean(row["way"] for row in named.values())
    found["low"], found["high"] = interval(exam, world, named) if named else (None, None)
    if base:
      ways = [
        way(base["scores"][f"{world}.{name}"] | {k: row[k] for k in ("autoencoder", "chance")})
        for name, row in named.items()
      ]
      found["base"] = mean(ways)
  every = [
    row["way"]
    for found in worlds.values()
    for name, row in found["attributes"].items()
    if "," not in name and row["way"] is not None
  ]
  errors: dict[str, dict] = {}
  for name, medians in exam.get("errors", {}).items():
    what, _, kind = name.partition(", ")
    errors.setdefault(what, {})[kind or "long prompt"] = medians
  return {"worlds": worlds, "errors": errors, "way": mean(every), "protocol": exam["protocol"]}


def mean(ways: Iterable[float | None]) -> float | None:
  known = [way for way in ways if way is not None]
  return round(float(np.mean(known)), 4) if known else None


def way(score: dict) -> float | None:
  """From guessing (0) to what the autoencoder lets through (1); None where these hardly differ."""
  span = score["autoencoder"] - score["chance"]
  return round((score["mean"] - score["chance"]) / span, 4) if span > LEAST else None


def interval(exam: dict, world: str, named: dict, draws: int = 2000) -> tuple[float, float]:
  """95 % of the way's mean over resampled clips of the world."""
  marks = np.array([[np.nan if m is None else m for m in exam["marks"][f"{world}.{name}"]] for name in named])
  chance, through = (np.array([row[k] for row in named.values()]) for k in ("chance", "autoencoder"))
  rng, means = np.random.default_rng(0), []
  for _ in range(draws):
    picked = marks[:, rng.integers(0, marks.shape[1], marks.shape[1])]
    known = ~np.isnan(picked).all(1)
    ways = (np.nanmean(picked[known], 1) - chance[known]) / (through - chance)[known]
    means.append(ways.mean())
  low, high = np.percentile(means, [2.5, 97.5])
  return round(float(low), 4), round(float(high), 4)


def table(found: dict) -> str:
  """As in the model card: a line an attribute, long prompts, short ones and given frames beside each other, in %."""
  percent = lambda value: "" if value is None else f"{100 * value:.0f}"
  lines = [
    "| world | attribute | long prompt | short | frames given | through autoencoder | chance |",
    "|---|---|---|---|---|---|---|",
  ]
  for world, each in found["worlds"].items():
    rows = each["attributes"]
    for name, row in rows.items():
      if "," in name:
        continue
      more = [rows.get(f"{name}, {kind}", {}).get("mean") for kind in ("short prompt", "frames given")]
      interval = f"{percent(row['mean'])} ({percent(row['low'])}–{percent(row['high'])})"
      cells = [world, name, interval, *map(percent, more), percent(row["autoencoder"]), percent(row["chance"])]
      lines.append(f"| {' | '.join(cells)} |")
  lines += ["", "| world | share of the way | less compute |", "|---|---|---|"]
  for world, each in found["worlds"].items():
    interval = f"{percent(each['way'])} ({percent(each['low'])}–{percent(each['high'])})"
    lines.append(f"| {world} | {interval} | {percent(each.get('base'))} |")
  lines.append(f"| all attributes | {percent(found['way'])} | |")
  kinds = ("long prompt", "short prompt", "frames given")
  lines += [
    "",
    "| median error | long prompt | short | frames given | through autoencoder | real renders |",
    "|---|---|---|---|---|---|",
  ]
  for name, each in found["errors"].items():
    medians = [each.get(kind, {}).get("median") for kind in kinds]
    medians += [next(iter(each.values())).get(whose) for whose in ("autoencoder", "ceiling")]
    lines.append(f"| {name} | {' | '.join('' if value is None else f'{value:.2f}' for value in medians)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
