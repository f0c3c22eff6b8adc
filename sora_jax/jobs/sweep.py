"""`sora sweep run` and `status`: a sweep's file to runs in folders of their own, by the launchers.

    WORKDIR/sweep.json      its runs: settings, budget, steps
    WORKDIR/prepared-.../   autoencoder, tokenizer and latents, which all runs of the same data read
    WORKDIR/NAME/           a run, as `sora train` makes it
    WORKDIR/sealed.json     predictions of the large runs, without which these don't start (`sora sweep fit`)

Each run's schedule is matched to its own budget: its learning rates end at zero with its last step. All runs see the
same clips in the same order, and are measured on the same held-out clips with the same noise.
"""

import copy
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
from etils import epath

import sora_jax
from sora_jax import settings
from sora_jax.checkpoints import manifest
from sora_jax.data import sources
from sora_jax.errors import InputError, SoraError
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.plan import flops as counting
from sora_jax.plan.plan import rows_of
from sora_jax.runtime import child, goodput, storage
from sora_jax.scaling import grid, seal
from sora_jax.train.loop import NonFiniteLoss
from sora_jax.train.metrics import read_metrics

FILE, PREPARED = "sweep.json", "prepared"
FIELDS = ("config", "settings", "grid", "sealed")  # of a sweep's file
WARMUP, MEMORY = 0.05, 0.02  # shares of a run's steps: most of its warm-up, and what its averaged weights remember
# Settings that change what is prepared.
SHARED = ("data.", "autoencoder.", "model.patch", "model.vocabulary", "train.row_", "diffusion.condition_share")
LEAST_STEPS = 20
STATES = WAITING, BEGUN, DONE, DIVERGED = "waiting", "begun", "done", "diverged"
ENDED = DONE, DIVERGED
SLOW = 1.5  # times the seconds a step that the same run with other seeds takes


class SweepFailed(SoraError, RuntimeError):
  """Some runs did not end; the message names them, and what to do."""


class Planned(NamedTuple):
  """A run before it begins.

  Attributes:
    settings: all that the config's own values are changed by.
    flops, tokens: of the whole run; floating-point operations of the model, forwards and backwards.
    params: of the model without its text encoder.
  """

  settings: dict[str, Any]
  sealed: bool
  flops: float
  steps: int
  params: int
  tokens: float


def planned(sweep: Any, base: Any) -> dict[str, Planned]:
  """The runs of a sweep's file by name, those of its grid first.

  Args:
    sweep: `config`, `settings`, `grid` and `sealed`; see configs/sweep_isoflop.py.
    base: the config that its runs change.

  Raises:
    InputError: a key of the grid is no setting, a value is none for it, or a budget is too small for a run.
  """
  if set(sweep) != set(FIELDS):
    raise InputError(f"a sweep's file gives {', '.join(FIELDS)}: this one gives {', '.join(sorted(sweep))}")
  found: dict[str, Planned] = {}
  for is_sealed, values in ((False, sweep.grid), (True, sweep.sealed)):
    for name, chosen in grid.combinations(values).items() if len(values) else ():
      name = f"sealed_{name}" if is_sealed else name
      found[name] = _planned(name, base, dict(sweep.settings) | chosen, is_sealed)
  if not found:
    raise InputError("a sweep's grid has no runs")
  return found


def _planned(name: str, base: Any, chosen: dict[str, Any], is_sealed: bool) -> Planned:
  budget = chosen.pop(grid.FLOPS, None)
  config = changed(base, chosen)
  settings.check(config)
  model = DiTConfig.of(config, config.model.vocabulary)
  like, rows = abstract(DiT, model)[1], rows_of(config)
  step = flops_of_step(config)
  if budget is not None:
    steps = round(budget / step)
    if steps < LEAST_STEPS:
      raise InputError(f"the run {name}: {budget:g} FLOPs are {steps} steps of {step:.3g}: give {LEAST_STEPS} or more")
    chosen |= matched(config, steps)
  steps = changed(base, chosen).train.steps
  text = counting.size(like["text_encoder"])
  return Planned(chosen, is_sealed, steps * step, steps, counting.size(like) - text, float(steps * rows.tokens))


