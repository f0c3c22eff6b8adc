"""The rendezvous: each process of a run tells host 0 that it has come, and all learn who is missing.

JAX's own start waits for all as well, but aborts every process when one does not come, and names none. A process sends
one line, {"host": number, "name": its machine}, and gets two back: {"seconds": how long host 0 waits yet} at once; then
{"names": [...]} when all have come, or {"missing": [...]}. A process that came and has ended since has not come. Then
the port is free for JAX, and the connections stay until JAX has started, to name a process that ends meanwhile.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sora_jax.runtime.cluster import HostsError, Place
from sora_jax.runtime.preemption import Preempted, Preemption, message
from sora_jax.runtime.watchdog import named

MOST = 2**20  # bytes of a line
PAUSE = 0.2  # seconds between tries to reach host 0
SLICE = 1.0  # seconds between looks at whether this process is preempted; and for a caller to speak
GRACE = 10.0  # seconds for the answer, after host 0 has waited as long as it does
GOODBYE = b".\n"  # JAX has started here

Lines = dict[int, socket.socket]  # by host


def call(place: Place, seconds: float, preemption: Preemption) -> tuple[dict[int, str], Lines]:
  """Waits for all hosts.

  Returns:
    The names of their machines, and the connections: of host 0 to all others, of the others to it.

  Raises:
    HostsError: on every host that has come; names those that have not.
    Preempted: this process is asked to stop.
  """
  address, count = place.address, place.count
  if place.index == 0:
    answer, lines = _wait_for_all(address, count, time.monotonic() + seconds, preemption)
  else:
    answer, lines = _call_host_0(address, place.index, seconds, preemption)
  if "names" in answer:
    return dict(enumerate(answer["names"])), lines
  for line in lines.values():
    line.close()
  missing = ", ".join(map(str, answer["missing"]))
  who = "host 0" if missing == "0" else f"host{'s' if ',' in missing else ''} {missing} of {count}"
  raise HostsError(
    f"waited {seconds:g} s for {who} at {address}: not started, ended again, or no way from there to that address"
  )


@contextlib.contextmanager
def held(lines: Lines, names: Mapping[int, str]) -> Iterator[None]:
  """Ends this process where another ends before it has left this context too, and names that one on stderr."""
  left = threading.Event()
  threading.Thread(target=_watch, args=(lines, names, left), name="rendezvous", daemon=True).start()
  yield
  for line in lines.values():
    with contextlib.suppress(OSError):
      line.sendall(GOODBYE)
  left.set()


def _watch(lines: Lines, names: Mapping[int, str], left: threading.Event) -> None:
  with selectors.DefaultSelector() as waiting:
    for host, line in lines.items():
      waiting.register(line, selectors.EVENT_READ, host)
    while waiting.get_map():
      for key, _ in waiting.select():
        waiting.unregister(key.fileobj)
        said = _rest(lines[key.data])
        if said.startswith(GOODBYE):
          continue
        gone = int(said) if said.strip().isdigit() else key.data  # where host 0 leaves, it says for whom
        for line in lines.values():
          with contextlib.suppress(OSError):
            line.sendall(f"{gone}\n".encode())
        print(f"sora: {named([gone], names)} ended while the hosts joined", file=sys.stderr, flush=True)
        os._exit(1)
  left.wait()
  for line in lines.values():
    line.close()


def _rest(line: socket.socket) -> bytes:
  try:
    return line.recv(MOST)
  except OSError:
    return b""


def _wait_for_all(address: str, count: int, limit: float, preemption: Preemption) -> tuple[dict[str, Any], Lines]:
  """Host 0: takes the calls, and answers them all when the last has come or the time is over."""
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
        said = _line(connection, SLICE, preemption)
        caller = _number(said["host"], count)
        _send(connection, {"seconds": limit - time.monotonic()})
        names[caller], lines[caller] = str(said["name"]), connection
      except (OSError, ValueError, KeyError, TypeError):  # not a process of this run, or it has ended again
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


def _call_host_0(address: str, index: int, seconds: float, preemption: Preemption) -> tuple[dict[str, Any], Lines]:
  """The other hosts: call until host 0 answers."""
  host, _, port = address.rpartition(":")
  said = {"host": index, "name": socket.gethostname()}
  limit = time.monotonic() + seconds
  while (left := limit - time.monotonic()) > 0:
    _stop_if_preempted(preemption)
    connection = None
    try:
      connection = socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, SLICE))
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
      raise ValueError("not a line of the rendezvous")
    connection.settimeout(min(left, SLICE))
    with contextlib.suppress(TimeoutError):
      seen = connection.recv(MOST, socket.MSG_PEEK)
      if not seen:
        raise ConnectionError("the other process has ended")
      line += connection.recv(seen.find(b"\n") + 1 or len(seen))  # what follows is another line
  try:
    found = json.loads(line)
  except RecursionError as error:
    raise ValueError("not a line of the rendezvous") from error
  if not isinstance(found, dict):
    raise ValueError("not a line of the rendezvous")
  return found
