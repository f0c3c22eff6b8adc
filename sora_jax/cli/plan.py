"""`sora plan`."""

import functools

from absl import flags

from sora_jax.cli.command import Command, Given, define_config
from sora_jax.cli.config import UsageError, load_config


def define(values: flags.FlagValues) -> None:
  define_config(values)
  flags.DEFINE_string(
    "topology", None, "the chips, v5p:4x4x4 or v5p-128; this machine's devices by default", flag_values=values
  )
  number = functools.partial(flags.DEFINE_float, lower_bound=0.0, flag_values=values)
  number("price", None, "US dollars of a chip an hour; the list price by default")
  number("tokens", None, "tokens to train on; those of the config's steps by default")
  flags.DEFINE_string("sample", None, "plan the sampling of a clip, WIDTHxHEIGHTxFRAMES, instead", flag_values=values)


def plan(given: Given) -> dict:
  if "grid" in given.config:
    return _plan_sweep(given)
  from sora_jax.plan import plan as planning
  from sora_jax.plan import sampling

  if given.sample is not None:
    if given.price is not None or given.tokens is not None:
      raise UsageError("sora plan --sample is of one clip: --price and --tokens are of a training run")
    return sampling.plan(given.config, given.sample, given.topology)
  return planning.plan(given.config, given.topology, given.price, given.tokens)


def _plan_sweep(given: Given) -> dict:
  from sora_jax.jobs import sweep_plan

  if given.sample is not None or given.tokens is not None:
    raise UsageError("sora plan of a sweep is of all its runs, with budgets of their own: leave out --sample, --tokens")
  return sweep_plan.plan(given.config, load_config(str(given.config.get("config", ""))), given.topology, given.price)


COMMANDS = {
  "plan": Command(
    plan,
    define,
    "memory, time and money of a run, of a sweep, or of sampling a clip, before it; no TPU is needed",
    "--config FILE [--topology v5p-128] [--price DOLLARS] [--tokens N] | --config FILE --sample 1920x1080x97",
    ("config",),
  ),
}
