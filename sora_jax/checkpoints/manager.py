"""The saved steps of one run: which are whole, which stay, and what became of the last save.

Orbax writes the arrays and commits a step; what is around that is here. Every process calls these functions; process 0
reads and writes the manifests, for which all hosts compute checksums, deletes old steps, and decides for all.
"""

import contextlib
import dataclasses
import secrets
import sys
import threading
from collections.abc import Collection, Sequence
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
SLOW = 6  # times as long as a step may a save take: a bucket may be slow
UNFINISHED = ocp.path.atomicity.TMP_DIR_SUFFIX + "-"  # in the name of a folder that is no step yet; an id follows
TAKEN = (
  "another run has begun to save there since this one did, so this one ends and saves nothing more: start one run a "
  "--workdir at a time"
)


class DamagedCheckpoint(CheckpointError):
  """A step's files are not what was written, or not those of a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Which steps are saved, and which of those stay. Pinned steps stay too.

  Attributes:
    every: saving takes every `every`th step, unless it is forced.
    keep: how many of the last steps stay; None is all.
    keep_every: steps that this number divides stay too; 0 is none.
  """

  every: int = 1
  keep: int | None = None
  keep_every: int = 0

  def old(self, steps: Collection[int]) -> list[int]:
    """Those that go, if they are not pinned."""
    before = sorted(steps)[: -self.keep] if self.keep else []
    return [step for step in before if not (self.keep_every and step % self.keep_every == 0)]


