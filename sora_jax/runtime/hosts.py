"""The processes of one run, on one machine or many: joined, of one mind, and none of them waited for without end.

`jax.distributed` joins them. What they tell each other here goes through its key-value store, from process to process,
never through a device. A run of one process does all of this at once and imports nothing for it. A "host" is one
process; host 0 is the first.
"""

import atexit
import collections
import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sora_jax.runtime import rendezvous
from sora_jax.runtime.cluster import HostsError, place
from sora_jax.runtime.preemption import REQUEUE, Preempted
from sora_jax.runtime.watchdog import Watchdog, told

LIMIT, SECONDS = "SORA_HOST_SECONDS", 600.0  # how long a host may be late, or in one step; the variable changes it
LONG = 24 * 3600.0  # for work of unknown length
# How errors of JAX begin where a collective, a device or the network failed: another host may be the reason.
ELSEWHERE = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
DIFFERENCES = 5  # named in an error


class Overdue(HostsError):
  """Another host did not come in time. What keeps it there, the watchdog may know better than who waited."""


@dataclasses.dataclass
class _Group:
  """The hosts of this run, where there are several."""

  client: Any  # of JAX's distributed runtime
  index: int
  names: dict[int, str]  # of the machines
  watchdog: Watchdog
  calls: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  failed: bool = False

  def key(self, name: str) -> str:
    """Of the next call by this name; all hosts make the same calls of one name in the same order."""
    self.calls[name] += 1
    return f"sora/{name}/{self.calls[name]}"

  def set(self, key: str, value: str) -> None:
    """Sets this host's value under a key."""
    self.client.key_value_set(f"{key}/{self.index}", value)

  def all(self, key: str) -> dict[int, str]:
    """What hosts have set under a key."""
    return {int(path.rpartition("/")[2]): value for path, value in self.client.key_value_dir_get(f"{key}/")}

  def told(self, *hosts: int) -> str:
    return told(hosts, self.names)


_group: _Group | None = None


# Joining and leaving.


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the hosts of the run; when one of them leaves the context by an error, all end.

  Raises:
    HostsError: they did not all come, or their devices are not what they should be.
    Preempted: the context did, whatever became of the others since; or this host was told to end in the roll call.
  """
  try:
    initialize()
    yield
    _part()
  except Preempted:  # which all raise together, when all is saved
    try:
      _part(REQUEUE)
    except BaseException as error:
      _fail(error)
    raise
  except BaseException as error:
    _fail(error)
    raise


def initialize() -> None:
  """Joins the processes that the environment tells of, if it does. Before any other call of JAX."""
  global _group
  found = place(os.environ)
  if found is None or _group is not None:
    return
  seconds = limit()
  import jax  # before the roll call: a host that can't do so has not come
  from jax._src import distributed  # its client has no public name

  machines, lines = rendezvous.call(found.address, found.count, found.index, seconds)
  # Signals are noted by `preemption`; JAX would take SIGTERM away from it.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    *found, cluster_detection_method="deactivate", initialization_timeout=int(seconds) + 1, shutdown_timeout_seconds=60
  )
  atexit.register(_leave)  # runs before JAX's own, which waits for hosts that are gone
  client, names = distributed.global_state.client, dict(enumerate(machines))
  _group = _Group(client, found.index, names, Watchdog(client, found.index, names, seconds, lines))
  _check_devices(_group)


def _check_devices(group: _Group) -> None:
  """Starts the devices, and compares what all hosts see of them.

  Raises:
    HostsError: a host has other devices than most, uses fewer than Slurm grants, or is unknown to the devices.
  """
  import jax

  at("starting the devices")
  local = jax.local_devices()
  granted = os.environ.get("SLURM_GPUS_ON_NODE", "") if local[0].platform == "gpu" else ""
  seen = gather("devices", [len(local), local[0].device_kind, int(granted) if granted.isdecimal() else 0])
  absent = group.names.keys() - {device.process_index for device in jax.devices()}
  if absent or jax.process_index() != group.index:
    who = group.told(*(absent or [group.index]))
    raise HostsError(f"{who}: joined, but JAX's {local[0].platform} devices are not ({jax.device_count()} in all)")
  kinds = [f"{number} x {kind}" for number, kind, _ in seen]
  usual = collections.Counter(kinds).most_common(1)[0][0]
  if odd := [host for host, kind in enumerate(kinds) if kind != usual]:
    raise HostsError(f"{group.told(*odd)}: {kinds[odd[0]]}, where the others have {usual}")
  for host, (_, _, grant) in enumerate(seen):
    used = sum(number for other, (number, *_) in enumerate(seen) if group.names[other] == group.names[host])
    if used < grant:
      every = ",".join(map(str, range(grant)))
      raise HostsError(
        f"{group.names[host]}: Slurm grants {grant} GPUs, and {used} would be used: start a process a GPU, or one with "
        f"JAX_LOCAL_DEVICE_IDS={every}"
      )


def _part(status: int = 1) -> None:
  """The end that all hosts come to. Where one does not, `status` is that of this process."""
  if _group is not None:
    _group.watchdog.status = status
  barrier("the end of the run")
  if _group is not None:
    _group.watchdog.stop()


def _fail(error: BaseException) -> None:
  """Tells the others."""
  if _group is None:
    return
  _group.failed = True
  own = not (isinstance(error, Overdue) or any(ELSEWHERE.match(str(each)) for each in (error, error.__cause__)))
  _group.watchdog.fail(one_line(error), own)


def _leave() -> None:
  """At exit: ends the process at once where the run has failed."""
  if _group is not None and _group.failed:
    sys.stdout.flush()
    os._exit(_group.watchdog.status)


def one_line(error: BaseException) -> str:
  return " ".join(str(error).split()) or type(error).__name__


# Who and where.


def index() -> int:
  return 0 if _group is None else _group.index


def count() -> int:
  return 1 if _group is None else len(_group.names)


def named(numbers: Iterable[int]) -> str:
  """ "host 1 (its machine)", for messages."""
  return told(numbers, {} if _group is None else _group.names)


def is_first() -> bool:
  """Whether this host writes what is written once."""
  return index() == 0


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


def at(phase: str, step: int = 0, seconds: float | None = None) -> None:
  """Says what this host begins: a phase, or a step of one. All hosts enter the same phases in the same order.

  Args:
    seconds: how long it may take before the run is ended: `limit()` by default, and 6 times as long where it has no
      number or is the first of its phase, in which programs are compiled.
  """
  if _group is not None:
    _group.watchdog.at(phase, step, seconds)


# Being of one mind.


def barrier(phase: str, seconds: float | None = None) -> None:
  """Waits for all hosts, `limit()` seconds by default.

  Raises:
    HostsError: names the phase and who did not come (Overdue, where that is another host).
  """
  if _group is not None:
    _meet(_group, phase, _group.key(phase), "", limit() if seconds is None else seconds)


def _meet(group: _Group, phase: str, key: str, value: str, seconds: float) -> dict[int, str]:
  """Waits until every host has set its value under `key`; returns them all."""
  group.set(key, value)
  try:
    with group.watchdog.waiting(phase):
      group.client.wait_at_barrier(key, int(seconds * 1000))
  except Exception:
    late = group.names.keys() - group.all(key).keys()
    if late:
      raise Overdue(f"waited {seconds:g} s for {group.told(*late)}: {phase}") from None
    raise HostsError(f"{group.told(group.index)} came when the others waited no more: {phase}") from None
  return group.all(key)


def gather(name: str, value: Any, seconds: float | None = None) -> list[Any]:
  """The JSON values of all hosts, by their number; waits for all, `limit()` seconds by default.

  Raises:
    HostsError: see `barrier`.
  """
  if _group is None:
    return [value]
  seconds = limit() if seconds is None else seconds
  found = _meet(_group, name, _group.key(name), json.dumps(value, sort_keys=True), seconds)
  return [json.loads(found[host]) for host in sorted(found)]


def same(name: str, value: Any, seconds: float | None = None) -> None:
  """Refuses a run whose hosts hold different JSON values. Waits as `gather` does.

  Raises:
    HostsError: on every host; names what differs and where.
  """
  found = [_flat(each) for each in gather(name, value, seconds)]
  keys = {key for each in found for key in each}
  differing = sorted(key for key in keys if any(each.get(key) != found[0].get(key) for each in found))
  if not differing:
    return
  told_of = []
  for key in differing[:DIFFERENCES]:
    hosts: dict[str, list[int]] = collections.defaultdict(list)
    for host, each in enumerate(found):
      hosts[json.dumps(each.get(key))].append(host)
    told_of.append(f"{key or name} is " + ", ".join(f"{text} on {named(who)}" for text, who in hosts.items()))
  more = f" ({len(differing)} differ)" if len(differing) > DIFFERENCES else ""
  raise HostsError(f"the hosts of this run differ: {'; '.join(told_of)}{more}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}; what is no dict has the prefix for its name."""
  if not isinstance(value, dict):
    return {prefix.removesuffix("."): value}
  return {name: leaf for key, each in value.items() for name, leaf in _flat(each, f"{prefix}{key}.").items()}


