"""`sora evaluate`: a suite of measures of a trained model on held-out clips, as JSON."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from etils import epath
from PIL import Image

from sora_jax import sharding
from sora_jax.checkpoints.pretrained import is_pretrained
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError, path_errors
from sora_jax.evaluation import drift, features, framing, likeness, physics, prompting, simulation, sizes, worlds
from sora_jax.inference.generator import Generator, Sampling
from sora_jax.jobs import exams, held_out
from sora_jax.jobs.demo import exam_source
from sora_jax.report.plot import Line, plot
from sora_jax.runtime import storage
from sora_jax.worlds.physics import LEVELS

SUITES = ("worlds", "physics", "framing", "fidelity", "prompting")
CLIPS = {"worlds": 48, "physics": 32, "framing": 96, "fidelity": 48, "prompting": 48}
EACH = {  # what has so many
  "worlds": "of each world",
  "physics": "at each level of each world",
  "framing": "at each kind of sizes",
  "fidelity": "of each world or source",
  "prompting": "in each mode",
}
INTERVALS = dict.fromkeys(CLIPS, "95 % bootstrap intervals") | {
  "fidelity": "95 % intervals, of distances by the jackknife, of all else by the bootstrap"
}
SIZES_CLIPS = 24  # at each size, duration and rate


def evaluate(
  checkpoint: str,
  suite: str,
  clips: int | None = None,
  out: str | None = None,
  i3d: str | None = None,
  kinds: Sequence[str] | None = None,
) -> dict:
  """Runs a suite on held-out clips of the worlds that the model was trained on.

  Args:
    checkpoint: the workdir of a trained transformer.
    suite: of SUITES.
    clips: how many held-out clips, EACH says of what; those of CLIPS by default.
    out: a file for the JSON that is returned; SUITE.json in the workdir's folder of evaluations by default.
    i3d: a safetensors file of I3D's weights, for the Frechet video distance of the suite "fidelity".
    kinds: of `worlds.KINDS`, what the suite "worlds" asks with; all by default.

  Returns:
    {suite, scores: {name: {mean, low, high, ceiling, chance}}, protocol, about, step, weights_sha256, seconds, ...}.

  Raises:
    InputError: the model was trained on other clips than the suite's, or `out` can't be written.
  """
  started = time.monotonic()
  path = epath.Path(out) if out else exams.folder_of(checkpoint) / f"{suite}.json"
  with path_errors(str(path)):
    storage.check_writable(path)
  sharding.all_devices()
  with path_errors(checkpoint):
    generator = Generator.load(checkpoint)
  count = clips or CLIPS[suite]
  sampling = Sampling.of(generator.config)
  if suite == "fidelity":
    found = compare(generator, sampling, count, i3d)
  elif suite == "worlds":
    found = examine(generator, sampling, count, kinds or tuple(worlds.KINDS))
  else:
    found = {"physics": follow, "framing": frame, "prompting": prompt}[suite](generator, sampling, count)
  result = {
    "suite": suite,
    **found,
    "command": command_of(checkpoint, suite, count, kinds),
    "about": f"{count} held-out clips {EACH[suite]}, {generator.config.data.source}; {INTERVALS[suite]}",
    "step": generator.step,
    "weights_sha256": generator.digest(),
    "seconds": round(time.monotonic() - started, 1),
  }
  with path_errors(str(path)):
    storage.write_text(path, json.dumps(result, indent=1) + "\n")
    if "minute.error_by_second" in result.get("curves", {}):
      storage.write_text(path.parent / "drift.svg", drift_plot(result["curves"]))
    if suite == "physics":
      storage.write_text(path.with_suffix(".svg"), physics_plot(result["scores"]))
      with storage.written_local(path.with_suffix(".webp")) as local:
        Image.fromarray(physics.sheet(generator, sampling)).save(local, "webp", quality=80)
  return result


def command_of(checkpoint: str, suite: str, clips: int, kinds: Sequence[str] | None) -> str:
  """What makes these figures again; a workdir is named DIR, wherever it lies."""
  where = checkpoint if is_pretrained(checkpoint) else "DIR"
  asked = f" --kinds {','.join(kinds)}" if kinds else ""
  return f"sora evaluate --suite {suite} --checkpoint {where} --clips {clips}{asked}"


def drift_plot(curves: dict[str, Any]) -> str:
  """The error of clips of a minute, second by second, beside that of an unrelated clip."""
  errors = curves["minute.error_by_second"]
  seen = [(second + 0.5, error) for second, error in enumerate(errors) if error is not None]
  chance = [(x, curves["minute.chance"]) for x in (0.0, float(len(errors)))]
  lines = [Line("model", seen), Line("another clip (chance)", chance)]
  return plot("Distance from the true place, in short sides", "seconds", lines, zero=True)


def physics_plot(scores: dict[str, Any]) -> str:
  """Velocity errors by level, of each world with its interval, and what reading real clips costs; of one world alone
  also of real clips through the autoencoder and of another clip."""
  levels, of_world = list(LEVELS), list(dict.fromkeys(name.partition(".")[0] for name in scores))
  lines = []
  for world in of_world:
    rows = [(place, scores[f"{world}.{level}"]) for place, level in enumerate(levels)]
    known = [(place, row) for place, row in rows if row["mean"] is not None]
    bands = [(row["low"], row["high"]) for _, row in known]
    lines.append(Line(world, [(place, row["mean"]) for place, row in known], bands))
    others = {"ceiling": "real"}
    if len(of_world) == 1:
      others |= {"autoencoder": "autoencoder", "chance": "another clip"}
    for key, words in others.items():
      lines.append(Line(f"{world}, {words}", [(place, row[key]) for place, row in rows if row[key] is not None]))
  return plot("Velocity error, world units a second", "what is outside of training", lines, zero=True, names=levels)


def say(name: str) -> None:
  print(f"evaluate: {name}", file=sys.stderr, flush=True)


def examine(generator: Generator, sampling: Sampling, count: int, kinds: Sequence[str]) -> dict[str, Any]:
  """The exam of all worlds that the model was trained on."""
  return worlds.examine(generator, sampling, worlds.sources(generator, count), say, kinds)


def follow(generator: Generator, sampling: Sampling, count: int) -> dict[str, Any]:
  """Velocity errors of balls at each level, in world units a second; Kang et al.'s stand beside them.

  Raises:
    InputError: the model was trained on no world of balls, or on clips too short to tell.
  """
  scores = physics.examine(generator, sampling, count, say)
  given = simulation.given_frames(generator)
  return {
    "scores": scores,
    "protocol": f"{count} clips a level, {given} frames given, seed {physics.SEED}",
    "published": physics.PUBLISHED,
  }


def frame(generator: Generator, sampling: Sampling, count: int) -> dict[str, Any]:
  """Whether subjects are wholly in the frame, at training's native sizes and at squares.

  Raises:
    InputError: the model was not trained on the shapes world alone.
  """
  return framing.examine(generator, sampling, count, say) | {"protocol": f"{count} clips a kind of sizes"}


def compare(generator: Generator, sampling: Sampling, count: int, i3d: str | None) -> dict[str, Any]:
  """How like held-out clips those of the model are; videos alone, where there are any.

  Raises:
    InputError: there are no held-out clips, or the weights can't be read.
  """
  networks: dict[str, features.Features] = {"random 3-D network": features.of_random3d}
  if i3d:
    networks["I3D (FVD)"] = features.of_i3d(i3d)
  config = generator.config.copy_and_resolve_references()
  most = count * len((config.data.held_out or config.data.source).split(","))
  config.data.held_out_clips = most
  source = held_out.source_of(config, generator.grid)
  for each in getattr(source, "sources", [source]):
    if isinstance(each, WorldSource) and (videos := each.shapes.only(lambda frames: frames > 1)).usable:
      each.shapes = videos
  scores = likeness.examine(generator, sampling, source, most, networks, say)
  return {"scores": scores, "protocol": "half of the clips are asked for by caption, half compared with"}


def prompt(generator: Generator, sampling: Sampling, count: int) -> dict[str, Any]:
  """All modes of prompting, on clips of the longest duration of training; then sizes, durations and rates.

  Raises:
    InputError: the model was not trained on the shapes world alone.
  """
  if generator.config.data.source not in ("worlds:shapes", "worlds:shapes_validation"):
    raise InputError(f"the model was trained on {generator.config.data.source}: prompting is measured on worlds:shapes")
  subject = prompting.Subject.of(generator, sampling, exam_source(generator.config, count))
  scores: dict[str, dict[str, float | None]] = {}
  curves: dict[str, Any] = {}
  for name, measure in {**prompting.SUITE, **drift.SUITE}.items():
    say(name)
    for key, value in measure(subject).items():
      if isinstance(value, prompting.Measure):
        scores[f"{name}.{key}"] = value.rounded()
      else:
        curves[f"{name}.{key}"] = value
  say("sizes")
  points = sizes.points(generator.config.data, generator.grid)
  rows = sizes.examine(generator, points, sampling, min(count, SIZES_CLIPS))
  return {"scores": scores, "curves": curves, "sizes": sizes.report(rows), "protocol": f"{count} clips a mode"}
