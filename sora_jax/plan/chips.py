"""Accelerators: what one chip can do, how chips of a slice are wired, what they cost. Facts with their sources, no JAX.

TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e (read in November 2026) for peak, memory, bandwidths and shapes.
Their "bidirectional ICI bandwidth per chip" is both directions of all links, so one link carries half of it, divided by
the links, each way; between slices a chip has its share of its host's network. Links close to rings along sides of 16
chips (v5e, v6e), and of whole cubes of 4 x 4 x 4 (v5p): jax-ml.github.io/scaling-book, "TPU networking". The memory is
what libtpu 0.0.42.1 says a program may take. Prices: cloud.google.com/tpu/pricing, on demand in US regions; reserved
and spot chips cost less.
GPUs: NVIDIA's data sheets of H100, H200 (SXM; dense bfloat16) and DGX H100: NVLink in a machine, a 400 Gb/s port a GPU
between machines. They have no one price.
"""

import dataclasses
import math
import re

from sora_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    kind: JAX's `device_kind`.
    flops: bfloat16 operations a second, a multiply-add counted as 2.
    hbm_bytes: of memory that a program may take.
    hbm_bandwidth: bytes a second.
    link_bandwidth: bytes a second over one link, one way.
    sides: dimensions of the torus; 0 where a switch links all chips alike.
    ring: a side of this length, or a multiple of it, closes to a ring.
    dcn_bandwidth: bytes a second to other slices, one way.
    dollars: an hour; None where no one price holds.
    cores: what Google's names of slices count a chip as.
    most: chips of the largest slice.
  """

  name: str
  kind: str
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  link_bandwidth: float
  sides: int = 0
  ring: int = 0
  dcn_bandwidth: float = 0.0
  dollars: float | None = None
  cores: int = 1
  most: int = 8


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 400e9 / 2 / 4, 2, 16, 200e9 / 8 / 8, 1.20, most=256),
    Chip("v5p", "TPU v5", 459e12, 95.74 * GIB, 2765e9, 1200e9 / 2 / 6, 3, 4, 50e9 / 8, 4.20, cores=2, most=6144),
    Chip("v6e", "TPU v6 lite", 918e12, 31.25 * GIB, 1638e9, 800e9 / 2 / 4, 2, 16, 800e9 / 8 / 8, 2.70, most=256),
    Chip("h100", "NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 900e9 / 2, dcn_bandwidth=400e9 / 8),
    Chip("h200", "NVIDIA H200", 989e12, 141e9, 4800e9, 900e9 / 2, dcn_bandwidth=400e9 / 8),
  )
}


@dataclasses.dataclass(frozen=True)
class Slices:
  """Chips that are wired to each other, and how many such slices the data centre's network joins."""

  chip: Chip
  sides: tuple[int, ...]
  count: int = 1

  @property
  def chips(self) -> int:
    return math.prod(self.sides) * self.count

  @property
  def topology(self) -> str:
    """libtpu's name of one: v5p:4x4x4."""
    return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

  @property
  def name(self) -> str:
    """As `parse` reads it."""
    return self.topology + (f":{self.count}" if self.count > 1 else "")

  def doubled(self) -> "Slices":
    """Twice the chips: its shortest side twice as long, or twice as many slices where one can't grow."""
    if self.count > 1 or 2 * self.chips > self.chip.most:
      return dataclasses.replace(self, count=2 * self.count)
    short, *others = sorted(self.sides)
    return dataclasses.replace(self, sides=tuple(sorted((2 * short, *others))))

  def closed(self, axis: int) -> bool:
    """Whether the links along a side make a ring."""
    ring = self.chip.ring
    whole = self.sides if self.chip.sides == 3 else (self.sides[axis],)
    return bool(ring) and all(side % ring == 0 for side in whole)


def chip_of(kind: str) -> Chip | None:
  """The chip that JAX calls `kind`; None where it isn't in the table."""
  return next((chip for chip in CHIPS.values() if chip.kind == kind), None)


def parse(name: str) -> Slices:
  """A slice by its topology, v5p:4x4x4, or by Google's name, v5p-128 (64 chips: it counts two cores in each).

  v6e-256:2 are two such slices.

  Raises:
    ValueError: names what is unknown, and what is known.
  """
  found = re.fullmatch(r"(\w+?)(?:litepod)?(?::(\d+(?:x\d+)+)|-(\d+))(?::(\d+))?", name.strip())
  family = {"v5": "v5e"}.get(found[1], found[1]) if found else ""  # v5litepod-16
  tpus = [chip.name for chip in CHIPS.values() if chip.sides]
  if found is None or family not in tpus:
    raise InputError(f"topology {name!r} is unknown: give v5p:4x4x4 or v5p-128, of {', '.join(tpus)}")
  chip = CHIPS[family]
  if found[2]:
    sides = tuple(int(side) for side in found[2].split("x"))
  else:
    sides = _sides(int(found[3]) // chip.cores, chip.sides)
    if math.prod(sides) * chip.cores != int(found[3]):
      example = f"{family}:{'x'.join(['4', '4', '8'][-chip.sides :])}"
      raise InputError(
        f"topology {name!r}: {found[3]} is no power of two from {chip.cores} on; give the sides, as in {example}"
      )
  if len(sides) != chip.sides or not 1 <= math.prod(sides) <= chip.most or found[4] and not int(found[4]):
    raise InputError(
      f"topology {name!r}: a slice of {family} has {chip.sides} sides and at most {chip.most} chips; "
      f"several slices are {family}:{'x'.join(['4'] * chip.sides)}:2"
    )
  return Slices(chip, sides, int(found[4] or 1))


def _sides(chips: int, count: int) -> tuple[int, ...]:
  """A power of two as `count` sides as equal as can be, the short ones first but for ones (Google's 2x2x1)."""
  twos = max(chips.bit_length() - 1, 0)
  sides = [2 ** ((twos + place) // count) for place in range(count)]
  return tuple(sorted(sides, key=lambda side: (side == 1, side)))
