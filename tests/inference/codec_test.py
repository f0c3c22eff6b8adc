"""The codec: any size in and out, long clips in chunks as at once, weights from a workdir or a clear error."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.inference import codec
from sora_jax.inference.codec import Codec
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.patches import Grid
from sora_jax.train.state import TrainState

SECTION = types.SimpleNamespace(channels=3, stages=(((2, 2, 2), 8, 1),), dtype="float32", remat="none")
CONFIG = AutoencoderConfig.of(SECTION)


def drawn_params(seed: int):
  _, like = abstract(Autoencoder, CONFIG)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.1, jnp.float32), like)
  return {**params, "latent_std": jnp.array([0.5, 1.0, 2.0])}


@pytest.fixture(scope="module")
def coder() -> Codec:
  return Codec(CONFIG, drawn_params(0))


def clips(count: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(1).uniform(-1, 1, (count, *shape, 3)).astype(np.float32)


def test_a_config_section_becomes_a_model_config():
  assert CONFIG.channels == 3 and CONFIG.compression == (2, 2, 2)
  assert [(stage.width, stage.depth) for stage in CONFIG.stages] == [(8, 1)]


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 4), (4, 1, 1)])
def test_any_size_comes_back(coder, shape):
  latent = coder.encode(clips(2, *shape))
  assert latent.shape == (2, *coder.grid((1, 1, 1)).latent_shape(*shape), 3)
  assert latent.dtype == np.float32 and np.isfinite(latent).all()
  decoded = coder.decode(latent, shape)
  assert decoded.shape == (2, *shape, 3)
  assert decoded.dtype == np.float32 and np.abs(decoded).max() <= 1.0


def test_what_does_not_divide_is_padded_by_its_edge(coder):
  clip = clips(2, 2, 3, 4)
  grown = np.concatenate([clip, clip[:, -1:]], 1)
  grown = np.concatenate([grown, grown[:, :, -1:]], 2)
  np.testing.assert_array_equal(coder.encode(clip), coder.encode(grown))
  latent = coder.encode(clip)
  np.testing.assert_array_equal(coder.decode(latent, (2, 3, 4)), coder.decode(latent, (3, 4, 4))[:, :2, :3])


def test_a_long_clip_in_chunks_equals_the_whole(coder, monkeypatch):
  clip = clips(1, 8, 2, 2)
  whole = coder.encode(clip)
  shape = clip.shape[1:4]
  decoded = coder.decode(whole, shape)
  monkeypatch.setattr(codec, "CHUNK", 1)
  np.testing.assert_allclose(coder.encode(clip), whole, atol=1e-5)
  np.testing.assert_allclose(coder.decode(whole, shape), decoded, atol=1e-5)
  monkeypatch.setattr(codec, "CHUNK", 2)
  np.testing.assert_allclose(coder.encode(clip), whole, atol=1e-5)


def test_a_clip_longer_than_a_chunk_uses_several(coder, monkeypatch):
  """Memory is bounded: no call sees more than a chunk, 1 + CHUNK latent frames at the first."""
  seen, encode = [], coder._encode
  monkeypatch.setattr(codec, "CHUNK", 2)
  monkeypatch.setattr(coder, "_encode", lambda params, x, past: (seen.append(x.shape[1]), encode(params, x, past))[1])
  coder.encode(clips(1, 8, 2, 2))
  assert seen == [5, 4]


def test_any_number_of_clips_runs_in_groups_of_one_size(coder, monkeypatch):
  monkeypatch.setattr(codec, "GROUP", 2)
  seen, encode = set(), coder._encode
  monkeypatch.setattr(coder, "_encode", lambda params, x, past: (seen.add(x.shape[0]), encode(params, x, past))[1])
  many = clips(5, 3, 4, 4)
  latents = coder.encode(many)
  assert seen == {2} and len(latents) == 5
  decoded = coder.decode(latents, (3, 4, 4))
  for clip, latent, frames in zip(many, latents, decoded, strict=True):
    np.testing.assert_allclose(latent, coder.encode(clip[None])[0], atol=1e-5)
    np.testing.assert_allclose(frames, coder.decode(latent[None], (3, 4, 4))[0], atol=1e-5)


def test_the_grid_joins_compression_and_patch(coder):
  assert coder.grid([1, 2, 3]) == Grid((2, 2, 2), (1, 2, 3))


def test_the_ema_weights_of_a_workdir_are_loaded(tmp_path, coder):
  state = TrainState(drawn_params(5), {"count": np.int32(3)}, drawn_params(0), np.int32(3), np.zeros(2, np.uint32))
  with checkpoint.manager(tmp_path) as steps:
    checkpoint.save(steps, state, {}, {})
  loaded = Codec.load(tmp_path, SECTION)
  assert jax.tree.structure(loaded.params) == jax.tree.structure(coder.params)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, coder.params)


def test_a_workdir_of_another_autoencoder_is_refused(tmp_path):
  state = TrainState(drawn_params(5), {"count": np.int32(3)}, drawn_params(0), np.int32(3), np.zeros(2, np.uint32))
  with checkpoint.manager(tmp_path) as steps:
    checkpoint.save(steps, state, {}, {})
  other = types.SimpleNamespace(**vars(SECTION) | {"channels": 4})
  with pytest.raises(checkpoint.CheckpointError, match="does not fit this config: ema/latent_in/kernel"):
    Codec.load(tmp_path, other)


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match=f"no checkpoints under {tmp_path / 'nowhere'}"):
    Codec.load(tmp_path / "nowhere", SECTION)


@pytest.mark.parametrize(
  ("shape_THW", "size"), [((7, 24, 43), 16), ((1, 128, 128), 16), ((1, 256, 256), 4), ((33, 1080, 1920), 1)]
)
@pytest.mark.parametrize("count", [1, 5])
def test_a_group_has_a_number_of_clips_that_their_size_alone_decides(shape_THW, size, count):
  clips = np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1, 1)
  groups = codec.groups(clips, shape_THW)
  assert {len(group) for group in groups} == {size}
  np.testing.assert_array_equal(np.concatenate(groups)[:count], clips)
