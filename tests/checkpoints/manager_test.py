"""The steps of a run: which stay, which can be used, and what becomes of a save or a deletion that fails."""

import errno
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sora_jax.checkpoints import checkpoint, manifest
from sora_jax.checkpoints.checkpoint import CheckpointError
from sora_jax.train.state import TrainState


def make_state(step: int) -> TrainState:
  tree = {"kernel": jnp.full((4, 8), step, jnp.float32)}
  return TrainState(tree, {"mu": tree}, tree, jnp.int32(step), jax.random.key_data(jax.random.key(0)))


def save(steps: checkpoint.CheckpointManager, *numbers: int) -> None:
  for number in numbers:
    assert checkpoint.save(steps, make_state(number), {"row": number}, {}, force=True)
  steps.wait_until_finished()


def on_disk(workdir: pathlib.Path) -> list[int]:
  return manifest.committed(manifest.root(workdir))


def spoil(workdir: pathlib.Path, step: int) -> None:
  """Zeroes the values of a step."""
  files = list((workdir / "checkpoints" / str(step) / "params").rglob("d/*"))
  assert files
  for path in files:
    path.write_bytes(bytes(path.stat().st_size))


def test_every_step_gets_a_manifest_of_all_its_files(tmp_path):
  with checkpoint.manager(tmp_path) as steps:
    save(steps, 1, 2)
  for step in (1, 2):
    saved = json.loads((tmp_path / "checkpoints" / f"{step}.manifest.json").read_text())
    folder = tmp_path / "checkpoints" / str(step)
    assert set(saved["files"]) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
  assert manifest.verify(tmp_path) == {"checked": [1, 2], "unchecked": [], "faults": []}


def test_the_manifest_of_the_last_step_is_there_when_the_manager_closes(tmp_path, monkeypatch):
  slow = manifest.write
  monkeypatch.setattr(manifest, "write", lambda *given: (time.sleep(0.3), slow(*given)))
  with checkpoint.manager(tmp_path) as steps:
    checkpoint.save(steps, make_state(1), {}, {})
  assert (tmp_path / "checkpoints" / "1.manifest.json").is_file()


def test_a_manifest_that_can_not_be_written_costs_only_itself(tmp_path, monkeypatch, capfd):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(manifest, "write", full)
  with checkpoint.manager(tmp_path) as steps:
    save(steps, 1, 2)
  assert "step 1 has no manifest, so damage to it would go unseen: [Errno 28] No space left" in capfd.readouterr().err
  assert checkpoint.digest(tmp_path)["step"] == 2


class TestWhichStay:
  def test_the_interval_and_the_number_of_kept_steps_are_kept(self, tmp_path):
    with checkpoint.manager(tmp_path, every=2, keep=2) as steps:
      saved = [checkpoint.save(steps, make_state(step), {}, {}) for step in (2, 3, 4, 6)]
      steps.wait_until_finished()
      assert saved == [True, False, True, True]
      assert sorted(steps.all_steps()) == [4, 6]
    assert on_disk(tmp_path) == [4, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.json")) == [
      "4.manifest.json",
      "6.manifest.json",
    ]

  def test_all_stay_where_no_number_is_given(self, tmp_path):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 1, 2, 3)
    assert on_disk(tmp_path) == [1, 2, 3]

  def test_every_nth_and_pinned_steps_stay_for_ever(self, tmp_path):
    with checkpoint.manager(tmp_path, keep=1, keep_every=4) as steps:
      save(steps, 2, 3)
      manifest.pin(tmp_path, 3, True)
      save(steps, 4, 5, 8, 9)
    assert on_disk(tmp_path) == [3, 4, 8, 9]
    manifest.pin(tmp_path, 3, False)
    with checkpoint.manager(tmp_path, keep=1, keep_every=4) as steps:
      save(steps, 10)
    assert on_disk(tmp_path) == [4, 8, 10]

  def test_steps_are_in_order_of_their_number(self, tmp_path):
    """F08."""
    with checkpoint.manager(tmp_path, keep=2) as steps:
      save(steps, 9, 10, 100)
    assert on_disk(tmp_path) == [10, 100]
    with checkpoint.reader(tmp_path) as steps:
      assert steps.newest() == 100

  @pytest.mark.parametrize("keep", [0, -1])
  def test_to_keep_none_is_an_error(self, tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep is {keep}"):
      checkpoint.manager(tmp_path, keep=keep)

  def test_a_step_that_can_not_be_deleted_is_a_warning(self, tmp_path, monkeypatch, capfd):
    """F08."""

    def stuck(*_, **__):
      raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patched, checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      patched.setattr(ocp.path.deleter.PathDeleter, "delete", stuck)
      save(steps, 2, 3)
    assert on_disk(tmp_path) == [1, 2, 3]
    assert "an old step was not deleted: [Errno 16] Device or resource busy" in capfd.readouterr().err
    assert manifest.verify(tmp_path) == {"checked": [1, 2, 3], "unchecked": [], "faults": []}
    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 4)
    assert on_disk(tmp_path) == [4]


