"""Every unit is done once, wherever it is done; what is done stays done when one fails or the process is killed."""

import functools
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sora_jax.runtime import work_units

ROOT = pathlib.Path(__file__).resolve().parents[2]


class OddUnit(ValueError):
  """What a unit may raise."""


def leave(folder: str, bad: int, unit: int) -> None:
  """Leaves a file that tells who did the unit, one each time it is done; the bad one raises.

  Its name says all: an interrupt between making a file and writing it would leave a unit done by nobody.
  """
  if unit == bad:
    raise OddUnit(f"unit {unit} is odd")
  pathlib.Path(folder, f"unit-{unit}-{os.getpid()}-{time.monotonic_ns()}").touch(exist_ok=False)


def die(folder: str, bad: int, unit: int) -> None:
  if unit == bad:
    os.kill(os.getpid(), signal.SIGKILL)
  leave(folder, -1, unit)


def done(folder: pathlib.Path) -> dict[int, list[str]]:
  """The units that are done, each with the processes that did it."""
  found: dict[int, list[str]] = {}
  for path in folder.glob("unit-*"):
    _, unit, process, _ = path.name.split("-")
    found.setdefault(int(unit), []).append(process)
  return found


@pytest.mark.parametrize("workers", [0, 1])
def test_in_this_process_in_order(tmp_path: pathlib.Path, workers: int):
  order: list[int] = []
  work_units.run(order.append, [3, 1, 2], "test", workers)
  assert order == [3, 1, 2]
  work_units.run(functools.partial(leave, str(tmp_path), -1), [5, 7], "test", workers)
  assert done(tmp_path) == {5: [str(os.getpid())], 7: [str(os.getpid())]}


@pytest.mark.parametrize("workers", [0, 2])
def test_no_units_start_nothing(workers: int, capfd):
  work_units.run(functools.partial(pytest.fail, "a unit was done"), [], "test", workers)
  work_units.run(functools.partial(pytest.fail, "a unit was done"), [], "test", beam=["--runner=NoSuchRunner"])
  assert capfd.readouterr().err == ""


def test_two_processes_share_the_units(tmp_path: pathlib.Path):
  work_units.run(functools.partial(leave, str(tmp_path), -1), range(12), "test", 2)
  found = done(tmp_path)
  assert sorted(found) == list(range(12)) and all(len(who) == 1 for who in found.values())
  assert str(os.getpid()) not in {who for (who,) in found.values()}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_caller_and_what_is_done_stays_done(tmp_path: pathlib.Path, workers: int):
  """F24, of those that encode."""
  with pytest.raises(OddUnit, match="unit 3 is odd"):
    work_units.run(functools.partial(leave, str(tmp_path), 3), range(40), "test", workers)
  found = done(tmp_path)
  assert {0, 1, 2} <= set(found) and 3 not in found and len(found) < 40
  missing = [unit for unit in range(40) if unit not in found]
  work_units.run(functools.partial(leave, str(tmp_path), -1), missing, "test", workers)
  assert sorted(done(tmp_path)) == list(range(40)) and all(len(who) == 1 for who in done(tmp_path).values())


@pytest.mark.parametrize("workers", [0, 2])
def test_preempted_it_does_the_units_that_it_has_begun(tmp_path: pathlib.Path, workers: int):
  preempted = lambda: len(done(tmp_path)) >= 3
  work_units.run(functools.partial(leave, str(tmp_path), -1), range(400), "test", workers, preempted=preempted)
  found = done(tmp_path)
  assert 3 <= len(found) < 400 and all(len(who) == 1 for who in found.values())


PREEMPTED = """
import os, pathlib, signal, sys, time
from sora_jax.runtime import preemption, work_units

def slow(unit):
  pathlib.Path(sys.argv[1], f"begun-{unit}").touch()
  time.sleep(1.0)
  pathlib.Path(sys.argv[1], f"unit-{unit}").write_text(str(os.getpid()))

def broken(unit):
  if unit == 1:
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(60)

if __name__ == "__main__":
  asked = preemption.Preemption()
  asked.listen()
  work = {"slow": slow, "broken": broken}[sys.argv[2]]
  work_units.run(work, range(400), "test", 2, preempted=lambda: asked.reason() > 0)
  print("asked", asked.reason())
"""


def start_listening(tmp_path: pathlib.Path, work: str) -> subprocess.Popen:
  (tmp_path / "listening.py").write_text(PREEMPTED)
  words = [sys.executable, "listening.py", str(tmp_path), work]
  environ = {**os.environ, "PYTHONPATH": str(ROOT)}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(words, cwd=tmp_path, env=environ, start_new_session=True, **pipes)


def test_workers_finish_their_units_when_all_are_preempted(tmp_path: pathlib.Path):
  with start_listening(tmp_path, "slow") as process:
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("begun-*"))) < 2:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
      os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
  assert process.returncode == 0 and out in (f"asked {signal.SIGTERM:d}\n", f"asked {signal.SIGINT:d}\n"), err
  begun = {path.name.removeprefix("begun-") for path in tmp_path.glob("begun-*")}
  assert 2 <= len(begun) < 10 and begun == {path.name.removeprefix("unit-") for path in tmp_path.glob("unit-*")}


