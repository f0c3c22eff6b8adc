"""The first thing that the processes of a run do: each tells host 0 that it is there, and all hear who is missing.

JAX's own way in waits for all as well, but aborts every process when one does not come, and does not say which. A
process sends one line, {"host": number, "name": its machine}, and gets one line back: {"names": [...]} when all have
come, or {"missing": [...]}. Then the port is free for JAX, and the connections stay: one that breaks tells at once that
the process at its other end is gone.
"""

import errno
import json
import socket
import time
from typing import Any

from sora_jax.cluster import HostsError

MOST = 2**20  # bytes of a line
PAUSE = 0.2  # seconds between tries to reach host 0
GRACE = 10.0  # seconds for the answer, after host 0 has waited as long as it does
# Seconds without a word after which, and between which, the kernel asks whether the other machine is there; how often.
KEEP = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}

Lines = dict[int, socket.socket]  # by host


def call(address: str, count: int, index: int, seconds: float) -> tuple[list[str], Lines]:
  """Waits for all hosts.

  Args:
    address: HOST:PORT, where host 0 is.

  Returns:
    The names of their machines, by number, and the connections: of host 0 to all others, of the others to it.

  Raises:
    HostsError: on every host that has come; names those that have not.
  """
  host, _, port = address.rpartition(":")
  limit = time.monotonic() + seconds
  if index == 0:
    answer, lines = _hear(address, int(port), count, limit)
  else:
    answer, lines = _tell(host.strip("[]"), int(port), index, limit)
  if "names" in answer:
    return answer["names"], lines
  for line in lines.values():
    line.close()
  who = "host 0" if answer["missing"] == [0] else f"hosts {', '.join(map(str, answer['missing']))} of {count}"
  raise HostsError(f"waited {seconds:g} s for {who} at {address}: not started, or no way from there to that address")


def _hear(address: str, port: int, count: int, limit: float) -> tuple[dict[str, Any], Lines]:
  """Host 0: takes the calls, and answers all at once."""
  server = _server(address, port, count, limit)
  names, lines = {0: socket.gethostname()}, {}
  with server:
    while len(names) < count and (left := limit - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        connection = server.accept()[0]
      except TimeoutError:
        break
      try:
        said = _line(connection, 1.0)
        caller = _number(said["host"], count)
        names[caller], lines[caller] = str(said["name"]), connection
      except (OSError, ValueError, KeyError, TypeError):  # nobody of ours, or gone again
        connection.close()
    missing = sorted(set(range(count)) - names.keys())
    answer = {"missing": missing} if missing else {"names": [names[host] for host in range(count)]}
  for line in lines.values():
    try:
      line.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
      pass  # it is gone, which is noticed later
    _keep(line)
  return answer, lines


def _server(address: str, port: int, count: int, limit: float) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  while True:
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


def _tell(host: str, port: int, index: int, limit: float) -> tuple[dict[str, Any], Lines]:
  """The others: call until they are answered."""
  said = json.dumps({"host": index, "name": socket.gethostname()}).encode() + b"\n"
  while (left := limit - time.monotonic()) > 0:
    connection = None
    try:
      connection = socket.create_connection((host, port), timeout=left)
      connection.sendall(said)
      answer = _line(connection, limit + GRACE - time.monotonic())
      _keep(connection)
      return answer, {0: connection}
    except (OSError, ValueError):  # not there yet, or still another's port
      if connection is not None:
        connection.close()
      time.sleep(min(PAUSE, left))
  return {"missing": [0]}, {}


def _keep(line: socket.socket) -> None:
  """Has the connection stay, and break where the other machine is gone."""
  line.settimeout(None)
  line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in KEEP.items():
    if hasattr(socket, option):  # not everywhere
      line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _line(connection: socket.socket, seconds: float) -> dict[str, Any]:
  """One line of JSON, an object.

  Raises:
    OSError, ValueError: it does not come in time, or is something else.
  """
  connection.settimeout(max(seconds, 0.1))
  with connection.makefile("rb") as file:
    line = file.readline(MOST)
  found = json.loads(line)
  if not line.endswith(b"\n") or not isinstance(found, dict):
    raise ValueError("no line of ours")
  return found
