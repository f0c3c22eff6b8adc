"""`train.init`: a run that starts from the averaged weights of another run, its optimizer and its data from the start.

Weights are taken by name and shape. A transformer's weights mean something only with the autoencoder whose latents and
the tokenizer whose ids they were trained on, so both come along: the autoencoder unless the config names another one
(`autoencoder.checkpoint`) or has other `channels` or `stages`, the tokenizer unless `model.vocabulary` is another. With
another autoencoder the layers that read and write latents start fresh, with another tokenizer the table of its pieces.

What was decided, and later what was taken, is kept in workdir/initial.json. Once the run has a checkpoint of its own,
the other run is not looked at any more.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sora_jax.checkpoints import checkpoint, pretrained
from sora_jax.errors import InputError
from sora_jax.inference.codec import Codec
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.runtime import storage
from sora_jax.runtime.hosts import LONG, Hosts
from sora_jax.sharding import path_name
from sora_jax.train.state import TrainState

FILE = "initial.json"
# What changes the meaning of weights and not their shapes.
MEANING = {
  "model": ("heads", "text_heads", "patch", "seconds", "pixels"),
  "diffusion": ("prediction",),
}
LATENT_LAYERS = ("patch_in/", "patch_out/", "skip/")  # of a transformer, which read and write latents
PIECES = "text_encoder/embedding"  # a vector for each piece of a tokenizer


class Initial(NamedTuple):
  """Where a run starts from.

  Attributes:
    run: workdir, or exported folder, of the other run.
    folder: what there has the weights that this one starts from.
    autoencoder: the other run's autoencoder is this one's.
    tokenizer: and its tokenizer.
    warnings: settings with which its weights mean something else, in words.
  """

  run: str
  folder: str
  autoencoder: bool
  tokenizer: bool
  warnings: list[str]


def find(config: Any, workdir: epath.Path) -> Initial | None:
  """What `train.init` says; None where it is unset.

  Raises:
    InputError: there is no run whose weights this one could take.
  """
  if not config.train.init:
    return None
  run = pretrained.located(config.train.init)
  if kept := _kept(workdir):
    return Initial(*(kept[name] for name in Initial._fields))
  meta = checkpoint.load_meta(run)
  there, task = meta["config"], meta["task"]
  if config.task == "autoencoder":
    folder = run if task == "autoencoder" else os.fspath(epath.Path(run) / "autoencoder")
    _check_sizes(run, folder, abstract(Autoencoder, AutoencoderConfig.of(config.autoencoder))[1])
    return Initial(run, folder, False, False, [])
  if task != "dit":
    raise InputError(
      f"config.train.init={run!r} holds an autoencoder: a transformer starts from a transformer; to train one on this "
      "autoencoder's latents set config.autoencoder.checkpoint instead"
    )
  _check_sizes(run, run, abstract(DiT, DiTConfig.of(config, config.model.vocabulary))[1])
  here = json.loads(config.to_json())
  same = all(there["autoencoder"][key] == here["autoencoder"][key] for key in ("channels", "stages"))
  return Initial(
    run,
    run,
    autoencoder=same and not config.autoencoder.checkpoint and not config.data.prepared,
    tokenizer=there["model"]["vocabulary"] == config.model.vocabulary and not config.data.prepared,
    warnings=[
      f"config.{section}.{key} is {there[section][key]} there and {here[section][key]} here"
      for section, keys in MEANING.items()
      for key in keys
      if there[section][key] != here[section][key]
    ],
  )


def _check_sizes(run: str, folder: str, like: Any) -> None:
  """Refuses a run of which no weights could be taken, before anything else is made.

  Raises:
    InputError: no matrix there, besides those of latents and of a tokenizer, has the name and shape of one in `like`.
  """
  there = checkpoint.load_shapes(folder)
  matrices = {path: leaf.shape for path, leaf in checkpoint.flat(like).items() if len(leaf.shape) > 1}
  own = {path: shape for path, shape in matrices.items() if not path.startswith((*LATENT_LAYERS, PIECES))}
  if not any(there.get(path) == shape for path, shape in own.items()):
    raise InputError(
      f"config.train.init={run!r}: not one matrix there has the name and shape of one here: give a run of the same "
      "task and of sizes near these"
    )


def inherits_autoencoder(workdir: str | os.PathLike) -> bool:
  """Whether the autoencoder in a workdir is that of the run it started from."""
  kept = _kept(epath.Path(workdir))
  return bool(kept and kept["autoencoder"])


def keep(initial: Initial | None, workdir: epath.Path, hosts: Hosts) -> None:
  """Writes down what `find` said, and puts the other run's tokenizer in the workdir, once."""
  if initial is None:
    return

  def write() -> None:
    if (workdir / FILE).exists():
      return
    if initial.tokenizer:
      (workdir / "tokenizer.model").write_bytes((epath.Path(initial.run) / "tokenizer.model").read_bytes())
    _write(workdir, initial._asdict())

  hosts.decide("keeping what the run starts from", write, LONG)


