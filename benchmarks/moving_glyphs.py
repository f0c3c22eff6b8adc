"""Video prediction on moving glyphs, in the units of OpenSTL's Moving MNIST table: ten frames given, ten predicted.

    python benchmarks/moving_glyphs.py --workdir W [--clips 128] [--samples 8] [--hidden 32 32] [--json]

trains configs/glyphs.py into W, then a ConvLSTM (benchmarks/convlstm.py) on the same world for as many seconds as that
took, autoencoder included, and puts both beside the last given frame held. Either goes on where it was stopped; on one
core both (`taskset -c 0`) take no other's time.

    mse, mae      summed over the pixels of a frame, grey values in [0, 1], mean over frames and clips
    ssim          windows of 7x7, with a range of 2 as scikit-image takes for floats; that is what the table has
    letters, path of the world's examiner on the whole clip (given frames and predicted ones)

A generator draws one of the ways a clip may go on, and blur has a lower squared error than any of them: of so many
samples of ours stand the first (`ours`), their mean (`ours, mean of 8`) and the one nearest to the truth (`ours, best
of 8`). The glyphs are letters, not digits: published figures of Moving MNIST (ConvLSTM 29.8 after 200 epochs) are
another data set's. `--sheet FILE` draws clips of each. The last line is one JSON object: {command, about, rows: {NAME:
{MEASURE: {mean, low, high}}}, seconds, clips, convlstm, convlstm_steps}.
"""

import argparse
import functools
import json
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any

import convlstm
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from sora_jax.clips import contact_sheet
from sora_jax.evaluation.fidelity import ssim
from sora_jax.evaluation.marks import summary
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.runtime import goodput, storage
from sora_jax.worlds.glyphs import RATE, Glyphs, GlyphsState

ROOT = pathlib.Path(__file__).parents[1]
GIVEN, TOTAL, SIDE = 10, 20, 64
SEED = 7000  # of test clips; training draws others
BATCH, RATE_OF_LEARNING = 8, 1e-3
SAVE_EVERY = 60.0  # seconds
WORLD = Glyphs()
ABOUT = "held-out draws, ten frames given and ten predicted; 95 % bootstrap intervals; mse summed over a frame's pixels"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--clips", type=int, default=128)
  parser.add_argument("--samples", type=int, default=8)
  parser.add_argument("--hidden", type=int, nargs="+", default=[32, 32], help="channels of the ConvLSTM's layers")
  parser.add_argument("--seconds", type=float, help="of the ConvLSTM's training; those of ours by default")
  parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the config to change")
  parser.add_argument("--sheet", type=pathlib.Path, help="a picture of the first clips, real and made")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  seconds = train_ours(given.workdir, given.set)
  states = [WORLD.sample(np.random.default_rng((SEED, number))) for number in range(given.clips)]
  real = np.stack([grey(state, TOTAL) for state in states])
  weights, steps = train_convlstm(given.workdir / "convlstm.npz", tuple(given.hidden), given.seconds or seconds)
  made = ours(given.workdir, states, given.samples)
  rows = {
    "last frame held": np.repeat(real[:, GIVEN - 1 : GIVEN], TOTAL - GIVEN, 1),
    "ConvLSTM": theirs(weights, real),
    "ours": made[0],
    f"ours, mean of {given.samples}": made.mean(0),
    f"ours, best of {given.samples}": nearest(made, real[:, GIVEN:]),
  }
  found = {name: measured(frames, real, states) for name, frames in rows.items()}
  if not given.json:
    for name, row in found.items():
      print(f"{name:18s} " + "  ".join(f"{measure} {value['mean']:7.3f}" for measure, value in row.items()))
  if given.sheet:
    Image.fromarray(sheet(real, rows)).save(given.sheet, quality=80)
  about = {"seconds": round(seconds, 1), "clips": given.clips, "convlstm": given.hidden, "convlstm_steps": steps}
  command = shlex.join(["python", "benchmarks/moving_glyphs.py", *sys.argv[1:]])
  print(json.dumps({"command": command, "about": ABOUT, "rows": found, **about}))


def grey(state: GlyphsState, frames: int) -> np.ndarray:
  """A clip of the world at 64x64, (T, H, W) in [0, 1]."""
  return (WORLD.render(state, SIDE, SIDE, frames, RATE)[..., 0] + 1) / 2


def train_ours(workdir: pathlib.Path, changes: list[str]) -> float:
  """The seconds that training took, over all its starts."""
  words = [f"--config.{change}" for change in changes]
  config = ROOT / "configs" / "glyphs.py"
  command = [sys.executable, "-m", "sora_jax.cli", "train", f"--config={config}", f"--workdir={workdir}", *words]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  return goodput.read(workdir / "logs")["wall_seconds"]


def ours(workdir: pathlib.Path, states: list[GlyphsState], samples: int) -> np.ndarray:
  """The ten frames after the given ones, (S, B, T, H, W), of so many seeds."""
  generator = Generator.load(workdir)
  sampling = Sampling.of(generator.config)
  frames = max(generator.config.data.frames)
  found = []
  for sample in range(samples):
    requests = [
      Request("", SIDE, SIDE, frames, RATE, sample, (Condition(WORLD.render(state, SIDE, SIDE, GIVEN, RATE)),))
      for state in states
    ]
    clips = generator.sample(requests, sampling)
    found.append(np.stack([(clip.frames_THWC[GIVEN:TOTAL].mean(-1) + 1) / 2 for clip in clips]))
  return np.stack(found)


