"""Benchmarks print what they promise: one JSON object as the last line, ours beside the peers."""

import json
import pathlib
import subprocess
import sys

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
FIGURES = {"useful_tokens", "lost_tokens", "flop_balance", "worst_step", "mixed_steps", "programs", "seconds_per_clip"}


def last_line(name: str, *arguments: str) -> dict:
  found = subprocess.run(
    [sys.executable, str(BENCHMARKS / name), "--json", *arguments], capture_output=True, text=True, check=True
  )
  return json.loads(found.stdout.splitlines()[-1])


def test_packing_puts_four_peers_beside_ours():
  found = last_line("packing.py", "--clips", "4000", "--ranks", "8")
  assert set(found) == FIGURES | {"clips", "ranks", "peers"}
  assert set(found["peers"]) == {"best_fit", "first_fit", "buckets", "padded"}
  for scheme in (found, *found["peers"].values()):
    assert FIGURES <= set(scheme)
    assert 0 < scheme["useful_tokens"] <= 1 and 0 <= scheme["lost_tokens"] < 1
    assert 0 < scheme["worst_step"] <= scheme["flop_balance"] + 1e-4 <= 1.0002
  assert (found["clips"], found["ranks"], found["programs"]) == (4000, 8, 1)
  assert found["flop_balance"] > max(peer["flop_balance"] for peer in found["peers"].values())
