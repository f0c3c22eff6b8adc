"""What may befall a run of one process while it trains: two runs at once, numbers, memory, data workers, settings.

Real processes, but where a test says otherwise. They begin where the transformer does, after all that comes before it.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading

import grain
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint
from sora_jax.data.latents import LatentStore
from sora_jax.data.stream import Extent, Reading, Stream
from sora_jax.inference.codec import Codec
from sora_jax.jobs.train import train
from sora_jax.train.metrics import read_metrics
from tests import several
from tests.faults.commands import Runs, logged, summary, wait_for

LONG = {"train.steps": 4000, "train.checkpoint_every": 2, "train.log_every": 1}


def prepare(trained: pathlib.Path, folder: pathlib.Path) -> None:
  """What a run has before the transformer's first step, claimed by no config."""
  for name in ("tokenizer.model", "autoencoder", "latents"):
    (shutil.copytree if (trained / name).is_dir() else shutil.copy)(trained / name, folder / name)


@pytest.fixture
def begun(trained, tiny_config, tmp_path) -> Runs:
  (tmp_path / "w").mkdir()
  prepare(trained, tmp_path / "w")
  return Runs(tmp_path, tiny_config.to_dict())


def steps_of(workdir: pathlib.Path) -> list[int]:
  with checkpoint.reader(workdir) as steps:
    return sorted(steps.all_steps())


def assert_whole_and_finite(workdir: pathlib.Path, step: int) -> None:
  """The newest step is this one, whole, and all of its numbers are finite."""
  assert steps_of(workdir)[-1] == step == checkpoint.digest(workdir)["step"]
  for item in ("params", "ema", "optimizer"):
    arrays, _, _ = checkpoint.load_arrays(workdir, item)
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.slow
def test_of_two_runs_in_one_folder_the_later_goes_on_and_the_earlier_ends(begun):
  """F09: neither overwrites what the other saves."""
  with begun.started(begun.words(**LONG)) as (first,):
    wait_for(lambda: logged(begun.folder / "w") >= 5, [first])
    (begun.folder / "err-0").rename(begun.folder / "first")
    with begun.started(begun.words(**LONG)) as (second,):
      first.wait(120)
      said = (begun.folder / "first").read_text().splitlines()[-1]
      assert first.returncode == 1 and "another run has begun to save there" in said and "one run a --workdir" in said
      before = logged(begun.folder / "w")
      wait_for(lambda: logged(begun.folder / "w") >= before + 5, [second])
      second.send_signal(signal.SIGTERM)
      (found,) = several.ended([second], begun.folder, 120)
  assert found.code == 75, found.err
  assert [line["step"] for line in read_metrics(begun.folder / "w" / "logs")][-1] == steps_of(begun.folder / "w")[-1]
  assert_whole_and_finite(begun.folder / "w", steps_of(begun.folder / "w")[-1])


@pytest.mark.slow
def test_a_sample_that_is_not_finite_ends_the_run_before_anything_is_written(begun):
  """F19: the clip is named, and no checkpoint has a number that is none."""
  store = LatentStore(begun.folder / "w" / "latents")
  values = np.load(begun.folder / "w" / "latents" / f"unit-{store.unit_N[7]:05d}.npy", mmap_mode="r+")
  values["bfloat16"][store.start_N[7] + 3] = 0x7FC0  # no number
  values.flush()
  said = begun.failed(**{"train.checkpoint_every": 1, "train.log_every": 1, "train.steps": 60})
  step = int(re.search(r"step (\d+): loss nan", said)[1])
  assert store.id(7) in said and "nothing was written" in said
  if step > 1:
    assert_whole_and_finite(begun.folder / "w", step - 1)
  assert [line["step"] for line in read_metrics(begun.folder / "w" / "logs")] == list(range(1, step))


