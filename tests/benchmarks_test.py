"""Benchmarks print what they promise: one JSON object as the last line, ours beside the peers."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
FIGURES = {"useful_tokens", "lost_tokens", "flop_balance", "worst_step", "mixed_steps", "programs", "seconds_per_clip"}


def last_line(name: str, *arguments: str) -> dict:
  found = subprocess.run(
    [sys.executable, str(BENCHMARKS / name), "--json", *arguments], capture_output=True, text=True, check=True
  )
  return json.loads(found.stdout.splitlines()[-1])


def test_packing_puts_four_peers_beside_ours():
  found = last_line("packing.py", "--clips", "4000", "--ranks", "8")
  assert set(found) == FIGURES | {"clips", "ranks", "peers"}
  assert set(found["peers"]) == {"best_fit", "first_fit", "buckets", "padded"}
  for scheme in (found, *found["peers"].values()):
    assert FIGURES <= set(scheme)
    assert 0 < scheme["useful_tokens"] <= 1 and 0 <= scheme["lost_tokens"] < 1
    assert 0 < scheme["worst_step"] <= scheme["flop_balance"] + 1e-4 <= 1.0002
  assert (found["clips"], found["ranks"], found["programs"]) == (4000, 8, 1)
  assert found["flop_balance"] > max(peer["flop_balance"] for peer in found["peers"].values())


@pytest.mark.slow
def test_a_long_clip_is_measured_beside_a_short_one(trained, tmp_path):
  words = ("--workdir", str(trained), "--seconds", "3", "--size", "16x16", "--fps", "8", "--short", "5")
  found = last_line("long_clips.py", *words, "--out", str(tmp_path))
  assert (found["short"]["frames"], found["long"]["frames"]) == (5, 24)
  assert found["memory_ratio"] == pytest.approx(found["long"]["peak_mib"] / found["short"]["peak_mib"], abs=1e-3)
  assert {path.name for path in tmp_path.glob("*.mp4")} == {"short.mp4", "long.mp4"}


@pytest.mark.slow
def test_the_input_pipeline_is_timed_for_each_feed():
  found = last_line("input_pipeline.py", "--clips", "12", "--steps", "3", "--loader-steps", "20")
  assert set(found) == {
    "data_wait_share",
    "rss_mb_per_100_steps",
    "decoded",
    "crops",
    "rows",
    "loader_steps",
    "workers",
  }
  for feed in ("decoded", "crops", "rows"):
    assert 0 <= found[feed]["data_wait_share"] <= found["data_wait_share"] < 1
    assert 0 < found[feed]["peers"]["in_step"] < 1 and found[feed]["batches_per_second"] > 0


@pytest.mark.slow
def test_one_model_trains_on_the_same_clips_packed_bucketed_and_padded():
  found = last_line("packed_vs_padded.py", "--clips", "10", "--width", "64", "--depth", "1")
  assert set(found["schemes"]) == {"packed", "buckets", "padded"}
  assert found["packed_over_padded"] == pytest.approx(found["packed"] / found["padded"], rel=0.01)
  assert found["schemes"]["packed"]["programs"] == 1 and found["schemes"]["packed"]["lost_tokens"] == 0
  assert found["schemes"]["padded"]["useful_tokens"] < found["schemes"]["buckets"]["useful_tokens"] <= 1


@pytest.mark.slow
def test_attention_in_blocks_is_put_beside_the_dense_mask():
  found = last_line("attention.py", "--tokens", "512", "--clips", "1", "4")
  assert found["tokens"] == 512 and set(found["clips"]) == {"1", "4"}
  for row in found["clips"].values():
    assert row["ratio"] == pytest.approx(row["dense_ms"] / row["blocks_ms"], rel=0.01)


@pytest.mark.slow
def test_every_program_of_the_demo_is_compiled_at_each_level():
  found = last_line("compile_level.py", "--rounds", "1")
  assert set(found) == {"autoencoder step", "transformer step", "encode", "decode"}
  for levels in found.values():
    assert set(levels) == {"3", "2", "1", "0"} and levels["1"]["compile_seconds"] < levels["3"]["compile_seconds"]
    assert all(level["milliseconds"] > 0 for level in levels.values())


@pytest.mark.slow
def test_a_step_is_put_beside_itself_without_the_allocator_s_setting():
  found = last_line("memory.py", "--rounds=1", "--steps=1", "--widths", "4", "4", "4", "--depth=1")
  assert {"with", "without", "ratio", "ratio_of_processor_time"} <= set(found)
  for name in ("with", "without"):
    assert set(found[name]) == {
      "allocator",
      "seconds",
      "page_faults",
      "system_seconds",
      "user_seconds",
      "peak_gib",
    }
  assert found["ratio"] == pytest.approx(found["without"]["seconds"] / found["with"]["seconds"], rel=0.05)
  assert "SORA_MALLOC=0" in found["without"]["allocator"]


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_compiles_little():
  found = last_line("restart.py", "--pairs", "1", "--set", "model.depth=2", "--set", "model.text_depth=1")
  (pair,) = found["pairs"]
  assert pair["second"]["compile"] < 0.4 * pair["first"]["compile"]
  assert found["second_over_first"] == pair["second_over_first"] < 0.6


@pytest.mark.slow
def test_a_train_step_is_put_beside_a_matrix_product_and_pytorch_where_it_is():
  sizes = ["--width=64", "--depth=1", "--heads=2", "--rows=1", "--tokens=32", "--text-tokens=8", "--text-width=16"]
  found = last_line("train_step.py", "--torch", "--rounds=1", "--repeats=1", *sizes)
  assert found["shape"]["width"] == 64 and 0 < found["share_of_peak"] < 1
  assert (found["ratio"] is None) == (importlib.util.find_spec("torch") is None) == (not found["peers"])
  if found["peers"]:
    assert {"eager, boolean mask", "eager, each clip by itself"} < set(found["peers"])
    assert found["ratio"] == min(found["ratio_eager"], found["ratio_compiled"] or math.inf)
    assert {name.partition(",")[0] for name in found["peers"] | found["lacking"]} == {"eager", "compiled"}
    wanted = min(peer["ratio"] for name, peer in found["peers"].items() if "no mask" not in name)
    assert found["ratio"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boolean mask", "each clip by itself"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_peer_computes_what_our_blocks_do(monkeypatch, kind, dtype, tolerance):
  torch = pytest.importorskip("torch")
  monkeypatch.syspath_prepend(BENCHMARKS)
  block_stack, torch_stack = importlib.import_module("block_stack"), importlib.import_module("torch_stack")
  shape = block_stack.Shape(width=64, depth=2, heads=2, rows=2, tokens=48, segments=3, text_tokens=12, text_width=32)
  blocks = changed(block_stack.our_blocks(shape))
  inputs, target, context = block_stack.our_inputs(shape, dtype)

  def loss(inputs):
    out = block_stack.our_forward(blocks, inputs, context)
    return jnp.mean(jnp.square(out - target)), out

  (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)

  tensor = lambda x: torch.tensor(np.array(x, np.float32)).to(getattr(torch, str(x.dtype)))
  attend, make_mask = torch_stack.torch_attention(kind, "cpu")
  peers = torch_stack.torch_blocks(shape, attend)
  for i, peer in enumerate(peers):
    peer.load_state_dict({name: tensor(weight[i]) for name, weight in peer_weights(blocks).items()})
  x, *modulation = leaves = [tensor(leaf).requires_grad_() for leaf in (inputs[0], *inputs[1])]
  segments, rotary, text, text_segments = context
  ids, text_ids = tensor(segments[0]), tensor(text_segments[0])
  context = (make_mask(ids, ids), [tensor(table) for table in rotary], tensor(text), make_mask(ids, text_ids))
  reduced = dtype != "float32"
  with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
    peer_out = torch_stack.torch_forward(peers, (x, modulation), context, remat=reduced)
  torch.nn.functional.mse_loss(peer_out.float(), tensor(target)).backward()

  assert peer_out.dtype == getattr(torch, dtype)
  theirs = [x.detach().float().numpy() for x in (peer_out, *(leaf.grad for leaf in leaves))]
  for our, their in zip(jax.tree.leaves((out, gradients)), theirs, strict=True):
    our = np.asarray(our, np.float32)
    assert np.linalg.norm(our - their) < tolerance * np.linalg.norm(our)


def changed(blocks):
  """With noise on each weight: what starts at zero hides what it multiplies."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda weight: weight + 0.1 * rng.normal(size=weight.shape).astype(np.float32), blocks)


