"""What sampling a clip calls: as often, of as many tokens and in as many tiles as a generator and a codec do."""

import jax
import numpy as np
import pytest

from sora_jax import sharding
from sora_jax.diffusion import samplers, schedules
from sora_jax.diffusion.denoiser import guided
from sora_jax.diffusion.schedules import size_shift
from sora_jax.inference.codec import Codec
from sora_jax.inference.generator import Request, Sampling
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Stage
from sora_jax.models.dit import DiTConfig
from sora_jax.packing.batch import RowShape, pack_row, stack
from sora_jax.plan import calls, chips
from sora_jax.plan.program import read

H200 = chips.Slices(chips.CHIPS["h200"], (1,))


def counted(sampling: Sampling, shift: float, still: bool) -> tuple[int, int]:
  """Calls of a sampler that really runs, on a clip's token and one that is given or of padding."""
  seen = {"with": 0, "without": 0}

  def network(name):
    def call(x, t):
      jax.debug.callback(lambda: seen.update({name: seen[name] + 1}))
      return x

    return call

  denoise = guided(network("with"), network("without"), sampling.guidance, sampling.interval)
  start = np.array([[1.0, 0.0]], np.float32)[:, : 1 + still]
  noise = np.ones((*start.shape, 1), np.float32)
  levels = schedules.levels(sampling.steps, start, np.full_like(start, shift))
  samplers.sample(denoise, noise, levels, sampling.method).block_until_ready()
  jax.effects_barrier()
  return seen["with"] + seen["without"], seen["without"]


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
  ("interval", "still"),
  [((0.1, 0.95), False), ((0.3, 0.6), True), ((0.0, 0.2), False), ((0.0, 0.2), True), ((0.5, 0.5), True)],
  ids=str,
)
def test_the_network_is_called_as_often_as_a_sampler_calls_it(method, guidance, interval, still):
  sampling = Sampling(7, method, guidance, guidance, interval, False, 0.1)
  found = calls.network_calls(sampling, 4096, 64, still)
  assert found == counted(sampling, float(size_shift(np.float32(4096), 64)), still)
  assert found[1] == 0 or guidance != 1.0


def test_a_clip_lies_in_the_row_that_a_generator_makes(generator):
  for size in (16, 64, 200):
    request = Request("a circle", size, size, 5, 8.0, 0)
    tokens = generator.grid.tokens(5, size, size)
    segment = generator._segment(request, np.zeros((0, size // 4, size // 4, 4), np.float32), 0)
    assert calls.row_of(generator.config, tokens) == generator._row([segment])


def test_the_shapes_of_rows_are_those_of_rows_that_are_made():
  row = RowShape(48, 96, 5)
  made = stack([pack_row([], row, 7)] * 3)
  found = calls.batch_shapes(row, 3, 7, None)
  assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in made]


def test_a_first_frame_is_sampled_before_its_clip(tiny_config):
  shape = (5, 16, 16)
  assert calls.stages_of(tiny_config, shape) == [(shape, False)]
  tiny_config.sample.first_frame = True
  assert calls.stages_of(tiny_config, shape) == [((1, 16, 16), False), (shape, True)]
  assert calls.stages_of(tiny_config, (1, 16, 16)) == [((1, 16, 16), False)]


@pytest.mark.parametrize("most", [1, 2**21])
def test_a_decoder_is_examined_in_the_calls_that_a_codec_makes(tiny_config, monkeypatch, most):
  tiny_config.sample.tile_pixels = most
  frames, height, width = shape = (13, 40, 60)
  config = AutoencoderConfig.of(tiny_config.autoencoder)
  _, like = abstract(Autoencoder, config)
  coder = Codec(config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like), most)
  seen, decode = [], coder._decode

  def spy(params, latent, past):
    part, new = decode(params, latent, past)
    seen.append((latent.shape, sum(leaf.nbytes for leaf in jax.tree.leaves(new))))
    return part, new

  monkeypatch.setattr(coder, "_decode", spy)
  coder.decode(np.zeros((1, *coder.grid((1, 1, 1)).latent_shape(*shape), 4), np.float32), shape)
  found = calls.decode_of(tiny_config, shape, jax.devices()[0], None, compiles=False)
  (first, state), *_ = seen
  assert (found.clips, found.chunk_frames) == (first[0], min(1 + 2 * (first[1] - 1), frames))
  assert found.tile == (first[2] * 4, first[3] * 4)
  assert found.tiles * found.chunks == len(seen) and (found.tiles > 1) == (most == 1)
  assert found.state_bytes == found.tiles * state and not found.state_on_host


def test_the_products_of_a_decoder_are_those_of_its_program():
  config = AutoencoderConfig(3, (Stage((1, 2, 2), 16, 2), Stage((2, 2, 2), 24, 1)))
  _, params = abstract(Autoencoder, config)
  _, program = calls.codec.programs(config)
  latent = jax.ShapeDtypeStruct((1, 5, 6, 4, 3), np.float32)
  text = program.lower(params, latent, None).compile().as_text()
  assert 1 <= read(text).flops / calls.decode_flops(config, 5, 6 * 4) < 1.1


def test_calls_are_compiled_for_the_devices_that_are_here(tiny_config):
  tiny_config.model.update(width=64, depth=2)
  found = calls.examine(tiny_config, (33, 16, 24), jax.devices(), H200, compiles=True)
  (one,), decode = found["passes"], found["decode"]
  assert one["tokens"] == 17 * 2 * 3
  assert one["row_tokens"] % 128 == 0 and one["tokens"] <= one["row_tokens"]
  # The CPU's attention computes the pairs that the formulas leave out.
  assert 1 < one["compiled"]["flops"] / one["flops"]["forward"] < 3
  model = DiTConfig.of(tiny_config, tiny_config.model.vocabulary)
  held = 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract(calls.DiT, model)[1]))
  assert one["compiled"]["peak_bytes"] > held
  frames = 33 * 16 * 24 * 12 * decode["clips"]
  assert decode["first"]["peak_bytes"] > frames * 17 / 33 and decode["chunks"] == 2
  assert 0 < decode["next"]["seconds"]["step"] < decode["first"]["seconds"]["step"]
  assert not sharding.mesh_is_set()
