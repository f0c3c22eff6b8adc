"""`sora sweep report`: what a sweep has found as JSON and plots, a file an experiment.

scaling.json, isoflop.svg, scaling.svg    of a sweep with a law
rates.json and a plot of each rate        of a sweep of learning rates, beside those of other sweeps in that file
simulation.json, .svg and .webp           of runs that `sora evaluate --suite worlds` has examined, by compute
framing.json, .svg                        of runs that `sora evaluate --suite framing` has examined, by framing,
                                          beside others in that file
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from sora_jax.clips import contact_sheet, to_uint8
from sora_jax.errors import InputError
from sora_jax.evaluation import simulation, worlds
from sora_jax.evaluation.marks import summary
from sora_jax.inference import prompting
from sora_jax.inference.generator import Generator, Sampling
from sora_jax.jobs import exams
from sora_jax.jobs.scaling import FILE, STANDARD, rises
from sora_jax.jobs.sweep import read, state_of
from sora_jax.jobs.sweep_runs import Planned, flops_of_step
from sora_jax.report.plot import Line, plot
from sora_jax.runtime import storage
from sora_jax.scaling import law

SHOWN = 6  # frames of a clip on a sheet
ABILITIES = (
  "camera3d",
  "occlusion",
  "painter",
  "game",
)  # of OpenAI's report: 3-D, permanence, interaction, digital worlds


def report(workdir: str | os.PathLike, out: str, sweep: Any = None, beside: Sequence[str] = ()) -> dict[str, Any]:
  """Writes what a sweep has found into the folder `out`.

  Args:
    beside: workdirs, or pretrained:NAME, of models that stand beside its runs in simulation.json.

  Returns:
    {out, and the most important figures}.

  Raises:
    InputError: nothing is fitted or examined yet, or exams are of unlike protocols.
  """
  runs = {name: Planned(**each) for name, each in read(workdir, sweep)["runs"].items()}
  here, folder = epath.Path(workdir), epath.Path(out)
  path = here / FILE
  folder.mkdir(parents=True, exist_ok=True)
  if path.exists():
    found = json.loads(path.read_text())
    return _report_rates(found, folder) if "rates" in found else _report_law(found, folder)
  steps = {name: each.steps for name, each in runs.items()}
  if framings := exams.of_sweep(here, steps, "framing"):
    return _report_framing(here, runs, framings, folder)
  if found := exams.of_sweep(here, steps, "worlds"):
    return _report_simulation(here, runs, found, beside, folder)
  raise InputError(
    f"{workdir} holds no fit and no exams: run sora sweep fit --workdir {workdir}, or sora evaluate on its runs"
  )


def _report_law(found: dict[str, Any], folder: epath.Path) -> dict[str, Any]:
  found["command"] = "sora sweep run, fit, run --sealed, fit and report (docs/scaling.md)"
  storage.write_text(folder / "scaling.json", json.dumps(found, indent=1) + "\n")
  storage.write_text(folder / "isoflop.svg", isoflop_plot(found))
  storage.write_text(folder / "scaling.svg", frontier_plot(found))
  return {"out": os.fspath(folder), **{name: found.get(name) for name in ("law", "exponents", "max_error", "sha256")}}


# By learning rate and by budget.


def _report_rates(found: dict[str, Any], folder: epath.Path) -> dict[str, Any]:
  """rates.json, where other sweeps of rates may stand, and a plot of each varied rate.

  Raises:
    InputError: the file there is of something else, or all runs of a sweep have diverged.
  """
  path = folder / "rates.json"
  rates = _already(path).get("rates", {}) | found["rates"]
  both = {"command": "sora sweep run, fit and report (docs/scaling.md)", "rates": rates}
  storage.write_text(path, json.dumps(both, indent=1) + "\n")
  for key, each in found["rates"].items():
    by_width = {
      width: [(math.log10(rate), loss) for rate, loss in losses if loss is not None]
      for width, losses in each["losses"].items()
    }
    lines = [Line(f"width {width}", points) for width, points in by_width.items() if points]
    if not lines:
      raise InputError(f"all runs that vary {key} have diverged: there is nothing to draw; try lower rates")
    setting = key.removesuffix(STANDARD)
    name = setting.rpartition(".")[2] + ("" if setting == key else "_standard")
    storage.write_text(folder / f"{name}.svg", plot("Loss on held-out clips", f"log10 of {key}", lines))
  return {"out": os.fspath(folder), **{key: each["grid_steps"] for key, each in found["rates"].items()}}


def _already(path: epath.Path) -> dict[str, dict[str, Any]]:
  """What the report of another sweep holds, all but its command; nothing where there is none.

  Raises:
    InputError: the file there is of something else.
  """
  try:
    return {key: dict(each) for key, each in json.loads(path.read_text()).items() if key != "command"}
  except FileNotFoundError:
    return {}
  except (ValueError, TypeError, AttributeError) as error:
    raise InputError(f"{path} is no report of another sweep ({error!r}): remove it, or use another --out") from error


def isoflop_plot(found: dict[str, Any]) -> str:
  """Held-out loss by the size of the model, a line a budget, with the range over seeds; of the large runs what was
  sealed, with its interval, and what was measured.
  """
  lines = []
  for budget, group in by_budget(found["points"]).items():
    by_size: dict[int, list[float]] = {}
    for point in group:
      by_size.setdefault(point["params"], []).append(point["loss"])
    sizes = sorted(by_size)
    means = [(math.log10(size), float(np.mean(by_size[size]))) for size in sizes]
    lines.append(Line(f"{budget:.3g} FLOPs", means, [(min(by_size[size]), max(by_size[size])) for size in sizes]))
  if sealed := sorted(found.get("sealed", []), key=lambda row: row["params"]):
    across = [math.log10(row["params"]) for row in sealed]
    ends = [(row["low"], row["high"]) for row in sealed]
    predicted = [(x, row["predicted"]) for x, row in zip(across, sealed, strict=True)]
    lines.append(Line("large runs, predicted", predicted, ends))
    measured = [(x, row["measured"]) for x, row in zip(across, sealed, strict=True) if row["measured"] is not None]
    lines += [Line("large runs, measured", measured)] if measured else []
  return plot("Loss on held-out clips", "log10 of parameters", lines)


def by_budget(points: Sequence[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
  """Runs by budget, the smallest first: what was asked for is met to within a step, so budgets agree within 5 %."""
  groups: dict[float, list[dict[str, Any]]] = {}
  budgets = law.levels(np.array([point["flops"] for point in points]))
  for budget, point in sorted(zip(budgets.tolist(), points, strict=True), key=lambda pair: pair[0]):
    groups.setdefault(budget, []).append(point)
  return groups


def frontier_plot(found: dict[str, Any]) -> str:
  """Held-out loss by budget: the best run of each, the law's frontier, and the best of the large runs."""
  log = math.log10
  best = [min(group, key=lambda point: point["loss"]) for group in by_budget(found["points"]).values()]
  lines = [
    Line("best of each budget", [(log(point["flops"]), point["loss"]) for point in best]),
    Line("law", [(log(row["flops"]), row["loss"]) for row in found["frontier"]]),
  ]
  if measured := [row for row in found.get("sealed", []) if row["measured"] is not None]:
    large = min(measured, key=lambda row: row["measured"])
    lines.append(Line("best of the large runs", [lines[0].points[-1], (log(large["flops"]), large["measured"])]))
  return plot("Loss on held-out clips", "log10 of FLOPs", lines)


