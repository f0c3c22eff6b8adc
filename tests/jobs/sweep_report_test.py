"""Reports of sweeps: the law's files, exams by compute with a sheet of clips, framings with their seeds together."""

import json

import numpy as np
import pytest
from PIL import Image

from sora_jax.errors import InputError
from sora_jax.inference.generator import Generator
from sora_jax.jobs import scaling, sweep, sweep_report, sweep_runs
from sora_jax.runtime.goodput import DONE
from tests.jobs.scaling_test import FILE, swept  # noqa: F401  a fixture
from tests.jobs.sweep_runs_test import make
from tests.jobs.sweep_test import leave


def test_the_report_is_the_fit_and_two_plots(swept, tmp_path):  # noqa: F811
  folder, runs = swept
  with pytest.raises(InputError, match="holds no fit and no exams"):
    sweep_report.report(folder, str(tmp_path / "out"))
  found = scaling.fit(folder, FILE, draws=5)
  sweep_report.report(folder, str(tmp_path / "out"), FILE)
  kept = json.loads((tmp_path / "out" / "scaling.json").read_text())
  assert kept["law"] == found["law"] and kept["command"].startswith("sora sweep")
  curves = (tmp_path / "out" / "isoflop.svg").read_text()
  budgets = list(sweep_report.by_budget(found["points"]))
  assert budgets == pytest.approx([2e9, 8e9, 3.2e10], rel=0.05)
  assert all(f"{budget:.3g} FLOPs" in curves for budget in budgets)
  assert "large runs, predicted" in curves and "measured" not in curves
  frontier = (tmp_path / "out" / "scaling.svg").read_text()
  assert ">law<" in frontier and "large" not in frontier
  name, each = next((name, each) for name, each in runs.items() if each.sealed)
  leave(folder / name, each.steps, each.steps, [DONE], 10.0, 0.5)
  scaling.fit(folder, FILE, draws=5)
  sweep_report.report(folder, str(tmp_path / "out"), FILE)
  assert "large runs, measured" in (tmp_path / "out" / "isoflop.svg").read_text()
  assert "best of the large runs" in (tmp_path / "out" / "scaling.svg").read_text()


def write_exam(folder, suite: str, **content) -> None:
  (folder / "evaluations").mkdir(parents=True, exist_ok=True)
  (folder / "evaluations" / f"{suite}.json").write_text(json.dumps({"suite": suite, "protocol": "p"} | content))


def exam(mark: float, protocol: str = "p") -> dict:
  """Two attributes of one world, on four clips; the second applies to two of them."""
  marks = {"shapes.colour": [mark, mark, 0.0, 0.0], "shapes.shape": [mark, None, 0.0, None]}
  marks |= {f"{name}, short prompt": [1.0] * 4 for name in list(marks)}
  figures = {"mean": 0.0, "low": 0.0, "high": 0.0, "ceiling": 1.0, "autoencoder": 0.9, "chance": 0.2}
  return {"scores": dict.fromkeys(marks, figures), "marks": marks, "protocol": protocol, "about": "4 clips"}


@pytest.fixture
def compute(tiny_config, tmp_path, monkeypatch, generator):
  """A sweep of two budgets whose runs were examined, and a model that is to stand beside them."""
  monkeypatch.setattr(Generator, "load", staticmethod(lambda workdir, step=None: generator))
  file = make((("flops", (2e9, 8e9)),))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for number, (name, each) in enumerate(runs.items(), 1):
    leave(tmp_path / name, each.steps, each.steps, [DONE], 10.0, 0.5)
    write_exam(tmp_path / name, "worlds", step=each.steps, **exam(number / 4))
  step = 16 * round(2e9 / sweep_runs.flops_of_step(generator.config))
  write_exam(tmp_path / "large", "worlds", step=step, **exam(1.0))
  return tmp_path


def test_exams_stand_beside_each_other_by_compute_with_clips_of_the_same_seeds(compute):
  out = compute / "out"
  sweep_report.report(compute, str(out), beside=[str(compute / "large")])
  found = json.loads((out / "simulation.json").read_text())
  assert [name for name in found if name.endswith("x") or name == "base"] == ["base", "4x", "16x"]
  row = found["4x"]["shapes"]
  assert row["mean"] == 0.25 and row["low"] < 0.25 < row["high"]  # clips of 0.5, 0.5, 0 and 0
  assert (row["ceiling"], row["autoencoder"], row["chance"]) == (1.0, 0.9, 0.2)
  assert found["rises"]["shapes"]["runs"] == 3
  assert found["protocol"] == "p" and found["16x"]["flops"] == pytest.approx(3.2e10, rel=0.05)
  assert all(f">{name}<" in (out / "simulation.svg").read_text() for name in ("shapes", "shapes, chance"))
  sheet = np.asarray(Image.open(out / "simulation.webp"))
  assert sheet.ndim == 3 and sheet.shape[1] > 4 * 2 * sheet.shape[0] / 2


def test_two_models_of_the_same_compute_are_refused(compute):
  with pytest.raises(InputError, match="have the same compute: give one"):
    sweep_report.report(compute, str(compute / "out"), beside=[str(compute / "large")] * 2)


def test_budgets_that_were_met_to_within_a_step_are_one(tmp_path):
  points = [
    {"flops": flops, "params": 10, "loss": loss} for flops, loss in ((2e12, 0.4), (1.2e12, 0.5), (1.22e12, 0.6))
  ]
  groups = sweep_report.by_budget(points)
  assert {budget: len(group) for budget, group in groups.items()} == {1.2e12: 2, 2e12: 1}


