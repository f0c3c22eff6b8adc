"""The exam of all worlds that a model was trained on: from words alone, long and short, and from first frames.

Its protocol is a hash of all that its numbers depend on besides the model: what was asked, with which seeds, how it was
sampled, and the versions of worlds and exam. Figures of unlike protocols are not compared.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import simulation
from sora_jax.inference.generator import Generator, Sampling

VERSION = 1  # raised by hand when the exam itself changes
SEED = 1000  # of held-out states; training's are drawn from the config's own seed
KINDS = ("", ", short prompt", ", frames given")


def sources(generator: Generator, clips: int) -> dict[str, WorldSource]:
  """For each world that the model was trained on, held-out clips at the training's sizes, durations and rates.

  Raises:
    InputError: it was trained on something else too.
  """
  data = generator.config.data
  names = data.source.split(",")
  if not all(name.startswith("worlds:") for name in names):
    raise InputError(f"data.source={data.source!r}: an exam reads clips of worlds back, worlds:NAME")
  section = data.copy_and_resolve_references()
  section.clips = clips
  videos = WorldShapes.of(section, generator.grid).only(lambda frames: frames > 1)
  worlds = [name.removeprefix("worlds:") for name in names]
  return {world: WorldSource.of(section, world, videos, SEED, held_out=True) for world in worlds}


def examine(
  generator: Generator,
  sampling: Sampling,
  asked: Mapping[str, WorldSource],
  progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
  """{scores: {WORLD.ATTRIBUTE and one of KINDS: figures}, marks: {the same: a mark a clip}, protocol}."""
  given = 1 + generator.grid.compression[0]  # frames of two latent ones: they tell a speed
  scores, marks = {}, {}
  for world, source in asked.items():
    for kind, style, frames in zip(KINDS, ("long", "short", "long"), (0, 0, given), strict=True):
      progress(world + kind)
      exam = simulation.examine(generator, source, sampling, SEED, style, frames)
      for score in exam.scores:
        name = f"{world}.{score.attribute}{kind}"
        scores[name] = simulation.figures(score)
        marks[name] = [round(float(mark[score.attribute]), 4) for mark in exam.marks if score.attribute in mark]
  return {"scores": scores, "marks": marks, "protocol": protocol(asked, sampling, given)}


def protocol(asked: Mapping[str, WorldSource], sampling: Sampling, given: int) -> str:
  """The sha256, 16 digits of it, of what is asked and how."""
  requests = [
    [
      world,
      source.world.version,
      style,
      [dataclasses.astuple(each) for each in simulation.requests_of(source, style, SEED)],
    ]
    for world, source in asked.items()
    for style in ("long", "short")
  ]
  text = json.dumps([VERSION, given, dataclasses.asdict(sampling), requests], default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(some: Sequence[float], others: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
  """(mean, low, high) of the second less the first, clip by clip: its 95 % bootstrap interval."""
  gap_N = np.asarray(others, np.float64) - np.asarray(some, np.float64)
  rng = np.random.default_rng(0)
  means = [gap_N[rng.integers(0, gap_N.size, gap_N.size)].mean() for _ in range(resamples)]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(gap_N.mean()), float(low), float(high)
