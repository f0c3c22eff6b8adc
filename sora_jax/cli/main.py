"""The `sora` command: one thin function a subcommand. Imported by nobody.

Progress and warnings go to stderr. With --json the last line on stdout is one JSON object. An error is one line on
stderr that says what is wrong and what to do, and a non-zero exit status.
"""

import contextlib
import difflib
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from sora_jax.errors import InputError
from sora_jax.runtime import hosts, preemption, process
from sora_jax.runtime.run import Run

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file("config", None, "train: a config file, say configs/demo.py", lock_config=True)
flags.DEFINE_string("workdir", None, "train: the folder of the run; the same command takes it up again")
flags.DEFINE_string("checkpoint", None, "sample, animate: the workdir of a trained transformer")
flags.DEFINE_multi_string("prompt", None, "sample, animate: what the clip shows; repeat it for more clips")
flags.DEFINE_string("size", None, "sample: WIDTHxHEIGHT in pixels")
flags.DEFINE_integer("frames", None, "sample, animate: frames; 1 is an image")
flags.DEFINE_float("fps", None, "sample, animate: frames per second")
flags.DEFINE_integer("seed", 0, "sample, animate: the same seed makes the same clip")
flags.DEFINE_string("out", None, "sample, animate: the file (mp4, gif, webp, png); demo, data show|build: the folder")
flags.DEFINE_string("image", None, "animate: the first frame")
flags.DEFINE_string("from", None, "sample: the .json beside a clip; makes that clip again")
flags.DEFINE_integer("sample_steps", None, "sample, animate: steps of the sampler")
flags.DEFINE_enum("method", None, ["euler", "heun"], "sample, animate: the sampler")
flags.DEFINE_float("guidance", None, "sample, animate: how strongly the prompt steers; 1 is not at all")
flags.DEFINE_bool("first_frame", None, "sample: make the first frame as an image, then animate it")
flags.DEFINE_integer("step", None, "sample, checkpoint: which step; the newest by default")
flags.DEFINE_enum("item", "ema", ["ema", "params"], "checkpoint export: the averaged weights, or the last ones")
flags.DEFINE_integer("workers", 0, "data build, precompute: processes; 0 does the work in this one", lower_bound=0)
flags.DEFINE_multi_string(
  "beam", None, "data build, precompute: an option of an Apache Beam pipeline that does the work"
)
flags.DEFINE_float("min_seconds", 0.5, "data build: a video's shorter scenes are dropped", lower_bound=0.0)
flags.DEFINE_integer("min_side", 1, "data build: clips with a shorter side of fewer pixels are dropped", lower_bound=1)
flags.DEFINE_float("min_motion", 0.0, "data build: videos that change less from frame to frame, of 1, are dropped")
flags.DEFINE_bool("dedup", True, "data build: of clips that show the same, keep one")
flags.DEFINE_bool("cut", True, "data build: cut videos into scenes")
flags.DEFINE_integer("shard_clips", 256, "data build: clips a shard", lower_bound=1)
flags.DEFINE_string("topology", None, "plan: the chips, v5p:4x4x4 or v5p-128; this machine's devices by default")
flags.DEFINE_float("price", None, "plan: US dollars of a chip an hour; the list price by default", lower_bound=0.0)
flags.DEFINE_float("tokens", None, "plan: tokens to train on; those of the config's steps by default", lower_bound=0.0)
flags.DEFINE_bool("json", False, "print one JSON object as the last line")

USAGE = """usage: sora COMMAND [flags]

  demo        [--out DIR]                               worlds -> autoencoder -> transformer -> clips -> one page
  train       --config FILE --workdir DIR               train, or take a run up again; --config.KEY=VALUE sets a value
  sample      --checkpoint DIR --prompt P --size WxH --frames N --fps F --seed S --out X.mp4
  sample      --from X.json [--out Y.mp4]               the same clip again
  animate     --checkpoint DIR --image I --prompt P --frames N --fps F --out X.mp4
  precompute  --config FILE --workdir DIR               what train does before its first step
                                                        [--workers N] or [--beam=--runner=... ...]
  data        check SRC                                 what a source gives to training, and what is lost
  data        show SRC --out DIR [--config FILE]        a page of its clips as a model sees them
  data        build SRC --out DIR                       shards of its clips: cut, filtered, each once; taken up again
                                                        [--workers N] or [--beam=--runner=... ...]
  checkpoint  list DIR                                  what a run has saved
  checkpoint  verify DIR [--step N]                     whether every file is still as it was written
  checkpoint  digest DIR [--step N]                     the sha256 of each part of a step
  checkpoint  export DIR --out F [--step N]             the averaged weights as safetensors; --item=params: the last
  checkpoint  pin|unpin DIR --step N                    keep a step for ever, or no longer
  plan        --config FILE [--topology v5p-128]        memory, time and money of a run, before it; no TPU is needed
                                                        [--price DOLLARS] [--tokens N]
  doctor                                                versions and devices

every command takes --json"""


