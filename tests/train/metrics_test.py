"""Metrics on disk: every step once, whatever a killed run left."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from sora_jax.train import metrics
from sora_jax.train.metrics import MetricsLog, progress, read_metrics


def write(folder, steps, first_step=0, loss=1.0):
  log = MetricsLog(folder, first_step)
  for step in steps:
    log.scalars(step, {"loss": loss * step})
  log.close()


def test_what_was_written_reads_back(tmp_path):
  write(tmp_path / "logs", [5, 10])
  assert read_metrics(tmp_path / "logs") == [{"step": 5, "loss": 5.0}, {"step": 10, "loss": 10.0}]


def test_no_file_has_no_lines(tmp_path):
  assert read_metrics(tmp_path) == []


def test_a_resumed_run_cuts_the_steps_that_it_takes_again(tmp_path):
  write(tmp_path, [5, 10, 15, 20])
  write(tmp_path, [15, 20], first_step=10, loss=2.0)
  assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(5, 5), (10, 10), (15, 30), (20, 40)]


def test_a_finished_run_keeps_every_line(tmp_path):
  write(tmp_path, [5, 10])
  write(tmp_path, [], first_step=10)
  assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10]


@pytest.mark.parametrize("rest", ['{"step": 15, "lo', '{"st', "", '{"loss": 1.0}', "15", '"step"'])
def test_a_line_left_half_written_is_cut(tmp_path, rest):
  write(tmp_path, [5, 10])
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(rest)
  assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10]
  write(tmp_path, [15], first_step=10)
  assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10, 15]
  for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
    json.loads(line)


def test_a_picture_is_a_file_of_its_step(tmp_path):
  log = MetricsLog(tmp_path, 0)
  picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
  log.picture(12, picture)
  log.close()
  (path,) = tmp_path.glob("preview_*.png")
  assert "12" in path.stem
  np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)


def test_tensorboard_gets_the_values_too(tmp_path):
  write(tmp_path, [5])
  assert any(b"loss" in path.read_bytes() for path in tmp_path.glob("events.*"))


def test_what_was_written_is_on_disk_at_once(tmp_path):
  log = MetricsLog(tmp_path, 0)
  log.scalars(5, {"a_name": 1.0})
  assert [line["step"] for line in read_metrics(tmp_path)] == [5]
  assert any(b"a_name" in path.read_bytes() for path in tmp_path.glob("events.*"))


def test_a_disk_that_fills_up_is_said_once_a_kind_and_the_rest_is_written(tmp_path, capsys):
  log = MetricsLog(tmp_path, 0)
  log.scalars(5, {"loss": 1.0})
  (tmp_path / "metrics.jsonl").unlink()
  (tmp_path / "metrics.jsonl").mkdir()
  for step in (10, 15, 20):
    log.scalars(step, {"loss": 1.0})
    log.picture(step, np.zeros((2, 2, 3), np.uint8))
  log.close()
  said = capsys.readouterr().err
  assert said.count("warning") == 1 and "no lines of metrics from here on" in said
  assert len(list(tmp_path.glob("preview_*"))) == 3


def test_a_bucket_s_log_is_written_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.storage, "is_remote", lambda path: "logs" in str(path))
  monkeypatch.setattr(metrics.storage, "write_text", lambda path, text: pathlib.Path(path).write_text(text))
  write(tmp_path / "logs", [5, 10])
  log = MetricsLog(tmp_path / "logs", 5)
  log.scalars(10, {"loss": 3.0})
  assert [line["step"] for line in read_metrics(tmp_path / "logs")] == [5]
  for path in (tmp_path / "logs").glob("events.*"):
    path.unlink()
  log.flush()
  assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "logs")] == [(5, 5.0), (10, 3.0)]
  assert any(b"loss" in path.read_bytes() for path in (tmp_path / "logs").glob("events.*"))
  log.close()


def test_other_hosts_than_the_first_write_nothing(tmp_path, capsys):
  log = MetricsLog(tmp_path / "logs", 0, writes=False)
  log.scalars(5, {"loss": 1.0})
  log.close()
  bar = progress("toy", 10, 4, shown=False)
  bar.update()
  bar.close()
  assert not (tmp_path / "logs").exists() and not capsys.readouterr().err


def test_the_bar_goes_to_stderr_and_starts_where_the_run_is(capsys):
  bar = progress("toy", 10, 4)
  assert (bar.n, bar.total) == (4, 10)
  bar.close()
  said = capsys.readouterr()
  assert "toy" in said.err and not said.out
