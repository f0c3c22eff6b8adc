"""The transformer: clips of a row are strangers to each other; inside a clip every token matters to every other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax import sharding
from sora_jax.models.dit import DiT, DiTConfig, pooled
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.packing.batch import RowShape, Segment, pack_row, stack

CHANNELS = 6
CONFIG = DiTConfig(
  channels=CHANNELS,
  width=24,
  depth=2,
  heads=2,
  text=TextEncoderConfig(vocabulary=32, width=16, depth=1, heads=2),
  wavelengths=((0.5, 16.0), (8.0, 256.0), (8.0, 256.0)),
)
ROW = RowShape(tokens=18, text=12, segments=3)
START = 1


def make_clip(seed: int, tokens: int, words: list[int]) -> Segment:
  rng = np.random.default_rng(seed)
  return Segment(
    tokens_NC=rng.normal(size=(tokens, CHANNELS)).astype(np.float32),
    positions_N3=(rng.random((tokens, 3)) * [2, 64, 64]).astype(np.float32),
    condition_N=np.zeros(tokens, bool),
    level_N=np.zeros(tokens, np.float32),
    text_M=np.array([START, *words], np.int32),
    size_4=np.array([1 + seed, 32, 48, 8], np.float32),
    index=seed,
  )


A, B, C = make_clip(0, 5, [7, 9, 11]), make_clip(1, 7, [20, 21]), make_clip(2, 4, [9])


class Model:
  """A transformer whose every parameter is drawn (a fresh one predicts zeros), compiled once for one row."""

  def __init__(self, config: DiTConfig):
    graph, state = nnx.split(nnx.eval_shape(lambda: DiT(config, nnx.Rngs(params=0))))
    self.graph = graph
    rng = np.random.default_rng(0)
    size = lambda leaf: leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * size(leaf), jnp.float32)
    self.params = jax.tree.map(draw, nnx.to_pure_dict(state))
    call = lambda params, x, t, batch, kept: nnx.merge(graph, params)(x, t, batch, kept)
    self._forward = jax.jit(call)

    def pull(params, x, t, batch, kept, cotangent):
      return jax.vjp(lambda params, x: call(params, x, t, batch, kept), params, x)[1](cotangent)

    self._pull = jax.jit(pull)

  def inputs(self, clips, t=0.7, kept=None):
    batch = stack([pack_row(clips, ROW, CHANNELS)])
    t_BL = np.where(batch.segments_BL > 0, t, 0.0).astype(np.float32)
    kept_BS = np.ones((1, ROW.segments), bool) if kept is None else np.array([kept])
    return batch.tokens_BLC, t_BL, batch, kept_BS

  def outputs(self, clips, **how) -> list[np.ndarray]:
    """What is predicted for each clip."""
    return split(clips, self._forward(self.params, *self.inputs(clips, **how)))

  def gradients(self, clips, cotangents, **how):
    """Gradients of sum(output * cotangent): of the parameters, and of each clip's tokens."""
    cotangent = np.zeros((1, ROW.tokens, CHANNELS), np.float32)
    cotangent[0, : sum(map(len, cotangents))] = np.concatenate(cotangents)
    params, tokens = self._pull(self.params, *self.inputs(clips, **how), cotangent)
    return params, split(clips, tokens)


def split(clips, array_BLC) -> list[np.ndarray]:
  ends = np.cumsum([len(clip.tokens_NC) for clip in clips])
  return np.split(np.asarray(array_BLC)[0, : ends[-1]], ends[:-1])


@pytest.fixture(scope="module")
def model() -> Model:
  return Model(CONFIG)


def cotangents(*clips) -> list[np.ndarray]:
  return [np.cos(np.arange(clip.tokens_NC.size, dtype=np.float32)).reshape(-1, CHANNELS) for clip in clips]