def peer_weights(blocks) -> dict:
  """Our weights by the names and in the layout of the peer, those of all blocks together."""
  dense = {
    "qkv": blocks.qkv,
    "out": blocks.attention_out,
    "query": blocks.query,
    "key_value": blocks.key_value,
    "cross_out": blocks.cross.attention_out,
    "gate_up": blocks.feed_forward.gate_up,
    "down": blocks.feed_forward.down,
  }
  gains = {
    "query_gain": blocks.query_norm,
    "key_gain": blocks.key_norm,
    "cross_query_gain": blocks.cross.query_norm,
    "cross_key_gain": blocks.cross.key_norm,
  }
  outward = lambda kernel: kernel.reshape(*kernel.shape[:2], -1).swapaxes(1, 2)
  weights = {f"{name}.weight": outward(each.kernel[...]) for name, each in dense.items()}
  return {"table": blocks.table[...], **weights, **{name: each.gain[...] for name, each in gains.items()}}


@pytest.mark.slow
def test_every_part_for_a_gpu_runs_at_a_tiny_size(tmp_path):
  out = tmp_path / "gpu.json"
  script = [str(BENCHMARKS / "gpu.sh"), str(out), str(tmp_path), "--tiny"]
  subprocess.run(script, env=os.environ | {"PYTHON": sys.executable}, check=True, timeout=540)
  found = json.loads(out.read_text())
  assert set(found) == {"machine", "tiny", "sweep", "attention", "train_step", "peer"}
  assert not [part for part in ("sweep", "attention", "train_step", "peer") if "error" in found[part]]
  assert found["sweep"]["finite"] and max(found["sweep"]["float32"].values()) < 1e-4
  assert set(found["attention"]["XL"]) == {"1", "2"} and found["attention"]["XL"]["2"]["bar"] == 1.54
  assert found["train_step"]["best"]["finite"] and found["train_step"]["best"]["mfu"] is None  # of no known chip
  assert found["peer"]["ours_seconds"] > 0 and ("ratio" in found["peer"]) != ("peer_error" in found["peer"])


