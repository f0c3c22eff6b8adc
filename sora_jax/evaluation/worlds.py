"""The exam of all worlds that a model was trained on: from words alone, long and short, and from first frames.

Its protocol is a hash of all that its numbers depend on besides the model: what was asked, with which seeds, how it was
sampled, and the versions of worlds and exam. Figures of unlike protocols are not compared.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import simulation
from sora_jax.evaluation.marks import interval, summary
from sora_jax.inference.generator import Generator, Sampling

VERSION = 2  # raised by hand when the exam itself changes
SEED = 1000  # of held-out states; training's are drawn from the config's own seed
# What a model is asked with: what stands behind an attribute's name, the caption's style, whether frames are given.
KINDS = {
  "long": ("", "long", False),
  "short": (", short prompt", "short", False),
  "given": (", frames given", "long", True),
}


def sources(generator: Generator, clips: int) -> dict[str, WorldSource]:
  """For each world that the model was trained on, held-out clips at the training's sizes, durations and rates;
  images are left out where there are videos.

  Raises:
    InputError: it was trained on something else too.
  """
  data = generator.config.data
  names = names_of(data)
  if not all(name.startswith("worlds:") for name in names):
    raise InputError(f"data.source={data.source!r}: an exam reads clips of worlds back, worlds:NAME")
  section = data.copy_and_resolve_references()
  section.clips = clips
  every = WorldShapes.of(section, generator.grid)
  videos = every.only(lambda frames: frames > 1)
  videos = (videos if videos.usable else every).spread(clips)
  worlds = [name.removeprefix("worlds:") for name in names]
  return {world: WorldSource.of(section, world, videos, SEED, held_out=True) for world in worlds}


def examine(
  generator: Generator,
  sampling: Sampling,
  asked: Mapping[str, WorldSource],
  progress: Callable[[str], None] = lambda name: None,
  kinds: Sequence[str] = tuple(KINDS),
) -> dict[str, Any]:
  """{scores: {WORLD.ATTRIBUTE and its kind: figures}, marks: {the same: a mark a clip, or None},
  errors: {WORLD.NAME and its kind: `simulation.medians`}, protocol}.

  Args:
    kinds: of KINDS; the others are left out.
  """
  given = simulation.given_frames(generator)
  scores, marks = {}, {}
  errors: dict[str, dict[str, float | None]] = {}
  for world, source in asked.items():
    for kind, style, is_given in (KINDS[each] for each in kinds):
      frames = given if is_given else 0
      clips = longer(source, frames)
      if clips is None:
        continue
      progress(world + kind)
      exam = simulation.examine(generator, clips, sampling, SEED, style, frames)
      for score in exam.scores:
        name = f"{world}.{score.attribute}{kind}"
        scores[name] = simulation.figures(score)
        marks[name] = [mark.get(score.attribute) for mark in exam.marks]
      errors |= {f"{world}.{name}{kind}": medians for name, medians in exam.errors.items()}
  return {"scores": scores, "marks": marks, "errors": errors, "protocol": protocol(asked, sampling, given)}


def longer(source: WorldSource, frames: int) -> WorldSource | None:
  """The source with as many clips of the durations above `frames` alone; None where it has none."""
  shapes = source.shapes.only(lambda duration: duration > frames)
  if not shapes.usable:
    return None
  found = copy.copy(source)
  found.shapes = shapes
  return found


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


def means(exam: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """{WORLD: {mean, low, high, ceiling, autoencoder, chance}} of long prompts, of what `examine` returned.

  A clip's mark is the mean of the attributes that apply to it. Ceiling, autoencoder and chance, which are known by
  attribute, weigh each attribute as much as these clips do.
  """
  names = [name for name in exam["scores"] if "," not in name]
  found = {}
  for world, group in itertools.groupby(sorted(names), key=lambda name: name.partition(".")[0]):
    mine = list(group)
    marks_AN = np.array([[np.nan if mark is None else mark for mark in exam["marks"][name]] for name in mine])
    applies_AN = ~np.isnan(marks_AN)
    marks_AN, applies_AN = marks_AN[:, applies_AN.any(0)], applies_AN[:, applies_AN.any(0)]
    weight_A = (applies_AN / applies_AN.sum(0)).mean(1)
    others: dict[str, float | None] = {}
    for kind in ("ceiling", "autoencoder", "chance"):
      values_A = np.array([exam["scores"][name][kind] for name in mine], np.float64)  # None becomes NaN
      known_A = ~np.isnan(values_A)
      mean = np.average(values_A[known_A], weights=weight_A[known_A]) if known_A.any() else None
      others[kind] = None if mean is None else round(float(mean), 4)
    found[world] = summary(np.nanmean(marks_AN, 0).tolist()) | others
  return found


def difference(
  some: Sequence[float | None], others: Sequence[float | None], resamples: int = 2000
) -> tuple[float, float, float]:
  """(mean, low, high) of the second less the first over the clips that both have: its 95 % bootstrap interval.

  Raises:
    ValueError: there are no such clips, or the two are of different lengths.
  """
  gaps = [b - a for a, b in zip(some, others, strict=True) if a is not None and b is not None]
  return interval(gaps, resamples)
