"""A command of `sora`: the flags and words that it reads, and what it runs. Nothing that it does not read is accepted.

Each command has an absl `FlagValues` of its own, so its mistakes and its help speak of its own flags alone. The global
flags of absl stay at their defaults: libraries define and read some.
"""

import dataclasses
import difflib
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from sora_jax.cli.config import UsageError, check_keys, leaf_paths, load_config

# The values of a command's flags by name, `config` as a ConfigDict, and its words.
Given = types.SimpleNamespace


@dataclasses.dataclass(frozen=True)
class Command:
  """What a command reads and runs.

  Attributes:
    define: adds the command's flags.
    usage: words and flags as they are typed, for `sora help`.
    needs: flags without which it can't run.
    words: names of the words it takes after its own name, each of them once.
  """

  run: Callable[[Given], dict]
  define: Callable[[flags.FlagValues], None]
  about: str
  usage: str = ""
  needs: tuple[str, ...] = ()
  words: tuple[str, ...] = ()


def define_config(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    "config", None, "FILE or FILE:ARGUMENT, say configs/demo.py; --config.KEY=VALUE sets a value", flag_values=values
  )


def defined(command: Command) -> flags.FlagValues:
  """The command's flags at their defaults."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)  # flags and words in any order
  command.define(values)
  flags.DEFINE_bool("json", False, "print one JSON object as the last line", flag_values=values)
  return values


def parse(name: str, command: Command, words: Sequence[str]) -> Given:
  """What the command line gives to a command.

  Raises:
    UsageError, flags.Error: a flag or word that the command does not read, a bad value, or something missing.
  """
  values = defined(command)
  if refused := next((word for word in words if re.match(r"--?undefok(=|$)", word)), None):
    raise UsageError(f"sora {name} does not read {refused}: every flag must be one that it reads")
  rest = _parsed(values, words)
  config = None
  if "config" in values and values["config"].value is not None:
    config = load_config(values["config"].value)
    check_keys(rest, config)
    overrides = flags.FlagValues()
    overrides.set_gnu_getopt(True)
    config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=rest)
    rest = _parsed(overrides, rest)
  ended = rest.index("--") if "--" in rest else len(rest)
  for word in rest[:ended]:
    if word.startswith("-") and word.strip("-"):
      raise UsageError(_unread_flag(name, word, words, values, config))
  found = rest[:ended] + rest[ended + 1 :]
  if extra := found[len(command.words) :]:
    raise UsageError(
      f"sora {name} does not read {' '.join(map(repr, extra))}: put a value of several words in quotes; "
      f"`sora {name} --help` lists what it reads"
    )
  if len(found) < len(command.words):
    raise UsageError(f"sora {name} needs {' '.join(command.words[len(found) :])}")
  given = Given(**values.flag_values_dict(), **dict(zip(command.words, found, strict=True)))
  if "config" in values:
    given.config = config
  need(name, given, command.needs)
  return given


def need(name: str, given: Given, wanted: Sequence[str]) -> None:
  """Raises UsageError that names the flags that are not given."""
  if missing := [f"--{flag}" for flag in wanted if getattr(given, flag) is None]:
    raise UsageError(f"sora {name} needs {' and '.join(missing)}")


def _parsed(values: flags.FlagValues, words: Sequence[str]) -> list[str]:
  """What is left of the words when the flags are parsed."""
  try:
    return values(["sora", *words], known_only=True)[1:]
  except ValueError as error:  # such as a value for --nojson
    raise UsageError(str(error)) from error


def _unread_flag(
  name: str, word: str, words: Sequence[str], values: flags.FlagValues, config: ml_collections.ConfigDict | None
) -> str:
  """What to say of a flag that the command does not read: the nearest that it does."""
  flag, equals, value = word.lstrip("-").partition("=")
  if flag.startswith("config.") and "config" in values:
    return f"{word}: give --config FILE too, whose value this sets"
  if not equals:
    after = words[words.index(word) + 1 :]
    value = after[0] if after and not after[0].startswith("-") else ""
  found = _nearest(flag.removeprefix("no"), values, config)
  nearest = " or ".join(f"--{path}{f'={value}' * bool(value and path.startswith('config.'))}" for path in found)
  return f"sora {name} does not read --{flag}: did you mean {nearest}? `sora {name} --help` lists what it reads"


def _nearest(flag: str, values: flags.FlagValues, config: ml_collections.ConfigDict | None) -> list[str]:
  """Names of the nearest flags: the command's own first, then values of the config."""
  own = list(values)
  keys: dict[str, list[str]] = {}
  for path in leaf_paths(config) if config is not None else ():
    keys.setdefault(path.rpartition(".")[2], []).append(f"config.{path}")
  if flag in keys:
    return keys[flag][:3]
  if near := difflib.get_close_matches(flag, [*own, *keys], n=1):
    return [near[0]] if near[0] in own else keys[near[0]][:3]
  if "config" in own and config is None:
    return [f"config.{flag}"]
  return difflib.get_close_matches(flag, own, n=1, cutoff=0.0)


def help_of(name: str, command: Command) -> str:
  """The command's usage and its flags."""
  lines = [f"usage: sora {name} {command.usage}".rstrip(), "", *textwrap.wrap(command.about, 110), "", "flags:"]
  values = defined(command)
  for flag_name in values:
    flag = values[flag_name]
    about = " ".join(flag.help.split())  # absl puts breaks into its own hints
    about += f" (default: {flag.default})" * (flag.default not in (None, False))
    shown = f"--[no]{flag_name}" if flag.boolean and flag_name != "json" else f"--{flag_name}"
    lines += textwrap.wrap(about, 116, initial_indent=f"  {shown:<17}  ", subsequent_indent=" " * 21)
  return "\n".join(lines)


def listed(commands: dict[str, Command]) -> Iterator[str]:
  """Commands as `sora help` lists them."""
  for name, command in commands.items():
    yield f"  {name} {command.usage}".rstrip()
    yield f"      {command.about}"


def nearest_name(word: str, names: Sequence[str]) -> str:
  return difflib.get_close_matches(word, names, n=1, cutoff=0.0)[0]


def printed(result: dict[str, Any]) -> str:
  """A result as lines for people: one for each value, and one for each row of a table, which is a dict of dicts."""
  lines = []
  for name, value in result.items():
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
      lines.append(f"{name}:")
      lines.extend(
        f"  {key}: {', '.join(f'{column}={cell}' for column, cell in row.items())}" for key, row in value.items()
      )
    else:
      lines.append(f"{name}: {value}")
  return "\n".join(lines)
