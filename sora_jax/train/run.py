"""What `sora train` does: a config and a folder in, a workdir that sampling needs nothing beside out.

    workdir/config.json  tokenizer.model  autoencoder/checkpoints  latents/  checkpoints  logs/

Each step is skipped when the folder already holds its result, so a run that was stopped is taken up by the same
command.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from sora_jax import __version__, precompute, sharding
from sora_jax.balance import Work
from sora_jax.codec import Codec, abstract_params, autoencoder_config
from sora_jax.data import pipeline, quarantine, sources
from sora_jax.data.files import printable
from sora_jax.data.latents import LatentStore
from sora_jax.data.stream import Reading
from sora_jax.data.texts import Texts, kept_texts
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.diffusion.objective import NoiseLevels
from sora_jax.generate import Generator, Request, Sampling, dit_config, sheet
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing import RowShape
from sora_jax.patches import Grid
from sora_jax.train.autoencoder import AutoencoderTask
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.loop import Batches, LoopConfig, Summary, fit
from sora_jax.train.optimizer import OptimizerConfig

# What may change when a run is taken up again; anything else would be another run.
RESUMABLE = (
  "train.checkpoint_every",
  "train.keep",
  "data.max_bad",
  "data.on_mismatch",
  "data.workers",
  "train.log_every",
  "train.preview_every",
  "sample.",
  "mesh.",
)
PROBE = 64  # crops that the autoencoder's statistics are measured on


class ConfigMismatch(ValueError):
  """The workdir was made by another config."""


def train(config: Any, workdir: str | pathlib.Path) -> Summary:
  """Trains what `config.task` names, and first what that needs.

  Raises:
    ConfigMismatch, ValueError, CheckpointError, NonFiniteLoss: one line each, for the terminal.
  """
  workdir = pathlib.Path(workdir)
  source, mesh = open_run(config, workdir)
  if config.task == "autoencoder":
    return train_autoencoder(autoencoder_run(config, config.train.steps), source, workdir, mesh)
  codec = get_codec(config, source, workdir, mesh)
  return train_dit(config, codec, source, workdir, mesh)


def prepare(
  config: Any, workdir: str | pathlib.Path, workers: int = 0, beam: Sequence[str] | None = None
) -> dict[str, Any]:
  """What `train` does before the transformer's first step, the latents on many processes or machines.

  Args:
    workers, beam: see `data.units.run`.

  Returns:
    {"clips", "dropped", "latents"}: how many are encoded, how many can't be, and the folder.

  Raises:
    As `train` does.
  """
  if config.task != "dit":
    raise ValueError(f"config.task is {config.task!r}: only a transformer, 'dit', trains on latents")
  workdir = pathlib.Path(workdir)
  source, mesh = open_run(config, workdir)
  codec = get_codec(config, source, workdir, mesh)
  folder = workdir / "latents"
  store = precompute.encode_source(codec, source, folder, config.data.max_bad, workers, beam)
  get_tokenizer(config, store, workdir)
  return {"clips": len(store), "dropped": len(store.dropped) + len(source.dropped), "latents": str(folder)}


def open_run(config: Any, workdir: pathlib.Path) -> tuple[sources.Source, jax.sharding.Mesh]:
  """The source and mesh of a run; the workdir is its own from here on."""
  if config.task not in ("dit", "autoencoder"):
    raise ValueError(f"config.task is {config.task!r}: it is 'dit' or 'autoencoder'")
  mesh = sharding.make_mesh(config.mesh.to_dict())
  source = sources.open_source(config.data, config.seed, budget(config))
  if config.autoencoder.checkpoint:
    Codec.load(config.autoencoder.checkpoint, config.autoencoder)
  claim(workdir, config)  # not before: a mistyped source or checkpoint must not bind the folder to it
  report_dropped(source)
  quarantine.stop_at(config.data.max_bad, source.dropped, len(source))
  return source, mesh


def claim(workdir: pathlib.Path, config: Any) -> None:
  """Writes the resolved config, or checks that the one that is there is the same run's.

  Raises:
    ConfigMismatch: names the first key that differs, and both values.
  """
  path = workdir / "config.json"
  new = json.loads(config.to_json())
  if path.exists():
    old, now = flatten(json.loads(path.read_text())), flatten(new)
    free = RESUMABLE if config.data.on_mismatch == "error" else (*RESUMABLE, "data.")
    for key in sorted(old.keys() | now.keys()):
      if old.get(key) != now.get(key) and not key.startswith(free):
        raise ConfigMismatch(
          f"{workdir} holds a run with config.{key}={old.get(key)!r}, not {now.get(key)!r}: "
          "use that value or another --workdir"
        )
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


def report_dropped(source: sources.Source, most: int = 20) -> None:
  """Names on stderr what a folder holds and training can't use."""
  dropped = source.dropped
  for each in dropped[:most]:
    print(f"skipped {printable(each.file) or 'a line'} (line {each.line}): {each.reason}", file=sys.stderr)
  if len(dropped) > most:
    print(f"skipped {len(dropped) - most} more", file=sys.stderr)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  parts = {}
  for key, value in tree.items():
    parts |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return parts


