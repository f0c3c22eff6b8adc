"""The `sora` command: finds the command that is meant, runs it and prints what it gives. Imported by nobody.

Progress and warnings go to stderr. With --json the last line on stdout is one JSON object. An error that a user can
mend is one line on stderr that says what is wrong and what to do, with exit status 2 for a wrong command line and 1
otherwise; any other error is a bug and keeps its traceback.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence

from absl import flags, logging

from sora_jax.cli import checkpoint, data, demo, doctor, evaluate, plan, sample, sweep, train
from sora_jax.cli.command import Command, help_of, listed, nearest_name, parse, printed
from sora_jax.cli.config import UsageError
from sora_jax.errors import SoraError
from sora_jax.runtime import preemption, process

COMMANDS: dict[str, Command] = {
  **demo.COMMANDS,
  **train.COMMANDS,
  **sample.COMMANDS,
  **evaluate.COMMANDS,
  **data.COMMANDS,
  **checkpoint.COMMANDS,
  **plan.COMMANDS,
  **sweep.COMMANDS,
  **doctor.COMMANDS,
}
HELP = ("help", "-h", "-help", "--help")
REPEAT = "every command takes --json, and --help for all its flags"


def main() -> None:
  """The console entry point."""
  process.restart_with_large_pages()
  process.end_tidily()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  process.keep_freed_memory()
  process.compile_sooner()
  process.enough_threads()
  flags.FLAGS(["sora"])  # libraries, such as Grain in its workers, read absl's global flags
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)
  sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
  """Runs the command of these words in this process; its exit status.

  A preempted run ends with preemption.REQUEUE.
  """
  try:
    if not words or words[0] in HELP:
      print("\n".join(["usage: sora COMMAND [flags]", "", *listed(COMMANDS), "", REPEAT]))
      return 0 if words else 2
    name, rest = find(words)
    if any(word in HELP[1:] for word in rest):
      print(_help(name))
      return 0
    if name not in COMMANDS:
      raise UsageError(usage_of(name))
    command = COMMANDS[name]
    if command.words and not rest:
      raise UsageError(f"sora {name} needs {command.words[0]}; usage: sora {name} {command.usage}")
    given = parse(name, command, rest)
    result = command.run(given)
  except preemption.Preempted as error:
    preemption.ignore()  # a second signal, while Python cleans up
    return _fail(error, preemption.REQUEUE)
  except (flags.Error, UsageError) as error:
    return _fail(error, 2)
  except SoraError as error:
    if os.environ.get("SORA_TRACEBACK"):
      raise
    return _fail(error, 1)
  except KeyboardInterrupt:
    return _fail(KeyboardInterrupt("interrupted"), 128 + signal.SIGINT)
  except process.Ended as error:
    return _fail(error, 128 + error.code)
  print(json.dumps(result) if given.json else printed(result))
  return 0


def find(words: Sequence[str]) -> tuple[str, Sequence[str]]:
  """The name of the command, or of a group alone, and the words after it.

  Raises:
    UsageError: there is no such command.
  """
  first, *rest = words
  if first in COMMANDS:
    return first, rest
  if not group(first):
    names = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    raise UsageError(f"unknown command {first!r}: did you mean {nearest_name(first, names)!r}? `sora help` lists them")
  if not rest or rest[0] in HELP:
    return first, rest
  if rest[0] not in group(first):
    near = nearest_name(rest[0], group(first))
    raise UsageError(f"sora {first} has no {rest[0]!r}: did you mean {near!r}? {usage_of(first)}")
  return f"{first} {rest[0]}", rest[1:]


def group(first: str) -> list[str]:
  """The second words of the commands that begin with this one."""
  return [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]


def usage_of(first: str) -> str:
  words = COMMANDS[f"{first} {group(first)[0]}"].words
  return f"usage: sora {first} {'|'.join(group(first))} {words[0] if words else '[flags]'}"


def _help(name: str) -> str:
  if name in COMMANDS:
    return help_of(name, COMMANDS[name])
  of_group = {each: command for each, command in COMMANDS.items() if each.startswith(f"{name} ")}
  return "\n".join([usage_of(name), "", *listed(of_group), "", REPEAT])


def _fail(error: BaseException, status: int) -> int:
  print(f"sora: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
  return status


if __name__ == "__main__":
  main()
