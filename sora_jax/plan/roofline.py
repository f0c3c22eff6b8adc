"""How long a compiled program takes at least: arithmetic, memory and links at the speeds of the data sheet.

Operations run one after another, and each takes the longer of its arithmetic and its memory traffic. Copies that run
beside them count in the sum of all traffic only. Collectives are added as if none overlapped with arithmetic. So the
time of compute is a lower bound, and that of communication an upper one.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from sora_jax.plan.chips import Slices
from sora_jax.plan.program import Collective, Program

Place = tuple[int, ...]  # of a chip: its slice, and its coordinates there


class Roofline(NamedTuple):
  """Seconds of a step on one device.

  Attributes:
    compute: all arithmetic at the chip's peak.
    memory: all traffic at the memory's bandwidth.
    operations: each operation at the slower of the two.
    collectives: by kind.
  """

  compute: float
  memory: float
  operations: float
  collectives: dict[str, float]

  @property
  def communication(self) -> float:
    return sum(self.collectives.values())

  @property
  def step(self) -> float:
    return self.operations + self.communication


def roofline(program: Program, where: Slices, places: Sequence[Place]) -> Roofline:
  """What a step takes.

  Args:
    program: of one device.
    where: the chips.
    places: where each device of the mesh is, in its flat order.
  """
  chip = where.chip
  memory = program.bytes / chip.hbm_bandwidth
  one_by_one = sum(
    work.times * max(work.flops / chip.flops, work.bytes / chip.hbm_bandwidth) for work in program.work if work.waits
  )
  by_kind: dict[str, list[Collective]] = defaultdict(list)
  for collective in program.collectives:
    by_kind[collective.kind].append(collective)
  seconds = {kind: _seconds(kind, group, where, places) for kind, group in by_kind.items()}
  return Roofline(program.flops / chip.flops, memory, max(one_by_one, memory), seconds)


def _seconds(kind: str, collectives: list[Collective], where: Slices, places: Sequence[Place]) -> float:
  if kind != "collective-permute":
    return sum(each.times * collective_seconds(each, where, places) for each in collectives)
  # Permutes of one computation that go different ways do so at the same time, over different links.
  ways: dict[str, dict[tuple, float]] = defaultdict(lambda: defaultdict(float))
  for each in collectives:
    ways[each.place][each.groups] += each.times * collective_seconds(each, where, places)
  return sum(max(way.values()) for way in ways.values())


def collective_seconds(collective: Collective, where: Slices, places: Sequence[Place]) -> float:
  """One run of a collective, by what its links must carry (Austin et al. 2025, How to Scale Your Model, part 3).

  Along a side of the torus a ring has two links to send on, a line one; an all-gather uses the links of all sides that
  its group spans. Half of an all-to-all's data crosses the middle of the longest side. Over several slices, each chip
  of one slice carries its share to the others.
  """
  link = where.chip.link_bandwidth
  if collective.kind == "collective-permute":
    return max(collective.bytes * _hops(where, places[a], places[b]) for a, b in collective.groups)
  group = [places[device] for device in collective.groups[0]]
  slices, *spans = (len(set(axis)) for axis in zip(*group, strict=True))
  within, twice = len(group) // slices, 2 if collective.kind == "all-reduce" else 1
  between = twice * collective.bytes / within * (slices - 1) / slices / where.chip.dcn_bandwidth if slices > 1 else 0.0
  lanes = {axis: _lanes(where, axis, side) for axis, side in enumerate(spans) if side > 1}
  share = twice * collective.bytes * (within - 1) / within
  if collective.kind == "all-to-all" and where.chip.sides:
    return between + max((collective.bytes * spans[axis] / (4 * n * link) for axis, n in lanes.items()), default=0.0)
  return between + share / (max(sum(lanes.values()), 1) * link)


def _lanes(where: Slices, axis: int, side: int) -> int:
  return 2 if side == where.sides[axis] and where.closed(axis) else 1


def _hops(where: Slices, a: Place, b: Place) -> float:
  """Seconds a byte: links on the shortest way, one where a switch links all, and the network between slices."""
  if a[0] != b[0]:
    return 1 / where.chip.dcn_bandwidth
  if not where.chip.sides:
    return (a != b) / where.chip.link_bandwidth
  hops = 0
  for axis, side in enumerate(where.sides):
    step = abs(a[1 + axis] - b[1 + axis])
    hops += min(step, side - step) if where.closed(axis) else step
  return hops / where.chip.link_bandwidth