def test_latents_that_are_not_finite_are_left_out_and_listed(begun, tiny_config, monkeypatch):
  """F19, in this process: the run goes on without the clip."""
  workdir, bad = begun.folder / "w", []
  before = LatentStore(workdir / "latents")
  shutil.rmtree(workdir / "latents")
  whole = Codec.encode

  def encode(codec, frames_BTHWC):
    latents = whole(codec, frames_BTHWC)
    if not bad:
      latents = latents.copy()
      latents[1, ..., 0] = np.inf
      bad.append(1)
    return latents

  monkeypatch.setattr(Codec, "encode", encode)
  tiny_config.train.steps = 2
  assert train(tiny_config, workdir).step == 2
  (line,) = (json.loads(line) for line in (workdir / "latents" / "quarantine.jsonl").read_text().splitlines())
  assert line["reason"] == "latents not finite" and len(LatentStore(workdir / "latents")) == len(before) - 1


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_draws_a_preview_has_lost_no_weight(begun, trained):
  """F20: previews are drawn with the average in an argument, and training's own weights never leave their place."""
  fault = "at('sora_jax.train.loop', '_preview', 1, lambda: (time.sleep(5), os.kill(os.getpid(), 9)))"
  as_here = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
  (found,) = begun.ended(begun.words(fault=fault, **{"train.preview_every": 4}), **as_here)
  assert found.code == -signal.SIGKILL and steps_of(begun.folder / "w") == [3]
  (found,) = begun.ended(begun.words(), **as_here)
  assert found.code == 0, found.err
  assert checkpoint.digest(begun.folder / "w") == checkpoint.digest(trained)


@pytest.mark.slow
def test_attention_that_these_devices_can_t_compute_is_refused_before_any_work(tmp_path, tiny_config):
  """F22: every backend that can be chosen honours segments, see models/attention/attention_test.py."""
  runs = Runs(tmp_path, tiny_config.to_dict())
  assert re.search("model.attention='flash' runs on .*, not on cpu", runs.failed(**{"model.attention": "flash"}))
  assert "config.model.attention='sdpa': it is 'auto', 'dense'" in runs.failed(**{"model.attention": "sdpa"})
  assert not (tmp_path / "w" / "config.json").exists() and not (tmp_path / "w" / "autoencoder").exists()


@pytest.mark.slow
def test_devices_without_memory_end_the_run_with_what_to_turn(begun):
  """F23: injected; what the allocator of XLA says."""
  error = "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 35433480192 bytes.')"
  said = begun.failed(fault=f"import jax; fail_in_step(5, {error})")
  assert "Out of memory while trying to allocate 35433480192 bytes" in said
  for knob in (
    "train.rows",
    "train.row_tokens",
    "train.accumulation",
    "model.remat",
    "mesh.fsdp",
    "mesh.tensor",
    "sora plan",
  ):
    assert knob in said
  assert_whole_and_finite(begun.folder / "w", 3)
  (found,) = begun.finished(1, "w", **{"model.remat": "full"})
  assert summary(found)["resumed_from"] == 3


@pytest.mark.slow
def test_an_error_in_a_data_worker_names_the_clip(begun):
  """F24."""
  path = begun.folder / "w" / "latents" / "unit-00000.npy"
  path.write_bytes(path.read_bytes()[:1000])
  said = begun.failed(**{"data.workers": 1})
  assert re.search(r"latents: the latents of clip shapes-\d+-\d+ can't be read \(.*\): delete that folder", said), said
  shutil.rmtree(begun.folder / "w" / "latents")
  begun.finished(1, "w")


def element(number: int) -> np.ndarray:
  if number == 9:
    raise ZeroDivisionError(f"element {number}")
  return np.arange(4) + number


