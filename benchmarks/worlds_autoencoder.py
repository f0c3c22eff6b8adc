"""What does an autoencoder leave of the worlds: PSNR beside the best linear code of its size, and the exam through it.

    python benchmarks/worlds_autoencoder.py --workdir W [--clips N] [--json]

W is the workdir of an autoencoder that was trained on worlds, or of a transformer with its own in it. N held-out clips
of each world, 17 frames of 128x128, 160x96 or 96x160 pixels; the linear code is fitted on renders of training's states.
A table; the last line is one JSON object: {values_in_one, psnr_db, psnr_linear_db, worlds: {NAME: {psnr_db,
psnr_linear_db, marks: {attribute}}}}.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from sora_jax.checkpoints import checkpoint
from sora_jax.data.sources import names_of
from sora_jax.evaluation import fidelity, marks
from sora_jax.evaluation.simulation import through
from sora_jax.inference.codec import Codec
from sora_jax.runtime import process
from sora_jax.worlds.world import get_world

SIZES, FRAMES, FPS = ((128, 128), (96, 160), (160, 96)), 17, 8.0  # (height, width)
FITTED, FITTED_SIZE = 24, (96, 96)  # clips of each world that the linear code is fitted on


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--clips", type=int, default=12, help="held-out clips of each world")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  process.keep_freed_memory()
  process.compile_sooner()
  found = measured(pathlib.Path(given.workdir), given.clips)
  if not given.json:
    for name, row in found["worlds"].items():
      shown = ", ".join(f"{attribute} {mark:.2f}" for attribute, mark in row["marks"].items())
      print(f"{name:12s} {row['psnr_db']:6.2f} dB, linear {row['psnr_linear_db']:6.2f} dB   {shown}")
  print(json.dumps(found))


def measured(workdir: pathlib.Path, clips: int) -> dict:
  config, codec = loaded(workdir)
  names = [name.removeprefix("worlds:") for name in names_of(config.data)]
  linear = fidelity.LinearCode(
    [clip for name in names for clip in renders(name, FITTED, [FITTED_SIZE], held_out=False)[1]],
    codec.config.compression,
    codec.config.channels,
  )
  worlds: dict[str, dict] = {}
  every: list[tuple[float, float]] = []
  for name in names:
    states, real = renders(name, clips, SIZES, held_out=True)
    coded = through(codec, real)
    ours = [fidelity.psnr([some], [other]) for some, other in zip(coded, real, strict=True)]
    theirs = [fidelity.psnr([linear(clip)], [clip]) for clip in real]
    every += zip(ours, theirs, strict=True)
    read = marks.exam(get_world(name), states, [(clip, FPS) for clip in coded])
    worlds[name] = {
      "psnr_db": round(float(np.mean(ours)), 2),
      "psnr_linear_db": round(float(np.mean(theirs)), 2),
      "marks": {attribute: round(mark, 4) for attribute, mark in read.items() if mark is not None},
    }
  mean = np.mean(every, axis=0)
  values = 3 * int(np.prod(codec.config.compression)) / codec.config.channels
  both = {"psnr_db": round(float(mean[0]), 2), "psnr_linear_db": round(float(mean[1]), 2)}
  return {"values_in_one": round(values, 2), **both, "worlds": worlds}


def loaded(workdir: pathlib.Path) -> tuple[ml_collections.ConfigDict, Codec]:
  """The config and the codec of an autoencoder's workdir, or of a transformer's with its own autoencoder in it."""
  own = workdir / "autoencoder"
  folder = own if own.exists() else workdir
  config = ml_collections.ConfigDict(checkpoint.load_meta(folder)["config"], convert_dict=True)
  return config, Codec.load(folder, config.autoencoder)


def renders(name: str, count: int, sizes: Sequence[tuple[int, int]], held_out: bool) -> tuple[list, list]:
  """States of a world and their clips, sizes in turn."""
  world = get_world(name)
  states = [world.sample(np.random.default_rng((int(held_out), number)), held_out) for number in range(count)]
  return states, [world.render(state, *sizes[n % len(sizes)], FRAMES, FPS) for n, state in enumerate(states)]


if __name__ == "__main__":
  main()
