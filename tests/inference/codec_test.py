"""The codec: any size in and out, long clips in chunks as at once, weights from a workdir or a clear error."""

import math
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.checkpoints import checkpoint
from sora_jax.inference import codec, tiles
from sora_jax.inference.codec import Codec
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.patches import Grid
from sora_jax.train.state import TrainState

SECTION = types.SimpleNamespace(channels=3, stages=(((2, 2, 2), 8, 1),), dtype="float32", remat="none")
CONFIG = AutoencoderConfig.of(SECTION)


# Of other shapes: without equal sides, of several levels, and what a large model computes in.
WIDE = types.SimpleNamespace(channels=2, stages=(((1, 2, 4), 4, 2), ((2, 2, 1), 6, 1)), dtype="float32")
DEEP = types.SimpleNamespace(channels=2, stages=(((1, 2, 2), 4, 1), ((2, 2, 2), 6, 1), ((1, 2, 2), 8, 2)))
HALF = types.SimpleNamespace(channels=3, stages=SECTION.stages, dtype="bfloat16")
SECTIONS = {"one": SECTION, "wide": WIDE, "deep": DEEP}
SMALLEST = 1  # pixels at once: tiles are as small as they can be


def drawn_params(seed: int, config: AutoencoderConfig = CONFIG):
  _, like = abstract(Autoencoder, config)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.1, jnp.float32), like)
  taps = lambda path, leaf: leaf * 5 if "taps" in jax.tree_util.keystr(path) else leaf  # what neighbours have counts
  return {**jax.tree_util.tree_map_with_path(taps, params), "latent_std": jnp.geomspace(0.5, 2.0, config.channels)}


def both(section, most: int) -> tuple[Codec, Codec]:
  """A codec of whole frames, and one of the same weights that codes at most so many pixels at once."""
  config = AutoencoderConfig.of(section)
  params = drawn_params(3, config)
  return Codec(config, params, 2**30), Codec(config, params, most)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  return 20 * math.log10(2.0) - 10 * math.log10(float(np.mean((a - b) ** 2)))


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
  monkeypatch.setattr(tiles, "CHUNK", 1)
  np.testing.assert_allclose(coder.encode(clip), whole, atol=1e-5)
  np.testing.assert_allclose(coder.decode(whole, shape), decoded, atol=1e-5)
  monkeypatch.setattr(tiles, "CHUNK", 2)
  np.testing.assert_allclose(coder.encode(clip), whole, atol=1e-5)


def test_a_clip_longer_than_a_chunk_uses_several(coder, monkeypatch):
  """Memory is bounded: no call sees more than a chunk, 1 + CHUNK latent frames at the first."""
  seen, encode = [], coder._encode
  monkeypatch.setattr(tiles, "CHUNK", 2)
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


class TestLoops:
  SIZE = (6, 8)

  def test_a_turn_is_coded_as_every_turn_after_the_first(self, coder):
    turn = clips(2, 4, *self.SIZE)
    turns = coder.encode(np.concatenate([turn[:, -1:], np.tile(turn, (1, 6, 1, 1, 1))], 1))
    found = coder.encode_loop(np.roll(turn, 1, axis=1))  # begun by the frame before
    assert found.shape[1] == 2
    np.testing.assert_allclose(found, turns[:, -2:], atol=1e-5)

  def test_what_is_decoded_is_one_turn_with_no_seam(self, coder):
    latent = np.random.default_rng(2).normal(size=(1, 2, 3, 4, 3)).astype(np.float32)
    frames = coder.decode_loop(latent, (4, *self.SIZE))
    many = coder.decode(np.concatenate([latent[:, -1:], *[latent] * 6], 1), (25, *self.SIZE))
    np.testing.assert_allclose(np.roll(frames, -1, axis=1), many[:, -4:], atol=1e-5)
    turned = coder.decode_loop(np.roll(latent, 1, axis=1), (4, *self.SIZE))
    np.testing.assert_allclose(turned, np.roll(frames, 2, axis=1), atol=1e-5)


