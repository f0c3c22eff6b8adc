"""Does the loader keep up, and does its memory stay where it is? The demo's training steps, fed as `sora train` does.

A folder of videos and images is written, and read through the same code as any other: decoded in the decoder's process
and cropped for the autoencoder, each clip anew for each crop, as in a data set that no cache holds (`decoded`), and
with the cache that the loader has (`crops`); encoded once, then patched, packed and padded for the transformer
(`rows`). For each, with configs/demo.py's sizes:

    data_wait_share       time that a step waits for its batch / time of the step with it, after WARM steps; `peers` has
                          the same with the loader in the step's own thread (`in_step`), as a plain loop has it
    step_ms, batch_ms     a step alone; a batch alone
    rss_mb_per_100_steps  slope of the loader's resident memory over `--loader-steps` batches, the first fifth left out
    batches_per_second    of the loader alone

    python benchmarks/input_pipeline.py [--json] [--steps N] [--loader-steps N] [--workers N]     about 10 minutes
"""

import argparse
import json
import os
import pathlib
import runpy
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from sora_jax import sharding
from sora_jax.clips import to_uint8
from sora_jax.data import pipeline, sources
from sora_jax.data.captions import Texts
from sora_jax.data.sizes import sizes_of
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.inference.codec import Codec
from sora_jax.jobs import precompute, train
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.dit import DiTConfig
from sora_jax.runtime import process
from sora_jax.train.autoencoder import AutoencoderTask
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.loop import LoopConfig
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import make_state, make_step
from sora_jax.video import io as video_io

WARM = 10  # steps
SAMPLES = 200  # of resident memory
CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "demo.py"


