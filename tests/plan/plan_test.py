"""The answer of `sora plan`: figures that follow from each other, ways to make a step smaller, and the command."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from sora_jax.plan import chips, compile, plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30


@pytest.fixture
def config():
  made = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"]("variant=XL")
  made.train.rows = 64
  return made


def examined(peak_gib: float, compiles: bool = True) -> dict:
  """As `compile.examine` answers: 64 chips that compute 10 s each at v5p's peak, half of it the model's own."""
  flops = 10 * chips.CHIPS["v5p"].flops
  seconds = {"compute": 10.0, "memory": 4.0, "operations": 12.0, "communication": 4.0, "step": 16.0}
  compiled = {"peak_bytes": int(peak_gib * GIB), "compiles": compiles, "flops": 0.0, "hbm_bytes": 0.0, "silent": 0}
  compiled |= {"seconds": {}, "collectives": {}}
  if compiles:
    compiled |= {"flops": flops, "hbm_bytes": 1.0, "seconds": seconds}
    compiled["collectives"] = {"all-gather": {"count": 3, "bytes": GIB, "seconds": 4.0}}
  parts = {"forward": 2 / 12, "backward": 4 / 12, "attention": 0.1, "recompute": 5 / 12, "optimizer": 1 / 12}
  return {
    "kind": "TPU v5",
    "devices": 64,
    "mesh": {"data": 64},
    "ranks": 64,
    "params": 1000,
    "flops": {name: share * flops * 64 for name, share in parts.items()},
    "bytes": {"params": GIB, "activations": GIB},
    "warning": None,
    "compiled": compiled,
  }


@pytest.fixture
def answers(monkeypatch):
  """Puts an answer in the place of each examination, and keeps what was asked."""
  asked = []

  def give(*found):
    queue = list(found)

    def examine(*which):
      asked.append(which)
      answer = queue.pop(0)
      if isinstance(answer, Exception):
        raise answer
      return answer

    monkeypatch.setattr(compile, "examine", examine)
    monkeypatch.setattr(compile, "missing", lambda: None)
    return asked

  return give


class TestAnswer:
  def test_the_figures_follow_from_each_other(self, config, answers):
    answers(examined(80.0))
    found = plan.plan(config, "v5p-128", None, 1e12)
    assert (found["topology"], found["chips"], found["fits"], found["knobs"]) == ("v5p:4x4x4", 64, True, [])
    assert found["tokens_per_step"] == 64 * config.train.row_tokens
    assert (found["step_seconds"], found["collective_share"]) == (16.0, 0.25)
    assert found["mfu"] == pytest.approx(5 / 16, rel=1e-3)  # five of sixteen seconds are the model's at full speed
    steps = 1e12 / found["tokens_per_step"]
    assert found["chip_hours"] == pytest.approx(steps * 16 * 64 / 3600, rel=1e-3)
    assert found["usd"] == pytest.approx(found["chip_hours"] * 4.20, rel=1e-3)
    json.dumps(found)

  def test_time_is_parted_into_what_it_goes_to(self, config, answers):
    answers(examined(80.0))
    found = plan.plan(config, "v5p-128", None, None)["seconds"]
    expected = {"model": 5.0, "recompute": 25 / 6, "other_arithmetic": 5 / 6, "memory_bound": 2.0, "communication": 4.0}
    assert found == pytest.approx({**expected, "step": 16.0}, rel=1e-3)

  def test_the_page_explains_each_figure(self, config, answers):
    answers(examined(80.0))
    page = (ROOT / "docs" / "plan.md").read_text()
    for name in plan.plan(config, "v5p-128", None, None).keys() - {"topology", "chips", "mesh", "usd_per_chip_hour"}:
      assert f"`{name}`" in page, name

  def test_a_price_and_the_config_s_own_tokens(self, config, answers):
    answers(examined(80.0))
    found = plan.plan(config, "v5p-128", 1.0, None)
    assert found["steps"] == config.train.steps
    assert found["usd"] == found["chip_hours"]

  def test_what_a_kernel_does_not_tell_the_formulas_do(self, config, answers):
    less, kernels = examined(80.0), examined(80.0)
    less["compiled"]["seconds"] = less["compiled"]["seconds"] | {"compute": 7.0}
    kernels["compiled"]["silent"] = 2  # their work is attention, a tenth of all
    answers(less, kernels)
    assert plan.plan(config, "v5p-128", None, None)["step_seconds"] == pytest.approx(19.0)
    assert plan.plan(config, "v5p-128", None, None)["step_seconds"] == pytest.approx(17.0)

  def test_a_step_that_does_not_fit_is_examined_in_other_ways(self, config, answers):
    """F23: what is said before a run."""
    asked = answers(examined(90.0), examined(40.0), examined(200.0, compiles=False))
    found = plan.plan(config, "v5p-128", None, None)
    assert found["fits"] is False  # more than nine tenths of 95.74 GiB
    few, more = found["knobs"]
    assert few == {
      "set": "--config.train.accumulation=2 --config.mesh.data=1 --config.mesh.fsdp=-1 --config.mesh.context=2",
      "peak_hbm_gib": 40.0,
      "fits": True,
      "step_seconds": 16.0,
      "mfu": pytest.approx(5 / 16, rel=1e-3),
      "collective_share": 0.25,
    }
    assert (more["fits"], more["step_seconds"]) == (False, None)
    assert more["set"] == "--topology=v5p:4x4x8 --config.mesh.context=2"  # 64 rows
    assert [(which[0].train.accumulation, which[2].chips) for which in asked] == [(1, 64), (2, 64), (1, 128)]
    assert config.train.accumulation == config.mesh.context == 1

  def test_a_step_that_keeps_all_is_first_asked_to_keep_less(self, config):
    config.model.remat = "none"
    config.train.rows = 256
    flags = [flag for flag, _, _ in plan.knobs(config, chips.parse("v6e-256:2"), 64)]
    assert flags == ["--config.model.remat=full", "--config.train.accumulation=2", "--topology=v6e:16x16:4"]
    assert len(plan.knobs(config, None, 64)) == 2  # this machine has no twice as many

  def test_a_row_that_a_device_has_alone_is_shared(self, config):
    config.mesh.update(data=64, fsdp=1)
    (flags, changed, _), *_ = plan.knobs(config, chips.parse("v5p-128"), 64)
    assert flags == "--config.train.accumulation=2 --config.mesh.data=32 --config.mesh.fsdp=1 --config.mesh.context=2"
    assert (changed.mesh.data, changed.mesh.fsdp, changed.mesh.context) == (32, 1, 2)
    config.mesh.update(data=1, fsdp=64)
    assert plan.knobs(config, chips.parse("v5p-128"), 64)[0][0].endswith(
      "data=1 --config.mesh.fsdp=32 --config.mesh.context=2"
    )

  def test_an_axis_that_takes_the_rest_stays(self, config):
    config.mesh.update(data=-1, fsdp=1)
    (flags, changed, _), *_ = plan.knobs(config, chips.parse("v5p-128"), 64)
    assert "--config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.context=2" in flags
    assert (changed.mesh.data, changed.mesh.fsdp) == (-1, 1)

  def test_a_way_that_can_not_be_is_told_and_the_others_are_there(self, config, monkeypatch, answers):
    answers(examined(90.0), compile.CompileError("no such mesh"), examined(40.0))
    few, more = plan.plan(config, "v5p-128", None, None)["knobs"]
    assert few["error"] == "no such mesh" and more["fits"]

  def test_a_device_alone_has_nobody_to_share_its_row_with(self, config):
    config.train.rows = 1
    config.mesh.update(data=1, fsdp=-1)
    assert [flags for flags, _, _ in plan.knobs(config, chips.parse("v5litepod-1"), 1)] == [
      "--topology=v5e:1x2 --config.mesh.context=2"
    ]

  def test_twice_the_chips_have_a_mesh_and_rows_that_fit_them(self, config):
    last = lambda name, ranks: plan.knobs(config, chips.parse(name), ranks)[-1]
    config.train.rows = 8
    config.mesh.update(data=1, fsdp=8, context=1)
    flags, changed, _ = last("v5litepod-8", 8)
    assert flags.endswith(" --config.mesh.context=2") and (changed.mesh.fsdp, changed.train.rows) == (8, 8)
    config.train.rows = 16
    assert last("v5litepod-8", 8)[0].endswith(" --config.mesh.fsdp=16")
    config.mesh.fsdp = -1
    assert last("v5litepod-8", 8)[0] == "--topology=v5e:4x4"
    config.mesh.update(data=2, fsdp=256)
    config.train.rows = 1024
    assert last("v6e-256:2", 512)[0].endswith(" --config.mesh.data=4")

  def test_without_a_compiler_it_says_what_to_install(self, config, answers, monkeypatch):
    answers(examined(1.0) | {"compiled": None})
    monkeypatch.setattr(compile, "missing", lambda: "pip install it")
    found = plan.plan(config, "v5p-128", None, None)
    assert found["missing"].endswith("pip install it")
    assert (found["peak_hbm_gib"], found["fits"], found["collective_share"]) == (None, None, None)
    assert found["step_seconds"] == 10.0 and found["mfu"] == 0.5  # as fast as the chip can compute

  def test_a_topology_that_is_none_is_said_before_anything_is_examined(self, config):
    with pytest.raises(ValueError, match="topology 'v5p-100'"):
      plan.plan(config, "v5p-100", None, None)

  def test_an_autoencoder_has_no_plan(self, config):
    config.task = "autoencoder"
    with pytest.raises(ValueError, match="config.task is 'autoencoder'"):
      plan.plan(config, None, None, None)


class TestRows:
  def test_a_world_s_clips_have_its_sizes(self, config):
    config.data.update(sizes=("256x256",), frames=(1, 17), max_frames=9)
    lengths = [256, 3 * 256]  # latents of 32 x 32, patches of 2 x 2; 9 frames are 3 latent ones
    assert plan.rows_of(config).clip == sum(n * n for n in lengths) / sum(lengths)

  def test_a_range_of_durations_has_one_share_of_the_clips(self, config):
    config.data.update(sizes=("256x256",), frames=(1, "5..9"), max_frames=99)
    clips = 2 * [256] + [2 * 256, 3 * 256]  # 5 and 9 frames fill latent ones whole
    assert plan.rows_of(config).clip == pytest.approx(sum(n * n for n in clips) / sum(clips))

  def test_other_data_are_as_long_as_a_row_or_their_budget(self, config):
    config.data.source = "clips"
    assert plan.rows_of(config).clip == config.train.row_tokens
    config.data.update(max_tokens=1000, token_drop=0.5)
    assert plan.rows_of(config).clip == 500


def sora(*words: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "sora_jax.cli.main", "plan", *words]
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  environment = {**os.environ, "PYTHONPATH": path}
  return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, check=False)


@pytest.mark.skipif(compile.missing() is None, reason="libtpu is installed: it would compile for minutes")
def test_a_pod_is_planned_on_this_machine():
  words = ("--config", "configs/dit.py:variant=8B", "--config.train.rows=64", "--topology", "v5p-128", "--price", "2")
  done = sora(*words, "--tokens", "1e12", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["params"] == 7774657664 and found["chips"] == 64 and "libtpu" in found["missing"]
  assert found["usd"] == pytest.approx(2 * found["chip_hours"], rel=1e-3)
