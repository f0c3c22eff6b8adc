"""The processes of one run, on one machine or many: they join, agree on what they do, and wait for none without end.

`jax.distributed` joins them. What they tell each other here goes through its key-value store, from process to process,
never through a device. A run of one process imports nothing for it. A "host" is one process; host 0 is the first.
"""

import atexit
import collections
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sora_jax.runtime import rendezvous, watchdog
from sora_jax.runtime.cluster import HostsError, Place, place
from sora_jax.runtime.preemption import REQUEUE, Preempted, Preemption
from sora_jax.runtime.watchdog import Watchdog

LIMIT, SECONDS = "SORA_HOST_SECONDS", 600.0  # how long a host may be late, or in one step; the variable changes it
LONG = 24 * 3600.0  # for work of unknown length
# How errors of JAX begin where a collective, a device or the network failed: another host may be the reason.
ELSEWHERE = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
DIFFERENCES = 5  # named in an error


class Overdue(HostsError):
  """Another host did not come in time. What keeps it there, the watchdog may know better than who waited."""


class Hosts:
  """The hosts of a run, as one of them sees them: here a run of one process, in `Group` one of several.

  All hosts make the same calls of one name in the same order. Where a call waits, it waits `limit` seconds by default.

  Attributes:
    index: of this host.
    limit: seconds that a host may be late.
    names: of the machines.
  """

  index = 0
  count = 1
  limit = SECONDS
  names: Mapping[int, str] = {}

  @property
  def is_first(self) -> bool:
    """Whether this host writes what is written once."""
    return self.index == 0

  def named(self, numbers: Iterable[int]) -> str:
    """ "host 1 (its machine)", for messages."""
    return watchdog.named(numbers, self.names)

  def at(self, phase: str, step: int = 0, seconds: float | None = None) -> None:
    """Says what this host begins: a phase, or a step of one. All hosts enter the same phases in the same order.

    Args:
      seconds: how long it may take before the run is ended: `limit` by default, and 6 times as long where it has no
        number or is the first of its phase, in which programs are compiled.
    """

  def barrier(self, phase: str, seconds: float | None = None) -> None:
    """Waits for all hosts.

    Raises:
      HostsError: names the phase and who did not come (Overdue, where that is another host).
    """

  def gather(self, name: str, value: Any, seconds: float | None = None) -> list[Any]:
    """The JSON values of all hosts, by their number; waits for all.

    Raises:
      HostsError: see `barrier`.
    """
    return [value]

  def same(self, name: str, value: Any, seconds: float | None = None) -> None:
    """Refuses a run whose hosts hold different JSON values. Waits as `gather` does.

    Raises:
      HostsError: on every host; names what differs and where.
    """
    found = [_flat(each) for each in self.gather(name, value, seconds)]
    keys = {key for each in found for key in each}
    differing = sorted(key for key in keys if any(each.get(key) != found[0].get(key) for each in found))
    if not differing:
      return
    listed = []
    for key in differing[:DIFFERENCES]:
      holders: dict[str, list[int]] = collections.defaultdict(list)
      for host, each in enumerate(found):
        holders[json.dumps(each.get(key))].append(host)
      listed.append(f"{key or name} is " + ", ".join(f"{text} on {self.named(who)}" for text, who in holders.items()))
    more = f" ({len(differing)} differ)" if len(differing) > DIFFERENCES else ""
    raise HostsError(f"the hosts of this run differ: {'; '.join(listed)}{more}")

  def decide(self, name: str, work: Callable[[], Any], seconds: float | None = None) -> Any:
    """What `work` returns on host 0, a JSON value, for all; the others wait.

    Raises:
      HostsError: host 0 has raised (there it is the error itself), or was late.
    """
    return work()

  def agree(self, name: str, value: Any) -> Any:
    """Host 0's JSON value, for all."""
    return self.decide(name, lambda: value)

  def leave(self, name: str, value: Any) -> None:
    """Leaves a JSON value for host 0 to `collect`, without waiting; from any thread."""

  def collect(self, name: str, seconds: float) -> list[Any]:
    """What the other hosts have left under a name, once, within `seconds`; of the others nothing. On host 0."""
    return []

  def raised(self, flag: bool) -> bool:
    """Whether the flag has been set on any host so far, without waiting: hosts may learn of it at any time."""
    return flag


