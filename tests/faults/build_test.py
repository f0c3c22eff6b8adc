"""Builds that are killed at any moment, or done by Apache Beam, give the same bytes as one that nothing disturbed."""

import os
import pathlib
import subprocess
import sys

import pytest

from sora_jax.curation import build
from tests.curation import build_test

ROOT = pathlib.Path(__file__).resolve().parents[2]

made, built = build_test.made, build_test.built  # fixtures

# Runs builds in processes of their own, each killed at another moment, and then once more to the end. The moments are
# before a file is written, when a part of it is, when all of it is but not yet under its name, afterwards, and before
# each record of a shard.
KILLED = """
  import contextlib, os, pathlib, shutil, signal, sys
  from sora_jax.curation import build
  from sora_jax.runtime import storage
  from tests.curation import build_test

  source, out, step = build_test.opened(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), int(sys.argv[3])
  build.UNIT = 3
  written_local, record = storage.written_local, build._record
  moments, last = 0, None

  def moment():
    global moments
    moments += 1
    if moments == last:
      os.kill(os.getpid(), signal.SIGKILL)

  @contextlib.contextmanager
  def written(path):
    moment()
    with written_local(path) as local:
      pathlib.Path(local).write_text("part")
      moment()
      yield local
      moment()
    moment()

  def recorded(*arguments):
    moment()
    return record(*arguments)

  storage.written_local, build._record = written, recorded

  def child(kill_at):
    global last
    last = kill_at
    if not (process := os.fork()):
      build.build(source, out, build_test.KEEP)
      os.write(told[1], b"%d " % moments)
      os._exit(0)
    return os.waitpid(process, 0)[1]

  told = os.pipe()
  assert child(None) == 0
  count, expected = int(os.read(told[0], 100)), build_test.content(out)
  for kill_at in range(1, count + 1, step):
    shutil.rmtree(out)
    assert os.WTERMSIG(child(kill_at)) == signal.SIGKILL
    assert child(None) == 0, kill_at
    assert build_test.content(out) == expected, kill_at
    print("killed at", kill_at, "of", count, "and done by", os.read(told[0], 100).decode())
"""


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_build_that_is_killed_is_taken_up_again(made, built, tmp_path: pathlib.Path, step: int):
  """With the same bytes as one that nothing disturbed, whenever it is killed."""
  script = tmp_path / "killed.py"
  script.write_text("\n".join(line[2:] for line in KILLED.splitlines()))
  command = [sys.executable, str(script), str(made), str(tmp_path / "out"), str(step)]
  ended = subprocess.run(
    command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
  )
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout.count("killed at") >= 3
  assert build_test.content(tmp_path / "out") == build_test.content(built)


@pytest.mark.slow
def test_beam_gives_the_same_bytes(made, built, tmp_path: pathlib.Path, monkeypatch):
  pytest.importorskip("apache_beam")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  options = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
  build.build(build_test.opened(made), tmp_path / "out", build_test.KEEP, beam=options)
  assert build_test.content(tmp_path / "out") == build_test.content(built)
