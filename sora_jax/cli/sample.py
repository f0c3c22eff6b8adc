"""`sora sample` and `sora animate`: one order, from flags or from the recipe beside a clip."""

from typing import Any

from absl import flags

from sora_jax.cli.command import Command, Given, need
from sora_jax.runtime import process

METHODS = ("euler", "heun")


def define_order(values: flags.FlagValues) -> None:
  """The flags that both commands read. None has a default here: with --from what is not given stays as it was."""
  text = lambda name, about: flags.DEFINE_string(name, None, about, flag_values=values)
  text("checkpoint", "the workdir of a trained transformer")
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


def define_sample(values: flags.FlagValues) -> None:
  define_order(values)
  flags.DEFINE_bool("first_frame", None, "make the first frame as an image, then animate it", flag_values=values)


def define_animate(values: flags.FlagValues) -> None:
  define_order(values)
  flags.DEFINE_string("image", None, "the first frame: an image, or a video's first frame", flag_values=values)


def sample(given: Given) -> dict:
  if (origin := getattr(given, "from")) is None:
    need("sample", given, ("checkpoint", "prompt", "size", "frames", "out"))
  return _make(given, origin)


def animate(given: Given) -> dict:
  if (origin := getattr(given, "from")) is None:
    need("animate", given, ("checkpoint", "image", "frames", "out"))
  return _make(given, origin)


def _make(given: Given, origin: str | None) -> dict:
  """Samples every prompt, packed together, and writes the clips with their recipes."""
  process.keep_compiled(process.trusted_programs(given.checkpoint))
  with process.importing():
    from sora_jax.jobs import sample

  changes: dict[str, Any] = {
    "checkpoint": given.checkpoint,
    "prompts": None if given.prompt is None else tuple(given.prompt),
    "size": given.size,
    "frames": given.frames,
    "fps": given.fps,
    "seed": given.seed,
    "out": given.out,
    "image": getattr(given, "image", None),
    "step": given.step,
  }
  overrides = {
    "steps": given.sample_steps,
    "method": given.method,
    "guidance": given.guidance,
    "first_frame": getattr(given, "first_frame", None),
  }
  if origin is not None:
    given_ones = lambda each: {name: value for name, value in each.items() if value is not None}
    return sample.again(origin, given_ones(changes), given_ones(overrides), given.overwrite)
  order = sample.Order(
    **{**changes, "prompts": changes["prompts"] or ("",), "seed": given.seed or 0}, overrides=overrides
  )
  return sample.make(order, given.overwrite)


COMMANDS = {
  "sample": Command(
    sample,
    define_sample,
    "clips of prompts; or, from the .json beside a clip, that clip again with what the other flags change",
    "--checkpoint DIR --prompt P --size WxH --frames N --out X.mp4 | --from X.mp4.json --out Y.mp4",
  ),
  "animate": Command(
    animate,
    define_animate,
    "clips that begin with a picture, at its size unless --size says another",
    "--checkpoint DIR --image I [--prompt P] --frames N --out X.mp4",
  ),
}
