"""Sampling: a clip is of its own request alone, sizes are exact, edits keep what they should, errors name things."""

import copy
import dataclasses
import shutil

import jax
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.checkpoints.checkpoint import CheckpointError
from sora_jax.clips import Clip
from sora_jax.errors import InputError
from sora_jax.inference.conditions import Condition, Edit
from sora_jax.inference.generator import GROUP_TOKENS, Generator, Request, Sampling, sheet
from sora_jax.models.dit import DiTConfig
from sora_jax.patches import patchify
from tests.devices import on_devices

VIDEO = Request("a red circle moves leftwards", 16, 16, 5, 8.0, 11)
WIDE = Request("a blue square", 24, 16, 5, 8.0, 12)
IMAGE = Request("a green cross", 16, 16, 1, 8.0, 13)
STILL = np.zeros((1, 16, 16, 3), np.float32)


@pytest.fixture(scope="module")
def sampling(generator) -> Sampling:
  return Sampling.of(generator.config)


def one(generator, request, sampling) -> np.ndarray:
  return generator.sample([request], sampling)[0].frames_THWC


class TestSample:
  def test_a_clip_alone_equals_the_same_packed_with_others(self, generator, sampling):
    requests = [VIDEO, WIDE, IMAGE, dataclasses.replace(VIDEO, seed=14), dataclasses.replace(WIDE, seed=15)]
    together = generator.sample(requests, sampling)
    for request, clip in zip(requests, together, strict=True):
      np.testing.assert_allclose(clip.frames_THWC, one(generator, request, sampling), atol=1e-4)
      assert (clip.caption, clip.fps) == (request.prompt, request.fps)

  def test_a_clip_of_many_rows_equals_itself_alone(self, generator, sampling):
    per_group = GROUP_TOKENS // 48 * 2  # a row of the tiny config holds two of these clips
    requests = [dataclasses.replace(WIDE, seed=seed) for seed in range(per_group + 1)]  # the last group is not full
    clips = generator.sample(requests, sampling)
    assert len(clips) == len(requests)
    for number in (0, len(requests) // 2, len(requests) - 1):
      np.testing.assert_allclose(clips[number].frames_THWC, one(generator, requests[number], sampling), atol=1e-4)

  def test_clips_up_to_a_training_row_run_one_program_in_every_generator(self, trained, sampling):
    first, other = Generator.load(trained), Generator.load(trained)
    one(first, IMAGE, sampling)
    compiled = first._run._cache_size()
    row = dataclasses.replace(WIDE, width=64)  # its 48 tokens fill a row of training
    for requests in ([row], [IMAGE] * 30, [row, WIDE, row]):
      other.sample(requests, sampling)
    assert other._run._cache_size() == compiled

  def test_the_same_seed_gives_the_same_bits_and_another_another_clip(self, generator, sampling):
    first = one(generator, VIDEO, sampling)
    np.testing.assert_array_equal(first, one(generator, VIDEO, sampling))
    other = one(generator, dataclasses.replace(VIDEO, seed=99), sampling)
    assert np.abs(first - other).max() > 1e-3

  def test_the_prompt_matters(self, generator, sampling):
    first = one(generator, VIDEO, sampling)
    assert (first != one(generator, dataclasses.replace(VIDEO, prompt="a blue cross"), sampling)).any()

  @pytest.mark.parametrize(
    ("width", "height", "frames"), [(33, 21, 1), (33, 21, 4), (1, 1, 1), (9, 7, 2), (64, 64, 1), (16, 16, 31)]
  )
  def test_every_size_and_duration_comes_back_exact(self, generator, sampling, width, height, frames):
    clip = one(generator, dataclasses.replace(VIDEO, width=width, height=height, frames=frames), sampling)
    assert clip.shape == (frames, height, width, 3) and clip.dtype == np.float32
    assert np.isfinite(clip).all() and np.abs(clip).max() <= 1

  def test_no_prompt_and_one_longer_than_a_row_are_sampled(self, generator, sampling):
    requests = [dataclasses.replace(IMAGE, prompt=prompt) for prompt in ("", "word " * 500)]
    assert [clip.frames_THWC.shape for clip in generator.sample(requests, sampling)] == [(1, 16, 16, 3)] * 2

  def test_conditions_change_what_is_made_and_a_clip_with_them_is_the_same_alone_and_packed(self, generator, sampling):
    given = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    first, last = Condition(given[:1]), Condition(given, seconds=2 / 8)
    choices = [(), (first,), (last,), (first, last), (dataclasses.replace(first, strength=0.5),)]
    requests = [dataclasses.replace(VIDEO, conditions=each) for each in choices]
    together = [clip.frames_THWC for clip in generator.sample(requests, sampling)]
    for number, request in enumerate(requests):
      np.testing.assert_allclose(together[number], one(generator, request, sampling), atol=1e-4)
      for other in together[:number]:
        assert np.abs(together[number] - other).max() > 1e-4

  def test_a_given_beginning_stays_whatever_the_seed(self, generator, sampling):
    given = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    kept = generator.codec.decode(generator.codec.encode(given[None]), (3, 16, 16))[0]
    request = dataclasses.replace(VIDEO, conditions=(Condition(given),))
    clips = [one(generator, dataclasses.replace(request, seed=seed), sampling) for seed in (1, 2)]
    for clip in clips:
      np.testing.assert_allclose(clip[:3], kept, atol=1e-4)
    assert np.abs(clips[0][3:] - clips[1][3:]).max() > 1e-3
    free = one(generator, dataclasses.replace(VIDEO, seed=1), sampling)
    assert np.abs(free[:3] - kept).max() > 0.05

  def test_a_first_frame_is_made_as_an_image_and_then_animated(self, generator, sampling, monkeypatch):
    sampling, made = dataclasses.replace(sampling, first_frame=True), []
    whole = generator._sample_latents
    monkeypatch.setattr(generator, "_sample_latents", lambda *given: made.append(given) or whole(*given))
    image, clip = generator.sample([dataclasses.replace(VIDEO, frames=1), VIDEO], sampling)
    (images, nothing, _), (_, given, _) = made
    assert [request.frames for request in images] == [1] and nothing == [[]] and given[0] == []
    (piece,) = given[1]
    frame = generator.codec.decode(piece.latent_thwC[None], (1, 16, 16))[0]
    np.testing.assert_allclose(frame, image.frames_THWC, atol=1e-4)
    assert (piece.seconds, piece.level) == (0.0, 0.0) and clip.frames_THWC.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(clip.frames_THWC[:1], image.frames_THWC, atol=1e-4)
    assert np.abs(clip.frames_THWC[1:] - image.frames_THWC).max() > 1e-3

  def test_a_loop_is_led_by_an_image_that_stands_beside_it(self, generator, sampling, monkeypatch):
    loop, segments = dataclasses.replace(VIDEO, frames=4, loop=True), []
    make = generator._segment
    monkeypatch.setattr(generator, "_segment", lambda *given: segments.append(make(*given)) or segments[-1])
    led, free = (one(generator, loop, dataclasses.replace(sampling, first_frame=on)) for on in (True, False))
    image, beside, alone = segments
    assert (image.period, beside.period, alone.period) == (0.0, 0.5, 0.5)
    added = len(beside.tokens_NC) - len(alone.tokens_NC)
    assert added == len(image.tokens_NC) == beside.condition_N.sum() and not alone.condition_N.any()
    assert not beside.positions_N3[beside.condition_N, 0].any()  # it shows the first moment
    assert led.shape == free.shape == (4, 16, 16, 3) and not np.array_equal(led, free)

  def test_a_clip_with_conditions_is_made_from_these_alone(self, generator, sampling):
    given = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    for change in ({"conditions": (Condition(given, 1 / 8),)}, {"edit": Edit(given.repeat(5, 0), 0.5)}):
      request = dataclasses.replace(VIDEO, **change)
      clips = [one(generator, request, dataclasses.replace(sampling, first_frame=on)) for on in (False, True)]
      np.testing.assert_array_equal(*clips)

  @pytest.mark.parametrize(
    ("change", "message"), [({"method": "magic"}, "'magic'.*euler"), ({"steps": 0}, "0 sampling steps")]
  )
  def test_a_bad_sampling_setting_is_named(self, generator, sampling, change, message):
    with pytest.raises(ValueError, match=message):
      generator.sample([IMAGE], dataclasses.replace(sampling, **change))

  @pytest.mark.parametrize(
    "change",
    [{name: float("nan")} for name in ("guidance", "condition_guidance")] + [{"interval": (0.0, float("inf"))}],
  )
  def test_guidance_that_is_no_number_is_refused(self, sampling, change):
    with pytest.raises(ValueError, match="guidance"):
      dataclasses.replace(sampling, **change)

  @pytest.mark.parametrize("level", [5.0, -0.1, float("nan")])
  def test_a_level_of_history_is_a_noise_level(self, sampling, level):
    with pytest.raises(ValueError, match="history_level"):
      dataclasses.replace(sampling, history_level=level)

  def test_other_guidance_intervals_and_seeds_compile_nothing(self, generator, sampling):
    first = one(generator, VIDEO, sampling)
    compiled = []
    listen = lambda event, seconds, **_: compiled.append(event) if "compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      jax.jit(lambda x: x + 123)(1)  # the listener hears of what is compiled
      assert compiled
      compiled.clear()
      found = [
        one(
          generator, dataclasses.replace(VIDEO, seed=seed), dataclasses.replace(sampling, guidance=scale, interval=ends)
        )
        for scale, ends, seed in [(1.0, (0.0, 1.0), 3), (4, (0, 1), 4), (2.5, (0.2, 0.7), 5), (0.0, (0.9, 0.1), 6)]
      ]
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert all(np.abs(clip - first).max() > 1e-3 for clip in found)

  def test_a_clip_that_is_given_frames_has_guidance_of_its_own(self, generator, sampling):
    given = dataclasses.replace(VIDEO, conditions=(Condition(np.zeros((1, VIDEO.height, VIDEO.width, 3), np.float32)),))
    change = lambda **how: one(generator, given, dataclasses.replace(sampling, **how))
    found = change(guidance=2.0, condition_guidance=3.0)
    np.testing.assert_array_equal(found, change(guidance=5.0, condition_guidance=3.0))
    assert np.abs(found - change(guidance=2.0, condition_guidance=5.0)).max() > 1e-4

  def test_guidance_of_one_and_an_interval_without_a_step_are_the_same_as_none(self, generator, sampling):
    none, outside = (
      one(generator, VIDEO, dataclasses.replace(sampling, guidance=scale, interval=ends))
      for scale, ends in [(1.0, (0.0, 1.0)), (9.0, (2.0, 3.0))]
    )
    np.testing.assert_array_equal(none, outside)


class TestDigest:
  def test_weights_are_read_once_for_all_that_is_made_of_them(self, generator, monkeypatch):
    loaded, calls, digest = copy.copy(generator), [], checkpoint.tree_digest
    loaded._digest = None
    monkeypatch.setattr(checkpoint, "tree_digest", lambda tree: calls.append(tree) or digest(tree))
    assert loaded.digest() == loaded.digest()
    assert len(calls) == 2  # the transformer's and the autoencoder's

  def test_other_weights_have_another(self, generator):
    other = copy.copy(generator)
    before = other.digest()
    other.params = {**other.params, "patch_out": {"kernel": np.zeros(3), "bias": np.zeros(3)}}
    assert other.digest() != before
    assert generator.digest() == before


MANY = """
import json
import jax
from sora_jax.inference.generator import Generator, Request, Sampling

generator = Generator.load(WORKDIR)
run, rows = generator._run, []
def noted(params, batch, *more):
  rows.append(batch.segments_BL.shape[0])
  found = run(params, batch, *more)
  assert len(found.sharding.device_set) == DEVICES
  return found
generator._run = noted
requests = [Request("a red circle", 24, 16, 5, 8.0, seed) for seed in range(9)]
clips = generator.sample(requests, Sampling.of(generator.config))
print(json.dumps([jax.device_count(), rows, [clip.frames_THWC.tolist() for clip in clips]]))
"""


@pytest.mark.slow
def test_a_batch_fills_all_devices_and_its_clips_are_those_of_one(trained):
  found = {}
  for count in (1, 4):
    script = MANY.replace("WORKDIR", repr(str(trained))).replace("DEVICES", str(count))
    devices, (rows,), clips = on_devices(count, script)
    assert (devices, rows) == (count, GROUP_TOKENS // 48 * count)
    found[count] = np.array(clips)
  np.testing.assert_allclose(found[1], found[4], atol=1e-4)


class TestEdit:
  """SDEdit, on weights that are hardly trained: what it must give whatever the network says."""

  @pytest.fixture(scope="class")
  def clip(self) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (5, 16, 16, 3)).astype(np.float32)

  def edited(self, generator, sampling, clip, strength, mask=None) -> np.ndarray:
    return one(generator, dataclasses.replace(VIDEO, edit=Edit(clip, strength, mask)), sampling)

  def test_at_0_it_returns_the_clip_as_the_autoencoder_has_it(self, generator, sampling, clip):
    wanted = generator.codec.decode(generator.codec.encode(clip[None]), (5, 16, 16))[0]
    np.testing.assert_allclose(self.edited(generator, sampling, clip, 0.0), wanted, atol=1e-5)

  def test_at_1_it_is_a_new_clip(self, generator, sampling, clip):
    sampling = dataclasses.replace(sampling, first_frame=False)
    wanted = one(generator, VIDEO, sampling)
    np.testing.assert_allclose(self.edited(generator, sampling, clip, 1.0), wanted, atol=1e-4)

  def test_everything_masked_is_the_clip_and_nothing_masked_a_new_one(self, generator, sampling, clip):
    nothing, everything = (np.full((5, 16, 16), on) for on in (False, True))
    kept = self.edited(generator, sampling, clip, 0.0)
    np.testing.assert_allclose(self.edited(generator, sampling, clip, 1.0, nothing), kept, atol=1e-4)
    new = self.edited(generator, sampling, clip, 1.0)
    np.testing.assert_array_equal(self.edited(generator, sampling, clip, 1.0, everything), new)


def test_a_token_of_two_latent_frames_takes_a_first_frame_as_an_image_does(generator):
  config = generator.config.copy_and_resolve_references()
  config.model.patch = (2, 1, 1)
  model = DiTConfig.of(config, generator.tokenizer.vocabulary)
  of_two = Generator(generator.codec, model, None, generator.tokenizer, config)
  request = dataclasses.replace(VIDEO, conditions=(Condition(STILL),))
  segment = of_two._segment(request, of_two._pieces(request), 0)
  own = of_two.grid.tokens(5, 16, 16)
  assert len(segment.tokens_NC) == own + of_two.grid.tokens(1, 16, 16)
  latent = of_two.codec.encode(STILL[None])[0]
  np.testing.assert_allclose(segment.tokens_NC[own:], patchify(latent, (2, 1, 1)), atol=1e-6)


class TestRequest:
  @pytest.mark.parametrize(
    "change",
    [
      {"width": 0},
      {"width": 8193},
      {"height": -4},
      {"height": 10**6},
      {"frames": 0},
      {"frames": 7201},
      {"fps": 0.0},
      {"fps": 241.0},
      {"fps": float("nan")},
      {"seed": -1},
      {"seed": 2**31},
    ],
    ids=str,
  )
  def test_what_is_out_of_range_is_named_with_its_value(self, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=name) as caught:
      dataclasses.replace(VIDEO, **change)
    assert str(value) in str(caught.value)

  @pytest.mark.parametrize(
    ("change", "message"),
    [
      ({"conditions": (Condition(np.zeros((1, 16, 24, 3), np.float32)),)}, "a condition is 24x16 and the clip 16x16"),
      ({"conditions": (Condition(STILL, 5 / 8),)}, "from 0.625 to 0.625 seconds.*0 to 0.5.*must lie inside"),
      ({"conditions": (Condition(STILL.repeat(4, 0), 2 / 8),)}, "from 0.25 to 0.625 seconds.*must lie inside"),
      ({"conditions": (Condition(STILL, -0.1),)}, "must lie inside"),
      ({"conditions": (Condition(STILL, float("nan")),)}, "must lie inside"),
      ({"conditions": (Condition(STILL, strength=1.5),)}, "strength of a condition 1.5 is not from 0 to 1"),
      ({"conditions": (Condition(STILL[0]),)}, r"have the shape \(frames, height, width, 3\)"),
      ({"conditions": (Condition(STILL, mask_HW=np.ones((8, 16), bool)),)}, "mask of a condition is 16x8"),
      ({"edit": Edit(STILL, 0.5)}, r"the clip to change has the shape \(1, 16, 16, 3\)"),
      ({"edit": Edit(STILL.repeat(5, 0), -0.5)}, "strength -0.5 is not from 0 to 1"),
      ({"edit": Edit(STILL.repeat(5, 0), float("nan"))}, "strength nan is not from 0 to 1"),
      ({"edit": Edit(STILL.repeat(5, 0), 0.5, np.ones((5, 8, 8), bool))}, r"the mask has the shape \(5, 8, 8\)"),
    ],
    ids=range(12),
  )
  def test_conditions_and_edits_that_don_t_agree_with_the_clip_are_refused(self, change, message):
    with pytest.raises(InputError, match=message):
      dataclasses.replace(VIDEO, **change)


class TestLoad:
  def test_the_step_and_the_config_are_those_of_the_run(self, generator, tiny_config):
    assert generator.step == tiny_config.train.steps
    assert generator.config.model.width == tiny_config.model.width

  def test_an_earlier_step_has_other_weights(self, generator, trained):
    earlier = Generator.load(trained, step=3)
    assert earlier.step == 3
    name = "patch_out"
    assert (np.asarray(earlier.params[name]["kernel"]) != np.asarray(generator.params[name]["kernel"])).any()

  @pytest.mark.parametrize("make", [False, True], ids=["absent", "empty"])
  def test_a_folder_without_checkpoints_is_named(self, tmp_path, make):
    if make:
      (tmp_path / "nowhere").mkdir()
    with pytest.raises(CheckpointError, match="nowhere"):
      Generator.load(tmp_path / "nowhere")
    assert make or not (tmp_path / "nowhere").exists()

  def test_a_step_that_was_never_saved_is_named(self, trained):
    with pytest.raises(CheckpointError, match="5"):
      Generator.load(trained, step=5)

  def test_an_autoencoder_s_folder_is_named_and_told_apart(self, trained):
    with pytest.raises(CheckpointError, match="autoencoder.*not a transformer") as caught:
      Generator.load(trained / "autoencoder")
    assert str(trained / "autoencoder") in str(caught.value)

  def test_a_workdir_without_its_autoencoder_is_refused(self, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("autoencoder", "latents"))
    with pytest.raises(CheckpointError, match="autoencoder"):
      Generator.load(tmp_path / "run")


def test_a_sheet_shows_a_clip_a_row():
  clips = [Clip(np.full((t, 6, 8, 3), v, np.float32), 8.0, "", "") for t, v in ((1, 1.0), (9, -1.0))]
  picture = sheet(clips, columns=3)
  assert picture.dtype == np.uint8
  assert ((picture == 255).all(-1).sum(), (picture == 0).all(-1).sum()) == (48, 3 * 48)
