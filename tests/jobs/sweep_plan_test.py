"""The plan of a sweep: all runs of its file, one model after another."""

import pytest

from sora_jax.jobs import sweep_plan, sweep_runs
from sora_jax.plan import plan as planning
from tests.jobs.sweep_runs_test import GRID, make

LARGE = (("model.width,model.heads", ((32, 4),)), ("flops", (8e9,)))


@pytest.fixture
def answers(monkeypatch):
  """Takes the place of compiling: a step of the wider model takes twice as long."""

  def answer(config, topology, dollars, tokens):
    days = tokens * config.model.width / 1e6
    figures = {"step_seconds": 0.1, "peak_hbm_gib": 1.0, "fits": True, "steps": 7, "missing": "libtpu"}
    priced = {"chip_hours": 24 * days, "usd": None if dollars is None else dollars * 24 * days}
    return figures | {"days": days, "topology": topology or "cpu"} | priced

  monkeypatch.setattr(planning, "plan", answer)


def test_runs_of_one_model_share_its_plan_and_all_are_summed(tiny_config, answers):
  file = make(GRID, LARGE)
  runs = sweep_runs.planned(file, tiny_config)
  found = sweep_plan.plan(file, tiny_config, "v5p-8", 2.0)
  assert (found["runs"], found["sealed_runs"], found["topology"]) == (8, 1, "v5p-8") and found["missing"] == "libtpu"
  assert [each["runs"] for each in found["models"]] == [4, 5]
  assert found["flops"] == pytest.approx(sum(each.flops for each in runs.values()))
  assert found["tokens"] == pytest.approx(sum(each.tokens for each in runs.values()))
  days = sum(each.tokens * each.settings["model.width"] / 1e6 for each in runs.values())
  assert found["days"] == pytest.approx(days, rel=1e-3) and found["usd"] == pytest.approx(48 * days, rel=1e-3)


def test_without_the_time_of_a_step_there_is_no_sum(tiny_config, answers):
  assert sweep_plan.plan(make(GRID), tiny_config, None, None)["usd"] is None
