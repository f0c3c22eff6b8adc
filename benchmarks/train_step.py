"""How fast one training step of the transformer's blocks runs, next to PyTorch and to this machine's matrix product.

A step is forward, backward and Adam over a stack of `sora_jax.models.dit.Block`: packed rows with segments, adaLN
modulation of each token, self attention, cross attention to captions, SwiGLU. The gradients with respect to the
first block's input and to the modulation are taken as well, as they are in the whole model. The peer is the same
block in eager PyTorch with fused Adam and F.scaled_dot_product_attention, once with a boolean segment mask and once
without any mask (less work, wrong across segments); the faster of the two is the peer's time. All float32.

Floating-point operations of a step, a multiply-add counted as 2:

    6 * sum over dense layers of (weights a block [numbers] * depth * items that pass through it [tokens])
      + 12 * width * depth * rows * tokens * (tokens + text_tokens)

6 = 2 forward + 4 backward (input and weight gradients) for each weight and token; 12 = the same for the two products of
attention, which contract `width` numbers for each pair of query and key in a row, masked pairs included. Norms, rotary
positions, softmax, gates and Adam count nothing.

The matrix product, our step and PyTorch's two are timed in turn, several rounds over, and medians are reported: a
machine that slows down for a while slows all of them. PyTorch runs in a process of its own.

`benchmarks/gpu.py` takes from here the same stack in bfloat16, and as its peer the same block, compiled, with
flex_attention over the segments.

    python benchmarks/train_step.py [--json] [--torch] [--peer-python PATH]

It needs sora_jax on the path and, for the peer's half, an interpreter that can import torch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

MATMUL_SIZE = 1024
MATMUL_REPEATS = 4
PEER_KINDS = ("no mask", "boolean mask")
FLEX = "flex_attention"  # the peer on a GPU, in bfloat16 and compiled
LEARNING_RATE = 1e-4
BUSY = 0.05  # more than this share of the processors to other programs disturbs a run


class Shape(NamedTuple):
  """Sizes of the stack and of its batch."""

  width: int = 384
  depth: int = 3
  heads: int = 6
  rows: int = 8
  tokens: int = 256  # a row
  segments: int = 4  # a row
  text_tokens: int = 64  # a row
  text_width: int = 192

  @property
  def hidden(self) -> int:
    return -(-self.width * 8 // 3 // 32) * 32


def step_flops(shape: Shape, met: float = 1.0) -> float:
  """Floating-point operations of one step (see the module's docstring), with a share of the pairs."""
  D = shape.width
  tokens, text_tokens = shape.rows * shape.tokens, shape.rows * shape.text_tokens
  dense = tokens * (3 * D * D + D * D + D * D + D * D + 3 * D * shape.hidden) + text_tokens * 2 * shape.text_width * D
  attention = D * tokens * (shape.tokens + shape.text_tokens) * met
  return shape.depth * (6.0 * dense + 12.0 * attention)


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def segment_ids(length: int, segments: int) -> list[int]:
  """Equal segments of one row, numbered from 1."""
  return [1 + i * segments // length for i in range(length)]


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


def our_step(shape: Shape, dtype: str = "float32", remat: str = "none") -> Callable[[], Any]:
  """One training step of a stack of the project's blocks, compiled, its state donated.

  Args:
    dtype: what the blocks compute in.
    remat: what of a block the backward pass makes again, of `layers.REMAT`.
  """
  import jax
  import jax.numpy as jnp
  import optax
  from flax import nnx

  from sora_jax.host import keep_freed_memory
  from sora_jax.models import layers
  from sora_jax.models.dit import Block, DiTConfig
  from sora_jax.models.text_encoder import TextEncoderConfig

  keep_freed_memory()
  text = TextEncoderConfig(vocabulary=1, width=shape.text_width, depth=1, heads=1)
  config = DiTConfig(channels=1, width=shape.width, depth=shape.depth, heads=shape.heads, text=text, wavelengths=())
  blocks = layers.make_stack(lambda rngs: Block(config, rngs), shape.depth, nnx.Rngs(0))
  graph, params = nnx.split(blocks)
  rows, tokens, width = shape.rows, shape.tokens, shape.width
  keys = jax.random.split(jax.random.key(1), 5)
  inputs = {
    "x": jax.random.normal(keys[0], (rows, tokens, width), dtype),
    "modulation": [jax.random.normal(key, (rows, tokens, width)) * 0.1 for key in jax.random.split(keys[1], 6)],
  }
  target = jax.random.normal(keys[2], (rows, tokens, width))
  text_BMD = jax.random.normal(keys[3], (rows, shape.text_tokens, shape.text_width), dtype)
  angles = jax.random.uniform(keys[4], (rows, tokens, width // shape.heads // 2))
  rotary = (jnp.cos(angles), jnp.sin(angles))
  segments = jnp.tile(jnp.array(segment_ids(tokens, shape.segments)), (rows, 1))
  text_segments = jnp.tile(jnp.array(segment_ids(shape.text_tokens, shape.segments)), (rows, 1))

  def loss(params: Any, inputs: dict[str, Any], data: Any) -> jax.Array:
    target, text_BMD, rotary, segments, text_segments = data
    call = lambda block, x: block(x, inputs["modulation"], segments, rotary, text_BMD, text_segments)
    out = layers.apply_stack(nnx.merge(graph, params), inputs["x"], call, remat)
    return jnp.mean(jnp.square(out - target))

  optimizer = optax.adam(LEARNING_RATE)

  def step(state: Any, inputs: Any, data: Any) -> tuple[Any, Any]:
    params, moments = state
    value, (gradient, input_gradient) = jax.value_and_grad(loss, (0, 1))(params, inputs, data)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), (value, input_gradient)

  compiled = jax.jit(step, donate_argnums=0)
  data = (target, text_BMD, rotary, segments, text_segments)
  holder = [(params, optimizer.init(params))]

  def run() -> None:
    holder[0], out = compiled(holder[0], inputs, data)
    jax.block_until_ready((holder[0], out))

  return run


def torch_blocks(shape: Shape, attend: Callable) -> Any:
  """The project's stack of blocks in PyTorch; their `forward` takes a mask of segments for each attention, or None.

  Args:
    attend: (query, key, value, mask) -> what they mix.
  """
  import torch
  from torch import nn
  from torch.nn import functional

  B, L, M, D, K = shape.rows, shape.tokens, shape.text_tokens, shape.width, shape.heads
  H = D // K
  norm = lambda x: functional.rms_norm(x, x.shape[-1:], eps=1e-6).to(x.dtype)

  def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)

  class Block(nn.Module):
    def __init__(self) -> None:
      super().__init__()
      dense = lambda i, o: nn.Linear(i, o, bias=False)
      self.qkv, self.out, self.query, self.cross_out = dense(D, 3 * D), dense(D, D), dense(D, D), dense(D, D)
      self.key_value = dense(shape.text_width, 2 * D)
      self.gate_up, self.down = dense(D, 2 * shape.hidden), dense(shape.hidden, D)
      self.table = nn.Parameter(torch.zeros(6, D))

    def forward(self, x, modulation, rotary, text, mask, text_mask):
      shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).to(x.dtype).unbind(1)
      qkv = self.qkv(norm(x) * (1 + scale1) + shift1).view(B, L, 3, K, H).permute(2, 0, 3, 1, 4)
      query, key = rotate(norm(qkv[0]), *rotary), rotate(norm(qkv[1]), *rotary)
      mixed = attend(query, key, qkv[2], mask)
      x = x + gate1 * self.out(mixed.transpose(1, 2).reshape(B * L, D))
      query = norm(self.query(norm(x)).view(B, L, K, H)).transpose(1, 2)
      key, value = self.key_value(text).view(B, M, 2, K, H).permute(2, 0, 3, 1, 4)
      mixed = attend(query, norm(key), value, text_mask)
      x = x + self.cross_out(mixed.transpose(1, 2).reshape(B * L, D))
      gate, up = self.gate_up(norm(x) * (1 + scale2) + shift2).chunk(2, -1)
      return x + gate2 * self.down(functional.silu(gate) * up)

  return nn.ModuleList([Block() for _ in range(shape.depth)])


def torch_step(shape: Shape, kind: str, device: str = "cpu") -> Callable[[], Any]:
  """One training step of the peer's stack: one of PEER_KINDS, or FLEX, each block made again in the backward pass."""
  import torch
  from torch.utils.checkpoint import checkpoint

  torch.manual_seed(0)
  flex = kind == FLEX
  attend, make_mask = torch_attention(kind, device)
  with torch.device(device):
    blocks = torch_blocks(shape, attend)
    x, modulation, target, text, rotary, segments, text_segments = torch_inputs(
      shape, torch.bfloat16 if flex else torch.float32
    )
  mask, text_mask = (make_mask(segments, keys) for keys in (segments, text_segments))
  optimizer = torch.optim.Adam(blocks.parameters(), LEARNING_RATE, fused=True)
  calls = [torch.compile(block) if flex and device != "cpu" else block for block in blocks]

  def run() -> None:
    out = x
    with torch.autocast(device, torch.bfloat16, enabled=flex):
      for call in calls:
        given = (out, modulation, rotary, text, mask, text_mask)
        out = checkpoint(call, *given, use_reentrant=False) if flex else call(*given)
    loss = torch.nn.functional.mse_loss(out.float(), target)
    for leaf in (x, modulation):
      leaf.grad = None
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if device != "cpu":
      torch.cuda.synchronize()

  return run


def torch_inputs(shape: Shape, dtype: Any) -> tuple:
  """The stack's input, modulation, target, text, rotary tables, and the segments of a row's tokens and text."""
  import torch

  items = shape.rows * shape.tokens
  x = torch.randn(items, shape.width, dtype=dtype, requires_grad=True)
  modulation = (torch.randn(items, 6, shape.width) * 0.1).requires_grad_()
  target = torch.randn(items, shape.width)
  text = torch.randn(shape.rows * shape.text_tokens, shape.text_width, dtype=dtype)
  angles = torch.rand(shape.rows, 1, shape.tokens, shape.width // shape.heads // 2)
  rotary = (angles.cos().to(dtype), angles.sin().to(dtype))
  segments, text_segments = (torch.tensor(segment_ids(n, shape.segments)) for n in (shape.tokens, shape.text_tokens))
  return x, modulation, target, text, rotary, segments, text_segments


def torch_attention(kind: str, device: str) -> tuple[Callable, Callable]:
  """How the peer attends, (query, key, value, mask), and makes a mask of segments of a row's queries and keys."""
  from torch.nn import functional

  if kind == FLEX and device != "cpu":  # which has no gradient of it
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def block_mask(segments: Any, keys: Any) -> Any:
      same = lambda row, head, query, key: segments[query] == keys[key]
      return create_block_mask(same, None, None, len(segments), len(keys), device)

    return (lambda query, key, value, mask: flex_attention(query, key, value, block_mask=mask)), block_mask
  attend = lambda query, key, value, mask: functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
  mask = lambda segments, keys: None if kind == PEER_KINDS[0] else (segments[:, None] == keys)[None, None]
  return attend, mask


def serve_peer(shape: Shape, repeats: int, gpu: bool) -> None:
  """The peer's process: for each line read, times one step of each kind and answers with a JSON object of seconds."""
  try:
    import torch
  except ImportError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    return
  device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
  print(json.dumps({"name": f"PyTorch {torch.__version__} {'compiled' if device == 'cuda' else 'eager'}"}), flush=True)
  steps = {kind: torch_step(shape, kind, device) for kind in ((FLEX,) if gpu else PEER_KINDS)}
  for _ in sys.stdin:
    print(json.dumps({kind: median_seconds(step, repeats) for kind, step in steps.items()}), flush=True)


class Peer:
  """The peer's process, or the reason why there is none."""

  def __init__(self, python: str, arguments: list[str]):
    command = [python, os.path.abspath(__file__), "--torch", "--serve", *arguments]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    hello = self._answer()
    self.name, self.error = hello.get("name", ""), hello.get("error")

  def seconds(self) -> dict[str, float]:
    assert self.process.stdin is not None
    self.process.stdin.write("\n")
    self.process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    assert self.process.stdin is not None
    self.process.stdin.close()
    self.process.wait()

  def _answer(self) -> dict[str, Any]:
    assert self.process.stdout is not None
    line = self.process.stdout.readline()
    return json.loads(line) if line else {"error": f"the peer's process ended with {self.process.wait()}"}


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
  """The numbers of one run; rates in operations a second, what has no peer is None."""
  flops, peak = step_flops(shape), 2.0 * MATMUL_SIZE**3 / seconds["matmul"]
  kind = min(PEER_KINDS, key=lambda name: seconds[name]) if peer_name else None
  peer_seconds = seconds[kind] if kind else None
  return {
    "ours_flops_per_second": flops / seconds["ours"],
    "peer_flops_per_second": flops / peer_seconds if peer_seconds else None,
    "peer": f"{peer_name}, {kind}" if kind else None,
    "ratio": peer_seconds / seconds["ours"] if peer_seconds else None,
    "matmul_peak": peak,
    "share_of_peak": flops / seconds["ours"] / peak,
    "seconds_ours": seconds["ours"],
    "seconds_peer": peer_seconds,
    "shape": shape._asdict(),
  }


def print_table(shape: Shape, seconds: dict[str, float], found: dict[str, Any]) -> None:
  gflops = step_flops(shape) / 1e9
  print(", ".join(f"{name} {value}" for name, value in shape._asdict().items()))
  print(f"{'':28s}{'ms':>8s}{'GFLOP/s':>10s}{'of peak':>9s}")
  print(f"{'matrix product':28s}{seconds['matmul'] * 1e3:8.1f}{found['matmul_peak'] / 1e9:10.0f}{1:9.0%}")
  for name in ("ours", *PEER_KINDS):
    if name in seconds:
      rate = gflops / seconds[name]
      label = name if name == "ours" else f"PyTorch, {name}"
      print(f"{label:28s}{seconds[name] * 1e3:8.1f}{rate:10.0f}{rate * 1e9 / found['matmul_peak']:9.0%}")
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
  for name, value in Shape()._asdict().items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N", help=f"default {value}")
  parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--flex", action="store_true", help=argparse.SUPPRESS)
  return parser.parse_args()


def main() -> None:
  options = parse_arguments()
  shape = Shape(**{name: getattr(options, name) for name in Shape._fields})
  if options.serve:
    serve_peer(shape, options.repeats, options.flex)
    return
  peer = None
  if options.torch:
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in shape._asdict().items()]
    peer = Peer(options.peer_python, [f"--repeats={options.repeats}", *sizes])
    if peer.error:
      print(f"no peer: {peer.error}", file=sys.stderr)
      peer = None
  processors = Processors()
  seconds = measure(shape, options.rounds, options.repeats, peer)
  if peer:
    peer.close()
  found = report(shape, seconds, peer.name if peer else None)
  found["other_programs_share"] = processors.taken_by_others()
  print_table(shape, seconds, found)
  if options.json:
    print(json.dumps(found))


if __name__ == "__main__":
  main()