class TestDamage:
  def test_the_newest_whole_step_is_used(self, tmp_path, capfd):
    """F03: zeroed."""
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 9, 10, 100)
    spoil(tmp_path, 100)
    spoil(tmp_path, 10)
    with checkpoint.reader(tmp_path) as steps:
      assert steps.newest() == 9
      assert checkpoint.restore_newest(steps, make_state(0))[1] == {"row": 9}
    said = capfd.readouterr().err
    assert "step 100 is damaged: 100/params/" in said and "step 10 is damaged: 10/params/" in said
    assert said.count("passed over") == 2
    assert on_disk(tmp_path) == [9, 10, 100]

  def test_the_next_save_sets_it_aside_and_takes_its_number(self, tmp_path, capfd):
    """F03: nothing is deleted."""
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 6, 8)
    spoil(tmp_path, 8)
    with checkpoint.manager(tmp_path) as steps:
      assert checkpoint.restore_newest(steps, make_state(0))[1] == {"row": 6}
      assert on_disk(tmp_path) == [6, 8]
      save(steps, 8)
    assert "step 8 is now 8.damaged" in capfd.readouterr().err
    assert manifest.listing(tmp_path)["not_used"] == ["8.damaged"]
    assert manifest.verify(tmp_path) == {"checked": [6, 8], "unchecked": [], "faults": []}
    assert checkpoint.digest(tmp_path)["step"] == 8

  def test_damaged_steps_do_not_count_among_the_last(self, tmp_path):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 6, 8, 10)
    spoil(tmp_path, 8)
    spoil(tmp_path, 10)
    with checkpoint.manager(tmp_path, every=1, keep=1) as steps:
      checkpoint.restore_newest(steps, make_state(0))
      assert checkpoint.save(steps, make_state(7), {}, {})  # not forced: a damaged newer step is no reason not to
    assert on_disk(tmp_path) == [7]
    assert manifest.listing(tmp_path)["not_used"] == ["10.damaged", "8.damaged"]

  def test_a_step_that_is_taken_up_is_not_saved_again(self, tmp_path):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 6, 8)
    spoil(tmp_path, 8)
    with checkpoint.manager(tmp_path) as steps:
      checkpoint.restore_newest(steps, make_state(0))
      assert not checkpoint.save(steps, make_state(6), {}, {}, force=True)
    assert checkpoint.digest(tmp_path)["step"] == 6

  def test_a_save_without_a_look_touches_nothing(self, tmp_path):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 6)
    spoil(tmp_path, 6)
    with checkpoint.manager(tmp_path) as steps:
      assert not checkpoint.save(steps, make_state(6), {}, {}, force=True)
      save(steps, 7)
    assert on_disk(tmp_path) == [6, 7]

  def test_where_none_is_whole_nothing_is_begun_afresh(self, tmp_path):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 6)
    spoil(tmp_path, 6)
    with checkpoint.manager(tmp_path) as steps, pytest.raises(CheckpointError, match="no checkpoint can be used: .*6"):
      checkpoint.restore_newest(steps, make_state(0))
    assert on_disk(tmp_path) == [6]

  def test_a_manifest_of_an_older_step_of_that_number_is_not_taken_for_the_new_one(self, tmp_path, monkeypatch):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 6)
      (tmp_path / "checkpoints" / "7.manifest.json").write_text(
        (tmp_path / "checkpoints" / "6.manifest.json").read_text()
      )
      monkeypatch.setattr(manifest, "write", lambda *_: None)  # killed before it
      save(steps, 7)
    assert manifest.verify(tmp_path)["unchecked"] == [7]
    assert checkpoint.digest(tmp_path)["step"] == 7


