"""Forward and backward of attention over a packed row: blocks that leave out what does not meet, and the dense mask.

A row of equal clips, float32, on this machine's CPU; both take turns, and the fastest round of each is reported: a
virtual machine's processors may be moved apart for a while, and what two of them share is then slow. `ratio` is the
dense mask's time over ours: the number of clips is its ceiling, and 1 is what a row of one clip could give at best.

    python benchmarks/attention.py [--json] [--tokens N] [--clips K ...]      two minutes
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models.attention.attention import attention
from sora_jax.runtime import process

HEADS, HEAD_WIDTH, ROUNDS = 4, 64, 15


def compiled(inputs: Any, backend: str) -> Any:
  """Value and gradients by one backend."""

  def call(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    return jnp.square(attention(query, key, value, segments, segments, backend)).sum()

  return jax.jit(jax.value_and_grad(call, (0, 1, 2))).lower(*inputs).compile()


def measure(tokens: int, clips: int) -> dict[str, float]:
  rng = np.random.default_rng(0)
  inputs = [jnp.asarray(rng.normal(size=(1, tokens, HEADS, HEAD_WIDTH)), jnp.float32) for _ in range(3)]
  inputs.append(jnp.asarray(1 + np.arange(tokens) * clips // tokens, jnp.int32)[None])
  programs = {backend: compiled(inputs, backend) for backend in ("blocks", "dense")}
  times: dict[str, list[float]] = {name: [] for name in programs}
  for number in range(ROUNDS + 1):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*inputs))
      if number:
        times[name].append(1e3 * (time.perf_counter() - start))
  found = {f"{name}_ms": round(min(each), 1) for name, each in times.items()}
  return {**found, "ratio": round(found["dense_ms"] / found["blocks_ms"], 2)}


def main() -> None:
  parser = argparse.ArgumentParser(description="Attention over a packed row: blocks beside the dense mask")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument("--clips", type=int, nargs="+", default=[1, 2, 4, 8, 16])
  given = parser.parse_args()
  process.keep_freed_memory()
  process.compile_sooner()
  found = {str(clips): measure(given.tokens, clips) for clips in given.clips}
  for clips, row in found.items():
    print(f"{clips:>3} clips", ", ".join(f"{name} {value}" for name, value in row.items()))
  if given.json:
    print(json.dumps({"tokens": given.tokens, "clips": found}))


if __name__ == "__main__":
  main()