def assert_trees_close(found, wanted):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def assert_trees_equal(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_fresh_model_predicts_zeros():
  fresh = nnx.eval_shape(lambda: DiT(CONFIG, nnx.Rngs(params=0)))
  assert fresh.patch_out.kernel.shape == fresh.skip.kernel.shape == (CONFIG.width, CHANNELS)

  def draw() -> list[jax.Array]:
    made = DiT(CONFIG, nnx.Rngs(params=0))
    return [layer.kernel[...] for layer in (made.patch_out, made.skip)]

  assert not any(kernel.any() for kernel in jax.jit(draw)())


def test_the_gate_lets_tokens_pass_by_their_noise_level(model):
  """Each channel by a number of its own, which the blocks are no part of."""
  gates = np.arange(1.0, CHANNELS + 1, dtype=np.float32)
  alone = {name: jax.tree.map(jnp.zeros_like, model.params[name]) for name in ("patch_out", "skip")}
  alone["skip"]["bias"] = jnp.asarray(gates)
  found = model._forward(model.params | alone, *model.inputs([A, B]))
  np.testing.assert_allclose(split([A, B], found)[1], gates * B.tokens_NC, rtol=1e-6)
  levels = [
    np.asarray(model._forward(model.params | {"patch_out": alone["patch_out"]}, *model.inputs([A], t=t)))
    for t in (0.1, 0.9)
  ]
  assert np.abs(levels[0] - levels[1]).max() > 0.01


def test_packed_clips_equal_each_alone(model):
  for clip, packed in zip((A, B, C), model.outputs([A, B, C]), strict=True):
    np.testing.assert_allclose(packed, model.outputs([clip])[0], atol=1e-5)


def test_gradients_of_packed_clips_are_the_sums_of_those_alone(model):
  params, tokens = model.gradients([A, B, C], cotangents(A, B, C))
  alone = [model.gradients([clip], cotangents(clip)) for clip in (A, B, C)]
  assert_trees_close(params, jax.tree.map(lambda *leaves: sum(leaves), *(each for each, _ in alone)))
  assert_trees_close(tokens, [each[0] for _, each in alone])


def test_the_order_of_clips_in_a_row_does_not_matter(model):
  a, b, c = model.outputs([A, B, C])
  for found, wanted in zip(model.outputs([C, A, B]), (c, a, b), strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-5)


MOVED_B = B._replace(
  tokens_NC=B.tokens_NC + 1e3,
  positions_N3=B.positions_N3 + 1e3,
  text_M=np.array([2, 30, 31], np.int32),
  size_4=B.size_4 * 100,
)


def test_a_neighbour_changes_nothing_not_by_one_bit(model):
  before, after = model.outputs([A, B]), model.outputs([A, MOVED_B])
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(before[1] - after[1]).max() > 1e-2


def test_gradients_of_a_clip_ignore_its_neighbour_not_by_one_bit(model):
  mine = [cotangents(A)[0], np.zeros_like(B.tokens_NC)]
  (params, tokens), (params_moved, tokens_moved) = (model.gradients([A, b], mine) for b in (B, MOVED_B))
  assert_trees_equal(params, params_moved)
  np.testing.assert_array_equal(tokens[0], tokens_moved[0])
  np.testing.assert_array_equal(tokens[1], 0.0)


def test_only_words_of_a_clip_get_its_gradient(model):
  params, _ = model.gradients([A, B], [cotangents(A)[0], np.zeros_like(B.tokens_NC)])
  moved = np.flatnonzero(np.abs(params["text_encoder"]["embedding"]).max(-1))
  assert set(moved) == set(A.text_M.tolist())


def test_every_token_depends_on_every_other_of_its_clip_and_on_none_beside(model):
  for token in range(len(A.tokens_NC)):
    cotangent = np.zeros_like(A.tokens_NC)
    cotangent[token] = 1.0
    _, (mine, other) = model.gradients([A, B], [cotangent, np.zeros_like(B.tokens_NC)])
    assert (np.abs(mine).max(-1) > 1e-7).all(), token
    assert not other.any()


def test_padding_gets_no_gradient_and_gives_none(model):
  everywhere = [*cotangents(A), np.ones((ROW.tokens - len(A.tokens_NC), CHANNELS), np.float32)]
  _, (at_all,) = model.gradients([A], everywhere)
  _, (at_mine,) = model.gradients([A], cotangents(A))
  np.testing.assert_array_equal(at_all, at_mine)


def test_gains_of_queries_and_keys_are_learned_in_every_attention(model):
  params, _ = model.gradients([A, B], cotangents(A, B))
  gains = {
    sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "gain" in str(path)
  }
  attentions = ("blocks", "blocks/cross", "text_encoder/blocks")
  assert set(gains) == {f"{where}/{what}_norm/gain" for where in attentions for what in ("query", "key")}
  for name, gradient in gains.items():
    assert np.abs(gradient).max(-1).min() > 0, name  # of each layer and head


def test_the_caption_matters(model):
  before, after = (model.outputs([clip])[0] for clip in (A, A._replace(text_M=np.array([START, 7, 9, 12], np.int32))))
  assert (np.abs(before - after).max(-1) > 1e-4).all()


def test_a_dropped_caption_is_the_empty_caption(model):
  dropped = model.outputs([A, B], kept=[False, True, True])
  empty = model.outputs([A._replace(text_M=np.array([START], np.int32)), B])
  np.testing.assert_allclose(dropped[0], empty[0], atol=1e-5)
  np.testing.assert_array_equal(dropped[1], model.outputs([A, B])[1])
  assert np.abs(dropped[0] - model.outputs([A, B])[0]).max() > 1e-3


def test_the_noise_level_of_one_token_moves_its_clip_and_no_other(model):
  t = np.full((1, ROW.tokens), 0.7, np.float32)
  moved = t.copy()
  moved[0, 2] = 0.1
  before, after = model.outputs([A, B], t=t), model.outputs([A, B], t=moved)
  change = np.abs(before[0] - after[0]).max(-1)
  assert (change > 1e-5).all() and change.argmax() == 2
  np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("which", range(4), ids=["seconds", "height", "width", "fps"])
def test_the_size_conditions_the_output(model, which):
  size = A.size_4.copy()
  size[which] *= 2
  before, after = model.outputs([A, B]), model.outputs([A._replace(size_4=size), B])
  assert (np.abs(before[0] - after[0]).max(-1) > 1e-4).all()
  np.testing.assert_array_equal(before[1], after[1])


def test_where_a_token_lies_in_its_clip_matters(model):
  """Rotary positions alone tell distances; walls and beginnings are known by the place within the clip."""
  shifted = A._replace(positions_N3=A.positions_N3 + np.array([[0.5, 8, 8]], np.float32))
  assert (np.abs(model.outputs([shifted])[0] - model.outputs([A])[0]).max(-1) > 1e-4).all()
  swapped = A._replace(positions_N3=A.positions_N3[::-1].copy())
  assert np.abs(model.outputs([swapped])[0] - model.outputs([A])[0]).max() > 1e-3


def test_what_attention_gathers_tells_where_it_lay(model):
  """Values turn with their token and back at the query: distances count even where every token is heard alike."""
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * 0 if "place_in" in jax.tree_util.keystr(path) else leaf, model.params
  )
  qkv = params["blocks"]["qkv"]["kernel"]
  params["blocks"]["qkv"]["kernel"] = qkv.at[..., :2, :].set(0.0)
  output = lambda move_N3: np.asarray(
    model._forward(params, *model.inputs([A._replace(positions_N3=A.positions_N3 + np.float32(move_N3))]))
  )[0, : len(A.tokens_NC)]
  one_moved = np.zeros_like(A.positions_N3)
  one_moved[0] = [0.3, 5.0, 0.0]
  np.testing.assert_allclose(output([0.5, 8.0, 3.0]), output(0.0), atol=1e-4)
  assert (np.abs(output(one_moved) - output(0.0)).max(-1) > 1e-4).all()


