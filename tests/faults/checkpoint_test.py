"""Saves that end badly, for real: processes killed inside a save, disks that are full, files that rot.

Run as a program this file is the process that saves:  checkpoint_test.py FOLDER FIRST LAST [key=value ...]
"""

import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sora_jax.checkpoints import checkpoint, manifest
from sora_jax.train.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


# The process that saves.


def make_state(step: int, width: int = 64) -> TrainState:
  """A state that tells its step from every bit."""
  draw = lambda seed: np.random.default_rng([step, seed]).normal(size=(width, width)).astype(np.float32)
  tree = lambda seed: {"blocks": {"kernel": draw(seed), "bias": draw(seed + 1)[0]}}
  state = TrainState(tree(0), {"mu": tree(2), "nu": tree(4)}, tree(6), np.int32(step), np.uint32([step, 7]))
  return jax.tree.map(jax.numpy.asarray, state)


def count_operations(folder: str, kill_at: int, stop_at: int) -> list[int]:
  """Counts the file operations of this process inside `folder`; kills it without warning at one, or stops it.

  Stops it at the commit of step 2, where `stop_at` is -1.
  """
  count = [0]

  def hook(event: str, given: tuple) -> None:
    if event in FILE_OPERATIONS and str(given[0]).startswith(folder):
      count[0] += 1
      commit = event == "os.rename" and pathlib.Path(given[1]).name == "2"
      if count[0] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
      if count[0] == stop_at or (commit and stop_at == -1):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # before this thread goes on

  sys.addaudithook(hook)
  return count


def save_steps(folder: str, first: int, last: int, settings: dict[str, int]) -> None:
  """Saves steps and says when each has begun, and, with `wait`, when it is done.

  Settings:
    keep: how many steps stay. width: of the state's arrays.
    count, kill_at, stop_at: from the second save on count file operations, and die or stop at one.
    limit: no file of this process may be longer, from the second save on.
    leave: fill the disk but for these bytes before the second save.
  """
  width = settings.get("width", 64)
  with checkpoint.manager(folder, keep=settings.get("keep", 2)) as steps:
    for step in range(first, last + 1):
      if step == first + 1:
        steps.wait_until_finished()
        count = count_operations(folder, settings.get("kill_at", 0), settings.get("stop_at", 0))
        if "limit" in settings:
          resource.setrlimit(resource.RLIMIT_FSIZE, (settings["limit"],) * 2)
        if "leave" in settings:
          fill(pathlib.Path(folder).parent / "full", settings["leave"])
      checkpoint.save(steps, make_state(step, width), {"row": step}, {}, force=True)
      print("begun", step, flush=True)
      if settings.get("wait"):
        steps.wait_until_finished()
        print("saved", step, flush=True)
  print("counted", count[0], flush=True)


def fill(path: pathlib.Path, leave: int) -> None:
  """Fills a small disk but for `leave` bytes."""
  left = os.statvfs(path.parent)
  path.write_bytes(bytes(left.f_bavail * left.f_frsize - leave))


if __name__ == "__main__":
  save_steps(
    sys.argv[1],
    int(sys.argv[2]),
    int(sys.argv[3]),
    {name: int(value) for name, value in (word.split("=") for word in sys.argv[4:])},
  )
  sys.exit()


# The tests.


def start(folder: pathlib.Path, first: int, last: int, **settings: int) -> subprocess.Popen:
  words = [f"{name}={value}" for name, value in settings.items()]
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  return subprocess.Popen(
    [sys.executable, __file__, str(folder), str(first), str(last), *words],
    env=os.environ | {"PYTHONPATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen) -> tuple[int, dict[str, list[int]], str]:
  """(exit status, what it said by word, stderr)."""
  out, errors = process.communicate(timeout=120)
  said: dict[str, list[int]] = {"begun": [], "saved": [], "counted": []}
  for line in out.split("\n")[:-1]:  # a kill may cut the last one off
    word, number = line.split()
    said[word].append(int(number))
  return process.returncode, said, errors


def assert_newest_restores(folder: pathlib.Path, at_least: int, width: int = 64, damaged: tuple[int, ...] = ()) -> None:
  """The newest step but the damaged is back bit for bit, is no older than the last reported one, and saves go on."""
  like = jax.tree.map(jax.numpy.zeros_like, make_state(0, width))
  with checkpoint.manager(folder, keep=2) as steps:
    state, data, _ = checkpoint.restore_newest(steps, like)
    step = int(state.step)
    assert step >= at_least and data == {"row": step}
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(step, width)), strict=True):
      assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()
    assert tuple(steps.passed_over) == damaged and step == max(set(steps.all_steps()) - set(damaged))
    assert checkpoint.save(steps, make_state(step + 1, width), {"row": step + 1}, {}, force=True)
  assert manifest.verify(folder, step + 1)["faults"] == []
  assert not [name for name in manifest.listing(folder)["not_used"] if "damaged" not in name]


