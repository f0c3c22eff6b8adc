"""A compiled program's text (HLO), as XLA prints it for TPU, GPU and CPU: computations, arrays, groups of devices."""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

BITS = {"pred": 8, "token": 0}  # of an item; other types end with theirs

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CALLED = re.compile(r"(?:calls|to_apply|(?:branch|true|false)_computations?)=(\{[^}]*\}|%[\w.\-]+)")


class Shape(NamedTuple):
  """One array; `space` is XLA's memory space, 0 the device's main memory."""

  bits: int
  dims: tuple[int, ...]
  space: int
  padded: int  # elements as laid out in tiles

  @property
  def bytes(self) -> int:
    return self.padded * self.bits // 8


class Instruction(NamedTuple):
  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str  # everything after the operands
  literal: str  # what stands between the brackets: the value of a constant
  root: bool

  @property
  def called(self) -> list[str]:
    return [name.lstrip("%") for text in _CALLED.findall(self.attributes) for name in text.strip("{}").split(", ")]


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """The computations by name, each its instructions by name, and the name of the one that is the program."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if current is None and (header := _HEADER.match(line)):
      current = computations.setdefault(header[1], {})
      entry = header[1] if line.startswith("ENTRY") else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (found := _NAME.match(line)):
      current[found[2]] = _instruction(found[2], line[found.end() :], bool(found[1]))
  return computations, entry


def _instruction(name: str, text: str, root: bool) -> Instruction:
  end = _closing(text, 0) if text.startswith("(") else text.index(" ")
  opcode = _OPCODE.match(text, end)
  if opcode is None:
    raise ValueError(f"an instruction of the HLO has no opcode: {text[:80]}")
  start = opcode.end() - 1
  close = _closing(text, start)
  inside, kind, attributes = text[start + 1 : close - 1], opcode[1], text[close:]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(name, kind, shapes(text[:end]), operands, attributes, inside, root)


def _closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` has closed."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if not depth:
      return place + 1
  raise ValueError(f"unbalanced brackets in HLO: {text[:80]}")


@functools.lru_cache(maxsize=4096)
def shapes(text: str) -> tuple[Shape, ...]:
  """The arrays of a type: `bf16[8,128]{1,0:T(8,128)S(1)}`, or a tuple of such."""
  found = []
  for kind, dims, order, layout in _SHAPE.findall(text):
    digits = re.search(r"\d+", kind)
    bits = BITS[kind] if kind in BITS else int(digits[0]) if digits else 0
    sizes = tuple(int(d) for d in dims.split(",") if d)
    space = re.search(r"S\((\d+)\)", layout)
    found.append(Shape(bits, sizes, int(space[1]) if space else 0, _padded(sizes, order, layout)))
  return tuple(found)


def _padded(dims: tuple[int, ...], order: str, layout: str) -> int:
  """Elements with the last dimensions of the layout filled up to whole tiles."""
  tile = re.search(r"T\(([\d,]+)\)", layout)
  laid = [dims[int(place)] for place in order.split(",") if place]  # fastest first
  if tile and laid:
    for place, side in enumerate(reversed([int(t) for t in tile[1].split(",")])):
      if place < len(laid):
        laid[place] = -(-laid[place] // side) * side
    return math.prod(laid)
  return math.prod(dims)


def through(computation: dict[str, Instruction], name: str) -> Instruction:
  """The instruction behind copies and bitcasts."""
  found = computation[name]
  while found.opcode in ("copy", "bitcast", "copy-start", "copy-done", "convert"):
    found = computation[found.operands[0]]
  return found


@functools.lru_cache(maxsize=4096)
def device_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
  """The devices that talk to each other: pairs of a permute, or groups, in any of the three ways that XLA writes them.

  {{0,1},{2,3}}; [2,4]<=[4,2]T(1,0), numbers in an order of axes; mesh['a'=2,'b'=4] {'b'}, along some axes of a mesh.

  Raises:
    ValueError: they are written in another way.
  """
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
    return _listed(pairs[1])
  if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
    return _listed(listed[1])
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
    return tuple(map(tuple, _numbers(iota[2]).reshape(_integers(iota[1])).tolist()))
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    order = mesh[2] or f"[{math.prod(sizes.values())}]"
    numbers = _numbers(order) if "[" in order else np.array(_integers(order))
    return _along(sizes, numbers, mesh[3])
  raise ValueError(f"the HLO names devices in a way that is not known: {attributes[:120]}")


def _integers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text)]


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(_integers(group)) for group in re.findall(r"\{([\d,]+)\}", text))


def _numbers(text: str) -> np.ndarray:
  """[4,2]T(1,0): 0, 1, 2 ... in this shape, its axes in this order."""
  shape, _, order = text.partition("T")
  sizes = _integers(shape)
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  return numbers.transpose(_integers(order)) if order else numbers


def _along(sizes: dict[str, int], numbers: np.ndarray, names: str) -> tuple[tuple[int, ...], ...]:
  """Groups along axes of a mesh; an axis may be a factor of one, `'a':(2)4` (after 2, of size 4)."""
  parts = {name: (1, size) for name, size in sizes.items()}  # what stands before it, and its size
  chosen = []
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names):
    parts[name] = (int(before), int(size)) if size else (1, sizes[name])
    chosen.append(3 * list(sizes).index(name) + 1)
  shape = [n for name, size in sizes.items() for n in (*parts[name], size // math.prod(parts[name]))]
  rest = [axis for axis in range(len(shape)) if axis not in chosen]
  grouped = numbers.reshape(shape).transpose(rest + chosen).reshape(-1, math.prod(shape[axis] for axis in chosen))
  return tuple(map(tuple, grouped.tolist()))
