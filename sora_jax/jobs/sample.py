"""From an order to files: sampled clips, each with a JSON sidecar that makes it again.

A sidecar holds the whole order, not only its own clip: clips that were sampled together are sampled together again,
so the arithmetic, and with it every bit on one machine, is the same.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from sora_jax import __version__
from sora_jax.clips import from_uint8
from sora_jax.data.caption_limits import cut_prompt
from sora_jax.data.sizes import parse_size
from sora_jax.errors import InputError
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.video import io as video_io
from sora_jax.video import isolated

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
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


def make(order: Order, only: int | None = None) -> dict:
  """Samples and writes the clips of an order; `only` writes one of them.

  Returns:
    {out, width, height, frames, fps, seconds}; `out` is a list where there are several prompts.

  Raises:
    ValueError: a suffix, size or setting that can't be; the message names it. Nothing is sampled then.
  """
  started = time.monotonic()
  outs = out_paths(order)
  generator = Generator.load(order.checkpoint, order.step)
  given = load_image(order.image, order.size) if order.image else None
  height, width = parse_size(order.size or "") if given is None else given.shape[1:3]
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
  written = [number for number in range(len(clips)) if only in (None, number)]
  for number in written:
    video_io.write(outs[number], clips[number].frames_THWC, fps)
    sidecar = describe(order, number, generator, sampling, fps)
    outs[number].with_suffix(".json").write_text(json.dumps(sidecar, indent=1) + "\n")
  names = [str(outs[number]) for number in written]
  out = names[0] if len(names) == 1 else names
  seconds = round(time.monotonic() - started, 3)
  return {
    "out": out,
    "width": width,
    "height": height,
    "frames": order.frames,
    "fps": fps,
    "seconds": seconds,
  }


def again(path: str | pathlib.Path, out: str | None = None) -> dict:
  """Makes the clip of a sidecar again, beside the old one's name or at `out`.

  Raises:
    ValueError: the file is no sidecar, or its image or weights are no longer what they were.
  """
  try:
    whole = json.loads(pathlib.Path(path).read_text())
    fields = {**whole["order"], "prompts": tuple(whole["order"]["prompts"]), "step": whole["step"]}
    order, number = check_types(Order(**fields)), int(whole["number"])
    image_sha256, weights = whole["image_sha256"], whole["weights_sha256"]
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{path} is not the JSON that `sora sample` writes beside a clip ({error})") from error
  if order.image and sha256(order.image) != image_sha256:
    raise InputError(f"{order.image} has changed since {path} was written: it can't make the same clip")
  if Generator.load(order.checkpoint, order.step).digest() != weights:
    raise InputError(f"the weights in {order.checkpoint} have changed since {path} was written")
  if out is not None:
    # Several prompts get numbered names, so the order's own name must lead to `out` for this number.
    order = dataclasses.replace(order, out=out)
    if len(order.prompts) > 1:
      made = make(order, only=number)
      pathlib.Path(made["out"]).replace(out)
      pathlib.Path(made["out"]).with_suffix(".json").replace(pathlib.Path(out).with_suffix(".json"))
      return {**made, "out": out}
  return make(order, only=number)


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


def describe(order: Order, number: int, generator: Generator, sampling: Sampling, fps: float) -> dict:
  """The sidecar of clip `number`: everything that makes it again."""
  resolved = dataclasses.replace(
    order,
    checkpoint=str(pathlib.Path(order.checkpoint).absolute()),
    image=str(pathlib.Path(order.image).absolute()) if order.image else None,
    fps=fps,
    overrides=dataclasses.asdict(sampling),
  )
  return {
    "order": dataclasses.asdict(resolved),
    "number": number,
    "prompt": order.prompts[number],
    "seed": order.seed + number,
    "step": generator.step,
    "image_sha256": sha256(order.image) if order.image else None,
    "weights_sha256": generator.digest(),
    "versions": {"sora_jax": __version__, "jax": jax.__version__},
  }


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
  path.parent.mkdir(parents=True, exist_ok=True)
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
