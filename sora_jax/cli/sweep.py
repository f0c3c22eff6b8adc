"""`sora sweep run`, `status`, `fit` and `report`."""

import os

from absl import flags

from sora_jax.cli.command import Command, Given, define_config
from sora_jax.cli.config import UsageError, load_config
from sora_jax.errors import path_errors
from sora_jax.runtime import process

LAUNCHERS = ("local", "slurm", "gke", "tpu_pod")


def define_sweep(values: flags.FlagValues) -> None:
  define_config(values)
  flags.DEFINE_string("workdir", None, "the sweep's folder, or gs://BUCKET/SWEEP", flag_values=values)


def define_run(values: flags.FlagValues) -> None:
  define_sweep(values)
  flags.DEFINE_bool("sealed", False, "the large runs, whose predictions are sealed", flag_values=values)
  flags.DEFINE_multi_string("only", [], "runs whose names fit, say --only='*seed=0'", flag_values=values)
  flags.DEFINE_enum("on", "local", LAUNCHERS, "where the runs train, by launch/", flag_values=values)
  flags.DEFINE_integer("at_once", 1, "runs at a time, on this machine", lower_bound=1, flag_values=values)
  flags.DEFINE_multi_string("launch", [], "a flag of the launcher, say --launch=--nodes=2", flag_values=values)


def define_report(values: flags.FlagValues) -> None:
  define_sweep(values)
  flags.DEFINE_string("out", "docs/report", "the folder of the figures", flag_values=values)
  flags.DEFINE_multi_string("beside", [], "a model that stands beside the runs, examined too", flag_values=values)


def run(given: Given) -> dict:
  if "grid" not in given.config:
    raise UsageError("--config of sora sweep run is a sweep's file, with config and grid: see configs/sweep_isoflop.py")
  base = load_config(str(given.config.get("config", "")))
  if given.on == "local":  # seeds of one model and budget run the same programs
    process.keep_compiled(os.path.join(given.workdir, "compiled"))
  with process.importing():
    from sora_jax.jobs import sweep as job

  with path_errors(given.workdir):
    stage, where = "sealed" if given.sealed else "grid", job.Where(given.on, given.at_once, tuple(given.launch))
    return job.run(given.config, base, given.workdir, where, stage, tuple(given.only))


def status(given: Given) -> dict:
  with process.importing():
    from sora_jax.jobs import sweep as job

  with path_errors(given.workdir):
    return job.status(given.workdir, given.config)


def fit(given: Given) -> dict:
  with process.importing():
    from sora_jax.jobs import scaling as job

  with path_errors(given.workdir):
    found = job.fit(given.workdir, given.config)
  return {name: value for name, value in found.items() if name not in ("points", "frontier")}


def report(given: Given) -> dict:
  with process.importing():
    from sora_jax.jobs import sweep_report as job

  with path_errors(given.out):
    return job.report(given.workdir, given.out, given.config, tuple(given.beside))


COMMANDS = {
  "sweep run": Command(
    run,
    define_run,
    "train the runs of a sweep that have not ended, by one of the launchers",
    "--config configs/sweep_NAME.py --workdir DIR [--sealed] [--only=NAME] [--on slurm|gke|tpu_pod]",
    ("config", "workdir"),
  ),
  "sweep status": Command(status, define_sweep, "what became of each run", "--workdir DIR", ("workdir",)),
  "sweep fit": Command(
    fit,
    define_sweep,
    "the scaling law of a sweep's runs; seals what it predicts of the large ones",
    "--workdir DIR",
    ("workdir",),
  ),
  "sweep report": Command(
    report,
    define_report,
    "what a sweep has found, its fit or the exams of its runs, as JSON and plots",
    "--workdir DIR [--out docs/report] [--beside DIR|pretrained:NAME]",
    ("workdir",),
  ),
}
