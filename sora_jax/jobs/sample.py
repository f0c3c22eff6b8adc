"""From an order to files: sampled clips, each with a JSON sidecar that makes it again.

A sidecar holds the whole order, not only its own clip: clips that were sampled together are sampled together again,
so the arithmetic, and with it every bit on one machine, is the same.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from sora_jax import __version__, sharding
from sora_jax.clips import from_uint8
from sora_jax.data.caption_limits import cut_prompt
from sora_jax.data.sizes import parse_size
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.errors import InputError, path_errors
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.video import io as video_io
from sora_jax.video import isolated

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
FAR_AREA, FAR_ASPECT = 2.0, 1.5  # times as large, or as wide for its height: a picture beyond is warned of
# What each field of an order, and each setting of the sampler in it, may be.
ORDER_TYPES: dict[str, Any] = {
  "checkpoint": str,
  "prompts": tuple,
  "size": str | None,
  "frames": int,
  "fps": float | int | None,
  "seed": int,
  "out": str,
  "image": str | None,
  "step": int | None,
  "overrides": dict,
}
SAMPLING_TYPES: dict[str, Any] = {
  "steps": int | None,
  "method": str | None,
  "guidance": float | int | None,
  "interval": list | tuple | None,
  "first_frame": bool | None,
}


@dataclasses.dataclass(frozen=True)
class Order:
  """What is asked for on a command line.

  Attributes:
    checkpoint: the workdir of a trained transformer.
    size: WIDTHxHEIGHT; None takes the image's own.
    fps: None takes the rate that the model was trained at.
    out: the file; several prompts get a number before the suffix.
    image: a file whose picture the clips begin with.
    step: of the checkpoint; None is the newest.
    overrides: fields of `Sampling`; None keeps the config's.
  """

  checkpoint: str
  prompts: tuple[str, ...]
  size: str | None
  frames: int
  fps: float | None
  seed: int
  out: str
  image: str | None
  step: int | None
  overrides: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a sidecar tells: the order, which of its clips, and the digests of what it was made from."""

  order: Order
  number: int
  image_sha256: str | None
  weights_sha256: str


def make(order: Order, overwrite: bool = False) -> dict:
  """Samples and writes the clips of an order.

  Returns:
    {out, width, height, frames, fps, seconds}; `out` is a list where there are several prompts.

  Raises:
    InputError: a suffix, size or setting that can't be, or a file that is there already; the message names it. Nothing
      is sampled then.
  """
  return _write(order, dict(enumerate(out_paths(order))), overwrite)


def again(
  path: str | pathlib.Path, changes: dict[str, Any], overrides: dict[str, Any], overwrite: bool = False
) -> dict:
  """Makes the clip of a sidecar again, with some of its order changed.

  With nothing changed but the name all clips of the order are sampled, as they were, and the one is written; else the
  one clip is an order of its own.

  Args:
    changes: fields of `Order`. Without `out` the clip takes the place of the one that the sidecar is of.
    overrides: fields of `Sampling`.

  Raises:
    InputError: the file is no sidecar, or its image or weights are no longer what they were; and as `make` does.
  """
  recipe = read_recipe(path)
  order, number = recipe.order, recipe.number
  changes = {"out": str(path).removesuffix(".json"), **changes}
  if order.image and "image" not in changes:
    with path_errors(order.image):
      changed = sha256(order.image) != recipe.image_sha256
    if changed:
      raise InputError(f"{order.image} has changed since {path} was written: it can't make the same clip")
  weights: tuple[str | pathlib.Path, str] | None = (path, recipe.weights_sha256)
  if changes.keys() == {"out"} and not overrides:
    order = dataclasses.replace(order, out=changes["out"])
    out_paths(order)
    return _write(order, {number: pathlib.Path(order.out)}, overwrite, weights)
  if changes.keys() & {"checkpoint", "step"}:
    weights = None
    changes = {"step": None, **changes}
  one = {
    "prompts": (order.prompts[number],),
    "seed": order.seed + number,
    "overrides": {**order.overrides, **overrides},
  }
  order = dataclasses.replace(order, **{**one, **changes})
  return _write(order, dict(enumerate(out_paths(order))), overwrite, weights)


