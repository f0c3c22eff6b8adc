"""How like real clips those of a model are: pixel by pixel where it is told the beginning, as a set where it is not.

Held-out clips are halved. Clips made from the captions of one half are compared, as a set, with the real clips of the
other: the floor is what real clips of the first half have, and one who shows no motion holds their first frames.

Shape letters: T frames, H height, W width, C colours.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.clips import Clip
from sora_jax.data.sources import Source
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import features
from sora_jax.evaluation.distances import DISTANCES, LEAST, estimate, standardised
from sora_jax.evaluation.fidelity import psnr, ssim
from sora_jax.evaluation.marks import summary
from sora_jax.evaluation.simulation import given_frames, held_from, through
from sora_jax.inference import prompting
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Generator, Request, Sampling

SEED = 6000  # of the first clip that is made
Scores = dict[str, dict[str, float | None]]
PAIRED = {"psnr_db": lambda found, wanted: psnr([found], [wanted]), "ssim": ssim}


def examine(
  generator: Generator,
  sampling: Sampling,
  source: Source,
  most: int,
  networks: Mapping[str, features.Features],
  progress: Callable[[str], None] = lambda name: None,
) -> Scores:
  """{MEASURE: figures}: `reconstruction` and `prediction` by PSNR in dB and SSIM, then distances by each features.

  Of pairs {mean, low, high} and, of predictions, `ceiling`, the autoencoder's, and `trivial`, the last given frame
  held. Of distances {mean, low, high, floor, autoencoder, trivial}: of clips made from captions, of other real clips,
  of those through the autoencoder, and of their first frames held. Features of worlds are standardised by real clips.

  Args:
    source: held-out clips, six or more.
    most: how many of them are taken, evenly spread.
    networks: features by name, besides the states of worlds.

  Raises:
    InputError: there are fewer clips.
  """
  picked = sorted(set(np.linspace(0, len(source) - 1, min(len(source), most)).round().astype(int).tolist()))
  if len(picked) < 2 * LEAST:
    raise InputError(f"{len(picked)} held-out clips: sets of {LEAST} or more are compared, give --clips {2 * LEAST}")
  # In an order by chance: by number shapes take turns, and even and odd clips would have others.
  picked = np.random.default_rng(SEED).permutation(picked).tolist()
  real = [source[index] for index in picked]
  frames = [clip.frames_THWC for clip in real]
  requests = [
    Request(source.captions(index)["long"], *_size(clip.frames_THWC), clip.fps, SEED + index)
    for index, clip in zip(picked, real, strict=True)
  ]
  progress("reconstruction")
  coded = through(generator.codec, frames)
  scores = {f"reconstruction.{name}": summary(values) for name, values in _paired(coded, frames).items()}
  progress("prediction")
  scores |= predicted(generator, sampling, requests, frames, coded)
  progress("clips from captions")
  sets = {
    "mean": [clip.frames_THWC for clip in prompting.clips(generator, requests[::2], sampling)],
    "floor": frames[::2],
    "autoencoder": coded[::2],
    "trivial": [held_from(clip, 1) for clip in frames[::2]],
  }
  for name, network in networks.items():
    progress(name)
    scores |= distances(name, network(frames[1::2]), {kind: network(clips) for kind, clips in sets.items()})
  for world, members in _worlds(source):
    progress(f"states of {world.name}")
    mine = [place for place, index in enumerate(picked) if index in members]
    scores |= of_states(world, real, mine, sets)
  return scores


def of_states(world: Any, real: Sequence[Clip], places: Sequence[int], sets: Mapping[str, list[np.ndarray]]) -> Scores:
  """Distances by what a world's examiner reads in its clips, which stand at `places`; nothing of too few."""
  first, second = ([place for place in places if place % 2 == half] for half in (0, 1))
  if min(len(first), len(second)) < LEAST:
    return {}
  rates = lambda places: [real[place].fps for place in places]
  read = lambda clips, places: features.of_states(world, clips, rates(places))
  others = read([real[place].frames_THWC for place in second], second)
  some = [read([clips[place // 2] for place in first], first) for clips in sets.values()]
  reference, *found = standardised(others, *some)
  return distances(f"states of {world.name}", reference, dict(zip(sets, found, strict=True)))


def predicted(
  generator: Generator,
  sampling: Sampling,
  requests: Sequence[Request],
  frames: Sequence[np.ndarray],
  coded: Sequence[np.ndarray],
) -> Scores:
  """Of the frames that follow the given ones, of clips that are long enough; nothing where none is."""
  given = given_frames(generator)
  long = [index for index, clip in enumerate(frames) if len(clip) > given]
  if not long:
    return {}
  asked = [dataclasses.replace(requests[index], conditions=(Condition(frames[index][:given]),)) for index in long]
  made = [clip.frames_THWC for clip in prompting.clips(generator, asked, sampling)]
  rest = lambda clips: [clip[given:] for clip in clips]
  wanted = rest([frames[index] for index in long])
  rows = {
    "mean": _paired(rest(made), wanted),
    "ceiling": _paired(rest([coded[index] for index in long]), wanted),
    "trivial": _paired(rest([held_from(frames[index], given) for index in long]), wanted),
  }
  return {
    f"prediction.{name}": summary(values)
    | {kind: round(float(np.mean(rows[kind][name])), 4) for kind in ("ceiling", "trivial")}
    for name, values in rows["mean"].items()
  }


def distances(name: str, reference_MD: np.ndarray, sets: Mapping[str, np.ndarray]) -> Scores:
  """Each distance of each set from the reference; the interval is that of the set "mean"."""
  scores: Scores = {}
  for kind, distance in DISTANCES.items():
    found = estimate(distance, sets["mean"], reference_MD)
    row: dict[str, float | None] = {"mean": found.value, "low": found.low, "high": found.high}
    row |= {other: distance(each, reference_MD) for other, each in sets.items() if other != "mean"}
    scores[f"{name}.{kind}"] = {key: float(f"{value:.5g}") for key, value in row.items() if value is not None}
  return scores


def _paired(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, list[float]]:
  return {name: [float(measure(a, b)) for a, b in zip(found, wanted, strict=True)] for name, measure in PAIRED.items()}


def _size(frames_THWC: np.ndarray) -> tuple[int, int, int]:
  """(width, height, frames), as a request has them."""
  frames, height, width, _ = frames_THWC.shape
  return width, height, frames


def _worlds(source: Any) -> list[tuple[Any, range]]:
  """Each world among the source's components, and the numbers of its clips."""
  found, start = [], 0
  for each in getattr(source, "sources", [source]):
    if isinstance(each, WorldSource):
      found.append((each.world, range(start, start + len(each))))
    start += len(each)
  return found
