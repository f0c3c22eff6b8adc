"""Orders of clips, and the sidecars that keep them: everything that makes a clip again, as JSON beside it.

A sidecar holds the whole order, not only its own clip: clips that were sampled together are sampled together again,
so the arithmetic, and with it every bit on one machine, is the same.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from sora_jax import __version__
from sora_jax.checkpoints.pretrained import is_pretrained
from sora_jax.errors import InputError, path_errors
from sora_jax.inference.generator import Sampling

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
# What each mode is given besides a prompt: what each value may be (it needs those that can't be None), and which of
# them are files.
GIVEN: dict[str, dict[str, Any]] = {
  "sample": {"condition": list | tuple | None},
  "animate": {"image": str, "at": float | int | None, "condition": list | tuple | None},
  "extend": {"clip": str, "direction": str | None},
  "loop": {"clip": str | None},
  "edit": {"clip": str, "strength": float | int | None, "mask": str | None},
  "connect": {"clip": list | tuple},
}
FILES = ("image", "clip", "mask", "condition")
# What each field of an order, and each setting of the sampler in it, may be.
ORDER_TYPES: dict[str, Any] = {
  "mode": str,
  "checkpoint": str,
  "prompts": tuple,
  "size": str | None,
  "frames": int | None,
  "fps": float | int | None,
  "seed": int,
  "out": str,
  "given": dict,
  "step": int | None,
  "overrides": dict,
}
SAMPLING_TYPES: dict[str, Any] = {
  "steps": int | None,
  "method": str | None,
  "guidance": float | int | None,
  "condition_guidance": float | int | None,
  "interval": list | tuple | None,
  "first_frame": bool | None,
  "history_level": float | int | None,
}


@dataclasses.dataclass(frozen=True)
class Order:
  """What is asked for on a command line.

  Attributes:
    mode: of GIVEN: what is done.
    checkpoint: the workdir of a trained transformer.
    size: WIDTHxHEIGHT; None takes that of the image or clip given.
    frames: to make: of the clip, or those added to the one given; None takes the number of the clip given.
    fps: None takes the rate of the clip given, or of training.
    out: the file; several prompts get a number before the suffix.
    given: files and what to do with them, by the mode's flags.
    step: of the checkpoint; None is the newest.
    overrides: fields of `Sampling`; None keeps the config's.
  """

  mode: str
  checkpoint: str
  prompts: tuple[str, ...]
  size: str | None
  frames: int | None
  fps: float | None
  seed: int
  out: str
  given: dict[str, Any]
  step: int | None
  overrides: dict[str, Any]

  def files(self) -> list[str]:
    """The paths of the files that it is made from."""
    found: list[str] = []
    for name in FILES:
      value = self.given.get(name)
      values = [value] if isinstance(value, str) else list(value or ())
      found += [split_condition(each)[0] if name == "condition" else each for each in values]
    return [path for path in found if not is_boxes(path)]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a sidecar tells: the order, which of its clips, and the digests of what it was made from."""

  order: Order
  number: int
  files: dict[str, str]
  weights_sha256: str

  def check_files(self, path: str | pathlib.Path, used: Sequence[str]) -> None:
    """
    Raises:
      InputError: a file that the clip was made from, and that is still used, is not what it was.
    """
    for name, digest in self.files.items():
      if name not in used:
        continue
      with path_errors(name):
        changed = sha256(name) != digest
      if changed:
        raise InputError(f"{name} has changed since {path} was written: it can't make the same clip")


def split_condition(text: str) -> tuple[str, float, float]:
  """ "FILE@SECONDS[:STRENGTH]" -> its parts; FILE may hold an @.

  Raises:
    InputError: it is not of that form.
  """
  path, at, rest = text.rpartition("@")
  seconds, colon, strength = rest.partition(":")
  try:
    found = path, float(seconds), float(strength) if colon else 1.0
    if not (path and at and math.isfinite(found[1]) and math.isfinite(found[2])):
      raise ValueError
    return found
  except ValueError:
    raise InputError(f"--condition {text}: it is FILE@SECONDS or FILE@SECONDS:STRENGTH, say end.png@1.5:0.8") from None


def is_boxes(text: str) -> bool:
  """Whether a mask is x0,y0,x1,y1[,t0,t1], or several of them with ; between, and no file."""
  return bool(text) and set(text) <= set("0123456789.,;- ")


def read_recipe(path: str | pathlib.Path) -> Recipe:
  """What a sidecar holds.

  Raises:
    InputError: the file is none.
  """
  try:
    whole = json.loads(pathlib.Path(path).read_text())
    fields = {**whole["order"], "prompts": tuple(whole["order"]["prompts"]), "step": whole["step"]}
    order, number, files = check_types(Order(**fields)), int(whole["number"]), dict(whole["files"])
    if not 0 <= number < len(order.prompts):
      raise ValueError(f"no clip {number} among {len(order.prompts)} prompts")
    if not set(order.files()) <= set(files):
      raise ValueError("no digest of a file that it is made from")
    return Recipe(order, number, files, whole["weights_sha256"])
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path} is not the JSON that `sora sample` writes beside a clip ({error})") from error


