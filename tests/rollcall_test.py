"""The roll call: all come and hear each other's names, or all that came hear who is missing."""

import concurrent.futures
import socket
import threading
import time

import pytest

from sora_jax import rollcall
from sora_jax.cluster import HostsError
from tests import several


@pytest.fixture
def address() -> str:
  return f"127.0.0.1:{several.free_port()}"


def called(address: str, count: int, who: list[int], seconds: float = 5.0, late: float = 0.0) -> list:
  """What each of `who` gets: names, or the error. The connections are closed."""
  lines: list[rollcall.Lines] = []

  def one(index: int):
    time.sleep(late * index)
    try:
      names, found = rollcall.call(address, count, index, seconds)
      lines.append(found)
      return names
    except HostsError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(who)) as pool:
    answers = list(pool.map(one, who))
  for line in [line for each in lines for line in each.values()]:
    line.close()
  return answers


@pytest.fixture(autouse=True)
def names(monkeypatch):
  monkeypatch.setattr(rollcall.socket, "gethostname", lambda: f"machine-{threading.current_thread().name[-1]}")


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]], ids=["the first waits", "the others wait"])
def test_all_that_come_hear_all_names(address, order):
  found = called(address, 4, order, late=0.05)
  assert len({tuple(each) for each in found}) == 1
  assert sorted(found[0]) == [f"machine-{thread}" for thread in range(4)]


def test_the_port_is_free_while_the_lines_are_kept_and_a_line_tells_who_is_gone(address):
  port = int(address.rpartition(":")[2])
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    calls = [pool.submit(rollcall.call, address, 3, index, 5.0) for index in range(3)]
    lines = [each.result()[1] for each in calls]
  assert [sorted(each) for each in lines] == [[1, 2], [0], [0]]
  with socket.create_server(("", port)):
    lines[2][0].close()
    lines[0][2].settimeout(5.0)
    assert lines[0][2].recv(1) == b""
    lines[0][1].sendall(b"x")
    assert lines[1][0].recv(1) == b"x"
  for line in (*lines[0].values(), lines[1][0]):
    line.close()


def test_all_that_came_hear_who_is_missing(address):
  found = called(address, 5, [0, 2], seconds=1.0)
  assert [str(error) for error in found] == [
    f"waited 1 s for hosts 1, 3, 4 of 5 at {address}: not started, or no way from there to that address"
  ] * 2


def test_a_missing_first_host_is_named_too(address):
  (error,) = called(address, 2, [1], seconds=0.5)
  assert str(error).startswith(f"waited 0.5 s for host 0 at {address}")


@pytest.mark.parametrize(
  "said",
  [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"host": 9, "name": "x"}\n', b'{"host": true, "name": "x"}\n', b"[1]\n"],
)
def test_strangers_are_not_counted(address, said):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(rollcall.call, address, 2, 0, 10.0)
    host, port = address.split(":")
    for _ in range(100):
      try:
        stranger = socket.create_connection((host, int(port)), timeout=1.0)
        break
      except OSError:
        time.sleep(0.02)
    stranger.sendall(said)
    stranger.close() if not said else None
    others = rollcall.call(address, 2, 1, 10.0), first.result()
    assert [len(names) for names, _ in others] == [2, 2]
    for line in (stranger, *(line for _, lines in others for line in lines.values())):
      line.close()


def test_a_port_that_another_program_keeps_is_named(address):
  with socket.create_server(("", int(address.rpartition(":")[2]))):
    with pytest.raises(HostsError, match=f"host 0 can't listen at {address}: Address already in use"):
      rollcall.call(address, 2, 0, 0.5)