# By framing.


def _report_framing(
  workdir: epath.Path, runs: Mapping[str, Planned], examined: Mapping[str, dict[str, Any]], folder: epath.Path
) -> dict[str, Any]:
  """framing.json: {FRAMING: {KIND.MEASURE: {mean, low, high, ceiling, crops, by_seed, behind_native}, held_out,
  seeds}}.

  `behind_native`, {mean, low, high}, is by how much native size has more of the same prompts, where the sweep has both.

  Raises:
    InputError: the exams, or framings in the file that is there, are of unlike clips, the file is of something else, or
      the sweep does not vary the framing.
  """
  kinds: dict[str, list[str]] = {}
  for name in examined:
    if "data.framing" not in runs[name].settings:
      raise InputError(f"{workdir / name} has an exam of framing, but its sweep does not set data.framing: remove it")
    kinds.setdefault(runs[name].settings["data.framing"], []).append(name)
  first, *rest = examined
  clips = {name: (exam["protocol"], _of_real_clips(exam["scores"])) for name, exam in examined.items()}
  if unlike := [name for name in rest if clips[name] != clips[first]]:
    raise InputError(f"{workdir}: {unlike[0]} was examined on other clips than {first}: examine both again")
  path = folder / "framing.json"
  found = _already(path)
  try:
    others = [kind for kind in sorted(found.keys() - kinds.keys()) if _of_real_clips(found[kind]) != clips[first][1]]
  except (KeyError, TypeError) as error:
    raise InputError(f"{path} is no report of framings ({error!r}): remove it, or use another --out") from error
  if others:
    raise InputError(f"{path}: {others[0]} was measured on other clips than {first}: remove it, or use another --out")
  for kind, names in kinds.items():
    losses = [state_of(workdir / name, runs[name].steps)["held_out"] for name in names]
    native = [examined[name] for name in kinds.get("native", ()) if kind != "native"]
    mine = [examined[name] for name in names]
    found[kind] = _framing(mine, native, [loss for loss in losses if loss is not None])
  command = "sora sweep run, sora evaluate --suite framing, sora sweep report (docs/scaling.md)"
  storage.write_text(path, json.dumps({"command": command, **found}, indent=1) + "\n")
  storage.write_text(folder / "framing.svg", framing_plot(found))
  return {"out": os.fspath(folder), **{kind: found[kind].get("native.whole") for kind in kinds}}


