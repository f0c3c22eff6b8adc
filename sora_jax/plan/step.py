"""One train step on devices that this machine need not have: what it holds, computes and moves, from shapes alone.

All that the rest of `sora plan` knows of training is here: the task, optimiser, shardings and donation of `sora train`.
What is compiled is never run: that it compiles says what it takes, not that its numbers are right.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Var

from sora_jax import sharding
from sora_jax.errors import InputError
from sora_jax.models.dit import DiTConfig
from sora_jax.packing.batch import PackedBatch, RowShape, pack_row
from sora_jax.plan import chips, flops
from sora_jax.plan.program import Program, read
from sora_jax.plan.roofline import roofline
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.loop import LoopConfig
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import TrainState, abstract_state, jit_step, make_step


class Compiled(NamedTuple):
  """What the compiler made of a program, of one device.

  Attributes:
    peak_bytes: most memory in use at once; of one that doesn't fit, what its temporaries need.
    compiles: False where the compiler gave up for want of memory: the rest is empty then.
    flops, hbm_bytes: arithmetic and memory traffic.
    seconds: {compute, memory, operations, communication, step}; empty on a chip that isn't in the table.
    collectives: {kind: {count, bytes, seconds}}.
    silent: kernels and loops whose arithmetic the program's text does not tell.
  """

  peak_bytes: int
  compiles: bool
  flops: float = 0.0
  hbm_bytes: float = 0.0
  seconds: dict[str, float] = {}
  collectives: dict[str, dict[str, float]] = {}
  silent: int = 0


class Step(NamedTuple):
  """A train step.

  Attributes:
    kind, devices: what it runs on; JAX's name of the device.
    mesh: size of each axis.
    ranks: devices that the rows are split over.
    params: numbers in the model.
    flops: see `flops.Flops`, over all devices.
    bytes: of one device, by what they are.
    warning: see `sharding.unsplit`.
    compiled: None where it was not compiled.
  """

  kind: str
  devices: int
  mesh: dict[str, int]
  ranks: int
  params: int
  flops: dict[str, float]
  bytes: dict[str, int]
  warning: str | None
  compiled: Compiled | None


def examine(config: Any, rows: flops.Rows, devices: Sequence[Any], where: chips.Slices | None, compiles: bool) -> Step:
  """Counts a config's step, and compiles it for `devices` if asked.

  Args:
    where: the chips that the devices are, for times; None leaves those out.
  """
  mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
  task, model = _task(config)
  with jax.set_mesh(mesh):
    state, batch, step = arguments(config, task, model, mesh)
    ranks, held = sharding.ways("batch"), device_bytes(task, state, batch, config.train.accumulation)
    compiled = compile_for(step.lower(state, batch), where, mesh) if compiles else None
  return Step(
    devices[0].device_kind,
    len(devices),
    dict(mesh.shape),
    ranks,
    sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    flops.count(state.params, model, rows, config.model.remat)._asdict(),
    held,
    sharding.unsplit(state.params, mesh),
    compiled,
  )


def _task(config: Any) -> tuple[Any, Any]:
  model = DiTConfig.of(config, config.model.vocabulary)
  return DiTTask(model, DiffusionConfig.of(config)), model


def arguments(config: Any, task: Any, model: Any, mesh: Any) -> tuple[TrainState, PackedBatch, Any]:
  """The shapes of a state and a batch, laid over the mesh, and the jitted step that takes them."""
  loop, train = LoopConfig.of(config, "plan"), config.train
  if train.rows % sharding.ways("batch"):
    raise InputError(
      f"train.rows={train.rows} is no multiple of the {sharding.ways('batch')} devices that share them "
      "(mesh.data x mesh.fsdp): take more rows, or share each row by mesh.context"
    )
  optimizer = make_optimizer(loop.optimizer)
  state = abstract_state(task, optimizer, loop.seed, mesh)
  row = pack_row([], RowShape.of(config), model.channels)
  laid = sharding.batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((train.rows, *x.shape), x.dtype, sharding=laid), row)
  step = make_step(task, optimizer, loop.ema_decay, loop.accumulation)
  return state, batch, jit_step(step, state, mesh)


def compile_for(lowered: Any, where: chips.Slices | None, mesh: Any) -> Compiled:
  """What the compiler makes of a program, such as the step, that is lowered for the devices of a mesh."""
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = out_of_memory(str(error))
    if needed is None:
      raise
    return Compiled(needed, False)
  program = read(compiled.as_text())
  seconds, collectives = _timed(program, where, mesh)
  return Compiled(
    peak_bytes(compiled.memory_analysis(), mesh),
    True,
    program.flops,
    program.bytes,
    seconds,
    collectives,
    len(program.silent),
  )


def peak_bytes(memory: Any, mesh: Any) -> int:
  """The compiler's peak. XLA for CPUs leaves temporaries out of it, so there it is the sum of all that there is."""
  if mesh.devices.flat[0].platform != "cpu":
    return memory.peak_memory_in_bytes
  given = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return given + memory.temp_size_in_bytes


