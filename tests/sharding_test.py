"""The mesh and its tables: a rule for every parameter and moment, checked names, many devices equal one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from sora_jax import sharding
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Stage
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from tests.devices import on_devices

TEXT = TextEncoderConfig(vocabulary=32, width=16, depth=1, heads=2)
WAVELENGTHS = ((0.5, 16.0), (8.0, 256.0), (8.0, 256.0))
DIT = DiTConfig(channels=8, width=32, depth=2, heads=2, text=TEXT, wavelengths=WAVELENGTHS)
AUTOENCODER = AutoencoderConfig(channels=4, stages=(Stage((2, 2, 2), 16, 2), Stage((2, 1, 1), 16, 1)))
MODELS = {
  "dit": lambda: DiT(DIT, nnx.Rngs(params=0)),
  "text_encoder": lambda: TextEncoder(TEXT, nnx.Rngs(params=0)),
  "autoencoder": lambda: Autoencoder(AUTOENCODER, nnx.Rngs(params=0)),
}
MESH = AbstractMesh((1, 4, 1, 1, 2), sharding.MESH_AXES)


@pytest.fixture(scope="module", params=MODELS)
def params(request):
  """Shapes of a model's parameters; nothing is computed."""
  return nnx.to_pure_dict(nnx.split(nnx.eval_shape(MODELS[request.param]))[1])


def specs(tree) -> dict[str, PartitionSpec]:
  found = jax.tree_util.tree_leaves_with_path(sharding.param_shardings(tree, MESH))
  return {sharding.path_name(path): leaf.spec for path, leaf in found}


def test_every_parameter_has_one_rule_and_every_matrix_is_split(params):
  """`param_shardings` raises where not exactly one rule matches."""
  laid_out = specs(params)
  assert len(laid_out) == len(jax.tree.leaves(params))
  for path, spec in laid_out.items():
    matrix = path.endswith(("kernel", "embedding"))
    fits = matrix and any(size % 4 == 0 for size in shape_of(params, path)[-2:])
    assert (sharding.FSDP in spec) == fits, path


