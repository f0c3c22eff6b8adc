"""Prompting measured on held-out clips of the shapes world: are given frames kept, do joins flow, do edits obey?

Every score has its ceiling, the same measure of real clips (through the autoencoder where the autoencoder limits it),
and its chance, the same measure of clips that belong to other prompts.

Shape letters: T frames, H height, W width.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation.fidelity import psnr
from sora_jax.evaluation.marks import interval
from sora_jax.evaluation.simulation import through
from sora_jax.inference import prompting
from sora_jax.inference.conditions import Condition, Edit
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.inference.prompting import Connection, Extension
from sora_jax.worlds import shapes

EDIT_STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
SEED = 5000  # of the first clip
SAME = 2  # clips of a size, at least: each has others to be compared with


class Measure(NamedTuple):
  """One score of a report: the mean over clips with its 95 % interval, and what real and unrelated clips have."""

  mean: float | None
  low: float | None
  high: float | None
  ceiling: float | None
  chance: float | None

  @classmethod
  def of(
    cls, values: Sequence[float], ceiling: Sequence[float] | None = None, chance: Sequence[float] | None = None
  ) -> "Measure":
    """Of a value a clip; those that are not finite, which don't apply, are left out, and None is a mean of none."""
    mean = lambda each: None if each is None or np.isnan(each).all() else float(np.nanmean(each))
    there = np.asarray(values)[np.isfinite(values)].tolist()
    ends: tuple[float | None, float | None, float | None] = interval(there) if there else (None, None, None)
    return cls(*ends, mean(ceiling), mean(chance))

  def rounded(self) -> dict[str, float | None]:
    """As JSON."""
    return {
      name: None if value is None or math.isnan(value) else round(value, 4) for name, value in self._asdict().items()
    }


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is measured: a model, how it samples, and held-out clips with what comes before and after them.

  Attributes:
    source: held-out clips of one duration, those of the longest that training saw.
  """

  generator: Generator
  sampling: Sampling
  source: WorldSource

  @classmethod
  def of(cls, generator: Generator, sampling: Sampling, source: WorldSource) -> "Subject":
    """On clips of the longest duration of `source`, at so few sizes that two or more clips are of each.

    Raises:
      InputError: fewer than two clips.
    """
    if len(source) < SAME:
      raise InputError(f"{len(source)} clips: prompting is measured on {SAME} or more, give --clips {SAME}")
    shapes = source.shapes.distinct()
    longest = max(frames for frames, _, _ in shapes)
    sizes = [(height, width) for frames, height, width in shapes if frames == longest]
    same = copy.copy(source)
    same.shapes = WorldShapes.every(sizes[:: -(-len(sizes) // (len(source) // SAME))], (longest,))
    return cls(generator, sampling, same)

  @property
  def fps(self) -> float:
    return self.source.fps(0)

  @property
  def frames(self) -> int:
    return self.source.shape(0)[0]

  def __len__(self) -> int:
    return len(self.source)

  def real(self, number: int, frames: int, start: int = 0) -> np.ndarray:
    """`frames` real frames of a clip from frame `start` on, which may lie after the clip's own."""
    _, height, width = self.source.shape(number)
    state = self.source.state(number)
    return self.source.world.render(state, height, width, start + frames, self.fps)[start:]

  def prompt(self, number: int) -> str:
    return self.source.captions(number)["long"]

  def request(self, number: int, frames: int | None = None, **more: Any) -> Request:
    _, height, width = self.source.shape(number)
    return Request(self.prompt(number), width, height, frames or self.frames, self.fps, SEED + number, **more)

  def sample(self, requests: Sequence[Request]) -> list[np.ndarray]:
    return [clip.frames_THWC for clip in self.generator.sample(requests, self.sampling)]


def changes(frames_THWC: np.ndarray) -> np.ndarray:
  """Mean distance of each frame to the one before it, (T - 1,)."""
  return np.abs(np.diff(frames_THWC.astype(np.float64), axis=0)).mean((1, 2, 3))


def jump(frames_THWC: np.ndarray, join: int) -> float:
  """The change into frame `join` over the median change from frame to frame; NaN where a clip stands still."""
  each = changes(frames_THWC)
  median = float(np.median(each))
  return float(each[join - 1] / median) if median > 1e-6 else float("nan")


