"""The saved steps of one run: which are whole, which stay, and what became of the last save.

Every process calls these functions; process 0 reads and writes the manifests, for which all hosts compute checksums,
and decides for all.
"""

import contextlib
import dataclasses
import secrets
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from sora_jax.checkpoints import manifest
from sora_jax.checkpoints.manifest import CheckpointError
from sora_jax.runtime.hosts import ALONE, Hosts

ARRAYS = ("params", "optimizer", "ema", "train")
JSONS = ("data", "meta")
LOOKS = 10  # at a folder in which steps come and go
UNFINISHED = ocp.path.atomicity.TMP_DIR_SUFFIX + "-"  # in the name of a folder that is no step yet; an id follows
TAKEN = (
  "another run has begun to save there since this one did, so this one ends and saves nothing more: start one run a "
  "--workdir at a time"
)


class DamagedCheckpoint(CheckpointError):
  """A step's files are not what was written, or not those of a checkpoint."""


class CheckpointManager(ocp.CheckpointManager):
  """Orbax's manager, which also writes a manifest after each commit and knows which steps are damaged."""

  def __init__(self, folder: epath.Path, options: ocp.CheckpointManagerOptions, hosts: Hosts = ALONE):
    self.hosts = hosts
    handlers = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
    handlers |= {name: ocp.JsonCheckpointHandler() for name in JSONS}
    if not options.read_only:
      self.writer_id = f"{_agreed(secrets.randbits(31)):08x}"
      options = dataclasses.replace(options, temporary_path_class=_unfinished(self, folder))
    super().__init__(folder, options=options, item_handlers=handlers)
    self._checkpoint_deleter = _Deleter(self)
    self.passed_over: dict[int, str] = {}  # damaged steps, and what is wrong in one line; a save sets them aside
    self._saving: int | None = None
    self._committed: int | None = None  # by this group
    self._refused: Exception | None = None  # why the save that is under way is not committed
    self._manifest: threading.Thread | None = None

  def where(self, step: int | None) -> str:
    return f"checkpoint {self.directory} step {step}"

  def _load_checkpoint_infos(self, *args: Any, **options: Any) -> list:
    """Orbax's, until two in a row agree.

    While a folder is listed in which a run saves, a step may go before it is asked for its age, and the one that comes
    be missed.
    """
    known: list[int] | None = None
    for look in range(1, LOOKS + 1):
      try:
        found = super()._load_checkpoint_infos(*args, **options)
      except (FileNotFoundError, NotADirectoryError):
        if look == LOOKS:
          raise
        continue
      before, known = known, [each.step for each in found]
      if known == before:
        break
    return found

  def look_again(self) -> bool:
    """Whether others are there than this process knew: a run saves and deletes here. It knows them now.

    Never among several processes, which must know the same.
    """
    known = self.all_steps()
    if jax.process_count() == 1:
      self.reload()
    return self.all_steps() != known

  def take(self) -> None:
    """From now on this group of processes saves here. Another that still does notices it before its next save."""
    if jax.process_index() == 0:
      try:
        manifest.set_writer(self.directory, self.writer_id)
      except Exception as error:  # clients of buckets have kinds of their own
        raise CheckpointError(f"{self.directory} can't be written to: {first_line(error)}") from error
      self._discard_unfinished()
    self.reload()  # what the other has saved until now; in a bucket it may yet commit the step that it is at

  def _discard_unfinished(self) -> None:
    """Removes what earlier runs have not committed. One that still lives can't commit it after that.

    Renamed first, so that no run can commit a folder that is half removed.
    """
    for number, path in enumerate(sorted(self.directory.iterdir())):
      step, mark, _ = path.name.partition(UNFINISHED)
      if mark:
        own = path.with_name(f"{step}{mark}{self.writer_id}.{number}")
        try:
          ocp.path.deleter.PathDeleter(self.directory).delete(path.rename(own))
        except OSError as error:
          print(f"{path}: an unfinished save was not removed: {first_line(error)}", file=sys.stderr)

  def superseded(self) -> bool:
    """Whether another group has begun to save here."""
    return manifest.writer(self.directory) not in ("", self.writer_id)

  def may_commit(self) -> bool:
    """On process 0, before a part of a step is committed and before the step is.

    Nothing is raised before all processes know that the save is over, or they would wait for this one.
    """
    if self._refused is None:
      try:
        if not self.superseded():
          return True
        self._refused = CheckpointError(TAKEN)
      except Exception as error:  # clients of buckets have kinds of their own
        self._refused = error
    return False

  def _finalize_checkpoint(self, step: int) -> None:
    """Orbax's, on all processes, between a commit and the deletion of old steps."""
    refused, self._refused = self._refused, None
    if refused is not None:
      raise refused
    self._committed = step
    super()._finalize_checkpoint(step)

  def check_writer(self) -> None:
    """Raises:
    CheckpointError: another group has begun to save here.
    """
    other = False
    try:
      other = jax.process_index() == 0 and self.superseded()
    except Exception as error:  # the save itself tells whether the folder can be used
      print(f"{self.directory}: not known whether another run saves there: {first_line(error)}", file=sys.stderr)
    if _agreed(int(other)):
      raise CheckpointError(f"{self.directory}: {TAKEN}")

  def write_manifest_after(self, step: int) -> None:
    """Has the manifest of `step`, whose save has begun, written in the background once the step is committed."""
    self._saving = step
    if jax.process_index() == 0 or self.hosts.count > 1:
      self._manifest = threading.Thread(target=self._write_manifest, args=(step,), name="manifest")
      self._manifest.start()

  def _write_manifest(self, step: int) -> None:
    with contextlib.suppress(Exception):  # the main thread gets the same error from its own wait
      super().wait_until_finished()
    try:
      whole = step == self._committed and step in manifest.committed(self.directory)
      known = self._hash_together(step, whole) if self.hosts.count > 1 else {}
      if whole and jax.process_index() == 0:
        manifest.write(self.directory, step, known)
    except Exception as error:  # whatever it is, the step itself is whole
      print(f"{self.where(step)} has no manifest, so damage to it would go unseen: {error}", file=sys.stderr)

  def _hash_together(self, step: int, whole: bool) -> dict[str, dict]:
    """This host's share of a manifest's entries, and on host 0 those of all that have theirs in time."""
    name, mine = f"manifest {self.directory} {step}", {}
    try:
      if whole:
        mine = manifest.entries(self.directory, step, self.hosts.index, self.hosts.count)
    finally:
      if not self.hosts.is_first:
        self.hosts.leave(name, mine)
    for theirs in self.hosts.collect(name, self.hosts.limit) if whole and self.hosts.is_first else ():
      mine |= theirs
    return mine

  def wait_until_finished(self) -> None:
    """Waits until the last save is on disk, with its manifest. Orbax calls it before the next save and at the end.

    Raises:
      CheckpointError: the last save failed; the steps before it are as they were.
    """
    failure = None
    try:
      super().wait_until_finished()
    except Exception as error:  # TensorStore, the file system and other hosts raise many kinds
      failure = error
    if self._manifest is not None:
      self._manifest.join()
    if failure is None:
      return
    if self._saving != self._committed:
      self.reload()
      reason = first_line(failure)
      with contextlib.suppress(Exception):
        reason = TAKEN if self.superseded() else reason  # which takes the files away
      said = f"{self.where(self._saving)} was not saved: {reason}"
      raise CheckpointError(f"{said}. Steps {sorted(self.all_steps())} are as they were") from failure
    print(f"{self.directory}: an old step was not deleted: {first_line(failure)}", file=sys.stderr)

  def newest(self, parts: Sequence[str] = ()) -> int:
    """The newest step whose `parts` are as they were written, or that has no manifest. Damaged ones are passed over.

    Raises:
      CheckpointError: there is none.
    """
    chosen = -1
    left = sorted(set(self.all_steps()) - self.passed_over.keys(), reverse=True)
    if jax.process_index() == 0:
      for step in left:
        wrong = manifest.faults(self.directory, step, parts)
        if not wrong:
          chosen = step
          break
        if self.look_again():
          return self.newest(parts)
        self.pass_over(step, self._damage(step, wrong))
    chosen = _agreed(chosen)
    for step in left:
      if step > chosen:
        self.passed_over.setdefault(step, self._damage(step, ["process 0 says why"]))
    if chosen < 0 and not self.passed_over:
      raise CheckpointError(f"no complete checkpoint under {self.directory}: the run was stopped before its first save")
    if chosen < 0:
      raise DamagedCheckpoint(f"no checkpoint can be used: {max(self.passed_over.items())[1]}")
    return chosen

  def pass_over(self, step: int, damage: str) -> None:
    """Says that a step is damaged. Its files stay as they are."""
    self.passed_over[step] = damage
    print(f"{damage}. It is passed over and left as it is", file=sys.stderr)

  def check(self, step: int, parts: Sequence[str] = ()) -> None:
    """Raises:
    CheckpointError: there is no such step, or its `parts` are not as they were written.
    """
    manifest.check_step(self.directory, step, self.all_steps())
    wrong = (manifest.faults(self.directory, step, parts) or []) if jax.process_index() == 0 else []
    if _agreed(len(wrong)):
      raise DamagedCheckpoint(self._damage(step, wrong or ["process 0 says why"]))

  def _damage(self, step: int, wrong: Sequence[str]) -> str:
    return f"{self.where(step)} is damaged: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")

  def make_way(self, step: int) -> None:
    """Before `step` is saved: renames the damaged steps that were passed over.

    They would count as the newest, so that the ones that can be used were deleted, and one may have the same number.
    """
    if self.passed_over:
      if jax.process_index() == 0:
        for damaged in sorted(self.passed_over):
          print(f"{self.where(damaged)} is now {manifest.set_aside(self.directory, damaged)}", file=sys.stderr)
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged steps are set aside")
      self.passed_over.clear()
      self.reload()
    if jax.process_index() == 0 and step not in self.all_steps():
      manifest.forget(self.directory, step)  # left by a step of that number that was deleted


