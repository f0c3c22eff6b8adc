"""A grid of runs: every combination of the values given, each in a folder of its own, by one of the launchers.

    python launch/sweep.py --config configs/dit.py:variant=S --set train.learning_rate=1e-3,2e-3 --set seed=0,1 \
      --workdir runs/sweep --on local|slurm|gke|tpu_pod [--dry_run] [-- FLAGS OF THE LAUNCHER]

A value with commas of its own stands in brackets or quotes. `--runs FILE` names the runs instead, JSON of {name:
[KEY=VALUE, ...]}, as `sora sweep run` writes it; `--at_once N` trains so many at a time on this machine. `local` and
`tpu_pod` train one run after the other, the latter on one resource, which the last run removes; `slurm` and `gke` queue
them all. The same command again resumes every run; on Slurm a run's job waits until none of the same name is left, so
that no run trains twice at once.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import common
import tpu_pod

LAUNCHERS = {
  "local": ["single_gpu.py"],
  "slurm": ["slurm.py", "submit"],
  "gke": ["gke.py", "run"],
  "tpu_pod": ["tpu_pod.py", "run"],
}
LONGEST = 120  # letters of a folder's name
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CLOSING = {"(": ")", "[": "]", "{": "}"}


def values(text: str) -> list[str]:
  """Splits at commas outside brackets and quotes."""
  parts: list[str] = []
  open_until: list[str] = []
  begin = 0
  for at, letter in enumerate(text):
    if open_until and letter == open_until[-1]:
      open_until.pop()
    elif open_until and open_until[-1] in "'\"":
      continue
    elif letter in "'\"":
      open_until.append(letter)
    elif letter in CLOSING:
      open_until.append(CLOSING[letter])
    elif letter == "," and not open_until:
      parts.append(text[begin:at])
      begin = at + 1
  parts.append(text[begin:])
  if open_until:
    raise common.LaunchError(f"{text!r}: {open_until[-1]} is missing", 2)
  if len(parts) > 1 and not all(parts):
    raise common.LaunchError(f"{text!r} has an empty value between its commas", 2)
  return parts


def grid(settings: list[str]) -> dict[str, list[str]]:
  """{name of a run: its --set values}, the last key varying fastest."""
  keys, choices = [], []
  for each in settings:
    key, _, text = each.partition("=")
    if key in keys:
      raise common.LaunchError(f"{key} is given twice: list its values in one --set", 2)
    keys.append(key)
    choices.append(values(text))
  varied = [key for key, choice in zip(keys, choices, strict=True) if len(choice) > 1]
  short = {
    key: key if sum(other.endswith(f".{last(key)}") or other == last(key) for other in varied) > 1 else last(key)
    for key in varied
  }
  runs: dict[str, list[str]] = {}
  for chosen in itertools.product(*choices):
    pairs = dict(zip(keys, chosen, strict=True))
    name = folder_name([f"{short[key]}={pairs[key]}" for key in varied])
    if name in runs:
      raise common.LaunchError(f"the run {name} is there twice: give each value once", 2)
    runs[name] = [f"{key}={value}" for key, value in pairs.items()]
  return runs


def last(key: str) -> str:
  return key.rpartition(".")[2]


def folder_name(parts: list[str]) -> str:
  """A name that is safe in paths; where that loses something, a digest keeps it apart from others."""
  whole = "_".join(parts) or "run"
  safe = re.sub(r"[^A-Za-z0-9.=_+-]+", "-", whole).strip("-")[:LONGEST]
  return safe if safe == whole else f"{safe}-{digest(whole)}"


def digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def listed(path: str) -> dict[str, list[str]]:
  """The runs of a file: {name: its --set values}."""
  try:
    runs = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    found = {str(name): list(map(common.setting, settings)) for name, settings in runs.items()}
  except OSError as error:
    raise common.LaunchError(f"--runs {path}: {error.strerror}", 2) from None
  except (ValueError, AttributeError, TypeError, argparse.ArgumentTypeError) as error:
    raise common.LaunchError(f"--runs {path} is no JSON of {{name: [KEY=VALUE, ...]}}: {error}", 2) from None
  for name in found:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.=_+-]{0,139}", name):
      raise common.LaunchError(f"--runs {path}: {name!r} is no name of a folder", 2)
  if not found:
    raise common.LaunchError(f"--runs {path} names no run", 2)
  return found


def commands(args: argparse.Namespace, rest: list[str]) -> list[list[str]]:
  if args.runs and args.set:
    raise common.LaunchError("--runs and --set: give one of them", 2)
  script, *verb = LAUNCHERS[args.on]
  start = [sys.executable, str(common.ROOT / "launch" / script), *verb, *rest]
  runs = listed(args.runs) if args.runs else grid(args.set)
  lines = []
  for number, (name, settings) in enumerate(runs.items(), 1):
    workdir = f"{args.workdir.rstrip('/')}/{name}"
    words = [*start, f"--config={args.config}", f"--workdir={workdir}"]
    words += [f"--set={each}" for each in settings] + [f"--env={each}" for each in args.env]
    if args.on in ("slurm", "gke"):
      words.append(f"--name={args.name}-{digest(workdir)}")
    if args.on == "slurm" and not any(word.startswith("--sbatch=--dependency") for word in rest):
      words.append("--sbatch=--dependency=singleton")
    if args.on == "tpu_pod" and number < len(runs) and "--keep" not in rest:
      words.append("--keep")
    lines.append(words)
  return lines


def still_there(rest: list[str]) -> str:
  """What to do about a pod that a sweep has left running."""
  pod = tpu_pod.pod_of(tpu_pod.parse(["run", *rest, "--config=-", "--workdir=-"]))
  return f"{pod.name} costs while it is there: `{pod.again('delete')}` removes it"


def program(argv: list[str]) -> int:
  own, rest = common.split_rest(argv)
  parser = common.Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--on", choices=LAUNCHERS, default="local")
  parser.add_argument(
    "--name",
    type=common.checked(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?", "a name of at most 31 letters"),
    default="sweep",
    help="the beginning of the jobs' names",
  )
  parser.add_argument("--runs", type=common.plain, help="a file of runs by name, instead of --set")
  parser.add_argument("--at_once", type=common.positive, default=1, help="runs at a time, on this machine")
  common.add_training(parser)
  args = parser.parse_args(own)
  lines = commands(args, rest)
  if args.at_once > 1 and args.on != "local":
    raise common.LaunchError("--at_once is of --on local: elsewhere the place decides", 2)
  if args.dry_run:
    common.show(lines)
    return 0
  failed = several(lines, args.at_once)
  if failed:
    left = f"; {still_there(rest)}" if args.on == "tpu_pod" else ""
    raise common.LaunchError(
      f"{len(failed)} of {len(lines)} runs failed: {', '.join(map(str, failed))} (see above){left}"
    )
  return 0


def several(lines: list[list[str]], at_once: int) -> list[int]:
  """Runs commands, at most so many at a time; the numbers of those that failed."""
  failed: list[int] = []
  waiting = list(enumerate(lines, 1))
  running: dict[int, subprocess.Popen] = {}
  pending: list[int] = []
  before = {number: signal.signal(number, lambda got, _: pending.append(got)) for number in common.heard(SIGNALS)}
  try:
    while waiting or running:
      while waiting and len(running) < at_once and not pending:
        number, words = waiting.pop(0)
        common.say(f"run {number} of {len(lines)}: {next(w for w in words if w.startswith('--workdir='))[10:]}")
        running[number] = common.started(words)
      for number, child in list(running.items()):
        if child.poll() is not None:
          del running[number]
          failed += [number] * bool(child.returncode)
      if pending:
        for child in running.values():
          child.send_signal(pending[0])
        for child in running.values():
          child.wait()
        raise common.LaunchError("interrupted: the same command resumes every run", 128 + pending[0])
      time.sleep(0.05)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return sorted(failed)


if __name__ == "__main__":
  common.main(program)
