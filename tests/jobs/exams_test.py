"""Where evaluations are kept, and what is said of those that can't be read."""

import json

import pytest

from sora_jax.errors import InputError
from sora_jax.jobs import exams

EXAM = {"suite": "worlds", "protocol": "p", "step": 3, "scores": {"a.b": {"mean": 0.5}}, "marks": {"a.b": [0.5]}}


def write(run, **changes):
  path = exams.path_of(str(run), "worlds")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(EXAM | changes))
  return path


def test_they_are_in_the_workdir_or_here_for_weights_that_come_along(tmp_path):
  assert exams.path_of(str(tmp_path), "framing") == tmp_path / "evaluations" / "framing.json"
  assert str(exams.path_of("pretrained:worlds", "worlds")) == "pretrained-worlds/evaluations/worlds.json"
  path = write(tmp_path)
  assert exams.read(str(tmp_path), "worlds") == exams.read(str(path), "worlds") == EXAM


@pytest.mark.parametrize(
  "changes",
  [{"suite": "framing"}, {"step": None}, {"scores": 1}, {"marks": {"x": []}}, {"protocol": 1}]
  + [{"marks": {"a.b": ["0.5"]}}, {"marks": None}],
)
def test_what_is_no_exam_is_named(tmp_path, changes):
  path = write(tmp_path, **changes)
  with pytest.raises(InputError, match=f"{path} is no JSON of sora evaluate --suite worlds"):
    exams.read(str(tmp_path), "worlds")
  path.write_text(json.dumps(EXAM)[:-9])
  with pytest.raises(InputError, match="is no JSON of sora evaluate"):
    exams.read(str(tmp_path), "worlds")


def test_a_run_without_one_is_told_how_to_get_it(tmp_path):
  with pytest.raises(InputError, match=f"has no exam: run sora evaluate --suite worlds --checkpoint {tmp_path} first"):
    exams.read(str(tmp_path), "worlds")


def test_of_a_sweep_those_there_are_and_none_of_a_run_that_went_on(tmp_path):
  write(tmp_path / "one")
  assert exams.of_sweep(tmp_path, {"one": 3, "two": 3}, "worlds") == {"one": EXAM}
  with pytest.raises(InputError, match="one was examined at step 3 of 9: once it is done, run sora evaluate"):
    exams.of_sweep(tmp_path, {"one": 9}, "worlds")
