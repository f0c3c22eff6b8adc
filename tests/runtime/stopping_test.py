"""All hosts stop after the same step, whichever was preempted; one host asks nobody."""

import re

import pytest

from sora_jax.runtime import preemption, stopping
from sora_jax.runtime.hosts import ALONE, Hosts
from sora_jax.runtime.stopping import Stopping


class Fake(Hosts):
  """The hosts of a run, one after another in this process: each has its own steps, and gets host 0's answers."""

  def __init__(self, monkeypatch, count: int):
    self.count, self.answers, self.now = count, [], 0.0
    self.flag = False
    monkeypatch.setattr(stopping.time, "monotonic", lambda: self.now)
    self.asked = [preemption.Preemption() for _ in range(count)]
    self.talks = [Stopping(self, asked) for asked in self.asked]
    self.calls = [0] * count

  def raised(self, flag: bool) -> bool:
    self.flag |= flag
    return self.flag

  def agree(self, name, value):
    """Host 0 runs first in every step, so its answer is there."""
    if self.turn == 0:
      self.answers.append(value)
    self.calls[self.turn] += 1
    return self.answers[self.calls[self.turn] - 1]

  def run(self, steps: int, preempted: dict[int, tuple[int, int]], seconds: float = 1.0) -> list[tuple[int, int]]:
    """(last step, reason) of each host; `preempted` is {host: (step, signal)}."""
    ended: dict[int, tuple[int, int]] = {}
    for step in range(1, steps + 1):
      self.now += seconds
      for host in range(self.count):
        self.turn = host
        if host in preempted and preempted[host][0] == step:
          self.asked[host].signals.append(preempted[host][1])
        if reason := self.talks[host].reason(step):
          ended[host] = (step, reason)
      if ended:
        break
    return [ended.get(host, (0, 0)) for host in range(self.count)]


@pytest.mark.parametrize("who", [0, 1, 3])
@pytest.mark.parametrize("step", [1, 7, 8])
def test_one_that_is_preempted_stops_all_after_the_same_step(monkeypatch, who, step):
  ends = Fake(monkeypatch, 4).run(60, {who: (step, 15)})
  lasts, reasons = zip(*ends, strict=True)
  assert len(set(lasts)) == 1 and step <= lasts[0] <= step + 2 * stopping.SECONDS
  by_another = 15 if who == 0 else preemption.ELSEWHERE  # the others say what host 0 said
  assert reasons == tuple(15 if host == who else by_another for host in range(4))


def test_nobody_preempted_nobody_stops(monkeypatch):
  assert Fake(monkeypatch, 3).run(50, {}) == [(0, 0)] * 3


@pytest.mark.parametrize(("seconds", "talks"), [(0.01, 10), (1.0, 181), (60.0, 900)])
def test_the_hosts_speak_to_each_other_every_few_seconds(monkeypatch, seconds, talks):
  fake = Fake(monkeypatch, 2)
  fake.run(900, {}, seconds)
  assert fake.calls[0] == fake.calls[1] == pytest.approx(talks, abs=2)


def test_first_steps_that_seem_to_take_no_time_do_not_put_it_off(monkeypatch):
  fake = Fake(monkeypatch, 2)
  fake.run(3, {}, 0.0)
  before = fake.calls[0]
  fake.turn = 0
  steps = 0
  while fake.calls[0] < before + 2:
    steps += 1
    fake.now += 30.0
    fake.talks[0].reason(3 + steps)
  assert steps <= 8


def test_a_step_that_comes_after_an_earlier_loop_s_is_asked_at_once(monkeypatch):
  fake = Fake(monkeypatch, 2)
  fake.run(900, {}, 0.01)
  fake.turn = 0
  before = fake.calls[0]
  fake.talks[0].reason(1)
  assert fake.calls[0] == before + 1


@pytest.mark.parametrize(("mine", "reason"), [(0, "the preemption of another host"), (15, "SIGTERM")])
def test_a_phase_ends_on_all_hosts_if_one_was_preempted_before_any_of_them_came_there(mine, reason):
  """Whoever comes first must wait for the others' answers: flags that they have not set yet are no answer."""

  class Two(Hosts):
    count = 2

    def gather(self, name: str, value: int, seconds: float | None = None) -> list[int]:
      return [value, 15]

  asked = preemption.Preemption()
  asked.signals.extend([mine] if mine else [])
  with pytest.raises(preemption.Preempted, match=f"ended by {re.escape(reason)}: 3 units are saved"):
    Stopping(Two(), asked).end_here("3 units are saved")


def test_one_host_asks_nobody():
  asked = preemption.Preemption()
  alone = Stopping(ALONE, asked)
  assert alone.reason(1) == 0 and not alone.preempted()
  alone.end_here("nothing")
  asked.signals.append(15)
  assert alone.reason(1) == 15 and alone.preempted()
  with pytest.raises(preemption.Preempted, match="ended by SIGTERM: 3 units are saved; the same command goes on"):
    alone.end_here("3 units are saved")
