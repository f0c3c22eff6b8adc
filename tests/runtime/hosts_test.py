"""Several processes of one run, for real: what they agree on, what they refuse, and whom they wait for."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from sora_jax.runtime import hosts, preemption
from tests import several

# What two hosts say to each other; each prints what it heard. Host 1 is late at the barrier "tokenizer".
TALK = """
import json, time
from sora_jax.runtime import hosts
from sora_jax.runtime.preemption import Preemption

heard = {}

def told(work):
  try:
    return work()
  except (hosts.HostsError, ValueError) as error:
    return f"{type(error).__name__}: {error}"

def fail():
  raise ValueError("no such file")

with hosts.joined(Preemption()) as group:
  me = group.index
  heard["who"] = [me, group.count, group.is_first]
  heard["agree"] = [group.agree("step", step + me) for step in (10, 20)]
  heard["decide"] = group.decide("work", lambda: {"by": me})
  heard["fail"] = told(lambda: group.decide("work", fail))
  heard["gather"] = group.gather("number", [me, None])
  heard["same"] = told(lambda: group.same("config", {"a": {"b": 1}, "c": [1]}))
  heard["differ"] = told(lambda: group.same("run", {"config": {"steps": 6 + me, "rows": 2}, "code": f"x{me}"}))
  heard["raised"] = [group.raised(False)]
  group.barrier("before the flag")
  group.raised(me == 1)
  group.barrier("after the flag")
  heard["raised"].append(group.raised(False))
  time.sleep(4 * me)
  began = time.monotonic()
  heard["late"] = told(lambda: group.barrier("tokenizer", 0.5))
  heard["waited"] = time.monotonic() - began
  print(json.dumps(heard))
"""


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> list[dict]:
  folder = tmp_path_factory.mktemp("talk")
  with several.started(several.python(TALK, 2), folder) as processes:
    found = several.ended(processes, folder, 120)
  assert [each.code for each in found] == [0, 0], found
  return [json.loads(each.out.splitlines()[-1]) for each in found]


def both(talk: list[dict], name: str) -> list:
  return [each[name] for each in talk]


class TestTwo:
  def test_know_who_they_are(self, talk):
    assert both(talk, "who") == [[0, 2, True], [1, 2, False]]

  def test_the_first_decides(self, talk):
    assert both(talk, "agree") == [[10, 20]] * 2
    assert both(talk, "decide") == [{"by": 0}] * 2

  def test_an_error_of_the_first_is_one_on_all(self, talk):
    first, second = both(talk, "fail")
    assert first == "ValueError: no such file"
    assert second.startswith("HostsError: host 0 (") and second.endswith("): no such file")

  def test_hear_each_other(self, talk):
    assert both(talk, "gather") == [[[0, None], [1, None]]] * 2
    assert both(talk, "raised") == [[False, True]] * 2

  def test_what_differs_is_refused_on_both_with_all_values(self, talk):
    assert both(talk, "same") == [None, None]
    first, second = both(talk, "differ")
    assert first == second
    for part in ('code is "x0" on host 0 (', '"x1" on host 1 (', "config.steps is 6 on host 0 (", "7 on host 1 ("):
      assert part in first
    assert "rows" not in first

  def test_a_wait_ends_in_time_and_names_the_phase_and_who_is_late(self, talk):
    first, late = both(talk, "late")
    assert first.startswith("Overdue: waited 0.5 s for host 1 (") and first.endswith("): tokenizer")
    assert 0.4 < talk[0]["waited"] < 3.5  # it comes after 4 s
    assert late.startswith("HostsError: host 1 (") and late.endswith("came when the others waited no more: tokenizer")


class TestAlone:
  def test_everything_is_local(self):
    alone = hosts.ALONE
    assert (alone.index, alone.count, alone.is_first) == (0, 1, True)
    assert alone.agree("x", 3) == 3 and alone.gather("x", (1,)) == [(1,)] and alone.decide("x", lambda: "y") == "y"
    assert [alone.raised(flag) for flag in (True, False)] == [True, False]
    alone.same("x", {"a": object()}), alone.barrier("x"), alone.at("x", 3), alone.leave("x", 3)
    assert alone.collect("x", 60.0) == []
    with pytest.raises(ZeroDivisionError):
      alone.decide("x", lambda: 1 / 0)

  def test_a_process_that_a_host_starts_is_alone(self):
    group = hosts.Group(threading.Lock(), 1, dict(enumerate("ab")), threading.Lock())  # neither can be sent
    sent = pickle.loads(pickle.dumps(group))
    assert type(sent) is hosts.Hosts and (sent.index, sent.count) == (0, 1)

  def test_joining_nobody_imports_nothing(self):
    code = "import sys\nfrom sora_jax.runtime import hosts, run\n"
    code += "with hosts.joined(run.Run().preemption): pass\nprint('jax' in sys.modules)"
    env = several.environment(1, 0, 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=True)
    assert done.stdout.strip() == "False"

  @pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
  def test_a_limit_that_is_none_is_named(self, monkeypatch, text):
    monkeypatch.setenv(hosts.LIMIT, text)
    with pytest.raises(hosts.HostsError, match=f"SORA_HOST_SECONDS={text}"):
      hosts.limit()

  def test_a_process_whose_others_never_start_names_them(self, tmp_path):
    code = "from sora_jax.runtime import hosts, preemption\nwith hosts.joined(preemption.Preemption()): pass"
    with several.started(several.python(code, 3), tmp_path, absent=(0, 2), SORA_HOST_SECONDS="1") as processes:
      (found,) = several.ended(processes, tmp_path, 60)
    assert found.code == 1 and "HostsError: waited 1 s for host 0 at 127.0.0.1:" in found.err


# Two hosts are preempted, and the second one is killed when all is saved.
KILLED = """
import os, signal, sys, time
from sora_jax.runtime import hosts, preemption

