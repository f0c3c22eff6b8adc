"""`sora checkpoint list | verify | digest | export | pin | unpin`."""

import json
import sys

from absl import flags

from sora_jax.cli.command import Command, Given
from sora_jax.errors import InputError, path_errors


def define_nothing(values: flags.FlagValues) -> None:
  """`checkpoint list` reads a folder and no flags."""


def define_step(values: flags.FlagValues) -> None:
  flags.DEFINE_integer("step", None, "which step; the newest by default", lower_bound=0, flag_values=values)


def define_verify(values: flags.FlagValues) -> None:
  flags.DEFINE_integer("step", None, "which step; all by default", lower_bound=0, flag_values=values)


def define_export(values: flags.FlagValues) -> None:
  define_step(values)
  flags.DEFINE_string(
    "out", None, "a folder for all that sampling needs, or a file NAME.safetensors", flag_values=values
  )
  flags.DEFINE_string("weights_licence", None, "the licence of the weights, for the metadata", flag_values=values)
  flags.DEFINE_enum("dtype", None, ["bfloat16"], "halves the matrices; as they are by default", flag_values=values)
  flags.DEFINE_string("card", None, "a text about the model, for the folder's README.md", flag_values=values)
  flags.DEFINE_enum("item", "ema", ["ema", "params"], "the averaged weights, or the last ones", flag_values=values)


def define_pin(values: flags.FlagValues) -> None:
  flags.DEFINE_integer("step", None, "which step", lower_bound=0, flag_values=values)


def list_steps(given: Given) -> dict:
  from sora_jax.checkpoints import manifest

  with path_errors(given.DIR):
    found = manifest.listing(given.DIR)
  if given.json:
    return found
  for row in found["checkpoints"]:
    about = [f"{row['bytes']:,} bytes", row["saved_at"], row["state"], "pinned" if row["pinned"] else None]
    print(f"step {row['step']}: {', '.join(filter(None, about))}")
  return {"steps": found["steps"]} | ({"not_used": found["not_used"]} if found["not_used"] else {})


def verify(given: Given) -> dict:
  from sora_jax.checkpoints import manifest

  with path_errors(given.DIR):
    found = manifest.verify(given.DIR, given.step)
  for step in found["unchecked"]:
    print(f"step {step} has no manifest to be checked against", file=sys.stderr)
  for fault in found["faults"]:
    print(fault, file=sys.stderr)
  if found["faults"] or found["unchecked"] == [given.step]:
    if given.json:
      print(json.dumps(found))
    raise InputError(f"{given.DIR}: {len(found['faults'])} damaged files" if found["faults"] else "nothing was checked")
  return found


def digest(given: Given) -> dict:
  from sora_jax import sharding
  from sora_jax.checkpoints import checkpoint

  sharding.all_devices()
  with path_errors(given.DIR):
    return checkpoint.digest(given.DIR, given.step)


def export(given: Given) -> dict:
  from sora_jax import sharding
  from sora_jax.checkpoints import export

  sharding.all_devices()
  with path_errors(given.out):
    return export.export(given.DIR, given.out, given.step, given.item, given.weights_licence, given.dtype, given.card)


def pin(given: Given) -> dict:
  return _pin(given, True)


def unpin(given: Given) -> dict:
  return _pin(given, False)


def _pin(given: Given, pinned: bool) -> dict:
  from sora_jax.checkpoints import manifest

  with path_errors(given.DIR):
    return manifest.pin(given.DIR, given.step, pinned)


_FOLDER = ("DIR",)

COMMANDS = {
  "checkpoint list": Command(list_steps, define_nothing, "what a run has saved", "DIR", words=_FOLDER),
  "checkpoint verify": Command(
    verify, define_verify, "whether every file is still as it was written", "DIR [--step N]", words=_FOLDER
  ),
  "checkpoint digest": Command(
    digest, define_step, "the sha256 of each part of a step", "DIR [--step N]", words=_FOLDER
  ),
  "checkpoint export": Command(
    export,
    define_export,
    "the weights, or all that sampling needs",
    "DIR --out F [--step N] [--item params] [--dtype bfloat16]",
    ("out",),
    _FOLDER,
  ),
  "checkpoint pin": Command(pin, define_pin, "keep a step for ever", "DIR --step N", ("step",), _FOLDER),
  "checkpoint unpin": Command(
    unpin, define_pin, "a pinned step is one like others again", "DIR --step N", ("step",), _FOLDER
  ),
}