class TestAnotherRunSavesHere:
  """F09, in one process: steps come and go between a look and the next."""

  @pytest.fixture
  def other(self, tmp_path):
    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      yield steps

  def once(self, monkeypatch, place, name: str, act) -> None:
    """Has `act` come before the next call of a function."""
    whole = getattr(place, name)

    def call(*given, **named):
      monkeypatch.setattr(place, name, whole)
      act()
      return whole(*given, **named)

    monkeypatch.setattr(place, name, call)

  @pytest.mark.parametrize(
    ("place", "name"),
    [(manifest, "faults"), (checkpoint, "_restore_state"), (ocp.Checkpointer, "restore")],
    ids=["before the files are compared", "before they are read", "between their parts"],
  )
  def test_a_step_that_it_deletes_is_not_taken_for_damaged(self, tmp_path, other, monkeypatch, capfd, place, name):
    with checkpoint.reader(tmp_path) as steps:
      self.once(monkeypatch, place, name, lambda: save(other, 2))
      assert checkpoint.restore_newest(steps, make_state(0))[1] == {"row": 2}
      assert not steps.passed_over
    assert "damaged" not in capfd.readouterr().err

  def test_a_step_that_is_half_deleted_is_not_taken_for_damaged(self, tmp_path, other, monkeypatch, capfd):
    with checkpoint.reader(tmp_path) as steps:
      with monkeypatch.context() as patched:
        patched.setattr(ocp.path.deleter.PathDeleter, "delete", lambda *_, **__: None)
        save(other, 2)
      (tmp_path / "checkpoints" / "1" / "meta" / "metadata").unlink()
      assert checkpoint.restore_newest(steps, make_state(0))[1] == {"row": 2}
    assert "damaged" not in capfd.readouterr().err

  def test_a_run_that_takes_the_folder_knows_what_was_saved_until_then(self, tmp_path, other, monkeypatch):
    self.once(monkeypatch, manifest, "set_writer", lambda: save(other, 2, 3))
    with checkpoint.manager(tmp_path, keep=1) as steps:
      assert list(steps.all_steps()) == [3]

  def test_a_step_that_goes_while_the_folder_is_listed_is_no_error(self, tmp_path, other, monkeypatch):
    gone = lambda: (_ for _ in ()).throw(FileNotFoundError("1"))
    self.once(monkeypatch, ocp.path.step, "is_path_finalized", gone)
    assert checkpoint.digest(tmp_path)["step"] == 1

  def test_a_step_that_comes_while_the_folder_is_listed_is_not_missed(self, tmp_path, other, monkeypatch):
    with monkeypatch.context() as patched:
      looks, whole = iter([False]), ocp.path.step.is_path_finalized
      patched.setattr(ocp.path.step, "is_path_finalized", lambda *given, **named: next(looks, whole(*given, **named)))
      assert checkpoint.digest(tmp_path)["step"] == 1

  def test_a_folder_that_can_never_be_listed_is_not_taken_for_empty(self, tmp_path, other, monkeypatch):
    def gone(*_, **__):
      raise FileNotFoundError("1")

    monkeypatch.setattr(ocp.path.step, "is_path_finalized", gone)
    with pytest.raises(FileNotFoundError):
      checkpoint.reader(tmp_path)

  def test_damage_that_stays_is_told(self, tmp_path, other, capfd):
    spoil(tmp_path, 1)
    with checkpoint.reader(tmp_path) as steps, pytest.raises(CheckpointError, match="no checkpoint can be used: .*1"):
      checkpoint.restore_newest(steps, make_state(0))