def shape_of(tree, path: str) -> tuple[int, ...]:
  leaves = {sharding.path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return leaves[path].shape


def test_moments_lie_as_their_parameters_do(params):
  optimizer = make_optimizer(OptimizerConfig(1e-2, 1e-3, 2, 0.2, 10, 1.0))
  moments, laid_out = specs(jax.eval_shape(optimizer.init, params)), specs(params)
  for path, spec in laid_out.items():
    mine = [found for name, found in moments.items() if name.endswith(f"/mu/{path}")]
    assert mine == [spec], path
  others = {name for name in moments if "/mu/" not in name and "/nu/" not in name}
  assert all(not any(moments[name]) for name in others)  # counts and constants are whole


def test_a_dimension_that_the_axis_does_not_divide_stays_whole():
  spec = lambda *shape: sharding.param_spec("blocks/query/kernel", shape, MESH)
  assert spec(8, 6) == PartitionSpec(sharding.FSDP, ("tensor",))
  assert spec(6, 6) == PartitionSpec(None, ("tensor",))
  assert spec(8, 5) == PartitionSpec(sharding.FSDP, None)
  assert spec(3, 8, 6) == PartitionSpec(None, sharding.FSDP, ("tensor",))


def test_a_dimension_lies_over_the_axes_that_divide_it_from_the_first_on():
  mesh = AbstractMesh((1, 2, 2, 2, 1), sharding.MESH_AXES)
  spec = lambda *shape: sharding.param_spec("blocks/query/kernel", shape, mesh)
  for size, axes in ((8, sharding.FSDP), (4, ("fsdp", "ring")), (2, ("fsdp",)), (3, None)):
    assert spec(size, 6) == PartitionSpec(axes, ("tensor",))


def test_a_mesh_that_does_not_divide_the_parameters_is_told():
  shape = jax.ShapeDtypeStruct
  params = {"qkv": {"kernel": shape((28, 1152, 3, 1152), jnp.float32)}, "table": shape((28, 6, 1152), jnp.float32)}
  mesh = lambda data, fsdp: AbstractMesh((data, fsdp, 1, 1, 1), sharding.MESH_AXES)
  assert sharding.unsplit(params, mesh(2, 128)) is None
  assert sharding.unsplit(params, mesh(256, 1)) is None
  said = sharding.unsplit(params, mesh(1, 256))
  assert said and "qkv/kernel is (28, 1152, 3, 1152)" in said and "the rest to mesh.data" in said
  assert sharding.unsplit({"query": {"kernel": shape((36, 108), jnp.float32)}}, mesh(1, 8)) is None  # of a few


@pytest.mark.parametrize("path", ["blocks/wild/kernel", "kernel", "blocks/myqkv/kernel", "qkv/kernel/more"])
def test_a_parameter_without_a_rule_is_refused(path):
  with pytest.raises(ValueError, match=f"0 sharding rules match the parameter '{path}'"):
    sharding.param_spec(path, (8, 8), MESH)


def test_a_parameter_with_two_rules_is_refused(monkeypatch):
  doubled = (*sharding.PARAM_RULES, (r"qkv/kernel", PartitionSpec()))
  monkeypatch.setattr(sharding, "PARAM_RULES", doubled)
  with pytest.raises(ValueError, match="2 sharding rules match the parameter 'blocks/qkv/kernel'"):
    sharding.param_spec("blocks/qkv/kernel", (8, 8), MESH)


def test_constrain_without_a_mesh_is_the_identity():
  x = jnp.arange(6.0).reshape(1, 2, 3)
  assert sharding.constrain(x, "batch", "tokens", "embed") is x


def test_constrain_under_a_mesh_keeps_the_values():
  x = jnp.arange(6.0).reshape(1, 2, 3)
  with jax.set_mesh(sharding.make_mesh()):
    np.testing.assert_array_equal(jax.jit(lambda x: sharding.constrain(x, "batch", None, "embed"))(x), x)


@pytest.mark.parametrize("name", ["batches", "fsdp", ""])
def test_constrain_refuses_unknown_names_even_without_a_mesh(name):
  with pytest.raises(KeyError, match=repr(name)):
    sharding.constrain(jnp.zeros((2, 2)), "batch", name)


@pytest.mark.parametrize("names", [(), ("batch",), ("batch", "tokens", "embed")])
def test_constrain_refuses_too_few_or_many_names(names):
  with pytest.raises(ValueError, match=f"2 dimensions, {len(names)} names"):
    sharding.constrain(jnp.zeros((2, 2)), *names)


def test_the_mesh_has_all_axes_and_devices():
  for shape in (None, {}, {"data": -1}, {"data": 1, "fsdp": 1, "context": -1, "tensor": 1}):
    mesh = sharding.make_mesh(shape)
    assert mesh.axis_names == sharding.MESH_AXES
    assert mesh.size == jax.device_count()


def test_an_unknown_axis_is_named():
  with pytest.raises(ValueError, match="mesh axis 'pipe' is unknown: the axes are data"):
    sharding.make_mesh({"data": 1, "pipe": 2})


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
  with pytest.raises(ValueError, match="does not cover .* devices"):
    sharding.make_mesh({"fsdp": jax.device_count() + 1})


def test_batches_go_to_devices_whole():
  batch = {"a": np.arange(6).reshape(3, 2), "b": np.arange(3.0)}
  there = sharding.to_devices(batch, sharding.make_mesh())
  jax.tree.map(np.testing.assert_array_equal, there, batch)


def test_a_mesh_of_part_of_the_context_only_is_refused():
  with pytest.raises(ValueError, match="mesh.ulysses=2 must divide mesh.context=1"):
    sharding.make_mesh({"ulysses": 2})


def test_slices_lie_along_data():
  @dataclasses.dataclass(frozen=True)
  class Device:
    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "none"
    process_index: int = 0

  devices = [Device(number, number // 4) for number in range(8)]
  with pytest.raises(ValueError, match="mesh.data=1: the 2 slices lie along it, so make it a multiple of 2"):
    sharding.make_mesh(None, devices)
  grid = sharding.make_grid((4, 2, 1, 1, 1), devices)
  assert [{device.slice_index for device in row.flat} for row in grid] == [{0}, {0}, {1}, {1}]


def test_one_process_reads_the_whole_batch():
  assert sharding.batch_share(sharding.make_mesh()) == (0, 1)


TASK = """
import collections, json, re
import jax, numpy as np
from sora_jax import sharding
from sora_jax.diffusion.objective import NoiseLevels
from sora_jax.models.dit import DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import RowShape, Segment, pack_row, stack
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.state import make_state, make_step, state_shardings

text = TextEncoderConfig(vocabulary=32, width=16, depth=1, heads=2)
config = DiTConfig(8, 32, 2, 4, text, ((0.5, 16.0), (8.0, 256.0), (8.0, 256.0)))
task = DiTTask(config, DiffusionConfig("x", "clip", NoiseLevels(0.8, 0.8, 8), 0.1))
optimizer = make_optimizer(OptimizerConfig(1e-2, 1e-3, 1, 0.2, 10, 1.0))
rng = np.random.default_rng(0)
def clip(index, tokens):
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  words = np.array([1, index + 2], np.int32)
  given = np.zeros(tokens, bool), np.zeros(tokens, np.float32)
  return Segment(draw(tokens, 8), draw(tokens, 3), *given, words, np.ones(4, np.float32), index)
row = RowShape(13, 8, 3)
batch = stack([pack_row([clip(2 * i, 4 + i // 2), clip(2 * i + 1, 3)], row, 8) for i in range(8)])
"""
# Losses of a few steps on each mesh, beside those of one device, and into how many parts a weight is split.
STEPS = """
def train(shape, count):
  mesh = sharding.make_mesh(shape, jax.devices()[:count])
  with jax.set_mesh(mesh):
    state = make_state(task, optimizer, 0, mesh)
    step = jax.jit(
      make_step(task, optimizer, 0.9), out_shardings=(state_shardings(state, mesh), sharding.replicated(mesh))
    )
    losses = []
    for _ in range(4):
      state, metrics = step(state, sharding.to_devices(batch, mesh))
      losses.append(float(metrics["loss"]))
  kernel = state.params["blocks"]["qkv"]["kernel"]
  return losses, kernel.size // kernel.addressable_shards[0].data.size

print(json.dumps([train(shape, count) for shape, count in [({}, 1), *json.loads('CASES')]]))
"""
FAST = [({"fsdp": 2, "context": 2, "ulysses": 1, "tensor": 2}, 8)]
SLOW = [
  ({"fsdp": 2}, 2),
  ({"context": 2}, 2),
  ({"data": 2, "fsdp": 2}, 4),
  ({"context": 4, "ulysses": 2}, 4),
  ({"fsdp": 8}, 8),
  ({"data": 2, "fsdp": 2, "tensor": 2}, 8),
  ({"fsdp": 2, "context": 4, "ulysses": 2}, 8),
  ({"context": 8}, 8),
]


@pytest.mark.parametrize("cases", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["fast", "all"])
def test_several_devices_train_as_one_does(cases):
  one, *several = on_devices(8, TASK + STEPS.replace("CASES", json.dumps(cases)))
  assert one[1] == 1 and len(set(one[0])) == 4
  for (losses, parts), case in zip(several, cases, strict=True):
    assert parts > 1, case
    np.testing.assert_allclose(losses, one[0], atol=1e-5, err_msg=str(case))


GRADIENT = """
mesh = sharding.make_mesh({"tensor": 2})
with jax.set_mesh(mesh):
  params = make_state(task, optimizer, 0, mesh).params
  gradient = jax.grad(lambda params, batch: task.loss(params, batch, jax.random.key(0))[0])
  text = jax.jit(gradient).lower(params, sharding.to_devices(batch, mesh)).compile().as_text()
print(json.dumps(collections.Counter(re.findall(r" (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\\(", text))))
"""


@pytest.mark.slow
def test_devices_that_share_heads_and_hidden_widths_only_add_up():
  """Each has its columns of queries, keys, values and both halves of the feed-forward, so nothing changes places."""
  kinds = on_devices(2, TASK + GRADIENT)
  assert list(kinds) == ["all-reduce"] and kinds["all-reduce"] > 4
