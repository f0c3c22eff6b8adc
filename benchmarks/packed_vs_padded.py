"""The same clips trained once through by one model, packed, bucketed and padded: useful tokens a second, side by side.

The clips are those of benchmarks/packing.py with sides an eighth as long and captions a fifth (a CPU takes hours for
the whole size): 40 % images, 60 % videos of 17 to 129 frames. The model, its loss and its optimiser are sora_jax's own.

    packed    rows of 1,664 tokens and 512 caption tokens, a row a step: one program
    buckets   clips shrunk to the nearest (size, aspect ratio, frames) of a table, a third of what peers use: each is a
              program. A batch is about a row; a bucket with few clips gets a smaller batch of its own, which no
              released trainer does, so that it computes no padding; a bucket's last batch is filled up with clips
              that it has had
    padded    batches of 8 clips in random order, each padded to the longest, rounded up to 64 tokens

A scheme's figures:

    useful_tokens_per_second   tokens of the clips (after shrinking), each once, by the time of all steps
    with_compiling             the same, by the time of all steps and of compiling its programs
    seconds, compile_seconds   of one pass over the clips; of making its programs
    useful_tokens              tokens of clips / tokens computed
    lost_tokens                tokens that shrinking loses, of all
    steps, programs

Schemes take turns, in pieces of about a tenth of a pass, so that a machine that slows down for a while slows all.

    python benchmarks/packed_vs_padded.py [--json] [--clips N] [--seed S]      about 25 minutes on two cores
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import packing

from sora_jax import sharding
from sora_jax.diffusion.objective import NoiseLevels
from sora_jax.models.dit import DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import PackedBatch, RowShape, Segment, pack_row, stack
from sora_jax.packing.rows import pack_rows
from sora_jax.runtime import process
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.state import make_state, make_step

SHRINK, CAPTION_SHRINK = 8, 5
ROW = RowShape(tokens=1664, text=512, segments=64)
TEXT = 60  # caption tokens of the longest caption
PADDED_BATCH, ROUND = 8, 64
CHANNELS, VOCABULARY = 16, 256
PIECES = 10
TABLE = packing.Table(sides=(32, 64, 96, 128), ratios=(0.5, 0.7, 1.0, 1.4, 2.0), frames=(1, *range(17, 130, 16)))


class Scheme(NamedTuple):
  """Batches of a pass: the clips of each row, and the row's size; `tokens` of each clip as the scheme trains on it."""

  batches: list[tuple[list[list[int]], RowShape]]
  tokens: np.ndarray


