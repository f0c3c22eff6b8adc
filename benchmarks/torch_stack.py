"""The same stack of blocks in PyTorch, in a process of its own that is asked for one step's time after another.

On the CPU it is float32 with fused Adam, eager and compiled, with each kind of attention there is for packed rows:

    boolean mask          F.scaled_dot_product_attention with a mask of all pairs of a row
    each clip by itself   the same without a mask over rows cut into their clips, where these are of equal length
    flex_attention        over a mask in blocks, compiled; PyTorch may lack its gradient on the CPU, and then says so
    no mask               less work, and wrong: clips see each other

On a GPU (`--gpu`) it is compiled, bfloat16, with flex_attention over the segments, each block made again in the
backward pass.

It needs an interpreter that can import torch, for the compiled half a C++ compiler, and nothing of the project but
`block_stack.py`'s sizes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from block_stack import LEARNING_RATE, Shape, add_sizes, given_sizes, median_seconds, segment_ids

NO_MASK, MASK, CLIPS, FLEX = "no mask", "boolean mask", "each clip by itself", "flex_attention"


class Kind(NamedTuple):
  """How a peer's step is computed."""

  attention: str  # one of the four
  compiled: bool
  reduced: bool = False  # in bfloat16, each block made again in the backward pass


def cpu_kinds(shape: Shape) -> dict[str, Kind]:
  """The peers on a CPU, by name; of rows that can't be cut into equal clips, those that need no cut."""
  whole = shape.tokens % shape.segments == 0 and shape.text_tokens % shape.segments == 0
  ways = (NO_MASK, MASK, *([CLIPS] if whole else []))
  kinds = {f"eager, {way}": Kind(way, False) for way in ways}
  return kinds | {f"compiled, {way}": Kind(way, True) for way in (*ways, FLEX)}


def torch_blocks(shape: Shape, attend: Callable) -> Any:
  """The project's stack of blocks in PyTorch: the same arguments, but a mask, or None, where ours take segments.

  As in ours, norms, modulation and gates are computed in float32 and everything else in the type of `x`.

  Args:
    attend: (query, key, value, mask) -> what they mix, all (B, K, L, H).
  """
  import torch
  from torch import nn
  from torch.nn import functional

  B, L, M, D, K = shape.rows, shape.tokens, shape.text_tokens, shape.width, shape.heads
  H = D // K
  norm = lambda x: functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)
  head_norm = lambda x, gain: (norm(x.float()) * gain).to(x.dtype)
  modulate = lambda x, scale, shift: torch.addcmul(shift, norm(x.float()), 1 + scale).to(x.dtype)
  add_gated = lambda x, gate, more: torch.addcmul(x.float(), gate, more.float()).to(x.dtype)
  heads_first = lambda *arrays: [x.transpose(1, 2) for x in arrays]

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
      ones = lambda: nn.Parameter(torch.ones(K, H))
      self.query_gain, self.key_gain, self.cross_query_gain, self.cross_key_gain = ones(), ones(), ones(), ones()

    def forward(self, x, modulation, mask, rotary, text, text_mask):
      shift1, scale1, gate1, shift2, scale2, gate2 = (a + b for a, b in zip(modulation, self.table, strict=True))
      cosine, sine = (table[:, :, None] for table in rotary)
      query, key, value = self.qkv(modulate(x, scale1, shift1)).view(B, L, 3, K, H).unbind(2)
      query, key = head_norm(query, self.query_gain), head_norm(key, self.key_gain)
      query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
      mixed = attend(*heads_first(query, key, rotate(value, cosine, sine)), mask).transpose(1, 2)
      x = add_gated(x, gate1, self.out(rotate(mixed, cosine, -sine).reshape(B, L, D)))
      query = head_norm(self.query(norm(x)).view(B, L, K, H), self.cross_query_gain)
      key, value = self.key_value(text).view(B, M, 2, K, H).unbind(2)
      mixed = attend(*heads_first(query, head_norm(key, self.cross_key_gain), value), text_mask).transpose(1, 2)
      x = x + self.cross_out(mixed.reshape(B, L, D))
      gate, up = self.gate_up(modulate(x, scale2, shift2)).chunk(2, -1)
      return add_gated(x, gate2, self.down(functional.silu(gate) * up))

  return nn.ModuleList([Block() for _ in range(shape.depth)])


def torch_forward(blocks: Any, inputs: tuple, context: tuple, remat: bool) -> Any:
  """What the blocks make of (x, modulation); with `remat` the backward pass makes each of them again."""
  from torch.utils.checkpoint import checkpoint

  x, modulation = inputs
  for block in blocks:
    given = (x, modulation, *context)
    # Nothing in a block is random: the generator's state need not be kept.
    x = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False) if remat else block(*given)
  return x