def framing_plot(found: dict[str, Any]) -> str:
  """Of each framing how much of the subject is seen at native sizes and at squares, with intervals, and real clips'."""
  kinds = sorted(kind for kind, each in found.items() if isinstance(each, dict))
  lines = []
  for name, words in (
    ("native.whole", "wholly seen"),
    ("native.seen", "share seen"),
    ("square.whole", "wholly, squares"),
  ):
    if rows := [(place, found[kind][name]) for place, kind in enumerate(kinds) if name in found[kind]]:
      points, bands = [(place, row["mean"]) for place, row in rows], [(row["low"], row["high"]) for _, row in rows]
      lines.append(Line(words, points, bands))
      lines.append(Line(f"{words}, real", [(place, row["ceiling"]) for place, row in rows]))
  return plot("Subject in the frame, share of clips or of its area", "trained on", lines, zero=True, names=kinds)


def _framing(
  seeds: Sequence[dict[str, Any]], native: Sequence[dict[str, Any]], losses: Sequence[float]
) -> dict[str, Any]:
  """Of one framing's exams, those of native size beside them, all of the same prompts, and held-out losses.

  A prompt's value is its mean over the seeds, and intervals are of resampled prompts: clips of one prompt are not
  independent of each other, whatever their seeds.
  """
  measures: dict[str, Any] = {}
  for measure, score in seeds[0]["scores"].items():
    values_N = _of_prompts(seeds, measure)
    row: dict[str, Any] = summary(values_N.tolist()) | {key: score[key] for key in ("ceiling", "crops")}
    row["by_seed"] = [summary(_of_prompts([exam], measure).tolist())["mean"] for exam in seeds]
    if native:
      row["behind_native"] = summary((_of_prompts(native, measure) - values_N).tolist())
    measures[measure] = row
  ends = (float(np.mean(losses)), min(losses), max(losses)) if losses else ()
  spread = {name: round(end, 5) for name, end in zip(("mean", "low", "high"), ends, strict=False)} or None
  return measures | {"held_out": spread, "seeds": len(seeds)}


def _of_prompts(seeds: Sequence[dict[str, Any]], measure: str) -> np.ndarray:
  """A value a prompt, the mean of its clips of all seeds; NaN where none has one."""
  marks_SN = np.array([exam["marks"][measure] for exam in seeds], np.float64)  # None becomes NaN
  known_SN = ~np.isnan(marks_SN)
  with np.errstate(invalid="ignore"):
    return np.where(known_SN, marks_SN, 0.0).sum(0) / known_SN.sum(0)


