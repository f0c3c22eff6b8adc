"""Do the worlds' examiners read their own renders right, and how fast are both?

    python benchmarks/worlds.py [--worlds NAME ...] [--states N] [--json]

Ceilings: the mean mark of each attribute on real renders of N states (half of them held out) at each of three sizes,
two rates and three durations. Speed: frames of 128x128 pixels a second of one process, rendered and examined. A table;
the last line is one JSON object: {worlds: {NAME: {clips, ceilings: {attribute}, lowest, render_fps, examine_fps}}}.
"""

import argparse
import itertools
import json
import time

import numpy as np

from sora_jax.worlds.world import World, get_world, world_names

SIZES = ((128, 128), (128, 224), (224, 128))  # (height, width)
RATES, DURATIONS = (8.0, 16.0), (9, 17, 33)
SPEED = (128, 128, 33, 8.0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--worlds", nargs="+", default=list(world_names()))
  parser.add_argument("--states", type=int, default=8, help="at each size, rate and duration")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  found = {name: measured(get_world(name), given.states) for name in given.worlds}
  if not given.json:
    for name, row in found.items():
      marks = ", ".join(f"{attribute} {mark:.3f}" for attribute, mark in row["ceilings"].items())
      print(f"{name:18s} render {row['render_fps']:6.0f} fps  examine {row['examine_fps']:6.0f} fps  {marks}")
  print(json.dumps({"worlds": found}))


def measured(world: World, states: int) -> dict:
  marks: dict[str, list[float]] = {name: [] for name in world.attributes}
  clips = 0
  for point, (size, fps, frames) in enumerate(itertools.product(SIZES, RATES, DURATIONS)):
    for number in range(states):
      state = world.sample(np.random.default_rng((point, number)), held_out=number % 2 == 1)
      clips += 1
      for name, mark in world.examine(world.render(state, *size, frames, fps), fps, state).items():
        marks[name].append(mark)
  ceilings = {name: round(float(np.mean(each)), 4) for name, each in marks.items() if each}
  return {"clips": clips, "ceilings": ceilings, "lowest": min(ceilings.values())} | speed(world)


def speed(world: World, clips: int = 8) -> dict[str, float]:
  """Frames a second, rendered and examined, over a few states."""
  draws = [world.sample(np.random.default_rng(seed)) for seed in range(clips)]
  started = time.perf_counter()
  made = [world.render(state, *SPEED) for state in draws]
  between = time.perf_counter()
  for state, frames_THWC in zip(draws, made, strict=True):
    world.examine(frames_THWC, SPEED[-1], state)
  ended = time.perf_counter()
  frames = clips * SPEED[2]
  return {"render_fps": round(frames / (between - started), 1), "examine_fps": round(frames / (ended - between), 1)}


if __name__ == "__main__":
  main()
