"""`sora demo`: worlds -> autoencoder -> transformer -> clips -> exam -> one page that opens from disk.

Every figure on the page and in the JSON is measured here, on clips whose attribute combinations training never saw.
"""

import dataclasses
import pathlib
import platform
import runpy
import sys
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from sora_jax import __version__
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.data.world_source import WorldSource
from sora_jax.errors import InputError
from sora_jax.evaluation import fidelity, simulation, worlds
from sora_jax.inference.codec import Codec
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Generator, Request, Sampling, sheet
from sora_jax.jobs import train as training
from sora_jax.models.autoencoder import AutoencoderConfig, grid
from sora_jax.report import demo_page
from sora_jax.runtime import goodput, process
from sora_jax.train.metrics import read_metrics
from sora_jax.video import io as video_io

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "demo.py"
EXAM_SEED = 1000  # of held-out states; training states are drawn from the config's own seed
EXAM_CLIPS = 192  # prompted with long captions; half as many again with short ones
SHOWN = 12  # clips of the exam that the page shows
PRETRAINED = "pretrained:worlds"
PRETRAINED_SHAPES = WorldShapes.every([(96, 96)], [17])
ATTRIBUTES = ("colour", "shape", "direction")  # the ones that the JSON reports: those that both captions name


def get_config() -> Any:
  """The demo's config.

  Raises:
    InputError: this is no checkout.
  """
  if not CONFIG.is_file():
    raise InputError(f"{CONFIG} is missing: run the demo from a checkout (pip install -e .)")
  return runpy.run_path(str(CONFIG))["get_config"]()


