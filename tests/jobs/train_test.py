"""A workdir: claimed by one config, taken up again where it was stopped, and made from own files as from worlds."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint, manifest
from sora_jax.data import captions, pipeline, sources, stream
from sora_jax.data.latents import LatentStore
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.jobs.train import check_clips, train
from sora_jax.models.autoencoder import grid
from sora_jax.train.metrics import read_metrics
from sora_jax.video import io as video_io
from tests.runtime.storage_test import bucket  # noqa: F401  a fixture

PREPARED = ("config.json", "tokenizer.model", "autoencoder", "latents")  # what a run has before its first step


def test_the_token_budget_of_a_clip_leaves_an_image_more_pixels_than_a_video(tiny_config):
  fit = grid(tiny_config).fit  # a token is 2 frames of 8 x 8 pixels, and a first frame
  assert fit(1, 320, 480, 24) == (32, 48)
  assert fit(5, 320, 480, 24) == (16, 25)  # 4 columns of tokens, the last one mostly padding


def test_what_would_fail_after_hours_of_encoding_fails_before(tiny_config, tmp_path):
  """A clip that is longer than a row, and a vocabulary without room; neither binds the workdir."""
  tiny_config.train.row_tokens = 8
  for budget in (0, 8):  # which a world's sizes keep to only where they are drawn from a range
    tiny_config.data.max_tokens = budget
    with pytest.raises(InputError, match=r"clip \d+ has \d+ tokens, a row holds 8; .* raise train.row_tokens"):
      train(tiny_config, tmp_path / "run")
  tiny_config.train.row_tokens = 128
  tiny_config.model.vocabulary = 99
  with pytest.raises(InputError, match="config.model.vocabulary=99: it is a whole number from 261"):
    train(tiny_config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_clip_is_as_long_as_what_is_kept_of_it_and_whole_where_it_is_held_out(tiny_config):
  source = sources.open_source(tiny_config.data, 0, grid(tiny_config))
  longest = max(grid(tiny_config).tokens(*source.shape(number)) for number in range(len(source)))
  tiny_config.data.max_tokens = 0
  tiny_config.train.row_tokens = longest - longest // 2
  check_clips(tiny_config, source, 0.5)
  for drop in (0.0, 0.25):
    with pytest.raises(InputError, match="raise train.row_tokens"):
      check_clips(tiny_config, source, drop)
  tiny_config.data.update(source="a folder", held_out="worlds:shapes", max_tokens=1)
  with pytest.raises(InputError, match="raise train.row_tokens"):  # no budget shrinks a world's held-out clips
    check_clips(tiny_config, source, 0.0)


def test_an_unknown_task_is_named_and_nothing_is_written(tiny_config, tmp_path):
  tiny_config.task = "captioner"
  with pytest.raises(ValueError, match="'captioner'"):
    train(tiny_config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def steps_of(folder: pathlib.Path) -> list[int]:
  with checkpoint.reader(folder) as steps:
    return sorted(steps.all_steps())


def prepared(trained: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A copy of the trained workdir from before the transformer's first step."""
  folder.mkdir()
  for name in PREPARED:
    (shutil.copytree if (trained / name).is_dir() else shutil.copy)(trained / name, folder / name)
  return folder


