"""A position in the data, for real: processes on any number of hosts, with or without workers, go on where others left.

What is read is compared with one process that was never stopped: every array of every batch.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from sora_jax.data import conditions, latents
from sora_jax.data.captions import write_captions
from sora_jax.data.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIPS, BATCH, EPOCH = 60, 4, 11  # EPOCH steps hold more than one pass and less than two

# One host. It reads its orders from the command line, and prints what it read.
HOST = """
import hashlib, json, sys
import grain, jax, numpy as np
from absl import flags
from sora_jax.packing.balance import ClipFlops
from sora_jax.data import conditions, pipeline
from sora_jax.data.latents import LatentStore
from sora_jax.data.stream import Reading
from sora_jax.jobs.tokenise import kept_texts
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.packing.batch import RowShape
from sora_jax.patches import Grid

flags.FLAGS.mark_as_parsed()
order = json.loads(sys.argv[1])
store = LatentStore(order["folder"])
tokenizer = Tokenizer.load(order["folder"] + "/tokenizer.model")
texts = kept_texts(store, tokenizer, 64)
step = pipeline.Step(order["batch"], 4, ClipFlops.of(1000, 2, 16))
shares = pipeline.Shares(0.5, conditions.Shares(0.8, (0.2,) * 5, 0.5, 0.3), order["dropped"])
rows = pipeline.PackedRows(store, texts, Grid((2, 4, 4), (1, 2, 2)), RowShape(48, 64, 8), step, 7, shares)
reading = Reading(grain.sharding.ShardOptions(order["index"], order["count"]), order["workers"])
for state, steps in order["parts"]:
  stream = pipeline.packed_batches(rows, reading)
  if state is not None:
    stream.set_state(state)
  for _ in range(steps):
    batch = next(stream)
    clips = [row[weight > 0].tolist() for row, weight in zip(batch.clip_index_BS, batch.weight_BS)]
    digests = [hashlib.sha256(b"".join(leaf[i].tobytes() for leaf in jax.tree.leaves(batch))).hexdigest()
               for i in range(len(clips))]
    print(json.dumps({"clips": clips, "digests": digests, "state": stream.get_state(), "rows": len(rows)}), flush=True)
  stream.close()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """A store of clips of four sizes, and its tokenizer."""

  def make():
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
      frames, width = ((1, 16), (1, 24), (5, 16), (5, 24))[i % 4]
      latent = rng.normal(size=(1 + (frames - 1) // 2, 4, width // 4, 4)).astype(np.float32)
      pieces = tuple((span, latent[: span.latent_frames] + 1) for span in conditions.spans(frames, 2, str(i)))
      yield latents.LatentClip(latent, (frames / 8, 16.0, width, 8.0), frames, str(i), pieces=pieces)

  folder = tmp_path_factory.mktemp("store")
  latents.begin(folder, {})
  latents.write_unit(folder, 0, make(), [])
  latents.finish(folder, 1)
  write_captions(folder, [{"short": f"clip {i}", "long": f"this is clip {i}"} for i in range(CLIPS)], "")
  Tokenizer.train(["this is clip 0", "clip 12"], 300).save(folder / "tokenizer.model")
  return folder


def read(
  folder: pathlib.Path, hosts: int, workers: int, parts: list[tuple[dict | None, int]], dropped: float = 0.0
) -> list[dict[str, Any]]:
  """What `hosts` processes read together, a step a line: their pieces in turn, and the state that all agree on."""
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  running = []
  for index in range(hosts):
    order = {"folder": str(folder), "index": index, "count": hosts, "workers": workers, "parts": parts, "batch": BATCH}
    command = [sys.executable, "-c", HOST, json.dumps({**order, "dropped": dropped})]
    running.append(
      subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=folder)
    )
  lines = [[json.loads(line) for line in process.communicate(timeout=600)[0].splitlines()] for process in running]
  assert all(process.returncode == 0 for process in running)
  steps = list(zip(*lines, strict=True))
  assert all(piece["state"] == pieces[0]["state"] for pieces in steps for piece in pieces)
  joined = lambda pieces, name: [row for piece in pieces for row in piece[name]]
  return [{**pieces[0], **{name: joined(pieces, name) for name in ("clips", "digests")}} for pieces in steps]


@pytest.fixture(scope="module")
def whole(folder) -> list[dict[str, Any]]:
  return read(folder, 1, 0, [(None, 3 * EPOCH)])


def last_of_epoch(whole: list[dict[str, Any]]) -> int:
  """The step in which the first epoch ends."""
  return next(step for step in range(len(whole)) if (step + 1) * BATCH >= whole[0]["rows"])


def assert_goes_on(whole, folder, hosts: int, workers: int, stops: list[int]):
  """After each of the stops, and again after a position that nothing was read from."""
  parts = [(whole[stop]["state"], 2) for stop in stops]
  found = read(folder, hosts, workers, [*parts, (whole[stops[0]]["state"], 0), (whole[stops[0]]["state"], 2)])
  wanted = [step for stop in [*stops, stops[0]] for step in whole[stop + 1 : stop + 3]]
  assert len(found) == len(wanted)
  for mine, step in zip(found, wanted, strict=True):
    assert mine["clips"] == step["clips"]
    assert mine["digests"] == step["digests"] and mine["state"] == step["state"]


def test_epochs_have_each_clip_once(whole):
  """F26."""
  rows = [row for step in whole for row in step["clips"]]
  each = whole[0]["rows"]
  for epoch in range(len(rows) // each):
    clips = [clip for row in rows[epoch * each : (epoch + 1) * each] for clip in row]
    assert sorted(clips) == list(range(CLIPS))
  assert len(rows) > 2 * each and rows[:each] != rows[each : 2 * each]


def test_the_position_holds_on_two_hosts(whole, folder):
  last = last_of_epoch(whole)
  assert_goes_on(whole, folder, 2, 0, [0, last // 2, last])


@pytest.mark.slow
def test_the_position_holds_with_workers(whole, folder):
  assert_goes_on(whole, folder, 1, 2, [last_of_epoch(whole) - 1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_position_holds_on_any_number_of_hosts_and_workers(whole, folder, hosts, workers):
  """F26: stopped at step 1, in the middle of an epoch and at its end."""
  last = last_of_epoch(whole)
  assert_goes_on(whole, folder, hosts, workers, [0, last // 2, last])


@pytest.mark.slow
def test_the_tokens_that_are_left_out_are_the_same_everywhere(folder):
  one, two = (read(folder, hosts, 0, [(None, 4)], dropped=0.25) for hosts in (1, 2))
  assert [step["digests"] for step in one] == [step["digests"] for step in two]