def torch_step(shape: Shape, kind: Kind, device: str = "cpu") -> Callable[[], Any]:
  """One training step of the peer's stack."""
  import torch

  torch.manual_seed(0)
  attend, make_mask = torch_attention(kind.attention, device)
  with torch.device(device):
    blocks = torch_blocks(shape, attend)
    inputs, target, rotary, text = torch_inputs(shape, torch.bfloat16 if kind.reduced else torch.float32)
    segments, text_segments = (
      torch.tensor(segment_ids(length, shape.segments)) for length in (shape.tokens, shape.text_tokens)
    )
  context = (make_mask(segments, segments), rotary, text, make_mask(segments, text_segments))
  optimizer = torch.optim.Adam(blocks.parameters(), LEARNING_RATE, fused=True)
  # Without remat all blocks are one program; with it each is, since what is made again is a block.
  calls = [torch.compile(block) if kind.compiled and kind.reduced else block for block in blocks]

  def loss_of(inputs: tuple, target: Any) -> Any:
    with torch.autocast(device, torch.bfloat16, enabled=kind.reduced):
      out = torch_forward(calls, inputs, context, kind.reduced)
    return torch.nn.functional.mse_loss(out.float(), target)

  compute = torch.compile(loss_of) if kind.compiled and not kind.reduced else loss_of

  def run() -> None:
    loss = compute(inputs, target)
    for leaf in (inputs[0], *inputs[1]):
      leaf.grad = None
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if device != "cpu":
      torch.cuda.synchronize()

  return run


def torch_inputs(shape: Shape, dtype: Any) -> tuple:
  """(the stack's input, the six of modulation), the target, the rotary tables, the text: in shape as ours."""
  import torch

  tokens = (shape.rows, shape.tokens, shape.width)
  x = torch.randn(tokens, dtype=dtype, requires_grad=True)
  modulation = [(torch.randn(tokens) * 0.1).requires_grad_() for _ in range(6)]
  target = torch.randn(tokens)
  angles = torch.rand(shape.rows, shape.tokens, shape.width // shape.heads // 2)
  rotary = (angles.cos().to(dtype), angles.sin().to(dtype))
  text = torch.randn(shape.rows, shape.text_tokens, shape.text_width, dtype=dtype)
  return (x, modulation), target, rotary, text


def torch_attention(kind: str, device: str) -> tuple[Callable, Callable]:
  """How the peer attends, (query, key, value, mask), and makes a mask of segments of a row's queries and keys."""
  from torch.nn import functional

  if kind == FLEX:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def block_mask(segments: Any, keys: Any) -> Any:
      same = lambda row, head, query, key: segments[query] == keys[key]
      return create_block_mask(same, None, None, len(segments), len(keys), device)

    return (lambda query, key, value, mask: flex_attention(query, key, value, block_mask=mask)), block_mask
  if kind == CLIPS:

    def attend_within(query: Any, key: Any, value: Any, clips: int) -> Any:
      cut = lambda x: x.unflatten(2, (clips, -1)).transpose(1, 2).flatten(0, 1)  # (B, K, L, H) -> (B n, K, L / n, H)
      mixed = functional.scaled_dot_product_attention(cut(query), cut(key), cut(value))
      return mixed.unflatten(0, (-1, clips)).transpose(1, 2).flatten(2, 3)

    return attend_within, lambda segments, keys: int(segments.max())
  attend = lambda query, key, value, mask: functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
  mask = lambda segments, keys: None if kind == NO_MASK else (segments[:, None] == keys)[None, None]
  return attend, mask


def serve_peer(shape: Shape, repeats: int, gpu: bool) -> None:
  """The peer's process: says its name, the kinds of step it has and why it lacks others; then, for each line read,
  times one step of each kind and answers with a JSON object of seconds.
  """
  try:
    import torch
  except ImportError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    return
  cuda = gpu and torch.cuda.is_available()
  # Where a GPU's peer runs on a CPU, it is to see that all of it runs.
  kinds = {FLEX: Kind(FLEX if cuda else MASK, cuda, reduced=True)} if gpu else cpu_kinds(shape)
  steps, lacking = {}, {}
  for name, kind in kinds.items():
    try:
      step = torch_step(shape, kind, "cuda" if cuda else "cpu")
      step()  # which compiles
      steps[name] = step
    except Exception as error:  # of PyTorch, its compiler or its kernels
      if gpu:
        raise
      lacking[name] = " ".join(str(error).split())[:200]
  print(json.dumps({"name": f"PyTorch {torch.__version__}", "lacking": lacking}), flush=True)
  for _ in sys.stdin:
    print(json.dumps({name: median_seconds(step, repeats) for name, step in steps.items()}), flush=True)


class Peer:
  """The peer's process, or the reason why there is none."""

  def __init__(self, python: str, shape: Shape, repeats: int, gpu: bool = False):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in shape._asdict().items()]
    command = [python, os.path.abspath(__file__), f"--repeats={repeats}", *sizes, *(["--gpu"] if gpu else [])]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    hello = self._answer()
    self.name, self.error = hello.get("name", ""), hello.get("error")
    self.lacking: dict[str, str] = hello.get("lacking", {})  # kinds of step that PyTorch can't compute, and why

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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--repeats", type=int, default=3, help="steps a line read (default 3)")
  parser.add_argument("--gpu", action="store_true", help="flex_attention in bfloat16, compiled where there is a GPU")
  add_sizes(parser)
  options = parser.parse_args()
  serve_peer(given_sizes(options), options.repeats, options.gpu)


if __name__ == "__main__":
  main()
