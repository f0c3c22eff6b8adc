"""`sora evaluate` and `sora compare`."""

from absl import flags

from sora_jax.cli.command import Command, Given
from sora_jax.cli.config import UsageError
from sora_jax.runtime import process

SUITES = ("worlds", "physics", "framing", "fidelity", "prompting")
KINDS = ("long", "short", "given")


def define(values: flags.FlagValues) -> None:
  about = "the workdir of a trained transformer, an exported folder, or pretrained:worlds"
  flags.DEFINE_string("checkpoint", None, about, flag_values=values)
  flags.DEFINE_enum("suite", None, SUITES, "what is measured", flag_values=values)
  flags.DEFINE_integer("clips", None, "held-out clips; the suite's own by default", lower_bound=2, flag_values=values)
  flags.DEFINE_string(
    "out", None, "a file for the JSON; by default one in DIR/evaluations, of pretrained:NAME here", flag_values=values
  )
  flags.DEFINE_list(
    "kinds", None, "of worlds: what the model is asked with, of long, short, given; all by default", flag_values=values
  )
  flags.DEFINE_string("i3d", None, "of fidelity: I3D's weights in safetensors, for the FVD", flag_values=values)


def evaluate(given: Given) -> dict:
  if given.i3d and given.suite != "fidelity":
    raise UsageError(f"--i3d is of --suite fidelity, not of {given.suite}")
  if given.kinds is not None and (given.suite != "worlds" or not given.kinds or set(given.kinds) - set(KINDS)):
    raise UsageError(f"--kinds {','.join(given.kinds)}: it is of --suite worlds, some of {', '.join(KINDS)}")
  process.keep_compiled(process.trusted_programs(given.checkpoint))
  with process.importing():
    from sora_jax.jobs import evaluate as job

  return job.evaluate(given.checkpoint, given.suite, given.clips, given.out, given.i3d, given.kinds)


def define_nothing(values: flags.FlagValues) -> None:
  """Words alone."""


def compare(given: Given) -> dict:
  with process.importing():
    from sora_jax.jobs import compare as job

  return job.compare(given.RUN_A, given.RUN_B)


COMMANDS = {
  "evaluate": Command(
    evaluate,
    define,
    "scores of a trained model on held-out clips, each with its interval, ceiling and chance",
    "--checkpoint DIR --suite worlds|physics|framing|fidelity|prompting [--out F.json]",
    ("checkpoint", "suite"),
  ),
  "compare": Command(
    compare,
    define_nothing,
    "how exams (--suite worlds) and losses of two runs differ, with intervals; a run is a workdir, or an exam's JSON",
    "RUN_A RUN_B",
    words=("RUN_A", "RUN_B"),
  ),
}