def write_folder(folder: pathlib.Path, config: Any, clips: int) -> None:
  """Clips of the demo's world as files, larger than the token budget leaves them: they are decoded and scaled."""
  section = config.data.copy_and_resolve_references()
  section.update(clips=clips, sizes=tuple(f"{4 * width}x{4 * height}" for height, width in sizes_of(section.sizes)))
  world = WorldSource.of(section, "shapes", WorldShapes.of(section), seed=1)
  lines = []
  for index in range(clips):
    clip = world[index]
    name = f"{index}.{'png' if len(clip.frames_THWC) == 1 else 'mp4'}"
    video_io.write(folder / name, to_uint8(clip.frames_THWC), clip.fps)
    lines.append({"file": name, **world.captions(index)})
  (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_feeds(config: Any, folder: pathlib.Path) -> dict[str, tuple[Any, Callable]]:
  """name -> (its task, a function that opens its stream)."""
  place = train.reading(config, sharding.make_mesh(config.mesh.to_dict()))
  source = sources.open_source(config.data, config.seed, train.grid(config))
  section = config.autoencoder
  model = AutoencoderConfig.of(section)
  crops = pipeline.Crops(source, section.crop, config.seed)
  probe = np.stack([crops(number)[0] for number in range(8)])
  coder = AutoencoderTask(model, section.kl_weight, section.motion_weight, probe)
  codec = Codec(model, coder.init(jax.random.key(0)))
  store = precompute.encode_source(codec, source, folder / "latents")
  captions = list(store.all_captions())
  tokenizer = Tokenizer.train((text for each in captions for text in each.values()), config.model.vocabulary)
  transformer = DiTConfig.of(config, tokenizer.vocabulary)
  texts = Texts.of(captions, tokenizer, config.train.row_text)
  rows = train.packed_rows(config, store, texts, codec, transformer)
  task = DiTTask(transformer, DiffusionConfig.of(config))
  decoded = pipeline.Crops(source, section.crop, config.seed)
  decoded.cached = 1
  return {
    "decoded": (coder, lambda: pipeline.crop_batches(decoded, section.batch, place)),
    "crops": (coder, lambda: pipeline.crop_batches(crops, section.batch, place)),
    "rows": (task, lambda: pipeline.packed_batches(rows, place)),
  }


def in_step(element: Callable, batch: int) -> Iterator[Any]:
  """The loader of a plain loop: a batch is made when it is asked for."""
  number = 0
  while True:
    made = [element(number + place) for place in range(batch)]
    number += batch
    yield jax.tree.map(lambda *leaves: np.stack(leaves), *made)


def timed_steps(task: Any, stream: Iterator[Any], config: Any, steps: int) -> tuple[float, float]:
  """(seconds of waiting for batches, seconds in all) of `steps` steps."""
  optimizer = make_optimizer(LoopConfig.of(config, "benchmark").optimizer)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  with jax.set_mesh(mesh):
    state = make_state(task, optimizer, 0, mesh)
    step = jax.jit(make_step(task, optimizer, 0.99), donate_argnums=0)
    waited, pending, start = 0.0, None, time.perf_counter()
    for number in range(WARM + steps):
      if number == WARM:
        jax.block_until_ready(state)
        waited, start = 0.0, time.perf_counter()
      asked = time.perf_counter()
      batch = next(stream)
      waited += time.perf_counter() - asked
      state, metrics = step(state, sharding.to_devices(batch, mesh))
      if pending is not None:  # as the training loop reads them: one step late
        jax.device_get(pending)
      pending = metrics
    jax.block_until_ready(state)
    return waited, time.perf_counter() - start


def resident_mb() -> float:
  """Of this process; its decoder's process has a fixed limit of its own."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def loader_alone(stream: Iterator[Any], steps: int) -> dict[str, float]:
  """Resident memory over many batches, by a straight line through it."""
  seen, every, start = [], max(steps // SAMPLES, 1), time.perf_counter()
  for number in range(steps):
    next(stream)
    if number % every == 0 and number >= steps // 5:
      seen.append((number, resident_mb()))
  seconds = time.perf_counter() - start
  numbers, sizes = np.array(seen).T
  slope = np.polyfit(numbers, sizes, 1)[0] if len(seen) > 1 else float("nan")
  return {
    "rss_mb_per_100_steps": round(float(slope) * 100, 4),
    "rss_mb": round(seen[-1][1], 1),
    "batches_per_second": round(steps / seconds, 1),
  }


def measure(task: Any, open_stream: Callable, config: Any, steps: int, loader_steps: int) -> dict[str, Any]:
  stream = open_stream()
  found = loader_alone(stream, loader_steps)
  stream.close()
  stream = open_stream()
  waited, seconds = timed_steps(task, stream, config, steps)
  stream.close()
  plain = in_step(stream.element, stream.batch)
  plain_waited, plain_seconds = timed_steps(task, plain, config, steps)
  return {
    "data_wait_share": round(waited / seconds, 5),
    "step_ms": round(1e3 * (seconds - waited) / steps, 1),
    "batch_ms": round(1e3 * plain_waited / steps, 1),
    **found,
    "peers": {"in_step": round(plain_waited / plain_seconds, 5)},
  }


def main() -> None:
  parser = argparse.ArgumentParser(description="How long a training step waits for its data; the loader's memory")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--clips", type=int, default=600)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--loader-steps", type=int, default=5000)
  parser.add_argument("--workers", type=int, default=0)
  given = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  process.keep_freed_memory()
  process.compile_sooner()
  config = runpy.run_path(str(CONFIG))["get_config"]()
  with tempfile.TemporaryDirectory() as folder:
    write_folder(pathlib.Path(folder), config, given.clips)
    config.data.update(source=folder, workers=given.workers)
    feeds = make_feeds(config, pathlib.Path(folder))
    found = {
      name: measure(task, open_stream, config, given.steps, given.loader_steps)
      for name, (task, open_stream) in feeds.items()
    }
  for name, row in found.items():
    print(name, ", ".join(f"{figure} {value}" for figure, value in row.items()))
  if given.json:
    worst = {
      "data_wait_share": max(row["data_wait_share"] for row in found.values()),
      "rss_mb_per_100_steps": max(row["rss_mb_per_100_steps"] for row in found.values()),
    }
    print(json.dumps({**worst, **found, "loader_steps": given.loader_steps, "workers": given.workers}))


if __name__ == "__main__":
  main()
