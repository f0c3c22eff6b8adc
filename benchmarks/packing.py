"""How much of the computed tokens is video, and how evenly work falls on the ranks: packing beside what others do.

100,000 clips are drawn: 40 % images of 256 to 1,024 pixels, 60 % videos of 17 to 129 frames at 256, 512 or 768
pixels (side of a square of the same area), aspect ratios from 1:2 to 2:1; a token is 16 x 16 pixels x 4 frames, the
first frame alone. Captions have 20 to 300 tokens. Five schemes prepare them for 64 data-parallel ranks:

    packed       ours: levelled rows of 81,920 tokens, rows of equal work in one step
    best_fit     rows by best fit over all clips, in random order: tokens are equal, work is not
    first_fit    first-fit decreasing in a buffer of 64 clips, a row a rank, shuffled (a released packer's scheme)
    buckets      each clip shrunk to the nearest (size, aspect ratio, frames) of a table, batches of one bucket
    padded       batches of 8 clips, each padded to the longest

A scheme's figures:

    useful_tokens     tokens of clips / tokens computed
    lost_tokens       tokens of clips that the scheme cuts or shrinks away before training sees them
    flop_balance      mean over max of the ranks' work, summed over the steps: the share of time a rank is busy
    worst_step        the least of that in one step
    mixed_steps       the share of steps in which both images and videos take part
    programs          distinct shapes that must be compiled
    seconds_per_clip  to plan it

Work is 2 N n + 4 layers width n^2 for a clip of n tokens (width 3,072, 28 layers, N = 12 layers width^2), without the
work between clips, which kernels that know the segments skip; a padded clip costs as much as its padding.

    python benchmarks/packing.py [--json] [--clips N] [--ranks R] [--seed S]
"""

import argparse
import collections
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sora_jax.packing.balance import ClipFlops, order_rows, spread
from sora_jax.packing.batch import RowShape
from sora_jax.packing.rows import best_fit, pack_rows
from sora_jax.patches import Grid

ROW = RowShape(tokens=81_920, text=8_192, segments=64)
GRID = Grid((4, 8, 8), (1, 2, 2))
DEPTH, WIDTH = 28, 3072
WORK = ClipFlops.of(12 * DEPTH * WIDTH**2, DEPTH, WIDTH)
PADDED_BATCH = 8
BUFFER = 64


class Mix(NamedTuple):
  """Clips as they are: (frames, height, width) and caption tokens."""

  shapes: np.ndarray
  text: np.ndarray

  @property
  def tokens(self) -> np.ndarray:
    unique, inverse = np.unique(self.shapes, axis=0, return_inverse=True)
    return np.array([GRID.tokens(*map(int, shape)) for shape in unique])[inverse.reshape(-1)]


class Scheme(NamedTuple):
  """What a scheme makes of a mix. A batch is what one rank computes at a time; they are in the order of training."""

  batches: list[list[int]]  # the clips of each
  work: np.ndarray  # of each
  useful: float  # tokens of clips among all computed
  lost: float  # of the tokens of the mix
  programs: int


def draw(clips: int, seed: int) -> Mix:
  rng = np.random.default_rng(seed)
  video = rng.random(clips) < 0.6
  side = np.where(video, rng.choice([256, 512, 768], clips), rng.uniform(256, 1024, clips))
  ratio = np.exp(rng.uniform(np.log(0.5), np.log(2.0), clips))
  frames = np.where(video, rng.integers(17, 130, clips), 1)
  shapes = np.stack([frames, np.rint(side / np.sqrt(ratio)), np.rint(side * np.sqrt(ratio))], 1).astype(np.int64)
  return Mix(shapes, rng.integers(20, 301, clips))


def packed_rows(mix: Mix, seed: int) -> list[list[int]]:
  order = np.random.default_rng(seed).permutation(len(mix.text))
  rows = pack_rows(mix.tokens[order], mix.text[order], ROW)
  return [order[row].tolist() for row in rows]


def of_rows(mix: Mix, rows: list[list[int]], order: Callable[[np.ndarray], np.ndarray]) -> Scheme:
  tokens = mix.tokens
  work = np.array([WORK(tokens[row]).sum() for row in rows])
  chosen = order(work)
  return Scheme([rows[i] for i in chosen], work[chosen], float(tokens.sum()) / (len(rows) * ROW.tokens), 0.0, 1)


def of_batches(mix: Mix, batches: list[list[int]], lengths: list[int], programs: int) -> Scheme:
  """Batches of clips that are all computed at one length."""
  tokens = mix.tokens
  work = np.array([len(clips) for clips in batches]) * WORK(np.array(lengths))
  seen = sum(np.minimum(tokens[clips], length).sum() for clips, length in zip(batches, lengths, strict=True))
  computed = sum(len(clips) * length for clips, length in zip(batches, lengths, strict=True))
  return Scheme(batches, work, seen / computed, 1 - seen / tokens.sum(), programs)


def packed(mix: Mix, ranks: int, seed: int) -> Scheme:
  return of_rows(mix, packed_rows(mix, seed), lambda work: order_rows(work, ranks, 1, np.random.default_rng(seed)))


