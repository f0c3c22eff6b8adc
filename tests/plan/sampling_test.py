"""The answer of `sora plan --sample`: figures that follow from each other, and clips that can't be."""

import json
import pathlib
import runpy

import pytest

from sora_jax.errors import InputError
from sora_jax.plan import chips, compile, sampling
from tests.cli.runs import process, result

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30
PEAK = chips.CHIPS["v5p"].flops


@pytest.fixture
def config():
  config = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"]("variant=XL")
  config.data.frames = (97,)
  return config


def compiled(peak_gib: float, seconds: float, compiles: bool = True) -> dict:
  """A program of as many seconds of arithmetic, as many of memory, half as many of links."""
  parts = {"compute": seconds, "memory": seconds, "operations": 2 * seconds, "communication": seconds / 2}
  return {
    "peak_bytes": int(peak_gib * GIB),
    "compiles": compiles,
    "flops": seconds * PEAK,
    "hbm_bytes": 1.0,
    "seconds": parts | {"step": 2.5 * seconds} if compiles else {},
    "collectives": {},
    "silent": 0,
  }


def one_pass(tokens: int, call: dict | None, calls: int = 90) -> dict:
  flops = {"forward": 64 * PEAK, "attention": 32 * PEAK}  # a second on 64 chips
  rows = {"tokens": tokens, "row_tokens": 8192, "rows": 64, "calls": calls, "guided": 40}
  return rows | {"flops": flops, "compiled": call}


def examined(passes: list[dict], first: dict | None, later: dict | None, on_host: bool = False) -> dict:
  """As `compile.examine_sampling` answers for v5p-128: a clip in 3 chunks of 4 tiles, which keep 4 GiB."""
  decode = {"clips": 1, "chunk_frames": 5, "tile": [592, 704], "tiles": 4, "chunks": 3, "state_bytes": 4 * GIB}
  decode |= {"state_on_host": on_host, "flops": 7 * PEAK, "first": first, "next": later}
  return {"kind": "TPU v5", "devices": 64, "params": 1000, "passes": passes, "decode": decode}


@pytest.fixture
def answer(config, monkeypatch):
  """What is planned where an examination finds this."""

  def given(found: dict, topology: str | None = "v5p-128") -> dict:
    monkeypatch.setattr(compile, "examine_sampling", lambda *asked: found)
    monkeypatch.setattr(compile, "missing", lambda: None)
    return sampling.plan(config, "1280x720x97", topology)

  return given


