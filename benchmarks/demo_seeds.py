"""The demo's exam over several seeds: is it clear of its bar, or was one run lucky?

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--out out/seeds] [--json]       `make demo`, once a seed
    python benchmarks/demo_seeds.py --validation --set train.steps=2000              to choose a setting by

With --validation, training leaves out four more pairs of colour and shape and the exam is on those: settings are chosen
there, and the pairs of the demo's own exam stay unseen. A seed takes as long as `make demo`; a run that was stopped
goes on. The last line is one JSON object: {runs: [{seed, seconds, alignment, alignment_short_captions, ceiling,
chance}], lowest: {attribute: of all seeds}}.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

from sora_jax.cli.config import UsageError, check_keys
from sora_jax.runtime import process


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/seeds"))
  parser.add_argument("--validation", action="store_true", help="choose settings on pairs of their own")
  parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the config to change")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # in a process of its own: run this seed
  given = parser.parse_args()
  if given.one is not None:
    print(json.dumps(run(given.one, given.out, given.validation, given.set)))
    return
  runs = [in_process(seed) for seed in given.seeds]
  names = runs[0]["alignment"]
  lowest = {name: min(each["alignment"][name] for each in runs) for name in names}
  if not given.json:
    table(runs, lowest)
  print(json.dumps({"runs": runs, "lowest": lowest}))


def in_process(seed: int) -> dict:
  """A seed's run as a process that ends with it: memory and compiled programs are its own."""
  command = [sys.executable, __file__, *sys.argv[1:], "--one", str(seed)]
  # As `sora` asks for them (docs/cpu.md).
  environment = {"GLIBC_TUNABLES": f"{process.TUNABLE}={process.WANTED}", **os.environ}
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
  return json.loads(done.stdout.splitlines()[-1])


def run(seed: int, out: pathlib.Path, validation: bool, changes: list[str]) -> dict:
  process.keep_freed_memory()
  process.compile_sooner()
  from sora_jax.jobs import demo  # which imports JAX

  config = demo.get_config()
  config.seed = seed
  if validation:
    config.data.source = "worlds:shapes_validation"
  found = demo.run(out / f"seed-{seed}", changed(config, changes))
  kept = ("seconds", "alignment", "alignment_short_captions", "ceiling", "chance", "psnr_db")
  return {"seed": seed} | {name: found[name] for name in kept}


def changed(config: ml_collections.ConfigDict, changes: list[str]) -> ml_collections.ConfigDict:
  """The config with KEY=VALUE settings as the commands read them; an unknown key ends in one line."""
  words, values = [f"--config.{change}" for change in changes], flags.FlagValues()
  try:
    check_keys(words, config)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
    values(["demo_seeds", *words])
  except (UsageError, flags.Error) as error:
    raise SystemExit(f"demo_seeds: {error}") from error
  return values.config


def table(runs: list[dict], lowest: dict) -> None:
  names = list(lowest)
  print("| seed | " + " | ".join(names) + " | " + " | ".join(f"{name}, short" for name in names) + " | minutes |")
  print("|---" * (2 * len(names) + 2) + "|")
  for each in runs:
    scores = [each[kind][name] for kind in ("alignment", "alignment_short_captions") for name in names]
    print(f"| {each['seed']} | " + " | ".join(f"{x:.3f}" for x in scores) + f" | {each['seconds'] / 60:.1f} |")
  print("| lowest | " + " | ".join(f"{lowest[name]:.3f}" for name in names) + " |")


if __name__ == "__main__":
  main()