def _timed(program: Program, where: chips.Slices | None, mesh: Any) -> tuple[dict, dict]:
  counted: dict[str, dict[str, float]] = {}
  for each in program.collectives:
    found = counted.setdefault(each.kind, {"count": 0, "bytes": 0})
    found["count"] += each.times
    found["bytes"] += each.times * each.bytes
  if where is None:
    return {}, counted
  least = roofline(program, where, [place(device, number) for number, device in enumerate(mesh.devices.flat)])
  for kind, seconds in least.collectives.items():
    counted[kind]["seconds"] = seconds
  return {name: getattr(least, name) for name in ("compute", "memory", "operations", "communication", "step")}, counted


def place(device: Any, number: int) -> tuple[int, ...]:
  """Where a device is: its slice, and its coordinates there; its number where it has none."""
  return (getattr(device, "slice_index", 0) or 0, *getattr(device, "coords", (number,)))


def out_of_memory(message: str) -> int | None:
  """The bytes in the compiler's message that memory is short; None for another message."""
  found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", message)
  if not found or "RESOURCE_EXHAUSTED" not in message:
    return None
  size, unit = found[1] or found[3], found[2] or found[4]
  return int(float(size) * 2 ** (10 * (1 + "KMGT".index(unit))))


# Memory.


def device_bytes(task: Any, state: TrainState, batch: Any, accumulation: int = 1) -> dict[str, int]:
  """What one device holds during a step of so many micro-batches.

  Activations are those that are kept for the backward pass; all devices hold equal shares of them.
  """
  shares = accumulation * sharding.ways("batch") * sharding.ways("tokens")
  return {
    "params": _held(state.params),
    "moments": _held(state.optimizer),
    "ema": _held(state.ema),
    "gradients": _held(state.params),
    "batch": _held(batch),
    "activations": kept_bytes(task, state.params, batch) // shares,
  }


def _held(tree: Any) -> int:
  """Bytes of one device's shards of arrays."""
  sizes = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
  return sum(int(np.prod(shape)) * size for shape, size in sizes)


def kept_bytes(task: Any, params: Any, batch: Any) -> int:
  """Bytes of what the forward pass keeps for the backward pass, parameters aside, over all devices."""
  plain = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  loss = lambda params, batch: task.loss(params, batch, jax.random.key(0))[0]
  kept = lambda params, batch: jax.vjp(lambda params: loss(params, batch), params)[1]
  program = jax.make_jaxpr(kept)(plain(params), plain(batch)).jaxpr
  given = set(map(id, program.invars))
  found = {id(x): x.aval for x in program.outvars if isinstance(x, Var) and id(x) not in given}
  return sum(aval.size * aval.dtype.itemsize for aval in found.values() if isinstance(aval, ShapedArray))
