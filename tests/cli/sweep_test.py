"""`sora sweep`: its words and flags, and what it refuses, in one line."""

import json
import os
import pathlib

import pytest

from sora_jax.jobs import sweep as job
from tests.cli.runs import run
from tests.jobs.sweep_test import leave

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict(dict(config={base!r}, settings=(), grid=(("seed", (0, 1)),), sealed=()))
"""


@pytest.fixture
def sora(capsys):
  return lambda *words: run(capsys, *words)


@pytest.fixture
def file(tmp_path) -> str:
  path = tmp_path / "sweep_seeds.py"
  path.write_text(FILE.format(base=f"{ROOT / 'configs' / 'dit.py'}:runlocal=1"))
  return str(path)


def test_status_is_one_json_object(sora, file, tmp_path, monkeypatch):
  monkeypatch.setattr(job.child, "call", lambda words, **_: 0)
  done = sora("sweep", "run", "--config", file, "--workdir", str(tmp_path / "w"), "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["counts"] == {"waiting": 2, "begun": 0, "done": 0, "diverged": 0} and list(found["runs"]) == [
    "seed=0",
    "seed=1",
  ]
  assert "2 of 2 runs are left" in done.stderr
  leave(tmp_path / "w" / "seed=1", 20, 20, ["done"], 4.0, 0.5)
  done = sora("sweep", "status", "--workdir", str(tmp_path / "w"), "--json")
  assert json.loads(done.stdout)["runs"]["seed=1"]["held_out"] == 0.5


@pytest.mark.parametrize(("on", "kept"), [("local", True), ("slurm", False)])
def test_runs_on_this_machine_share_their_compiled_programs(sora, file, tmp_path, monkeypatch, on, kept):
  seen = []
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setattr(
    job.child, "call", lambda words, **_: seen.append(os.environ.get("JAX_COMPILATION_CACHE_DIR")) or 0
  )
  sora("sweep", "run", "--config", file, "--workdir", str(tmp_path / "w"), "--on", on)
  assert set(seen) == {str(tmp_path / "w" / "compiled") if kept else None}


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("fit", "--workdir", "{0}"), "holds no sweep"),
    (("report", "--workdir", "{0}"), "holds no sweep"),
    (("run", "--workdir", "{0}"), "sora sweep run needs --config"),
    (("run", "--config", "{0}/sweep_seeds.py", "--workdir", "{0}/w", "--on", "ray"), "ray"),
    (("run", "--config", "configs/demo.py", "--workdir", "{0}/w"), "is a sweep's file, with config and grid"),
    (("runs",), "sora sweep has no 'runs': did you mean 'run'? usage: sora sweep run|status|fit|report [flags]"),
  ],
)
def test_what_can_t_be_is_one_line(sora, file, tmp_path, words, message):
  done = sora("sweep", *(word.format(tmp_path) for word in words))
  assert done.returncode and message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