def decide(name: str, work: Callable[[], Any], seconds: float | None = None) -> Any:
  """What `work` returns on host 0, a JSON value, for all; the others wait, `limit()` seconds by default.

  Raises:
    HostsError: host 0 has raised (there it is the error itself), or was late.
  """
  group, seconds = _group, limit() if seconds is None else seconds
  if group is None:
    return work()
  key = group.key(name)
  if group.index:
    try:
      with group.watchdog.waiting(name):
        answer = json.loads(group.client.blocking_key_value_get(key, int(seconds * 1000)))
    except Exception:
      raise Overdue(f"waited {seconds:g} s for {group.told(0)}: {name}") from None
    if "error" in answer:
      raise HostsError(f"{group.told(0)}: {answer['error']}")
    return answer["value"]
  try:
    with group.watchdog.waiting(name):
      value = work()
  except Exception as error:
    group.client.key_value_set(key, json.dumps({"error": one_line(error)}))
    raise
  group.client.key_value_set(key, json.dumps({"value": value}))
  return value


def agree(name: str, value: Any) -> Any:
  """Host 0's JSON value, for all."""
  return decide(name, lambda: value)


def leave(name: str, value: Any) -> None:
  """Leaves a JSON value for host 0 to `collect`, without waiting; from any thread."""
  if _group is not None:
    _group.set(f"sora/left/{name}", json.dumps(value))


def collect(name: str, seconds: float) -> list[Any]:
  """What the other hosts have left under a name, once; of those that have not within `seconds`, nothing. On host 0."""
  if _group is None:
    return []
  until, found = time.monotonic() + seconds, []
  for host in _group.names.keys() - {0}:
    left = max(until - time.monotonic(), 0.001)
    with contextlib.suppress(Exception):  # it has left nothing
      found.append(json.loads(_group.client.blocking_key_value_get(f"sora/left/{name}/{host}", int(left * 1000))))
  _group.client.key_value_delete(f"sora/left/{name}/")
  return found


def raised(flag: bool) -> bool:
  """Whether the flag has been set on any host so far, at once and without waiting: hosts may hear of it at any time."""
  if _group is None:
    return flag
  if flag:
    _group.client.key_value_set(f"sora/flag/{_group.index}", "1", allow_overwrite=True)
  return flag or len(_group.client.key_value_dir_get("sora/flag/")) > 0
