"""`sora sweep run` and `status`: a sweep's file to runs in folders of their own, by the launchers.

WORKDIR/sweep.json      its runs: settings, budget, steps
WORKDIR/prepared-.../   autoencoder, tokenizer and latents, which all runs of the same data read
WORKDIR/NAME/           a run, as `sora train` makes it
WORKDIR/sealed.json     predictions of the large runs, without which these don't start (`sora sweep fit`)
"""

import fnmatch
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

import sora_jax
from sora_jax.checkpoints import manifest
from sora_jax.data import sources
from sora_jax.errors import InputError, SoraError
from sora_jax.jobs.sweep_runs import Planned, planned, texts
from sora_jax.runtime import child, goodput, storage
from sora_jax.scaling import seal
from sora_jax.settings import digest_of
from sora_jax.train.loop import NonFiniteLoss
from sora_jax.train.metrics import read_metrics

FILE, PREPARED = "sweep.json", "prepared"
# Settings that change what is prepared.
SHARED = ("data.", "autoencoder.", "model.patch", "model.vocabulary", "train.row_", "diffusion.condition_share")
STATES = WAITING, BEGUN, DONE, DIVERGED = "waiting", "begun", "done", "diverged"
ENDED = DONE, DIVERGED
SLOW = 1.5  # times the seconds a step that the same run with other seeds takes


class SweepFailed(SoraError, RuntimeError):
  """Some runs did not end; the message names them, and what to do."""


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


def run(
  sweep: Any, base: Any, workdir: str, where: Where, stage: str = "grid", only: Sequence[str] = ()
) -> dict[str, Any]:
  """Trains the runs of a stage that have not ended, "grid" or "sealed"; the same call takes all of them up again.

  Args:
    sweep: the sweep's file; `sweep.config` is that of `base`, as the launchers are to read it.
    only: patterns of the names of runs, as of a shell's files; all runs of the stage where there is none.

  Returns:
    What `status` does.

  Raises:
    InputError: the sweep is not that of the workdir, the predictions of sealed runs are missing, or a pattern fits no
      run.
    SweepFailed: some runs did not end.
  """
  here, runs = epath.Path(workdir), planned(sweep, base)
  begin(here, sweep, base, runs)
  if stage == "sealed":
    must_be_sealed(here, runs, digest_of(base))
  mine = picked({name: each for name, each in runs.items() if each.sealed == (stage == "sealed")}, only)
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
    if launch(sweep.config, {name: texts(each.settings) for name, each in left.items()}, workdir, where, dry_run=True):
      raise SweepFailed(f"launch/sweep.py --on {where.on} can't do this: the lines above say why")
    code = launch(
      sweep.config,
      {name: texts(each.settings | prepare(base, each.settings, sweep.config, here)) for name, each in left.items()},
      workdir,
      where,
    )
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


def picked(runs: dict[str, Planned], only: Sequence[str]) -> dict[str, Planned]:
  """Those whose names one of the patterns fits; all of them where there is no pattern.

  Raises:
    InputError: a pattern fits none.
  """
  for pattern in only:
    if not any(fnmatch.fnmatchcase(name, pattern) for name in runs):
      raise InputError(f"--only {pattern} fits none of the {len(runs)} runs: one of them is {next(iter(runs))}")
  fit = {name for name in runs for pattern in only if fnmatch.fnmatchcase(name, pattern)}
  return {name: each for name, each in runs.items() if name in fit or not only}


def must_be_sealed(workdir: epath.Path, runs: dict[str, Planned], base: str) -> None:
  """Files that were sealed before they held settings are compared by names and budgets alone.

  Args:
    base: the digest of the config that the runs change.

  Raises:
    InputError: the large runs have no sealed predictions, or these are of other runs.
  """
  sealed = seal.read(workdir)
  if sealed is None:
    raise InputError(f"{workdir}: no sealed predictions: run sora sweep fit --workdir {workdir} before the sealed runs")
  if sealed.get("base", base) != base:
    raise InputError(f"{workdir / seal.FILE} has predictions of runs of another config: undo what changed in it since")
  for name, each in runs.items():
    prediction = sealed["predictions"].get(name, {})
    known = prediction.get("flops", math.nan)
    if each.sealed and not math.isclose(known, each.flops):  # sums differ in their last digit from machine to machine
      raise InputError(f"{workdir / seal.FILE} has no prediction of the run {name} with {each.flops:g} FLOPs")
    mine = json.loads(json.dumps(each.settings))
    if each.sealed and prediction.get("settings", mine) != mine:
      raise InputError(f"{workdir / seal.FILE} predicts the run {name} with other settings than the sweep's file has")


def launch(config_file: str, runs: dict[str, list[str]], workdir: str, where: Where, dry_run: bool = False) -> int:
  """Trains runs, and gives the launcher's exit status; a dry run only sees that it would take them.

  Args:
    runs: KEY=VALUE of the settings of each.
  """
  with tempfile.NamedTemporaryFile("w", suffix=".json") as listed:  # here, wherever the workdir is
    json.dump(runs, listed)
    listed.flush()
    words = launch_words(config_file, listed.name, workdir, where)
    return (
      child.call([*words[:2], "--dry_run", *words[2:]], stdout=subprocess.DEVNULL) if dry_run else child.call(words)
    )


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
  FLOP as that of all runs that have ended. What these took beside their steps (starting, compiling, the evaluation and
  the save at the end) each of the others takes too.

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
    a_flop = sum(took[other] for other in alike) / sum(runs[other].flops for other in alike)
    beside = sum(max(states[other]["seconds"] - took[other], 0.0) for other in alike) / len(alike)
    total += flops_left({name: each}, states) * a_flop + beside
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
    {runs: {name: {state, step, steps, starts, ends, silent, seconds, held_out, slow}}, counts: {state: how many},
    flops, seconds, flops_left, seconds_left}: `seconds` is what all starts took, `seconds_left` what is left at that
    speed, both one run after another. `state` is "waiting", "begun" (it runs, or waits for its turn to go on), "done"
    or "diverged" (its loss is not finite, which another start would not change); `ends` says how its starts ended, and
    `silent` for how many seconds one that has not ended has written nothing, where that is longer than training ever
    is: it was killed, or its machine is gone. `slow` is how many times longer its steps take than those of the same
    run with other seeds, where that is more than SLOW.

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
  held_out = last.get("held_out") if done else None
  diverged = bool(ends) and ends[-1].startswith(NonFiniteLoss.__name__)
  if held_out is not None and not math.isfinite(held_out):
    held_out, done, diverged = None, False, True
  return {
    "state": DONE if done else DIVERGED if diverged else BEGUN if account else WAITING,
    "step": step,
    "steps": steps,
    "starts": account.get("starts", 0),
    "ends": ends,
    "silent": silent(folder, account) if account and len(ends) < account["starts"] else None,
    "seconds": round(account.get("wall_seconds", 0.0), 1),
    "step_seconds": round(model["seconds"] / step, 4) if step else None,
    "held_out": held_out,
  }


def silent(folder: epath.Path, account: dict[str, Any]) -> int | None:
  """Seconds since a start that has not ended wrote its account, where one that goes on would have written it again."""
  quiet = time.time() - (folder / "logs" / goodput.FILE).stat().mtime
  return round(quiet) if quiet > 4 * max(goodput.REMOTE_BEAT, goodput.SHARE * account["wall_seconds"]) else None
