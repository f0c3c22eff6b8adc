"""The parts of `benchmarks/gpu.py`, each a process that prints what it has so far, a JSON object a line.

    python benchmarks/gpu_parts.py PART [--seconds N] [--tiny]

sweep: the kernel (`models/attention/flash_gpu.py`) against the softmax over all pairs in float32, for each length,
  type and head width, one row of four clips of any length and one of padding alone. `out`, `query`, `key`, `value`:
  the largest difference of the output and of each gradient (inputs are of variance 1); `finite`: whether all are
  numbers.
attention: value and gradients of one row of 32,768 tokens in bfloat16, as XL (16 heads of 72) and 8B (32 of 128), cut
  in 1 to 16 equal clips. `ms`: median. `teraflops`: operations a second, forward 4 x heads x width x pairs of tokens of
  one clip and for the gradients 2.5 times that, a multiply-add counted as 2. `factor`: the time of one clip over this
  one's, `bar`: what it should reach, clips / 1.3. `dense`: the kernel beside every pair and a mask at 4,096 tokens, its
  time over the kernel's as `factor`.
train_step: `train.state.make_step` with `train.dit.DiTTask` and configs/dit.py variant=XL on rows of 32,768 tokens,
  eight clips each, bfloat16. One trial for each number of rows and `model.remat`, while time lasts, those that do not
  fit with the GiB they need; `best` has most tokens a second. `seconds` of a step: median; `mfu`: model operations of
  `sora_jax/plan/flops.py` (products with weights, and attention's pairs of one clip, nothing that is made again) a
  second, over the chip's peak of `sora_jax/plan/chips.py`; `peak_gib`: memory in use at most, since the start.
  `attention`: what computed it.
peer: the stack of blocks of `block_stack.py` (no embedding, no loss of clips; Adam) at the same size, ours and
  PyTorch's in turn: the same blocks with flex_attention over a mask of segments, torch.compile, bfloat16 autocast; both
  make each block again in the backward pass. `ours_seconds`, `peer_seconds`: medians of a step; `*_teraflops` by the
  formula there, pairs of one clip alone; `ratio`: the peer's time over ours. Without torch, ours alone.
"""

import argparse
import concurrent.futures
import functools
import json
import math
import os
import pathlib
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from block_stack import Shape, median_seconds, our_step, segment_ids, step_flops
from torch_stack import FLEX, Peer

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project is where this script is, installed or not
GIB = 2**30
NAMES = ("out", "query", "key", "value")  # the output and the gradients


class Size(NamedTuple):
  """How large the parts are."""

  lengths: tuple[int, ...] = (1, 63, 64, 65, 127, 128, 129, 191, 192, 704, 1088)
  kinds: tuple[tuple[str, int], ...] = (("bfloat16", 72), ("bfloat16", 128), ("float32", 72))  # type, head width
  tokens: int = 32768  # of a row
  dense_tokens: int = 4096
  heads: tuple[tuple[str, int, int], ...] = (("XL", 16, 72), ("8B", 32, 128))  # name, heads, width
  clips: tuple[int, ...] = (1, 2, 4, 8, 16)
  config: str = "variant=XL"
  text: int = 1024  # caption tokens of a row
  row_clips: int = 8
  trials: tuple[tuple[int, str], ...] = ((4, "attention"), (1, "none"), (1, "attention"), (1, "full"))  # rows, remat
  stack: Shape = Shape(1152, 28, 16, 1, 32768, 8, 1024, 384)
  repeats: int = 5


TINY = Size(
  lengths=(1, 65),
  kinds=(("bfloat16", 72), ("float32", 8)),
  tokens=256,
  dense_tokens=128,
  heads=(("XL", 2, 72),),
  clips=(1, 2),
  config="variant=S,runlocal=1",
  text=64,
  row_clips=4,
  trials=((1, "none"), (2, "full")),
  stack=Shape(64, 2, 2, 1, 128, 4, 32, 32),
  repeats=1,
)


def median_ms(call: Callable, *inputs: Any) -> float:
  """Of repeated calls, the first left out."""
  import jax

  run = lambda: jax.block_until_ready(call(*inputs))
  run()
  return round(1e3 * median_seconds(run, 5), 3)


def segments_of(tokens: int, clips: int) -> Any:
  """Of one row of equal clips, on the device."""
  import jax.numpy as jnp

  return jnp.asarray(segment_ids(tokens, clips), jnp.int32)[None]


def pulled(attend: Callable, query: Any, key: Any, value: Any, gradient: Any, segments: Any) -> tuple:
  """The output, and the gradients of query, key and value, all (B, K, L, H)."""
  import jax

  out, pull = jax.vjp(lambda *qkv: attend(*qkv, segments, segments), query, key, value)
  return out, *pull(gradient.astype(out.dtype))


def flash() -> Callable:
  from sora_jax.models.attention.flash_gpu import FLASH_GPU
  from sora_jax.models.attention.kernel import attend

  return functools.partial(attend, FLASH_GPU)


