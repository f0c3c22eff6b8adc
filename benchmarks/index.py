"""What an index of many clips costs: opening it, its memory, and packing its clips into rows, beside one of JSON.

An index of N clips is written without their latents: images of 256 to 1,024 pixels and videos of 17 to 129 frames, as
`packing.py` draws them, with captions of 20 to 300 tokens. A process of its own opens it, and another packs it.

    open_seconds         from the path to the store and the token ids of its captions
    bytes_per_clip       resident memory that opening and packing leave, without what is mapped from files
    peak_bytes_per_clip  the most that there was of it on the way
    mapped_bytes         of files, a clip: the system drops them where memory is short
    plan_us_per_clip     microseconds: lengths, slots and rows, as training finds them
    useful_tokens        of the rows
    useful_text_tokens   of the slots: what length classes of captions leave
    epoch_seconds        which clip takes which slot, once an epoch

The JSON index is what it replaces: a list of objects, read whole, and rows packed from lists of their lengths.

    python benchmarks/index.py [--json] [--clips N] [--json-clips N] [--seed S]
"""

import argparse
import gc
import json
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import packing

from sora_jax.data import captions, columns, conditions, latents
from sora_jax.data.captions import Texts
from sora_jax.data.latents import LatentStore
from sora_jax.data.pipeline import PackedRows, Shares, Step
from sora_jax.packing.rows import best_fit, level

DISTINCT = 100_000  # clips that are drawn; an index of more repeats their sizes in another order
TOGETHER = 500_000  # clips that are written at a time
STEP = Step(rows=64, ranks=64, flops=packing.WORK)


