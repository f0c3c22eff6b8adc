"""The config of a command: a file of Python that is loaded, and the keys that the command line sets in it."""

import difflib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import ml_collections

from sora_jax.errors import InputError

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


class UsageError(InputError):
  """The command line is wrong; the message says what, and what to type."""


def load_config(text: str) -> ml_collections.ConfigDict:
  """The locked config of FILE or FILE:ARGUMENT.

  Raises:
    UsageError: the file can't be read, is no config, or refuses the argument. Other errors are of the file's code.
  """
  path, colon, argument = text.partition(":")
  said = f"--config {path}"
  try:
    pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UsageError(f"{said}: {error.strerror}") from error
  loader = importlib.machinery.SourceFileLoader("sora_config", path)  # whatever the file's name ends with
  spec = importlib.util.spec_from_file_location("sora_config", path, loader=loader)
  assert spec and spec.loader
  sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not callable(made := getattr(module, "get_config", None)):
      raise UsageError(f"{said} has no function get_config: is it a config?")
    if colon and not inspect.signature(made).parameters:
      raise UsageError(f"{said} takes no argument, so leave out {colon + argument!r}")
    config = made(*[argument] * bool(colon))
  except SyntaxError as error:
    raise UsageError(f"{said} is no Python: {error.msg} (line {error.lineno})") from error
  except UsageError:
    raise
  except ValueError as error:  # which a config raises to refuse its argument
    raise UsageError(f"--config {text}: {error}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UsageError(f"{said}: get_config gives {type(config).__name__}, not a ConfigDict")
  return config.lock()


def check_keys(words: Sequence[str], config: ml_collections.ConfigDict) -> None:
  """Sees that each --config.KEY of a command line is a value of the config.

  Raises:
    UsageError: names the nearest key.
  """
  for word in words:
    if not (found := _OVERRIDE.match(word)):
      continue
    node, seen = config, "config"
    for key in found[1].split("."):
      if not isinstance(node, ml_collections.ConfigDict):
        raise UsageError(f"{seen} is a value, not a section: it has no {key!r}")
      if key not in node:
        raise UsageError(f"{seen} has no key {key!r}: did you mean {_nearest(key, found[1], node, config)}?")
      node, seen = node[key], f"{seen}.{key}"
    if isinstance(node, ml_collections.ConfigDict):
      raise UsageError(f"{seen} is a section: set its values one by one, --{seen}.{next(iter(node), 'KEY')}=VALUE")


def _nearest(key: str, path: str, node: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> str:
  """A sibling, else the same name in another section, else the nearest of all."""
  if near := difflib.get_close_matches(key, list(node), n=1):
    return repr(near[0])
  paths = list(leaf_paths(config))
  last = path.rpartition(".")[2]
  same = [each for each in paths if each.rpartition(".")[2] == last]
  return " or ".join(f"'config.{each}'" for each in same[:3] or difflib.get_close_matches(path, paths, 1, 0.0))


def leaf_paths(config: ml_collections.ConfigDict, before: str = "") -> Iterator[str]:
  """Every value's path, such as train.steps."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaf_paths(value, f"{before}{key}.")
    else:
      yield f"{before}{key}"