def read_recipe(path: str | pathlib.Path) -> Recipe:
  """What a sidecar holds.

  Raises:
    InputError: the file is none.
  """
  try:
    whole = json.loads(pathlib.Path(path).read_text())
    fields = {**whole["order"], "prompts": tuple(whole["order"]["prompts"]), "step": whole["step"]}
    order, number = check_types(Order(**fields)), int(whole["number"])
    if not 0 <= number < len(order.prompts):
      raise ValueError(f"no clip {number} among {len(order.prompts)} prompts")
    return Recipe(order, number, whole["image_sha256"], whole["weights_sha256"])
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path} is not the JSON that `sora sample` writes beside a clip ({error})") from error


def _write(
  order: Order, outs: dict[int, pathlib.Path], overwrite: bool, weights: tuple[str | pathlib.Path, str] | None = None
) -> dict:
  """Samples all clips of an order and writes those of `outs`.

  Args:
    weights: a sidecar and the digest of the weights that it names, which must be those that are loaded.
  """
  started = time.monotonic()
  make_room(outs.values(), overwrite)
  sharding.all_devices()
  with path_errors(order.checkpoint):
    generator = Generator.load(order.checkpoint, order.step)
  digest = generator.digest()
  if weights and digest != weights[1]:
    raise InputError(f"the weights in {order.checkpoint} have changed since {weights[0]} was written")
  given = load_image(order.image, order.size) if order.image else None
  height, width = parse_size(order.size or "") if given is None else given.shape[1:3]
  if given is not None and (warning := far_from_training(generator, order.frames, height, width)):
    print(f"{order.image}: {warning}", file=sys.stderr)
  fps = float(order.fps or generator.config.data.fps or 24.0)
  changes = {name: value for name, value in order.overrides.items() if value is not None}
  sampling = dataclasses.replace(Sampling.of(generator.config), **changes)
  low, high = sampling.interval
  sampling = dataclasses.replace(sampling, interval=(low, high))  # JSON has lists
  requests = [
    Request(prompt, width, height, order.frames, fps, order.seed + number, given)
    for number, prompt in enumerate(order.prompts)
  ]
  for prompt in order.prompts:
    if message := cut_prompt(prompt, generator.tokenizer, generator.config.train.row_text):
      print(message, file=sys.stderr)
  clips = generator.sample(requests, sampling)
  made = {"width": width, "height": height, "frames": order.frames, "fps": fps}
  about = {**made, "step": generator.step, "weights_sha256": digest}
  for number, out in outs.items():
    with path_errors(str(out)):
      video_io.write(out, clips[number].frames_THWC, fps)
      sidecar_of(out).write_text(json.dumps(describe(order, number, sampling, about), indent=1) + "\n")
  names = [str(out) for out in outs.values()]
  return {"out": names[0] if len(names) == 1 else names, **made, "seconds": round(time.monotonic() - started, 3)}


def sidecar_of(out: pathlib.Path) -> pathlib.Path:
  return out.with_name(f"{out.name}.json")


def make_room(outs: Iterable[pathlib.Path], overwrite: bool) -> None:
  """Makes the folders of the clips, and sees that clips and sidecars can be written there.

  Raises:
    InputError: a folder can't be written, or a file would be written over that should not be.
  """
  for out in outs:
    for path in (out, sidecar_of(out)):
      if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} is there already: give another --out, or --overwrite")
    with path_errors(str(out)):
      out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
      raise InputError(f"{out.parent}: no permission to write there")