class Pinned:
  """The policy that keeps steps that have a pin beside them."""

  def __init__(self, folder: epath.Path):
    self.folder = folder

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    return [manifest.is_pinned(self.folder, each.step) for each in checkpoints]


class _Deleter:
  """Deletes old steps, and looks again before each: minutes may have passed since it was chosen."""

  def __init__(self, steps: CheckpointManager):
    self.steps, self.paths = steps, ocp.path.deleter.PathDeleter(steps.directory)

  def delete_steps(self, steps: Sequence[int]) -> None:
    for step in steps:
      self.delete(step)

  def delete(self, step: int) -> None:
    folder = self.steps.directory
    if jax.process_index() != 0 or manifest.is_pinned(folder, step) or self.steps.superseded():
      return
    if (folder / str(step)).exists():
      self.paths.delete(folder / str(step))
    if manifest.unpin(folder, step):
      print(f"{self.steps.where(step)} was pinned while it was being deleted, so it is gone", file=sys.stderr)

  def close(self) -> None:
    pass


def _unfinished(steps: CheckpointManager, folder: epath.Path) -> type:
  """Orbax's kind of folder for a step, or a part of one, that is not whole yet, under a name of this group's own."""
  kind = ocp.path.atomicity_defaults.get_default_temporary_path_class(folder)

  class Unfinished(kind):  # type: ignore[misc, valid-type]
    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> "Unfinished":
      path = super().from_final(final_path).get()
      if path != final_path:  # in a bucket it has its name from the first: an object tells that it is whole
        path = final_path.with_name(f"{final_path.name}{UNFINISHED}{steps.writer_id}")
      return cls(path, final_path, **options)

    async def finalize(self) -> None:
      if steps.may_commit():
        await super().finalize()

  return Unfinished


def first_line(error: Exception) -> str:
  """An error in one line: what TensorStore adds of its own settings is left out."""
  return str(error).partition("[tensorstore_spec")[0].strip().partition("\n")[0]


def _agreed(number: int) -> int:
  """Process 0's number, on every process."""
  return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))
