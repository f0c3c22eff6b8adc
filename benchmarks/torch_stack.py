"""The same stack of blocks in PyTorch, in a process of its own that is asked for one step's time after another.

On the CPU it is eager, float32, with fused Adam and F.scaled_dot_product_attention, once with a boolean segment mask
and once without any mask (less work, wrong across segments). On a GPU (`--gpu`) it is compiled, bfloat16, with
flex_attention over the segments, each block made again in the backward pass.

It needs an interpreter that can import torch, and nothing of the project but `block_stack.py`'s sizes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from block_stack import LEARNING_RATE, Shape, add_sizes, given_sizes, median_seconds, segment_ids

PEER_KINDS = ("no mask", "boolean mask")
FLEX = "flex_attention"  # the peer on a GPU


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
      self.gains = nn.Parameter(torch.ones(4, K, H))

    def forward(self, x, modulation, mask, rotary, text, text_mask):
      shift1, scale1, gate1, shift2, scale2, gate2 = (a + b for a, b in zip(modulation, self.table, strict=True))
      cosine, sine = (table[:, :, None] for table in rotary)
      query_gain, key_gain, cross_query_gain, cross_key_gain = self.gains
      query, key, value = self.qkv(modulate(x, scale1, shift1)).view(B, L, 3, K, H).unbind(2)
      query, key = (rotate(head_norm(x, g), cosine, sine) for x, g in ((query, query_gain), (key, key_gain)))
      mixed = attend(*heads_first(query, key, rotate(value, cosine, sine)), mask).transpose(1, 2)
      x = add_gated(x, gate1, self.out(rotate(mixed, cosine, -sine).reshape(B, L, D)))
      query = head_norm(self.query(norm(x)).view(B, L, K, H), cross_query_gain)
      key, value = self.key_value(text).view(B, M, 2, K, H).unbind(2)
      mixed = attend(*heads_first(query, head_norm(key, cross_key_gain), value), text_mask).transpose(1, 2)
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


def torch_step(shape: Shape, kind: str, device: str = "cpu") -> Callable[[], Any]:
  """One training step of the peer's stack: one of PEER_KINDS, or FLEX, each block made again in the backward pass."""
  import torch

  torch.manual_seed(0)
  flex = kind == FLEX
  attend, make_mask = torch_attention(kind, device)
  with torch.device(device):
    blocks = torch_blocks(shape, attend)
    inputs, target, rotary, text = torch_inputs(shape, torch.bfloat16 if flex else torch.float32)
    segments, text_segments = (
      torch.tensor(segment_ids(length, shape.segments)) for length in (shape.tokens, shape.text_tokens)
    )
  context = (make_mask(segments, segments), rotary, text, make_mask(segments, text_segments))
  optimizer = torch.optim.Adam(blocks.parameters(), LEARNING_RATE, fused=True)
  calls = [torch.compile(block) if flex and device != "cpu" else block for block in blocks]

  def run() -> None:
    with torch.autocast(device, torch.bfloat16, enabled=flex):
      out = torch_forward(calls, inputs, context, flex)
    loss = torch.nn.functional.mse_loss(out.float(), target)
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

  def __init__(self, python: str, shape: Shape, repeats: int, gpu: bool = False):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in shape._asdict().items()]
    command = [python, os.path.abspath(__file__), f"--repeats={repeats}", *sizes, *(["--gpu"] if gpu else [])]
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--repeats", type=int, default=3, help="steps a line read (default 3)")
  parser.add_argument("--gpu", action="store_true", help="flex_attention in bfloat16, compiled where there is a GPU")
  add_sizes(parser)
  options = parser.parse_args()
  serve_peer(given_sizes(options), options.repeats, options.gpu)


if __name__ == "__main__":
  main()