class TestALaterRunTakesTheFolder:
  """F09: what the earlier run had begun it neither commits nor counts as saved, and it deletes nothing more."""

  def at_commit(self, monkeypatch, step: int, before=lambda: None, after=lambda: None) -> None:
    """Has something come just before and after the commit of a step."""
    whole = ocp.path.atomicity.AtomicRenameTemporaryPath.finalize

    async def finalize(self):
      mine = self.get_final().name == str(step)
      before() if mine else None
      await whole(self)
      after() if mine else None

    monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", finalize)

  def test_no_two_runs_write_to_one_folder(self, tmp_path, monkeypatch):
    seen = []
    whole = ocp.path.atomicity.AtomicRenameTemporaryPath.finalize

    async def finalize(self):
      seen.append(self.get().name)
      await whole(self)

    monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", finalize)
    for workdir in ("a", "b"):
      with checkpoint.manager(tmp_path / workdir) as steps:
        save(steps, 1)
    names = [name for name in seen if name.startswith("1.")]
    assert len(set(names)) == 2 and all(name.startswith("1.orbax-checkpoint-tmp-") for name in names)

  def test_the_earlier_commits_nothing_more(self, tmp_path, monkeypatch):
    root = manifest.root(tmp_path)
    with pytest.raises(CheckpointError, match="step 2 was not saved: another run has begun to save there"):
      with checkpoint.manager(tmp_path, keep=1) as steps:
        save(steps, 1)
        whole = ocp.path.atomicity.AtomicRenameTemporaryPath.create

        async def create(self):
          manifest.set_writer(root, "another")
          return await whole(self)

        monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "create", create)
        checkpoint.save(steps, make_state(2), {}, {}, force=True)
    assert on_disk(tmp_path) == [1] and not (root / "2.manifest.json").exists()
    assert [name.partition("-tmp-")[0] for name in manifest.listing(tmp_path)["not_used"]] == ["2.orbax-checkpoint"]

  def test_the_earlier_commits_nothing_whose_folder_was_taken_away(self, tmp_path, monkeypatch):
    """It was stopped between its last look and the commit."""
    with pytest.raises(CheckpointError, match="step 2 was not saved: another run has begun to save there"):
      with checkpoint.manager(tmp_path, keep=1) as steps:
        save(steps, 1)
        self.at_commit(monkeypatch, 2, before=steps_of_another(tmp_path).take)
        checkpoint.save(steps, make_state(2), {}, {}, force=True)
    assert on_disk(tmp_path) == [1] and manifest.listing(tmp_path)["not_used"] == []

  def test_the_earlier_says_so_though_it_can_not_note_down_what_it_wanted_to(self, tmp_path, monkeypatch):
    """Orbax writes a folder's metadata in a thread of its own and raises what came of it as it is closed."""
    whole = ocp.AsyncCheckpointer.close

    def close(self):
      whole(self)
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "_CHECKPOINT_METADATA")

    monkeypatch.setattr(ocp.AsyncCheckpointer, "close", close)
    with pytest.raises(CheckpointError, match="step 2 was not saved: another run has begun to save there"):
      with checkpoint.manager(tmp_path, keep=1) as steps:
        save(steps, 1)
        self.at_commit(monkeypatch, 2, before=steps_of_another(tmp_path).take)
        checkpoint.save(steps, make_state(2), {}, {}, force=True)

  def test_what_fails_as_it_is_closed_is_raised_where_no_other_run_is_the_cause(self, tmp_path, monkeypatch):
    def close(self):
      raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
      with checkpoint.manager(tmp_path, keep=1) as steps:
        save(steps, 1)
        monkeypatch.setattr(ocp.AsyncCheckpointer, "close", close)

  def test_the_earlier_deletes_nothing_more(self, tmp_path, monkeypatch):
    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      self.at_commit(monkeypatch, 2, after=lambda: manifest.set_writer(manifest.root(tmp_path), "another"))
      save(steps, 2)
    assert on_disk(tmp_path) == [1, 2]

  def test_a_step_that_another_run_saved_is_not_taken_for_its_own(self, tmp_path, monkeypatch, capfd):
    root = tmp_path / "checkpoints"

    def other_saves():
      shutil.copytree(root / "1", root / "2")
      raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(CheckpointError, match="step 2 was not saved: .*Input/output error"):
      with checkpoint.manager(tmp_path, keep=1) as steps:
        save(steps, 1)
        self.at_commit(monkeypatch, 2, before=other_saves)
        checkpoint.save(steps, make_state(2), {}, {}, force=True)
    assert "was not deleted" not in capfd.readouterr().err
    assert on_disk(tmp_path) == [1, 2] and not (root / "2.manifest.json").exists()

  def test_what_killed_runs_left_is_listed_and_removed_by_the_next(self, tmp_path, capfd):
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 1)
    left = ["1.orbax-checkpoint-tmp-0", "2.orbax-checkpoint-tmp-00000001", "2.orbax-checkpoint-tmp-00000001.0"]
    for name in left:
      shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / name)
    assert manifest.listing(tmp_path)["not_used"] == left
    with checkpoint.reader(tmp_path):
      assert manifest.listing(tmp_path)["not_used"] == left
    with checkpoint.manager(tmp_path):
      assert manifest.listing(tmp_path)["not_used"] == []
    assert on_disk(tmp_path) == [1] and not capfd.readouterr().err

  def test_what_can_not_be_removed_is_a_warning(self, tmp_path, monkeypatch, capfd):
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-00000001"
    left.mkdir(parents=True)

    def stuck(*_, **__):
      raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(ocp.path.deleter.PathDeleter, "delete", stuck)
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 1)
    assert "an unfinished save was not removed: [Errno 16] Device or resource busy" in capfd.readouterr().err

  def test_an_old_step_goes_though_a_save_of_that_number_was_left(self, tmp_path):
    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp")
      save(steps, 2)
    assert on_disk(tmp_path) == [2]

  def test_a_pin_that_is_set_while_the_next_step_is_saved_counts(self, tmp_path, monkeypatch):
    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      self.at_commit(monkeypatch, 2, after=lambda: manifest.pin(tmp_path, 1, True))
      save(steps, 2)
    assert on_disk(tmp_path) == [1, 2]

  def test_a_pin_that_comes_too_late_is_told_and_taken_back(self, tmp_path, monkeypatch, capfd):
    whole = ocp.path.deleter.PathDeleter.delete

    def delete(*given, **named):
      manifest.pin(tmp_path, 1, True)
      whole(*given, **named)

    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      monkeypatch.setattr(ocp.path.deleter.PathDeleter, "delete", delete)
      save(steps, 2)
    assert on_disk(tmp_path) == [2] and not manifest.is_pinned(manifest.root(tmp_path), 1)
    assert "step 1 was pinned while it was being deleted, so it is gone" in capfd.readouterr().err


