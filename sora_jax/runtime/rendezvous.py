"""The first thing that the processes of a run do: each tells host 0 that it is there, and all hear who is missing.

JAX's own way in waits for all as well, but aborts every process when one does not come, and does not say which. A
process sends one line, {"host": number, "name": its machine}, and gets two back: {"seconds": how long host 0 waits yet}
at once; then {"names": [...]} when all have come, or {"missing": [...]}. Who has called and is gone has not come. Then
the port is free for JAX, and the connections stay: one that breaks tells at once that the process at its other end is
gone.
"""

import contextlib
import errno
import json
import socket
import time
from typing import Any

from sora_jax.runtime.cluster import HostsError, Place
from sora_jax.runtime.preemption import Preempted, Preemption, message

MOST = 2**20  # bytes of a line
PAUSE = 0.2  # seconds between tries to reach host 0
SLICE = 1.0  # seconds between looks at whether this process is told to end; and for a caller to speak
GRACE = 10.0  # seconds for the answer, after host 0 has waited as long as it does
# Seconds without a word after which, and between which, the kernel asks whether the other machine is there; how often.
KEEP = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}

Lines = dict[int, socket.socket]  # by host


def call(place: Place, seconds: float, preemption: Preemption) -> tuple[list[str], Lines]:
  """Waits for all hosts.

  Returns:
    The names of their machines, by number, and the connections: of host 0 to all others, of the others to it.

  Raises:
    HostsError: on every host that has come; names those that have not.
    Preempted: this process is asked to stop.
  """
  address, count = place.address, place.count
  if place.index == 0:
    answer, lines = _hear(address, count, time.monotonic() + seconds, preemption)
  else:
    answer, lines = _tell(address, place.index, seconds, preemption)
  if "names" in answer:
    return answer["names"], lines
  for line in lines.values():
    line.close()
  missing = ", ".join(map(str, answer["missing"]))
  who = "host 0" if missing == "0" else f"host{'s' if ',' in missing else ''} {missing} of {count}"
  raise HostsError(
    f"waited {seconds:g} s for {who} at {address}: not started, ended again, or no way from there to that address"
  )


def _hear(address: str, count: int, limit: float, preemption: Preemption) -> tuple[dict[str, Any], Lines]:
  """Host 0: takes the calls, and answers all at once."""
  names, lines = {0: socket.gethostname()}, Lines()
  with _server(address, count, limit, preemption) as server:
    while (left := limit - time.monotonic()) > 0:
      if len(lines) == count - 1 and len(lines := _there(lines)) == count - 1:
        break
      _stop_if_preempted(preemption)
      server.settimeout(min(left, SLICE))
      try:
        connection = server.accept()[0]
      except TimeoutError:
        continue
      try:
        _keep(connection)
        said = _line(connection, SLICE, preemption)
        caller = _number(said["host"], count)
        _send(connection, {"seconds": limit - time.monotonic()})
        names[caller], lines[caller] = str(said["name"]), connection
      except (OSError, ValueError, KeyError, TypeError):  # nobody of ours, or gone again
        connection.close()
    else:
      lines = _there(lines)
    missing = sorted(set(range(1, count)) - lines.keys())
    answer = {"missing": missing} if missing else {"names": [names[host] for host in range(count)]}
  for line in lines.values():
    with contextlib.suppress(OSError):  # it is gone, which is noticed later
      _send(line, answer)
    line.settimeout(None)
  return answer, lines


def _there(lines: Lines) -> Lines:
  """Those whose processes have not ended or given up; the others are closed."""
  found = {}
  for host, line in lines.items():
    line.settimeout(0.0)
    try:
      broken = not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:  # nothing to read, as it should be
      broken = False
    except OSError:
      broken = True
    if broken:
      line.close()
    else:
      found[host] = line
  return found


def _server(address: str, count: int, limit: float, preemption: Preemption) -> socket.socket:
  port = int(address.rpartition(":")[2])
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  while True:
    _stop_if_preempted(preemption)
    try:
      return socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both)
    except OSError as error:
      if error.errno != errno.EADDRINUSE or time.monotonic() > limit:  # a run that has just ended may hold it still
        raise HostsError(f"host 0 can't listen at {address}: {error.strerror}") from error
    time.sleep(PAUSE)


def _number(value: Any, count: int) -> int:
  if type(value) is not int or not 0 < value < count:
    raise ValueError(f"host {value!r} of {count}")
  return value


def _tell(address: str, index: int, seconds: float, preemption: Preemption) -> tuple[dict[str, Any], Lines]:
  """The others: call until they are answered."""
  host, _, port = address.rpartition(":")
  said = {"host": index, "name": socket.gethostname()}
  limit = time.monotonic() + seconds
  while (left := limit - time.monotonic()) > 0:
    _stop_if_preempted(preemption)
    connection = None
    try:
      connection = socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, SLICE))
      _keep(connection)
      _send(connection, said)
      # Longer than this host would, where host 0 has come later.
      waits = _line(connection, left + GRACE, preemption)["seconds"]
      answer = _line(connection, min(waits, seconds) + GRACE, preemption)
      connection.settimeout(None)
      return answer, {0: connection}
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or still another's port
      if connection is not None:
        connection.close()
      time.sleep(min(PAUSE, left))
  return {"missing": [0]}, {}


def _stop_if_preempted(preemption: Preemption) -> None:
  """Raises:
  Preempted: this process is asked to stop.
  """
  if reason := preemption.reason():
    raise Preempted(message(reason, "the hosts had not all come, and nothing is begun"))


def _keep(connection: socket.socket) -> None:
  """Has the connection break where the other machine is gone."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in KEEP.items():
    if hasattr(socket, option):  # not everywhere
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send(connection: socket.socket, said: dict[str, Any]) -> None:
  connection.settimeout(SLICE)
  connection.sendall(json.dumps(said).encode() + b"\n")


def _line(connection: socket.socket, seconds: float, preemption: Preemption) -> dict[str, Any]:
  """The next line of JSON, an object.

  Raises:
    OSError, ValueError: it does not come in time, or is something else.
    Preempted: this process is asked to stop.
  """
  line, limit = b"", time.monotonic() + seconds
  while not line.endswith(b"\n"):
    _stop_if_preempted(preemption)
    left = limit - time.monotonic()
    if left <= 0 or len(line) > MOST:
      raise ValueError("no line of ours")
    connection.settimeout(min(left, SLICE))
    with contextlib.suppress(TimeoutError):
      seen = connection.recv(MOST, socket.MSG_PEEK)
      if not seen:
        raise ConnectionError("it has ended")
      line += connection.recv(seen.find(b"\n") + 1 or len(seen))  # what follows is another line
  found = json.loads(line)
  if not isinstance(found, dict):
    raise ValueError("no line of ours")
  return found
