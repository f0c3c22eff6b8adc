"""`sora demo`."""

import pathlib

from absl import flags

from sora_jax.cli.command import Command, Given
from sora_jax.errors import path_errors


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "out/demo", "the folder of the run and its page", flag_values=values)


def demo(given: Given) -> dict:
  from sora_jax.jobs import demo as demonstration

  with path_errors(given.out):
    return demonstration.run(pathlib.Path(given.out))


COMMANDS = {"demo": Command(demo, define, "worlds -> autoencoder -> transformer -> clips -> one page", "[--out DIR]")}
