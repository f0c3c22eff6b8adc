"""What `sora train` does: from a config to a workdir that holds all that sampling needs.

    workdir/config.json  tokenizer.model  autoencoder/checkpoints  latents/  checkpoints  logs/

Each step is skipped when the folder already holds its result, so the same command resumes a run that was
stopped. The workdir is a folder or an address, gs://BUCKET/RUN. Several hosts share it: host 0 writes what is written
once, all encode and train.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from etils import epath

from sora_jax import settings, sharding
from sora_jax.checkpoints import checkpoint, manifest, pretrained
from sora_jax.data import conditions, pipeline, quarantine, sources
from sora_jax.data.captions import Texts
from sora_jax.data.files import printable
from sora_jax.data.latents import LatentStore
from sora_jax.data.stream import Reading
from sora_jax.errors import InputError, SoraError
from sora_jax.inference.codec import Codec
from sora_jax.inference.generator import Generator, Request, Sampling, sheet
from sora_jax.jobs import held_out, initial, precompute
from sora_jax.jobs.tokenise import get_tokenizer, keep_tokenizer, kept_texts, try_tokenizer
from sora_jax.jobs.workdir import code, open_workdir
from sora_jax.models.abstract import abstract
from sora_jax.models.attention import attention
from sora_jax.models.autoencoder import AutoencoderConfig, grid
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.packing.balance import ClipFlops
from sora_jax.packing.batch import RowShape
from sora_jax.packing.rows import must_fit
from sora_jax.runtime import goodput
from sora_jax.runtime.hosts import ALONE, LONG, Hosts
from sora_jax.runtime.run import Run
from sora_jax.train import mup
from sora_jax.train.autoencoder import AutoencoderTask
from sora_jax.train.dit import DiffusionConfig, DiTTask
from sora_jax.train.loop import Batches, LoopConfig, Summary, fit
from sora_jax.train.state import TrainState

PROBE = 64  # crops that the autoencoder's statistics are measured on


class OutOfMemory(SoraError, RuntimeError):
  """A training step does not fit the devices; the message names the settings that change that."""


def train(config: Any, workdir: str | os.PathLike, run: Run | None = None) -> Summary:
  """Trains what `config.task` names, and the autoencoder and tokenizer that it needs first.

  Args:
    run: what this process is one of; wall time and time limit count from its start. By default the process is alone.

  Raises:
    ConfigMismatch, ValueError, CheckpointError, NonFiniteLoss, OutOfMemory, Preempted, HostsError: one line each,
      for the terminal.
  """
  settings.check(config)
  folder, run = epath.Path(workdir), run or Run()
  run.preemption.end_after(config.train.max_minutes, run.started)
  source, mesh, given = open_run(config, folder, run.hosts)
  with goodput.accounted(folder / "logs", run.started, run.hosts.is_first) as clock:
    run = dataclasses.replace(run, clock=clock)
    if config.task == "autoencoder":
      summary = train_autoencoder(autoencoder_run(config, config.train.steps), source, folder, mesh, run)
    else:
      codec = get_codec(config, source, folder, mesh, run, given)
      summary = train_dit(config, codec, source, folder, mesh, run)
  return dataclasses.replace(summary, goodput=clock.summary())


def prepare(
  config: Any,
  workdir: str | os.PathLike,
  workers: int = 0,
  beam: Sequence[str] | None = None,
  run: Run | None = None,
) -> dict[str, Any]:
  """What `train` does before the transformer's first step, the latents on many processes or machines.

  Args:
    workers, beam: see `runtime.work_units.run`.
    run: what this process is one of; by default it is alone.

  Returns:
    {"clips", "dropped", "latents"}: how many are encoded, how many can't be, and the folder.

  Raises:
    As `train` does.
  """
  settings.check(config)
  if config.task != "dit":
    raise InputError(f"config.task is {config.task!r}: only a transformer, 'dit', trains on latents")
  here, run = epath.Path(workdir), run or Run()
  source, mesh, given = open_run(config, here, run.hosts)
  codec = get_codec(config, source, here, mesh, run, given)
  folder = here / "latents"
  extras = precompute.Extras.of(config, codec.grid(config.model.patch))
  store = precompute.encode_source(codec, source, folder, config.data.max_bad, workers, beam, run, extras)
  tokenizer = get_tokenizer(config, store, here, run.hosts)
  kept_texts(store, tokenizer, config.train.row_text, run.hosts)
  if config.train.eval_every:
    held_out.make(config, codec, tokenizer, here, mesh, run)
  return {"clips": len(store), "dropped": len(store.dropped) + len(source.dropped), "latents": os.fspath(folder)}


def open_run(
  config: Any, workdir: epath.Path, hosts: Hosts = ALONE
) -> tuple[sources.Source, jax.sharding.Mesh, Codec | None]:
  """The source and mesh of a run, and the autoencoder that it is given; claims the workdir.

  Raises:
    HostsError: the hosts differ in their config, code or data, or don't share the workdir.
  """
  mesh = sharding.make_mesh(config.mesh.to_dict())
  check_step(config, mesh, hosts.is_first)
  hosts.at("opening the data", seconds=LONG)
  source = sources.open_source(config.data, sources.seed_of(config), grid(config))
  check_clips(config, source, config.data.token_drop)
  if hosts.is_first:
    report_dropped(source)
  quarantine.stop_at(config.data.max_bad, source.dropped, len(source))
  if config.task == "dit" and config.train.eval_every:
    check_clips(config, held_out.source_of(config, grid(config)), 0.0)  # which are measured whole
  if config.data.prepared:
    precompute.prepared_key(epath.Path(config.data.prepared) / "latents")
  start = initial.find(config, workdir)
  given = given_codec(config, start, workdir / "autoencoder", hosts)
  words = epath.Path(start.run) if start and start.tokenizer else None
  words = epath.Path(config.data.prepared) if config.data.prepared else words
  tokenizer = try_tokenizer(config, source, workdir, hosts, words) if config.task == "dit" else None
  # Not before: a mistyped source, checkpoint or vocabulary must not bind the folder to it.
  open_workdir(workdir, config, source.fingerprint, hosts)
  initial.keep(start, workdir, hosts)
  if tokenizer:
    keep_tokenizer(tokenizer, source, config, workdir)
  hosts.at("preparing the autoencoder")
  return source, mesh, given


def check_step(config: Any, mesh: jax.sharding.Mesh, warns: bool = True) -> None:
  """Refuses early what would keep the step from being compiled, which may come hours of encoding later.

  Args:
    warns: of ranks that have unequal work, on stderr.

  Raises:
    ValueError: the mesh can't share the rows of a step, or its devices can't compute attention as the config says.
  """
  rows = {"train.rows": config.train.rows} if config.task == "dit" else {}
  if config.task == "autoencoder" or not (config.autoencoder.checkpoint or config.data.prepared):
    rows["autoencoder.batch"] = config.autoencoder.batch
  with jax.set_mesh(mesh):
    ranks = sharding.ways("batch")
    needed = ranks * config.train.accumulation
    if config.task == "dit":
      if config.train.ranks % ranks and warns:
        print(
          f"train.ranks={config.train.ranks} levels the work of so many, and {ranks} share a step here, each of which "
          f"waits for the slowest: set train.ranks={ranks}",
          file=sys.stderr,
        )
      attention.choose(config.model.attention, config.train.row_tokens, config.train.row_tokens)
  for name, count in rows.items():
    if count % needed:
      axes = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in sharding.AXIS_RULES["batch"])
      raise InputError(
        f"config.{name}={count} can't be shared by {axes} devices in "
        f"train.accumulation={config.train.accumulation}: make it a multiple of {needed}, or "
        f"give the devices to mesh.context or mesh.tensor"
      )


def check_clips(config: Any, source: sources.Source, drop: float) -> None:
  """Finds out before anything is encoded that a clip is longer than a row.

  Args:
    drop: the share of its tokens that a step leaves out.

  Raises:
    InputError: the longest clip, and what to change.
  """
  most, row = config.data.max_tokens, config.train.row_tokens
  worlds = "worlds:" in f"{config.data.source} {config.data.held_out}"  # which no budget shrinks
  if config.task != "dit" or (0 < most <= row and not worlds):
    return
  shapes, which_N = np.unique(sources.shapes_of(source).shape_N3, axis=0, return_inverse=True)  # few among many clips
  tokens = np.array([grid(config).tokens(*shape) for shape in shapes.tolist()])
  lengths = (tokens - (tokens * drop).astype(int))[which_N.reshape(-1)]
  must_fit("clip", lengths, row, "raise train.row_tokens, or lower data.max_tokens or data.max_frames")


def report_dropped(source: sources.Source, most: int = 20) -> None:
  """Names on stderr the files and lines of a folder that training can't use."""
  dropped = source.dropped
  for each in dropped[:most]:
    print(f"skipped {printable(each.file) or 'a line'} (line {each.line}): {printable(each.reason)}", file=sys.stderr)
  if len(dropped) > most:
    print(f"skipped {len(dropped) - most} more", file=sys.stderr)


