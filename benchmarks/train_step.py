"""How fast one training step of the transformer's blocks runs, next to PyTorch and to this machine's matrix product.

The step is that of `block_stack.py`, whose docstring says what it does and how its operations are counted. The peers
are the same blocks in PyTorch with fused Adam, eager and by torch.compile, each with every attention that PyTorch has
for packed rows (`torch_stack.py`). The fastest of all that computes the same is the peer; the fastest eager one is
named beside it. A step without any mask is less work, and wrong across clips: it is in the table alone. All float32.

The matrix product, our step and PyTorch's are timed in turn, several rounds over, and medians are reported: a machine
that slows down for a while slows all of them. PyTorch runs in a process of its own, which compiles first.

    python benchmarks/train_step.py [--json] [--torch] [--peer-python PATH]

It needs sora_jax on the path and, for the peers' half, an interpreter that can import torch and a C++ compiler.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

from block_stack import Shape, add_sizes, given_sizes, median_seconds, our_step, step_flops
from torch_stack import NO_MASK, Peer

MATMUL_SIZE = 1024
MATMUL_REPEATS = 4
BUSY = 0.05  # more than this share of the processors to other programs disturbs a run


class Processors:
  """What this program, its children and everything else took of the processors since `start`."""

  def __init__(self) -> None:
    self.start = self._read()

  def taken_by_others(self) -> float | None:
    """Share of all processors' time that other programs used, 0..1; None where the system does not say.

    Children count once they have ended.
    """
    end = self._read()
    if self.start is None or end is None:
      return None
    used, own, wall = (now - then for now, then in zip(end, self.start, strict=True))
    return max(0.0, used - own) / (wall * (os.cpu_count() or 1))

  @staticmethod
  def _read() -> tuple[float, float, float] | None:
    """Seconds of all programs, of this one with its children, and of the clock."""
    try:
      with open("/proc/stat") as file:
        user, nice, system = (int(value) for value in file.readline().split()[1:4])
    except OSError:
      return None
    times = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), sum(times[:4]), times.elapsed


def our_matmul() -> Callable[[], Any]:
  """One float32 product of square matrices, compiled."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), jnp.float32)
  product = jax.jit(jnp.dot)
  return lambda: product(x, x).block_until_ready()


def measure(shape: Shape, rounds: int, repeats: int, peer: Peer | None) -> dict[str, float]:
  """Median seconds of every contestant over interleaved rounds, the first (compilation, warm-up) left out."""
  step, matmul = our_step(shape), our_matmul()
  times: dict[str, list[float]] = {}
  for index in range(rounds + 1):
    found = {"matmul": median_seconds(matmul, MATMUL_REPEATS), "ours": median_seconds(step, repeats)}
    found |= peer.seconds() if peer else {}
    for name, seconds in found.items():
      times.setdefault(name, []).extend([seconds] if index else [])
  return {name: statistics.median(seconds) for name, seconds in times.items()}


def report(shape: Shape, seconds: dict[str, float], peer_name: str | None) -> dict[str, Any]:
  """The numbers of one run; rates in operations a second, what has no peer is None. Ratios are ours over a peer's."""
  flops, peak = step_flops(shape), 2.0 * MATMUL_SIZE**3 / seconds["matmul"]
  ours = seconds["ours"]
  peers = {name: each for name, each in seconds.items() if name not in ("matmul", "ours")}
  fastest = lambda mode: min(
    (name for name in peers if name.startswith(mode) and NO_MASK not in name),
    key=lambda name: peers[name],
    default=None,
  )
  best, eager, compiled = fastest(""), fastest("eager"), fastest("compiled")
  ratio = lambda name: peers[name] / ours if name else None
  return {
    "ours_flops_per_second": flops / ours,
    "peer_flops_per_second": flops / peers[best] if best else None,
    "peer": f"{peer_name}, {best}" if best else None,
    "ratio": ratio(best),
    "ratio_eager": ratio(eager),
    "ratio_compiled": ratio(compiled),
    "matmul_peak": peak,
    "share_of_peak": flops / ours / peak,
    "seconds_ours": ours,
    "seconds_peer": peers[best] if best else None,
    "peers": {
      name: {"seconds": each, "flops_per_second": flops / each, "ratio": each / ours} for name, each in peers.items()
    },
    "shape": shape._asdict(),
  }


def print_table(shape: Shape, seconds: dict[str, float], found: dict[str, Any]) -> None:
  gflops = step_flops(shape) / 1e9
  print(", ".join(f"{name} {value}" for name, value in shape._asdict().items()))
  print(f"{'':40s}{'ms':>8s}{'GFLOP/s':>10s}{'of peak':>9s}{'ours is':>9s}")
  print(f"{'matrix product':40s}{seconds['matmul'] * 1e3:8.1f}{found['matmul_peak'] / 1e9:10.0f}{1:9.0%}")
  for name in ("ours", *found["peers"]):
    rate = gflops / seconds[name]
    label = name if name == "ours" else f"PyTorch {name}"
    times = "" if name == "ours" else f"{found['peers'][name]['ratio']:8.2f}x"
    print(f"{label:40s}{seconds[name] * 1e3:8.1f}{rate:10.0f}{rate * 1e9 / found['matmul_peak']:9.0%}{times}")
  for name, why in found["lacking"].items():
    print(f"PyTorch {name}: can't be computed here ({why})")
  if found["ratio"]:
    print(f"ours / {found['peer']}: {found['ratio']:.2f} times its operations a second")
  busy = found["other_programs_share"]
  if busy is not None and busy > BUSY:
    print(f"other programs took {busy:.0%} of the processors meanwhile: do not trust these numbers")


def parse_arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
  parser.add_argument("--torch", action="store_true", help="measure PyTorch too")
  parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="interpreter that has torch")
  parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
  parser.add_argument("--repeats", type=int, default=3, help="steps a round (default 3)")
  add_sizes(parser)
  return parser.parse_args()


def main() -> None:
  options = parse_arguments()
  shape, peer = given_sizes(options), None
  if options.torch:
    peer = Peer(options.peer_python, shape, options.repeats)
    if peer.error:
      print(f"no peer: {peer.error}", file=sys.stderr)
      peer = None
  processors = Processors()
  seconds = measure(shape, options.rounds, options.repeats, peer)
  if peer:
    peer.close()
  found = report(shape, seconds, peer.name if peer else None)
  found["lacking"] = peer.lacking if peer else {}
  found["other_programs_share"] = processors.taken_by_others()
  print_table(shape, seconds, found)
  if options.json:
    print(json.dumps(found))


if __name__ == "__main__":
  main()
