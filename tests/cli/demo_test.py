"""`sora demo`: the folder that it fills."""

import pathlib

from sora_jax.jobs import demo as job
from tests.cli.runs import complaint, run


def test_the_folder_is_out_demo_or_the_one_given(capsys, monkeypatch):
  asked = []
  monkeypatch.setattr(job, "run", lambda folder: asked.append(folder) or {"page": "x"})
  assert run(capsys, "demo").returncode == 0 and run(capsys, "demo", "--out", "there").stdout == "page: x\n"
  assert asked == [pathlib.Path("out/demo"), pathlib.Path("there")]


def test_a_full_disk_is_one_line(capsys, monkeypatch):
  def full(folder: pathlib.Path) -> dict:
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(job, "run", full)
  assert complaint(run(capsys, "demo", "--out", "there"), 1) == "sora: there: No space left on device"
