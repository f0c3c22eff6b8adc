"""Does a trained run hold at other sizes, durations and rates than those of its training?

    python benchmarks/sizes.py --workdir out/demo/run [--clips 24] [--world shapes] [--json]

The exam on held-out combinations at the points of `sora_jax/evaluation/sizes.py`: sizes that were trained on, sizes and
durations between them that never were, and sides and durations 1.5 times beyond. At most 40 points, an exam each. The
table has the share of clips with the right answer, with 95 % intervals; the last line is one JSON object: {workdir,
step, seconds, points: [{width, height, frames, fps, kind, tokens, clips, scores}], kinds: {kind: {points, clips,
scores}}}, scores being {attribute: {mean, low, high, ceiling, autoencoder, chance}}.
"""

import argparse
import json
import sys
import time

from sora_jax.runtime import process


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="of a trained transformer, or an exported folder")
  parser.add_argument("--clips", type=int, default=24, help="held-out clips at each point")
  parser.add_argument("--world", help="which of its worlds, where it was trained on several")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  process.keep_freed_memory()
  process.compile_sooner()
  from sora_jax.evaluation import sizes  # which imports JAX
  from sora_jax.inference.generator import Generator, Sampling

  started = time.monotonic()
  generator = Generator.load(given.workdir)
  wanted = sizes.points(generator.config.data, generator.grid)
  told = lambda row: print(f"sizes: {' '.join(map(str, row.point))} done", file=sys.stderr, flush=True)
  sampling = Sampling.of(generator.config)
  rows = sizes.examine(generator, wanted, sampling, given.clips, progress=told, world=given.world)
  found = sizes.report(rows)
  if not given.json:
    table(found)
  about = {"workdir": given.workdir, "step": generator.step, "seconds": round(time.monotonic() - started, 1)}
  print(json.dumps(about | found))


def table(found: dict) -> None:
  names = list(next(iter(found["kinds"].values()))["scores"])
  print("| size | frames | fps | kind | tokens | " + " | ".join(names) + " |")
  print("|---" * (5 + len(names)) + "|")
  for each in found["points"]:
    size = f"{each['width']}x{each['height']} | {each['frames']} | {each['fps']:g} | {each['kind']} | {each['tokens']}"
    print(f"| {size} | " + " | ".join(cell(each["scores"].get(name)) for name in names) + " |")
  for kind, each in found["kinds"].items():
    cells = " | ".join(cell(each["scores"].get(name)) for name in names)
    print(f"| {each['points']} points, {each['clips']} clips | | | {kind} | | {cells} |")


def cell(score: dict | None) -> str:
  """The mean, its interval, and the ceiling where that is below 1."""
  if score is None:
    return ""
  most = f" of {score['ceiling']:.2f}" if score["ceiling"] < 1 else ""
  return f"{score['mean']:.2f} ({score['low']:.2f}-{score['high']:.2f}){most}"


if __name__ == "__main__":
  main()