class TestTiles:
  @pytest.mark.parametrize(
    ("name", "shape"), [("one", (1, 21, 9)), ("wide", (4, 31, 70)), ("deep", (3, 130, 7))], ids=str
  )
  def test_tiles_equal_the_whole(self, name, shape):
    self.check(name, *shape)

  @pytest.mark.slow
  @settings(max_examples=30, deadline=None)
  @given(st.sampled_from(sorted(SECTIONS)), st.integers(1, 6), st.integers(1, 150), st.integers(1, 150))
  def test_tiles_of_any_clip_equal_the_whole(self, name, frames, height, width):
    self.check(name, frames, height, width)

  def check(self, name: str, frames: int, height: int, width: int):
    whole, tiled = both(SECTIONS[name], SMALLEST)
    clip = clips(2, frames, height, width)
    latent = whole.encode(clip)
    np.testing.assert_allclose(tiled.encode(clip), latent, atol=1e-5)
    shape = clip.shape[1:4]
    np.testing.assert_allclose(tiled.decode(latent, shape), whole.decode(latent, shape), atol=1e-5)

  @pytest.mark.parametrize("frames", [1, 5])
  def test_there_are_tiles_in_both_directions_and_halos_are_what_makes_them_equal(self, frames, monkeypatch):
    whole, tiled = both(DEEP, SMALLEST)
    clip = clips(1, frames, 131, 150)
    latent = whole.encode(clip)
    laid = tiled.layout(latent.shape[1:4])
    assert len(laid.rows) > 1 and len(laid.columns) > 1
    assert psnr(tiled.decode(latent, clip.shape[1:4]), whole.decode(latent, clip.shape[1:4])) > 100
    monkeypatch.setattr(AutoencoderConfig, "halo", (1, 1))
    monkeypatch.setattr(tiles, "LEAST", 12)
    assert psnr(tiled.decode(latent, clip.shape[1:4]), whole.decode(latent, clip.shape[1:4])) < 60

  def test_tiles_in_bfloat16_equal_the_whole_to_its_rounding(self):
    whole, tiled = both(HALF, SMALLEST)
    clip = clips(1, 3, 40, 44)
    latent = whole.encode(clip)
    assert psnr(tiled.encode(clip) / np.abs(latent).max(), latent / np.abs(latent).max()) > 45
    assert psnr(tiled.decode(latent, (3, 40, 44)), whole.decode(latent, (3, 40, 44))) > 45

  def test_all_tiles_of_a_clip_run_one_program_a_chunk(self, monkeypatch):
    _, tiled = both(WIDE, SMALLEST)
    seen, decode = set(), tiled._decode
    monkeypatch.setattr(tiled, "_decode", lambda p, x, past: (seen.add((x.shape, past is None)), decode(p, x, past))[1])
    latent = np.zeros((6, 31, 27, 2), np.float32)
    assert len(tiled.layout(latent.shape[:3]).tiles) > 4
    tiled.decode(latent[None], (11, 124, 108))
    assert len(seen) == 2  # the first chunk, and all that follow

  def test_what_tiles_keep_between_chunks_may_wait_on_the_host(self, monkeypatch):
    whole, tiled = both(WIDE, SMALLEST)
    clip = clips(1, 7, 60, 64)
    latent = whole.encode(clip)
    monkeypatch.setattr(codec, "STATE_BYTES", 0)
    np.testing.assert_allclose(tiled.encode(clip), latent, atol=1e-5)
    decoded = whole.decode(latent, (7, 60, 64))
    np.testing.assert_allclose(tiled.decode(latent, (7, 60, 64)), decoded, atol=1e-5)


class TestStream:
  @pytest.mark.parametrize("most", [SMALLEST, 9 * 8 * 8, 2**30])
  @pytest.mark.parametrize("shape", [(1, 9, 10), (2, 16, 17), (40, 8, 8), (24, 33, 20)], ids=str)
  def test_the_pieces_are_the_decoded_clip(self, shape, most):
    _, coder = both(SECTION, most)
    latent = coder.encode(clips(1, *shape))
    pieces = list(coder.stream(latent[0], shape))
    assert all(piece.shape[1:] == (*shape[1:], 3) and len(piece) for piece in pieces)
    np.testing.assert_allclose(np.concatenate(pieces), coder.decode(latent, shape)[0], atol=1e-5)

  def test_a_piece_is_there_before_the_next_is_made(self, coder, monkeypatch):
    seen, decode = [], coder._decode
    monkeypatch.setattr(tiles, "CHUNK", 1)
    monkeypatch.setattr(coder, "_decode", lambda p, x, past: (seen.append(x.shape[1]), decode(p, x, past))[1])
    pieces = coder.stream(np.zeros((4, 2, 2, 3), np.float32), (7, 4, 4))
    assert not seen
    assert len(next(pieces)) == 3 and seen == [2]
    assert jax.sharding.get_abstract_mesh().empty  # the caller's own mesh, between pieces
    assert [len(piece) for piece in pieces] == [2, 2]

  def test_latents_of_another_shape_are_refused(self, coder):
    with pytest.raises(ValueError, match=r"no clip of \(9, 4, 4\)"):
      coder.decode(np.zeros((1, 4, 2, 2, 3), np.float32), (9, 4, 4))


CHILD = """
import resource, sys
import numpy as np
from tests.inference.codec_test import DEEP, both
frames = int(sys.argv[1])
coder = both(DEEP, 2**20)[1]
latent = np.random.default_rng(0).normal(size=(*coder.grid((1, 1, 1)).latent_shape(frames, 1080, 1920), 2))
made = sum(len(piece) for piece in coder.stream(latent.astype(np.float32), (frames, 1080, 1920)))
print(made, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(coder.layout(latent.shape[:3]).tiles))
"""


@pytest.mark.slow
def test_full_hd_takes_the_same_memory_whatever_its_duration():
  root = pathlib.Path(__file__).resolve().parents[2]

  def peak(frames: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", CHILD, str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made, kib, tiled = map(int, done.stdout.split())
    assert made == frames and tiled > 1
    return kib / 2**20

  short, long = peak(9), peak(65)
  assert long - short < 0.2, (short, long)  # GiB: 56 frames more have 1.3


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