@pytest.mark.slow
def test_an_error_in_a_worker_comes_with_where_it_was_raised_and_nothing_hangs():
  """F24, in this process."""
  reading = Reading(grain.sharding.ShardOptions(0, 1), workers=1)
  stream = Stream(element, 4, Extent("a", 1, 1), reading)
  assert [next(stream).tolist()[0] for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
  with pytest.raises(ZeroDivisionError, match="element 9") as caught:
    next(stream)
  assert any(entry.name == "element" for entry in caught.traceback)
  stream.close()
  lock = threading.Lock()
  with pytest.raises(Exception, match="(?i)pickle"):
    next(Stream(lambda number: lock and number, 4, Extent("a", 1, 1), reading))


def workers_of(process: subprocess.Popen) -> list[int]:
  """The processes that make batches."""
  paths = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
  found = [int(child) for path in paths for child in path.read_text().split()]
  return [child for child in found if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_and_no_batch_is_left_out(begun):
  """F25: as the kernel does where memory is short."""
  workers = {"data.workers": 2, "train.checkpoint_every": 2, "train.log_every": 1}
  with begun.started(begun.words(**workers | {"train.steps": 4000})) as (process,):
    wait_for(lambda: logged(begun.folder / "w") >= 5, [process])
    os.kill(workers_of(process)[0], signal.SIGKILL)
    (found,) = several.ended([process], begun.folder, 120)
  (said,) = [line for line in found.err.splitlines() if line.startswith("sora: ")]
  assert found.code == 1 and "exit code -9" in said and "lower data.workers" in said, found.err
  assert_whole_and_finite(begun.folder / "w", steps_of(begun.folder / "w")[-1])
  assert [line["step"] for line in read_metrics(begun.folder / "w" / "logs")] == list(
    range(1, logged(begun.folder / "w") + 1)
  )


class TestF29:
  @pytest.mark.slow
  def test_nothing_usable_ends_it_with_how_many_for_each_reason(self, begun):
    (begun.folder / "own").mkdir()
    for name in ("a.mp4", "b.mp4"):
      (begun.folder / "own" / name).write_bytes(b"no video")
    lines = [{"file": name, "caption": "x"} for name in ("a.mp4", "b.mp4", "c.mp4")] + [{"file": "d.mp4"}]
    (begun.folder / "own" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = begun.failed("new", **{"data.source": begun.folder / "own"})
    assert re.search(r"nothing usable: 4 dropped \(2 file missing, 2 unreadable\)", said), said
    assert not (begun.folder / "new" / "config.json").exists()

  @pytest.mark.slow
  def test_a_clip_that_no_row_holds_is_told_with_both_numbers(self, begun):
    said = begun.failed(**{"train.row_tokens": 4})
    assert re.search(
      r"clip \d+ has 18 tokens, a row holds 4; of 24, 18 fit no row \(.*\): raise train.row_tok", said
    ), said

  @pytest.mark.slow
  def test_a_step_of_more_rows_than_there_are_begins_the_next_pass(self, begun, tiny_config):
    """In this process."""
    tiny_config.train.update(rows=32, steps=2)
    found = train(tiny_config, begun.folder / "w")
    assert found.step == 2 and np.isfinite(found.loss)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (
      {"train.rows": 6},
      "config.train.rows=6 can't be shared by mesh.data=1 x mesh.fsdp=4 devices in train.accumulation=1",
    ),
    (
      {"autoencoder.batch": 2, "mesh.data": 2},
      "config.autoencoder.batch=2 can't be shared by mesh.data=2 x mesh.fsdp=2",
    ),
    ({"train.rows": 4, "train.accumulation": 2}, "train.accumulation=2: make it a multiple of 8"),
  ],
  ids=["rows", "crops", "parts"],
)
def test_rows_that_devices_can_t_share_are_refused_before_any_work(tmp_path, tiny_config, monkeypatch, changes, said):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
  tiny_config.train.update(rows=4, ranks=2)
  assert said in Runs(tmp_path, tiny_config.to_dict()).failed(**changes)
  assert not (tmp_path / "w" / "config.json").exists()


@pytest.mark.slow
def test_ranks_with_unequal_work_are_told(tmp_path, tiny_config, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
  tiny_config.train.update(rows=4, ranks=2, steps=1)
  tiny_config.autoencoder.batch = 4
  runs = Runs(tmp_path, tiny_config.to_dict())
  unlevel, level = runs.ended(runs.words("w")), runs.ended(runs.words("level", **{"train.ranks": 4}))
  assert "train.ranks=2 levels the work of so many, and 4 share a step here" in unlevel[0].err
  assert level[0].code == 0 and "train.ranks" not in level[0].err