def test_places_are_fractions_of_the_clip(model):
  """The same corner of a larger clip has the same place, whatever it is packed with."""
  larger = A._replace(positions_N3=A.positions_N3 * np.float32(3), size_4=A.size_4 * np.array([3, 3, 3, 1], np.float32))
  dit = nnx.merge(model.graph, model.params)
  place = lambda *clips: np.asarray(dit.place(stack([pack_row(clips, ROW, CHANNELS)])))[0]
  np.testing.assert_allclose(place(larger)[: len(A.tokens_NC)], place(A)[: len(A.tokens_NC)], atol=1e-4)
  np.testing.assert_array_equal(place(A, B)[: len(A.tokens_NC)], place(A)[: len(A.tokens_NC)])


def test_a_loop_is_told_and_a_turn_later_is_now(model):
  size_4, turn = np.array([2, 32, 48, 8], np.float32), np.zeros_like(A.positions_N3)
  clip = A._replace(size_4=size_4)
  loop = clip._replace(period=2.0)
  turn[2:, 0] = 2.0
  later = loop._replace(positions_N3=loop.positions_N3 + turn)
  before, found, moved = (model.outputs([each, B]) for each in (clip, loop, later))
  assert (np.abs(before[0] - found[0]).max(-1) > 1e-4).all()
  np.testing.assert_allclose(moved[0], found[0], atol=1e-4)
  for other in (found, moved):
    np.testing.assert_array_equal(before[1], other[1])


def test_captions_are_pooled_by_segment():
  text = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
  found = pooled(jnp.asarray(text), jnp.array([[1, 1, 3, 3, 3, 0]]), segments=4)
  wanted = [text[0, :2].mean(0), np.zeros(2), text[0, 2:5].mean(0), np.zeros(2)]
  np.testing.assert_allclose(found, np.array(wanted, np.float32)[None], rtol=1e-6)


def test_modulation_hears_a_caption_as_a_sum_of_words(model):
  """So that two words that training never saw together are no news: only cross attention knows their order."""
  silent = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * 0 if "cross" in jax.tree_util.keystr(path) else leaf, model.params
  )
  outputs = lambda words: np.asarray(
    model._forward(silent, *model.inputs([A._replace(text_M=np.array([START, *words], np.int32))]))
  )
  np.testing.assert_allclose(outputs([9, 11, 7]), outputs([7, 9, 11]), atol=1e-5)
  assert np.abs(outputs([7, 9, 12]) - outputs([7, 9, 11])).max() > 1e-3
  assert (
    np.abs(model.outputs([A._replace(text_M=np.array([START, 9, 11, 7], np.int32))])[0] - model.outputs([A])[0]).max()
    > 1e-3
  )


def test_bfloat16_blocks_are_near_float32_and_return_float32(model):
  half = Model(dataclasses.replace(CONFIG, dtype="bfloat16")).outputs([A, B])
  for found, wanted in zip(half, model.outputs([A, B]), strict=True):
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_levels_of_another_shape_than_the_tokens_are_refused(model):
  x, t, batch, kept = model.inputs([A])
  with pytest.raises(AssertionError):
    model._forward(model.params, x, t[:, 1:], batch, kept)
