"""Pipelines: crops, conditions, packed rows, and a position that is the same number on any number of hosts."""

import collections
import copy
import pickle

import grain
import jax
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.data import conditions, latents, pipeline
from sora_jax.data.captions import Texts, write_captions
from sora_jax.data.pipeline import (
  Crops,
  PackedRows,
  Shares,
  Step,
  crop,
  crop_batches,
  packed_batches,
  readable_frames,
)
from sora_jax.data.sources import Mixture
from sora_jax.data.stream import Reading
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.diffusion import noise
from sora_jax.diffusion.objective import NoiseLevels, draw_times
from sora_jax.packing.balance import ClipFlops
from sora_jax.packing.batch import RowShape, stack
from sora_jax.patches import Grid, patchify
from sora_jax.video.io import UnreadableFile

GRID = Grid((2, 4, 4), (1, 2, 2))
ROW = RowShape(tokens=48, text=64, segments=8)
# (frames, height, width) of a clip; 4, 6, 12 and 18 tokens.
SHAPES = [(1, 16, 16), (1, 16, 24), (5, 16, 16), (5, 16, 24)]
CLIPS = 40
STEP = Step(rows=4, ranks=2, flops=ClipFlops.of(12 * 8**2, 1, 8))


def shard(index: int = 0, count: int = 1) -> Reading:
  return Reading(grain.sharding.ShardOptions(index, count))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer.train(["a short one", "a long one that says a great deal more"], 300)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> latents.LatentStore:
  def make():
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
      shape = SHAPES[i % len(SHAPES)]
      latent = rng.normal(size=(*GRID.latent_shape(*shape), 4)).astype(np.float32)
      pieces = tuple(
        (span, rng.normal(size=(span.latent_frames, *latent.shape[1:])).astype(np.float32))
        for span in conditions.spans(shape[0], GRID.compression[0], str(i))
      )
      yield latents.LatentClip(latent, (shape[0] / 8, shape[1], shape[2], 8.0), shape[0], str(i), pieces=pieces)

  folder = tmp_path_factory.mktemp("latents")
  latents.begin(folder, {})
  latents.write_unit(folder, 0, make(), [])
  write_captions(folder, [{"short": "a short one", "long": "a long one that says more"}] * CLIPS, "")
  return latents.finish(folder, 1)


@pytest.fixture(scope="module")
def make_rows(store, tokenizer):
  texts = Texts.of(store.all_captions(), tokenizer, ROW.text)

  def make(
    seed=0, long_captions=0.5, condition_share=0.5, dropped=0.0, row=ROW, step=STEP, kinds=(0.2,) * 5
  ) -> PackedRows:
    shown = conditions.Shares(condition_share, kinds, 0.5, 0.3)
    return PackedRows(store, texts, GRID, row, step, seed, Shares(long_captions, shown, dropped))

  return make


def clips_of(row) -> list[int]:
  return row.clip_index_BS[row.weight_BS > 0].tolist()


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


