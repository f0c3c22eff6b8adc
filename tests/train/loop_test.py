"""The loop on a toy task: it learns, goes on bit for bit, stops at a bad batch and where it is preempted, and keeps
what it is set to keep."""

import json
import os
import pathlib
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import sharding
from sora_jax.checkpoints import checkpoint
from sora_jax.runtime import goodput, preemption
from sora_jax.runtime.run import Run
from sora_jax.train import metrics
from sora_jax.train.loop import Batches, LoopConfig, NonFiniteLoss, fit
from sora_jax.train.metrics import read_metrics
from sora_jax.train.optimizer import OptimizerConfig

META = {"task": "toy"}
FINISHED = 1000.0  # what finish() adds to the bias


class Line:
  """Linear regression with noise on its inputs; finish() adds FINISHED to the bias.

  `when_traced` and `when_shown` are called while the step is compiled and while a preview is drawn.
  """

  def __init__(self, width: int = 4, when_traced: Callable = bool, when_shown: Callable = bool):
    self.width = width
    self.previews = 0
    self.when_traced, self.when_shown = when_traced, when_shown

  def init(self, key):
    return {"linear_in": {"kernel": 0.1 * jax.random.normal(key, (self.width, 1))}, "bias": jnp.zeros(1)}

  def loss(self, params, batch, key):
    self.when_traced()
    x, y = batch["x"], batch["y"]
    x = x + 0.01 * jax.random.normal(key, x.shape)
    error = x @ params["linear_in"]["kernel"] + params["bias"][None] - y
    return jnp.mean(jnp.square(error)), {"largest": jnp.abs(error).max()}

  def preview(self, params):
    self.previews += 1
    self.when_shown()
    return np.zeros((4, 4, 3), np.uint8)

  def finish(self, params):
    return {**params, "bias": params["bias"] + FINISHED}


class Counter:
  """Batch i holds clips 10 i and 10 i + 1; its state is i. Batch `bad` is not finite; a batch past `last` is a kill.

  `terminated` are the batches at which this process gets SIGTERM; `saves` counts how often the state was asked for.
  """

  def __init__(self, bad: int = -1, last: int = 10**9, width: int = 4, terminated: tuple[int, ...] = ()):
    self.number, self.bad, self.last, self.width = 0, bad, last, width
    self.terminated = terminated
    self.saves: list[int] = []

  def __next__(self):
    self.number += 1
    if self.number > self.last:
      raise KeyboardInterrupt
    if self.number in self.terminated:
      terminate()
    x = np.random.default_rng(self.number).normal(size=(8, self.width)).astype(np.float32)
    y = x.sum(1, keepdims=True) + 1
    if self.number == self.bad:
      x[0, 0] = np.nan
    return {"x": x, "y": y, "number": np.full(8, self.number, np.int32)}

  def get_state(self):
    self.saves.append(self.number)
    return {"number": self.number}

  def set_state(self, state):
    self.number = state["number"]


def terminate() -> None:
  os.kill(os.getpid(), signal.SIGTERM)


def loop_config(steps: int = 12, **changes) -> LoopConfig:
  optimizer = OptimizerConfig(0.05, 0.05, 2, 0.2, steps, 10.0)
  given = {"checkpoint_every": 4, "keep": 9, "log_every": 4, "preview_every": 0}
  return LoopConfig(name="toy", seed=0, optimizer=optimizer, ema_decay=0.9, **(given | changes))


def run(
  folder: pathlib.Path,
  config: LoopConfig,
  iterator: Counter | None = None,
  task: Line | None = None,
  process: Run | None = None,
):
  iterator = iterator or Counter()
  batches = Batches(
    iterator,
    tokens=lambda batch: (6, 8),
    clips=lambda batch: [f"{10 * int(batch['number'][0]) + i}" for i in range(2)],
  )
  return fit(task or Line(), batches, config, folder, sharding.make_mesh(), META, process)


def steps_of(folder: pathlib.Path) -> list[int]:
  with checkpoint.reader(folder) as steps:
    return sorted(steps.all_steps())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run of 12 steps: (folder, state, summary)."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, *run(folder, loop_config())


def test_it_learns_and_says_so(tmp_path):
  state, summary = run(tmp_path, loop_config(150, checkpoint_every=0, log_every=10))
  lines = read_metrics(tmp_path / "logs")
  assert [line["step"] for line in lines] == list(range(10, 151, 10))
  assert lines[-1]["loss"] < 0.05 * lines[0]["loss"]
  assert summary.loss == lines[-1]["loss"]
  assert lines[0].keys() >= {"loss", "gradient_norm", "largest", "tokens_per_second", "padding"}
  assert steps_of(tmp_path) == [150]
  np.testing.assert_allclose(np.asarray(state.params["linear_in"]["kernel"]), 1.0, atol=0.2)