def steps_of_another(workdir: pathlib.Path) -> checkpoint.CheckpointManager:
  """The steps of another run, which has not begun to save yet."""
  return checkpoint.CheckpointManager(manifest.root(workdir), checkpoint.Schedule())


class TestFailedSaves:
  @pytest.fixture
  def broken(self, monkeypatch):
    """Has the commit of step 2 fail, in the background."""
    whole = ocp.path.atomicity.AtomicRenameTemporaryPath.finalize

    async def finalize(self):
      if self.get_final().name == "2":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
      await whole(self)

    monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", finalize)

  def test_the_next_save_says_so_and_the_steps_before_are_whole(self, tmp_path, broken):
    """F05 and F07: an error of the device."""
    with checkpoint.manager(tmp_path, keep=1) as steps:
      save(steps, 1)
      assert checkpoint.save(steps, make_state(2), {}, {})
      said = r"step 2 was not saved: .*Input/output error.*\. Steps \[1\] are as they were"
      with pytest.raises(CheckpointError, match=said):
        checkpoint.save(steps, make_state(3), {}, {})
      assert list(steps.all_steps()) == [1]
    assert on_disk(tmp_path) == [1]
    assert manifest.verify(tmp_path) == {"checked": [1], "unchecked": [], "faults": []}

  def test_so_does_the_end(self, tmp_path, broken):
    """F06."""
    with pytest.raises(CheckpointError, match="step 2 was not saved"), checkpoint.manager(tmp_path) as steps:
      save(steps, 1)
      checkpoint.save(steps, make_state(2), {}, {})

  def test_later_saves_are_not_left_out(self, tmp_path, broken):
    """F06: the step is not listed, and later ones are saved."""
    with checkpoint.manager(tmp_path) as steps:
      save(steps, 1)
      checkpoint.save(steps, make_state(2), {}, {})
      with pytest.raises(CheckpointError):
        steps.wait_until_finished()
      save(steps, 3)
    assert on_disk(tmp_path) == [1, 3]
    np.testing.assert_array_equal(checkpoint.load_arrays(tmp_path, "ema")[0]["kernel"], np.full((4, 8), 3))