class TestAnswer:
  def test_the_figures_follow_from_each_other(self, answer):
    found = answer(examined([one_pass(2000, compiled(9.0, 1.0))], compiled(2.0, 0.4), compiled(3.0, 0.2)))
    assert (found["clip"], found["topology"], found["chips"]) == ("1280x720x97", "v5p:4x4x4", 64)
    assert found["latents"] == [25, 90, 160]
    assert found["clips_at_once"] == 64 * 4  # four of 2,000 tokens in a row of 8,192
    (one,) = found["passes"]
    assert one["call_seconds"] == 2.5 and one["seconds"] == 90 * 2.5
    assert found["decode"]["seconds"] == pytest.approx(4 * (2.5 * 0.4 + 2 * 2.5 * 0.2))
    assert found["seconds"]["total"] == one["seconds"] + found["decode"]["seconds"]
    assert found["decode"]["peak_hbm_gib"] == 3.0 + 3.0  # of a tile, and what three others keep
    assert (found["peak_hbm_gib"], found["fits"], found["hbm_gib"]) == (9.0, True, 95.74)
    assert found["clip_gib"] == pytest.approx(97 * 720 * 1280 * 12 / GIB, rel=1e-3)
    json.dumps(found)

  def test_a_first_frame_and_its_clip_are_added(self, answer):
    passes = [one_pass(100, compiled(9.0, 1.0), 10), one_pass(2000, compiled(4.0, 2.0), 20)]
    found = answer(examined(passes, compiled(1.0, 0.1), None))
    assert found["network_calls"] == 30 and found["tokens"] == 2000
    assert found["seconds"]["network"] == 10 * 2.5 + 20 * 5.0
    assert found["peak_hbm_gib"] == 9.0

  def test_a_clip_longer_than_training_s_is_made_in_windows(self, answer, config):
    config.data.frames = (33,)
    passes = [one_pass(100, compiled(9.0, 1.0), 10), one_pass(2000, compiled(4.0, 2.0), 20)]
    found = answer(examined(passes, compiled(1.0, 0.1), None))
    assert (found["windows"], found["window_frames"]) == (5, 33) and found["latents"] == [9, 90, 160]
    assert found["network_calls"] == 10 + 5 * 20 and found["seconds"]["network"] == 10 * 2.5 + 5 * 20 * 5.0
    assert found["seconds"]["decode"] == pytest.approx(5 * found["decode"]["seconds"])
    assert found["clip_gib"] == pytest.approx(97 * 720 * 1280 * 12 / GIB, rel=1e-3)

  def test_what_waits_on_the_host_takes_no_memory_of_the_device(self, answer):
    found = answer(examined([one_pass(2000, compiled(1.0, 1.0))], compiled(2.0, 0.1), compiled(3.0, 0.1), True))
    assert found["decode"]["peak_hbm_gib"] == 3.0

  @pytest.mark.parametrize(
    ("call", "first"), [(compiled(90.0, 1.0), compiled(1.0, 1.0)), (compiled(1.0, 1.0), compiled(90.0, 1.0))]
  )
  def test_either_call_may_be_too_large(self, answer, call, first):
    assert answer(examined([one_pass(2000, call)], first, None))["fits"] is False

  def test_what_the_compiler_gave_up_has_no_time(self, answer):
    broken = compiled(200.0, 1.0, compiles=False)
    found = answer(examined([one_pass(2000, broken)], compiled(1.0, 1.0), broken))
    assert (found["fits"], found["peak_hbm_gib"]) == (False, 203.0)
    assert found["seconds"] == {"network": None, "decode": None, "total": None}

  def test_without_a_compiler_time_is_that_of_the_products(self, answer, config, monkeypatch):
    found = examined([one_pass(2000, None)], None, None)
    answer(found)
    monkeypatch.setattr(compile, "missing", lambda: "pip install it")
    found = sampling.plan(config, "1280x720x97", "v5p-128")
    assert found["seconds"] == {"network": 90.0, "decode": 7.0, "total": 97.0}
    assert (found["peak_hbm_gib"], found["fits"]) == (None, None) and found["missing"].endswith("pip install it")

  def test_a_chip_that_is_in_no_table_has_memory_and_no_time(self, answer):
    found = examined([one_pass(2000, compiled(9.0, 1.0))], compiled(2.0, 0.4), None) | {"kind": "cpu"}
    found["passes"][0]["compiled"]["seconds"] = found["decode"]["first"]["seconds"] = {}
    answered = answer(found, None)
    assert (answered["topology"], answered["peak_hbm_gib"], answered["hbm_gib"]) == ("cpu", 9.0, None)
    assert answered["fits"] is None  # nobody knows
    assert answered["seconds"]["total"] is None

  def test_the_page_explains_each_figure(self, answer):
    page = (ROOT / "docs" / "plan.md").read_text()
    found = answer(examined([one_pass(2000, compiled(9.0, 1.0))], compiled(2.0, 0.4), None))
    for name in {*found, *found["passes"][0], *found["decode"]} - {"topology", "chips", "params", "hbm_gib", "fits"}:
      assert f"`{name}`" in page, name


@pytest.mark.parametrize(
  "text",
  ["", "1920x1080", "1920x1080x0", "0x16x1", "8193x16x1", "16x16x7201", "16x16x16x16", "-1x16x1", "1.5x16x1", "axbxc"]
  + ["16x16x" + "9" * 30, "16 x16x1", "١٦x16x1", "16x16x1\n16x16x1"],
)
def test_what_is_no_clip_is_said_in_one_line(config, text):
  with pytest.raises(InputError, match="is not WIDTHxHEIGHTxFRAMES") as caught:
    sampling.plan(config, text, None)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("text", "shape"), [("1920x1080x97", (97, 1080, 1920)), ("8192X8192X7200", (7200, 8192, 8192))]
)
def test_a_clip_is_read_as_it_is_written(text, shape):
  assert sampling.parse_clip(text) == shape


def test_more_tokens_than_can_be_counted_are_said(config):
  config.autoencoder.stages, config.data.frames = (((2, 4, 4), 32, 2),), (7200,)
  with pytest.raises(InputError, match=r"8192x8192x7200 has \d+ tokens, and a row at most"):
    sampling.plan(config, "8192x8192x7200", None)


def test_an_autoencoder_samples_nothing(config):
  config.task = "autoencoder"
  with pytest.raises(InputError, match="config.task is 'autoencoder'"):
    sampling.plan(config, "16x16x1", None)


@pytest.mark.slow
def test_the_largest_clip_is_planned_on_this_machine():
  words = ("--config", "configs/dit.py:variant=S", "--config.data.frames=(7200,)", "--sample", "8192x8192x7200")
  found = result(process("plan", *words, "--json"))
  assert found["tokens"] == 1801 * 512 * 512 and found["decode"]["tiles"] > 1 and found["clip_gib"] > 5000
  assert found["peak_hbm_gib"] > 1000


@pytest.mark.slow
def test_a_pod_that_is_not_here_samples_a_minute():
  words = ("--config", "configs/dit.py:variant=XL", "--config.data.frames=(961,)", "--topology", "v5p-128")
  found = result(process("plan", *words, "--sample", "854x480x961", "--json"))
  assert found["params"] == 567192320 and found["chips"] == 64
  assert found["seconds"]["total"] >= found["seconds"]["network"] > 60 > found["seconds"]["decode"] > 0
