"""What the allocator costs a training step on the CPU: with the setting that every `sora` command makes, and without.

Steps of an autoencoder of 4x8x8 on crops of 9x128x128. Each variant is a process of its own; they take turns, so that
a machine that slows down for a while slows all of them, and medians are reported. `with` starts itself again as
`sora_jax.runtime.process.restart_with_large_pages` does; `without` is the same under SORA_MALLOC=0; `preloaded` has
tcmalloc in glibc's place, where it is installed.

    python benchmarks/memory.py [--json] [--rounds N] [--steps N] [--preload FILE]
"""

import argparse
import ctypes.util
import glob
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from sora_jax.runtime import process

SHRINKS = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
CROP, BATCH, CHANNELS = (9, 128, 128), 4, 16
FIGURES = ("seconds", "page_faults", "system_seconds", "user_seconds", "peak_gib")
UNSET = ("GLIBC_TUNABLES", "LD_PRELOAD", "SORA_MALLOC", process.RESTARTED)


def measure(steps: int, widths: list[int], depth: int) -> dict[str, Any]:
  """In a process of its own: medians and means of a step after two that warm up."""
  process.keep_freed_memory()
  process.compile_sooner()
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from sora_jax.models.autoencoder import AutoencoderConfig, Stage
  from sora_jax.train.autoencoder import AutoencoderTask
  from sora_jax.train.state import TrainState, make_step

  stages = tuple(Stage(shrink, width, depth) for shrink, width in zip(SHRINKS, widths, strict=True))
  frames = np.random.default_rng(0).uniform(-1, 1, (BATCH, *CROP, 3)).astype(np.float32)
  task, optimizer = AutoencoderTask(AutoencoderConfig(CHANNELS, stages), 1e-6, 0.0, frames[:2]), optax.adam(1e-3)
  key = jax.random.key(0)
  params = jax.jit(task.init)(key)
  copy = jax.tree.map(jnp.copy, params)
  state = TrainState(params, optimizer.init(params), copy, jnp.zeros((), jnp.int32), jax.random.key_data(key))
  batch = frames, np.arange(BATCH, dtype=np.int32)
  step = jax.jit(make_step(task, optimizer, 0.99), donate_argnums=0)

  def run() -> float:
    nonlocal state
    begin = time.perf_counter()
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    return time.perf_counter() - begin

  for _ in range(2):
    run()
  before = resource.getrusage(resource.RUSAGE_SELF)
  seconds = [run() for _ in range(steps)]
  after = resource.getrusage(resource.RUSAGE_SELF)
  return {
    "allocator": process.allocator(),
    "seconds": statistics.median(seconds),
    "page_faults": (after.ru_minflt - before.ru_minflt) / steps,
    "system_seconds": (after.ru_stime - before.ru_stime) / steps,
    "user_seconds": (after.ru_utime - before.ru_utime) / steps,
    "peak_gib": after.ru_maxrss / 2**20,
  }


def tcmalloc() -> str | None:
  """The library to preload; None where there is none."""
  for name in ("tcmalloc_minimal", "tcmalloc"):
    if found := ctypes.util.find_library(name):
      return next(iter(glob.glob(f"/usr/lib/**/{found}", recursive=True)), found)
  return None


def variants(library: str | None) -> dict[str, dict[str, str]]:
  """Name -> what is added to the environment."""
  found = {"with": {}, "without": {"SORA_MALLOC": "0"}}
  return found | ({"preloaded": {"LD_PRELOAD": library}} if library else {})


def start(more: dict[str, str], words: list[str]) -> dict[str, Any]:
  environment = {name: value for name, value in os.environ.items() if name not in UNSET}
  environment |= {"JAX_PLATFORMS": "cpu", **more}
  environment["PYTHONPATH"] = os.pathsep.join(
    [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
  )
  command = [sys.executable, __file__, "--one", *words]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description="a training step with large pages, without, and with another allocator")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--rounds", type=int, default=3, help="processes of each variant")
  parser.add_argument("--steps", type=int, default=8, help="that a process measures")
  parser.add_argument("--widths", type=int, nargs=3, default=(32, 64, 96), help="of the autoencoder's stages")
  parser.add_argument("--depth", type=int, default=2, help="of each stage")
  parser.add_argument("--preload", metavar="FILE", default=tcmalloc(), help="an allocator; tcmalloc by default")
  parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.one:
    process.restart_with_large_pages()
    print(json.dumps(measure(arguments.steps, arguments.widths, arguments.depth)))
    return
  words = [f"--steps={arguments.steps}", f"--depth={arguments.depth}", "--widths", *map(str, arguments.widths)]
  found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants(arguments.preload)}
  for _ in range(arguments.rounds):
    for name, more in variants(arguments.preload).items():
      found[name].append(start(more, words))
      row = found[name][-1]
      print(f"{name:<9}" + "".join(f"{key} {row[key]:>9.2f}   " for key in FIGURES) + row["allocator"], flush=True)
  middle = lambda rows: {key: round(statistics.median(row[key] for row in rows), 3) for key in FIGURES}
  result: dict[str, Any] = {name: {"allocator": rows[0]["allocator"], **middle(rows)} for name, rows in found.items()}
  result["ratio"] = round(result["without"]["seconds"] / result["with"]["seconds"], 3)
  busy = {name: each["system_seconds"] + each["user_seconds"] for name, each in result.items() if name != "ratio"}
  result["ratio_of_processor_time"] = round(busy["without"] / busy["with"], 3)
  print(
    f"a step is {result['ratio']:.2f} times as fast with the setting (medians of {arguments.rounds} processes each)"
  )
  if arguments.json:
    print(json.dumps(result))


if __name__ == "__main__":
  main()
