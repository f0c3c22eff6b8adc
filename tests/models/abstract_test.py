"""A model without its weights is the model but for them."""

import dataclasses

import jax
import pytest
from flax import nnx

from sora_jax import sharding
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Stage
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.text_encoder import TextEncoderConfig

CODER = AutoencoderConfig(channels=2, stages=(Stage((2, 2, 2), 4, 1),))
DIT = DiTConfig(
  channels=2, width=8, depth=2, heads=2, text=TextEncoderConfig(16, 8, 1, 2), wavelengths=((1.0, 2.0),) * 3
)


@pytest.mark.parametrize(("model", "config"), [(Autoencoder, CODER), (DiT, DIT)])
def test_it_is_the_model_but_for_its_weights(model, config):
  graph, shapes = abstract(model, config)
  made_graph, made = nnx.split(model(config, nnx.Rngs(params=3)))
  assert graph == made_graph
  kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  assert kinds(shapes) == kinds(nnx.to_pure_dict(made))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))


def test_a_mesh_that_is_set_leaves_no_trace():
  with jax.set_mesh(sharding.make_mesh()):
    _, shapes = abstract(DiT, dataclasses.replace(DIT, channels=3))  # nobody has asked for it yet
  assert not [leaf.sharding for leaf in jax.tree.leaves(shapes) if leaf.sharding is not None]