def test_the_summary_counts_steps_and_tokens(whole):
  _, state, summary = whole
  assert (summary.step, summary.steps_run, summary.resumed_from) == (12, 12, None)
  assert summary.useful_tokens == pytest.approx(0.75)
  assert summary.seconds > 0 and summary.tokens_per_second > 0
  assert int(state.step) == 12


@pytest.mark.parametrize("killed_at", [4, 6, 11])
def test_a_run_that_was_killed_goes_on_bit_for_bit(whole, tmp_path, killed_at):
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, loop_config(), Counter(last=killed_at))
  saved = killed_at // 4 * 4
  assert steps_of(tmp_path)[-1] == saved
  iterator = Counter()
  _, summary = run(tmp_path, loop_config(), iterator)
  assert (summary.resumed_from, summary.steps_run, summary.step) == (saved, 12 - saved, 12)
  assert iterator.number == 12
  assert checkpoint.digest(tmp_path) == checkpoint.digest(whole[0])
  wanted, found = ([line["loss"] for line in read_metrics(folder / "logs")] for folder in (whole[0], tmp_path))
  assert found == wanted and len(found) == 3


def test_a_finished_run_takes_no_step_and_is_finished_once(whole):
  folder, state, _ = whole
  before = checkpoint.digest(folder)
  again, summary = run(folder, loop_config(), Counter(last=0))
  assert (summary.steps_run, summary.resumed_from, summary.step) == (0, 12, 12)
  assert checkpoint.digest(folder) == before
  np.testing.assert_array_equal(again.params["bias"], state.params["bias"])


def test_finish_is_applied_at_the_end_alone_to_parameters_and_average(whole):
  folder, state, _ = whole
  for tree in (state.params, state.ema):
    assert FINISHED - 10 < float(tree["bias"][0]) < FINISHED + 10
  for step, finished in ((4, False), (8, False), (12, True)):
    for item in ("params", "ema"):
      params, _ = checkpoint.load_params(folder, like(state.params), step, item)
      assert (float(params["bias"][0]) > FINISHED / 2) == finished


