"""`sora evaluate`: a suite of measures of a trained model on held-out clips, as JSON."""

import json
import pathlib
import sys
import time
from typing import Any

from sora_jax import sharding
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError, path_errors
from sora_jax.evaluation import prompting, simulation
from sora_jax.inference.generator import Generator, Sampling
from sora_jax.jobs.demo import EXAM_SEED, exam_source

SUITES = ("worlds", "prompting")
CLIPS = {"worlds": 192, "prompting": 48}


def evaluate(checkpoint: str, suite: str, clips: int | None = None, out: str | None = None) -> dict:
  """Runs a suite on the held-out clips of the world that the model was trained on.

  Args:
    checkpoint: the workdir of a trained transformer.
    suite: of SUITES.
    clips: how many held-out clips; those of CLIPS by default.
    out: a file for the JSON that is returned.

  Returns:
    {suite, scores: {name: {mean, low, high, ceiling, chance}}, protocol, ...}.

  Raises:
    InputError: the model was not trained on the shapes world, or `out` can't be written.
  """
  started = time.monotonic()
  sharding.all_devices()
  with path_errors(checkpoint):
    generator = Generator.load(checkpoint)
  if not generator.config.data.source.startswith("worlds:shapes"):
    raise InputError(f"{checkpoint} was trained on {generator.config.data.source}: the suites examine worlds:shapes")
  count = clips or CLIPS[suite]
  source = exam_source(generator.config, count)
  run = {"worlds": worlds, "prompting": prompt}[suite]
  found = run(generator, Sampling.of(generator.config), source)
  result = {
    "suite": suite,
    **found,
    "protocol": f"{count} held-out clips of {source.world.name}; 95 % bootstrap intervals; step {generator.step}",
    "weights_sha256": generator.digest(),
    "seconds": round(time.monotonic() - started, 1),
  }
  if out:
    with path_errors(out):
      path = pathlib.Path(out)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(json.dumps(result, indent=1) + "\n")
  return result


def worlds(generator: Generator, sampling: Sampling, source: WorldSource) -> dict[str, Any]:
  """The simulation exam, with long prompts and with short ones."""
  scores = {}
  for style, mark in (("long", ""), ("short", ", short prompt")):
    for score in simulation.examine(generator, source, sampling, EXAM_SEED, style).scores:
      numbers = (score.mean, score.low, score.high, score.ceiling, score.chance)
      names = ("mean", "low", "high", "ceiling", "chance")
      scores[f"{score.attribute}{mark}"] = {n: round(float(x), 4) for n, x in zip(names, numbers, strict=True)}
  return {"scores": scores}


def prompt(generator: Generator, sampling: Sampling, source: WorldSource) -> dict[str, Any]:
  """All modes of prompting, on clips of the longest duration of training."""
  subject = prompting.Subject.of(generator, sampling, source)
  scores: dict[str, dict[str, float | None]] = {}
  curves: dict[str, Any] = {}
  for name, measure in prompting.SUITE.items():
    print(f"evaluate: {name}", file=sys.stderr, flush=True)
    for key, value in measure(subject).items():
      if isinstance(value, prompting.Measure):
        scores[f"{name}.{key}"] = value.rounded()
      else:
        curves[f"{name}.{key}"] = value
  return {"scores": scores, "curves": curves}
