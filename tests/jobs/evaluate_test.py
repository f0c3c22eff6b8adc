"""`sora evaluate`: the JSON of a suite, and what it refuses."""

import json

import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.evaluation import prompting
from sora_jax.inference.generator import Generator
from sora_jax.jobs.evaluate import evaluate


@pytest.fixture(autouse=True)
def loaded_once(generator, monkeypatch):
  monkeypatch.setattr(Generator, "load", staticmethod(lambda workdir, step=None: generator))


def test_the_exam_s_scores_stand_beside_ceiling_and_chance_and_are_kept(trained, tmp_path):
  found = evaluate(str(trained), "worlds", 2, str(tmp_path / "new" / "worlds.json"))
  assert {"colour", "shape, short prompt", "direction"} <= set(found["scores"])
  assert all(set(score) == {"mean", "low", "high", "ceiling", "chance"} for score in found["scores"].values())
  assert found["suite"] == "worlds" and found["protocol"].startswith("2 held-out clips of shapes")
  assert json.loads((tmp_path / "new" / "worlds.json").read_text()) == found


def test_scores_of_prompting_are_by_mode_and_curves_apart(trained, monkeypatch):
  measures = {
    "animate": lambda subject: {"conditioned_db": prompting.Measure(1.0, 0.5, 2.0, 3.0, None), "curve": [1.0]}
  }
  monkeypatch.setattr(prompting, "SUITE", measures)
  found = evaluate(str(trained), "prompting", 2)
  assert found["scores"] == {
    "animate.conditioned_db": {"mean": 1.0, "low": 0.5, "high": 2.0, "ceiling": 3.0, "chance": None}
  }
  assert found["curves"] == {"animate.curve": [1.0]}


def test_a_model_of_other_clips_is_refused(trained, generator, monkeypatch):
  config = generator.config.copy_and_resolve_references()
  config.data.source = "clips"
  monkeypatch.setattr(generator, "config", config)
  with pytest.raises(InputError, match="was trained on clips"):
    evaluate(str(trained), "worlds", 2)


def test_a_file_that_can_t_be_written_is_named(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(prompting, "SUITE", {"none": lambda subject: {"numbers": np.zeros(0).tolist()}})
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="file"):
    evaluate(str(trained), "prompting", 2, str(tmp_path / "file" / "x.json"))