def check_types(order: Order) -> Order:
  """The order itself; a sidecar may hold anything.

  Raises:
    TypeError: a field of a type that it can't have; the message names it.
  """
  for kinds, given in ((ORDER_TYPES, dataclasses.asdict(order)), (SAMPLING_TYPES, order.overrides)):
    wrong = sorted(name for name, value in given.items() if not isinstance(value, kinds.get(name, ())))
    if wrong:
      raise TypeError(f"{wrong[0]!r} can't be {given[wrong[0]]!r}")
  if not all(isinstance(prompt, str) for prompt in order.prompts):
    raise TypeError(f"'prompts' can't be {order.prompts!r}")
  return order


def describe(order: Order, number: int, sampling: Sampling, about: dict[str, Any]) -> dict:
  """The sidecar of clip `number`: everything that makes it again.

  Args:
    about: the clip's true size, which a file may pad, its frames and rate, and the step and digest of the weights.
  """
  resolved = dataclasses.replace(
    order,
    checkpoint=str(pathlib.Path(order.checkpoint).absolute()),
    image=str(pathlib.Path(order.image).absolute()) if order.image else None,
    fps=about["fps"],
    overrides=dataclasses.asdict(sampling),
  )
  return {
    "order": dataclasses.asdict(resolved),
    "number": number,
    "prompt": order.prompts[number],
    "seed": order.seed + number,
    **about,
    "image_sha256": sha256(order.image) if order.image else None,
    "versions": {"sora_jax": __version__, "jax": jax.__version__},
  }


def far_from_training(generator: Generator, frames: int, height: int, width: int) -> str | None:
  """What to warn of where a size is far from those that the model was trained at; None where it is not.

  A world's sizes are those that clips of the nearest duration had.
  """
  data = generator.config.data
  if "worlds:" in data.source:
    far = lambda shape: [
      abs(math.log(seen / asked)) for seen, asked in zip(shape, (frames, height, width), strict=True)
    ]
    shapes = WorldShapes.of(data, generator.grid).distinct()
    known = min(shapes, key=lambda shape: (far(shape)[0], sum(far(shape)[1:])))[1:]
  elif data.max_tokens:  # training shrank its files to this budget
    known = generator.grid.fit(frames, height, width, data.max_tokens)
  else:
    return None
  area = abs(math.log(known[0] * known[1] / (height * width)))
  aspect = abs(math.log(known[1] * height / (known[0] * width)))
  if area <= math.log(FAR_AREA) and aspect <= math.log(FAR_ASPECT):
    return None
  return (
    f"{width}x{height} is far from the sizes of training, of which {known[1]}x{known[0]} is the nearest: the clip may "
    f"be poor; --size {known[1]}x{known[0]} resizes the picture"
  )


def out_paths(order: Order) -> list[pathlib.Path]:
  """Where the clips of an order go.

  Raises:
    ValueError: a suffix that is no format of ours, or png for a video.
  """
  path = pathlib.Path(order.out)
  if path.suffix.lower() not in SUFFIXES:
    raise InputError(f"--out {order.out}: the suffix is one of {', '.join(SUFFIXES)}")
  if path.suffix.lower() == ".png" and order.frames > 1:
    raise InputError(f"--out {order.out}: png holds one frame, not {order.frames}: use .mp4, .gif or .webp")
  if len(order.prompts) == 1:
    return [path]
  return [path.with_stem(f"{path.stem}_{number}") for number in range(len(order.prompts))]


def load_image(path: str, size: str | None) -> np.ndarray:
  """The picture of an image, or the first frame of a video, as a clip of one frame; resized only if a size is asked
  for.
  """
  wanted = parse_size(size) if size else None
  try:
    return from_uint8(isolated.shared().read(path, fps=1.0, max_frames=1, size=wanted))
  except (video_io.UnreadableFile, OSError) as error:
    raise InputError(f"--image {path} can't be read: {error}") from error


def sha256(path: str) -> str:
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
