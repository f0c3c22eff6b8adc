"""What a compiled program does: arithmetic, memory traffic and collectives, with loops multiplied out.

XLA's own cost analysis counts the body of a loop once, and layers are a loop. Here every instruction counts as often as
the loops around it turn. Knows nothing of models.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sora_jax.plan.hlo import Instruction, Shape, device_groups, parse, through

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Opcodes that neither read nor write memory of their own. A `-done` belongs to its `-start`, which is counted.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "iota"}
FREE |= {"partition-id", "replica-id", "after-all", "opt-barrier", "async-update", "domain"}


class Work(NamedTuple):
  """An instruction that computes or moves memory.

  Attributes:
    times: how often it runs in the program.
    flops: of one run; a multiply-add counts as 2, elementwise operations count nothing.
    bytes: of main memory that one run reads and writes.
    waits: False where it runs beside what comes after it.
  """

  times: int
  flops: float
  bytes: float
  waits: bool


class Collective(NamedTuple):
  """One exchange of arrays between devices.

  Attributes:
    bytes: of the whole arrays on a device: what an all-gather gives, what the others take.
    groups: devices (their places in the mesh's flat order) that take part together; pairs of a permute.
    place: the computation that it stands in.
  """

  kind: str
  times: int
  bytes: int
  groups: tuple[tuple[int, ...], ...]
  place: str


class Program(NamedTuple):
  """All that one device does.

  Attributes:
    silent: what the text does not give the arithmetic of: kernels, and loops whose number of turns depends on data
      (their bodies count once).
  """

  work: list[Work]
  collectives: list[Collective]
  silent: list[str]

  @property
  def flops(self) -> float:
    return sum(work.times * work.flops for work in self.work)

  @property
  def bytes(self) -> float:
    return sum(work.times * work.bytes for work in self.work)


def read(text: str) -> Program:
  """Reads `compiled.as_text()`: what one device does in one call."""
  computations, entry = parse(text)
  program = Program([], [], [])
  for name, times in _runs(computations, entry, program.silent):
    for instruction in computations[name].values():
      _count(program, computations, name, instruction, times)
  return program


def _runs(computations: dict, name: str, silent: list[str], times: int = 1) -> Iterator[tuple[str, int]]:
  """Every computation that runs as instructions one after another (not as one fused kernel), and how often."""
  yield name, times
  for instruction in computations[name].values():
    if instruction.opcode == "while":
      body = _attribute(r"body=%?([\w.\-]+)", instruction)[1]
      turns = _turns(computations, computations[name], instruction, body)
      if turns is None:
        silent.append(instruction.name)
      yield from _runs(computations, body, silent, times * (1 if turns is None else turns))
    elif instruction.opcode in ("call", "conditional"):
      for called in instruction.called:
        yield from _runs(computations, called, silent, times)


def _turns(computations: dict, around: dict, instruction: Instruction, body: str) -> int | None:
  """How often a loop's body runs: as XLA says, or from its counter's start, step and limit; None if data decide."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes):
    return int(known[1])
  condition = computations[_attribute(r"condition=%?([\w.\-]+)", instruction)[1]]
  test = next(each for each in condition.values() if each.root)
  if test.opcode != "compare" or "direction=LT" not in test.attributes:
    return None
  counter, limit = (through(condition, name) for name in test.operands)
  if counter.opcode != "get-tuple-element":
    return None
  carried = next(each for each in computations[body].values() if each.root)
  started = through(around, instruction.operands[0])
  place = _index(counter)
  step = through(computations[body], carried.operands[place])
  by = [through(computations[body], name) for name in step.operands]
  start = through(around, started.operands[place])
  if limit.opcode == "get-tuple-element":  # an input of the loop
    limit = through(around, started.operands[_index(limit)])
  numbers = [each.literal for each in (start, limit, *by) if each.opcode == "constant"]
  if len(numbers) != 3 or step.opcode != "add":
    return None
  begin, end, stride = (int(number) for number in numbers)
  return math.ceil((end - begin) / stride)


def _index(instruction: Instruction) -> int:
  return int(_attribute(r"index=(\d+)", instruction)[1])


def _attribute(pattern: str, instruction: Instruction) -> re.Match[str]:
  """What a pattern matches in an instruction's attributes.

  Raises:
    ValueError: it matches nothing there.
  """
  if found := re.search(pattern, instruction.attributes):
    return found
  raise ValueError(f"the HLO does not tell {pattern!r} of {instruction.name}: {instruction.attributes[:120]}")


def _count(program: Program, computations: dict, place: str, instruction: Instruction, times: int) -> None:
  opcode = instruction.opcode
  if opcode.removesuffix("-start") in COLLECTIVES:
    kind = opcode.removesuffix("-start")
    program.collectives.append(_collective(kind, instruction, computations[place], times, place))
    return
  if opcode in FREE or opcode.endswith("-done"):
    return
  inside = []
  if opcode in ("fusion", "async-start"):
    inside = [each for name in instruction.called for each in _deep(computations, name)]
    program.collectives.extend(_fused_collectives(computations, instruction, times, place))
  flops = sum(_flops(here, each) for here, each in [*inside, (computations[place], instruction)])
  moved = _traffic(computations, place, instruction)
  if opcode == "custom-call" and moved and not flops:
    program.silent.append(instruction.name)
  if flops or moved:
    program.work.append(Work(times, flops, moved, waits=not opcode.endswith("-start")))


def _deep(computations: dict, name: str) -> Iterator[tuple[dict, Instruction]]:
  """Every instruction of a fused computation and of those inside it, with the computation that it stands in."""
  for instruction in computations[name].values():
    yield computations[name], instruction
    if instruction.opcode == "fusion":
      for called in instruction.called:
        yield from _deep(computations, called)


# Arithmetic.


def _flops(computation: dict[str, Instruction], instruction: Instruction) -> float:
  if instruction.opcode == "dot":
    left = computation[instruction.operands[0]].shapes[0].dims
    summed = _attribute(r"lhs_contracting_dims=\{([\d,]*)\}", instruction)[1]
    return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left[int(d)] for d in summed.split(",") if d)
  if instruction.opcode == "convolution":
    return _convolution_flops(computation, instruction)
  if instruction.opcode == "custom-call":  # a kernel may say what it costs
    said = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    return float(said[1]) if said else 0.0
  return 0.0