def small(mix: packing.Mix) -> packing.Mix:
  shapes = mix.shapes.copy()
  shapes[:, 1:] = np.maximum(np.rint(shapes[:, 1:] / SHRINK), 8)
  return packing.Mix(shapes, mix.text // CAPTION_SHRINK)


def packed(mix: packing.Mix, seed: int) -> Scheme:
  order = np.random.default_rng(seed).permutation(len(mix.text))
  rows = pack_rows(mix.tokens[order], mix.text[order], ROW)
  return Scheme([([order[row].tolist()], ROW) for row in rows], mix.tokens)


def buckets(mix: packing.Mix, seed: int) -> Scheme:
  """A row a clip; all rows of a batch have the tokens of its bucket."""
  tokens, batches = np.zeros(len(mix.text), np.int64), []
  for (frames, height, width), clips in packing.bucket_members(mix, seed, TABLE).items():
    size = tokens[clips] = packing.GRID.tokens(frames, height, width)
    count = min(max(ROW.tokens // size, 1), len(clips))
    parts = [clips[start : start + count] for start in range(0, len(clips), count)]
    # The last clips of a bucket come in a batch with some of those before: a batch of their own is another program.
    parts[-1] = clips[-count:]
    batches += [([[clip] for clip in part], RowShape(size, TEXT, 1)) for part in parts]
  return Scheme(batches, tokens)


def padded(mix: packing.Mix, seed: int) -> Scheme:
  order = np.random.default_rng(seed).permutation(len(mix.text)).tolist()
  parts = [order[start : start + PADDED_BATCH] for start in range(0, len(order), PADDED_BATCH)]
  sizes = [-(-int(mix.tokens[part].max()) // ROUND) * ROUND for part in parts]
  return Scheme(
    [([[clip] for clip in part], RowShape(size, TEXT, 1)) for part, size in zip(parts, sizes, strict=True)], mix.tokens
  )


def make_batch(scheme: Scheme, number: int, mix: packing.Mix) -> PackedBatch:
  """Arrays of one batch; the contents are noise, the sizes are the clips'."""
  rows, shape = scheme.batches[number]
  rng = np.random.default_rng(number)

  def segment(clip: int) -> Segment:
    n, m = int(scheme.tokens[clip]), int(mix.text[clip])
    frames, height, width = (float(each) for each in mix.shapes[clip])
    return Segment(
      rng.normal(size=(n, CHANNELS)).astype(np.float32),
      rng.uniform(0, 64, (n, 3)).astype(np.float32),
      np.zeros(n, bool),
      np.zeros(n, np.float32),
      rng.integers(4, VOCABULARY, m).astype(np.int32),
      np.array([frames / 8, height, width, 8.0], np.float32),
      clip,
    )

  return stack([pack_row([segment(clip) for clip in row], shape, CHANNELS) for row in rows])


def make_train_step(width: int, depth: int) -> tuple[Any, Any]:
  """(state, a step that has yet to be compiled for a batch)."""
  text = TextEncoderConfig(VOCABULARY, 64, 1, 2)
  config = DiTConfig(CHANNELS, width, depth, max(width // 64, 1), text, ((0.5, 16.0), (8.0, 256.0), (8.0, 256.0)))
  task = DiTTask(config, DiffusionConfig("x", "clip", NoiseLevels(0.0, 1.0, 256), 0.1))
  optimizer = optax.adam(1e-4)
  mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
  jax.set_mesh(mesh)
  return make_state(task, optimizer, 0, mesh), jax.jit(make_step(task, optimizer, 0.99), donate_argnums=0)


class Trainer:
  """One scheme's pass over the clips, a piece at a time."""

  def __init__(self, scheme: Scheme, mix: packing.Mix, model: tuple[int, int], seed: int):
    self.scheme, self.mix = scheme, mix
    self.state, self.step = make_train_step(*model)
    # Batches of one shape in turn: a process can't hold a hundred programs (each maps memory a thousand times).
    shapes = [(len(rows), shape.tokens) for rows, shape in scheme.batches]
    self.order = sorted(np.random.default_rng(seed).permutation(len(shapes)).tolist(), key=shapes.__getitem__)
    self.shape: tuple[int, ...] = ()
    self.program: Any = None
    self.programs = 0
    self.seconds = self.compile_seconds = 0.0

  def run(self, numbers: np.ndarray) -> None:
    """Steps over these batches; making the arrays is not timed: a loader does it beside the steps."""
    for number in numbers:
      batch = make_batch(self.scheme, int(number), self.mix)
      if batch.tokens_BLC.shape != self.shape:
        self.shape, self.program, self.programs = batch.tokens_BLC.shape, None, self.programs + 1
        jax.clear_caches()  # which keep programs alive
        start = time.perf_counter()
        self.program = self.step.lower(self.state, batch).compile()
        self.compile_seconds += time.perf_counter() - start
        self.state, _ = jax.block_until_ready(self.program(self.state, batch))  # first calls allocate
      start = time.perf_counter()
      self.state, _ = jax.block_until_ready(self.program(self.state, batch))
      self.seconds += time.perf_counter() - start

  def pieces(self) -> Iterator[None]:
    for part in np.array_split(self.order, PIECES):
      self.run(part)
      yield

  def figures(self) -> dict[str, float]:
    computed = sum(len(rows) * shape.tokens for rows, shape in self.scheme.batches)
    clips = sorted({clip for rows, _ in self.scheme.batches for row in rows for clip in row})
    useful = int(self.scheme.tokens[clips].sum())
    whole, trained = self.mix.tokens.sum(), self.scheme.tokens.sum()
    return {
      "useful_tokens_per_second": round(useful / self.seconds, 1),
      "with_compiling": round(useful / (self.seconds + self.compile_seconds), 1),
      "seconds": round(self.seconds, 1),
      "compile_seconds": round(self.compile_seconds, 1),
      "useful_tokens": round(useful / computed, 4),
      "lost_tokens": round(1.0 - min(trained / whole, 1.0), 4),
      "steps": len(self.scheme.batches),
      "programs": self.programs,
    }


def main() -> None:
  parser = argparse.ArgumentParser(description="One model trained on the same clips: packed, bucketed, padded")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--clips", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--depth", type=int, default=2)
  given = parser.parse_args()
  process.keep_freed_memory()
  process.compile_sooner()
  mix = small(packing.draw(given.clips, given.seed))
  schemes = {"packed": packed, "buckets": buckets, "padded": padded}
  trainers = {
    name: Trainer(make(mix, given.seed), mix, (given.width, given.depth), given.seed) for name, make in schemes.items()
  }
  for _ in zip(*(trainer.pieces() for trainer in trainers.values()), strict=True):
    print(", ".join(f"{name} {trainer.seconds:.0f} s" for name, trainer in trainers.items()), flush=True)
  found = {name: trainer.figures() for name, trainer in trainers.items()}
  columns = list(found["packed"])
  print(f"{'scheme':<10}" + "".join(f"{name:>26}" for name in columns))
  for name, row in found.items():
    print(f"{name:<10}" + "".join(f"{row[column]:>26}" for column in columns))
  if given.json:
    speed = {"packed": "packed", "buckets": "bucketed", "padded": "padded"}
    flat = {label: found[name]["useful_tokens_per_second"] for name, label in speed.items()}
    ratios = {f"packed_over_{label}": round(flat["packed"] / flat[label], 3) for label in ("bucketed", "padded")}
    print(json.dumps({**flat, **ratios, "clips": given.clips, "schemes": found}))


if __name__ == "__main__":
  main()