ALONE = Hosts()  # it has no state, so one is enough


class Group(Hosts):
  """One of several hosts. In another process that this one starts, it is `Hosts`."""

  def __init__(self, client: Any, index: int, names: Mapping[int, str], liveness: Watchdog, limit: float = SECONDS):
    """
    Args:
      client: of JAX's distributed runtime.
    """
    self.client, self.index, self.names, self.liveness, self.limit = client, index, names, liveness, limit
    self.count = len(names)
    self.failed = False
    self._calls: collections.Counter[str] = collections.Counter()

  def __reduce__(self) -> tuple[type, tuple]:
    return Hosts, ()

  def at(self, phase: str, step: int = 0, seconds: float | None = None) -> None:
    self.liveness.at(phase, step, seconds)

  def barrier(self, phase: str, seconds: float | None = None) -> None:
    self._meet(phase, "", seconds)

  def gather(self, name: str, value: Any, seconds: float | None = None) -> list[Any]:
    found = self._meet(name, json.dumps(value, sort_keys=True), seconds)
    return [json.loads(found[host]) for host in sorted(found)]

  def decide(self, name: str, work: Callable[[], Any], seconds: float | None = None) -> Any:
    seconds, key = self.limit if seconds is None else seconds, self._key(name)
    if self.index:
      try:
        with self.liveness.waiting(name):
          answer = json.loads(self.client.blocking_key_value_get(key, int(seconds * 1000)))
      except Exception:
        raise Overdue(f"waited {seconds:g} s for {self.named([0])}: {name}") from None
      if "error" in answer:
        raise HostsError(f"{self.named([0])}: {answer['error']}")
      return answer["value"]
    try:
      with self.liveness.waiting(name):
        value = work()
    except Exception as error:
      self.client.key_value_set(key, json.dumps({"error": one_line(error)}))
      raise
    self.client.key_value_set(key, json.dumps({"value": value}))
    return value

  def leave(self, name: str, value: Any) -> None:
    self._set(f"sora/left/{name}", json.dumps(value))

  def collect(self, name: str, seconds: float) -> list[Any]:
    until, found = time.monotonic() + seconds, []
    for host in self.names.keys() - {0}:
      left = max(until - time.monotonic(), 0.001)
      with contextlib.suppress(Exception):  # it has left nothing
        found.append(json.loads(self.client.blocking_key_value_get(f"sora/left/{name}/{host}", int(left * 1000))))
    self.client.key_value_delete(f"sora/left/{name}/")
    return found

  def raised(self, flag: bool) -> bool:
    if flag:
      self.client.key_value_set(f"sora/flag/{self.index}", "1", allow_overwrite=True)
    return flag or len(self.client.key_value_dir_get("sora/flag/")) > 0

  def _key(self, name: str) -> str:
    """Of the next call by this name."""
    self._calls[name] += 1
    return f"sora/{name}/{self._calls[name]}"

  def _set(self, key: str, value: str) -> None:
    """Sets this host's value under a key."""
    self.client.key_value_set(f"{key}/{self.index}", value)

  def _all(self, key: str) -> dict[int, str]:
    """What hosts have set under a key."""
    return {int(path.rpartition("/")[2]): value for path, value in self.client.key_value_dir_get(f"{key}/")}

  def _meet(self, name: str, value: str, seconds: float | None) -> dict[int, str]:
    """Waits until every host has set its value; returns them all."""
    seconds, key = self.limit if seconds is None else seconds, self._key(name)
    self._set(key, value)
    try:
      with self.liveness.waiting(name):
        self.client.wait_at_barrier(key, int(seconds * 1000))
    except Exception:
      late = self.names.keys() - self._all(key).keys()
      if late:
        raise Overdue(f"waited {seconds:g} s for {self.named(late)}: {name}") from None
      raise HostsError(f"{self.named([self.index])} came when the others waited no more: {name}") from None
    return self._all(key)

  # Joining and leaving.

  def check_devices(self) -> None:
    """Starts the devices, and compares what all hosts see of them.

    Raises:
      HostsError: a host has other devices than most, uses fewer than Slurm grants, or is unknown to the devices.
    """
    import jax

    self.at("starting the devices")
    local = jax.local_devices()
    granted = os.environ.get("SLURM_GPUS_ON_NODE", "") if local[0].platform == "gpu" else ""
    seen = self.gather("devices", [len(local), local[0].device_kind, int(granted) if granted.isdecimal() else 0])
    absent = self.names.keys() - {device.process_index for device in jax.devices()}
    if absent or jax.process_index() != self.index:
      who = self.named(absent or [self.index])
      raise HostsError(f"{who}: joined, but JAX's {local[0].platform} devices are not ({jax.device_count()} in all)")
    kinds = [f"{number} x {kind}" for number, kind, _ in seen]
    usual = collections.Counter(kinds).most_common(1)[0][0]
    if odd := [host for host, kind in enumerate(kinds) if kind != usual]:
      raise HostsError(f"{self.named(odd)}: {kinds[odd[0]]}, where the others have {usual}")
    for host, (_, _, grant) in enumerate(seen):
      used = sum(number for other, (number, *_) in enumerate(seen) if self.names[other] == self.names[host])
      if used < grant:
        every = ",".join(map(str, range(grant)))
        raise HostsError(
          f"{self.names[host]}: Slurm grants {grant} GPUs, and {used} would be used: start a process a GPU, or one "
          f"with JAX_LOCAL_DEVICE_IDS={every}"
        )

  def part(self, status: int = 1) -> None:
    """The end that all hosts come to. Where one does not, `status` is that of this process."""
    self.liveness.status = status
    self.barrier("the end of the run")
    self.liveness.stop()

  def fail(self, error: BaseException) -> None:
    """Tells the others of an error that ends this host."""
    self.failed = True
    own = not (isinstance(error, Overdue) or any(ELSEWHERE.match(str(each)) for each in (error, error.__cause__)))
    self.liveness.fail(one_line(error), own)

  def leave_process(self) -> None:
    """At exit: ends the process at once where the run has failed."""
    if self.failed:
      sys.stdout.flush()
      os._exit(self.liveness.status)


