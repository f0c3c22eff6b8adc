"""From an order to files: clips of any mode, each with a JSON sidecar that makes it again."""

import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax import sharding
from sora_jax.data.caption_limits import cut_prompt
from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.errors import InputError, path_errors
from sora_jax.inference.generator import Generator, Sampling
from sora_jax.jobs.modes import MODES, frame_of
from sora_jax.jobs.orders import Order, check, describe, make_room, out_paths, read_recipe, sidecar_of
from sora_jax.video import io as video_io

GIF_FPS = 50  # its frames last whole hundredths of a second, two at least
FAR_AREA, FAR_ASPECT = 2.0, 1.5  # times as large, or as wide for its height: a picture beyond is warned of


def make(order: Order, overwrite: bool = False) -> dict:
  """Samples and writes the clips of an order.

  Returns:
    {out, width, height, frames, fps, seconds}; `out` is a list where there are several prompts, `seconds` is what all
    of it took.

  Raises:
    InputError: a suffix, size, file or setting that can't be, or a file that is there already; the message names it.
      Nothing is written then.
  """
  return _write(order, dict(enumerate(out_paths(order))), overwrite)


def again(
  path: str | pathlib.Path, changes: dict[str, Any], overrides: dict[str, Any], overwrite: bool = False
) -> dict:
  """Makes the clip of a sidecar again, with some of its order changed.

  With nothing changed but the name all clips of the order are sampled, as they were, and the one is written; else the
  one clip is an order of its own.

  Args:
    changes: fields of `Order`; of `given`, those that change. Without `out` the clip takes the place of the one that
      the sidecar is of.
    overrides: fields of `Sampling`.

  Raises:
    InputError: the file is no sidecar, or is of another mode, or its files or weights are no longer what they were; and
      as `make` does.
  """
  recipe = read_recipe(path)
  order, number = recipe.order, recipe.number
  given = changes.pop("given", {})
  if (mode := changes.pop("mode", order.mode)) != order.mode:
    raise InputError(f"{path} is of sora {order.mode}: use that, not sora {mode}")
  changes = {"out": str(path).removesuffix(".json"), **changes}
  given = {**order.given, **given}
  recipe.check_files(path, dataclasses.replace(order, given=given).files())
  weights: tuple[str | pathlib.Path, str] | None = (path, recipe.weights_sha256)
  if changes.keys() == {"out"} and not overrides and given == order.given:
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
    "given": given,
  }
  order = dataclasses.replace(order, **{**one, **changes})
  return _write(order, dict(enumerate(out_paths(order))), overwrite, weights)


def _write(
  order: Order, outs: dict[int, pathlib.Path], overwrite: bool, weights: tuple[str | pathlib.Path, str] | None = None
) -> dict:
  """Samples all clips of an order and writes those of `outs`.

  Args:
    weights: a sidecar and the digest of the weights that it names, which must be those that are loaded.
  """
  started = time.monotonic()
  check(order)
  make_room(outs.values(), overwrite, order.files())
  sharding.all_devices()
  with path_errors(order.checkpoint):
    generator = Generator.load(order.checkpoint, order.step)
  digest = generator.digest()
  if weights and digest != weights[1]:
    raise InputError(f"the weights in {order.checkpoint} have changed since {weights[0]} was written")
  frame = frame_of(order, generator)
  if frame.fps > GIF_FPS and any(out.suffix.lower() == ".gif" for out in outs.values()):
    raise InputError(f"--out {order.out}: gif shows {GIF_FPS} frames a second at most, not {frame.fps:g}: use .mp4")
  if order.size is None and (warning := far_from_training(generator, order.frames or 1, frame.height, frame.width)):
    print(f"{', '.join(order.files())}: {warning}", file=sys.stderr)
  changes = {name: value for name, value in order.overrides.items() if value is not None}
  sampling = dataclasses.replace(Sampling.of(generator.config), **changes)
  low, high = sampling.interval
  sampling = dataclasses.replace(sampling, interval=(low, high))  # JSON has lists
  for prompt in order.prompts:
    if message := cut_prompt(prompt, generator.tokenizer, generator.config.train.row_text):
      print(message, file=sys.stderr)
  clips = MODES[order.mode].make(order, generator, frame, sampling)
  made = {"width": frame.width, "height": frame.height, "frames": 0, "fps": frame.fps}
  for number, out in outs.items():
    whole = order.frames if order.mode in ("sample", "animate") else None  # of others it is what is added
    counted = Counted(clips[number], out, whole)
    with path_errors(str(out)):
      out.parent.mkdir(parents=True, exist_ok=True)
      video_io.write_pieces(out, counted, frame.fps)
    made["frames"] = counted.frames
    about = {**made, "step": generator.step, "weights_sha256": digest}
    with path_errors(str(out)):
      sidecar_of(out).write_text(json.dumps(describe(order, number, sampling, about), indent=1) + "\n")
  names = [str(out) for out in outs.values()]
  return {"out": names[0] if len(names) == 1 else names, **made, "seconds": round(time.monotonic() - started, 3)}


class Counted:
  """Pieces of a clip as they are written: counts their frames, and shows how far a clip of several is."""

  def __init__(self, pieces: Iterator[np.ndarray], out: pathlib.Path, expected: int | None):
    self.pieces, self.out, self.expected, self.frames = pieces, out, expected, 0

  def __iter__(self) -> Iterator[np.ndarray]:
    with tqdm(total=self.expected, desc=self.out.name, file=sys.stderr, unit="frame", delay=1) as progress:
      for piece in self.pieces:
        yield piece
        self.frames += len(piece)
        progress.update(len(piece))


def far_from_training(generator: Generator, frames: int, height: int, width: int) -> str | None:
  """What to warn of where a size is far from those that the model was trained at; None where it is not.

  A world's sizes are those that clips of the nearest duration had, those of files what the budget of tokens leaves of
  any.
  """
  data = generator.config.data
  far = lambda shape: [abs(math.log(seen / asked)) for seen, asked in zip(shape, (frames, height, width), strict=True)]
  worlds = [name.startswith("worlds:") for name in names_of(data)]
  sizes = []
  if any(worlds):
    shapes = WorldShapes.of(data, generator.grid).distinct()
    sizes.append(min(shapes, key=lambda shape: (far(shape)[0], sum(far(shape)[1:])))[1:])
  if not all(worlds):
    if not data.max_tokens:
      return None  # files were seen at any size
    sizes.append(generator.grid.fit(min(frames, data.max_frames), height, width, data.max_tokens))
  known = min(sizes, key=lambda size: sum(far((frames, *size))))
  area = abs(math.log(known[0] * known[1] / (height * width)))
  aspect = abs(math.log(known[1] * height / (known[0] * width)))
  if area <= math.log(FAR_AREA) and aspect <= math.log(FAR_ASPECT):
    return None
  return (
    f"{width}x{height} is far from the sizes of training, of which {known[1]}x{known[0]} is the nearest: the clip may "
    f"be poor; --size {known[1]}x{known[0]} resizes the picture"
  )