def test_exams_of_unlike_protocols_and_models_without_one_are_refused(compute):
  write_exam(compute / "other", "worlds", step=1, **exam(1.0, "q"))
  with pytest.raises(InputError, match=r"unlike protocols \(p, q\)"):
    sweep_report.report(compute, str(compute / "out"), beside=[str(compute / "other")])
  with pytest.raises(InputError, match="has no exam: run sora evaluate --suite worlds"):
    sweep_report.report(compute, str(compute / "out"), beside=[str(compute / "none")])


@pytest.fixture
def framings(tiny_config, tmp_path):
  """The workdir of two framings with two seeds, examined."""
  file = make((("data.framing", ("native", "square")), ("seed", (0, 1))))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(tmp_path, file, tiny_config, runs)
  for name, each in runs.items():
    leave(tmp_path / name, each.steps, each.steps, [DONE], 10.0, 0.5 if name.endswith("0") else 0.7)
    marks = [1.0, 1.0, None, 1.0] if "native" in name else [0.0, 1.0, 0.0, 0.0]
    score = {"mean": 0.0, "low": 0.0, "high": 0.0, "ceiling": 1.0, "crops": 0.4}
    write_exam(
      tmp_path / name, "framing", step=each.steps, scores={"native.whole": score}, marks={"native.whole": marks}
    )
  return tmp_path


def test_framings_have_the_clips_of_all_their_seeds(framings):
  sweep_report.report(framings, str(framings / "out"))
  found = json.loads((framings / "out" / "framing.json").read_text())
  native, square = found["native"], found["square"]
  whole = {"mean": 1.0, "low": 1.0, "high": 1.0, "ceiling": 1.0, "crops": 0.4, "by_seed": [1.0, 1.0]}
  assert native["native.whole"] == whole
  assert square["native.whole"]["mean"] == 0.25 and square["native.whole"]["high"] < 1.0
  assert square["native.whole"]["behind_native"]["mean"] == 0.6667  # of the three prompts that both have
  drawn = (framings / "out" / "framing.svg").read_text()
  assert all(f">{word}<" in drawn for word in ("native", "square", "wholly seen", "wholly seen, real"))
  assert native["held_out"] == {"mean": 0.6, "low": 0.5, "high": 0.7} and square["seeds"] == 2


def test_clips_of_one_prompt_are_one_value_whatever_their_seeds(framings):
  path = framings / "framing=square_seed=0" / "evaluations" / "framing.json"
  alone = sweep_report._framing([json.loads(path.read_text())], [], [])
  both = sweep_report._framing([json.loads(path.read_text())] * 4, [], [0.5])
  assert both["native.whole"] == alone["native.whole"] | {"by_seed": [0.25] * 4}
  assert alone["held_out"] is None and both["held_out"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_exams_of_unlike_clips_or_of_a_sweep_without_framings_are_refused(framings, tiny_config, tmp_path_factory):
  path = framings / "framing=square_seed=1" / "evaluations" / "framing.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": "q"}))
  with pytest.raises(InputError, match="framing=square_seed=1 was examined on other clips than framing=native_seed=0"):
    sweep_report.report(framings, str(framings / "out"))
  other, file = tmp_path_factory.mktemp("other"), make((("seed", (0, 1)),))
  runs = sweep_runs.planned(file, tiny_config)
  sweep.begin(other, file, tiny_config, runs)
  write_exam(other / "seed=0", "framing", step=runs["seed=0"].steps, scores={}, marks={})
  with pytest.raises(InputError, match="its sweep does not set data.framing"):
    sweep_report.report(other, str(other / "out"))


def test_framings_of_another_sweep_stay_beside_it_if_their_clips_were_the_same(framings):
  path = framings / "out" / "framing.json"
  path.parent.mkdir()
  row = {"mean": 0.5, "low": 0.4, "high": 0.6, "ceiling": 1.0, "crops": 0.4}
  buckets = {"native.whole": row, "held_out": None, "seeds": 3}
  path.write_text(json.dumps({"command": "c", "buckets": buckets, "native": {}}))
  sweep_report.report(framings, str(path.parent))
  found = json.loads(path.read_text())
  assert found["buckets"] == buckets and found["native"]["seeds"] == 2
  path.write_text(json.dumps({"buckets": {"native.whole": {"mean": 0.5, "ceiling": 1.0, "crops": 0.5}}}))
  with pytest.raises(InputError, match="buckets was measured on other clips than .*native.*: remove it"):
    sweep_report.report(framings, str(path.parent))
  path.write_text(json.dumps({"buckets": {"native.whole": {"mean": 0.5}}}))
  with pytest.raises(InputError, match=r"is no report of framings \(KeyError\('ceiling'\)\): remove it"):
    sweep_report.report(framings, str(path.parent))
  path.write_text("[1]")
  with pytest.raises(InputError, match="is no report of another sweep"):
    sweep_report.report(framings, str(path.parent))


def test_of_many_worlds_the_abilities_of_the_report_are_drawn():
  row = {"mean": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1}
  found = {
    name: dict.fromkeys(("bites", "game", "shapes"), row) | {"flops": flops}
    for name, flops in (("base", 1e12), ("4x", 4e12))
  }
  drawn = sweep_report.simulation_plot(found, list(found))
  assert ">game<" in drawn and ">game, chance<" in drawn and "polygon" in drawn and "shapes" not in drawn