def test_a_part_that_fails_or_hangs_says_so_and_keeps_what_it_had(monkeypatch, tmp_path):
  gpu = load("gpu.py")
  program = tmp_path / "gpu_parts.py"
  monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gpu.py"))
  program.write_text("import time\nprint('{\"had\": 1}', flush=True)\ntime.sleep(60)\n")
  found = gpu.run_part("sweep", 2.0, True)
  assert (found["had"], found["error"]) == (1, "it took more than 2 s")
  program.write_text("raise ValueError('no GPU')\n")
  assert gpu.run_part("sweep", 60.0, True)["error"] == "ValueError: no GPU"


def test_the_script_for_a_gpu_installs_what_is_missing_from_wheels_and_ends_where_there_are_none(tmp_path):
  python = tmp_path / "python"
  python.write_text('#!/bin/sh\necho "$@" >> ' + str(tmp_path / "said") + "\n" + WITHOUT_A_PACKAGE)
  python.chmod(0o755)
  script = [str(BENCHMARKS / "gpu.sh"), str(tmp_path / "out.json"), str(tmp_path)]
  found = subprocess.run(script, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)
  assert found.returncode == 1
  missing, install = (tmp_path / "said").read_text().splitlines()
  assert missing == "benchmarks/gpu.py --missing"
  assert f"--no-index --find-links {tmp_path} " in install and install.endswith(" ml-collections")