def sweep(size: Size, deadline: float) -> Iterator[dict]:
  """Yields what it has so far, as every part does."""
  import jax
  import jax.numpy as jnp

  from sora_jax.models.attention.attention import dense_attention

  jax.config.update("jax_default_matmul_precision", "highest")
  found: dict[str, Any] = {"cases": []}

  def case(length: int, dtype: str, width: int) -> dict:
    rng = np.random.default_rng(length)
    inputs = [jnp.asarray(rng.normal(size=(2, 2, length, width)), dtype) for _ in range(4)]
    ids = np.sort(rng.integers(0, 5, length))[::-1]  # padding, 0, is last
    segments = jnp.asarray(np.stack([ids, np.zeros(length)]), jnp.int32)
    seen = np.asarray(segments > 0)[:, None, :, None]
    ours = jax.jit(functools.partial(pulled, flash()))(*inputs, segments)
    wide = [x.astype(jnp.float32) for x in inputs]
    whole = jax.jit(functools.partial(pulled, dense_attention))(*wide[:3], wide[3] * seen, segments)
    pairs = list(zip((np.asarray(x, np.float32) for x in ours), map(np.asarray, whole), strict=True))
    worst = [float(np.abs(np.where(seen, a - b, 0.0)).max()) for a, b in pairs]
    finite = all(np.isfinite(a).all() for a, _ in pairs)
    return {"length": length, "dtype": dtype, "width": width, "finite": finite, **dict(zip(NAMES, worst, strict=True))}

  cases = [(length, *kind) for length in size.lengths for kind in size.kinds]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # compiling is most of it
    for each in pool.map(lambda arguments: case(*arguments), cases):
      found["cases"].append(each)
      found["finite"] = all(each["finite"] for each in found["cases"])
      for dtype in {kind[0] for kind in size.kinds}:
        mine = [each for each in found["cases"] if each["dtype"] == dtype]
        found[dtype] = {name: max((each[name] for each in mine), default=None) for name in NAMES}
      yield found


def attention(size: Size, deadline: float) -> Iterator[dict]:
  import jax
  import jax.numpy as jnp

  from sora_jax.models.attention.attention import dense_attention

  found: dict[str, Any] = {"tokens": size.tokens, "dense": {"tokens": size.dense_tokens}}
  ours, dense = (jax.jit(functools.partial(pulled, attend)) for attend in (flash(), dense_attention))

  def draw(tokens: int, heads: int, width: int) -> list:
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (1, heads, tokens, width), jnp.bfloat16) for key in keys]

  for name, heads, width in size.heads:
    inputs, found[name] = draw(size.tokens, heads, width), {}
    for clips in size.clips:
      ms = median_ms(ours, *inputs, segments_of(size.tokens, clips))
      operations = 3.5 * 4 * heads * width * size.tokens**2 / clips
      row = {"ms": ms, "teraflops": round(operations / ms / 1e9, 1)}
      one = found[name].get("1", row)["ms"]
      found[name][str(clips)] = {**row, "factor": round(one / ms, 2), "bar": round(clips / 1.3, 2)}
      yield found
  for name, heads, width in size.heads:
    inputs, found["dense"][name] = draw(size.dense_tokens, heads, width), {}
    for clips in size.clips:
      segments = segments_of(size.dense_tokens, clips)
      row = {"flash_ms": median_ms(ours, *inputs, segments), "dense_ms": median_ms(dense, *inputs, segments)}
      found["dense"][name][str(clips)] = {**row, "factor": round(row["dense_ms"] / row["flash_ms"], 2)}
      yield found


def train_steps(size: Size, deadline: float) -> Iterator[dict]:
  found: dict[str, Any] = {"trials": []}
  longest = 0.0
  for rows, remat in size.trials:
    if time.monotonic() + longest > deadline:
      break
    begun = time.monotonic()
    try:
      row = train_trial(size, rows, remat)
    except Exception as error:  # what does not fit says so in many ways; the next trial may
      row = {"error": first_line(error)}
    found["trials"].append({"rows": rows, "remat": remat, **row})
    longest = max(longest, time.monotonic() - begun)
    done = [each for each in found["trials"] if "seconds" in each]
    found["best"] = max(done, key=lambda each: each["tokens_per_second"], default=None)
    yield found