def like(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize("bad", [1, 7, 8])
def test_a_batch_that_is_not_finite_stops_the_run_and_is_named(tmp_path, bad):
  """F19."""
  with pytest.raises(NonFiniteLoss) as caught:
    run(tmp_path, loop_config(checkpoint_every=1), Counter(bad=bad))
  assert f"step {bad}" in str(caught.value) and f"{10 * bad}, {10 * bad + 1}" in str(caught.value)
  assert steps_of(tmp_path) == list(range(1, bad))
  for line in read_metrics(tmp_path / "logs"):
    assert np.isfinite(list(line.values())).all()


def test_a_bad_batch_between_checkpoints_leaves_the_last_one_good(whole, tmp_path):
  """F19."""
  with pytest.raises(NonFiniteLoss, match="step 7"):
    run(tmp_path, loop_config(), Counter(bad=7))
  assert steps_of(tmp_path) == [4]
  run(tmp_path, loop_config())
  assert checkpoint.digest(tmp_path) == checkpoint.digest(whole[0])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
  run(tmp_path, loop_config(10, checkpoint_every=2, keep=2))
  assert steps_of(tmp_path) == [8, 10]


def test_the_last_step_is_saved_and_logged_whatever_the_intervals(tmp_path):
  task = Line()
  run(tmp_path, loop_config(5, checkpoint_every=3, log_every=4, preview_every=2), task=task)
  assert steps_of(tmp_path) == [3, 5]
  assert [line["step"] for line in read_metrics(tmp_path / "logs")] == [4, 5]
  assert [int(path.stem.split("_")[1]) for path in sorted((tmp_path / "logs").glob("preview_*"))] == [2, 4, 5]


def test_an_interval_of_zero_is_never(tmp_path):
  task = Line()
  run(tmp_path, loop_config(3, checkpoint_every=0, log_every=0), task=task)
  assert steps_of(tmp_path) == [3]
  assert [line["step"] for line in read_metrics(tmp_path / "logs")] == [3]
  assert task.previews == 0


def test_meta_is_stored_with_the_checkpoint(whole):
  meta = checkpoint.load_meta(whole[0])
  assert meta.items() >= META.items() and meta["step_seconds"] > 0


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(whole):
  before = checkpoint.digest(whole[0])
  with pytest.raises(checkpoint.CheckpointError, match=r"kernel.*\(4, 1\).*\(5, 1\)"):
    run(whole[0], loop_config(20), Counter(width=5), Line(width=5))
  assert checkpoint.digest(whole[0]) == before


def test_metrics_are_json_lines_of_plain_numbers(whole):
  for line in (whole[0] / "logs" / "metrics.jsonl").read_text().splitlines():
    assert all(isinstance(value, int | float) for value in json.loads(line).values())


# Preemption.


def stop_and_resume(
  asked: preemption.Preemption, folder: pathlib.Path, whole, said: str, saved: list[int], **changes
) -> None:
  """A preempted run says `said` and leaves the steps `saved`; taken up again it ends as one that was not."""
  given = {name: changes.pop(name, None) for name in ("iterator", "task")}
  with pytest.raises(preemption.Preempted, match=f"ended by .*toy: {said}; the same command goes on"):
    run(folder, loop_config(**changes), **given, process=Run(preemption=asked))
  assert (folder / "checkpoints").exists() and steps_of(folder) == saved
  _, summary = run(folder, loop_config(**changes))
  assert (summary.resumed_from, summary.step) == (saved[-1] if saved else None, 12)
  assert summary.steps_run == 12 - (saved[-1] if saved else 0)
  assert checkpoint.digest(folder) == checkpoint.digest(whole[0])


@pytest.mark.parametrize(("at", "saved"), [(2, [2]), (4, [4]), (6, [4, 6]), (11, [4, 8, 11])])
def test_preempted_in_a_step_it_stops_after_that_step(listening, whole, tmp_path, at, saved):
  iterator = Counter(terminated=(at, at))
  stop_and_resume(listening, tmp_path, whole, f"step {at} of 12 is saved", saved, iterator=iterator)
  assert iterator.number == at


def test_preempted_while_it_starts_it_takes_no_step(listening, whole, tmp_path):
  terminate()
  iterator = Counter()
  stop_and_resume(listening, tmp_path, whole, "no step of 12 was taken", [], iterator=iterator)
  assert iterator.number == 0


def test_preempted_while_the_step_compiles_it_takes_none(listening, whole, tmp_path):
  stop_and_resume(listening, tmp_path, whole, "no step of 12 was taken", [], task=Line(when_traced=terminate))


def test_preempted_while_the_step_compiles_again_what_was_saved_stays(listening, whole, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, loop_config(), Counter(last=5))
  before = checkpoint.digest(tmp_path)
  iterator = Counter()
  with pytest.raises(preemption.Preempted, match="step 4 of 12 is saved"):
    run(tmp_path, loop_config(), iterator, Line(when_traced=terminate), Run(preemption=listening))
  assert checkpoint.digest(tmp_path) == before and not iterator.saves
  run(tmp_path, loop_config())
  assert checkpoint.digest(tmp_path) == checkpoint.digest(whole[0])


def test_preempted_in_a_preview_it_stops_after_the_next_step(listening, whole, tmp_path):
  task = Line(when_shown=terminate)
  stop_and_resume(listening, tmp_path, whole, "step 6 of 12 is saved", [4, 6], task=task, preview_every=5)
  assert task.previews == 1


def test_preempted_while_it_saves_it_saves_once_more(listening, whole, tmp_path):
  iterator = Counter()
  iterator.saves = Loud(terminate)
  stop_and_resume(listening, tmp_path, whole, "step 5 of 12 is saved", [4, 5], iterator=iterator)


class Loud(list):
  """Calls a function when something is added."""

  def __init__(self, call: Callable):
    super().__init__()
    self.call = call

  def append(self, value: int) -> None:
    super().append(value)
    self.call()


def test_preempted_in_the_last_step_it_is_done(listening, whole, tmp_path):
  _, summary = run(
    tmp_path, loop_config(preview_every=5), Counter(terminated=(12,)), task := Line(), Run(preemption=listening)
  )
  assert summary.step == 12 and task.previews == 3
  assert checkpoint.digest(tmp_path) == checkpoint.digest(whole[0])


def test_the_time_limit_stops_it_too(listening, whole, tmp_path):
  class Late(Counter):
    def __next__(self):
      if self.number == 5:
        listening.end_after(1.0, time.monotonic() - 61)
      return super().__next__()

  stop_and_resume(listening, tmp_path, whole, "step 6 of 12 is saved", [4, 6], iterator=Late())


def test_a_step_that_is_not_finite_is_an_error_though_it_was_preempted(listening, tmp_path):
  with pytest.raises(NonFiniteLoss, match="step 6"):
    run(tmp_path, loop_config(), Counter(bad=6, terminated=(6,)), process=Run(preemption=listening))
  assert steps_of(tmp_path) == [4]


# What must not stop or change training.


def assert_unharmed(folder: pathlib.Path, whole, said: str, times: int = 1) -> None:
  assert checkpoint.digest(folder) == checkpoint.digest(whole[0])
  assert steps_of(folder) == steps_of(whole[0])
  assert said.count("warning: ") == times


def test_a_folder_of_logs_that_can_t_be_written_changes_nothing(whole, tmp_path, capsys):
  """F18."""
  (tmp_path / "logs").write_text("no folder")
  run(tmp_path, loop_config(preview_every=5))
  assert_unharmed(tmp_path, whole, said := capsys.readouterr().err)
  assert str(tmp_path / "logs") in said and "training goes on" in said


def test_tensorboard_that_raises_changes_nothing_and_leaves_the_other_lines(whole, tmp_path, capsys, monkeypatch):
  """F18."""
  written = []

  def write(self, event):
    written.append(event)
    if len(written) > 5:
      raise OSError("No space left on device")

  monkeypatch.setattr(metrics.EventsWriter, "write_event", write)
  run(tmp_path, loop_config(preview_every=5))
  assert_unharmed(tmp_path, whole, said := capsys.readouterr().err)
  assert "TensorBoard" in said and "No space left" in said
  assert [line["step"] for line in read_metrics(tmp_path / "logs")] == [4, 8, 12]


def test_a_preview_that_fails_costs_the_picture_alone(whole, tmp_path, capsys):
  """F20."""

  def fail():
    raise MemoryError("RESOURCE_EXHAUSTED: out of memory")

  run(tmp_path, loop_config(preview_every=5), task=Line(when_shown=fail))
  assert_unharmed(tmp_path, whole, said := capsys.readouterr().err, times=3)
  assert "no preview of step 10: RESOURCE_EXHAUSTED" in said
  assert not list((tmp_path / "logs").glob("preview_*"))


class Steep(Line):
  """Its gradient is not finite where a batch is all zeros, though its loss is; a large batch's loss is infinite."""

  def loss(self, params, batch, key):
    length = jnp.sqrt(jnp.sum(jnp.square(batch["x"] @ params["linear_in"]["kernel"])))
    return length, {"largest": length}


@pytest.mark.parametrize(("value", "loss"), [(0.0, "loss 0.0"), (3e38, "loss inf")], ids=["gradient", "loss"])
def test_a_gradient_or_loss_that_is_not_finite_stops_it_and_nothing_is_written(tmp_path, value, loss):
  """F19."""

  class Bad(Counter):
    def __next__(self):
      batch = super().__next__()
      return {**batch, "x": np.full_like(batch["x"], value)} if self.number == 6 else batch

  with pytest.raises(NonFiniteLoss, match=f"step 6: {loss}.*nothing was written.*60, 61"):
    run(tmp_path, loop_config(), Bad(), Steep())
  assert steps_of(tmp_path) == [4]
  params, _ = checkpoint.load_params(tmp_path, like(Steep().init(jax.random.key(0))))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


# Where the time went.


def test_steps_that_a_kill_threw_away_are_counted_when_it_goes_on(tmp_path):
  class Slow(Counter):
    clock = None

    def get_state(self):
      self.slow = True  # once something is saved
      return super().get_state()

    def __next__(self):
      if getattr(self, "slow", False):
        self.clock.spend("step")  # the toy's own steps take no time
        time.sleep(0.1)
      return super().__next__()

  for last in (7, 6):
    with goodput.accounted(tmp_path / "logs") as clock, pytest.raises(KeyboardInterrupt):
      slow = Slow(last=last)
      slow.clock = clock
      run(tmp_path, loop_config(log_every=1), slow, process=Run(clock=clock))
  with goodput.accounted(tmp_path / "logs") as clock:
    run(tmp_path, loop_config(log_every=1), process=Run(clock=clock))
  found = goodput.read(tmp_path / "logs")
  assert (found["starts"], found["lost_steps"]) == (3, 3 + 2)
  assert 0.25 < found["seconds"]["lost"] < 1.0  # three slow steps of 0.1 s, whatever the machine adds
  assert found["models"]["toy"]["step"] == 12
  assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"], rel=0.01)
  assert found["seconds"]["compile"] > 0 and found["seconds"]["checkpoint"] > 0


def test_one_program_is_compiled_for_all_steps_and_other_shapes_are_refused(tmp_path):
  compiled = []
  listen = lambda event, seconds, **about: compiled.append(about) if event == goodput.COMPILED else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    run(tmp_path / "a", loop_config(100, checkpoint_every=0))
    assert [about["fun_name"] for about in compiled if "step" in about["fun_name"]] == ["jit(step)"], compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)

  class Wider(Counter):
    def __next__(self):
      batch = super().__next__()
      return {name: np.concatenate([value] * 2) for name, value in batch.items()} if self.number == 6 else batch

  with pytest.raises(TypeError, match="compiled"):
    run(tmp_path / "b", loop_config(), Wider())