TWO_HOSTS = """
import sys
import time
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from sora_jax.checkpoints import checkpoint, manifest
from sora_jax.train.state import TrainState

folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
mesh = jax.make_mesh((2,), ("all",))
split, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())


def make_state(step):
  place = lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda at: np.asarray(x)[at])
  tree = {"kernel": place(np.full((4, 8), step, np.float32), split)}
  return TrainState(tree, {"mu": tree}, tree, place(np.int32(step), whole), place(np.uint32([0, 7]), whole))


def equal(state, step):
  parts = [np.asarray(each.data) for each in state.params["kernel"].addressable_shards]
  return int(state.step) == step and all((part == step).all() for part in parts)


with checkpoint.manager(folder) as steps:
  for step in (1, 2):
    assert checkpoint.save(steps, make_state(step), {"row": step}, {})
multihost_utils.sync_global_devices("saved")
if index == 0:
  assert manifest.verify(folder) == {"checked": [1, 2], "unchecked": [], "faults": []}
  files = [path for path in (manifest.root(folder) / "2" / "ema" / "d").iterdir()]
  files[0].write_bytes(b"")
multihost_utils.sync_global_devices("damaged")
with checkpoint.manager(folder) as steps:
  try:
    checkpoint.restore(steps, make_state(0), 2)
    raise AssertionError("step 2 is damaged")
  except checkpoint.DamagedCheckpoint as error:
    print(error)
  state, data, _ = checkpoint.restore_newest(steps, make_state(0))
  assert equal(state, 1) and data == {"row": 1}
  assert checkpoint.save(steps, make_state(2), {"row": 22}, {})
with checkpoint.reader(folder) as steps:
  state, data, _ = checkpoint.restore_newest(steps, make_state(0))
  assert equal(state, 2) and data == {"row": 22}
created = ocp.path.atomicity.AtomicRenameTemporaryPath.create


async def create(self):
  manifest.set_writer(manifest.root(folder), "another")
  return await created(self)


steps = checkpoint.manager(folder)
ocp.path.atomicity.AtomicRenameTemporaryPath.create = create
began = time.monotonic()
assert checkpoint.save(steps, make_state(3), {"row": 3}, {})
try:
  steps.wait_until_finished()
  assert index == 1
except checkpoint.CheckpointError as error:
  assert index == 0 and "step 3 was not saved: another run has begun" in str(error), error
assert time.monotonic() - began < 60
multihost_utils.sync_global_devices("taken")
try:
  checkpoint.save(steps, make_state(4), {"row": 4}, {})
  raise AssertionError("another run saves")
except checkpoint.CheckpointError as error:
  assert "another run has begun" in str(error)
steps.close()
"""


@pytest.mark.slow
def test_two_hosts_save_and_agree_on_what_is_damaged(tmp_path):
  """F03, on two hosts."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  hosts = [
    subprocess.Popen(
      [sys.executable, "-c", TWO_HOSTS, str(tmp_path / "run"), str(port), str(index)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    said = [host.communicate(timeout=180) for host in hosts]
  finally:
    for host in hosts:
      host.kill()
  assert [host.returncode for host in hosts] == [0, 0], "\n".join(errors[-3000:] for _, errors in said)
  assert "step 2 is damaged: 2/ema/d/" in said[0][0] and "step 2 is damaged: process 0 says why" in said[1][0]
  assert said[0][1].count("passed over") == 1 and said[1][1].count("passed over") == 0
  assert [name.partition("-tmp-")[0] for name in manifest.listing(tmp_path / "run")["not_used"]] == [
    "2.damaged",
    "3.orbax-checkpoint",
  ]
  assert manifest.verify(tmp_path / "run") == {"checked": [1, 2], "unchecked": [], "faults": []}
  np.testing.assert_array_equal(checkpoint.load_arrays(tmp_path / "run", "ema")[0]["kernel"], np.full((4, 8), 2))