@pytest.fixture(scope="module")
def operations(tmp_path_factory) -> int:
  """How many file operations a second and a third save take."""
  status, said, errors = finish(start(tmp_path_factory.mktemp("counted"), 1, 3, kill_at=0, wait=1))
  assert status == 0, errors[-3000:]
  assert said["counted"][0] > 30
  return said["counted"][0]


def kill_at(folder: pathlib.Path, operation: int) -> None:
  # Steps 1 and 2 stay, so the third save deletes the first step: its deletion is among the operations too.
  status, said, errors = finish(start(folder, 1, 3, kill_at=operation, wait=1))
  assert status == -signal.SIGKILL, errors[-3000:]
  assert said["saved"][0] == 1
  assert_newest_restores(folder, said["saved"][-1])


@pytest.mark.parametrize("operation", [10, 40, 70])
def test_a_process_killed_inside_a_save_loses_no_committed_step(tmp_path, operation):
  """F02, at three points."""
  kill_at(tmp_path, operation)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(24))
def test_a_process_killed_at_any_operation_of_a_save_loses_no_committed_step(tmp_path, operations, part):
  """F02, at 24 points, of which none is the very last: how many operations there are differs by a few."""
  kill_at(tmp_path, 1 + part * (operations - 1) // 24)


def kill_after(folder: pathlib.Path, share: float) -> None:
  """Kills a process that saves larger states all the time, at a share of the time that its third save takes."""
  with start(folder, 1, 99, wait=1, width=1024) as process:
    times = [time.monotonic() for _ in wait_for(process, ["begun 1", "saved 1", "begun 2", "saved 2"])]
    time.sleep(share * (times[3] - times[1]))
    process.kill()
    status, said, _ = finish(process)
  assert status == -signal.SIGKILL
  assert_newest_restores(folder, max([2, *said["saved"]]), width=1024)


def wait_for(process: subprocess.Popen, lines: list[str]):
  """Yields as each line comes."""
  for line in lines:
    ready, _, _ = select.select([process.stdout], [], [], 120)
    assert ready and process.stdout.readline().strip() == line
    yield line


def test_a_process_killed_while_values_are_written_loses_no_committed_step(tmp_path):
  """F02, by the clock."""
  kill_after(tmp_path, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("share", np.linspace(0.05, 0.95, 10).round(2))
def test_a_process_killed_at_any_time_of_a_save_loses_no_committed_step(tmp_path, share):
  """F02, at ten times."""
  kill_after(tmp_path, share)


@pytest.mark.parametrize("stop_at", [1, 40, pytest.param(-1, id="commit")])
def test_a_run_that_wakes_inside_a_save_does_not_commit_what_a_later_one_has_half_written(
  tmp_path, monkeypatch, stop_at
):
  """F09: the later run took the folder while the earlier was stopped."""
  whole, half, go_on = ocp.path.atomicity.AtomicRenameTemporaryPath.finalize, threading.Event(), threading.Event()

  async def finalize(self):
    if self.get_final().name == "params":
      half.set()
      go_on.wait(60)
    await whole(self)

  monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", finalize)
  with start(tmp_path, 1, 3, keep=1, stop_at=stop_at) as first:
    try:
      until = time.monotonic() + 60
      while not os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
        assert time.monotonic() < until
        time.sleep(0.05)
      with checkpoint.manager(tmp_path, keep=1) as second:
        assert checkpoint.save(second, make_state(2), {"row": 2}, {}, force=True)
        assert half.wait(60)
        first.send_signal(signal.SIGCONT)
        status, _, errors = finish(first)
        assert manifest.committed(manifest.root(tmp_path)) == [1]
        go_on.set()
    finally:
      go_on.set()
      first.kill()
  assert status == 1 and "another run has begun to save there" in errors, errors[-3000:]
  assert manifest.verify(tmp_path) == {"checked": [2], "unchecked": [], "faults": []}
  assert checkpoint.digest(tmp_path)["step"] == 2
  assert_newest_restores(tmp_path, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's reads that fail half way
def test_who_reads_while_a_run_saves_and_deletes_always_finds_a_whole_step(tmp_path, capfd):
  """F09: one step is kept, and it is gone a moment later."""
  found = [0]
  with start(tmp_path, 1, 9999, keep=1) as process:
    for _ in wait_for(process, ["begun 1", "begun 2", "begun 3"]):
      pass
    while found[-1] < 60 and process.poll() is None:
      arrays, _, step = checkpoint.load_arrays(tmp_path, "ema")
      np.testing.assert_array_equal(arrays["blocks/kernel"], make_state(step).ema["blocks"]["kernel"])
      found.append(step)
    process.kill()
  assert found == sorted(found) and found[-1] >= 60
  assert "damaged" not in capfd.readouterr().err


def assert_failed_in_time(folder: pathlib.Path, done: tuple[int, dict[str, list[int]], str], reason: str) -> None:
  status, said, errors = done
  # Orbax's coroutines that are cut short have something to say too.
  [line] = [line for line in errors.splitlines() if "CheckpointError: " in line]
  assert status == 1 and "step 2 was not saved: " in line and reason in line and "Steps [1] are as they were" in line
  assert max(said["begun"]) <= 2, "the failure of the second save came out later than at the third"
  assert manifest.committed(manifest.root(folder)) == [1]
  assert manifest.verify(folder) == {"checked": [1], "unchecked": [], "faults": []}
  assert checkpoint.digest(folder)["step"] == 1


@pytest.mark.slow
def test_a_writer_that_fails_stops_the_run_and_leaves_the_old_step(tmp_path):
  """F05, with a limit on the size of files; an error of the device is in steps_test.py."""
  done = finish(start(tmp_path, 1, 5, keep=1, limit=2000))
  assert_failed_in_time(tmp_path, done, "File too large")


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 8 MB."""
  place = tmp_path / "disk"
  place.mkdir()
  made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], capture_output=True, check=False)
  if made.returncode:
    pytest.skip("no right to mount a small disk")
  yield place
  subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 50_000])
def test_a_full_disk_stops_the_run_and_leaves_the_old_step(small_disk, leave):
  """F05 and F07."""
  folder = small_disk / "run"
  folder.mkdir()
  done = finish(start(folder, 1, 5, keep=1, leave=leave))
  assert_failed_in_time(folder, done, "No space left on device")
  (small_disk / "full").unlink()
  assert_newest_restores(folder, 1)


@pytest.mark.slow
def test_rot_on_disk_is_found_in_a_new_process(tmp_path):
  """F03: a bit; files that are cut or zeroed are in checkpoint_test.py and steps_test.py."""
  status, _, errors = finish(start(tmp_path, 1, 3, wait=1))
  assert status == 0, errors[-3000:]
  path = max((tmp_path / "checkpoints" / "3" / "optimizer").rglob("d/*"), key=lambda each: each.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  command = [sys.executable, "-m", "sora_jax.cli.main", "checkpoint"]
  checked = subprocess.run(
    [*command, "verify", tmp_path, "--json"], capture_output=True, text=True, cwd=ROOT, check=False
  )
  assert checked.returncode == 1 and checked.stderr.splitlines()[-1].startswith("sora: ")
  [fault] = json.loads(checked.stdout.splitlines()[-1])["faults"]
  assert path.name in fault and path.name in checked.stderr
  assert_newest_restores(tmp_path, 2, damaged=(3,))
  aside = tmp_path / "checkpoints" / "3.damaged" / path.relative_to(tmp_path / "checkpoints" / "3")
  assert aside.read_bytes() == content
