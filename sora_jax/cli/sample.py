"""Clips of prompts, images and videos: one order, from flags or from the recipe beside a clip."""

import functools
from collections.abc import Callable
from typing import Any

from absl import flags

from sora_jax.cli.command import Command, Given, need
from sora_jax.runtime import process

METHODS = ("euler", "heun")


def define_order(values: flags.FlagValues) -> None:
  """The flags that all of these commands read. None has a default: with --from what is not given stays as it was."""
  text = lambda name, about: flags.DEFINE_string(name, None, about, flag_values=values)
  text("checkpoint", "the workdir of a trained transformer, an exported folder, or pretrained:worlds")
  flags.DEFINE_multi_string(
    "prompt",
    None,
    "what the clip shows; of several prompts each is a clip, and their seeds are seed, seed + 1, ...",
    flag_values=values,
  )
  text("size", "WIDTHxHEIGHT in pixels")
  flags.DEFINE_integer(
    "frames", None, "frames of the clip; 1 is an image", lower_bound=1, upper_bound=7200, flag_values=values
  )
  flags.DEFINE_float("fps", None, "frames per second; that of training by default", flag_values=values)
  flags.register_validator(
    "fps", lambda fps: fps is None or 0 < fps <= 240, "it is above 0 and at most 240", flag_values=values
  )
  flags.DEFINE_integer(
    "seed",
    None,
    "the same seed makes the same clip (0 by default); of several prompts the seeds are seed, seed + 1, ...",
    lower_bound=0,
    upper_bound=2**31 - 1,
    flag_values=values,
  )
  text("out", "the file: mp4, gif, webp or png; several prompts get numbers; X.mp4.json beside it makes the clip again")
  flags.DEFINE_bool("overwrite", False, "write over files that are there", flag_values=values)
  flags.DEFINE_integer("step", None, "of the checkpoint; the newest by default", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("sample_steps", None, "steps of the sampler", lower_bound=1, flag_values=values)
  flags.DEFINE_enum("method", None, METHODS, "the sampler", flag_values=values)
  flags.DEFINE_float("guidance", None, "how strongly the prompt steers; 1 is not at all", flag_values=values)
  text("from", "the .json beside a clip: that clip again, but for what other flags change")


def define_files(values: flags.FlagValues, **about: str) -> None:
  """A flag a file."""
  for name, words in about.items():
    flags.DEFINE_string(name, None, words, flag_values=values)


def define_conditions(values: flags.FlagValues) -> None:
  flags.DEFINE_multi_string(
    "condition",
    None,
    "FILE@SECONDS[:STRENGTH]: an image or video that the clip shows from that time on, 1 as it is; any number of them",
    flag_values=values,
  )


def define_sample(values: flags.FlagValues) -> None:
  define_order(values)
  define_conditions(values)
  flags.DEFINE_bool("first_frame", None, "make the first frame as an image, then animate it", flag_values=values)


def define_animate(values: flags.FlagValues) -> None:
  define_order(values)
  define_conditions(values)
  define_files(values, image="an image, or a video's first frame")
  flags.DEFINE_float("at", None, "seconds at which the clip shows it; 0 by default", flag_values=values)


def define_extend(values: flags.FlagValues) -> None:
  define_order(values)
  define_files(values, clip="the video to extend by --frames")
  flags.DEFINE_enum("direction", None, ("forward", "backward"), "forward by default", flag_values=values)


def define_loop(values: flags.FlagValues) -> None:
  define_order(values)
  define_files(values, clip="a video to close by --frames more; without one a loop of --frames is made of the prompt")


def define_edit(values: flags.FlagValues) -> None:
  define_order(values)
  define_files(
    values,
    clip="the video to change; in a larger --size it lies in the middle, and what is around it is made",
    mask="what may change: the light parts of an image or video, or x0,y0,x1,y1[,t0,t1] in pixels and seconds, "
    "several with ; between",
  )
  flags.DEFINE_float(
    "strength",
    None,
    "0 is the clip as coded, 1 keeps nothing; 0.6 by default, 1 with a mask",
    0.0,
    1.0,
    flag_values=values,
  )


def define_connect(values: flags.FlagValues) -> None:
  define_order(values)
  flags.DEFINE_multi_string(
    "clip",
    None,
    "twice: the first video and the second; both are scaled to cover the frame, which is the first one's, and cut at "
    "its centre",
    flag_values=values,
  )


GIVEN = ("image", "at", "condition", "clip", "direction", "mask", "strength")  # flags of the modes, of those above
NEEDS = {
  "sample": ("checkpoint", "prompt", "size", "frames", "out"),
  "animate": ("checkpoint", "image", "frames", "out"),
  "extend": ("checkpoint", "clip", "frames", "out"),
  "loop": ("checkpoint", "frames", "out"),
  "edit": ("checkpoint", "clip", "out"),
  "connect": ("checkpoint", "clip", "frames", "out"),
}


def _make(mode: str, given: Given) -> dict:
  """Makes every prompt's clip, packed together, and writes the clips with their recipes."""
  if (origin := getattr(given, "from")) is None:
    need(mode, given, NEEDS[mode])
  process.keep_compiled(process.trusted_programs(given.checkpoint))
  with process.importing():
    from sora_jax.jobs import orders, sample

  changes: dict[str, Any] = {
    "mode": mode,
    "checkpoint": given.checkpoint,
    "prompts": None if given.prompt is None else tuple(given.prompt),
    "size": given.size,
    "frames": given.frames,
    "fps": given.fps,
    "seed": given.seed,
    "out": given.out,
    "step": given.step,
  }
  overrides = {
    "steps": given.sample_steps,
    "method": given.method,
    "guidance": given.guidance,
    "condition_guidance": given.guidance,
    "first_frame": getattr(given, "first_frame", None),
  }
  said = lambda each: {name: value for name, value in each.items() if value is not None}
  files = said({name: getattr(given, name) for name in GIVEN if hasattr(given, name)})
  if origin is not None:
    if mode == "sample":  # makes any clip again; what it was made by is in its recipe
      del changes["mode"]
    return sample.again(origin, said(changes) | ({"given": files} if files else {}), said(overrides), given.overwrite)
  order = orders.Order(
    **{**changes, "prompts": changes["prompts"] or ("",), "seed": given.seed or 0}, given=files, overrides=overrides
  )
  return sample.make(order, given.overwrite)


def _command(mode: str, define: Callable[[flags.FlagValues], None], about: str, usage: str) -> Command:
  return Command(functools.partial(_make, mode), define, about, usage)


COMMANDS = {
  "sample": _command(
    "sample",
    define_sample,
    "clips of prompts; or, from the .json beside a clip, that clip again with what the other flags change",
    "--checkpoint DIR --prompt P --size WxH --frames N --out X.mp4 | --from X.mp4.json --out Y.mp4",
  ),
  "animate": _command(
    "animate",
    define_animate,
    "clips that show a picture, at its size unless --size says another",
    "--checkpoint DIR --image I [--at SECONDS] [--prompt P] --frames N --out X.mp4",
  ),
  "extend": _command(
    "extend",
    define_extend,
    "a video that goes on, or that begins earlier; its own frames stay as they are",
    "--checkpoint DIR --clip C [--direction backward] [--prompt P] --frames N --out X.mp4",
  ),
  "loop": _command(
    "loop",
    define_loop,
    "a video without end: after its last frame comes its first again",
    "--checkpoint DIR [--clip C] [--size WxH] [--prompt P] --frames N --out X.mp4",
  ),
  "edit": _command(
    "edit",
    define_edit,
    "a video changed as a prompt says: all of it, what a mask leaves free, or what is around it",
    "--checkpoint DIR --clip C [--strength S] [--mask M] [--size WxH] [--prompt P] --out X.mp4",
  ),
  "connect": _command(
    "connect",
    define_connect,
    "one video that turns into another within --frames",
    "--checkpoint DIR --clip A --clip B [--prompt P] --frames N --out X.mp4",
  ),
}
