"""muP: which parameter's rate changes how with the width, and that training obeys."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.sharding import path_name
from sora_jax.train import mup
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer

MODEL = DiTConfig(
  channels=12,
  width=192,
  depth=2,
  heads=12,
  text=TextEncoderConfig(vocabulary=64, width=32, depth=1, heads=2),
  wavelengths=((1.0, 16.0), (4.0, 64.0), (4.0, 64.0)),
)
QUARTER = 48  # a quarter of the width


def test_the_table():
  found = dict(mup.multipliers(MODEL, QUARTER))
  assert found["blocks/qkv/kernel"] == pytest.approx(0.5)  # Muon: one over the root of the ratio
  assert found["blocks/attention_out/kernel"] == found["blocks/query/kernel"] == pytest.approx(0.5)
  assert found["blocks/key_value/kernel"] == pytest.approx(2 * math.sqrt(48 / 192))  # from a caption's fixed width
  assert found["modulation/kernel"] == found["patch_out/kernel"] == pytest.approx(0.25)  # AdamW: one over the ratio
  same = {"patch_in/kernel", "time_in/kernel", "size_in/kernel", "place_in/kernel", "caption_in/kernel", "blocks/table"}
  same |= {name for name in found if name.startswith("text_encoder/") or name.endswith(("bias", "gain", "embedding"))}
  assert {found[name] for name in same} == {1.0}
  assert found.keys() == set(mup.shapes(MODEL))


def test_at_the_base_width_nothing_changes():
  assert {value for _, value in mup.multipliers(MODEL, MODEL.width)} == {1.0}


def test_heads_keep_their_width():
  with pytest.raises(InputError, match=r"model.base_width=40: heads are 16 wide at config.model.width=192"):
    mup.multipliers(MODEL, 40)


def test_updates_are_multiplied_and_weight_decay_is_not():
  _, like = abstract(DiT, dataclasses.replace(MODEL, depth=1))
  rng = np.random.default_rng(0)
  params, gradient = (jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), like) for _ in range(2))
  plain = OptimizerConfig(0.1, 0.1, 1, 0.0, 10, 1e9)
  scaled = plain._replace(multipliers=mup.multipliers(MODEL, QUARTER))

  def step(config: OptimizerConfig) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(config)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}

  before, after, decayed = step(plain), step(scaled), step(scaled._replace(weight_decay=0.5))
  for name, factor in scaled.multipliers:
    np.testing.assert_allclose(after[name], factor * before[name], rtol=1e-4, atol=1e-7)
  weights = params["patch_out"]["kernel"]
  np.testing.assert_allclose(
    decayed["patch_out/kernel"], after["patch_out/kernel"] - 0.05 * weights, rtol=1e-3, atol=1e-6
  )
