"""The training loop of every model. It knows a task, an iterator of batches and a folder; nothing else.

Side effects keep one order: read the last step's metrics (stop if they are not finite), save, take the next batch,
step.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sora_jax import checkpoint, sharding
from sora_jax.train.metrics import MetricsLog, progress
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.state import Task, TrainState, make_state, make_step, state_shardings


class NonFiniteLoss(RuntimeError):
  """The loss or its gradient is not finite; nothing of that step was kept."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long and how often; intervals in steps, 0 = never."""

  name: str  # on the progress bar
  seed: int
  optimizer: OptimizerConfig
  ema_decay: float
  checkpoint_every: int
  keep: int
  log_every: int
  preview_every: int


@dataclasses.dataclass(frozen=True)
class Summary:
  step: int
  steps_run: int
  resumed_from: int | None
  loss: float | None  # mean over the last logged interval; None where no step was left to run
  seconds: float
  tokens_per_second: float
  useful_tokens: float  # share of tokens that are not padding


@dataclasses.dataclass(frozen=True)
class Batches:
  """An iterator of numpy batches with `get_state` and `set_state`, and how to count and name what is in a batch."""

  iterator: Any
  tokens: Callable[[Any], tuple[int, int]]  # (useful, all)
  clips: Callable[[Any], list[str]]  # which clips, for the error that names them


def fit(
  task: Task, batches: Batches, config: LoopConfig, folder: pathlib.Path, mesh: Mesh, meta: dict
) -> tuple[TrainState, Summary]:
  """Trains until `config.optimizer.steps`, from the newest checkpoint in `folder` if there is one.

  Args:
    meta: stored with every checkpoint (config, its hash, versions).

  Raises:
    NonFiniteLoss: names the step and the clips of the batch; the last checkpoint stays as it is.
    CheckpointError: the checkpoint in `folder` does not fit the task.
  """
  optimizer = make_optimizer(config.optimizer)
  total = config.optimizer.steps
  with jax.set_mesh(mesh), checkpoint.manager(folder, max(config.checkpoint_every, 1), config.keep) as steps:
    state = make_state(task, optimizer, config.seed, mesh)
    state, resumed_from = _resume(steps, state, batches, mesh)
    first = int(state.step)
    log = MetricsLog(folder / "logs", first)
    train_step = jax.jit(
      make_step(task, optimizer, config.ema_decay),
      donate_argnums=0,
      out_shardings=(state_shardings(state, mesh), sharding.replicated(mesh)),
    )
    bar, meter, pending = progress(config.name, total, first), _Meter(batches), None
    for step in range(first + 1, total + 1):
      batch = next(batches.iterator)
      state, metrics = train_step(state, sharding.to_devices(batch, mesh))
      if pending is not None:  # one step late, so that the device never waits for the host
        meter.add(*pending)
      pending = (step, batch, metrics)
      save_now = step == total or (config.checkpoint_every and step % config.checkpoint_every == 0)
      log_now = step == total or (config.log_every and step % config.log_every == 0)
      preview_now = config.preview_every and (step == total or step % config.preview_every == 0)
      if save_now or log_now or preview_now:
        meter.add(*pending)
        pending = None
      if log_now:
        log.scalars(step, meter.report(bar))
      if save_now:
        if step == total:
          state = state._replace(params=task.finish(state.params), ema=task.finish(state.ema))
        checkpoint.save(steps, state, batches.iterator.get_state(), meta, force=True)
      if preview_now and (picture := task.preview(state.ema)) is not None:
        log.picture(step, picture)
      bar.update()
    bar.close()
    log.close()
    steps.wait_until_finished()
  return state, meter.summary(total, first, resumed_from)


def _resume(steps: Any, state: TrainState, batches: Batches, mesh: Mesh) -> tuple[TrainState, int | None]:
  """The newest checkpoint's state and data position, or the fresh state."""
  newest = steps.latest_step()
  if newest is None:
    return state, None
  shardings = state_shardings(state, mesh)
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
  state, data, _ = checkpoint.restore(steps, like, newest)
  batches.iterator.set_state(data)
  return state, newest


class _Meter:
  """Gathers metrics between logged steps, and checks that each is finite."""

  def __init__(self, batches: Batches):
    self.batches = batches
    self.started = self.since = time.monotonic()
    self.values: list[dict[str, float]] = []
    self.useful = self.all = self.useful_since = 0
    self.steps_run = 0
    self.last: dict[str, float] = {}
    self.first_step_done: float | None = None
    self.useful_timed = 0

  def add(self, step: int, batch: Any, metrics: dict[str, jax.Array]) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not values.pop("finite"):
      clips = ", ".join(self.batches.clips(batch)[:16])
      raise NonFiniteLoss(
        f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; nothing was written. "
        f"Clips of the batch: {clips}. Lower the learning rate, or look at these clips"
      )
    useful, every = self.batches.tokens(batch)
    self.values.append(values)
    self.useful, self.all, self.useful_since = (
      self.useful + useful,
      self.all + every,
      self.useful_since + useful,
    )
    self.steps_run += 1
    if self.first_step_done is None:  # the first step compiles; speed counts from its end
      self.first_step_done = time.monotonic()
    else:
      self.useful_timed += useful

  def report(self, bar: Any) -> dict[str, float]:
    """Means since the last report; also shown on the bar."""
    now = time.monotonic()
    means = {name: float(np.mean([v[name] for v in self.values])) for name in self.values[0]}
    means["tokens_per_second"] = self.useful_since / max(now - self.since, 1e-9)
    means["padding"] = 1.0 - self.useful / max(self.all, 1)
    bar.set_postfix(
      loss=f"{means['loss']:.4f}",
      tokens=f"{means['tokens_per_second']:.0f}/s",
      padding=f"{means['padding']:.1%}",
      refresh=False,
    )
    self.values, self.since, self.useful_since, self.last = [], now, 0, means
    return means

  def summary(self, total: int, first: int, resumed_from: int | None) -> Summary:
    now = time.monotonic()
    timed = now - (self.first_step_done or now)
    return Summary(
      step=max(total, first),
      steps_run=self.steps_run,
      resumed_from=resumed_from,
      loss=self.last.get("loss"),
      seconds=now - self.started,
      tokens_per_second=self.useful_timed / timed if timed > 0 else 0.0,
      useful_tokens=self.useful / self.all if self.all else 0.0,
    )