def train_trial(size: Size, rows: int, remat: str) -> dict[str, Any]:
  """One step of the config, compiled, and timed where it fits."""
  import jax

  from sora_jax import sharding
  from sora_jax.models.attention.attention import choose
  from sora_jax.models.dit import DiTConfig
  from sora_jax.packing.batch import RowShape
  from sora_jax.plan import chips, flops
  from sora_jax.train.dit import DiffusionConfig, DiTTask
  from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
  from sora_jax.train.state import make_state, make_step

  config = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"](size.config)
  config.model.update(remat=remat, dtype="bfloat16")
  model = DiTConfig.of(config, config.model.vocabulary)
  task = DiTTask(model, DiffusionConfig.of(config))
  optimizer = make_optimizer(OptimizerConfig.of(config))
  batch = train_batch(size, rows, model)
  mesh = sharding.make_mesh(None, jax.devices()[:1])
  with jax.set_mesh(mesh):
    batch = sharding.to_devices(batch, mesh)
    backend, state = choose(model.attention, size.tokens, size.tokens), make_state(task, optimizer, 0, mesh)
    step = jax.jit(make_step(task, optimizer, config.train.ema_decay), donate_argnums=0).lower(state, batch).compile()
    memory = step.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    if needed > limit:
      return {"error": f"it needs {needed / GIB:.1f} GiB, of {limit / GIB:.1f}"}
    times = []
    for _ in range(size.repeats + 1):
      begun = time.perf_counter()
      state, metrics = jax.block_until_ready(step(state, batch))
      times.append(time.perf_counter() - begun)
  seconds, tokens = float(np.median(times[1:])), rows * size.tokens
  shape = RowShape(size.tokens, size.text, size.row_clips)
  counted = flops.count(state.params, model, flops.Rows(rows, shape, size.tokens / size.row_clips), remat)
  chip = chips.chip_of(jax.devices()[0].device_kind)
  peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return {
    "attention": backend,
    "seconds": round(seconds, 4),
    "tokens_per_second": round(tokens / seconds),
    "model_teraflops": round(counted.model / seconds / 1e12, 3),
    "mfu": round(counted.model / seconds / chip.flops, 4) if chip else None,
    "peak_gib": round(peak / GIB, 2) if peak else None,
    "needed_gib": round(needed / GIB, 2),
    "loss": float(metrics["loss"]),
    "finite": bool(metrics["finite"]),
  }


def train_batch(size: Size, rows: int, model: Any) -> Any:
  """Rows full of equal clips of noise, and captions of equal length."""
  from sora_jax.packing.batch import RowShape, Segment, pack_row, stack

  rng = np.random.default_rng(0)
  tokens, text = size.tokens // size.row_clips, size.text // size.row_clips

  def clip(number: int) -> Segment:
    positions = np.stack([np.arange(tokens) // 64 / 8, np.arange(tokens) // 8 % 8 * 16, np.arange(tokens) % 8 * 16], -1)
    return Segment(
      rng.normal(size=(tokens, model.channels)).astype(np.float32),
      positions.astype(np.float32),
      np.zeros(tokens, bool),
      np.zeros(tokens, np.float32),
      rng.integers(1, model.text.vocabulary, text).astype(np.int32),
      np.asarray([tokens / 64 / 8, 128, 128, 8], np.float32),
      number,
    )

  shape = RowShape(size.tokens, size.text, size.row_clips)
  clips = [[clip(row * size.row_clips + place) for place in range(size.row_clips)] for row in range(rows)]
  return stack([pack_row(row, shape, model.channels) for row in clips])


def peer(size: Size, deadline: float) -> Iterator[dict]:
  shape = size.stack
  operations = step_flops(shape, 1 / shape.segments)
  other = Peer(sys.executable, shape, 1, gpu=True)
  found: dict[str, Any] = {"shape": shape._asdict(), "peer": other.name}
  if other.error:
    found["peer_error"] = other.error
  ours = our_step(shape, "bfloat16", "full")
  times: dict[str, list[float]] = {"ours": [], "peer": []}

  def take(name: str, seconds: float) -> dict:
    times[name].append(seconds)
    median = float(np.median(times[name][1:] or times[name]))  # the first compiles
    found.update({f"{name}_seconds": round(median, 4), f"{name}_teraflops": round(operations / median / 1e12, 3)})
    if "peer_seconds" in found:
      found["ratio"] = round(found["peer_seconds"] / found["ours_seconds"], 3)
    return found

  for _ in range(size.repeats + 1):
    yield take("ours", median_seconds(ours, 1))
    if "peer_error" not in found:
      answer = other.seconds()
      if "error" in answer:
        found["peer_error"] = answer["error"]
      else:
        yield take("peer", answer[FLEX])
  other.close()


WORK = {"sweep": sweep, "attention": attention, "train_step": train_steps, "peer": peer}


def serve(part: str, size: Size, seconds: float) -> None:
  """A part's process: a JSON object a line, each more than the last."""
  found: dict[str, Any] = {}
  try:
    for found in WORK[part](size, time.monotonic() + seconds):
      print(json.dumps(found), flush=True)
  except Exception as error:
    print(json.dumps({**found, "error": first_line(error)}), flush=True)
    raise


def first_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("part", choices=WORK)
  parser.add_argument("--seconds", type=float, default=120.0, help="it begins nothing more after them (default 120)")
  parser.add_argument("--tiny", action="store_true", help="a small size, for any machine")
  given = parser.parse_args()
  serve(given.part, TINY if given.tiny else Size(), given.seconds)


if __name__ == "__main__":
  main()