def unrelated(clips: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
  """The other clips of a clip's shape, the next one first."""
  others = [*clips[number + 1 :], *clips[:number]]
  return [other for other in others if other.shape == clips[number].shape]


def kept(
  subject: Subject, places: Sequence[int], made: Sequence[np.ndarray], real: list[np.ndarray]
) -> dict[str, Measure]:
  """How well conditioned frames come back in dB; chance is the same frame of another clip.

  Args:
    places: the numbers of the frames that were given, each as a condition of its own.
  """
  found, coded, chance = [], [], []
  for number, clip in enumerate(real):
    others = unrelated(real, number)
    for place in places:
      here = slice(place, place + 1)
      found.append(psnr([made[number][here]], [clip[here]]))
      coded.append(psnr(through(subject.generator.codec, [clip[here]]), [clip[here]]))
      chance.append(psnr([others[0][here]], [clip[here]]) if others else float("nan"))
  return {"conditioned_db": Measure.of(found, coded, chance), "autoencoder_db": Measure.of(coded)}


def joins(
  subject: Subject, clips: Sequence[np.ndarray], join: int, real: list[np.ndarray], made: slice
) -> dict[str, Measure]:
  """`boundary_jump` of clips at a frame; the ceiling is that of real clips, chance that of clips cut to another there.

  Args:
    made: the frames that were made. `boundary_jump_autoencoder` has the real ones coded and decoded there: what a model
      that made every latent right would have.
  """
  cut, coded = [], []
  for number, clip in enumerate(real):
    others = unrelated(real, number)
    cut.append(jump(np.concatenate([clip[:join], others[0][join:]]), join) if others else float("nan"))
    mixed = clip.copy()
    mixed[made] = through(subject.generator.codec, [clip])[0][made]
    coded.append(jump(mixed, join))
  ceiling = [jump(clip, join) for clip in real]
  return {
    "boundary_jump": Measure.of([jump(clip, join) for clip in clips], ceiling, cut),
    "boundary_jump_autoencoder": Measure.of(coded, ceiling, cut),
  }


def _given(subject: Subject, places: Sequence[int]) -> tuple[list[Request], list[np.ndarray]]:
  """Requests of clips from real frames at these places, and the real clips."""
  real = [subject.real(number, subject.frames) for number in range(len(subject))]
  at = lambda clip: tuple(Condition(clip[place : place + 1], place / subject.fps) for place in places)
  return [subject.request(number, conditions=at(clip)) for number, clip in enumerate(real)], real


def animate(subject: Subject) -> dict[str, Measure]:
  """The given frame as the model has it; the join as it is in the clip that a user gets."""
  requests, real = _given(subject, [0])
  clips = [clip.frames_THWC for clip in prompting.sampled(subject.generator, requests, subject.sampling)]
  return {**kept(subject, [0], subject.sample(requests), real), **joins(subject, clips, 1, real, slice(1, None))}


def keyframes(subject: Subject) -> dict[str, Measure]:
  """A first, a middle and a last frame at once."""
  places = [0, subject.frames // 2, subject.frames - 1]
  requests, real = _given(subject, places)
  return kept(subject, places, subject.sample(requests), real)


def extend(subject: Subject, backward: bool) -> dict[str, Measure]:
  """Clips extended by their own length; real clips of both halves are the ceiling."""
  length = subject.frames
  real = [subject.real(number, 2 * length) for number in range(len(subject))]
  given = [clip[length:] if backward else clip[:length] for clip in real]
  count = {"backward": length} if backward else {"forward": length}
  extensions = [
    Extension(clip, subject.prompt(number), subject.fps, SEED + number, **count)  # type: ignore[arg-type]
    for number, clip in enumerate(given)
  ]
  clips = [clip.frames_THWC for clip in prompting.extend(subject.generator, extensions, subject.sampling)]
  return joins(subject, clips, length, real, slice(None, length) if backward else slice(length, None))


def connect(subject: Subject) -> dict[str, Measure]:
  """From each clip into the next one of its size; both joins."""
  real = [subject.real(number, subject.frames) for number in range(len(subject))]
  pairs = [(number, others[0]) for number in range(len(real)) if (others := unrelated(real, number))]
  between = subject.frames
  ways = [Connection(real[a], second, between, subject.prompt(a), subject.fps, SEED + a) for a, second in pairs]
  clips = [clip.frames_THWC for clip in prompting.connect(subject.generator, ways, subject.sampling)]
  begin, end = subject.frames, subject.frames + between
  both = [jump(clip, join) for clip in clips for join in (begin, end)]
  straight = [subject.real(number, 2 * subject.frames + between) for number, _ in pairs]
  ceiling = [jump(clip, join) for clip in straight for join in (begin, end)]
  cut = [jump(np.concatenate([real[a], second]), subject.frames) for a, second in pairs]
  return {"boundary_jump": Measure.of(both, ceiling, cut)}


def loop(subject: Subject) -> dict[str, Measure]:
  """Clips closed to loops: the seam, the join where made frames begin, and the seam after two turns."""
  real = [subject.real(number, subject.frames) for number in range(len(subject))]
  extensions = [
    Extension(clip, subject.prompt(number), subject.fps, SEED + number, forward=_rest(subject))
    for number, clip in enumerate(real)
  ]
  closed = [clip.frames_THWC for clip in prompting.close(subject.generator, extensions, subject.sampling)]
  turns = [np.concatenate([clip, clip, clip]) for clip in closed]
  length = len(closed[0])
  cut = [jump(np.concatenate([clip, clip]), len(clip)) for clip in real]
  ceiling = [jump(subject.real(number, 2 * subject.frames), subject.frames) for number in range(len(subject))]
  measure = lambda join: Measure.of([jump(clip, join) for clip in turns], ceiling, cut)
  return {
    "boundary_jump": measure(subject.frames),
    "seam_jump": measure(length),
    "seam_jump_two_turns": measure(2 * length),
  }


def _rest(subject: Subject) -> int:
  """Frames that close a clip to a loop: as many as lead back, or about as many as it has where no loop is known."""
  most, time = prompting.longest_loop(subject.generator), subject.generator.grid.compression[0]
  return most - subject.frames if most > subject.frames else subject.frames - 2 * subject.frames % time


def loop_from_text(subject: Subject) -> dict[str, Measure]:
  """Loops of prompts, as long as a clip of the subject's there and back: the seam, and how much moves, as a share of
  what moves in a clip that is no loop.
  """
  time = subject.generator.grid.compression[0]
  length = prompting.longest_loop(subject.generator) or subject.frames // time * time
  made = subject.sample([subject.request(number, length, loop=True) for number in range(len(subject))])
  free = subject.sample([subject.request(number) for number in range(len(subject))])
  turns = [np.concatenate([clip, clip, clip]) for clip in made]
  open_ends = [jump(np.concatenate([clip, clip]), len(clip)) for clip in free]
  amplitude = lambda clip: float(np.abs(clip - clip.mean(0, keepdims=True)).mean())
  moving = [amplitude(a) / max(amplitude(b), 1e-6) for a, b in zip(made, free, strict=True)]
  real = [amplitude(subject.real(n, len(clip))) / max(amplitude(clip), 1e-6) for n, clip in enumerate(free)]
  ceiling = [jump(subject.real(number, 2 * length), length) for number in range(len(subject))]
  return {
    "seam_jump": Measure.of([jump(clip, length) for clip in turns], ceiling, open_ends),
    "seam_jump_two_turns": Measure.of([jump(clip, 2 * length) for clip in turns], ceiling, open_ends),
    "motion": Measure.of(moving, real),
  }


def backward_variety(subject: Subject, seeds: int = 3) -> dict[str, Measure]:
  """Several beginnings for one ending, a frame: their distance over that of unrelated clips; the ending must be equal.

  The ending shows the shape and the background, which beginnings share: the ceiling is the distance of real clips that
  end in the frame, from other sides.
  """
  length = subject.frames
  endings = [subject.real(number, 1) for number in range(len(subject))]
  runs = []
  for seed in range(seeds):
    extensions = [
      Extension(frame, "", subject.fps, SEED + number + 1000 * seed, backward=length - 1)
      for number, frame in enumerate(endings)
    ]
    runs.append([clip.frames_THWC for clip in prompting.extend(subject.generator, extensions, subject.sampling)])
  real = [subject.real(number, length) for number in range(len(subject))]
  distance = lambda a, b: float(np.abs(a - b).mean())
  apart = lambda clips: np.mean([distance(a, b) for number, a in enumerate(clips) for b in clips[:number]])
  ratios, ceiling, equal, equal_by_chance = [], [], [], []
  for number, clip in enumerate(real):
    others = unrelated(real, number)
    random = np.mean([distance(clip, other) for other in others]) if others else float("nan")
    ratios.append(float(apart([run[number][: length - 1] for run in runs]) / random))
    ceiling.append(float(apart([before[: length - 1] for before in _pasts(subject, number)]) / random))
    equal.append(float(all(np.array_equal(run[number][length - 1 :], endings[number]) for run in runs)))
    equal_by_chance += [float(np.array_equal(other[:1], endings[number])) for other in others[:1]]
  return {
    "beginnings_differ": Measure.of(ratios, ceiling),
    "endings_equal": Measure.of(equal, None, equal_by_chance or None),
  }


def _pasts(subject: Subject, number: int) -> list[np.ndarray]:
  """Real clips that end in the first frame of a clip: those that leave it, played backwards."""
  _, height, width = subject.source.shape(number)
  state = subject.source.state(number)
  leaving = [
    dataclasses.replace(state, direction=direction, speed=speed)
    for direction in shapes.DIRECTIONS
    for speed in shapes.SPEEDS
  ]
  return [subject.source.world.render(each, height, width, subject.frames, subject.fps)[::-1] for each in leaving]


def edit(subject: Subject) -> dict[str, Measure]:
  """SDEdit to another colour: at 0 the clip is back; at each strength, what follows the prompt and what stays."""
  real = [subject.real(number, subject.frames) for number in range(len(subject))]
  colours = list(shapes.COLOURS)
  states = [subject.source.state(number) for number in range(len(subject))]
  wanted = [
    dataclasses.replace(state, colour=colours[(colours.index(state.colour) + 2) % len(colours)]) for state in states
  ]
  prompts = [subject.source.world.caption(state, "long") for state in wanted]
  coded = through(subject.generator.codec, real)

  def edited(strength: float) -> list[np.ndarray]:
    requests = [
      dataclasses.replace(subject.request(number, edit=Edit(clip, strength)), prompt=prompts[number])
      for number, clip in enumerate(real)
    ]
    return subject.sample(requests)

  def marks(clips: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """Of each clip whether it has the new colour, and whether its shape has the size and the places of the real one."""
    follows, stays = [], []
    for clip, own, state in zip(clips, real, wanted, strict=True):
      read = subject.source.world.read(clip, subject.fps)
      follows.append(float(read["colour"] == state.colour))
      away = np.abs(shapes.locate(clip) - shapes.locate(own)).max() * min(own.shape[1:3])  # pixels
      stays.append(float(away <= token and read.get("size") == state.size))
    return follows, stays

  token = max(subject.generator.grid.compression[1:])
  db = lambda clips: [psnr([a], [b]) for a, b in zip(clips, real, strict=True)]
  found = {"returned_at_0_db": Measure.of(db(edited(0.0)), db(coded))}
  sizes = [subject.source.shape(number)[1:] for number in range(len(subject))]
  recoloured = [
    subject.source.world.render(state, *size, subject.frames, subject.fps)
    for state, size in zip(wanted, sizes, strict=True)
  ]
  ceiling = marks(through(subject.generator.codec, recoloured))
  chance = marks([unrelated(real, number)[0] for number in range(len(real))])
  for strength in EDIT_STRENGTHS:
    for name, *values in zip(
      ("follows_prompt", "stays_in_place"), marks(edited(strength)), ceiling, chance, strict=True
    ):
      found[f"{name}_{strength:g}"] = Measure.of(*values)
  return found


SUITE: dict[str, Callable[[Subject], dict[str, Any]]] = {
  "animate": animate,
  "keyframes": keyframes,
  "extend_forward": lambda subject: extend(subject, backward=False),
  "extend_backward": lambda subject: extend(subject, backward=True),
  "connect": connect,
  "loop": loop,
  "loop_from_text": loop_from_text,
  "backward_variety": backward_variety,
  "edit": edit,
}