class TestCrop:
  def test_a_larger_clip_is_cut_from_inside(self):
    frames = np.arange(6 * 7 * 8 * 3, dtype=np.float32).reshape(6, 7, 8, 3)
    for seed in range(20):
      cut = crop(frames, (3, 4, 5), np.random.default_rng(seed))
      t, h, w = (int(i) for i in np.argwhere((frames == cut[0, 0, 0]).all(-1))[0])
      np.testing.assert_array_equal(cut, frames[t : t + 3, h : h + 4, w : w + 5])

  def test_every_place_is_taken(self):
    frames = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1).repeat(3, -1)
    starts = {float(crop(frames, (2, 1, 1), np.random.default_rng(seed))[0, 0, 0, 0]) for seed in range(60)}
    assert starts == {0.0, 1.0, 2.0}

  def test_a_shorter_or_smaller_clip_repeats_its_last_frame_and_edge(self):
    frames = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    cut = crop(frames, (4, 5, 6), np.random.default_rng(0))
    np.testing.assert_array_equal(cut, np.pad(frames, [(0, 2), (0, 2), (0, 2), (0, 0)], mode="edge"))

  def test_the_same_draws_give_the_same_crop(self):
    frames = np.random.default_rng(0).normal(size=(9, 9, 9, 3))
    cuts = [crop(frames, (3, 3, 3), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(cuts[0], cuts[1])
    assert cuts[0].dtype == np.float32 and (cuts[0] != cuts[2]).any()


class TestPackedRows:
  def test_an_epoch_has_each_clip_once(self, make_rows):
    rows = make_rows()
    for epoch in range(3):
      seen = [clip for i in range(len(rows)) for clip in clips_of(rows(epoch * len(rows) + i))]
      assert sorted(seen) == list(range(CLIPS))

  def test_epochs_differ_in_order_and_in_company(self, make_rows):
    rows = make_rows()
    epochs = [[clips_of(rows(epoch * len(rows) + i)) for i in range(len(rows))] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    together = [{frozenset(row) for row in epoch} for epoch in epochs]
    assert together[0] != together[1]

  def test_a_row_is_a_function_of_its_number(self, make_rows):
    first, second = make_rows(), make_rows()
    _ = [second(i) for i in (11, 3)]
    for number in (0, 7, 1000):
      assert_equal(first(number), second(number))
    other = make_rows(seed=1)
    assert any(clips_of(first(i)) != clips_of(other(i)) for i in range(len(first)))

  def test_little_is_padding(self, make_rows):
    rows = make_rows()
    assert np.mean([rows(i).useful_tokens for i in range(len(rows))]) > 0.9

  def test_a_clip_keeps_its_latents_positions_and_size(self, make_rows, store):
    rows = make_rows()
    row = rows(2)
    for number, clip in enumerate(clips_of(row)):
      frames, height, width = SHAPES[clip % len(SHAPES)]
      mine = np.flatnonzero(row.segments_BL == number + 1)[: GRID.tokens(frames, height, width)]
      np.testing.assert_array_equal(row.positions_BL3[mine], GRID.positions(frames, height, width, 8.0))
      assert row.tokens_BLC[mine].shape == (GRID.tokens(frames, height, width), 16)
      np.testing.assert_allclose(row.tokens_BLC[mine].sum(), store[clip].latent_thwC.sum(), atol=1e-3)
      np.testing.assert_allclose(row.size_BS4[number], [frames / 8, height, width, 8])

  @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
  def test_the_share_of_long_captions(self, make_rows, tokenizer, share):
    rows = make_rows(long_captions=share)
    long = tokenizer.encode("a long one that says more", ROW.text)
    drawn = [len(rows.segment(clip, epoch, 0).text_M) == len(long) for clip in range(CLIPS) for epoch in range(20)]
    assert np.mean(drawn) == pytest.approx(share, abs=0.06)

  def test_images_have_no_conditions_and_every_video_has_where_all_should(self, make_rows):
    rows = make_rows(condition_share=1.0)
    for number in range(len(rows)):
      row = rows(number)
      for segment, clip in enumerate(clips_of(row), 1):
        given = row.condition_BL[row.segments_BL == segment]
        assert given.any() == (SHAPES[clip % len(SHAPES)][0] > 1) and not given.all()

  def test_without_a_share_no_clip_has_any(self, make_rows):
    rows = make_rows(condition_share=0.0)
    assert not any(rows(number).condition_BL.any() for number in range(3 * len(rows)))

  @pytest.mark.parametrize(
    ("kind", "latent_frames", "seconds"),
    [("first", [1], {0.0}), ("ending", [1], {4 / 8}), ("ends", [1, 1], {0.0, 4 / 8})],
  )
  def test_conditions_are_pieces_of_the_clip_at_their_times(self, make_rows, store, kind, latent_frames, seconds):
    shares = tuple(float(each == kind) for each in conditions.KINDS)
    rows, clip = make_rows(condition_share=1.0, kinds=shares), 2
    tokens = GRID.tokens(*SHAPES[2])
    for turn in range(20):
      segment = rows.segment(clip, turn, 99)
      given, positions = segment.tokens_NC[segment.condition_N], segment.positions_N3[segment.condition_N]
      assert len(given) == sum(latent_frames) * 4 and set(np.unique(positions[:, 0]).tolist()) == seconds
      own = {0.0: store[clip].latent_thwC[:1], 4 / 8: store.piece(clip, 0)}
      for second in seconds:
        np.testing.assert_array_equal(given[positions[:, 0] == second], patchify(own[second], GRID.patch))
      np.testing.assert_array_equal(segment.tokens_NC[:tokens], patchify(store[clip].latent_thwC, GRID.patch))

  def test_conditions_differ_from_turn_to_turn_and_keep_to_their_room(self, make_rows):
    rows = make_rows(condition_share=1.0)
    tokens, seen = GRID.tokens(*SHAPES[2]), set()
    for turn in range(60):
      segment = rows.segment(2, turn, 4)
      assert len(segment.tokens_NC) == tokens + 4  # one frame of tokens
      times = segment.positions_N3[segment.condition_N, 0]
      seen.add((tuple(np.unique(times).tolist()), bool(segment.level_N.any())))
      assert not segment.level_N[~segment.condition_N].any() and segment.level_N.max() <= 0.3
    assert len(seen) >= 5  # the last, both ends and another frame, with and without noise

  def test_a_loop_is_told_and_all_its_conditions_stand_beside_it(self, tmp_path, tokenizer):
    """Of eight frames, four latent frames: its first frame, one from anywhere, both, or two latent frames in a row."""
    rng = np.random.default_rng(0)
    latent, piece = (rng.normal(size=(count, 4, 4, 4)).astype(np.float32) for count in (4, 2))
    pieces = tuple((span, piece[: span.latent_frames]) for span in conditions.spans(8, 2, "a", loop=True))
    clip = latents.LatentClip(latent, (1.0, 16, 16, 8.0), 8, "a", loop=True, pieces=pieces)
    latents.begin(tmp_path, {})
    latents.write_unit(tmp_path, 0, [clip], [])
    write_captions(tmp_path, [{"short": "short", "long": "long"}], "")
    store = latents.finish(tmp_path, 1)
    assert store[0].loop
    texts, shares = Texts.of(store.all_captions(), tokenizer, 8), Shares(0.5, conditions.Shares(1.0, (0.2,) * 5))
    rows = PackedRows(store, texts, GRID, RowShape(32, 8, 1), Step(1, 1, STEP.flops), 0, shares)
    seen = set()
    for turn in range(60):
      segment = rows.segment(0, turn, 4 * (1 + turn % 2))
      assert segment.period == 1.0 and not segment.condition_N[:16].any()
      np.testing.assert_array_equal(segment.positions_N3[:16], GRID.positions(8, 16, 16, 8.0, loop=True))
      np.testing.assert_array_equal(segment.tokens_NC[:16], patchify(store[0].latent_thwC, GRID.patch))
      seen.add(tuple(sorted(set(segment.positions_N3[16:, 0].tolist()))))
    middle = pieces[-1][0].start / 8
    assert seen == {(0.0,), (middle,), (0.0, 1.5 / 8), (0.0, middle)}
    assert rows(0).period_BS.tolist() == [1.0]

  def test_ranks_of_a_step_have_equal_work_in_every_epoch(self, make_rows):
    """Of 18-token clips alone in a row and of rows full of 4-token ones: by chance ranks would differ."""
    row = RowShape(tokens=20, text=64, segments=8)
    rows = make_rows(condition_share=0.0, row=row, step=Step(rows=4, ranks=2, flops=ClipFlops(1.0, 1.0)))
    steps = 5 * len(rows) // 4  # some of them begin in one epoch and end in the next
    work = []
    for number in range(steps * 4):
      segments = rows(number).segments_BL
      lengths = np.bincount(segments[segments > 0])[1:]
      work.append(sum(length + length**2 for length in lengths))
    load = np.reshape(work, (steps, 2, 2)).sum(2)
    assert (load.mean(1) / load.max(1)).mean() > 0.97
    shuffled = np.random.default_rng(0).permutation(np.ravel(work)).reshape(steps, 2, 2).sum(2)
    assert (shuffled.mean(1) / shuffled.max(1)).mean() < 0.9

  def test_tokens_left_out_are_others_in_each_epoch_and_the_rest_is_as_it_was(self, make_rows):
    whole, some = make_rows(), make_rows(dropped=0.25)
    assert sum(some.slots.lengths_K) < sum(whole.slots.lengths_K)
    chosen = []
    for epoch in range(2):
      for clip in range(8):
        all_of_it, kept = whole.segment(clip, epoch, 0), some.segment(clip, epoch, 0)
        places = [int(np.argmax((all_of_it.tokens_NC == token).all(1))) for token in kept.tokens_NC]
        count = len(all_of_it.tokens_NC)
        assert len(places) == count - count // 4 and places == sorted(set(places))
        np.testing.assert_array_equal(kept.positions_N3, all_of_it.positions_N3[places])
        np.testing.assert_array_equal(kept.condition_N, all_of_it.condition_N[places])
        assert (kept.text_M == all_of_it.text_M).all() and (kept.size_4 == all_of_it.size_4).all()
        chosen.append(places)
    assert chosen[:8] != chosen[8:]

  def test_a_mixture_keeps_its_weights_and_each_use_of_a_clip_is_another(self, store, tokenizer, make_rows):
    rows = self.mixed(store, tokenizer)
    tokens, uses = np.zeros(2), collections.defaultdict(set)
    for row in map(rows, range(1000)):
      for segment, clip in enumerate(clips_of(row), 1):
        tokens[int(clip >= 36)] += GRID.tokens(*SHAPES[clip % len(SHAPES)])
        uses[clip].add(row.text_BM[row.text_segments_BM == segment].tobytes())
    assert tokens / tokens.sum() == pytest.approx([0.3, 0.7], abs=0.01)
    assert set(uses) == set(range(CLIPS)) and all(len(uses[clip]) == 2 for clip in range(36, CLIPS))

  def mixed(self, store, tokenizer) -> PackedRows:
    """Of a mixture whose second component has four clips and most of the tokens."""
    mixed = copy.copy(store)
    mixed.component_N = (np.arange(CLIPS) >= 36).astype(np.int32)
    texts = Texts.of(store.all_captions(), tokenizer, ROW.text)
    return PackedRows(mixed, texts, GRID, ROW, STEP, 0, Shares(0.5, conditions.Shares(0.5)), weights=(0.3, 0.7))

  def test_a_clip_that_a_step_repeats_has_another_level_noise_and_drop_each_time(self, store, tokenizer):
    rows, repeated = self.mixed(store, tokenizer), 0
    for step in range(5):
      batch = stack([rows(4 * step + number) for number in range(4)])
      there = batch.weight_BS > 0
      used = np.stack([batch.clip_index_BS[there], batch.turn_BS[there]], 1)
      assert len(np.unique(used, axis=0)) == len(used)
      repeated += len(used) - len(np.unique(used[:, 0]))
      for purpose in noise.PURPOSES:
        keys = noise.clip_keys(jax.random.key(0), batch.clip_index_BS, purpose, batch.turn_BS)
        drawn = np.asarray(noise.clip_uniform(keys))[there]
        assert len(np.unique(drawn)) == len(drawn)
      levels = draw_times(batch, jax.random.key(0), NoiseLevels(mean=0.0, std=1.0, base_tokens=100.0))[there]
      assert len(np.unique(np.asarray(levels))) == len(used)
    assert repeated > 20

  def test_captions_of_all_lengths_leave_clips_free_to_meet_others(self, tokenizer, tmp_path):
    """Sixty images of one size, hardly two of which have captions of one length."""
    clips = [latents.LatentClip(np.ones((1, 4, 4, 4), np.float32), (0.1, 16, 16, 8.0), 1, str(i)) for i in range(60)]
    latents.begin(tmp_path, {})
    latents.write_unit(tmp_path, 0, clips, [])
    write_captions(tmp_path, [{"short": "a" * (1 + i), "long": "b" * (1 + i)} for i in range(60)], "")
    store = latents.finish(tmp_path, 1)
    texts = Texts.of(store.all_captions(), tokenizer, 64)
    assert len(set(texts.longest_N.tolist())) > 40
    rows = PackedRows(store, texts, GRID, RowShape(48, 512, 12), STEP, 0, Shares(0.5, conditions.Shares(0.0)))
    epochs = [[clips_of(rows(epoch * len(rows) + i)) for i in range(len(rows))] for epoch in range(2)]
    assert all(sorted(clip for row in epoch for clip in row) == list(range(60)) for epoch in epochs)
    together = [{frozenset(row) for row in epoch} for epoch in epochs]
    assert not together[0] & together[1]

  def test_rows_that_are_sent_to_another_process_are_the_same(self, make_rows):
    rows = make_rows()
    assert_equal(pickle.loads(pickle.dumps(rows))(5), rows(5))

  def test_rows_that_ranks_can_t_share_are_refused(self, make_rows):
    with pytest.raises(ValueError, match="4 rows a step.*3 ranks"):
      make_rows(step=STEP._replace(ranks=3))

  def test_no_clips_are_refused(self, tmp_path, tokenizer):
    latents.begin(tmp_path, {})
    write_captions(tmp_path, [], "")
    with pytest.raises(ValueError, match="no clips"):
      shares = Shares(0.5, conditions.Shares(0.5))
      PackedRows(latents.finish(tmp_path, 0), Texts.of([], tokenizer, 8), GRID, ROW, STEP, 0, shares)

  def test_a_clip_that_no_row_holds_is_named_with_both_numbers(self, make_rows):
    with pytest.raises(ValueError, match="18 tokens.*17"):
      make_rows(row=ROW._replace(tokens=17))


class FakeSource:
  """Ten clips, the first twice as wide; frames hold their clip's number. Those in `broken` can't be read."""

  media_fingerprint = "fake"

  dropped, captions_fingerprint, fingerprint = (), "fake", "fake"

  def __init__(self, broken=()):
    self.broken = broken

  def __len__(self):
    return 10

  def shape(self, index):
    return (3, 6, 12) if index == 0 else (3, 6, 6)

  def fps(self, index):
    return 8.0

  def __getitem__(self, index):
    if index in self.broken:
      raise UnreadableFile(f"damaged-{index}")
    return Clip(np.full((*self.shape(index), 3), index / 10, np.float32), 8.0, "", str(index))


def open_crops(index=0, count=1, broken=(), seed=0):
  return crop_batches(Crops(FakeSource(broken), (2, 4, 4), seed), 4, shard(index, count))


def test_clips_are_kept_by_how_large_those_are_that_are_drawn(monkeypatch):
  class Mixed(FakeSource):
    """A hundred images and a video, which is drawn most of the time."""

    def __len__(self):
      return 101

    def shape(self, index):
      return (8, 64, 64) if index == 0 else (1, 4, 4)

  monkeypatch.setattr(pipeline, "CACHED_BYTES", 3 * 12 * 8 * 64 * 64)
  assert Crops(Mixed(), (1, 4, 4), 0).cached in (3, 4)


def test_an_image_counts_for_the_frames_of_a_crop_that_it_fills():
  """Five images of 1 frame and five clips of 4: by pixels 1 to 4, of a crop's frames 1 to 4 again: 1 crop of 17."""

  class Mixed(FakeSource):
    def shape(self, index):
      return (4 if index % 2 else 1, 6, 6)

  batches = crop_batches(Crops(Mixed(), (4, 4, 4), 0), 50, shard(0, 1))
  drawn = np.concatenate([next(batches)[1] for _ in range(40)])
  assert np.mean(drawn % 2 == 0) == pytest.approx(1 / 17, abs=0.02)


class TestProbe:
  def test_it_is_drawn_over_the_whole_source_by_the_weights_of_its_components(self):
    """Clips 0 to 199 are of the first component of a mixture, unlike the rest."""

    class Many(FakeSource):
      def __init__(self, value, count):
        super().__init__()
        self.value, self.count = value, count

      def __len__(self):
        return self.count

      def __getitem__(self, index):
        return Clip(np.full((*self.shape(index), 3), self.value, np.float32), 8.0, "", str(index))

    mixture = Mixture([Many(-1.0, 200), Many(0.0, 50), Many(1.0, 10)])
    for weights in ((0.25, 0.25, 0.5), (0.5, 0.5, 0.0625)):
      probe = Crops(mixture, (2, 4, 4), 3, weights).probe(64)
      assert probe.shape == (64, 2, 4, 4, 3) and probe.dtype == np.float32
      shares = np.array([(probe[:, 0, 0, 0, 0] == value).mean() for value in (-1.0, 0.0, 1.0)])
      assert shares == pytest.approx(np.array(weights) / sum(weights), abs=0.02)

  def test_it_is_a_function_of_the_seed(self):
    first, again, other = (Crops(FakeSource(), (2, 4, 4), seed).probe(20) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def open_seed(seed):
  return open_crops(seed=seed)


@pytest.fixture(params=["crops", "packed"])
def opened(request, make_rows):
  """A function (shard number, shards) -> iterator with a global batch of 4."""
  if request.param == "crops":
    return open_crops
  return lambda index=0, count=1: packed_batches(make_rows(), shard(index, count))


def names(batch) -> list:
  """A batch's rows as bytes, sorted: what is in it whatever the order."""
  leaves = jax.tree.leaves(batch)
  return sorted(b"".join(np.ascontiguousarray(leaf[i]).tobytes() for leaf in leaves) for i in range(len(leaves[0])))


class TestPosition:
  def test_two_hosts_together_read_what_one_reads(self, opened):
    whole, halves = opened(), [opened(0, 2), opened(1, 2)]
    for _ in range(4):
      parts = [next(half) for half in halves]
      assert {len(jax.tree.leaves(part)[0]) for part in parts} == {2}
      assert names(next(whole)) == sorted(names(parts[0]) + names(parts[1]))

  def test_a_fresh_iterator_goes_on_where_the_saved_one_was(self, opened):
    first = opened()
    _ = [next(first) for _ in range(3)]
    state = first.get_state()
    expected = [next(first) for _ in range(3)]
    second = opened()
    second.set_state(state)
    for batch in expected:
      assert_equal(next(second), batch)

  def test_a_position_saved_on_one_host_holds_on_two_and_back(self, opened):
    whole = opened()
    _ = [next(whole) for _ in range(2)]
    halves = [opened(0, 2), opened(1, 2)]
    for half in halves:
      half.set_state(whole.get_state())
    for _ in range(2):
      assert sorted(names(next(halves[0])) + names(next(halves[1]))) == names(next(whole))
    again = opened()
    again.set_state(halves[0].get_state())
    assert names(next(again)) == names(next(whole))

  def test_batches_differ(self, opened):
    iterator = opened()
    assert names(next(iterator)) != names(next(iterator))

  def test_hosts_in_turn_hold_the_batch_of_one(self, opened):
    """A rank's rows lie side by side in a batch, so each host must hold one piece of it."""
    whole, halves = opened(), [opened(0, 2), opened(1, 2)]
    for _ in range(3):
      parts = [next(half) for half in halves]
      assert_equal(next(whole), jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


class TestReadableFrames:
  def test_a_clip_that_can_be_read_is_itself(self, capsys):
    assert readable_frames(FakeSource(), 4)[0, 0, 0, 0] == np.float32(0.4)
    assert not capsys.readouterr().err

  def test_the_next_one_that_can_be_read_stands_in(self, capsys):
    assert readable_frames(FakeSource(broken=(8, 9)), 8)[0, 0, 0, 0] == 0
    assert "damaged-8" in capsys.readouterr().err


class TestCropBatches:
  def test_shapes_types_and_the_clip_s_number(self):
    frames, index = next(open_crops())
    assert frames.shape == (4, 2, 4, 4, 3) and frames.dtype == np.float32
    assert index.shape == (4,) and index.dtype == np.int32
    np.testing.assert_allclose(frames[:, 0, 0, 0, 0], index / 10, rtol=1e-6)

  def test_every_pixel_is_as_likely(self):
    iterator = open_crops()
    seen = np.concatenate([next(iterator)[1] for _ in range(500)])
    wanted = np.array([2, *[1] * 9]) / 11
    np.testing.assert_allclose(np.bincount(seen, minlength=10) / len(seen), wanted, atol=0.03)

  def test_the_seed_changes_the_crops(self):
    draws = [np.concatenate([next(iterator)[1] for _ in range(5)]) for iterator in map(open_seed, (0, 0, 1))]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()

  def test_a_clip_that_can_t_be_read_is_replaced_and_named(self, capfd):
    iterator = open_crops(broken=(3, 9))
    batches = [next(iterator) for _ in range(25)]
    shown = {int(i): frame for frames, index in batches for i, frame in zip(index, frames[:, 0, 0, 0, 0], strict=True)}
    assert shown[3] == pytest.approx(0.4) and shown[9] == pytest.approx(0.0)
    assert shown[5] == pytest.approx(0.5)
    said = capfd.readouterr().err
    assert "damaged-3" in said and "damaged-9" in said and "damaged-5" not in said

  def test_a_source_of_which_nothing_can_be_read_stops_the_run(self):
    with pytest.raises(ValueError, match="10 clips"):
      next(open_crops(broken=range(10)))