try:
  with hosts.joined(preemption.Preemption()) as group:
    if group.index:
      time.sleep(1)
      os.kill(os.getpid(), signal.SIGKILL)
    raise preemption.Preempted("step 3 is saved")
except preemption.Preempted:
  sys.exit(preemption.REQUEUE)
"""

# A host that is preempted before the others have come.
ALONE = """
import sys
from sora_jax.runtime import hosts, preemption

asked = preemption.Preemption()
asked.listen()
print("listens", flush=True)
try:
  with hosts.joined(asked):
    pass
except preemption.Preempted as error:
  print(error)
  sys.exit(preemption.REQUEUE)
"""


class TestPreemption:
  """What is saved is saved, whatever becomes of the others: the status says that the same command goes on."""

  @pytest.mark.slow
  def test_the_status_is_the_same_where_another_is_killed_meanwhile(self, tmp_path):
    with several.started(several.python(KILLED, 2), tmp_path, SORA_HOST_SECONDS="10") as processes:
      found = several.ended(processes, tmp_path, 60)
    assert [each.code for each in found] == [preemption.REQUEUE, -signal.SIGKILL], found[0].err
    assert "sora: host 1 (" in found[0].err and "): nothing heard for 10 s" in found[0].err

  def test_an_end_to_which_another_does_not_come_is_reported_to_all(self, monkeypatch):
    told, statuses, names = [], [], dict(enumerate("ab"))
    watching = types.SimpleNamespace(status=1, fail=lambda *given: told.append(given))

    class Left(hosts.Group):
      def check_devices(self) -> None:
        pass

      def barrier(self, phase: str, seconds: float | None = None) -> None:
        raise hosts.Overdue(f"waited 600 s for host 1 (b): {phase}")

    group = Left(None, 0, names, watching)
    monkeypatch.setattr(hosts, "place", lambda env: "somewhere")
    monkeypatch.setattr(hosts, "join", lambda *_: group)
    monkeypatch.setattr(os, "_exit", statuses.append)
    with pytest.raises(preemption.Preempted, match="step 3 is saved"), hosts.joined(preemption.Preemption()):
      raise preemption.Preempted("step 3 is saved")
    assert told == [("waited 600 s for host 1 (b): the end of the run", False)]
    group.leave_process()
    assert statuses == [preemption.REQUEUE]

  @pytest.mark.parametrize("who", [0, 1])
  def test_nobody_needs_to_have_come(self, tmp_path, who):
    with several.started(several.python(ALONE, 2), tmp_path, absent=(1 - who,)) as processes:
      limit = time.monotonic() + 60
      while "listens" not in (tmp_path / f"out-{who}").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)
      processes[0].send_signal(signal.SIGTERM)
      (found,) = several.ended(processes, tmp_path, 60)
    assert found.code == preemption.REQUEUE
    assert found.out.splitlines()[-1].startswith("ended by SIGTERM: the hosts had not all come")


class TestDevices:
  """What hosts see of their devices is compared when they join."""

  @staticmethod
  def check(monkeypatch, seen: list[list], names: dict[int, str], known: range) -> None:
    group = hosts.Group(None, 0, names, types.SimpleNamespace(at=lambda *_: None))
    monkeypatch.setattr(group, "gather", lambda name, value: seen)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(process_index=index) for index in known])
    group.check_devices()

  def test_equal_ones_are_fine(self, monkeypatch):
    self.check(monkeypatch, [[4, "TPU v5", 0]] * 3, dict(enumerate("abc")), range(3))
    self.check(monkeypatch, [[1, "H200", 2]] * 4, dict(enumerate("aabb")), range(4))

  @pytest.mark.parametrize(
    ("seen", "said"),
    [
      (
        [[4, "TPU v5", 0], [4, "TPU v5", 0], [3, "TPU v5", 0]],
        r"host 2 \(c\): 3 x TPU v5, where the others have 4 x TPU v5",
      ),
      ([[1, "H200", 8]] * 3, r"a: Slurm grants 8 GPUs, and 1 would be used.*JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7$"),
    ],
    ids=["fewer on one", "fewer than granted"],
  )
  def test_others_are_refused(self, monkeypatch, seen, said):
    with pytest.raises(hosts.HostsError, match=said):
      self.check(monkeypatch, seen, dict(enumerate("abc")), range(3))

  def test_a_host_that_the_devices_do_not_know_is_named(self, monkeypatch):
    with pytest.raises(
      hosts.HostsError, match=r"hosts 1 \(b\), 2 \(c\): joined, but JAX's cpu devices are not \(. in all\)"
    ):
      self.check(monkeypatch, [[1, "cpu", 0]] * 3, dict(enumerate("abc")), range(1))