def sizes(clips: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(frames, height, width) and caption tokens of the clips, some at a time."""
  mix, rng = packing.draw(min(clips, DISTINCT), seed), np.random.default_rng([seed, 1])
  for start in range(0, clips, TOGETHER):
    count = min(TOGETHER, clips - start)
    mine = rng.permutation(len(mix.text)) if clips <= DISTINCT else rng.integers(0, len(mix.text), count)
    yield mix.shapes[mine], rng.integers(20, 301, count)


def units(clips: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
  """What the units of a store of such clips say of them."""
  for unit, (shapes, _) in enumerate(sizes(clips, seed)):
    count = len(shapes)
    frames, height, width = shapes.T
    time_, rows, columns_ = packing.GRID.compression
    shape = np.stack([1 - (1 - frames) // time_, -(-height // rows), -(-width // columns_)], 1)
    names = [b"clips/%010d.mp4" % (unit * TOGETHER + number) for number in range(count)]
    values = np.concatenate([shape, np.full((count, 1), 16)], 1).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(values.prod(1, dtype=np.int64))[:-1]])
    yield {
      "unit": np.full(count, unit, np.int32),
      "start": starts,
      "shape": values,
      "size": np.stack([frames / 24.0, height, width, np.full(count, 24.0)], 1),
      "frames": frames.astype(np.int32),
      "component": np.zeros(count, np.int32),
      "number": unit * TOGETHER + np.arange(count),
      "loop": np.zeros(count, np.uint8),
      "piece_start": np.zeros((count, conditions.PIECES), np.int32),
      "piece_frames": np.zeros((count, conditions.PIECES), np.int32),
      "id_end": np.cumsum([len(name) for name in names]),
      "ids": np.frombuffer(b"".join(names), np.uint8),
      "dropped": np.frombuffer(b"[]", np.uint8),
    }


def write(folder: pathlib.Path, clips: int, seed: int) -> None:
  """The index and the ids of captions, all 0 in a file of holes; the captions are not read by what is measured."""
  latents.write_index(folder, units(clips, seed), {})
  captions.write_captions(folder, (), "")
  counts = [np.zeros(1, np.int64), *(np.repeat(text, 2) for _, text in sizes(clips, seed))]
  starts = np.cumsum(np.concatenate(counts))
  columns.write(folder / "text-starts.npy", [starts], np.int64)
  np.lib.format.open_memmap(folder / "text-ids.npy", "w+", np.int32, (int(starts[-1]),))


def resident() -> dict[str, int]:
  """Bytes of this process: its own, and those mapped from files."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  found = dict(line.split(":") for line in lines)
  return {name: int(found[field].split()[0]) * 1024 for name, field in (("own", "RssAnon"), ("mapped", "RssFile"))}


def measure_columns(folder: pathlib.Path, clips: int) -> dict[str, float]:
  """Opens and packs an index in columns."""
  before, start = resident(), time.perf_counter()
  store, texts = LatentStore(folder), Texts.load(folder)
  opened = time.perf_counter()
  rows = PackedRows(store, texts, packing.GRID, packing.ROW, STEP, 0, Shares(0.5, conditions.Shares(0.0)))
  packed = time.perf_counter()
  gc.collect()
  after = resident()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - after["mapped"] - before["own"]
  begun = time.perf_counter()
  rows.slots.fill(0, np.random.default_rng(0))
  epoch_seconds = time.perf_counter() - begun
  tokens = rows.slots.lengths_K.sum(dtype=np.int64)
  return {
    "open_seconds": round(opened - start, 3),
    "bytes_per_clip": round((after["own"] - before["own"]) / clips, 1),
    "peak_bytes_per_clip": round(max(peak, 0) / clips, 1),
    "mapped_bytes": round((after["mapped"] - before["mapped"]) / clips, 1),
    "plan_us_per_clip": round(1e6 * (packed - opened) / clips, 3),
    "rows": len(rows),
    "useful_tokens": round(float(tokens) / (len(rows) * packing.ROW.tokens), 4),
    "useful_text_tokens": round(float(texts.longest_N.sum(dtype=np.int64) / rows.slots.text_K.sum(dtype=np.int64)), 4),
    "epoch_seconds": round(epoch_seconds, 2),
  }


def write_json(path: pathlib.Path, clips: int, seed: int) -> None:
  """The index as a list of objects."""
  entries = []
  for unit, (each, (_, text)) in enumerate(zip(units(clips, seed), sizes(clips, seed), strict=True)):
    for number in range(len(text)):
      words = "a word " * (int(text[number]) // 8)
      entry = {"unit": unit, "start": int(each["start"][number]), "shape": each["shape"][number].tolist()}
      entry |= {"size": each["size"][number].tolist(), "frames": int(each["frames"][number])}
      entry |= {"captions": {"short": words, "long": words}, "id": f"clips/{number:010d}.mp4", "part": 0}
      entries.append(entry | {"text": int(text[number])})
  path.write_text(json.dumps({"clips": entries}))


def measure_json(path: pathlib.Path, clips: int) -> dict[str, float]:
  """Opens and packs an index of JSON as lists of Python objects."""
  before, start = resident(), time.perf_counter()
  entries = json.loads(path.read_bytes())["clips"]
  opened = time.perf_counter()
  gc.collect()
  after = resident()
  packing_starts = time.perf_counter()
  lengths = [
    int(np.prod([-(-n // p) for n, p in zip(each["shape"], packing.GRID.patch, strict=False)])) for each in entries
  ]
  text = [each["text"] for each in entries]
  _ = level(lengths, text, packing.ROW), best_fit(lengths, text, packing.ROW)
  packed = time.perf_counter()
  return {
    "json_bytes_per_clip": round((after["own"] - before["own"]) / clips, 1),
    "json_us_per_clip": round(1e6 * (opened - start) / clips, 3),
    "json_plan_us_per_clip": round(1e6 * (packed - packing_starts) / clips, 3),
  }


def apart(measure: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
  """What a function finds in a process of its own, whose memory nothing else has used."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(measure, given)


def main() -> None:
  parser = argparse.ArgumentParser(description="An index of many clips: opened, packed, and its memory")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--clips", type=int, default=10_000_000)
  parser.add_argument("--json-clips", type=int, default=100_000)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write(folder, given.clips, given.seed)
    found = {"clips": given.clips, **apart(measure_columns, folder, given.clips)}
    write_json(folder / "old.json", given.json_clips, given.seed)
    found |= {"json_clips": given.json_clips, **apart(measure_json, folder / "old.json", given.json_clips)}
  found["json_open_seconds"] = round(found["json_us_per_clip"] * given.json_clips / 1e6, 3)
  print(f"{'':<22}{'columns':>14}{'JSON':>14}")
  rows = {
    "clips": ("clips", "json_clips"),
    "seconds to open": ("open_seconds", "json_open_seconds"),
    "bytes a clip": ("bytes_per_clip", "json_bytes_per_clip"),
    "us a clip to pack": ("plan_us_per_clip", "json_plan_us_per_clip"),
  }
  for label, (ours, theirs) in rows.items():
    print(f"{label:<22}{found[ours]:>14,}{found[theirs]:>14,}")
  if given.json:
    print(json.dumps(found))


if __name__ == "__main__":
  main()
