"""The text encoder: a caption reads the same alone, packed, or elsewhere in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.models.text_encoder import TextEncoder, TextEncoderConfig

CONFIG = TextEncoderConfig(vocabulary=40, width=16, depth=2, heads=2)
ROW = 14
CAPTIONS = ([1, 7, 9, 12, 3], [1, 20, 7], [1, 5, 5, 8])


@pytest.fixture(scope="module")
def encode():
  """(captions, place of the first one, ids of padding) -> one array of vectors a caption."""
  graph, state = nnx.split(nnx.eval_shape(lambda: TextEncoder(CONFIG, nnx.Rngs(params=0))))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), nnx.to_pure_dict(state))
  run = jax.jit(lambda ids, segments: nnx.merge(graph, params)(ids, segments, jnp.float32))

  def encode_row(captions, first=0, padding=0):
    ids, segments, places = np.full((1, ROW), padding), np.zeros((1, ROW), int), []
    for number, caption in enumerate(captions):
      places.append(slice(first, first + len(caption)))
      ids[0, places[-1]], segments[0, places[-1]] = caption, number + 1
      first = places[-1].stop
    out = np.asarray(run(ids, segments))
    return [out[0, place] for place in places]

  return encode_row


def test_packed_equals_alone(encode):
  for caption, packed in zip(CAPTIONS, encode(CAPTIONS), strict=True):
    np.testing.assert_allclose(packed, encode([caption])[0], atol=1e-5)


def test_the_place_in_the_row_does_not_matter(encode):
  at_start, later = encode(CAPTIONS[:1]), encode(CAPTIONS[:1], first=ROW - len(CAPTIONS[0]))
  np.testing.assert_allclose(at_start[0], later[0], atol=1e-5)


def test_padding_is_not_read(encode):
  np.testing.assert_array_equal(encode(CAPTIONS[:1])[0], encode(CAPTIONS[:1], padding=33)[0])


def test_a_neighbour_is_not_read(encode):
  np.testing.assert_array_equal(encode(CAPTIONS)[0], encode([CAPTIONS[0], [30, 31, 32]])[0])


def test_every_word_reaches_every_other_in_either_order(encode):
  before = encode([[1, 7, 9, 12]])[0]
  for changed in ([1, 7, 9, 13], [2, 7, 9, 12]):
    assert (np.abs(encode([changed])[0] - before).max(-1) > 1e-3).all()


def test_word_order_matters(encode):
  assert np.abs(encode([[1, 7, 9]])[0][0] - encode([[1, 9, 7]])[0][0]).max() > 1e-3


def test_vectors_have_unit_root_mean_square(encode):
  np.testing.assert_allclose(np.sqrt(np.mean(encode(CAPTIONS)[0] ** 2, -1)), 1.0, rtol=1e-4)