class UsageError(InputError):
  """The command line is incomplete; the message says what is missing."""


def main() -> None:
  """The console entry point."""
  process.restart_with_large_pages()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  logging.set_verbosity(logging.ERROR)
  process.keep_freed_memory()
  process.compile_sooner()
  if len(sys.argv) < 2 or sys.argv[1] in ("help", "-h", "--help"):
    print(USAGE)
    sys.exit(0 if len(sys.argv) > 1 else 2)
  # The config's own overrides (--config.a.b=v) are read by absl when it parses the flags.
  with _one_line_errors():
    app.run(_run, flags_parser=lambda argv: FLAGS(argv))


def _run(argv: list[str]) -> None:
  if argv[1] not in COMMANDS:
    nearest = difflib.get_close_matches(argv[1], COMMANDS, n=1, cutoff=0.0)[0]
    raise UsageError(f"unknown command {argv[1]!r}: did you mean {nearest!r}? `sora help` lists them")
  with _one_line_errors():
    result = COMMANDS[argv[1]](argv[2:])
  if FLAGS.json:
    print(json.dumps(result))
  else:
    print("\n".join(f"{name}: {value}" for name, value in result.items()))


@contextlib.contextmanager
def _one_line_errors():
  """Turns the errors that a user can cause into one line and exit status 1 (2 for a wrong command line).

  A preempted run ends with one line and preemption.REQUEUE.
  """
  try:
    yield
  except preemption.Preempted as error:
    preemption.ignore()  # a second signal, while Python cleans up
    _fail(error, preemption.REQUEUE)
  except (flags.Error, UsageError) as error:
    _fail(error, 2)
  except (AttributeError, KeyError, TypeError) as error:
    # A locked config says so when a key is unknown; any other error of these kinds is a bug and keeps its traceback.
    if "Did you mean" not in str(error) and "config" not in str(error).lower():
      raise
    _fail(error, 2)
  except (ValueError, OSError, RuntimeError) as error:
    if os.environ.get("SORA_TRACEBACK"):
      raise
    _fail(error, 1)


def _fail(error: BaseException, status: int) -> None:
  text = error.args[0] if isinstance(error, KeyError) and error.args else error  # which would come in quotes
  message = " ".join(str(text).split())
  print(f"sora: {message or type(error).__name__}", file=sys.stderr)
  sys.exit(status)


def _need(command: str, **given: Any) -> None:
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if missing:
    raise UsageError(f"sora {command} needs {' and '.join(missing)}")


def train(_: list[str]) -> dict:
  _need("train", config=FLAGS.config, workdir=FLAGS.workdir)
  asked = preemption.Preemption()
  asked.listen()
  process.keep_compiled(os.path.join(FLAGS.workdir, "compiled"))
  with hosts.joined(asked) as group:  # before JAX does anything else
    with process.importing():
      from sora_jax.jobs import train

    summary = train.train(FLAGS.config, FLAGS.workdir, Run(group, asked, started=process.started()))
  fields = ("step", "loss", "steps_run", "resumed_from", "seconds", "useful_tokens", "tokens_per_second", "goodput")
  return {name: getattr(summary, name) for name in fields}


def sample(_: list[str]) -> dict:
  origin = FLAGS["from"].value
  if origin is not None:
    process.keep_compiled(process.trusted_programs())
    from sora_jax.jobs import sample

    return sample.again(origin, FLAGS.out)
  _need(
    "sample",
    checkpoint=FLAGS.checkpoint,
    prompt=FLAGS.prompt,
    size=FLAGS.size,
    frames=FLAGS.frames,
    out=FLAGS.out,
  )
  return _make(FLAGS.size, None)


def animate(_: list[str]) -> dict:
  _need("animate", checkpoint=FLAGS.checkpoint, image=FLAGS.image, frames=FLAGS.frames, out=FLAGS.out)
  return _make(FLAGS.size, FLAGS.image)


def _make(size: str | None, image: str | None) -> dict:
  """Samples every prompt, packed together, and writes the clips with their sidecars."""
  process.keep_compiled(process.trusted_programs(FLAGS.checkpoint))
  with process.importing():
    from sora_jax.jobs import sample

  order = sample.Order(
    checkpoint=FLAGS.checkpoint,
    prompts=tuple(FLAGS.prompt or [""]),
    size=size,
    frames=FLAGS.frames,
    fps=FLAGS.fps,
    seed=FLAGS.seed,
    out=FLAGS.out,
    image=image,
    step=FLAGS.step,
    overrides={
      "steps": FLAGS.sample_steps,
      "method": FLAGS.method,
      "guidance": FLAGS.guidance,
      "first_frame": FLAGS.first_frame,
    },
  )
  return sample.make(order)


