"""Names of slices: Google's and libtpu's, and what no slice is called."""

import pytest

from sora_jax.plan import chips


@pytest.mark.parametrize(
  ("name", "topology", "count"),
  [
    ("v5p-8", "v5p:2x2x1", 4),
    ("v5p-32", "v5p:2x2x4", 16),
    ("v5p-128", "v5p:4x4x4", 64),
    ("v5p-512", "v5p:4x8x8", 256),
    ("v5p:8x8x8", "v5p:8x8x8", 512),
    ("v5litepod-8", "v5e:2x4", 8),
    ("v5e-256", "v5e:16x16", 256),
    ("v6e-32", "v6e:4x8", 32),
    ("v6e-256:2", "v6e:16x16", 512),
  ],
)
def test_a_slice_has_its_topology_and_chips(name, topology, count):
  found = chips.parse(name)
  assert (found.topology, found.chips) == (topology, count)
  assert chips.parse(found.name) == found


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("v9-8", "of v5e, v5p, v6e"),
    ("h100-8", "of v5e, v5p, v6e"),
    ("", "is unknown"),
    ("v5p", "is unknown"),
    ("v5p-100", "no power of two"),
    ("v5p:4x4", "3 sides"),
    ("v6e-512", "at most 256 chips; several slices are v6e:4x4:2"),
    ("v5e:0x4", "at most 256"),
    ("v5p-1", "no power of two from 2 on; give the sides, as in v5p:4x4x8"),
    ("v6e-256:0", "several slices are v6e:4x4:2"),
  ],
)
def test_a_wrong_name_is_answered_with_what_is_known(name, said):
  with pytest.raises(ValueError, match=said):
    chips.parse(name)


def test_twice_the_chips_are_the_next_slice_or_one_more():
  names, found = [], chips.parse("v5p:2x2x2")
  while len(names) < 4:
    names.append(found.doubled().topology)
    found = found.doubled()
  assert names == ["v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8"]
  assert chips.parse("v6e-256").doubled() == chips.parse("v6e-256:2")
  assert chips.parse("v6e-256:2").doubled().chips == 1024


def test_links_close_to_rings_where_the_pages_say_so():
  closed = lambda name: [chips.parse(name).closed(axis) for axis in range(chips.parse(name).chip.sides)]
  assert closed("v5e:8x16") == [False, True]
  assert closed("v6e:16x16") == [True, True]
  assert closed("v5p:4x4x8") == [True, True, True]
  assert closed("v5p:2x4x4") == [False, False, False]  # no whole cube


def test_each_chip_is_found_by_what_jax_calls_it():
  for chip in chips.CHIPS.values():
    assert chips.chip_of(chip.kind) is chip
    # Some 200 operations a byte of memory are what such chips are balanced for; a slip of a unit is 1000 of it.
    assert 100 < chip.flops / chip.hbm_bandwidth < 1000
    assert 10 < chip.hbm_bandwidth / chip.link_bandwidth < 50 or not chip.sides
    assert 1e10 < chip.hbm_bytes < 2e11
  assert chips.chip_of("cpu") is None
