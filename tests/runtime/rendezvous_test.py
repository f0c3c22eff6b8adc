"""The rendezvous: all come and learn each other's names, or all that came learn who is missing."""

import concurrent.futures
import contextlib
import json
import re
import signal
import socket
import threading
import time

import pytest

from sora_jax.runtime import preemption, rendezvous
from sora_jax.runtime.cluster import HostsError, Place
from sora_jax.runtime.preemption import Preemption
from tests import several


@pytest.fixture
def address() -> str:
  return f"127.0.0.1:{several.free_port()}"


def call(address: str, count: int, index: int, seconds: float, preemption: Preemption | None = None):
  return rendezvous.call(Place(address, count, index), seconds, preemption or Preemption())


def called(address: str, count: int, who: list[int], seconds: float = 5.0, late: float = 0.0) -> list:
  """What each of `who` gets: names, or the error. The connections are closed.

  Args:
    late: seconds between one's call and the next one's.
  """
  lines: list[rendezvous.Lines] = []

  def one(index: int):
    time.sleep(late * who.index(index))
    try:
      names, found = call(address, count, index, seconds)
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
  monkeypatch.setattr(rendezvous.socket, "gethostname", lambda: f"machine-{threading.current_thread().name[-1]}")


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]], ids=["the first waits", "the others wait"])
def test_all_that_come_learn_all_names(address, order):
  found = called(address, 4, order, late=0.05)
  assert all(each == found[0] for each in found) and list(found[0]) == [0, 1, 2, 3]
  assert sorted(found[0].values()) == [f"machine-{thread}" for thread in range(4)]


def test_the_port_is_free_while_the_lines_are_kept_and_a_line_tells_who_is_gone(address):
  port = int(address.rpartition(":")[2])
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    calls = [pool.submit(call, address, 3, index, 5.0) for index in range(3)]
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


def test_all_that_came_learn_who_is_missing(address):
  found = called(address, 5, [0, 2], seconds=1.0)
  assert [str(error) for error in found] == [
    f"waited 1 s for hosts 1, 3, 4 of 5 at {address}: not started, ended again, or no way from there to that address"
  ] * 2


def test_a_missing_first_host_is_named_too(address):
  (error,) = called(address, 2, [1], seconds=0.5)
  assert str(error).startswith(f"waited 0.5 s for host 0 at {address}")


def reached(address: str) -> socket.socket:
  """A connection to host 0, as soon as it listens."""
  host, port = address.split(":")
  for _ in range(100):
    try:
      return socket.create_connection((host, int(port)), timeout=1.0)
    except OSError:
      time.sleep(0.02)
  raise AssertionError("host 0 never listened")


def called_and_gone(address: str, index: int) -> None:
  with reached(address) as line:
    line.sendall(json.dumps({"host": index, "name": "gone"}).encode() + b"\n")
    time.sleep(0.2)


def test_one_that_called_and_is_gone_is_waited_for_until_it_comes_again(address):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    first = pool.submit(called, address, 3, [0])
    called_and_gone(address, 1)
    others = pool.submit(called, address, 3, [2])
    time.sleep(0.5)
    assert not first.done() and not others.done()
    again = pool.submit(called, address, 3, [1])
    found = [each.result()[0] for each in (first, others, again)]
  assert [len(each) for each in found] == [3, 3, 3] and "gone" not in found[0].values()


@pytest.mark.parametrize("who", [[0], [0, 2]], ids=["while others lack", "as the last comes"])
def test_one_that_called_and_is_gone_is_missing(address, who):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    found = pool.submit(called, address, 3, who, 1.0, 0.4)
    called_and_gone(address, 1)
  missing = "host 1" if len(who) > 1 else "hosts 1, 2"
  assert len(found.result()) == len(who)
  assert all(str(error).startswith(f"waited 1 s for {missing} of 3") for error in found.result())