def nearest(made_SBTHW: np.ndarray, real_BTHW: np.ndarray) -> np.ndarray:
  best_B = np.square(made_SBTHW - real_BTHW).mean((2, 3, 4)).argmin(0)
  return made_SBTHW[best_B, np.arange(len(best_B))]


def train_convlstm(path: pathlib.Path, hidden: tuple[int, ...], seconds: float) -> tuple[dict, int]:
  """Trains for so long: Adam on the squared error of every next frame, with scheduled sampling; (weights, steps).

  The share of predicted frames that are fed back instead of real ones grows to all of them in the first half, as in
  OpenSTL's recipe; rates rise and fall with the time that is spent. What is in `path` goes on.
  """
  weights = convlstm.init(jax.random.key(0), hidden)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
  state = optimiser.init(weights)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(weights, state, frames, truth, rate):
    def loss(weights):
      return jnp.square(convlstm.predict(weights, frames, truth) - frames[:, 1:]).mean()

    value, gradient = jax.value_and_grad(loss)(weights)
    change, state = optimiser.update(gradient, state)
    return optax.apply_updates(weights, jax.tree.map(lambda x: -rate * x, change)), state, value

  (weights, state), before, steps = restored(path, (weights, state))
  begun, saved = None, 0.0
  while True:
    now = time.monotonic()
    passed = before + (0.0 if begun is None else now - begun)
    if begun is not None and (passed >= seconds or now - saved > SAVE_EVERY):
      save(path, (weights, state), passed, steps)
      saved = now
    spent = passed / seconds
    if spent >= 1:
      return weights, steps
    rng = np.random.default_rng((0, steps))
    frames = np.stack([grey(WORLD.sample(rng), TOTAL) for _ in range(BATCH)])
    fed = rng.random(TOTAL - 1) < max(1 - 2 * spent, 0.0)
    truth = np.where(np.arange(TOTAL - 1) < GIVEN, 1.0, fed).astype(np.float32)
    rate = RATE_OF_LEARNING * min(20 * spent, 1.0, (1 - spent) / 0.7)
    weights, state, value = step(weights, state, frames, truth, np.float32(rate))
    value.block_until_ready()  # steps that only wait to be done would count as none
    if begun is None:
      begun = saved = time.monotonic()  # our seconds have compiling in them, these don't
    if steps % 100 == 0:
      print(f"ConvLSTM: {spent:4.0%} of its time, step {steps}, loss {float(value):.4f}", file=sys.stderr)
    steps += 1


def save(path: pathlib.Path, trees: Any, seconds: float, steps: int) -> None:
  """Weights and moments, with what they have taken so far."""
  with storage.written_local(path) as local, open(local, "wb") as file:
    np.savez(file, np.array([seconds, steps]), *map(np.asarray, jax.tree.leaves(trees)))


def restored(path: pathlib.Path, trees: Any) -> tuple[Any, float, int]:
  """What `save` wrote: (trees, seconds, steps); the given trees where there is nothing.

  Raises:
    SystemExit: it is of other layers.
  """
  if not path.exists():
    return trees, 0.0, 0
  leaves, shape = jax.tree.flatten(trees)
  with np.load(path) as kept:
    (seconds, steps), *found = (kept[f"arr_{number}"] for number in range(len(kept.files)))
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in leaves]:
      raise SystemExit(f"{path} holds a ConvLSTM of other layers: remove it, or give the same --hidden")
    return jax.tree.unflatten(shape, map(jnp.asarray, found)), float(seconds), int(steps)


def sheet(real_BTHW: np.ndarray, rows: dict[str, np.ndarray], clips: int = 4) -> np.ndarray:
  """Every second frame of the first clips: the real one, then what each of `rows` predicts; (H, W, 3) uint8."""
  shown = lambda frames: [
    np.repeat(frame[..., None], 3, -1) for frame in (np.clip(frames, 0, 1) * 255).astype(np.uint8)
  ]
  lines = []
  for number in range(min(clips, len(real_BTHW))):
    lines.append(shown(real_BTHW[number, ::2]))
    given = np.zeros_like(real_BTHW[number, :GIVEN])
    lines += [shown(np.concatenate([given, made[number]])[::2]) for made in rows.values()]
  return contact_sheet(lines)


def theirs(weights: dict, real_BTHW: np.ndarray) -> np.ndarray:
  """The ten frames after the given ones, clipped to [0, 1]."""
  truth = (np.arange(TOTAL - 1) < GIVEN).astype(np.float32)
  run = jax.jit(convlstm.predict)
  parts = [run(weights, real_BTHW[start : start + BATCH], truth) for start in range(0, len(real_BTHW), BATCH)]
  return np.clip(np.concatenate(parts)[:, GIVEN - 1 :], 0.0, 1.0)


def measured(made_BTHW: np.ndarray, real_BTHW: np.ndarray, states: list[GlyphsState]) -> dict[str, dict]:
  """{measure: {mean, low, high}} over clips."""
  values: dict[str, list[float]] = {name: [] for name in ("mse", "mae", "ssim", *WORLD.attributes)}
  for made, real, state in zip(made_BTHW, real_BTHW, states, strict=True):
    wanted = real[GIVEN:]
    values["mse"].append(float(np.square(made - wanted).sum((1, 2)).mean()))
    values["mae"].append(float(np.abs(made - wanted).sum((1, 2)).mean()))
    values["ssim"].append(ssim(made[..., None], wanted[..., None]))
    whole = np.repeat(2 * np.concatenate([real[:GIVEN], made])[..., None] - 1, 3, -1)
    for name, mark in WORLD.examine(whole, RATE, state).items():
      values[name].append(mark)
  return {name: summary(each) for name, each in values.items()}


if __name__ == "__main__":
  main()