def _of_real_clips(framing: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
  """What reading real clips gave, whole and cropped: the same of the same clips."""
  return {name: (row["ceiling"], row["crops"]) for name, row in framing.items() if "." in name}


# By compute.


class Examined(NamedTuple):
  """A model of simulation.json: where it is, its FLOPs, and its exam."""

  checkpoint: str
  flops: float
  exam: dict[str, Any]


def _report_simulation(
  workdir: epath.Path,
  runs: Mapping[str, Planned],
  examined: Mapping[str, dict[str, Any]],
  beside: Sequence[str],
  folder: epath.Path,
) -> dict[str, Any]:
  """simulation.json: {base, 4x, ...: {WORLD: {mean, low, high, ceiling, autoencoder, chance}, flops}, rises}, with a
  plot and a sheet of clips of the same seeds.

  Raises:
    InputError: an exam is missing or of another protocol, or two models have the same compute.
  """
  models = [Examined(os.fspath(workdir / name), runs[name].flops, exam) for name, exam in examined.items()]
  models = sorted([*models, *map(_beside, beside)], key=lambda each: each.flops)
  protocols = {each.exam["protocol"] for each in models}
  if len(protocols) > 1:
    raise InputError(
      f"exams are of unlike protocols ({', '.join(sorted(protocols))}): give all of them the same --clips"
    )
  named = {_times(each.flops / models[0].flops): each for each in models}
  if len(named) < len(models):
    raise InputError(f"two models of {', '.join(each.checkpoint for each in models)} have the same compute: give one")
  found: dict[str, Any] = {
    "command": "sora sweep run, sora evaluate --suite worlds, sora sweep report (docs/scaling.md)",
    "protocol": models[0].exam["protocol"],
    "about": models[0].exam["about"],
  }
  for name, each in named.items():
    found[name] = worlds.means(each.exam) | {"flops": float(f"{each.flops:.4g}")}
  found["rises"] = rises([(each.flops, worlds.means(each.exam)) for each in models])
  storage.write_text(folder / "simulation.json", json.dumps(found, indent=1) + "\n")
  storage.write_text(folder / "simulation.svg", simulation_plot(found, list(named)))
  picture = Image.fromarray(sheet([each.checkpoint for each in named.values()]))
  picture.save(os.fspath(folder / "simulation.webp"), quality=80)
  return {"out": os.fspath(folder), **{name: found[name] for name in named}}


def _beside(checkpoint: str) -> Examined:
  """
  Raises:
    InputError: it was not examined.
  """
  exam = exams.read(checkpoint, "worlds")
  return Examined(checkpoint, exam["step"] * flops_of_step(Generator.load(checkpoint).config), exam)


def _times(ratio: float) -> str:
  return "base" if ratio < 1.01 else f"{ratio:.0f}x"


def simulation_plot(found: dict[str, Any], names: Sequence[str]) -> str:
  """The mean score of each world by compute with its interval, in the order in which the lines end, and chance.

  Of many worlds those of ABILITIES alone: the others are in the JSON.
  """
  of_world = [name for name, value in found[names[0]].items() if isinstance(value, dict)]
  of_world = [world for world in of_world if world in ABILITIES] or of_world
  of_world.sort(key=lambda world: -found[names[-1]][world]["mean"])
  lines, chances = [], []
  for world in of_world:
    rows = [(math.log10(found[name]["flops"]), found[name][world]) for name in names]
    bands = [(row["low"], row["high"]) for _, row in rows]
    lines.append(Line(world, [(flops, row["mean"]) for flops, row in rows], bands))
    chances.append(Line(f"{world}, chance", [(flops, row["chance"]) for flops, row in rows]))
  return plot("Mean score of the exam", "log10 of FLOPs", lines + chances)


def sheet(checkpoints: Sequence[str]) -> np.ndarray:
  """Of each world a held-out clip: the real one, then each model's of the same prompt and seed; (H, W, 3) uint8."""
  rows: list[list[np.ndarray]] = []
  for number, checkpoint in enumerate(checkpoints):
    generator = Generator.load(checkpoint)
    sampling = Sampling.of(generator.config)
    for place, source in enumerate(worlds.sources(generator, 1).values()):
      if number == 0:
        rows.append([])
        rows[place] += shown(source[0].frames_THWC)
      made = prompting.clips(generator, simulation.requests_of(source, "long", worlds.SEED), sampling)
      rows[place] += shown(made[0].frames_THWC)
  return contact_sheet(rows)


def shown(frames_THWC: np.ndarray) -> list[np.ndarray]:
  picked = np.linspace(0, len(frames_THWC) - 1, min(SHOWN, len(frames_THWC))).round().astype(int)
  return list(to_uint8(frames_THWC[picked]))