# An interpreter that lacks one package, and can't install it.
WITHOUT_A_PACKAGE = """
case "$*" in
  *--missing*) echo ml-collections ;;
  *pip*) exit 1 ;;
esac
"""


def load(name: str):
  """A benchmark as a module."""
  spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), BENCHMARKS / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_an_index_in_columns_is_put_beside_one_of_json():
  found = last_line("index.py", "--clips", "150000", "--json-clips", "3000")
  assert (found["clips"], found["json_clips"]) == (150_000, 3000)
  assert found["open_seconds"] < 5 and found["plan_us_per_clip"] < 100
  assert found["bytes_per_clip"] < 200 < found["json_bytes_per_clip"]
  assert 0.98 < found["useful_tokens"] <= 1 and 0.85 < found["useful_text_tokens"] <= 1
  assert found["json_us_per_clip"] > 0 and found["json_plan_us_per_clip"] > 0


@pytest.mark.slow
def test_the_exam_over_sizes_has_a_line_for_each_point_and_kind(trained):
  found = last_line("sizes.py", "--workdir", str(trained), "--clips", "2")
  assert {each["kind"] for each in found["points"]} == {"trained", "inside", "outside"} == set(found["kinds"])
  assert all(set(each["scores"]) >= {"colour", "shape"} for each in [*found["points"], *found["kinds"].values()])
  assert (found["step"], found["kinds"]["trained"]["clips"]) == (6, 4)


def test_the_exam_s_table_says_how_far_each_score_is_on_its_way(tmp_path):
  """From guessing to the autoencoder; what guessing gets right anyhow is left out."""

  def exam(name: str, *marks: int) -> str:
    mean = sum(marks) / len(marks)
    numbers = {"low": mean, "high": mean, "ceiling": 1.0, "autoencoder": 0.9, "chance": 0.1}
    score, sure = {"mean": mean, **numbers}, {"mean": 1.0, **numbers, "chance": 0.88}
    scores = {"bites.colour": score, "bites.mouth": sure, "bites.colour, short prompt": score | {"mean": 0.0}}
    scores["balls.size"] = sure
    kept = {
      "suite": "worlds",
      "step": 1,
      "protocol": "p",
      "scores": scores,
      "marks": {key: list(marks) for key in scores},
      "errors": {"camera.px, short prompt": {"median": 1.5, "autoencoder": 0.5, "ceiling": 0.25}},
    }
    (tmp_path / name).write_text(json.dumps(kept))
    return str(tmp_path / name)

  whole, base = exam("whole.json", 1, 1, 0, 0), exam("base.json", 1, 0, 0, 0)
  found = last_line("exam_table.py", whole, "--base", base)
  table = load("exam_table.py").table(found)
  assert "| camera.px |  | 1.50 |  | 0.50 | 0.25 |" in table and "| bites | colour | 50 (50–50) |" in table
  bites = found["worlds"]["bites"]
  assert bites["way"] == found["way"] == pytest.approx(0.5) and bites["base"] == pytest.approx(0.15 / 0.8, abs=1e-4)
  assert bites["low"] < 0.5 < bites["high"] and bites["attributes"]["mouth"]["way"] is None
  assert {name: found["worlds"]["balls"][name] for name in ("way", "low", "base")} == dict.fromkeys(
    ("way", "low", "base")
  )