def train_autoencoder(
  config: Any, source: sources.Source, folder: epath.Path, mesh: jax.sharding.Mesh, run: Run
) -> Summary:
  """Trains the autoencoder with the settings of `config.train`, into `folder`."""
  section = config.autoencoder
  crops = pipeline.Crops(source, section.crop, sources.seed_of(config), tuple(config.data.weights))
  task = AutoencoderTask(AutoencoderConfig.of(section), section.kl_weight, section.motion_weight, crops.probe(PROBE))
  place = reading(config, mesh)
  with contextlib.closing(pipeline.crop_batches(crops, section.batch, place)) as stream:
    batches = Batches(
      stream,
      # An autoencoder's token is a pixel; none is padding.
      tokens=lambda batch: (batch[0].size // 3 * place.shard.shard_count,) * 2,
      clips=lambda batch: [f"number {index}" for index in batch[1]],
    )
    with fitting("autoencoder.batch or autoencoder.crop", "autoencoder.remat=full"):
      start = initial.starter(initial.find(config, folder), folder, run.hosts)
      return fit(task, batches, LoopConfig.of(config, "autoencoder"), folder, mesh, meta(config), run, start)[1]


@contextlib.contextmanager
def fitting(smaller: str, remat: str) -> Iterator[None]:
  """Explains what to change where a step needs more memory than the devices have.

  Args:
    smaller: the settings that make its batch smaller.
    remat: the setting that has the backward pass compute more again, and its values.

  Raises:
    OutOfMemory: in the place of JAX's error.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise OutOfMemory(
      f"the devices have too little memory ({checkpoint.first_line(error)[:300]}): lower {smaller}, raise "
      f"train.accumulation, set {remat}, or share the model and its rows among more devices with "
      "mesh.fsdp, mesh.tensor or mesh.context; `sora plan` shows what a step needs before it runs. The last "
      "checkpoint is as it was, and what makes batches smaller needs another --workdir"
    ) from error


def get_codec(
  config: Any, source: sources.Source, workdir: epath.Path, mesh: jax.sharding.Mesh, run: Run, given: Codec | None
) -> Codec:
  """The frozen autoencoder of a transformer: `given`, which the workdir keeps, the one there, or one trained now."""
  folder, section = workdir / "autoencoder", config.autoencoder
  codec = given
  if given is not None:
    keep_codec(given, section, folder, run.hosts)
  else:
    codec = trained_codec(folder, section, run.hosts)
  if codec is None:
    train_autoencoder(autoencoder_run(config, section.steps), source, folder, mesh, run)
    codec = Codec.load(folder, section)
  codec.tile_pixels = config.sample.tile_pixels
  return codec


def given_codec(config: Any, start: initial.Initial | None, folder: epath.Path, hosts: Hosts) -> Codec | None:
  """The autoencoder that the config names, or that of the prepared workdir, or of the run it starts from: as `folder`
  keeps it, or from where it is; None where there is none.
  """
  inherited = start.run if start and start.autoencoder else None
  origin = config.autoencoder.checkpoint or config.data.prepared or inherited
  if not origin:
    return None
  path = manifest.root(folder)
  kept = lambda: path.is_dir() and bool(manifest.committed(path))
  if hosts.decide("looking for the autoencoder", kept):
    return Codec.load(folder, config.autoencoder)
  found = pretrained.located(origin)
  inside = epath.Path(found) / "autoencoder"  # of a transformer
  return Codec.load(inside if inside.is_dir() else found, config.autoencoder)


def trained_codec(folder: epath.Path, section: Any, hosts: Hosts) -> Codec | None:
  """The autoencoder in `folder` if it is trained: its last step is there and whole. Reads no data for that."""
  path = manifest.root(folder)
  finished = lambda: path.is_dir() and section.steps in manifest.committed(path)
  if not hosts.decide("looking for a trained autoencoder", finished):
    return None
  codec = Codec.load(folder, section)
  return codec if codec.step == section.steps else None


def keep_codec(codec: Codec, section: Any, folder: epath.Path, hosts: Hosts) -> None:
  """Puts the given autoencoder in the workdir, which is all that sampling needs."""
  if codec.origin is None or codec.origin[0] == os.fspath(folder):
    return
  with checkpoint.manager(folder, hosts=hosts) as steps:
    nothing = np.zeros(1, np.uint32)
    state = TrainState(codec.params, {"nothing": nothing}, codec.params, np.array(codec.step, np.int32), nothing)
    checkpoint.save(steps, state, {}, checkpoint.load_meta(codec.origin[0]), force=True)
  codec.origin = os.fspath(folder), section


def autoencoder_run(config: Any, steps: int) -> Any:
  """The config with the learning rates of the autoencoder instead of those of the transformer."""
  inner = config.copy_and_resolve_references()
  if config.task == "dit":
    inner.train.init = None  # it names a transformer to start from
  inner.task = "autoencoder"
  rate = config.autoencoder.learning_rate
  inner.train.update(steps=steps, learning_rate=rate, adam_learning_rate=rate / 10, ema_decay=0.99)
  return inner


def train_dit(
  config: Any, codec: Codec, source: sources.Source, workdir: epath.Path, mesh: jax.sharding.Mesh, run: Run
) -> Summary:
  """Encodes the source once, trains the tokenizer and the transformer."""
  run.clock.spend("data")
  run.hosts.at("preparing the transformer", seconds=math.inf)  # what hosts wait for in it has limits of its own
  extras = precompute.Extras.of(config, codec.grid(config.model.patch))
  if config.data.prepared:
    store = precompute.open_prepared(codec, source, epath.Path(config.data.prepared) / "latents", extras)
  else:
    store = precompute.encode_source(codec, source, workdir / "latents", config.data.max_bad, run=run, extras=extras)
  tokenizer = get_tokenizer(config, store, workdir, run.hosts)
  model = DiTConfig.of(config, tokenizer.vocabulary)
  texts = kept_texts(store, tokenizer, config.train.row_text, run.hosts, owned=not config.data.prepared)
  rows = packed_rows(config, store, texts, codec, model)
  generator = Generator(codec, model, None, tokenizer, config)

  def preview(params: Any) -> np.ndarray:
    generator.params = params
    picks = [(store[i], store.captions(i)["short"]) for i in np.linspace(0, len(store) - 1, 6).astype(int).tolist()]
    requests = [
      Request(caption, int(c.size_4[2]), int(c.size_4[1]), c.frames, c.size_4[3], i, loop=c.loop)
      for i, (c, caption) in enumerate(picks)
    ]
    return sheet(generator.sample(requests, Sampling.of(config)))

  kept = (held_out.make(config, codec, tokenizer, workdir, mesh, run), mesh) if config.train.eval_every else None
  task = DiTTask(model, DiffusionConfig.of(config), preview, kept)
  place = reading(config, mesh)
  every = place.shard.shard_count  # hosts, whose rows are equally full on average
  with contextlib.closing(pipeline.packed_batches(rows, place)) as stream:
    batches = Batches(
      stream,
      tokens=lambda batch: (int((batch.segments_BL > 0).sum()) * every, batch.segments_BL.size * every),
      clips=lambda batch: [store.id(int(index)) for index in batch.clip_index_BS[batch.weight_BS > 0]],
    )
    with fitting("train.rows or train.row_tokens", "model.remat=full or offload"):
      start = initial.starter(initial.find(config, workdir), workdir, run.hosts, codec)
      rates = mup.multipliers(model, config.model.base_width) if config.model.base_width else ()
      loop = LoopConfig.of(config, "transformer", rates)
      return fit(task, batches, loop, workdir, mesh, meta(config), run, start)[1]


def packed_rows(config: Any, store: LatentStore, texts: Texts, codec: Codec, model: DiTConfig) -> pipeline.PackedRows:
  """The rows that the transformer trains on, in steps of equal work for all ranks."""
  train = config.train
  blocks = jax.tree.leaves(abstract(DiT, model)[1]["blocks"])
  work = ClipFlops.of(sum(leaf.size for leaf in blocks), model.depth, model.width)
  return pipeline.PackedRows(
    store,
    texts,
    codec.grid(config.model.patch),
    RowShape.of(config),
    pipeline.Step(train.rows, train.ranks, work),
    sources.seed_of(config),
    pipeline.Shares(config.data.long_captions, conditions.Shares.of(config), config.data.token_drop),
    tuple(config.data.weights),
  )


def meta(config: Any) -> dict:
  """What a checkpoint says of itself."""
  return {
    "config": json.loads(config.to_json()),
    "config_hash": settings.digest_of(config),
    "task": config.task,
    **code(),
  }


def reading(config: Any, mesh: jax.sharding.Mesh) -> Reading:
  """How this host reads its share of the batches."""
  share = grain.sharding.ShardOptions(*sharding.batch_share(mesh))
  return Reading(share, config.data.workers, config.data.on_mismatch)
