"""The training loop of every model. It knows a task, an iterator of batches and a folder; nothing else.

Side effects keep one order: read the last step's metrics (stop if they are not finite), log, save, preview, stop if
this run is preempted, take the next batch, step.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.checkpoints import checkpoint
from sora_jax.errors import SoraError
from sora_jax.runtime.preemption import Preempted, message
from sora_jax.runtime.run import Run
from sora_jax.train.metrics import MetricsLog, progress
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.state import Task, TrainState, abstract_state, jit_step, make_state, make_step


class NonFiniteLoss(SoraError, RuntimeError):
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
  eval_every: int = 0
  keep_every: int = 0  # every so many steps a checkpoint stays for good
  accumulation: int = 1  # a step computes its batch in so many pieces, one after another

  @classmethod
  def of(cls, config: Any, name: str, multipliers: tuple[tuple[str, float], ...] = ()) -> "LoopConfig":
    """Of a run's config; `multipliers` are those of learning rates, by parameter."""
    train = config.train
    return cls(
      name=name,
      seed=config.seed,
      optimizer=OptimizerConfig.of(config, multipliers),
      ema_decay=train.ema_decay,
      checkpoint_every=train.checkpoint_every,
      keep=train.keep,
      log_every=train.log_every,
      preview_every=train.preview_every,
      eval_every=train.eval_every,
      keep_every=train.keep_every,
      accumulation=train.accumulation,
    )


@dataclasses.dataclass(frozen=True)
class Summary:
  step: int
  steps_run: int
  resumed_from: int | None
  loss: float | None  # mean over the last logged interval; None where no step was left to run
  seconds: float
  tokens_per_second: float
  useful_tokens: float  # share of tokens that are not padding
  goodput: dict[str, Any] = dataclasses.field(default_factory=dict)  # where the time of all starts went, by `Clock`


@dataclasses.dataclass(frozen=True)
class Batches:
  """An iterator of numpy batches with `get_state` and `set_state`, and how to count and name what is in a batch."""

  iterator: Any
  tokens: Callable[[Any], tuple[int, int]]  # (useful, all) of all hosts
  clips: Callable[[Any], list[str]]  # which clips, for the error that names them