@pytest.mark.slow
def test_moving_glyphs_are_predicted_beside_a_convlstm(tmp_path):
  small = ["autoencoder.steps=2", "autoencoder.stages=(((3,4,4),16,1),)", "autoencoder.batch=2", "data.clips=4"]
  small += ["train.steps=2", "train.rows=1", "model.width=32", "model.depth=1", "train.eval_every=0", "sample.steps=2"]
  words = ("--workdir", str(tmp_path / "w"), "--clips", "3", "--samples", "2", "--hidden", "4", "--seconds", "1")
  words = (*words, "--sheet", str(tmp_path / "sheet.webp"), "--set", *small)
  found = last_line("moving_glyphs.py", *words)
  held, theirs, ours, mean, best = found["rows"].values()
  assert set(found["rows"]) >= {"last frame held", "ConvLSTM", "ours, mean of 2"} and found["seconds"] > 0
  assert held["mse"]["mean"] > 100 and held["letters"]["mean"] == 1.0 and held["path"]["mean"] < 0.8
  assert mean["mse"]["mean"] <= ours["mse"]["mean"] * 1.5 and best["mse"]["mean"] <= ours["mse"]["mean"]
  assert set(theirs) == {"mse", "mae", "ssim", "letters", "path"}
  again = last_line("moving_glyphs.py", *words)  # both are trained already
  assert again["rows"]["ConvLSTM"] == theirs and again["convlstm_steps"] == found["convlstm_steps"] > 0
  assert Image.open(tmp_path / "sheet.webp").size[1] > 3 * 5 * 64


class TestConvLSTM:
  convlstm = load("convlstm.py")

  def test_a_prediction_sees_what_came_before_alone(self):
    frames = np.random.default_rng(0).random((2, 6, 16, 16)).astype(np.float32)
    weights, truth = self.convlstm.init(jax.random.key(0), (8, 8)), np.array([1, 1, 1, 0, 0], np.float32)
    made = self.convlstm.predict(weights, frames, truth)
    assert made.shape == (2, 5, 16, 16)
    hidden = frames.copy()
    hidden[:, 3:] = 0.0  # not seen: three frames are given
    np.testing.assert_array_equal(made, self.convlstm.predict(weights, hidden, truth))
    hidden[:, 1] = 0.0
    later = self.convlstm.predict(weights, hidden, truth)
    np.testing.assert_array_equal(made[:, 0], later[:, 0])
    assert np.abs(made[:, 1:] - later[:, 1:]).max(axis=(0, 2, 3)).min() > 0

  def test_a_convolution_is_one(self):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 7, 3)).astype(np.float32), rng.normal(size=(5, 5, 3, 4)).astype(np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(self.convlstm.convolved(x, kernel), wanted, rtol=1e-4, atol=1e-4)

  def test_patches_are_put_together_again(self):
    frames = jnp.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    np.testing.assert_array_equal(self.convlstm.unpatched(self.convlstm.patched(frames)), frames)


def test_settings_of_the_demo_are_read_as_the_commands_read_them(tiny_config):
  changed = load("demo_seeds.py").changed
  found = changed(tiny_config, ["train.steps=7", "data.loops=0.25"])
  assert (found.train.steps, found.data.loops, found.seed) == (7, 0.25, tiny_config.seed)
  with pytest.raises(SystemExit, match="demo_seeds: config.train has no key 'stepz': did you mean 'steps'"):
    changed(tiny_config, ["train.stepz=7"])


def test_the_coordinate_check_is_told_beside_standard_parametrisation(tmp_path, monkeypatch, capsys):
  check = load("coordinate_check.py")
  grows = lambda width, base: 1.0 if base else width / 32
  measure = lambda widths, base, rates: [
    check.coordinates.Moved(width, 3 * grows(width, base), 5 * grows(width, base) ** 2) for width in widths
  ]
  monkeypatch.setattr(check.coordinates, "measure", measure)
  monkeypatch.setattr(sys, "argv", ["coordinate_check.py", "--out", str(tmp_path), "--json"])
  check.main()
  found = json.loads(capsys.readouterr().out)
  assert found == json.loads((tmp_path / "coordinates.json").read_text())
  assert found["worst"] == {"muP": 1.0, "standard": 64.0} and found["moved"]["features"]["AdamW"]["standard"][-1] == 8.0
  drawn = (tmp_path / "coordinates_output.svg").read_text()
  assert all(f">{word}<" in drawn for word in ("256", "Muon, muP", "AdamW, standard"))