def check_types(order: Order) -> Order:
  """The order itself; a sidecar may hold anything.

  Raises:
    TypeError: a field of a type that it can't have; the message names it.
  """
  if order.mode not in GIVEN:
    raise TypeError(f"'mode' can't be {order.mode!r}")
  fields = {field.name: getattr(order, field.name) for field in dataclasses.fields(order)}
  for kinds, given in ((ORDER_TYPES, fields), (SAMPLING_TYPES, order.overrides), (GIVEN[order.mode], order.given)):
    wrong = sorted(name for name, value in given.items() if not isinstance(value, kinds.get(name, ())))
    if wrong:
      raise TypeError(f"{wrong[0]!r} can't be {given[wrong[0]]!r}")
  texts = [*order.prompts, *(each for value in order.given.values() if isinstance(value, list) for each in value)]
  if wrong := [each for each in texts if not isinstance(each, str)]:
    raise TypeError(f"a prompt or file can't be {wrong[0]!r}")
  return order


def check(order: Order) -> None:
  """Sees that an order can be made, before anything is loaded: that of a sidecar may hold anything.

  Raises:
    InputError: something that the mode needs is missing, or a value is none that it can have; the message names it.
  """
  try:
    check_types(order)
  except TypeError as error:
    raise InputError(f"sora {order.mode}: {error}") from error
  for name, kind in GIVEN.get(order.mode, {}).items():
    if not isinstance(None, kind) and not order.given.get(name):
      raise InputError(f"sora {order.mode} needs --{name}")
  interval = order.overrides.get("interval")
  if interval is not None and (len(interval) != 2 or not all(isinstance(end, float | int) for end in interval)):
    raise InputError(f"sora {order.mode}: the interval of guidance is two noise levels, not {list(interval)}")
  numbers = {"fps": order.fps} | {name: order.given.get(name) for name in ("at", "strength")}
  for name, value in numbers.items():
    if value is not None and not math.isfinite(value):
      raise InputError(f"sora {order.mode}: {name}={value} is no finite number")


def describe(order: Order, number: int, sampling: Sampling, about: dict[str, Any]) -> dict:
  """The sidecar of clip `number`: everything that makes it again.

  Args:
    about: the clip's true size, which a file may pad, its frames and rate, and the step and digest of the weights.
  """
  resolved = dataclasses.replace(
    order,
    checkpoint=_whole(order.checkpoint),
    given=_absolute(order.given),
    fps=about["fps"],
    overrides=dataclasses.asdict(sampling),
  )
  return {
    "order": dataclasses.asdict(resolved),
    "number": number,
    "prompt": order.prompts[number],
    "seed": order.seed + number,
    **about,
    "files": {path: sha256(path) for path in resolved.files()},
    "versions": {"sora_jax": __version__, "jax": jax.__version__},
  }


def _whole(checkpoint: str) -> str:
  """The whole path of a folder; names of what comes along and addresses of buckets are whole."""
  return checkpoint if is_pretrained(checkpoint) or "://" in checkpoint else str(pathlib.Path(checkpoint).absolute())


def _absolute(given: dict[str, Any]) -> dict[str, Any]:
  """What a mode is given, with the whole path of each file."""

  def place(name: str, text: str) -> str:
    if is_boxes(text):
      return text
    path = split_condition(text)[0] if name == "condition" else text
    return f"{pathlib.Path(path).absolute()}{text[len(path) :]}"

  found = dict(given)
  for name in FILES:
    if isinstance(value := given.get(name), str):
      found[name] = place(name, value)
    elif value:
      found[name] = [place(name, each) for each in value]
  return found


def out_paths(order: Order) -> list[pathlib.Path]:
  """Where the clips of an order go.

  Raises:
    InputError: a suffix that is no format of ours, or png for what is a video.
  """
  path = pathlib.Path(order.out)
  if path.suffix.lower() not in SUFFIXES:
    raise InputError(f"--out {order.out}: the suffix is one of {', '.join(SUFFIXES)}")
  video = order.mode in ("extend", "connect") or order.mode == "loop" and order.given.get("clip") is not None
  if path.suffix.lower() == ".png" and (video or (order.frames or 1) > 1):
    what = f"and sora {order.mode} makes a video" if video else f"not {order.frames}"
    raise InputError(f"--out {order.out}: png holds one frame, {what}: use .mp4, .gif or .webp")
  if len(order.prompts) == 1:
    return [path]
  return [path.with_stem(f"{path.stem}_{number}") for number in range(len(order.prompts))]


def sidecar_of(out: pathlib.Path) -> pathlib.Path:
  return out.with_name(f"{out.name}.json")


def make_room(outs: Iterable[pathlib.Path], overwrite: bool, files: Sequence[str]) -> None:
  """Sees that clips and sidecars can be written, in folders that are there or can be made.

  Args:
    files: what the clips are made from.

  Raises:
    InputError: a folder can't be written, or a file would be written over that should not be.
  """
  for out in outs:
    for path in (out, sidecar_of(out)):
      if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} is there already: give another --out, or --overwrite")
      if path.exists() and any(os.path.exists(file) and path.samefile(file) for file in files):
        raise InputError(f"--out {out}: {path} is what the clip is made from: give another --out")
    there = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not there.is_dir():
      raise InputError(f"--out {out}: {there} is no folder")
    if not os.access(there, os.W_OK):
      raise InputError(f"{there}: no permission to write there")


def sha256(path: str) -> str:
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
