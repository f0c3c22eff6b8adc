"""What XLA's optimisation level costs and brings on the CPU: seconds to compile and milliseconds to run, side by side.

Four programs of the demo at their real sizes: the train steps of autoencoder and transformer, encoding and decoding.
Each is compiled at levels 3 (XLA's default) to 0; then the levels take turns, so that a machine that slows down for a
while slows all of them, and medians are reported. `sora_jax.runtime.process.compile_sooner` sets level 1.

    python benchmarks/compile_level.py [--json] [--rounds N]
"""

import argparse
import json
import pathlib
import runpy
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.inference.codec import Codec
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.dit import DiTConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, stack
from sora_jax.runtime import process
from sora_jax.train.autoencoder import AutoencoderTask
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.loop import LoopConfig
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import Task, TrainState, make_step

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "demo.py"
LEVELS = (3, 2, 1, 0)


def packed_batch(config: Any, channels: int) -> PackedBatch:
  """Rows of one random clip each that fills its row."""
  row = RowShape(config.train.row_tokens, config.train.row_text, config.train.row_segments)
  rng = np.random.default_rng(0)
  rows = []
  for index in range(config.train.rows):
    segment = Segment(
      tokens_NC=rng.standard_normal((row.tokens, channels), np.float32),
      positions_N3=rng.uniform(0, 24, (row.tokens, 3)).astype(np.float32),
      condition_N=np.zeros(row.tokens, bool),
      level_N=np.zeros(row.tokens, np.float32),
      text_M=rng.integers(1, 256, 40).astype(np.int32),
      size_4=np.array([0.7, 24, 24, 10], np.float32),
      index=index,
    )
    rows.append(pack_row([segment], row, channels))
  return stack(rows)


def train_step(task: Task, config: Any, batch: Any) -> tuple[Any, tuple]:
  """The step that training runs, and what it is called with."""
  optimizer = make_optimizer(LoopConfig.of(config, "benchmark").optimizer)
  key = jax.random.key(0)
  params = jax.jit(task.init)(key)
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(params, optimizer.init(params), jax.tree.map(jnp.copy, params), zero, jax.random.key_data(key))
  return jax.jit(make_step(task, optimizer, 0.99)), (state, batch)


def programs(config: Any) -> dict[str, tuple[Any, tuple]]:
  """Name -> a jitted function and its arguments."""
  section = config.autoencoder
  frames = np.random.default_rng(0).uniform(-1, 1, (section.batch, *section.crop, 3)).astype(np.float32)
  autoencoder = AutoencoderTask(AutoencoderConfig.of(section), section.kl_weight, section.motion_weight, frames[:2])
  model = DiTConfig.of(config, config.model.vocabulary)
  transformer = DiTTask(model, DiffusionConfig.of(config))
  codec = Codec(AutoencoderConfig.of(section), jax.jit(autoencoder.init)(jax.random.key(0)))
  latent = codec.encode(frames)
  return {
    "autoencoder step": train_step(autoencoder, config, (frames, np.arange(section.batch, dtype=np.int32))),
    "transformer step": train_step(transformer, config, packed_batch(config, model.channels)),
    "encode": (codec._encode, (codec.params, np.repeat(frames, 2, 0), None)),
    "decode": (codec._decode, (codec.params, np.repeat(latent, 2, 0), None)),
  }


def measure(function: Any, arguments: tuple, rounds: int) -> dict[str, dict[str, float]]:
  """Level -> {compile_seconds, milliseconds}."""
  lowered, compiled, found = function.lower(*arguments), {}, {}
  for level in LEVELS:
    start = time.perf_counter()
    compiled[level] = lowered.compile({"xla_backend_optimization_level": level})
    found[level] = {"compile_seconds": round(time.perf_counter() - start, 2)}
  times: dict[int, list[float]] = {level: [] for level in LEVELS}
  for _ in range(rounds + 1):  # the first round warms up
    for level, run in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(run(*arguments))
      times[level].append(time.perf_counter() - start)
  for level in LEVELS:
    found[level]["milliseconds"] = round(1e3 * statistics.median(times[level][1:]), 1)
  return {str(level): values for level, values in found.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description="XLA's optimisation levels on the CPU: compile time and run time")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--rounds", type=int, default=15)
  arguments = parser.parse_args()
  process.keep_freed_memory()
  config = runpy.run_path(str(CONFIG))["get_config"]()
  result = {name: measure(*program, arguments.rounds) for name, program in programs(config).items()}
  print(f"{'program':<18} {'level':>5} {'compile s':>10} {'run ms':>8}")
  for name, levels in result.items():
    for level, values in levels.items():
      print(f"{name:<18} {level:>5} {values['compile_seconds']:>10.2f} {values['milliseconds']:>8.1f}")
  if arguments.json:
    print(json.dumps(result))


if __name__ == "__main__":
  main()