def finished(trained: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A copy of the trained workdir."""
  return pathlib.Path(shutil.copytree(trained, folder))


class TestResume:
  def test_a_workdir_holds_all_that_is_needed(self, trained, tiny_config):
    assert {path.name for path in trained.iterdir()} >= {*PREPARED, "checkpoints", "logs"}
    assert steps_of(trained) == [3, 6] and steps_of(trained / "autoencoder")[-1] == tiny_config.autoencoder.steps
    meta = checkpoint.load_meta(trained)
    assert meta["task"] == "dit" and meta["config"] == json.loads((trained / "config.json").read_text())
    assert len(meta["config_hash"]) == 64

  def test_a_finished_run_takes_no_step(self, trained, tiny_config, tmp_path):
    folder = finished(trained, tmp_path / "w")
    summary = train(tiny_config, folder)
    assert (summary.step, summary.steps_run, summary.resumed_from) == (6, 0, 6)
    assert checkpoint.digest(folder) == checkpoint.digest(trained)
    assert read_metrics(folder / "logs") == read_metrics(trained / "logs")

  def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(self, trained, tiny_config, tmp_path, monkeypatch):
    folder = prepared(trained, tmp_path / "w")
    with stopped_after(5, monkeypatch):
      train(tiny_config, folder)
    assert steps_of(folder) == [3]
    summary = train(tiny_config, folder)
    assert (summary.resumed_from, summary.steps_run) == (3, 3)
    assert checkpoint.digest(folder) == checkpoint.digest(trained)
    lines, wanted = read_metrics(folder / "logs"), read_metrics(trained / "logs")
    assert [line["step"] for line in lines] == [2, 4, 6]
    # Line 4 covers what was taken again, step 4 alone; the others have the same steps behind them.
    for number in (0, 2):
      assert lines[number]["loss"] == wanted[number]["loss"]

  def test_a_finished_run_goes_on_when_it_is_made_longer(self, trained, tiny_config, tmp_path, capsys):
    folder = finished(trained, tmp_path / "w")
    tiny_config.train.steps = 8
    summary = train(tiny_config, folder)
    assert (summary.step, summary.steps_run, summary.resumed_from) == (8, 2, 6)
    said = capsys.readouterr().err
    assert "train.steps is 8 and was 6: the run goes on after step 6, its learning rates fall from step 6 to 8" in said
    assert [line["step"] for line in read_metrics(folder / "logs")] == [2, 4, 6, 8]
    assert checkpoint.load_meta(folder)["config"]["train"]["steps"] == 8
    assert train(tiny_config, folder).steps_run == 0  # and is finished again

  @pytest.mark.slow
  def test_a_longer_run_has_the_schedule_of_its_new_length(self, trained, tiny_config, tmp_path, monkeypatch):
    """Before the decay begins, nothing tells it from a run that was meant to be so long."""
    tiny_config.train.update(steps=8, decay_share=0.3)
    whole, longer = (prepared(trained, tmp_path / name) for name in ("whole", "longer"))
    for folder in (whole, longer):
      (folder / "config.json").unlink()
    train(tiny_config, whole)
    tiny_config.train.steps = 6
    with stopped_after(4, monkeypatch):
      train(tiny_config, longer)  # step 3 is saved, the decay of 6 steps begins after 4
    tiny_config.train.steps = 8
    assert train(tiny_config, longer).resumed_from == 3
    assert checkpoint.digest(longer) == checkpoint.digest(whole)

  def test_a_run_is_not_made_shorter_than_it_is(self, trained, tiny_config, tmp_path):
    folder = finished(trained, tmp_path / "w")
    tiny_config.train.steps = 5
    with pytest.raises(InputError, match=r"holds step 6 of 6: config.train.steps=5 must be more than 6, or 6"):
      train(tiny_config, folder)
    assert checkpoint.digest(folder) == checkpoint.digest(trained)


class TestTrainedAutoencoder:
  @pytest.mark.slow
  def test_a_longer_one_goes_on_and_its_latents_are_made_again(self, trained, tiny_config, tmp_path, capsys):
    folder = prepared(trained, tmp_path / "w")
    tiny_config.autoencoder.steps = 8
    train(tiny_config, folder)
    assert steps_of(folder / "autoencoder")[-1] == 8
    assert [line["step"] for line in read_metrics(folder / "autoencoder" / "logs")] == [2, 4, 6, 8]
    said = capsys.readouterr().err
    assert "autoencoder.steps is 8 and was 6: the run goes on after step 6" in said
    assert checkpoint.digest(folder / "autoencoder")["ema"] != checkpoint.digest(trained / "autoencoder")["ema"]
    latents = [json.loads((each / "latents" / "key.json").read_text()) for each in (folder, trained)]
    assert latents[0] != latents[1]

  def test_one_under_a_transformer_stays_as_it_is(self, trained, tiny_config, tmp_path):
    folder = finished(trained, tmp_path / "w")
    tiny_config.autoencoder.steps = 8
    with pytest.raises(InputError, match="holds a transformer trained on the latents of an autoencoder of .*steps=6"):
      train(tiny_config, folder)

  def test_it_is_taken_as_it_is(self, trained, tiny_config, tmp_path, monkeypatch):
    folder = finished(trained, tmp_path / "w")
    monkeypatch.setattr("sora_jax.jobs.train.train_autoencoder", lambda *_: pytest.fail("it was trained again"))
    assert train(tiny_config, folder).steps_run == 0

  def test_one_with_a_damaged_last_step_is_trained_to_its_end_again(self, trained, tiny_config, tmp_path, capsys):
    folder = finished(trained, tmp_path / "w")
    last = folder / "autoencoder" / "checkpoints" / str(tiny_config.autoencoder.steps)
    largest = max((path for path in (last / "ema").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert train(tiny_config, folder).steps_run == 0
    assert "passed over" in capsys.readouterr().err
    assert checkpoint.digest(folder / "autoencoder") == checkpoint.digest(trained / "autoencoder")

  def test_one_that_was_stopped_in_its_only_save_is_trained_anew(self, trained, tiny_config, tmp_path):
    folder = finished(trained, tmp_path / "w")
    steps = folder / "autoencoder" / "checkpoints"
    shutil.rmtree(steps)
    (steps / f"{tiny_config.autoencoder.steps}.orbax-checkpoint-tmp-1" / "ema").mkdir(parents=True)
    train(tiny_config, folder)
    assert checkpoint.digest(folder / "autoencoder") == checkpoint.digest(trained / "autoencoder")


@contextlib.contextmanager
def stopped_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
  """Training is interrupted after some batches of the transformer."""
  opened = pipeline.packed_batches
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(pipeline, "packed_batches", lambda *args: Stopped(opened(*args), batches))
    yield


class Stopped:
  """A stream that is interrupted after some batches."""

  def __init__(self, stream, batches: int):
    self.stream, self.left = stream, batches
    self.get_state, self.set_state, self.close = stream.get_state, stream.set_state, stream.close

  def __next__(self):
    if not self.left:
      raise KeyboardInterrupt
    self.left -= 1
    return next(self.stream)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> pathlib.Path:
  """A folder of two videos, an image and two files that can't be used."""
  folder = tmp_path_factory.mktemp("own")
  rng = np.random.default_rng(0)
  smooth = rng.uniform(0, 255, (6, 1, 1, 3)) + np.arange(30)[None, :, None, None] * np.ones((6, 30, 26, 3))
  video_io.write(folder / "cat.mp4", smooth.clip(0, 255).astype(np.uint8), 8)
  video_io.write(folder / "dog.png", smooth[:1].clip(0, 255).astype(np.uint8), 1)
  (folder / "broken.mp4").write_bytes((folder / "cat.mp4").read_bytes()[:100])
  shutil.copy(folder / "cat.mp4", folder / "late.mp4")
  names = {
    "late.mp4": "A cat that runs away.",
    "cat.mp4": "A cat jumps.",
    "dog.png": "A dog.",
    "broken.mp4": "Nothing.",
    "absent.mp4": "Gone.",
  }
  lines = [json.dumps({"file": file, "caption": caption}) for file, caption in names.items()]
  (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
  return folder


def own_config(config: ml_collections.ConfigDict, own: pathlib.Path) -> ml_collections.ConfigDict:
  config.data.source = str(own)
  config.train.update(steps=2, checkpoint_every=2, log_every=1)
  config.autoencoder.steps = 2
  return config


class TestOwnData:
  """An autoencoder on own files, and a transformer that takes it."""

  def test_both_train_and_name_what_they_skip_and_one_workdir_is_all_that_sampling_needs(
    self, tiny_config, own, tmp_path, monkeypatch, capfd
  ):
    opened = sources.open_source

    def open_and_lose(*args):
      """Sees every file, and then one goes."""
      source = opened(*args)
      (own / "late.mp4").unlink(missing_ok=True)
      return source

    monkeypatch.setattr(sources, "open_source", open_and_lose)
    autoencoder = tmp_path / "autoencoder"
    config = own_config(tiny_config, own)
    config.data.max_bad = 0.6  # three of five
    config.task = "autoencoder"
    summary = train(config, autoencoder)
    assert summary.steps_run == 2 and np.isfinite(summary.loss)
    assert checkpoint.load_meta(autoencoder)["task"] == "autoencoder"
    said = capfd.readouterr().err
    for name in ("broken.mp4", "absent.mp4", "late.mp4"):
      assert name in said
    assert "cat.mp4" not in said

    config.task = "dit"
    config.autoencoder.checkpoint = str(autoencoder)
    load, loads = Codec.load, []
    with monkeypatch.context() as patched:
      patched.setattr(Codec, "load", staticmethod(lambda *given: loads.append(given[0]) or load(*given)))
      summary = train(config, tmp_path / "w")
      assert summary.steps_run == 2 and 0 < summary.useful_tokens <= 1
      train(config, tmp_path / "w")
    assert loads == [str(autoencoder), tmp_path / "w" / "autoencoder"]  # once a run: the first keeps it in the workdir
    store = LatentStore(tmp_path / "w" / "latents")
    assert sorted(map(store.id, range(len(store)))) == ["cat.mp4", "dog.png"]
    codec = Codec.load(autoencoder, config.autoencoder)
    shutil.rmtree(autoencoder)
    generator = Generator.load(tmp_path / "w")
    clip = generator.sample([Request("A cat.", 20, 12, 3, 8.0, 0)], Sampling.of(config))[0]
    assert clip.frames_THWC.shape == (3, 12, 20, 3)
    jax.tree.map(np.testing.assert_array_equal, generator.codec.params, codec.params)

  @pytest.mark.slow
  def test_a_run_notices_other_data_and_goes_on_with_them_where_it_is_told_to(
    self, tiny_config, tmp_path, monkeypatch, capfd
  ):
    """F27."""
    folder, workdir = tmp_path / "own", tmp_path / "w"
    folder.mkdir()
    config = own_config(tiny_config, folder)
    config.train.update(steps=4, checkpoint_every=2)
    lines = []

    def add(name: str) -> None:
      video_io.write(folder / name, np.random.default_rng(len(lines)).integers(0, 255, (1, 20, 16, 3), np.uint8), 1)
      lines.append(json.dumps({"file": name, "caption": f"This is {name}."}))
      (folder / "captions.jsonl").write_text("\n".join(lines))

    add("a.png")
    add("b.png")
    with stopped_after(3, monkeypatch):
      train(config, workdir)
    coder = checkpoint.digest(workdir / "autoencoder")
    add("c.png")
    with pytest.raises(stream.DataChanged, match=r"2 clips .* then, 3 .* now.*on_mismatch"):
      train(config, workdir)
    config.data.on_mismatch = "restart"
    summary = train(config, workdir)
    assert (summary.resumed_from, summary.steps_run, summary.step) == (2, 2, 4)
    assert checkpoint.digest(workdir / "autoencoder") == coder
    store = LatentStore(workdir / "latents")
    assert sorted(map(store.id, range(len(store)))) == ["a.png", "b.png", "c.png"]
    said = capfd.readouterr().err
    assert "encoding again: other clips" in said and "(restart)" in said

  def test_a_missing_autoencoder_is_named(self, tiny_config, tmp_path):
    tiny_config.autoencoder.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(checkpoint.CheckpointError, match="nowhere"):
      train(tiny_config, tmp_path / "w")

  def test_a_folder_of_which_too_much_is_bad_stops_before_training(self, tiny_config, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    video_io.write(folder / "a.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
    lines = [json.dumps({"file": file, "caption": "x"}) for file in ("a.png", "b.mp4")]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"1 of 2 clips.*max_bad=0.25.*1 file missing"):
      train(own_config(tiny_config, folder), tmp_path / "w")
    assert not (tmp_path / "w").exists()  # nor is it bound to this source

  def test_nothing_usable_is_an_error_with_the_counts(self, tiny_config, tmp_path):
    """F29."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"no video")
    lines = [json.dumps({"file": file, "caption": "x"}) for file in ("a.mp4", "b.mp4", "c.mp4")]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"own.*3 dropped.*2 file missing.*1 unreadable"):
      train(own_config(tiny_config, folder), tmp_path / "w")
    assert not (tmp_path / "w").exists()  # the folder is not bound to a source that never opened


def test_a_run_in_a_bucket_is_the_run_in_a_folder(trained, tiny_config, tmp_path, monkeypatch, bucket):  # noqa: F811
  """All but the arrays of checkpoints, which the stand-in can't hold: those are beside it."""
  beside, address = tmp_path / "beside", "gs://b/runs/w"
  shutil.copytree(trained / "autoencoder" / "checkpoints", beside / "b/runs/w/autoencoder/checkpoints")
  of_the_steps = manifest.root
  monkeypatch.setattr(manifest, "root", lambda folder: of_the_steps(str(folder).replace("gs:/", str(beside))))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  tiny_config.train.preview_every = 6
  summary = train(tiny_config, address)
  assert (summary.step, summary.resumed_from) == (6, None)
  assert checkpoint.digest(address) == checkpoint.digest(trained)
  same = ("unit-00000.npy", "index.json", "index/size.npy", "quarantine.jsonl")
  for name in ("tokenizer.model", *(f"latents/{each}" for each in same)):
    assert bucket.objects[f"b/runs/w/{name}"] == (trained / name).read_bytes()
  logs = {"logs/metrics.jsonl", "logs/preview_0000006.png", "logs/goodput.json"}
  logs = {"logs/metrics.jsonl", "logs/preview_0000006.png", "logs/goodput.json"}
  assert {"config.json", "latents/text-ids.npy", *logs} <= {name.removeprefix("b/runs/w/") for name in bucket.objects}
  assert [line["loss"] for line in read_metrics(f"{address}/logs")] == [
    line["loss"] for line in read_metrics(trained / "logs")
  ]
  again = train(tiny_config, address)
  assert (again.steps_run, again.resumed_from) == (0, 6)
  clips = [
    Generator.load(folder).sample([Request("a red circle", 16, 16, 1, 8.0, 0)], Sampling.of(tiny_config))[0]
    for folder in (address, trained)
  ]
  np.testing.assert_array_equal(clips[0].frames_THWC, clips[1].frames_THWC)
  assert not list((tmp_path / "here").iterdir())


def test_a_prepared_workdir_is_read_and_not_made_again(trained, tiny_config, tmp_path):
  """Two seeds of one sweep: the same latents, tokenizer and autoencoder; weights of their own."""
  before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
  tiny_config.data.update(prepared=str(trained), seed=tiny_config.seed)
  tiny_config.train.steps = 2
  for seed in (0, 1):
    tiny_config.seed = seed
    train(tiny_config, tmp_path / str(seed))
    assert not (tmp_path / str(seed) / "latents").exists()
  assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
  digests = [checkpoint.digest(tmp_path / str(seed)) for seed in (0, 1)]
  assert digests[0]["data"] == digests[1]["data"] and digests[0]["params"] != digests[1]["params"]
  frames = Generator.load(tmp_path / "1").sample([Request("a red disc", 16, 16, 1, 8.0, 0)], Sampling.of(tiny_config))
  assert frames[0].frames_THWC.shape == (1, 16, 16, 3)


def test_a_prepared_workdir_of_other_clips_is_refused_and_stays(trained, tiny_config, tmp_path):
  key = (trained / "latents" / "key.json").read_bytes()
  tiny_config.data.update(prepared=str(trained), seed=7)
  with pytest.raises(InputError, match="was made from other clips: prepare again in a new workdir"):
    train(tiny_config, tmp_path / "w")
  assert (trained / "latents" / "key.json").read_bytes() == key
  tiny_config.data.update(prepared=str(tmp_path), seed=tiny_config.seed)
  tiny_config.autoencoder.checkpoint = str(trained)
  with pytest.raises(InputError, match="holds no whole latents: run sora precompute"):
    train(tiny_config, tmp_path / "v")


def test_a_prepared_workdir_of_other_captions_is_refused(trained, tiny_config, tmp_path):
  shutil.copytree(trained, tmp_path / "kept")
  path = tmp_path / "kept" / "latents" / captions.META
  path.write_text(json.dumps(json.loads(path.read_text()) | {"from": "others"}))
  tiny_config.data.update(prepared=str(tmp_path / "kept"), seed=tiny_config.seed)
  with pytest.raises(InputError, match="has other captions than the source: run sora precompute there again"):
    train(tiny_config, tmp_path / "w")


def test_a_transformer_s_workdir_stands_for_its_autoencoder(trained, tiny_config, tmp_path):
  tiny_config.autoencoder.checkpoint = str(trained)
  tiny_config.train.steps = 1
  train(tiny_config, tmp_path / "w")
  mine, its = (checkpoint.digest(folder / "autoencoder") for folder in (tmp_path / "w", trained))
  assert mine["ema"] == its["ema"] and not (tmp_path / "w" / "autoencoder" / "logs").exists()