def flops_of_step(config: Any) -> float:
  """Of the model, forwards and backwards, in one step of a config."""
  model = DiTConfig.of(config, config.model.vocabulary)
  return counting.count(abstract(DiT, model)[1], model, rows_of(config), "none").model


def matched(config: Any, steps: int) -> dict[str, Any]:
  """The schedule of a run of so many steps; it is measured at its end."""
  return {
    "train.steps": steps,
    "train.warmup": min(config.train.warmup, max(round(WARMUP * steps), 1)),
    "train.ema_decay": round(max(1 - 1 / (MEMORY * steps), 0.0), 6) if MEMORY * steps > 1 else 0.0,
    "train.eval_every": steps,
    "train.log_every": max(steps // 10, 1),
  }


def changed(base: Any, chosen: dict[str, Any]) -> Any:
  """The config with these settings.

  Raises:
    InputError: a key is no setting.
  """
  config = copy.deepcopy(base)
  for key, value in chosen.items():
    section, _, name = key.rpartition(".")
    node = config[section] if section in config else config
    if key not in settings.RULES:
      raise InputError(f"a sweep's {key!r} is no setting: did you mean {settings.nearest(key)!r}?")
    with node.ignore_type():
      node[name] = tuple(value) if isinstance(value, list) else value
  return config


def texts(chosen: dict[str, Any]) -> list[str]:
  """Settings as KEY=VALUE of a command line."""
  return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in chosen.items()]


