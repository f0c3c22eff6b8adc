"""A step on this machine's device: what it holds is what a run holds, what it computes is what the formulas say."""

import jax
import pytest

from sora_jax import sharding
from sora_jax.packing.batch import RowShape
from sora_jax.plan import chips, flops, step
from sora_jax.train.loop import LoopConfig
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import make_state

GIB = 2**30


def rows_of(config) -> flops.Rows:
  train = config.train
  shape = RowShape(train.row_tokens, train.row_text, train.row_segments)
  return flops.Rows(train.rows, shape, float(train.row_tokens))  # the CPU's attention computes every pair


def held(config) -> dict[str, int]:
  mesh = sharding.make_mesh()
  task, model = step._task(config)
  with jax.set_mesh(mesh):
    state, batch, _ = step.arguments(config, task, model, mesh)
    return step.device_bytes(task, state, batch)


def test_a_step_is_counted_compiled_and_timed(tiny_config):
  tiny_config.model.update(width=64, depth=2, heads=8)
  chip = chips.CHIPS["h200"]
  one = chips.Slices(chip, (1,))
  found = step.examine(tiny_config, rows_of(tiny_config), jax.devices(), one, compiles=True)
  assert (found.kind, found.devices, found.ranks) == ("cpu", 1, 1)
  counted, compiled = flops.Flops(**found.flops), found.compiled
  # The rest is what the formulas leave out: rotary turns, sums of weights.
  assert 1 < compiled.flops / (counted.model + counted.optimizer) < 1.25
  assert compiled.compiles and not compiled.silent and not compiled.collectives
  known = sum(size for name, size in found.bytes.items() if name not in ("activations", "gradients"))
  assert compiled.peak_bytes > known
  assert compiled.seconds["compute"] == pytest.approx(compiled.flops / chip.flops)
  assert compiled.seconds["memory"] == pytest.approx(compiled.hbm_bytes / chip.hbm_bandwidth)
  assert compiled.seconds["step"] >= max(compiled.seconds["compute"], compiled.seconds["memory"])


def test_what_a_device_holds_is_what_a_run_s_state_takes(tiny_config):
  found = held(tiny_config)
  mesh = sharding.make_mesh()
  task, _ = step._task(tiny_config)
  with jax.set_mesh(mesh):
    state = make_state(task, make_optimizer(LoopConfig.of(tiny_config, "test").optimizer), 0, mesh)
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  assert (found["params"], found["ema"]) == (size(state.params), size(state.ema))
  assert found["moments"] == size(state.optimizer)


def test_rematerialisation_keeps_a_block_s_input_and_without_it_much_more(tiny_config):
  kept = {}
  for remat in ("full", "none"):
    for depth in (1, 3):
      tiny_config.model.update(depth=depth, remat=remat)
      kept[remat, depth] = held(tiny_config)["activations"]
  train, width = tiny_config.train, tiny_config.model.width
  inputs = train.rows * train.row_tokens * width * 4
  assert kept["full", 3] - kept["full", 1] == pytest.approx(2 * inputs, rel=0.1)
  assert kept["none", 3] - kept["none", 1] > 10 * inputs


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (33.06G) exceeds "
      "available HBM (15.75G).",
      int(33.06 * GIB),
    ),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 44.00G of 15.75G hbm.", 44 * GIB),
    ("RESOURCE_EXHAUSTED: (1.5T) exceeds", int(1.5 * 2**40)),
    ("INTERNAL: Mosaic failed to compile", None),
    ("RESOURCE_EXHAUSTED: too many files", None),
  ],
)
def test_a_lack_of_memory_is_told_from_other_errors(message, needed):
  assert step.out_of_memory(message) == needed
