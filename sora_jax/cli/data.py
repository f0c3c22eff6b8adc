"""`sora data check | show | build`."""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

from absl import flags

from sora_jax.cli.command import Command, Given, define_config
from sora_jax.cli.train import define_workers
from sora_jax.errors import InputError, path_errors


def define_show(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", None, "the folder of the page", flag_values=values)
  define_config(values)


def define_build(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", None, "the folder of the shards", flag_values=values)
  number = functools.partial(flags.DEFINE_float, lower_bound=0.0, flag_values=values)
  number("min_seconds", 0.5, "a video's shorter scenes are dropped")
  number("min_motion", 0.0, "videos that change less from frame to frame, of 1, are dropped")
  flags.DEFINE_integer(
    "min_side", 1, "clips with a shorter side of fewer pixels are dropped", lower_bound=1, flag_values=values
  )
  flags.DEFINE_bool("dedup", True, "of clips that show the same, keep one", flag_values=values)
  flags.DEFINE_bool("cut", True, "cut videos into scenes", flag_values=values)
  flags.DEFINE_integer("shard_clips", 256, "clips a shard", lower_bound=1, flag_values=values)
  define_workers(values)


def check(given: Given) -> dict:
  from sora_jax import settings
  from sora_jax.curation import check

  if given.config is not None:
    settings.check(given.config)
  with path_errors(given.SRC):
    found = check.check(given.SRC, given.config)
  _name_dropped(found["dropped"])
  if not found["kept"]:
    if given.json:
      print(json.dumps(found))
    raise InputError(f"{given.SRC}: nothing usable in {found['clips']} lines and files")
  return found


def show(given: Given) -> dict:
  from sora_jax import settings
  from sora_jax.data import sources
  from sora_jax.models import autoencoder
  from sora_jax.report import data_page

  page = os.path.join(given.out, "index.html")
  with path_errors(given.SRC):
    if given.config is None:
      return data_page.show(sources.open_native(given.SRC), given.SRC, page)
    settings.check(given.config)
    config = given.config.copy_and_resolve_references()
    config.data.update(source=given.SRC, weights=())
    grid = autoencoder.grid(config)
    return data_page.show(sources.open_source(config.data, sources.seed_of(config), grid), given.SRC, page, grid.tokens)


def build(given: Given) -> dict:
  from sora_jax.curation import build
  from sora_jax.data import sources

  settings: dict[str, Any] = {field.name: getattr(given, field.name) for field in dataclasses.fields(build.Settings)}
  with path_errors(given.out):
    source = sources.open_native(given.SRC)
    found = build.build(source, given.out, build.Settings(**settings), given.workers, given.beam)
  _name_dropped(found["dropped"])
  return found


def _name_dropped(dropped: list[dict]) -> None:
  from sora_jax.data.files import printable

  for each in dropped:
    where = f"line {each['line']}" if each["line"] else "no line"
    print(f"dropped {printable(each['file']) or 'a line'} ({where}): {printable(each['reason'])}", file=sys.stderr)


COMMANDS = {
  "data check": Command(
    check,
    define_config,
    "what a source gives to training, and what is lost; with a config also captions that it cuts",
    "SRC [--config FILE]",
    words=("SRC",),
  ),
  "data show": Command(
    show,
    define_show,
    "a page of its clips as a model sees them",
    "SRC --out DIR [--config FILE]",
    ("out",),
    ("SRC",),
  ),
  "data build": Command(
    build,
    define_build,
    "shards of its clips: cut, filtered, each once; taken up again",
    "SRC --out DIR [--workers N | --beam=--runner=... ...]",
    ("out",),
    ("SRC",),
  ),
}