def _convolution_flops(computation: dict[str, Instruction], instruction: Instruction) -> float:
  """2 x batch x output features x input features x the pairs of a kernel and an input place that meet.

  On the TPU every matrix product is a convolution, and dimensions of its batch are places of a window.
  """
  labels = _attribute(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction)
  left, right = (computation[name].shapes[0].dims for name in instruction.operands[:2])
  size = lambda dims, names, label: dims[names.index(label)]
  window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0]))
  pairs = 1
  places = sum(label.isdigit() for label in labels[1])
  for axis in range(places):
    part = lambda name, default, axis=axis: window[name].split("x")[axis] if name in window else default
    low = int(part("pad", "0_0").split("_")[0])
    stride, spread, gap = (int(part(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    inputs, kernel, outputs = (
      size(dims, names, str(axis))
      for dims, names in ((left, labels[1]), (right, labels[2]), (instruction.shapes[0].dims, labels[3]))
    )
    at = np.arange(outputs)[:, None] * stride - low + np.arange(kernel)[None] * gap
    pairs *= int(((at >= 0) & (at <= (inputs - 1) * spread) & (at % spread == 0)).sum())
  batch, features = (size(instruction.shapes[0].dims, labels[3], label) for label in "bf")
  groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
  return 2.0 * batch * features * size(right, labels[2], "i") * pairs / (int(groups[1]) if groups else 1)


# Memory.


def _traffic(computations: dict, place: str, instruction: Instruction) -> float:
  """Bytes of main memory that it reads and writes; what lies in a nearer memory is free."""
  if instruction.opcode == "custom-call" and not re.search(r'target="(tpu_custom_call|__)', instruction.attributes):
    return 0.0  # a note to the compiler, no kernel
  here = computations[place]
  if instruction.opcode.endswith("-start"):  # a copy between memories: its result names both ends
    return float(min((shape.bytes for shape in instruction.shapes[:2]), default=0))
  if instruction.opcode in ("dynamic-slice", "gather", "slice"):
    return 2.0 * _main(instruction.shapes)
  if instruction.opcode == "dynamic-update-slice":
    return 2.0 * _main(here[instruction.operands[1]].shapes)
  if instruction.opcode != "fusion":
    return float(_main(instruction.shapes) + sum(_main(here[name].shapes) for name in instruction.operands))
  (body,) = instruction.called
  parameters = {int(each.literal): each for each in computations[body].values() if each.opcode == "parameter"}
  read_bytes = sum(
    min(_main(here[name].shapes), _read_of(computations, body, parameters[number]))
    for number, name in enumerate(instruction.operands)
    if _main(here[name].shapes)
  )
  root = next(each for each in computations[body].values() if each.root)
  return float(read_bytes + _written(computations[body], root, instruction.shapes))


def _main(found: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in found if shape.space == 0)


def _read_of(computations: dict, body: str, parameter: Instruction) -> int:
  """Bytes that a fused computation reads of one of its inputs: the slices, where it takes only slices."""
  total = 0
  for user in computations[body].values():
    if parameter.name not in user.operands:
      continue
    if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
      total += sum(shape.bytes for shape in user.shapes)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
      continue  # written in place
    elif user.opcode == "bitcast":
      total += _read_of(computations, body, user)
    elif user.opcode == "fusion":
      (inner,) = user.called
      number = str(user.operands.index(parameter.name))
      inputs = (each for each in computations[inner].values() if each.opcode == "parameter" and each.literal == number)
      total += _read_of(computations, inner, next(inputs))
    else:
      return sum(shape.bytes for shape in parameter.shapes)
  return total


def _written(body: dict[str, Instruction], root: Instruction, outputs: tuple[Shape, ...]) -> int:
  """Bytes that a fused computation writes; of an array that it updates in place, the update."""
  ends = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
  if len(ends) != len(outputs):
    return _main(outputs)
  total = 0
  for end, shape in zip(ends, outputs, strict=True):
    found = through(body, end.name) if end.opcode == "bitcast" else end
    if shape.space == 0 and found.opcode == "dynamic-update-slice":
      total += sum(part.bytes for part in body[found.operands[1]].shapes)
    elif shape.space == 0 and found.opcode != "parameter":
      total += shape.bytes
  return total


# Collectives.


def _collective(kind: str, instruction: Instruction, here: dict, times: int, place: str) -> Collective:
  taken = sum(shape.bytes for name in instruction.operands for shape in here[name].shapes)
  groups = device_groups(instruction.attributes)
  whole = taken * len(groups[0]) if kind == "all-gather" else taken
  return Collective(kind, times, whole, groups, place)


def _fused_collectives(computations: dict, fusion: Instruction, times: int, place: str) -> Iterator[Collective]:
  """Collectives inside a fusion. One that runs beside arithmetic is in several: the one that starts it counts."""
  for name in fusion.called:
    body = computations[name]
    starts = fusion.opcode == "async-start" or any("AsyncCollectiveStart" in each.attributes for each in body.values())
    scatters = any(each.opcode == "dynamic-slice" for each in body.values())
    for each in body.values():
      if each.opcode in COLLECTIVES and (starts or (each.opcode == "all-reduce" and scatters)):
        kind = "reduce-scatter" if each.opcode == "all-reduce" and scatters else each.opcode
        yield _collective(kind, each, body, times, place)