def test_workers_that_are_shielded_end_with_one_that_was_killed(tmp_path: pathlib.Path):
  with start_listening(tmp_path, "broken") as process:
    _, err = process.communicate(timeout=50)
  assert process.returncode == 1 and "WorkerLost: test: a worker was killed" in err


def test_a_worker_that_is_killed_is_an_error(tmp_path: pathlib.Path):
  """F25, of those that encode."""
  with pytest.raises(work_units.WorkerLost, match="test: a worker was killed.*what is done stays"):
    work_units.run(functools.partial(die, str(tmp_path), 3), range(40), "test", 2)
  assert 3 not in done(tmp_path)


def test_work_that_can_not_be_sent_is_an_error():
  with pytest.raises((pickle.PicklingError, AttributeError)):
    work_units.run(lambda unit: None, [1, 2], "test", 2)


def test_progress_is_told_on_stderr(tmp_path: pathlib.Path, capfd):
  work_units.run(functools.partial(leave, str(tmp_path), -1), range(3), "look", 0)
  out, err = capfd.readouterr()
  assert out == "" and "look" in err and "3/3" in err


SCRIPT = """
  import functools, json, sys, time
  sys.path.insert(0, {root!r})
  from sora_jax.runtime import work_units
  from tests.runtime import work_units_test

  def slow(folder, unit):
    time.sleep(0.03)
    work_units_test.leave(folder, -1, unit)

  if __name__ == "__main__":
    folder = sys.argv[1]
    missing = [unit for unit in range(30) if unit not in work_units_test.done(work_units_test.pathlib.Path(folder))]
    work_units.run(functools.partial(slow, folder), missing, "test", {workers})
"""


def start(script: pathlib.Path, folder: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, str(script), str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True
  )


def wait_for(folder: pathlib.Path, count: int, process: subprocess.Popen) -> None:
  end = time.monotonic() + 60
  while len(done(folder)) < count and process.poll() is None and time.monotonic() < end:
    time.sleep(0.01)
  assert len(done(folder)) >= count and process.poll() is None


def wait_until_gone(session: int) -> None:
  """Until no process of it is left."""
  end = time.monotonic() + 30
  while time.monotonic() < end:
    try:
      os.killpg(session, 0)
    except ProcessLookupError:
      return
    time.sleep(0.02)
  pytest.fail("a worker was left behind")


@pytest.mark.parametrize(
  ("how", "workers"), [("interrupt", 0), ("kill", 0), ("interrupt", 2), ("interrupt all", 2), ("kill", 2)]
)
def test_a_killed_process_is_taken_up_again(tmp_path: pathlib.Path, workers: int, how: str):
  """Only the units that are missing are done then, and no worker is left behind."""
  script, folder = tmp_path / "work.py", tmp_path / "units"
  folder.mkdir()
  script.write_text(textwrap.dedent(SCRIPT).format(root=str(ROOT), workers=workers))
  first = start(script, folder)
  wait_for(folder, 4, first)
  send = os.killpg if "all" in how else os.kill  # as a terminal does, or a script
  send(first.pid, signal.SIGINT if "interrupt" in how else signal.SIGKILL)
  error = first.communicate(timeout=60)[1]
  assert first.returncode != 0
  assert ("KeyboardInterrupt" in error) == ("interrupt" in how)
  wait_until_gone(first.pid)
  before = set(done(folder))
  assert 4 <= len(before) < 30
  second = start(script, folder)
  assert second.communicate(timeout=60)[1] is not None and second.returncode == 0
  found = done(folder)
  assert sorted(found) == list(range(30)) and all(len(who) == 1 for who in found.values())


def test_beam_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(ValueError, match=r"pip install 'sora_jax\[beam\]'"):
    work_units.run(print, [1], "test", beam=[])


class TestBeam:
  OPTIONS = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")

  @pytest.fixture(autouse=True)
  def paths(self, monkeypatch):
    """Beam's workers are new processes, which import the work by its module's name."""
    pytest.importorskip("apache_beam")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

  @pytest.mark.slow
  def test_two_processes_do_every_unit(self, tmp_path: pathlib.Path):
    work_units.run(functools.partial(leave, str(tmp_path), -1), range(12), "test", beam=self.OPTIONS)
    found = done(tmp_path)
    assert sorted(found) == list(range(12)) and all(len(who) == 1 for who in found.values())
    assert str(os.getpid()) not in {who for (who,) in found.values()}

  @pytest.mark.slow
  def test_an_error_reaches_the_caller(self, tmp_path: pathlib.Path):
    with pytest.raises(Exception, match="unit 3 is odd"):
      work_units.run(functools.partial(leave, str(tmp_path), 3), range(12), "test", beam=self.OPTIONS)
    assert 3 not in done(tmp_path)
