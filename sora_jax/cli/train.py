"""`sora train` and `sora precompute`."""

import os

from absl import flags

from sora_jax.cli.command import Command, Given, define_config
from sora_jax.errors import path_errors
from sora_jax.runtime import hosts, preemption, process
from sora_jax.runtime.run import Run


def define_run(values: flags.FlagValues) -> None:
  define_config(values)
  flags.DEFINE_string(
    "workdir", None, "the folder of the run, or gs://BUCKET/RUN; the same command takes it up again", flag_values=values
  )


def define_precompute(values: flags.FlagValues) -> None:
  define_run(values)
  define_workers(values)


def define_workers(values: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    "workers", 0, "processes; 0 does the work in this one", lower_bound=0, upper_bound=4096, flag_values=values
  )
  flags.DEFINE_multi_string("beam", None, "an option of an Apache Beam pipeline that does the work", flag_values=values)


def train(given: Given) -> dict:
  asked = preemption.Preemption()
  asked.listen()  # before the imports, which take seconds
  process.keep_compiled(os.path.join(given.workdir, "compiled"))
  with path_errors(given.workdir), hosts.joined(asked) as group:  # before JAX does anything else
    with process.importing():
      from sora_jax.jobs import train

    summary = train.train(given.config, given.workdir, Run(group, asked, started=process.started()))
  fields = ("step", "loss", "steps_run", "resumed_from", "seconds", "useful_tokens", "tokens_per_second", "goodput")
  return {name: getattr(summary, name) for name in fields}


def precompute(given: Given) -> dict:
  asked = preemption.Preemption()
  asked.listen()
  from sora_jax.jobs import train

  with path_errors(given.workdir):
    return train.prepare(given.config, given.workdir, given.workers, given.beam, Run(preemption=asked))


COMMANDS = {
  "train": Command(
    train,
    define_run,
    "train, or take a run up again",
    "--config FILE --workdir DIR [--config.KEY=VALUE ...]",
    ("config", "workdir"),
  ),
  "precompute": Command(
    precompute,
    define_precompute,
    "what train does before its first step",
    "--config FILE --workdir DIR [--workers N | --beam=--runner=... ...]",
    ("config", "workdir"),
  ),
}
