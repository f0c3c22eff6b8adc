"""The calls that sampling one clip makes, of the transformer and of the decoder: counted, and compiled from shapes.

What is compiled is what `inference/` runs: the rows of a group on all devices, and the tiles and chunks of a codec on
one. Nothing is computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax import sharding
from sora_jax.diffusion import schedules
from sora_jax.inference import codec
from sora_jax.inference.generator import GROUP_TOKENS, Sampling
from sora_jax.inference.tiles import layout
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.autoencoder import grid as grid_of
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing.batch import PackedBatch, RowShape, pack_row
from sora_jax.plan import chips, flops, step

# Of a row from which the shapes of any other are told: no two of them, and no number of channels, are alike.
PLACEHOLDER = RowShape(10007, 10009, 10037)


class Pass(NamedTuple):
  """The clip, or before it its first frame, from noise to latents.

  Attributes:
    tokens: of the clip.
    row_tokens: of the row that it lies in.
    rows: sampled together, over all devices; the clip fills one, or less.
    calls: of the network; one with guidance is two.
    guided: steps, or halves of Heun's, with guidance.
    flops: see `flops.Flops`, of one call over all devices.
    compiled: of one call, see `step.Compiled`; None where it was not compiled.
  """

  tokens: int
  row_tokens: int
  rows: int
  calls: int
  guided: int
  flops: dict[str, float]
  compiled: dict[str, Any] | None


class Decode(NamedTuple):
  """The clip from latents to frames, on one device.

  Attributes:
    clips: decoded together; copies fill them up.
    chunk_frames: frames that come at a time.
    tile: rows and columns of a tile, pixels.
    tiles: of a frame.
    chunks: of the clip.
    state_bytes: what all tiles keep from one chunk to the next.
    state_on_host: whether it waits in the host's memory.
    flops: of the whole clip, by formula.
    first, next: one tile of the first chunk and of a later one, see `step.Compiled`; None where it was not compiled,
      or there is none.
  """

  clips: int
  chunk_frames: int
  tile: tuple[int, int]
  tiles: int
  chunks: int
  state_bytes: int
  state_on_host: bool
  flops: float
  first: dict[str, Any] | None
  next: dict[str, Any] | None


def examine(
  config: Any, shape_THW: tuple[int, int, int], devices: Sequence[Any], where: chips.Slices | None, compiles: bool
) -> dict[str, Any]:
  """{kind, devices, params, passes, decode} of one clip.

  Args:
    where: the chips that the devices are, for times; None leaves those out.
    compiles: whether to compile, or only to count.
  """
  mesh = sharding.make_mesh(devices=devices)  # `sora sample` lays a model over all devices alike
  model = DiTConfig.of(config, config.model.vocabulary)
  counts = [
    _count(config, *each) for each in stages_of(config, shape_THW)
  ]  # before: JAX computes on the mesh that is set
  with jax.set_mesh(mesh):
    passes = [_pass(each, model, mesh, where, compiles) for each in counts]
  _, params = abstract(DiT, model)
  return {
    "kind": devices[0].device_kind,
    "devices": len(devices),
    "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "passes": [each._asdict() for each in passes],
    "decode": decode_of(config, shape_THW, devices[0], where, compiles)._asdict(),
  }


# The transformer.


def stages_of(config: Any, shape_THW: tuple[int, int, int]) -> list[tuple[tuple[int, int, int], bool]]:
  """What is sampled one after another: (frames, height, width), and whether its first frame is given."""
  if not config.sample.first_frame or shape_THW[0] == 1:
    return [(shape_THW, False)]
  return [((1, *shape_THW[1:]), False), (shape_THW, True)]


class Count(NamedTuple):
  """See `Pass`."""

  tokens: int
  row: RowShape
  calls: int
  guided: int


def _count(config: Any, shape_THW: tuple[int, int, int], given: bool) -> Count:
  tokens = grid_of(config).tokens(*shape_THW)
  row = row_of(config, tokens)
  still = given or row.tokens > tokens
  return Count(tokens, row, *network_calls(Sampling.of(config), tokens, config.diffusion.base_tokens, still))


def _pass(count: Count, model: DiTConfig, mesh: Any, where: chips.Slices | None, compiles: bool) -> Pass:
  tokens, row = count.tokens, count.row
  rows = max(GROUP_TOKENS // row.tokens, 1) * sharding.ways("batch")
  _, params = abstract(DiT, model)
  met = flops.Rows(rows, row, tokens**2 / row.tokens)  # each of the clip's tokens meets all of them, padding none
  counted = flops.count(params, model, met, "none")  # whose attention is thrice the forward pass's
  compiled = None
  if compiles:
    compiled = step.compile_for(lowered_call(model, params, row, rows, mesh), where, mesh)._asdict()
  of_call = {"forward": counted.forward, "attention": counted.attention / 3}
  return Pass(tokens, row.tokens, rows, count.calls, count.guided, of_call, compiled)


def row_of(config: Any, tokens: int) -> RowShape:
  """The row that a generator puts a clip of so many tokens in."""
  row = RowShape.of(config)
  return row if tokens <= row.tokens else row._replace(tokens=-(-tokens // 128) * 128)


def network_calls(sampling: Sampling, tokens: int, base_tokens: int, still: bool = False) -> tuple[int, int]:
  """How often the network is called for a clip, and how many of the calls are there for guidance alone.

  Args:
    base_tokens: see `schedules.size_shift`.
    still: whether the row has tokens that stay at level 0: those of a beginning, or of no clip.
  """
  factor = schedules.size_shift(jnp.float32(float(tokens)), base_tokens)
  levels = np.asarray(schedules.levels(sampling.steps, jnp.ones(()), factor))
  visited = levels[:-1]
  if sampling.method == "heun":
    visited = np.concatenate([visited, levels[1:-1]])
  low, high = (np.float32(value) for value in sampling.interval)
  acts = (visited >= low) & (visited <= high) | (still and low <= 0.0 <= high)
  acts &= sampling.guidance != 1.0
  return len(visited) + int(acts.sum()), int(acts.sum())


def lowered_call(model: DiTConfig, params: Any, row: RowShape, rows: int, mesh: Any) -> Any:
  """One call of the network, lowered for the mesh."""
  graph, _ = abstract(DiT, model)
  placed = jax.tree.map(
    lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
    params,
    sharding.param_shardings(params, mesh),
  )
  there = sharding.batch_sharding(mesh)
  level, kept = (
    jax.ShapeDtypeStruct((rows, size), kind, sharding=there)
    for size, kind in ((row.tokens, jnp.float32), (row.segments, bool))
  )
  batch = batch_shapes(row, rows, model.channels, there)
  call = lambda params, x, t, batch, kept: nnx.merge(graph, params)(x, t, batch, kept)
  return jax.jit(call).lower(placed, batch.tokens_BLC, level, batch, kept)


def batch_shapes(row: RowShape, rows: int, channels: int, there: Any) -> PackedBatch:
  """The arrays of so many rows. None is made: the row of a long clip takes gigabytes."""
  sizes = dict(zip(PLACEHOLDER, row, strict=True))
  like = pack_row([], PLACEHOLDER, channels)
  shape = lambda leaf: (rows, *(sizes.get(size, size) for size in leaf.shape))
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(shape(leaf), leaf.dtype, sharding=there), like)


# The decoder.


def decode_of(config: Any, shape_THW: tuple[int, int, int], device: Any, where: Any, compiles: bool) -> Decode:
  coder, most = AutoencoderConfig.of(config.autoencoder), config.sample.tile_pixels
  time, high, wide = coder.compression
  latent = grid_of(config).latent_shape(*shape_THW)
  laid = layout(latent, coder.compression, coder.halo, most)
  clips = codec.group_size(shape_THW, min(codec.GROUP_PIXELS, most))
  lengths = [end - start for start, end in laid.chunks(latent[0])]
  mesh = sharding.make_mesh(devices=[device])
  there = NamedSharding(mesh, PartitionSpec())
  placed = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there), tree)
  _, params = abstract(Autoencoder, coder)
  _, program = codec.programs(coder)
  chunk = lambda frames: jax.ShapeDtypeStruct((clips, frames, *laid.tile, coder.channels), jnp.float32, sharding=there)
  call = lambda frames, past: program.lower(placed(params), chunk(frames), past)
  with jax.set_mesh(mesh):
    past = placed(jax.eval_shape(program, params, chunk(lengths[0]), None)[1])
    first = step.compile_for(call(lengths[0], None), where, mesh)._asdict() if compiles else None
    later = step.compile_for(call(lengths[1], past), where, mesh)._asdict() if compiles and lengths[1:] else None
  state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(past)) * len(laid.tiles)
  return Decode(
    clips,
    min(1 + (lengths[0] - 1) * time, shape_THW[0]),
    (laid.tile[0] * high, laid.tile[1] * wide),
    len(laid.tiles),
    len(lengths),
    state,
    len(laid.tiles) > 1 and state > codec.STATE_BYTES,
    decode_flops(coder, latent[0], clips * len(laid.tiles) * laid.tile[0] * laid.tile[1]),
    first,
    later,
  )


def decode_flops(config: AutoencoderConfig, frames: int, positions: int) -> float:
  """Products with weights of decoding so many latent frames of so many positions each; a multiply-add is 2."""
  _, params = abstract(Autoencoder, config)
  kernels = lambda tree: sum(
    leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if sharding.path_name(path).endswith("kernel")
  )
  total = frames * positions * (kernels(params["latent_in"]) + kernels(params["linear_out"]))
  for number, stage in enumerate(reversed(config.stages)):
    total += frames * positions * kernels(params["decoder"][number])  # depth to space comes after its products
    time, rows, columns = stage.shrink
    frames, positions = 1 + (frames - 1) * time, positions * rows * columns
  return 2.0 * total