class CheckpointManager:
  """The steps in one folder, which this group of processes reads and, with a schedule, saves."""

  def __init__(self, folder: epath.Path, schedule: Schedule | None = None, hosts: Hosts = ALONE):
    """
    Args:
      schedule: None: to read alone. With one, `take` comes before the first save.
    """
    self.directory, self.hosts = folder, hosts
    self.passed_over: dict[int, str] = {}  # damaged steps, and what is wrong in one line; a save sets them aside
    self._reader = ocp.Checkpointer(_handler())
    self._saving: int | None = None
    self._committed: int | None = None  # by this group
    self._refused: Exception | None = None  # why process 0 does not commit the save that is under way
    self._failure: Exception | None = None  # of the save that is under way
    self._finish: threading.Thread | None = None
    self._steps: list[int] = []
    self._writer: Any = None
    if schedule is None:
      self.reload()
    else:
      self.schedule, self.writer_id = schedule, f"{_agreed(secrets.randbits(31)):08x}"
      self._writer = ocp.AsyncCheckpointer(
        _handler(), timeout_secs=int(self.patience) + 1, temporary_path_class=_unfinished(self, folder)
      )

  def __enter__(self) -> "CheckpointManager":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Waits for the last save.

    Raises:
      CheckpointError: as `wait_until_finished` does.
    """
    with contextlib.ExitStack() as closing:
      closing.callback(self._reader.close)
      if self._writer is not None:
        closing.callback(self._close_writer)
      self.wait_until_finished()

  def _close_writer(self) -> None:
    """Orbax writes a save's metadata beside it and raises here what came of that."""
    try:
      self._writer.close()
    except OSError:
      if self._failure is None and not self.fenced():  # else the save itself says what is wrong
        raise

  @property
  def patience(self) -> float:
    """Seconds that a save may take."""
    return SLOW * self.hosts.limit

  def where(self, step: int | None) -> str:
    return f"checkpoint {self.directory} step {step}"

  def all_steps(self) -> list[int]:
    """Those that were there at the last look, in order of their number."""
    return list(self._steps)

  def latest_step(self) -> int | None:
    return max(self._steps, default=None)

  def reload(self) -> None:
    """Looks at the folder again."""
    self._steps = manifest.committed(self.directory)

  def restore(self, step: int, args: ocp.args.Composite) -> Any:
    """The items of a step that `args` name."""
    return self._reader.restore(self.directory / str(step), args=args)

  def look_again(self) -> bool:
    """Whether others are there than this process knew: a run saves and deletes here. It knows them now.

    Never among several processes, which must know the same.
    """
    known = self._steps
    if jax.process_count() == 1:
      self.reload()
    return self._steps != known

  def take(self) -> None:
    """From now on this group of processes saves here. Another that still does notices it before its next save."""
    failure = ""
    if jax.process_index() == 0:
      try:
        self.directory.mkdir(parents=True, exist_ok=True)
        manifest.set_writer(self.directory, self.writer_id)
      except Exception as error:  # clients of buckets have kinds of their own
        failure = f"{self.directory} can't be written to: {first_line(error)}"
      else:
        self._discard_unfinished()
    if _agreed(int(bool(failure))):
      raise CheckpointError(failure or f"{self.directory} can't be written to: process 0 says why")
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

  def fenced(self) -> bool:
    """Whether another group has begun to save here."""
    return manifest.writer(self.directory) not in ("", self.writer_id)

  def may_commit(self) -> bool:
    """On process 0, before a step is committed.

    Nothing is raised before all processes know that the save is over, or they would wait for this one.
    """
    if self._refused is None:
      try:
        if not self.fenced():
          return True
        self._refused = CheckpointError(TAKEN)
      except Exception as error:  # clients of buckets have kinds of their own
        self._refused = error
    return False

  def check_writer(self) -> None:
    """Raises:
    CheckpointError: another group has begun to save here.
    """
    other = False
    try:
      other = jax.process_index() == 0 and self.fenced()
    except Exception as error:  # the save itself tells whether the folder can be used
      print(f"{self.directory}: not known whether another run saves there: {first_line(error)}", file=sys.stderr)
    if _agreed(int(other)):
      raise CheckpointError(f"{self.directory}: {TAKEN}")

  def save(self, step: int, args: ocp.args.Composite, force: bool = False) -> bool:
    """Saves a step in the background; False where it is not time, or the step is there already.

    Steps that were passed over as damaged are set aside first.

    Args:
      force: whatever the schedule says.

    Raises:
      CheckpointError: the save before this one failed, or another run has begun to save here.
    """
    self.wait_until_finished()
    self.check_writer()
    self.make_way(step)
    due = force or (step % self.schedule.every == 0 and step > max(self._steps, default=-1))
    if not _agreed(int(due and step not in self._steps)):
      return False
    self._saving, self._refused, self._failure = step, None, None
    try:
      self._writer.save(self.directory / str(step), args=args)
    except OSError as error:
      self._failure = error
      raise self._not_saved(error) from error
    self._finish = threading.Thread(target=self._finish_save, args=(step,), name="finish save")
    self._finish.start()
    return True

  def _finish_save(self, step: int) -> None:
    """In the background, on all processes: waits for the commit, writes the manifest and deletes old steps."""
    try:
      self._writer.wait_until_finished()
      if self._refused is not None:
        raise self._refused
      self._committed = step
    except Exception as error:  # TensorStore, the file system and other hosts raise many kinds
      self._failure = error
    try:
      self._write_manifest(step, self._committed == step)
    except Exception as error:  # whatever it is, the step itself is whole
      print(f"{self.where(step)} has no manifest, so damage to it would go unseen: {error}", file=sys.stderr)
    try:
      if self._committed == step and jax.process_index() == 0:
        self._delete_old()
    except Exception as error:
      print(f"{self.directory}: an old step was not deleted: {first_line(error)}", file=sys.stderr)

  def _write_manifest(self, step: int, whole: bool) -> None:
    whole = whole and step in manifest.committed(self.directory)
    known = self._hash_together(step, whole) if self.hosts.count > 1 else {}
    if whole and jax.process_index() == 0:
      manifest.write(self.directory, step, known)

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

  def _delete_old(self) -> None:
    """Looks before each step: minutes may pass between two."""
    deleter = ocp.path.deleter.PathDeleter(self.directory)
    for step in self.schedule.old(manifest.committed(self.directory)):
      if self.fenced():
        return
      if not manifest.is_pinned(self.directory, step):
        deleter.delete(self.directory / str(step))
        manifest.forget(self.directory, step)
        if manifest.unpin(self.directory, step):
          print(f"{self.where(step)} was pinned while it was being deleted, so it is gone", file=sys.stderr)

  def wait_until_finished(self) -> None:
    """Waits until the last save is on disk, with its manifest, and old steps are gone.

    Raises:
      CheckpointError: the last save failed; the steps before it are as they were.
    """
    if self._finish is None:
      return
    self._finish.join()
    self._finish = None
    if self._failure is None:
      self.reload()
    else:
      raise self._not_saved(self._failure) from self._failure

  def _not_saved(self, failure: Exception) -> CheckpointError:
    """What to say of the save that failed."""
    reason = first_line(failure)
    with contextlib.suppress(Exception):  # the folder may be out of reach
      self.reload()
      reason = TAKEN if self.fenced() else reason  # which takes the files away
    said = f"{self.where(self._saving)} was not saved: {reason}"
    return CheckpointError(f"{said}. Steps {self._steps} are as they were")

  def newest(self, parts: Sequence[str] = ()) -> int:
    """The newest step whose `parts` are as they were written, or that has no manifest. Damaged ones are passed over.

    Raises:
      CheckpointError: there is none.
    """
    chosen = -1
    left = sorted(set(self._steps) - self.passed_over.keys(), reverse=True)
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
    manifest.check_step(self.directory, step, self._steps)
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
    if jax.process_index() == 0 and step not in self._steps:
      manifest.forget(self.directory, step)  # left by a step of that number that was deleted


def _handler() -> ocp.CompositeCheckpointHandler:
  arrays = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
  return ocp.CompositeCheckpointHandler(**arrays, **{name: ocp.JsonCheckpointHandler() for name in JSONS})


def _unfinished(steps: CheckpointManager, folder: epath.Path) -> type:
  """Orbax's kind of folder for a step that is not whole yet, under a name of this group's own."""
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