def starter(
  initial: Initial | None, workdir: epath.Path, hosts: Hosts, codec: Codec | None = None
) -> Callable[[TrainState], TrainState] | None:
  """What the loop makes its first state by; None where it is a fresh one.

  Args:
    codec: the autoencoder that a transformer is trained with.
  """
  if initial is None:
    return None

  def start(state: TrainState) -> TrainState:
    fresh = _meaningless(initial, workdir, codec, state) if codec else {}
    like = {path: leaf for path, leaf in checkpoint.flat(state.params).items() if path not in fresh}
    found, there, step = checkpoint.load_fitting(initial.folder, like)
    rows = _table(checkpoint.flat(state.params), found, there, fresh)
    if hosts.is_first:
      _tell(initial, workdir, rows, step)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(path_name(path), leaf), state.params)
    # The average is memory of its own: a step takes the state's.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda x: x.sharding, params))
    return state._replace(params=params, ema=copy(params))

  return start


def _meaningless(initial: Initial, workdir: epath.Path, codec: Codec, state: TrainState) -> dict[str, str]:
  """The parameters that start fresh whatever their shapes, and why."""
  paths = list(checkpoint.flat(state.params))
  fresh: dict[str, str] = {}
  run = epath.Path(initial.run)
  arrays, _, _ = checkpoint.load_arrays(run / "autoencoder", "ema")
  arrays = {path: array.astype(np.float32) for path, array in arrays.items()}  # of an export in bfloat16
  if checkpoint.tree_digest(codec.params) != checkpoint.tree_digest(arrays):
    fresh |= {path: "other autoencoder" for path in paths if path.startswith(LATENT_LAYERS)}
  if (run / "tokenizer.model").read_bytes() != (workdir / "tokenizer.model").read_bytes():
    fresh |= {PIECES: "other tokenizer"}
  return fresh


def _table(
  here: dict[str, Any], found: dict[str, Any], there: dict[str, tuple[int, ...]], fresh: dict[str, str]
) -> list[tuple[str, tuple[int, ...], str]]:
  """(name, shape, what became of it) of every parameter here, then of those there that none here has the name of."""
  rows = []
  for path, leaf in sorted(here.items()):
    unfit = f"shape {there[path]} there" if path in there else "absent there"
    rows.append((path, leaf.shape, "loaded" if path in found else f"fresh: {fresh.get(path) or unfit}"))
  return rows + [(path, shape, "not used") for path, shape in sorted(there.items()) if path not in here]


def _tell(initial: Initial, workdir: epath.Path, rows: list[tuple[str, tuple[int, ...], str]], step: int) -> None:
  """The table on stderr and in the workdir."""
  count = lambda kind: sum(math.prod(shape) for _, shape, what in rows if what.startswith(kind))
  share = count("loaded") / max(count("loaded") + count("fresh"), 1)
  width = max(len(path) for path, _, _ in rows)
  lines = [f"train.init: {share:.1%} of the parameters are those of {initial.folder} step {step}"]
  lines += [f"  {path:{width}s}  {what:8s}  {tuple(shape)}" for path, shape, what in rows]
  if initial.warnings:
    lines += [f"warning: the loaded weights were trained otherwise: {', '.join(initial.warnings)}"]
  print("\n".join(lines), file=sys.stderr)
  table = [{"name": path, "shape": list(shape), "state": what} for path, shape, what in rows]
  _write(workdir, initial._asdict() | {"step": step, "parameters": table})


def _kept(workdir: epath.Path) -> dict[str, Any] | None:
  path = workdir / FILE
  return json.loads(path.read_text()) if path.exists() else None


def _write(workdir: epath.Path, content: dict[str, Any]) -> None:
  storage.write_text(workdir / FILE, json.dumps(content, indent=1) + "\n")
