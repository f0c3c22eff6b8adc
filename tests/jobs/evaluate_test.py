"""`sora evaluate`: the JSON of a suite, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from sora_jax.errors import InputError
from sora_jax.evaluation import drift, features, physics, prompting, sizes
from sora_jax.inference.generator import Generator
from sora_jax.jobs.evaluate import evaluate, physics_plot
from sora_jax.worlds.physics import LEVELS


@pytest.fixture(autouse=True)
def loaded_once(generator, monkeypatch):
  monkeypatch.setattr(Generator, "load", staticmethod(lambda workdir, step=None: generator))


def test_the_exam_s_scores_stand_beside_ceiling_and_chance_and_are_kept(trained, tmp_path):
  found = evaluate(str(trained), "worlds", 2, str(tmp_path / "new" / "worlds.json"))
  assert {"shapes.colour", "shapes.shape, short prompt", "shapes.direction"} <= set(found["scores"])
  numbers = {"mean", "low", "high", "ceiling", "autoencoder", "chance"}
  for name, score in found["scores"].items():
    assert set(score) == numbers | ({"trivial"} if name.endswith("frames given") else set())
  assert found["suite"] == "worlds" and found["about"].startswith("2 held-out clips of each world, worlds:shapes")
  assert json.loads((tmp_path / "new" / "worlds.json").read_text()) == found
  again = evaluate(str(trained), "worlds", 2, str(tmp_path / "again.json"))
  assert (again["scores"], again["protocol"]) == (found["scores"], found["protocol"])


def test_it_is_kept_in_the_workdir_where_no_file_is_named(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(prompting, "SUITE", {})
  found = evaluate(str(tmp_path), "prompting", 2)
  assert json.loads((tmp_path / "evaluations" / "prompting.json").read_text()) == found


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
  monkeypatch.setattr(drift, "SUITE", {})
  monkeypatch.setattr(sizes, "points", lambda *_: [sizes.Point(16, 16, 5, 8.0, "trained")])


def test_scores_of_prompting_are_by_mode_and_curves_and_sizes_apart(trained, tmp_path, monkeypatch):
  measures = {
    "animate": lambda subject: {"conditioned_db": prompting.Measure(1.0, 0.5, 2.0, 3.0, None), "curve": [1.0]}
  }
  monkeypatch.setattr(prompting, "SUITE", measures)
  found = evaluate(str(trained), "prompting", 2, str(tmp_path / "x.json"))
  assert found["scores"] == {
    "animate.conditioned_db": {"mean": 1.0, "low": 0.5, "high": 2.0, "ceiling": 3.0, "chance": None}
  }
  assert found["curves"] == {"animate.curve": [1.0]}
  assert found["sizes"]["kinds"]["trained"]["clips"] == 2


def test_fidelity_is_of_held_out_videos_by_declared_features(trained, tmp_path, monkeypatch):
  weights = tmp_path / "i3d.safetensors"
  monkeypatch.setattr(features, "of_i3d", lambda path: lambda clips: np.array([[clip.mean(), 1.0] for clip in clips]))
  found = evaluate(str(trained), "fidelity", 6, str(tmp_path / "x.json"), str(weights))["scores"]
  pairs = {"reconstruction.psnr_db", "reconstruction.ssim", "prediction.psnr_db", "prediction.ssim"}
  sets = {f"{name}.{kind}" for name in ("random 3-D network", "I3D (FVD)") for kind in ("frechet", "kernel")}
  assert pairs | sets <= set(found) and "I3D (FVD).frechet" not in evaluate(str(trained), "fidelity", 6)["scores"]
  assert found["prediction.psnr_db"]["trivial"] > 0  # there are images in training; these were videos
  assert set(found["I3D (FVD).frechet"]) == {"mean", "low", "high", "floor", "autoencoder", "trivial"}


@pytest.mark.parametrize(("suite", "source"), [("worlds", "clips"), ("prompting", "worlds:bites")])
def test_a_model_of_other_clips_is_refused(trained, generator, monkeypatch, suite, source):
  config = generator.config.copy_and_resolve_references()
  config.data.source = source
  monkeypatch.setattr(generator, "config", config)
  with pytest.raises(InputError, match=source):
    evaluate(str(trained), suite, 2)


def test_a_file_that_can_t_be_written_is_named_before_anything_is_made(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(Generator, "load", lambda *_: pytest.fail("the model was loaded"))
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="file"):
    evaluate(str(trained), "prompting", 2, str(tmp_path / "file" / "x.json"))


def test_the_minute_s_drift_is_drawn_beside_the_json(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(prompting, "SUITE", {})
  monkeypatch.setattr(drift, "SUITE", {"minute": lambda subject: {"error_by_second": [0.1, None, 0.3], "chance": 0.4}})
  evaluate(str(trained), "prompting", 2, str(tmp_path / "x.json"))
  drawn = (tmp_path / "drift.svg").read_text()
  assert drawn.startswith("<svg") and "seconds" in drawn and "another clip (chance)" in drawn


def test_velocity_errors_are_drawn_by_level(trained, tmp_path, monkeypatch):
  row = {"mean": 0.3, "low": 0.2, "high": 0.4, "ceiling": 0.1}
  gone = dict.fromkeys(row)
  scores = {f"{world}.{level}": row for world in ("uniform", "collision") for level in LEVELS}
  monkeypatch.setattr(physics, "examine", lambda *_: scores | {"uniform.both": gone})
  monkeypatch.setattr(physics, "sheet", lambda *_: np.zeros((8, 8, 3), np.uint8))
  found = evaluate(str(trained), "physics", 2, str(tmp_path / "physics.json"))
  assert found["command"] == "sora evaluate --suite physics --checkpoint DIR --clips 2"
  drawn = (tmp_path / "physics.svg").read_text()
  assert all(f">{word}<" in drawn for word in ("in", "both", "uniform", "collision, real"))
  assert Image.open(tmp_path / "physics.webp").size == (8, 8)


def test_beside_the_errors_of_one_world_stand_the_autoencoder_s_and_chance():
  row = {"mean": 0.3, "low": 0.2, "high": 0.4, "ceiling": 0.1, "autoencoder": 0.2, "chance": 0.9}
  drawn = physics_plot({f"uniform.{level}": row for level in LEVELS})
  words = ("uniform", "uniform, real", "uniform, autoencoder", "uniform, another clip")
  assert all(f">{word}<" in drawn for word in words)