def test_who_came_long_before_the_first_waits_as_long_as_it_does(address, monkeypatch):
  monkeypatch.setattr(rendezvous, "GRACE", 0.4)
  found = called(address, 3, [1, 0], seconds=1.5, late=1.0)
  assert [str(error).partition(" at ")[0] for error in found] == ["waited 1.5 s for host 2 of 3"] * 2


@pytest.mark.parametrize("where", ["hearing", "port kept", "no first host", "before the answer"])
def test_who_is_preempted_stops(address, monkeypatch, where):
  asked = preemption.Preemption()
  monkeypatch.setattr(rendezvous, "SLICE", 0.2)
  with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
    if where in ("port kept", "before the answer"):
      silent = stack.enter_context(socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))))
    waiting = pool.submit(call, address, 2, int(where in ("no first host", "before the answer")), 8.0, asked)
    if where == "before the answer":
      stack.enter_context(silent.accept()[0])
    time.sleep(0.3)
    assert not waiting.done()
    asked.signals.append(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(preemption.Preempted, match="ended by SIGTERM: .* the same command goes on from there"):
      waiting.result()
    assert time.monotonic() - began < 3.0


HELD = """
import os, signal, sys, time
from sora_jax.runtime import rendezvous
from sora_jax.runtime.cluster import place
from sora_jax.runtime.preemption import Preemption

where = place(os.environ)
names, lines = rendezvous.call(where, 30.0, Preemption())
with rendezvous.held(lines, names):
  if where.index == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(0.5 if sys.argv[1] == "-1" else 60.0)
time.sleep(0.2 * where.index)  # one after another, and nobody minds
print("joined")
"""


@pytest.mark.parametrize("who", [0, 2])
def test_one_that_ends_while_jax_starts_ends_all_and_is_named(tmp_path, who):
  with several.started([[*words, str(who)] for words in several.python(HELD, 3)], tmp_path) as processes:
    found = several.ended(processes, tmp_path, 30)
  for host, each in enumerate(found):
    assert each.code == (-signal.SIGKILL if host == who else 1)
    assert host == who or re.fullmatch(rf"sora: host {who} \(.+\) ended while the hosts joined\n", each.err)


def test_hosts_that_have_joined_may_end_when_they_like(tmp_path):
  with several.started([[*words, "-1"] for words in several.python(HELD, 3)], tmp_path) as processes:
    found = several.ended(processes, tmp_path, 30)
  assert [(each.code, each.out, each.err) for each in found] == [(0, "joined\n", "")] * 3


@pytest.fixture
def pair():
  ours, theirs = socket.socketpair()
  with ours, theirs:
    yield ours, theirs


def test_lines_that_come_together_are_read_one_by_one(pair):
  pair[1].sendall(b'{"seconds": 1}\n{"missing": [2]}\n')
  assert [rendezvous._line(pair[0], 1.0, Preemption()) for _ in range(2)] == [{"seconds": 1}, {"missing": [2]}]


def test_a_line_that_never_ends_is_not_waited_for(pair):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(lambda: [time.sleep(0.1) or pair[1].send(b" ") for _ in range(8)])
    began = time.monotonic()
    with pytest.raises(ValueError):
      rendezvous._line(pair[0], 0.3, Preemption())
    assert time.monotonic() - began < 0.7


@pytest.mark.parametrize(
  "said",
  [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"host": 9, "name": "x"}\n', b'{"host": true, "name": "x"}\n', b"[1]\n"],
)
def test_strangers_are_not_counted(address, said):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(call, address, 2, 0, 10.0)
    stranger = reached(address)
    stranger.sendall(said)
    stranger.close() if not said else None
    others = call(address, 2, 1, 10.0), first.result()
    assert [len(names) for names, _ in others] == [2, 2]
    for line in (stranger, *(line for _, lines in others for line in lines.values())):
      line.close()


def test_a_port_that_another_program_keeps_is_named(address):
  with socket.create_server(("", int(address.rpartition(":")[2]))):
    with pytest.raises(HostsError, match=f"host 0 can't listen at {address}: Address already in use"):
      call(address, 2, 0, 0.5)
