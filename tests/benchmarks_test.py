"""Benchmarks print what they promise: one JSON object as the last line, ours beside the peers."""

import json
import pathlib
import subprocess
import sys

import pytest

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


@pytest.mark.slow
def test_the_input_pipeline_is_timed_for_each_feed():
  found = last_line("input_pipeline.py", "--clips", "12", "--steps", "3", "--loader-steps", "20")
  assert set(found) == {
    "data_wait_share",
    "rss_mb_per_100_steps",
    "decoded",
    "crops",
    "rows",
    "loader_steps",
    "workers",
  }
  for feed in ("decoded", "crops", "rows"):
    assert 0 <= found[feed]["data_wait_share"] <= found["data_wait_share"] < 1
    assert 0 < found[feed]["peers"]["in_step"] < 1 and found[feed]["batches_per_second"] > 0


@pytest.mark.slow
def test_one_model_trains_on_the_same_clips_packed_bucketed_and_padded():
  found = last_line("packed_vs_padded.py", "--clips", "10", "--width", "64", "--depth", "1")
  assert set(found["schemes"]) == {"packed", "buckets", "padded"}
  assert found["packed_over_padded"] == pytest.approx(found["packed"] / found["padded"], rel=0.01)
  assert found["schemes"]["packed"]["programs"] == 1 and found["schemes"]["packed"]["lost_tokens"] == 0
  assert found["schemes"]["padded"]["useful_tokens"] < found["schemes"]["buckets"]["useful_tokens"] <= 1


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_compiles_little():
  found = last_line("restart.py", "--set", "model.depth=2", "--set", "model.text_depth=1")
  assert set(found) == {"first", "second", "second_over_first"}
  assert found["second"]["compile"] < 0.4 * found["first"]["compile"]
  assert found["second_over_first"] < 0.6