def run(out: pathlib.Path, config: Any = None) -> dict:
  """Trains, samples, examines and writes the page; a stopped demo goes on where it was.

  Args:
    config: of a world's transformer; the demo's own by default.

  Returns:
    The JSON of `sora demo --json`.
  """
  config = get_config() if config is None else config
  training.train(config, out / "run")
  trained, started = goodput.read(out / "run" / "logs")["wall_seconds"], time.monotonic()  # in all starts
  log = read_metrics(out / "run" / "logs")  # not the summary: that is of this process alone
  generator = Generator.load(out / "run")
  sampling = Sampling.of(config)
  say("sampling clips of held-out combinations")
  held_out = exam_source(config, EXAM_CLIPS)
  exam = simulation.examine(generator, held_out, sampling, EXAM_SEED)
  short = simulation.examine(generator, exam_source(config, EXAM_CLIPS // 2), sampling, EXAM_SEED, "short")
  ours, linear = reconstruction(config, generator.codec)
  sections = make_sections(generator, held_out, exam, sampling)
  say(f"sampling clips of {PRETRAINED}")
  sections.append(pretrained_section())
  write_clips(out / "clips", sections)
  page = out / "index.html"
  scores, short_scores = reported(exam), reported(short)
  result = {
    "seconds": round(trained + time.monotonic() - started, 1),
    "peak_rss_gb": round(process.peak_memory() / 2**30, 3),
    "psnr_db": round(ours, 2),
    "psnr_linear_db": round(linear, 2),
    "alignment": {name: round(score.mean, 4) for name, score in scores.items()},
    "alignment_short_captions": {name: round(score.mean, 4) for name, score in short_scores.items()},
    "ceiling": {name: round(score.ceiling, 4) for name, score in scores.items()},
    "through_autoencoder": {name: round(score.autoencoder, 4) for name, score in scores.items()},
    "chance": {name: round(score.chance, 4) for name, score in scores.items()},
    "useful_tokens": round(1 - log[-1]["padding"], 4),
    "tokens_per_second": round(float(np.median([row["tokens_per_second"] for row in log])), 1),
    "page": str(page.absolute()),
  }
  write_report(page, config, result, exam, short, sections, out / "run")
  say(f"open {page.absolute()}")
  return result


def say(text: str) -> None:
  print(f"demo: {text}", file=sys.stderr, flush=True)


def reported(exam: simulation.Exam) -> dict[str, simulation.Score]:
  """The scores that the JSON names, by attribute."""
  return {score.attribute: score for score in exam.scores if score.attribute in ATTRIBUTES}


def exam_source(config: Any, count: int) -> WorldSource:
  """`count` clips of held-out combinations at the training sizes and durations, images left out."""
  return open_world(config, count, world_shapes(config).only(lambda frames: frames > 1), EXAM_SEED, held_out=True)


def world_shapes(config: Any) -> WorldShapes:
  """The sizes and durations of training."""
  return WorldShapes.of(config.data, grid(config))


def open_world(config: Any, count: int, shapes: WorldShapes, seed: int, held_out: bool = False) -> WorldSource:
  """`count` clips of the config's world at its rates."""
  section = config.data.copy_and_resolve_references()
  section.clips = count
  return WorldSource.of(section, section.source.removeprefix("worlds:"), shapes, seed, held_out)


def reconstruction(config: Any, codec: Codec) -> tuple[float, float]:
  """PSNR in dB on held-out clips: the autoencoder, and the best linear code of the same blocks and the same size."""
  shapes = world_shapes(config)
  most = max(frames for frames, _, _ in shapes.distinct())
  longest = shapes.only(lambda frames: frames == most)
  held_out = open_world(config, 96, longest, EXAM_SEED + 1, held_out=True)
  training_clips = open_world(config, 600, longest, config.seed)
  wanted = [held_out[i].frames_THWC for i in range(len(held_out))]
  section = AutoencoderConfig.of(config.autoencoder)
  linear = fidelity.LinearCode(
    [training_clips[i].frames_THWC for i in range(len(training_clips))], section.compression, section.channels
  )
  return (
    fidelity.psnr(simulation.through(codec, wanted), wanted),
    fidelity.psnr([linear(clip) for clip in wanted], wanted),
  )


def make_sections(
  generator: Generator, source: WorldSource, exam: simulation.Exam, sampling: Sampling
) -> list[demo_page.Section]:
  """What the page shows: exam clips at three aspect ratios, images, and an image brought to life."""
  order = np.argsort([len(clip.frames_THWC) for clip in exam.clips], kind="stable")[::-1][:SHOWN]
  videos = [demo_page.Shown(exam.clips[i].caption, exam.clips[i], exam.marks[i]) for i in order]
  stills, (picks, animations) = still_requests(generator), animation_requests(source)
  clips = generator.sample([*stills, *animations], sampling)
  return [
    demo_page.Section(
      "Text to video",
      "Colour and shape pairs that training never showed, at sizes of many aspect ratios. Nothing is picked by hand.",
      videos,
    ),
    demo_page.Section(
      "Text to image",
      "An image is a clip of one frame.",
      [demo_page.Shown(clip.caption, clip, {}) for clip in clips[: len(stills)]],
    ),
    demo_page.Section(
      "An image brought to life",
      "The first frame is given; the rest is generated.",
      [
        demo_page.Shown(
          clip.caption,
          clip,
          source.world.examine(clip.frames_THWC, clip.fps, source.state(i)),
          source[i].frames_THWC[0],
        )
        for i, clip in zip(picks, clips[len(stills) :], strict=True)
      ],
    ),
  ]


def pretrained_section() -> demo_page.Section:
  """A clip of each world by the weights that come with the package, of held-out states."""
  generator = Generator.load(PRETRAINED)
  sources = list(worlds.sources(generator, 1).values())
  for source in sources:
    source.shapes = PRETRAINED_SHAPES
  requests = [request for source in sources for request in simulation.requests_of(source, "long", EXAM_SEED)]
  clips = generator.sample(requests, Sampling.of(generator.config))
  marks = [s.world.examine(c.frames_THWC, c.fps, s.state(0)) for s, c in zip(sources, clips, strict=True)]
  shown = [demo_page.Shown(clip.caption, clip, mark) for clip, mark in zip(clips, marks, strict=True)]
  return demo_page.Section(
    "The weights that come along",
    f"{PRETRAINED} was trained before, for hours, on all worlds; its own exam is in its model card. One clip of each "
    "world, of a state that its training never showed, none picked by hand.",
    shown,
  )


def still_requests(generator: Generator) -> list[Request]:
  prompts = (
    "a red circle",
    "a blue square",
    "a green triangle",
    "a yellow cross",
    "a magenta circle",
    "a cyan square",
  )
  source = open_world(generator.config, 1, world_shapes(generator.config), 0)
  _, height, width = source.shape(0)
  return [Request(prompt, width, height, 1, source.fps(0), 7 + i) for i, prompt in enumerate(prompts)]


def animation_requests(source: WorldSource, count: int = 9) -> tuple[list[int], list[Request]]:
  """The first of the longest held-out clips, and requests to continue their first frame by their caption."""
  longest = max(source.shape(i)[0] for i in range(len(source)))
  picks = [i for i in range(len(source)) if source.shape(i)[0] == longest][:count]
  requests = []
  for i in picks:
    frames, height, width = source.shape(i)
    start_THWC = source[i].frames_THWC[:1]
    given = (Condition(start_THWC),)
    requests.append(Request(source.captions(i)["long"], width, height, frames, source.fps(i), 70 + i, given))
  return picks, requests


def write_clips(folder: pathlib.Path, sections: list[demo_page.Section]) -> None:
  """Every shown clip as a file, and a contact sheet of each section."""
  folder.mkdir(parents=True, exist_ok=True)
  for section in sections:
    title = section.title.lower().replace(" ", "_")
    clips = [shown.clip for shown in section.shown]
    for number, clip in enumerate(clips):
      suffix = "png" if len(clip.frames_THWC) == 1 else "mp4"
      video_io.write(folder / f"{title}_{number}.{suffix}", clip.frames_THWC, clip.fps)
    picture = sheet(clips, columns=9)
    Image.fromarray(picture.repeat(4, 0).repeat(4, 1)).save(folder / f"{title}.png")


def write_report(
  page: pathlib.Path,
  config: Any,
  result: dict,
  exam: simulation.Exam,
  short: simulation.Exam,
  sections: list[demo_page.Section],
  workdir: pathlib.Path,
) -> None:
  named = [(score.attribute, score) for score in exam.scores]
  named += [(f"{name}, short prompt", score) for name, score in reported(short).items()]
  rows = [demo_page.ExamRow(name, (s.mean, s.low, s.high), s.ceiling, s.autoencoder, s.chance) for name, s in named]
  section = AutoencoderConfig.of(config.autoencoder)
  numbers = [
    ("Autoencoder, held-out clips", f"{result['psnr_db']:.1f} dB", "30 dB or more"),
    ("Best linear code of the same size", f"{result['psnr_linear_db']:.1f} dB", "5 dB below"),
    ("Values in for each latent value", f"{section.values_in_per_value_out:.0f}", "12 or more"),
    ("Useful tokens in packed rows", f"{result['useful_tokens']:.1%}", "95 % or more"),
    ("Training tokens a second", f"{result['tokens_per_second']:.0f}", ""),
    ("Time, training to page", f"{result['seconds'] / 60:.1f} minutes", "15 or less"),
    ("Peak memory", f"{result['peak_rss_gb']:.1f} GB", "under 6 GB"),
  ]
  facts = [
    ("sora_jax", __version__),
    ("JAX", f"{jax.__version__} on {jax.devices()[0].device_kind}"),
    ("Machine", f"{platform.machine()}, {process.cores()} cores"),
    ("Exam", f"held-out combinations: {len(exam.clips)} clips, {len(short.clips)} with short prompts; 95 % intervals"),
    ("Sampler", str(dataclasses.asdict(Sampling.of(config)))),
  ]
  demo_page.write_page(
    page,
    title="sora_jax demo",
    lead="A video autoencoder and a text-to-video diffusion transformer, trained from scratch on this machine's CPU.",
    sections=sections,
    exam=rows,
    curves={
      "transformer": read_metrics(workdir / "logs"),
      "autoencoder": read_metrics(workdir / "autoencoder" / "logs"),
    },
    numbers=numbers,
    facts=facts,
    commands=["make demo", "make test"],
  )
