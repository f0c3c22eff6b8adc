"""`sora compare`: differences with intervals, and what can't be compared."""

import json

import pytest

from sora_jax.errors import InputError
from sora_jax.jobs.compare import compare

NO_TEXT = '{"protocol": 3, "marks": {}, "scores": {}}'
NO_MEAN = '{"protocol": "a", "marks": {"x": [1]}, "scores": {"x": {}}}'


def exam(path, marks, protocol="abc"):
  scores = {name: {"mean": sum(filter(None, each)) / len(each)} for name, each in marks.items()}
  content = {"suite": "worlds", "protocol": protocol, "step": 1, "scores": scores, "marks": marks}
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))
  return str(path)


def test_differences_are_of_the_same_clips(tmp_path):
  first = exam(tmp_path / "a.json", {"shapes.colour": [0.0, 1.0] * 20, "shapes.speed": [1.0] * 4})
  second = exam(tmp_path / "b.json", {"shapes.colour": [1.0] * 40, "shapes.speed": [1.0] * 3})
  found = compare(first, second)
  colour = found["scores"]["shapes.colour"]
  assert (colour["first"], colour["second"], colour["difference"]) == (0.5, 1.0, 0.5)
  assert 0.3 < colour["low"] < 0.5 < colour["high"] < 0.7
  assert found["left_out"] == ["shapes.speed"] and found["curves"] == {}


def test_clips_are_paired_by_number_where_both_have_a_mark(tmp_path):
  first = exam(tmp_path / "a.json", {"x": [0.0, None, 1.0], "y": [None]})
  second = exam(tmp_path / "b.json", {"x": [1.0, 0.0, 1.0], "y": [1.0]})
  found = compare(first, second)
  assert found["scores"]["x"]["difference"] == 0.5 and found["left_out"] == ["y"]


def test_a_run_is_no_better_than_itself(tmp_path):
  run = exam(tmp_path / "a.json", {"x": [0.0, 1.0, 1.0]})
  assert compare(run, run)["scores"]["x"] == {"first": 2 / 3, "second": 2 / 3, "difference": 0, "low": 0, "high": 0}


def test_workdirs_have_their_exam_and_their_losses(tmp_path):
  for name, loss in (("a", 0.5), ("b", 0.4)):
    exam(tmp_path / name / "evaluations" / "worlds.json", {"x": [1.0]})
    lines = [{"step": step, "loss": 1.0, "held_out": loss / step} for step in (1, 2)]
    (tmp_path / name / "logs").mkdir()
    (tmp_path / name / "logs" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
  assert found["curves"] == {"held_out": [[1, 0.5, 0.4], [2, 0.25, 0.2]]}


def test_unlike_protocols_are_refused(tmp_path):
  runs = [exam(tmp_path / f"{name}.json", {"x": [1.0]}, name) for name in "ab"]
  with pytest.raises(InputError, match="protocol a and .* by b: figures of unlike protocols"):
    compare(*runs)


@pytest.mark.parametrize(
  "text", ["", "[]", "{}", '{"protocol": 3, "marks": {}, "scores": {}}', '{"protocol": "a"}', NO_MEAN]
)
def test_a_file_that_is_no_exam_is_named(tmp_path, text):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(InputError, match="a.json is no JSON of sora evaluate"):
    compare(str(tmp_path / "a.json"), str(tmp_path / "a.json"))


def test_of_runs_without_exams_the_losses_are_compared(tmp_path):
  for name, loss in (("a", 0.5), ("b", 0.4)):
    (tmp_path / name / "logs").mkdir(parents=True)
    (tmp_path / name / "logs" / "metrics.jsonl").write_text(json.dumps({"step": 3, "held_out": loss}))
  found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
  assert found["scores"] == {} and found["curves"] == {"held_out": [[3, 0.5, 0.4]]}
  exam(tmp_path / "a" / "evaluations" / "worlds.json", {"x": [1.0]})
  with pytest.raises(InputError, match="b has no exam"):
    compare(str(tmp_path / "a"), str(tmp_path / "b"))


def test_losses_of_other_clips_are_not_compared(tmp_path):
  for name, source in (("a", "worlds:bites"), ("b", "worlds:shapes")):
    (tmp_path / name / "logs").mkdir(parents=True)
    (tmp_path / name / "logs" / "metrics.jsonl").write_text(json.dumps({"step": 3, "held_out": 0.5}))
    (tmp_path / name / "config.json").write_text(json.dumps({"data": {"source": source, "seed": name}}))
  runs = [str(tmp_path / name) for name in "ab"]
  with pytest.raises(InputError, match="other held-out clips .data.source differs"):
    compare(*runs)
  for name in "ab":
    exam(tmp_path / name / "evaluations" / "worlds.json", {"x": [1.0]})
  assert compare(*runs)["curves"] == {} and compare(runs[0], runs[0])["curves"]


def test_a_run_without_an_exam_is_told_how_to_get_one(tmp_path):
  with pytest.raises(InputError, match="has no exam: run sora evaluate --suite worlds"):
    compare(str(tmp_path), str(tmp_path))
