"""HLO text: types with tiles and memory spaces, instructions, and groups of devices in each way XLA writes them."""

import numpy as np
import pytest

from sora_jax.plan import hlo


@pytest.mark.parametrize(
  ("text", "dims", "space", "size"),
  [
    ("f32[]", (), 0, 4),
    ("pred[3]", (3,), 0, 3),
    ("bf16[8,128]{1,0:T(8,128)(2,1)}", (8, 128), 0, 2048),
    ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", (8, 128), 1, 2048),
    ("f32[9,100]{1,0:T(8,128)}", (9, 100), 0, 16 * 128 * 4),  # filled up to whole tiles
    ("f32[100,9]{0,1:T(8,128)}", (100, 9), 0, 16 * 128 * 4),  # the first dimension is the fastest
    ("bf16[1152,1,144]{0,2,1:T(8,128)(2,1)}", (1152, 1, 144), 0, 1152 * 144 * 2),
    ("s4[10]", (10,), 0, 5),
    ("f8e4m3fn[10]", (10,), 0, 10),
  ],
)
def test_a_type_tells_size_and_place(text, dims, space, size):
  (found,) = hlo.shapes(text)
  assert (found.dims, found.space, found.bytes) == (dims, space, size)


def test_a_tuple_has_all_its_arrays():
  text = "(f32[2]{0:T(128)}, (bf16[4,4]{1,0}, /*index=2*/u32[]{:S(2)}))"
  assert [(shape.dims, shape.space) for shape in hlo.shapes(text)] == [((2,), 0), ((4, 4), 0), ((), 2)]


TEXT = """HloModule jit_f, is_scheduled=true

%fused (p.0: f32[4,4]) -> f32[4] {
  %p.0 = f32[4,4]{1,0} parameter(0)
  ROOT %sum = f32[4]{0} reduce(%p.0, %zero), dimensions={1}, to_apply=%add, metadata={op_name="a(b)"}
}

ENTRY %main.1 (x.1: f32[4,4]) -> (f32[4], f32[4,4]) {
  %x.1 = f32[4,4]{1,0:T(8,128)} parameter(0), sharding={replicated}
  %fusion = f32[4]{0:T(128)} fusion(%x.1), kind=kLoop, calls=%fused
  ROOT %tuple = (f32[4]{0:T(128)}, /*index=1*/f32[4,4]{1,0:T(8,128)}) tuple(%fusion, %x.1)
}
"""


def test_computations_hold_their_instructions():
  computations, entry = hlo.parse(TEXT)
  assert entry == "main.1" and list(computations) == ["fused", "main.1"]
  fusion = computations["main.1"]["fusion"]
  assert (fusion.opcode, fusion.operands, fusion.called, fusion.root) == ("fusion", ("x.1",), ["fused"], False)
  assert computations["fused"]["p.0"].literal == "0"
  root = computations["main.1"]["tuple"]
  assert root.root and root.operands == ("fusion", "x.1") and len(root.shapes) == 2


def test_an_instruction_without_an_opcode_is_an_error():
  with pytest.raises(ValueError, match=r"no opcode: f32\[4\] <cut off>"):
    hlo.parse("ENTRY %main (x: f32[4]) -> f32[4] {\n  ROOT %x = f32[4] <cut off>\n}\n")


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, dimensions={0}", [(0, 1), (2, 3)]),
    ("source_target_pairs={{0,1},{1,2},{2,0}}, x={}", [(0, 1), (1, 2), (2, 0)]),
    ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
    ("replica_groups=[4,1]<=[4]", [(0,), (1,), (2,), (3,)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", [(0, 1), (2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [(0, 1, 2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [(0, 2, 4, 6), (1, 3, 5, 7)]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}, x", [(0, 3), (1, 2)]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [(0, 2), (1, 3), (4, 6), (5, 7)]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [(0, 1), (2, 3), (4, 5), (6, 7)]),
  ],
)
def test_groups_of_devices(text, groups):
  assert sorted(hlo.device_groups(text)) == sorted(groups)


def test_every_device_is_in_one_group():
  groups = hlo.device_groups("replica_groups=[32,8]<=[4,8,8]T(1,0,2)")
  assert np.array_equal(np.sort(np.ravel(groups)), np.arange(256)) and len(groups) == 32


def test_a_way_of_naming_devices_that_is_not_known_is_an_error():
  with pytest.raises(ValueError, match="not known"):
    hlo.device_groups("replica_groups=everyone")
