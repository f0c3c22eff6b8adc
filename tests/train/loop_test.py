"""The loop on a toy task: it learns, goes on bit for bit, stops at a bad batch, and keeps what it was told to keep."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import checkpoint, sharding
from sora_jax.train.loop import Batches, LoopConfig, NonFiniteLoss, fit
from sora_jax.train.metrics import read_metrics
from sora_jax.train.optimizer import OptimizerConfig

META = {"task": "toy"}
FINISHED = 1000.0  # what finish() adds to the bias


class Line:
  """Linear regression with noise on its inputs; finish() adds FINISHED to the bias."""

  def __init__(self, width: int = 4):
    self.width = width
    self.previews = 0

  def init(self, key):
    return {"linear_in": {"kernel": 0.1 * jax.random.normal(key, (self.width, 1))}, "bias": jnp.zeros(1)}

  def loss(self, params, batch, key):
    x, y = batch["x"], batch["y"]
    x = x + 0.01 * jax.random.normal(key, x.shape)
    error = x @ params["linear_in"]["kernel"] + params["bias"][None] - y
    return jnp.mean(jnp.square(error)), {"largest": jnp.abs(error).max()}

  def preview(self, params):
    self.previews += 1
    return np.zeros((4, 4, 3), np.uint8)

  def finish(self, params):
    return {**params, "bias": params["bias"] + FINISHED}


class Counter:
  """Batch i holds clips 10 i and 10 i + 1; its state is i. Batch `bad` is not finite; a batch past `last` is a kill."""

  def __init__(self, bad: int = -1, last: int = 10**9, width: int = 4):
    self.number, self.bad, self.last, self.width = 0, bad, last, width

  def __next__(self):
    self.number += 1
    if self.number > self.last:
      raise KeyboardInterrupt
    x = np.random.default_rng(self.number).normal(size=(8, self.width)).astype(np.float32)
    y = x.sum(1, keepdims=True) + 1
    if self.number == self.bad:
      x[0, 0] = np.nan
    return {"x": x, "y": y, "number": np.full(8, self.number, np.int32)}

  def get_state(self):
    return {"number": self.number}

  def set_state(self, state):
    self.number = state["number"]


def loop_config(steps: int = 12, **changes) -> LoopConfig:
  optimizer = OptimizerConfig(0.05, 0.05, 2, 0.2, steps, 10.0)
  given = {"checkpoint_every": 4, "keep": 9, "log_every": 4, "preview_every": 0}
  return LoopConfig(name="toy", seed=0, optimizer=optimizer, ema_decay=0.9, **(given | changes))


def run(folder: pathlib.Path, config: LoopConfig, iterator: Counter | None = None, task: Line | None = None):
  iterator = iterator or Counter()
  batches = Batches(
    iterator,
    tokens=lambda batch: (6, 8),
    clips=lambda batch: [f"{10 * int(batch['number'][0]) + i}" for i in range(2)],
  )
  return fit(task or Line(), batches, config, folder, sharding.make_mesh(), META)


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
  with pytest.raises(NonFiniteLoss) as caught:
    run(tmp_path, loop_config(checkpoint_every=1), Counter(bad=bad))
  assert f"step {bad}" in str(caught.value) and f"{10 * bad}, {10 * bad + 1}" in str(caught.value)
  assert steps_of(tmp_path) == list(range(1, bad))
  for line in read_metrics(tmp_path / "logs"):
    assert np.isfinite(list(line.values())).all()


def test_a_bad_batch_between_checkpoints_leaves_the_last_one_good(whole, tmp_path):
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
  assert checkpoint.load_meta(whole[0]) == META


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(whole):
  before = checkpoint.digest(whole[0])
  with pytest.raises(checkpoint.CheckpointError, match=r"kernel.*\(4, 1\).*\(5, 1\)"):
    run(whole[0], loop_config(20), Counter(width=5), Line(width=5))
  assert checkpoint.digest(whole[0]) == before


def test_metrics_are_json_lines_of_plain_numbers(whole):
  for line in (whole[0] / "logs" / "metrics.jsonl").read_text().splitlines():
    assert all(isinstance(value, int | float) for value in json.loads(line).values())