def budget(config: Any) -> Callable[[int, int, int], tuple[int, int]] | None:
  """The size that the token budget leaves a file of (frames, height, width); None where there is no budget."""
  if not config.data.max_tokens:
    return None
  return functools.partial(grid_of(config).fit, most=config.data.max_tokens)


def grid_of(config: Any) -> Grid:
  """How a config's autoencoder and patch turn pixels into tokens."""
  return Grid(autoencoder_config(config.autoencoder).compression, tuple(config.model.patch))


def train_autoencoder(config: Any, source: sources.Source, folder: pathlib.Path, mesh: jax.sharding.Mesh) -> Summary:
  """Trains the autoencoder with the settings of `config.train`, into `folder`."""
  section = config.autoencoder
  probe = [
    pipeline.crop(
      pipeline.readable_frames(source, i % len(source)), section.crop, np.random.default_rng([config.seed, i])
    )
    for i in range(PROBE)
  ]
  task = AutoencoderTask(autoencoder_config(section), section.kl_weight, np.stack(probe))
  crops = pipeline.Crops(source, section.crop, config.seed, tuple(config.data.weights))
  with contextlib.closing(pipeline.crop_batches(crops, section.batch, reading(config))) as stream:
    batches = Batches(
      stream,
      tokens=lambda batch: (batch[0].size // 3,) * 2,  # an autoencoder's token is a pixel; none is padding
      clips=lambda batch: [f"number {index}" for index in batch[1]],
    )
    return fit(task, batches, loop_config(config, "autoencoder"), folder, mesh, meta(config))[1]


def get_codec(config: Any, source: sources.Source, workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> Codec:
  """The frozen autoencoder of a transformer: the one in the workdir, the config's, or one trained now."""
  folder = workdir / "autoencoder"
  section = config.autoencoder
  if section.checkpoint:
    # A workdir is all that sampling needs, so it keeps its own copy.
    if not (folder / "checkpoints").exists():
      part = folder / "checkpoints.part"
      shutil.rmtree(part, ignore_errors=True)
      shutil.copytree(pathlib.Path(section.checkpoint) / "checkpoints", part)
      part.rename(folder / "checkpoints")
    return Codec.load(folder, section)
  train_autoencoder(autoencoder_run(config, section.steps), source, folder, mesh)
  return Codec.load(folder, section)


def autoencoder_run(config: Any, steps: int) -> Any:
  """The config with the autoencoder's own rates in the place of the transformer's."""
  inner = config.copy_and_resolve_references()
  inner.task = "autoencoder"
  rate = config.autoencoder.learning_rate
  inner.train.update(steps=steps, learning_rate=rate, adam_learning_rate=rate / 10, ema_decay=0.99)
  return inner


def train_dit(
  config: Any, codec: Codec, source: sources.Source, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Summary:
  """Encodes the source once, trains the tokenizer and the transformer."""
  store = precompute.encode_source(codec, source, workdir / "latents", config.data.max_bad)
  tokenizer = get_tokenizer(config, store, workdir)
  model = dit_config(config, tokenizer.vocabulary)
  texts = kept_texts(
    workdir / "latents", [entry["captions"] for entry in store.entries], tokenizer, config.train.row_text
  )
  rows = packed_rows(config, store, texts, codec, model)
  generator = Generator(codec, model, None, tokenizer, config)

  def preview(params: Any) -> np.ndarray:
    generator.params = params
    picks = [store[i] for i in np.linspace(0, len(store) - 1, 6).astype(int)]
    requests = [
      Request(c.captions["short"], int(c.size_4[2]), int(c.size_4[1]), c.frames, c.size_4[3], i)
      for i, c in enumerate(picks)
    ]
    return sheet(generator.sample(requests, Sampling.of(config)))

  # A clip with some tokens left out gets the noise of the whole clip.
  levels = NoiseLevels(*config.diffusion.time_logit, config.diffusion.base_tokens * (1.0 - config.data.token_drop))
  diffusion = DiffusionConfig(
    config.diffusion.prediction, config.diffusion.weighting, levels, config.diffusion.caption_drop
  )
  task = DiTTask(model, diffusion, preview)
  with contextlib.closing(pipeline.packed_batches(rows, reading(config))) as stream:
    batches = Batches(
      stream,
      tokens=lambda batch: (int((batch.segments_BL > 0).sum()), batch.segments_BL.size),
      clips=lambda batch: [store.entries[index]["id"] for index in batch.clip_index_BS[batch.weight_BS > 0]],
    )
    return fit(task, batches, loop_config(config, "transformer"), workdir, mesh, meta(config))[1]


def get_tokenizer(config: Any, store: LatentStore, workdir: pathlib.Path) -> Tokenizer:
  """The one in the workdir, or one trained now on the store's captions."""
  path = workdir / "tokenizer.model"
  if not path.exists():
    captions = (text for entry in store.entries for text in entry["captions"].values())
    Tokenizer.train(captions, config.model.vocabulary).save(path)
  return Tokenizer.load(path)


def packed_rows(config: Any, store: LatentStore, texts: Texts, codec: Codec, model: DiTConfig) -> pipeline.PackedRows:
  """The rows that the transformer trains on, in steps of equal work for all ranks."""
  train = config.train
  blocks = jax.tree.leaves(abstract_params(lambda rngs: DiT(model, rngs))["blocks"])
  work = Work.of(sum(leaf.size for leaf in blocks), model.depth, model.width)
  return pipeline.PackedRows(
    store,
    texts,
    codec.grid(config.model.patch),
    RowShape(train.row_tokens, train.row_text, train.row_segments),
    pipeline.Step(train.rows, train.ranks, work),
    config.seed,
    pipeline.Shares(config.data.long_captions, config.diffusion.condition_share, config.data.token_drop),
    tuple(config.data.weights),
  )


def loop_config(config: Any, name: str) -> LoopConfig:
  train = config.train
  optimizer = OptimizerConfig(
    train.learning_rate,
    train.adam_learning_rate,
    train.warmup,
    train.decay_share,
    train.steps,
    train.clip_norm,
  )
  return LoopConfig(
    name,
    config.seed,
    optimizer,
    train.ema_decay,
    train.checkpoint_every,
    train.keep,
    train.log_every,
    train.preview_every,
  )


def meta(config: Any) -> dict:
  """What a checkpoint says of itself."""
  text = json.dumps(json.loads(config.to_json()), sort_keys=True)
  return {
    "config": json.loads(text),
    "config_hash": hashlib.sha256(text.encode()).hexdigest(),
    "task": config.task,
    "sora_jax": __version__,
    "jax": jax.__version__,
  }


def reading(config: Any) -> Reading:
  """How this host reads its share of the batches."""
  host = grain.sharding.ShardOptions(jax.process_index(), jax.process_count())
  return Reading(host, config.data.workers, config.data.on_mismatch)