def checkpoint(words: list[str]) -> dict:
  from sora_jax.checkpoints import checkpoint as checkpoints
  from sora_jax.checkpoints import export, manifest

  actions = ("list", "verify", "digest", "export", "pin", "unpin")
  if len(words) != 2 or words[0] not in actions:
    raise UsageError(f"usage: sora checkpoint {'|'.join(actions)} DIR [--step N] [--out F]")
  action, folder = words
  if action == "digest":
    return checkpoints.digest(folder, FLAGS.step)
  if action == "export":
    _need("checkpoint export", out=FLAGS.out)
    return export.export(folder, FLAGS.out, FLAGS.step, FLAGS.item)
  if action in ("pin", "unpin"):
    _need(f"checkpoint {action}", step=FLAGS.step)
    return manifest.pin(folder, FLAGS.step, action == "pin")
  if action == "verify":
    return _checkpoint_verify(manifest.verify(folder, FLAGS.step), folder)
  found = manifest.listing(folder)
  if FLAGS.json:
    return found
  for row in found["checkpoints"]:
    about = [f"{row['bytes']:,} bytes", row["saved_at"], row["state"], "pinned" if row["pinned"] else None]
    print(f"step {row['step']}: {', '.join(filter(None, about))}")
  return {"steps": found["steps"]} | ({"not_used": found["not_used"]} if found["not_used"] else {})


def _checkpoint_verify(found: dict, folder: str) -> dict:
  for step in found["unchecked"]:
    print(f"step {step} has no manifest to be checked against", file=sys.stderr)
  for fault in found["faults"]:
    print(fault, file=sys.stderr)
  if found["faults"] or found["unchecked"] == [FLAGS.step]:
    if FLAGS.json:
      print(json.dumps(found))
    raise InputError(f"{folder}: {len(found['faults'])} damaged files" if found["faults"] else "nothing was checked")
  return found


def precompute(_: list[str]) -> dict:
  asked = preemption.Preemption()
  asked.listen()
  from sora_jax.jobs import train

  _need("precompute", config=FLAGS.config, workdir=FLAGS.workdir)
  return train.prepare(FLAGS.config, FLAGS.workdir, FLAGS.workers, FLAGS.beam, Run(preemption=asked))


def data(words: list[str]) -> dict:
  actions = {"check": _data_check, "show": _data_show, "build": _data_build}
  if len(words) != 2 or words[0] not in actions:
    raise UsageError("usage: sora data check|show|build SRC; SRC is a folder, worlds:NAME or tfds:NAME@SPLIT")
  return actions[words[0]](words[1])


def _data_check(name: str) -> dict:
  from sora_jax.curation import check

  found = check.check(name, FLAGS.config)
  _name_dropped(found["dropped"])
  if not found["kept"]:
    if FLAGS.json:
      print(json.dumps(found))
    raise InputError(f"{name}: nothing usable in {found['clips']} lines and files")
  return found


def _data_show(name: str) -> dict:
  from sora_jax.data import sources
  from sora_jax.jobs import train
  from sora_jax.models import autoencoder
  from sora_jax.report import data_page

  _need("data show", out=FLAGS.out)
  page = os.path.join(FLAGS.out, "index.html")
  if FLAGS.config is None:
    return data_page.show(sources.open_native(name), name, page)
  config = FLAGS.config.copy_and_resolve_references()
  config.data.update(source=name, weights=())
  source = sources.open_source(config.data, config.seed, train.budget(config))
  return data_page.show(source, name, page, autoencoder.grid(config).tokens)


def _data_build(name: str) -> dict:
  import dataclasses

  from sora_jax.curation import build
  from sora_jax.data import sources

  _need("data build", out=FLAGS.out)
  given: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(build.Settings)}
  found = build.build(sources.open_native(name), FLAGS.out, build.Settings(**given), FLAGS.workers, FLAGS.beam)
  _name_dropped(found["dropped"])
  return found


def _name_dropped(dropped: list[dict]) -> None:
  from sora_jax.data.files import printable

  for each in dropped:
    where = f"line {each['line']}" if each["line"] else "no line"
    print(f"dropped {printable(each['file']) or 'a line'} ({where}): {each['reason']}", file=sys.stderr)


def plan(_: list[str]) -> dict:
  from sora_jax.plan import plan as planning

  _need("plan", config=FLAGS.config)
  return planning.plan(FLAGS.config, FLAGS.topology, FLAGS.price, FLAGS.tokens)


def doctor(_: list[str]) -> dict:
  import importlib.metadata

  import av
  import jax

  names = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "ml-collections",
    "numpy",
    "av",
  )
  return {
    "python": sys.version.split()[0],
    "versions": {name: importlib.metadata.version(name) for name in names},
    "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
    "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
    "processes": jax.process_count(),
    "allocator": process.allocator(),
  }


def demo(_: list[str]) -> dict:
  from sora_jax.jobs import demo as demonstration

  return demonstration.run(pathlib.Path(FLAGS.out or "out/demo"))


COMMANDS: dict[str, Callable[[list[str]], dict]] = {
  "demo": demo,
  "train": train,
  "sample": sample,
  "animate": animate,
  "precompute": precompute,
  "data": data,
  "checkpoint": checkpoint,
  "plan": plan,
  "doctor": doctor,
}


if __name__ == "__main__":
  main()
