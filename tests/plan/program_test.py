"""A program's arithmetic, traffic and collectives: as XLA counts them where nothing loops, and loops multiplied out."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from sora_jax.plan.program import read

N = 64
SQUARE = 2 * N**3


def compiled(function, *shapes):
  return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def layers(x, weights):
  return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


class TestRealPrograms:
  def test_a_loop_counts_as_often_as_it_turns(self):
    program = read(compiled(layers, (N, N), (7, N, N)).as_text())
    assert program.flops == 7 * SQUARE and not program.silent

  def test_loops_in_loops_multiply(self):
    nested = lambda x, w: lax.scan(lambda x, _: (layers(x, w), None), x, None, length=5)[0]
    assert read(compiled(nested, (N, N), (3, N, N)).as_text()).flops == 15 * SQUARE

  def test_gradients_take_twice_the_forward_pass(self):
    forward = read(compiled(layers, (N, N), (6, N, N)).as_text()).flops
    both = jax.value_and_grad(lambda x, w: layers(x, w).sum(), argnums=(0, 1))
    assert read(compiled(both, (N, N), (6, N, N)).as_text()).flops == 3 * forward

  def test_a_loop_that_data_end_is_named_and_counts_once(self):
    function = lambda x: lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ x, x)
    program = read(compiled(function, (N, N)).as_text())
    assert program.flops == SQUARE and len(program.silent) == 1

  @pytest.mark.parametrize("turns", [1, 4])
  def test_without_loops_it_is_what_xla_counts(self, turns):
    def unrolled(x, w):
      for i in range(turns):
        x = jnp.tanh(x @ w[i])
      return x

    found = compiled(unrolled, (N, N), (turns, N, N))
    program, said = read(found.as_text()), found.cost_analysis()
    assert program.flops == pytest.approx(said["flops"], rel=0.02)  # which counts tanh's own
    assert program.bytes == pytest.approx(said["bytes accessed"], rel=0.3)

  def test_a_slice_of_a_long_array_reads_the_slice_and_an_update_writes_the_update(self):
    def function(x, long):
      step = lambda i, long: lax.dynamic_update_index_in_dim(long, lax.dynamic_index_in_dim(long, i, 0) * 2, i, 0)
      return lax.fori_loop(0, 100, step, long)

    program = read(compiled(function, (N,), (100, N, N)).as_text())
    assert program.bytes < 6 * 100 * N * N * 4  # not 100 times the whole


HEAD = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
"""
# What libtpu makes of sums and gathers that it hides behind arithmetic, shortened.
TPU = (
  HEAD
  + """
%start (p: bf16[16,128]) -> (bf16[16,128], bf16[128,128], u32[]) {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[128,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8]
  ROOT %begun = (bf16[16,128], bf16[128,128]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%piece (p: bf16[16,128], l: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %l = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.2 = bf16[128,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8]
  ROOT %product = bf16[8,128]{1,0} convolution(%l, %all-gather.2), dim_labels=bf_io->bf
}

%scatter (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0:T(8,128)S(1)} parameter(0)
  %zero = u32[] constant(0)
  %all-reduce.1 = f32[64,128]{1,0} all-reduce(%p), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %mine = f32[8,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,128}
}

%body (t: (u32[], bf16[8,16], u32[])) -> (u32[], bf16[8,16], u32[]) {
  %t = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}, u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %n = u32[] get-tuple-element(%t), index=2
  %two = u32[] constant(2)
  %left = (bf16[8,16], bf16[8,16], u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %there = bf16[8,16]{1,0} collective-permute-done(%left)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %out = (u32[]{:T(128)}, bf16[8,16]{1,0}, u32[]) tuple(%next, %there, %n)
}

%condition (t: (u32[], bf16[8,16], u32[])) -> pred[] {
  %t = (u32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}, u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%t), index=0
  %n = u32[] get-tuple-element(%t), index=2
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[16,128], l: bf16[8,128], g: f32[64,128], x: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %l = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %g = f32[64,128]{1,0:T(8,128)S(1)} parameter(2)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(3)
  %zero = u32[] constant(0)
  %limit = u32[] constant(7)
  %copied = u32[] copy(%limit)
  %begun = (bf16[16,128]{1,0}, bf16[128,128]{1,0}, u32[]) fusion(%p), kind=kCustom, calls=%start
  %first = bf16[8,128]{1,0} fusion(%p, %l), kind=kOutput, calls=%piece
  %second = bf16[8,128]{1,0} fusion(%p, %l), kind=kOutput, calls=%piece
  %summed = f32[8,128]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%scatter
  %norm = f32[4]{0:T(128)} all-reduce(%summed), channel_id=6, replica_groups=mesh['a'=8,'b'=1] {'a'}, to_apply=%add
  %ahead = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]) copy-start(%summed)
  %carried = (u32[], bf16[8,16]{1,0}, u32[]) tuple(%zero, %x, %copied)
  %loop = (u32[], bf16[8,16]{1,0}, u32[]) while(%carried), condition=%condition, body=%body
  ROOT %answer = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""
)


class TestTpuText:
  def found(self, kind: str):
    return [(each.times, each.bytes, len(each.groups[0])) for each in read(TPU).collectives if each.kind == kind]

  def test_a_gather_in_pieces_counts_once_with_all_that_it_gathers(self):
    assert self.found("all-gather") == [(1, 16 * 128 * 2 * 8, 8)]

  def test_a_sum_of_which_each_keeps_a_part_is_a_reduce_scatter(self):
    assert self.found("reduce-scatter") == [(1, 64 * 128 * 4, 8)]
    assert self.found("all-reduce") == [(1, 8 * 128 * 4, 8)]

  def test_a_counter_s_step_and_a_limit_that_is_carried_are_read(self):
    program = read(TPU)
    assert not program.silent
    assert self.found("collective-permute") == [(4, 8 * 128 * 2, 2)]  # 0, 2, 4, 6; and a whole tile

  def test_products_are_convolutions(self):
    assert read(TPU).flops == 2 * (2 * 8 * 128 * 128)

  def test_a_kernel_that_does_not_tell_its_arithmetic_is_named(self):
    said = (
      ', custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":70}}}'
    )
    for attributes, flops, silent in ((said, 70, []), (said.replace("cost", "other"), 0, ["kernel"])):
      text = TPU.replace(
        "  %carried =", f"  %kernel = f32[8,128]{{1,0}} custom-call(%summed){attributes}\n  %carried ="
      )
      program = read(text)
      assert (program.flops - read(TPU).flops, program.silent) == (flops, silent)
      assert program.bytes - read(TPU).bytes == 2 * 8 * 128 * 4

  @pytest.mark.parametrize("told", ["body=", "dim_labels="])
  def test_what_the_text_does_not_tell_is_named(self, told):
    with pytest.raises(ValueError, match=f"does not tell .*{told}"):
      read(TPU.replace(told, "other="))

  def test_a_copy_runs_beside_the_rest(self):
    beside = [work for work in read(TPU).work if not work.waits]
    assert [work.bytes for work in beside] == [8 * 128 * 4]


def product(left: str, right: str, out: str, window: str, labels: str) -> float:
  text = f"""HloModule one

ENTRY %main (l: {left}, r: {right}) -> {out} {{
  %l = {left} parameter(0)
  %r = {right} parameter(1)
  ROOT %product = {out} convolution(%l, %r), {f"window={{{window}}}, " if window else ""}dim_labels={labels}
}}
"""
  return read(text).flops


@pytest.mark.parametrize(
  ("left", "right", "out", "window", "labels", "products"),
  [
    ("bf16[8,32]", "bf16[32,16]", "bf16[8,16]", "", "bf_io->bf", 8 * 32 * 16),
    # A batch of products, its index a place of the window: or one of the kernel alone.
    (
      "f32[28,9,32]",
      "f32[28,32,16]",
      "f32[28,9,16]",
      "size=28 stride=27 lhs_dilate=28",
      "0bf_0io->0bf",
      28 * 9 * 32 * 16,
    ),
    ("bf16[7,32,1]", "bf16[6,32,5]", "bf16[7,6,5]", "size=6 pad=5_5 rhs_reversal=1", "bf0_0io->b0f", 7 * 6 * 5 * 32),
    ("bf16[7,4,32]", "bf16[32,4,5]", "bf16[7,5,1]", "size=4", "b0f_i0o->bf0", 7 * 5 * 32 * 4),  # two sums
    ("f32[2,9,9,3]", "f32[3,3,3,8]", "f32[2,9,9,8]", "size=3x3 pad=1_1x1_1", "b01f_01io->b01f", 2 * 8 * 3 * 25**2),
  ],
)
def test_a_convolution_counts_the_products_that_it_has(left, right, out, window, labels, products):
  assert product(left, right, out, window, labels) == 2 * products