def begin(workdir: epath.Path, sweep: Any, base: Any, runs: dict[str, Planned]) -> None:
  """Writes the sweep's runs, or sees that those there are the same; a sweep may get more of them, and lose some.

  Raises:
    InputError: a run there has other settings, or what all of them change was another config.
  """
  path, digest = workdir / FILE, digest_of(base)
  mine = json.loads(json.dumps({name: each._asdict() for name, each in runs.items()}))
  if path.exists():
    there = read(workdir, sweep)
    if there["base"] != digest:
      raise InputError(f"{sweep.config} has changed since the sweep in {workdir} began: use another --workdir")
    alike = mine.keys() & there["runs"].keys()
    other = sorted(name for name in alike if mine[name]["settings"] != there["runs"][name]["settings"])
    if other or not alike:
      why = f"its run {other[0]} has other settings" if other else "none of its runs are these"
      raise InputError(f"{workdir} holds another sweep ({why}): use another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  storage.write_text(path, json.dumps({"config": sweep.config, "base": digest, "runs": mine}, indent=1) + "\n")


def digest_of(config: Any) -> str:
  """The same for equal values."""
  return hashlib.sha256(json.dumps(json.loads(config.to_json()), sort_keys=True).encode()).hexdigest()


def read(workdir: str | os.PathLike, sweep: Any = None) -> dict[str, Any]:
  """What `begin` wrote: {config, base, runs}; `base` is the digest of the config that the runs change.

  Args:
    sweep: a sweep's file, where it is to be of the same config.

  Raises:
    InputError: there is no sweep, or one of another config.
  """
  path = epath.Path(workdir) / FILE
  if not path.exists():
    raise InputError(
      f"{workdir} holds no sweep: run sora sweep run --config configs/sweep_... --workdir {workdir} first"
    )
  try:
    found = json.loads(path.read_text())
    config, _, _ = found["config"], found["base"], [Planned(**each) for each in found["runs"].values()]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{path} is no sweep's file: {error!r}") from error
  if sweep is not None and pathlib.Path(sweep.config).name != pathlib.Path(config).name:
    raise InputError(f"{workdir} holds a sweep of {config}, not of {sweep.config}: use another --workdir")
  return found


class Where(NamedTuple):
  """Where runs train: a place that launch/sweep.py knows, how many at a time on this machine, flags of the launcher."""

  on: str = "local"
  at_once: int = 1
  flags: tuple[str, ...] = ()


def run(sweep: Any, base: Any, workdir: str, where: Where, stage: str = "grid") -> dict[str, Any]:
  """Trains the runs of a stage that have not ended, "grid" or "sealed"; the same call takes all of them up again.

  Args:
    sweep: the sweep's file; `sweep.config` is that of `base`, as the launchers are to read it.

  Returns:
    What `status` does.

  Raises:
    InputError: the sweep is not that of the workdir, or the predictions of sealed runs are missing.
    SweepFailed: some runs did not end.
  """
  here, runs = epath.Path(workdir), planned(sweep, base)
  begin(here, sweep, base, runs)
  if stage == "sealed":
    must_be_sealed(here, runs)
  mine = {name: each for name, each in runs.items() if each.sealed == (stage == "sealed")}
  states = {name: state_of(here / name, each.steps) for name, each in runs.items()}
  left = {name: each for name, each in mine.items() if states[name]["state"] not in ENDED}
  tell(
    len(mine),
    len(left),
    flops_left(left, states),
    seconds_left(left, runs, states),
    where.at_once if where.on == "local" else 1,
  )
  if left:
    words = {
      name: texts(each.settings | prepare(base, each.settings, sweep.config, here)) for name, each in left.items()
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as listed:  # here, wherever the workdir is
      json.dump(words, listed)
      listed.flush()
      code = child.call(launch_words(sweep.config, listed.name, workdir, where))
    here_now = where.on in ("local", "tpu_pod")  # elsewhere runs only queue
    missing = [name for name, each in left.items() if state_of(here / name, each.steps)["state"] not in ENDED]
    if code and here_now and missing:
      raise SweepFailed(
        f"{len(missing)} of {len(left)} runs did not end ({', '.join(missing[:5])}): `sora sweep status --workdir "
        f"{workdir}` says what happened, and the same command takes them up again"
      )
    if code and not here_now:
      raise SweepFailed(f"launch/sweep.py --on {where.on} ended with status {code}: the lines above say why")
  return status(workdir)


def must_be_sealed(workdir: epath.Path, runs: dict[str, Planned]) -> None:
  """
  Raises:
    InputError: the large runs have no sealed predictions, or these are of other runs.
  """
  sealed = seal.read(workdir)
  if sealed is None:
    raise InputError(f"{workdir}: no sealed predictions: run sora sweep fit --workdir {workdir} before the sealed runs")
  for name, each in runs.items():
    if each.sealed and sealed["predictions"].get(name, {}).get("flops") != each.flops:
      raise InputError(f"{workdir / seal.FILE} has no prediction of the run {name} with {each.flops:g} FLOPs")


def launch_words(config_file: str, runs_file: str, workdir: str, where: Where) -> list[str]:
  """The command that trains the runs that are left.

  Raises:
    InputError: the launchers are not there: they are beside the package, in its repository.
  """
  script = pathlib.Path(sora_jax.__file__).parents[1] / "launch" / "sweep.py"
  if not script.exists():
    raise InputError(
      f"{script} is missing: a sweep needs a checkout of the repository, installed with pip install -e ."
    )
  words = [f"--config={config_file}", f"--runs={runs_file}", f"--workdir={workdir}"]
  return [sys.executable, str(script), *words, f"--on={where.on}", f"--at_once={where.at_once}", "--", *where.flags]


def prepare(base: Any, chosen: dict[str, Any], config_file: str, workdir: epath.Path) -> dict[str, Any]:
  """Makes what runs of these settings read, in a process of its own and once, and gives the settings that say where.

  Raises:
    SweepFailed: that did not end.
  """
  seed = chosen.get("data.seed", sources.seed_of(base))
  if base.data.prepared or chosen.get("data.prepared"):
    return {"data.seed": seed}
  made_of = {key: value for key, value in chosen.items() if key.startswith(SHARED)} | {"data.seed": seed}
  name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
  folder = workdir / f"{PREPARED}-{name}"
  done = folder / DONE
  if not done.exists():
    words = [f"--config.{each}" for each in texts({"train.eval_every": 1} | made_of | {"seed": seed})]
    command = [sys.executable, "-m", "sora_jax.cli", "precompute", f"--config={config_file}", f"--workdir={folder}"]
    if code := child.call([*command, *words], stdout=subprocess.DEVNULL):
      raise SweepFailed(f"preparing {folder} ended with status {code}: the lines above say why")
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text("")
  return {"data.prepared": os.fspath(folder), "data.seed": seed}


def seconds_left(left: dict[str, Planned], runs: dict[str, Planned], states: dict[str, dict[str, Any]]) -> float | None:
  """What is left of some runs takes one after another; None before the first run has ended.

  A step takes as long as other runs of the same model took, and of a model that has not been trained yet as long a
  FLOP as that of all runs that have ended.

  Args:
    states: of `state_of`, of all runs.
  """
  took = {name: found["step_seconds"] * found["steps"] for name, found in states.items() if found["step_seconds"]}
  done = [name for name in took if states[name]["state"] == DONE]
  total = 0.0
  for name, each in left.items():
    alike = [other for other in done if runs[other].params == each.params] or done
    if not alike:
      return None
    total += (
      flops_left({name: each}, states) * sum(took[other] for other in alike) / sum(runs[other].flops for other in alike)
    )
  return total


def flops_left(left: dict[str, Planned], states: dict[str, dict[str, Any]]) -> float:
  """Of the steps that some runs have still to do."""
  return sum(each.flops * (1 - states[name]["step"] / each.steps) for name, each in left.items())


def tell(runs: int, left: int, flops: float, seconds: float | None, at_once: int) -> None:
  """On stderr: what there is to do, and how long that takes (`seconds_left`) with so many runs at once."""
  time = "no run has told its speed yet" if seconds is None else f"about {seconds / at_once / 3600:.2f} hours"
  print(f"sweep: {left} of {runs} runs are left, {flops:.3g} FLOPs; {time}", file=sys.stderr)


def status(workdir: str | os.PathLike, sweep: Any = None) -> dict[str, Any]:
  """What became of each run; of a sweep's file, where one is given, the workdir must be.

  Returns:
    {runs: {name: {state, step, steps, starts, ends, seconds, held_out, slow}}, counts: {state: how many}, flops,
    seconds, flops_left, seconds_left}: `seconds` is what all starts took, `seconds_left` what is left at that speed,
    both one run after another. `state` is "waiting", "begun" (it runs, or waits for its turn to go on), "done" or
    "diverged" (its loss is not finite, which another start would not change); `ends` says how its starts ended; `slow`
    is how many times longer its steps take than those of the same run with other seeds, where that is more than SLOW.

  Raises:
    InputError: there is no sweep.
  """
  here = epath.Path(workdir)
  runs = {name: Planned(**each) for name, each in read(here, sweep)["runs"].items()}
  found = {name: state_of(here / name, each.steps) for name, each in runs.items()}
  for name, each in runs.items():
    alike = [found[other]["step_seconds"] for other, one in runs.items() if other != name and _alike(each, one)]
    usual = float(np.median([seconds for seconds in alike if seconds] or [0.0]))
    mine = found[name]["step_seconds"]
    found[name]["slow"] = round(mine / usual, 2) if mine and mine > SLOW * usual > 0 else None
  states = [each["state"] for each in found.values()]
  left = {name: each for name, each in runs.items() if found[name]["state"] not in ENDED}
  more = seconds_left(left, runs, found)
  return {
    "runs": found,
    "counts": {state: states.count(state) for state in STATES},
    "flops": sum(each.flops for name, each in runs.items() if found[name]["state"] == DONE),
    "seconds": round(sum(each["seconds"] for each in found.values()), 1),
    "flops_left": flops_left(left, found),
    "seconds_left": None if more is None else round(more, 1),
  }


def _alike(one: Planned, other: Planned) -> bool:
  """Whether they differ in their seeds alone."""
  kinds = [{key: value for key, value in each.settings.items() if key != "seed"} for each in (one, other)]
  return kinds[0] == kinds[1] and one.sealed == other.sealed


def state_of(folder: epath.Path, steps: int) -> dict[str, Any]:
  """Of one run, from what it has left on disk."""
  account = goodput.read(folder / "logs")
  model = account.get("models", {}).get("transformer", {})
  rows = read_metrics(folder / "logs")
  last = rows[-1] if rows else {}
  root = manifest.root(folder)
  done = root.is_dir() and steps in manifest.committed(root) and last.get("step") == steps
  step, ends = int(model.get("step", 0)), account.get("ends", [])
  diverged = bool(ends) and ends[-1].startswith(NonFiniteLoss.__name__)
  return {
    "state": DONE if done else DIVERGED if diverged else BEGUN if account else WAITING,
    "step": step,
    "steps": steps,
    "starts": account.get("starts", 0),
    "ends": ends,
    "seconds": round(account.get("wall_seconds", 0.0), 1),
    "step_seconds": round(model["seconds"] / step, 4) if step else None,
    "held_out": last.get("held_out") if done else None,
  }
