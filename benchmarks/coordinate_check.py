"""The coordinate check of muP as figures: how far four steps move a transformer's activations at widths 32 to 256.

    python benchmarks/coordinate_check.py [--out docs/report] [--json]

Of the parameters that Muon trains and of those that AdamW trains, each by itself, with muP and in standard
parametrisation: the root mean square change of the features before the last layer and of the prediction, relative to
that at width 32 (`sora_jax/scaling/coordinates.py`). With muP it is to stay within a factor of 2. With --out it writes
coordinates.json and a plot of each measure there. A table; the last line is one JSON object: {command, about, widths,
moved: {MEASURE: {PART: {PARAMETRISATION: [...]}}}, worst: {PARAMETRISATION: the largest ratio of two widths}}.
"""

import argparse
import json
import math
import pathlib

from sora_jax.report.plot import Line, plot
from sora_jax.scaling import coordinates

WIDTHS = (32, 64, 128, 256)
RATE, STILL = 0.02, 1e-5  # of the part that trains, and of the other
RATES = {"Muon": (RATE, STILL), "AdamW": (STILL, RATE)}
BASES = {"muP": WIDTHS[0], "standard": None}
MEASURES = {"features": "the features before the last layer", "output": "the prediction"}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, help="a folder for the JSON and the plots")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  runs = {
    (part, kind): coordinates.measure(WIDTHS, base, rates)
    for part, rates in RATES.items()
    for kind, base in BASES.items()
  }
  moved = {
    measure: {part: {kind: relative(runs[part, kind], measure) for kind in BASES} for part in RATES}
    for measure in MEASURES
  }
  every = {kind: [moved[measure][part][kind] for measure in MEASURES for part in RATES] for kind in BASES}
  found = {
    "command": "python benchmarks/coordinate_check.py --out docs/report",
    "about": f"four steps at a rate of {RATE:g}, one batch, seed 0; relative to width {WIDTHS[0]}",
    "widths": list(WIDTHS),
    "moved": moved,
    "worst": {kind: round(max(max(row) / min(row) for row in rows), 2) for kind, rows in every.items()},
  }
  if not given.json:
    for measure, parts in moved.items():
      for part, kinds in parts.items():
        for kind, row in kinds.items():
          print(f"{measure:9s} {part:6s} {kind:9s} " + " ".join(f"{value:7.2f}" for value in row))
  if given.out:
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "coordinates.json").write_text(json.dumps(found, indent=1) + "\n")
    for measure in MEASURES:
      (given.out / f"coordinates_{measure}.svg").write_text(drawn(measure, moved[measure]))
  print(json.dumps(found))


def relative(moved: list[coordinates.Moved], measure: str) -> list[float]:
  """What steps move at each width, over that at the first one."""
  values = [getattr(each, measure) for each in moved]
  return [float(f"{value / values[0]:.4g}") for value in values]


def drawn(measure: str, parts: dict[str, dict[str, list[float]]]) -> str:
  lines = [
    Line(f"{part}, {kind}", [(place, math.log2(value)) for place, value in enumerate(row)])
    for part, kinds in parts.items()
    for kind, row in kinds.items()
  ]
  title = f"Change of {MEASURES[measure]} by four steps, log2 over width {WIDTHS[0]}"
  return plot(title, "width", lines, names=[str(width) for width in WIDTHS])


if __name__ == "__main__":
  main()
