"""Endless batches whose position is one number: exact after a restart, on any number of hosts and workers.

Element i is a pure function of i, so nobody has to remember what was read before.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import grain

from sora_jax.errors import InputError
from sora_jax.runtime import preemption
from sora_jax.runtime.work_units import WorkerLost

ENDLESS = 2**40  # elements; more than any run takes
AHEAD = 8  # batches that are made before they are asked for: a few slow files in a row stop no step
ON_MISMATCH = ("error", "restart", "remap")


class DataChanged(InputError):
  """A position was saved in other data than these."""


class Extent(NamedTuple):
  """What a position is a position in.

  Attributes:
    fingerprint: changes when a clip or caption does.
    clips: how many there are.
    epoch: elements of one pass over them.
  """

  fingerprint: str
  clips: int
  epoch: int


class Reading(NamedTuple):
  """Who reads, and what happens when the data are not those of the position.

  Attributes:
    shard: this host, of how many.
    workers: processes that make elements; 0: a thread of this one.
    on_mismatch: "error"; "restart": from the head of the new data; "remap": at the same share of the pass.
  """

  shard: grain.sharding.ShardOptions
  workers: int = 0
  on_mismatch: str = "error"


class _Sent:
  """A function for workers: one that gets it ends with the process that sent it, which may be killed."""

  def __init__(self, call: Callable[[int], Any]):
    self.call = call

  def __call__(self, number: int) -> Any:
    return self.call(number)

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__ = state
    preemption.end_with_parent()


class Stream:
  """Batches of elements 0, 1, ...: this host's share of each. Its state is the same on every host."""

  def __init__(self, element: Callable[[int], Any], batch: int, extent: Extent, reading: Reading):
    """
    Args:
      element: the i-th element, a tree of arrays; it is sent to the workers.
      batch: elements a step, over all hosts.

    Raises:
      ValueError: a batch that the hosts can't share, or an unknown `on_mismatch`.
    """
    if batch % reading.shard.shard_count:
      raise InputError(f"{batch} elements a step can't be shared by {reading.shard.shard_count} hosts")
    if reading.on_mismatch not in ON_MISMATCH:
      raise InputError(f"config.data.on_mismatch={reading.on_mismatch!r}: it is one of {', '.join(ON_MISMATCH)}")
    self.element, self.batch = element, batch
    self.extent, self.on_mismatch = extent, reading.on_mismatch
    hosts = reading.shard.shard_count

    def dealt(number: int) -> Any:
      """Every hosts-th number is dealt to a host: the n-th of them must be the n-th element of its piece of a batch."""
      step, place = divmod(int(number), batch)
      return element(step * batch + place % hosts * (batch // hosts) + place // hosts)

    self._iterator = grain.experimental.ElasticIterator(
      grain.MapDataset.range(ENDLESS).map(_Sent(dealt)),
      batch,
      reading.shard,
      read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD),
      multiprocessing_options=grain.MultiprocessingOptions(reading.workers, AHEAD) if reading.workers else None,
    )

  def __iter__(self) -> "Stream":
    return self

  def __next__(self) -> Any:
    try:
      with preemption.shielded():  # which starts the workers when it needs them
        return next(self._iterator)
    except RuntimeError as error:
      if not (lost := re.search(r"Worker process was terminated .*exit code -?\d+", str(error))):
        raise
      raise WorkerLost(f"{lost[0]}: where this machine's memory is short, lower data.workers") from error

  def close(self) -> None:
    """Ends the workers."""
    self._iterator.close()

  def get_state(self) -> dict[str, Any]:
    return {**self._iterator.get_state(), "data": self.extent._asdict()}

  def set_state(self, state: dict[str, Any]) -> None:
    """
    Raises:
      DataChanged: the position is one in other data, and `on_mismatch` is "error".
    """
    number, old = state["global_next_index"], Extent(**state["data"])
    if old.fingerprint != self.extent.fingerprint:
      number = self._in_other_data(number, old)
    self._iterator.set_state({"global_next_index": number})

  def _in_other_data(self, number: int, old: Extent) -> int:
    new = self.extent
    change = f"the data are not those that this run was stopped in: {old.clips} clips ({old.fingerprint[:8]}) then, "
    change += f"{new.clips} ({new.fingerprint[:8]}) now"
    if self.on_mismatch == "error":
      raise DataChanged(
        f"{change}: put them back, or go on with the weights as they are: --config.data.on_mismatch=restart reads the "
        "new data from their head, remap goes on at the same share of the pass"
      )
    epoch, place = divmod(number, old.epoch)
    moved = epoch * new.epoch + place * new.epoch // old.epoch if self.on_mismatch == "remap" else 0
    moved -= moved % self.batch
    print(f"{change}; reading goes on at element {moved} ({self.on_mismatch})", file=sys.stderr)
    return moved
