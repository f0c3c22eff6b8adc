"""`sora plan`."""

import functools

from absl import flags

from sora_jax.cli.command import Command, Given, define_config


def define(values: flags.FlagValues) -> None:
  define_config(values)
  flags.DEFINE_string(
    "topology", None, "the chips, v5p:4x4x4 or v5p-128; this machine's devices by default", flag_values=values
  )
  number = functools.partial(flags.DEFINE_float, lower_bound=0.0, flag_values=values)
  number("price", None, "US dollars of a chip an hour; the list price by default")
  number("tokens", None, "tokens to train on; those of the config's steps by default")


def plan(given: Given) -> dict:
  from sora_jax.plan import plan as planning

  return planning.plan(given.config, given.topology, given.price, given.tokens)


COMMANDS = {
  "plan": Command(
    plan,
    define,
    "memory, time and money of a run, before it; no TPU is needed",
    "--config FILE [--topology v5p-128] [--price DOLLARS] [--tokens N]",
    ("config",),
  ),
}
