"""Seconds of a program on a chip: which limit holds, and what a collective's links carry."""

import itertools

import pytest

from sora_jax.plan import chips
from sora_jax.plan.program import Collective, Program, Work
from sora_jax.plan.roofline import collective_seconds, roofline

V5P, V6E = chips.parse("v5p:4x4x4"), chips.parse("v6e:16x16")
LINK = V5P.chip.link_bandwidth


def places(where: chips.Slices) -> list[tuple[int, ...]]:
  return [
    (number, *at) for number in range(where.count) for at in itertools.product(*(range(side) for side in where.sides))
  ]


def seconds(kind: str, group, where=V5P, size=1 << 30) -> float:
  groups = tuple(group) if kind == "collective-permute" else (tuple(group),)
  return collective_seconds(Collective(kind, 1, size, groups, "main"), where, places(where))


def test_each_operation_takes_the_longer_of_arithmetic_and_memory():
  chip = V5P.chip
  work = [Work(3, chip.flops, 0.0, True), Work(1, 0.0, 2 * chip.hbm_bandwidth, True)]
  found = roofline(Program(work, [], []), V5P, places(V5P))
  assert (found.compute, found.memory, found.operations, found.step) == pytest.approx((3, 2, 5, 5))


def test_a_copy_beside_the_rest_counts_for_the_sum_of_traffic_only():
  chip = V5P.chip
  work = [Work(1, chip.flops, 0.0, True), Work(1, 0.0, chip.hbm_bandwidth / 2, False)]
  assert roofline(Program(work, [], []), V5P, places(V5P)).operations == pytest.approx(1)
  work[1] = work[1]._replace(times=6)
  assert roofline(Program(work, [], []), V5P, places(V5P)).operations == pytest.approx(3)


def test_a_gather_uses_both_ways_round_every_side_that_it_spans():
  whole, plane, line = range(64), range(16), range(4)
  for group, lanes in ((whole, 6), (plane, 4), (line, 2)):
    size = len(group)
    assert seconds("all-gather", group) == pytest.approx((1 << 30) * (size - 1) / size / (lanes * LINK))


def test_a_sum_everywhere_is_a_scatter_and_a_gather():
  parts = seconds("all-gather", range(64)) + seconds("reduce-scatter", range(64))
  assert seconds("all-reduce", range(64)) == pytest.approx(parts)


def test_a_side_that_is_no_ring_sends_one_way():
  open_side, ring = chips.parse("v6e:8x16"), range(16)
  assert seconds("all-gather", ring, open_side) == pytest.approx(seconds("all-gather", ring, V6E))
  column = range(0, 128, 16)  # the side of 8
  assert seconds("all-gather", column, open_side) == pytest.approx((1 << 30) * 7 / 8 / open_side.chip.link_bandwidth)


def test_a_part_of_a_ring_is_a_line():
  assert seconds("all-gather", range(8), V6E) == pytest.approx((1 << 30) * 7 / 8 / V6E.chip.link_bandwidth)


def test_half_of_an_exchange_crosses_the_middle():
  # A ring of k: each of k/2 chips sends half of its data over the middle's two pairs of links, one way each.
  assert seconds("all-to-all", range(16), V6E) == pytest.approx((1 << 30) * 16 / 8 / V6E.chip.link_bandwidth)


def test_a_permute_takes_the_longest_way():
  assert seconds("collective-permute", [(0, 1), (1, 0)]) == pytest.approx((1 << 30) / LINK)
  assert seconds("collective-permute", [(0, 3)]) == pytest.approx((1 << 30) / LINK)  # round the ring
  assert seconds("collective-permute", [(0, 0)]) == 0
  assert seconds("collective-permute", [(0, 42)]) == pytest.approx(6 * (1 << 30) / LINK)  # to (2, 2, 2)


def test_permutes_both_ways_run_at_once():
  there, back = tuple((i, (i + 1) % 4) for i in range(4)), tuple((i, (i - 1) % 4) for i in range(4))
  one = Collective("collective-permute", 5, 1 << 20, there, "loop")
  both = [one, one._replace(groups=back)]
  alone, together, twice = (
    roofline(Program([], which, []), V5P, places(V5P)).communication for which in ([one], both, [one, one])
  )
  assert alone == together and twice == pytest.approx(2 * alone)


def test_between_slices_each_chip_carries_its_part():
  two = chips.parse("v6e:4x4:2")
  found = seconds("all-reduce", range(32), two) - seconds("all-reduce", range(16), two)
  assert found == pytest.approx(2 * (1 << 30) / 16 / 2 / two.chip.dcn_bandwidth)


def test_behind_a_switch_all_chips_are_alike():
  eight = chips.Slices(chips.CHIPS["h200"], (8,))
  share = (1 << 30) * 7 / 8 / eight.chip.link_bandwidth
  assert seconds("all-gather", range(8), eight) == pytest.approx(share)
  assert seconds("all-to-all", range(8), eight) == pytest.approx(share)
  assert seconds("all-gather", [3], eight) == 0