def fullest(mix: Mix, seed: int) -> Scheme:
  rows = best_fit(mix.tokens.tolist(), mix.text.tolist(), ROW)
  return of_rows(mix, rows, lambda work: np.random.default_rng(seed).permutation(len(work)))


def first_fit(mix: Mix, seed: int) -> Scheme:
  """Clips come in a random order; those of a full buffer are packed by first-fit decreasing."""
  tokens, rng = mix.tokens, np.random.default_rng(seed)
  order, rows = rng.permutation(len(tokens)), []
  for start in range(0, len(order), BUFFER):
    buffer = sorted(order[start : start + BUFFER].tolist(), key=lambda clip: -tokens[clip])
    found: list[list[int]] = []
    for clip in buffer:
      fitting = next((row for row in found if tokens[row].sum() + tokens[clip] <= ROW.tokens), None)
      found.append([clip]) if fitting is None else fitting.append(clip)
    rows += [found[i] for i in rng.permutation(len(found))]
  return of_rows(mix, rows, lambda work: np.arange(len(work)))


class Table(NamedTuple):
  """Buckets: every combination of these."""

  sides: tuple[int, ...] = (256, 384, 512, 768, 1024)
  ratios: tuple[float, ...] = (0.5, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
  frames: tuple[int, ...] = (1, *range(17, 130, 8))


def bucket_members(mix: Mix, seed: int, table: Table) -> dict[tuple[int, int, int], list[int]]:
  """(frames, height, width) -> its clips, shuffled: a clip is in the largest it fills, at the nearest aspect ratio."""
  frames, height, width = mix.shapes.T
  fills = np.searchsorted(table.sides, np.sqrt(height * width) * 1.001, side="right") - 1
  side = np.array(table.sides)[np.maximum(fills, 0)]
  ratio = np.array(table.ratios)[np.abs(np.log(width / height)[:, None] - np.log(table.ratios)).argmin(1)]
  length = np.array(table.frames)[np.searchsorted(table.frames, frames, side="right") - 1]
  members = collections.defaultdict(list)
  for clip in np.random.default_rng(seed).permutation(len(frames)).tolist():
    t, s, r = int(length[clip]), side[clip], ratio[clip]
    members[t, round(s / r**0.5), round(s * r**0.5)].append(clip)
  return members


def buckets(mix: Mix, seed: int) -> Scheme:
  """Batches of one bucket each; a last one that is not full is dropped."""
  members = bucket_members(mix, seed, Table())
  batches = []
  for shape, clips in members.items():
    size = GRID.tokens(*shape)
    count = max(ROW.tokens // size, 1)
    batches += [(clips[i : i + count], size) for i in range(0, len(clips) - count + 1, count)]
  batches = [batches[i] for i in np.random.default_rng([seed, 1]).permutation(len(batches))]
  return of_batches(mix, [clips for clips, _ in batches], [size for _, size in batches], len(members))


def padded(mix: Mix, seed: int) -> Scheme:
  tokens, order = mix.tokens, np.random.default_rng(seed).permutation(len(mix.text)).tolist()
  batches = [order[start : start + PADDED_BATCH] for start in range(0, len(order), PADDED_BATCH)]
  lengths = [int(tokens[clips].max()) for clips in batches]
  return of_batches(mix, batches, lengths, len(set(lengths)))


def figures(make: Callable[[], Scheme], mix: Mix, ranks: int) -> dict[str, float]:
  start = time.perf_counter()
  scheme = make()
  seconds = time.perf_counter() - start
  whole = len(scheme.work) // ranks * ranks
  load = scheme.work[:whole].reshape(-1, ranks)
  image = mix.shapes[:, 0] == 1
  steps = [np.concatenate(scheme.batches[i : i + ranks]) for i in range(0, whole, ranks)]
  return {
    "useful_tokens": round(float(scheme.useful), 4),
    "lost_tokens": round(float(scheme.lost), 4),
    "flop_balance": round(float(load.mean(1).sum() / load.max(1).sum()), 4),
    "worst_step": round(float(spread(scheme.work, ranks, 1).min()), 4),
    "mixed_steps": round(float(np.mean([0 < image[clips].sum() < len(clips) for clips in steps])), 4),
    "programs": scheme.programs,
    "seconds_per_clip": round(seconds / len(image), 7),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description="Useful tokens and balance of work: packing beside other schemes")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--clips", type=int, default=100_000)
  parser.add_argument("--ranks", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  mix = draw(given.clips, given.seed)
  schemes = {
    "packed": lambda: packed(mix, given.ranks, given.seed),
    "best_fit": lambda: fullest(mix, given.seed),
    "first_fit": lambda: first_fit(mix, given.seed),
    "buckets": lambda: buckets(mix, given.seed),
    "padded": lambda: padded(mix, given.seed),
  }
  found = {name: figures(make, mix, given.ranks) for name, make in schemes.items()}
  columns = list(found["packed"])
  print(f"{'scheme':<10}" + "".join(f"{name:>18}" for name in columns))
  for name, row in found.items():
    print(f"{name:<10}" + "".join(f"{row[column]:>18}" for column in columns))
  if given.json:
    print(json.dumps({**found.pop("packed"), "clips": given.clips, "ranks": given.ranks, "peers": found}))


if __name__ == "__main__":
  main()