@contextlib.contextmanager
def joined(preemption: Preemption) -> Iterator[Hosts]:
  """The hosts of the run that the environment describes; before any other call of JAX.

  When one of them leaves the context by an error, all end.

  Raises:
    HostsError: they did not all come, or their devices are not what they should be.
    Preempted: the context did, whatever became of the others since; or this host was preempted in the rendezvous.
  """
  found = place(os.environ)
  if found is None:
    yield Hosts()
    return
  group = join(found, preemption)
  try:
    group.check_devices()
    yield group
    group.part()
  except Preempted:  # which all raise together, when all is saved
    try:
      group.part(REQUEUE)
    except BaseException as error:
      group.fail(error)
    raise
  except BaseException as error:
    group.fail(error)
    raise


def join(found: Place, preemption: Preemption) -> Group:
  """Meets the other processes, and starts JAX's distributed runtime."""
  seconds = limit()
  import jax  # before the rendezvous: a host that can't do so has not come
  from jax._src import distributed  # its client has no public name

  names, lines = rendezvous.call(found, seconds, preemption)
  # Signals are noted by `preemption`; JAX would take SIGTERM away from it.
  jax.config.update("jax_enable_preemption_service", False)
  with rendezvous.held(lines, names):
    jax.distributed.initialize(
      *found,
      cluster_detection_method="deactivate",
      initialization_timeout=int(seconds) + 1,
      shutdown_timeout_seconds=60,
    )
  client = distributed.global_state.client
  group = Group(client, found.index, names, Watchdog(client, found.index, names, seconds), seconds)
  atexit.register(group.leave_process)  # runs before JAX's own, which waits for hosts that are gone
  return group


def one_line(error: BaseException) -> str:
  return " ".join(str(error).split()) or type(error).__name__


def limit() -> float:
  """Seconds that a host may be late.

  Raises:
    HostsError: the environment variable is no such number.
  """
  text = os.environ.get(LIMIT) or str(SECONDS)
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 < seconds < math.inf:
    raise HostsError(f"{LIMIT}={text}: it is a number of seconds, above 0")
  return seconds


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}; what is no dict has the prefix for its name."""
  if not isinstance(value, dict):
    return {prefix.removesuffix("."): value}
  return {name: leaf for key, each in value.items() for name, leaf in _flat(each, f"{prefix}{key}.").items()}