def fit(
  task: Task,
  batches: Batches,
  config: LoopConfig,
  folder: epath.Path,
  mesh: Mesh,
  meta: dict,
  run: Run | None = None,
  start: Callable[[TrainState], TrainState] | None = None,
) -> tuple[TrainState, Summary]:
  """Trains until `config.optimizer.steps`, from the newest checkpoint in `folder` if there is one.

  Args:
    meta: stored with every checkpoint (config, its hash, versions).
    run: what this process is one of; by default it is alone, and nothing preempts it.
    start: makes the state to begin with from a fresh one, where there is no checkpoint.

  Raises:
    NonFiniteLoss: names the step and the clips of the batch; the last checkpoint stays as it is.
    Preempted: the run was asked to stop; its last step is saved.
    CheckpointError: the checkpoint in `folder` does not fit the task.
  """
  run = run or Run()
  hosts, clock, stopping = run.hosts, run.clock, run.stopping()

  def turn_to(phase: str, step: int = 0, seconds: float | None = None) -> None:
    """What this host does from now on: where its time goes, and what the other hosts say of it when it is late."""
    clock.spend(phase)
    hosts.at(f"{config.name}: {phase}", step, seconds)

  turn_to("init")
  optimizer = make_optimizer(config.optimizer)
  total = config.optimizer.steps
  keeping = max(config.checkpoint_every, 1), config.keep, config.keep_every
  with jax.set_mesh(mesh), checkpoint.manager(folder, *keeping, hosts=hosts) as steps:
    newest = steps.latest_step()
    hosts.same("finding the step to resume from", {"the newest step": newest})
    if newest is None:
      state, before = make_state(task, optimizer, config.seed, mesh), {"step_seconds": 0.0}
      state = start(state) if start else state
    else:
      like = abstract_state(task, optimizer, config.seed, mesh)
      state, position, before = checkpoint.restore_newest(steps, like, meta.get("config"))
      batches.iterator.set_state(position)
    if hosts.is_first and (unsplit := sharding.unsplit(state.params, mesh)):
      print(f"warning: {unsplit}", file=sys.stderr)
    first = step = int(state.step)
    clock.take_up(config.name, step, before.get("step_seconds"))
    meter, pending, train_step = _Meter(batches), None, None
    preempted = stopping.reason(step)
    bar = progress(config.name, total, first, hosts.is_first)
    with contextlib.closing(MetricsLog(folder / "logs", first, hosts.is_first)) as log, bar:
      while step < total and not preempted:
        turn_to("data", step + 1)
        batch = next(batches.iterator)
        on_devices = sharding.to_devices(batch, mesh)
        if train_step is None:
          turn_to("compile")
          train_step = _compile(
            make_step(task, optimizer, config.ema_decay, config.accumulation), state, on_devices, mesh
          )
          if preempted := stopping.reason(step):
            break
        turn_to("step", step + 1)
        state, metrics = train_step(state, on_devices)
        step += 1
        if pending is not None:  # one step late, so that the device never waits for the host
          meter.add(*pending)
          clock.reached(step - 1)
        pending = (step, batch, metrics)
        preempted = stopping.reason(step)
        save_now = step == total or preempted or (config.checkpoint_every and step % config.checkpoint_every == 0)
        eval_now = config.eval_every and not preempted and (step == total or step % config.eval_every == 0)
        log_now = step == total or preempted or eval_now or (config.log_every and step % config.log_every == 0)
        preview_now = config.preview_every and (step == total or step % config.preview_every == 0)
        if save_now or log_now or preview_now:
          meter.add(*pending)
          clock.reached(step)
          pending = None
        clock.spend("other")
        if log_now:
          values = meter.report(bar)
          if eval_now:
            turn_to("eval", step)
            values |= _held_out(task, state)
          log.scalars(step, values)
        if save_now:
          log.flush()
          turn_to("checkpoint", step, steps.patience)  # the save before this one may still write
          if step == total:
            state = state._replace(params=task.finish(state.params), ema=task.finish(state.ema))
          saved = {**meta, "step_seconds": clock.step_seconds()}
          checkpoint.save(steps, state, batches.iterator.get_state(), saved, force=True)
        if preview_now and (step == total or not preempted):
          turn_to("eval", step)
          _preview(task, state.ema, log, step)
        bar.update()
    clock.spend("checkpoint")
    hosts.at(f"{config.name}: last save", seconds=steps.patience)
    steps.wait_until_finished()
    clock.spend("other")
  if step < total:
    what = f"step {step} of {total} is saved" if step else f"no step of {total} was taken"
    raise Preempted(message(preempted, f"{config.name}: {what}"))
  return state, meter.summary(total, first, None if newest is None else first)


def _compile(step: Callable, state: TrainState, batch: Any, mesh: Mesh) -> Callable:
  """The compiled step: batches of another shape are an error, not another wait for the compiler."""
  return jit_step(step, state, mesh).lower(state, batch).compile()


def _held_out(task: Task, state: TrainState) -> dict[str, float]:
  """Losses on held-out clips of the averaged weights, and those of the weights as they are (`_raw`)."""
  return task.evaluate(state.ema) | {f"{name}_raw": value for name, value in task.evaluate(state.params).items()}


def _preview(task: Task, ema: Any, log: MetricsLog, step: int) -> None:
  """Draws a preview into the log. Training never needs it, so an error in it costs the picture alone."""
  try:
    picture = task.preview(ema)
  except Exception as error:  # a model's, a codec's or a full device's
    print(f"warning: no preview of step {step}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
    return
  if picture is not None:
    log.picture(step, picture)


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
    """Means since the last report, and the share of padding since the start; also shown on the bar."""
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
