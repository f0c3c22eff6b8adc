"""Liveness: who is late, silent or the first to fail is named, by what hosts have posted."""

import threading
import time

import pytest

from sora_jax.checkpoints.manager import CheckpointManager
from sora_jax.runtime import watchdog
from sora_jax.runtime.hosts import Hosts
from sora_jax.runtime.run import Run
from sora_jax.runtime.watchdog import Post, Watchdog, named, verdict
from tests.train import loop_test

NAMES = {0: "a", 1: "b", 2: "c"}
QUIET = dict.fromkeys(NAMES, 0.5)


def post(step: int, age: float = 1.0, stage: int = 3, limit: float = 60.0, **more) -> Post:
  return Post(7, stage, "training", step, age, limit, **more)


def judged(posts: dict[int, Post], **quiet: float) -> str:
  return verdict(posts, QUIET | {int(host[1:]): seconds for host, seconds in quiet.items()}, NAMES, silent=30.0)


def test_hosts_that_get_on_are_left_alone():
  assert not judged({0: post(12), 1: post(11, 59.0), 2: post(900, 100.0)})
  assert not judged({0: post(12, 1e6, limit=float("inf")), 1: post(12), 2: post(12)})


def test_the_one_that_is_behind_for_too_long_is_named_and_not_those_that_wait_for_it():
  said = judged({0: post(13, 61.0), 1: post(12, 62.0), 2: post(13, 61.5)})
  assert said == "host 1 (b) in training 12 for 62 s: no progress"
  assert judged({0: post(0, 90.0, stage=4), 1: post(12, 62.0), 2: post(0, 90.0, stage=4)}) == said


def test_where_all_are_at_the_same_step_all_are_named():
  said = judged({host: post(12, 61.0) for host in NAMES})
  assert said == "hosts 0 (a), 1 (b), 2 (c) in training 12 for 61 s: no progress"


def test_a_step_counts_from_when_the_last_host_has_come_to_it():
  """Those that came before waited for it."""
  assert not judged({0: post(12, 90.0), 1: post(12, 5.0), 2: post(12, 61.0)})
  said = judged({0: post(12, 150.0), 1: post(12, 65.0), 2: post(12, 121.0)})
  assert said.startswith("hosts 0 (a), 1 (b), 2 (c) in training 12")


def test_who_waits_for_a_host_that_is_silent_is_not_named():
  """The silent one's age stands still while that of the others grows."""
  posts = {0: post(12, 61.0), 1: post(13, 1.0), 2: post(12, 58.0)}
  assert not judged(posts, h2=20.0)
  assert judged(posts, h2=31.0) == "host 2 (c): nothing heard for 30 s, last in training 12"


def test_a_host_that_has_not_come_so_far_is_waited_for():
  assert not judged({0: post(13, 61.0), 1: post(12, 3.0), 2: post(13, 61.0)})
  assert not judged({0: post(13, 61.0), 2: post(13, 61.0)})


def test_a_silent_host_is_gone():
  assert (
    judged({0: post(12), 1: post(11), 2: post(12)}, h1=31.0)
    == "host 1 (b): nothing heard for 30 s, last in training 11"
  )
  assert judged({0: post(1), 1: post(1)}, h2=31.0) == "host 2 (c): nothing heard for 30 s, last in the start"


def test_an_error_of_its_own_is_named_before_all_that_follows_from_it():
  found = {0: post(12, error="Connection closed by peer", own=False), 1: post(12, error="no space left"), 2: post(12)}
  assert judged(found, h2=31.0) == "host 1 (b) failed in training 12: no space left"


def test_an_error_that_another_host_may_have_caused_waits_until_one_is_found():
  lost = {0: post(12, 5.0, error="UNAVAILABLE: closed", own=False), 1: post(12), 2: post(12)}
  assert not judged(lost, h1=10.0)
  assert judged(lost, h1=31.0).startswith("host 1 (b): nothing heard")
  lost[0] = post(12, 40.0, error="UNAVAILABLE: closed", own=False)
  assert judged(lost) == "host 0 (a) failed in training 12: UNAVAILABLE: closed"


def test_many_hosts_are_counted():
  assert named(range(20), {}) == f"hosts {', '.join(f'{host} (unknown)' for host in range(8))} and 12 more"


class Store:
  """What a watchdog needs of JAX's client, in this process."""

  def __init__(self):
    self.values, self.changed = {}, threading.Condition()

  def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
    with self.changed:
      self.values[key] = value
      self.changed.notify_all()

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in list(self.values.items()) if name.startswith(key)]

  def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
    with self.changed:
      if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody set it")
      return self.values[key]


@pytest.fixture
def pair(monkeypatch):
  """The watchdogs of two hosts, and the statuses that they end processes with."""
  monkeypatch.setattr(watchdog, "BEAT", 0.02)
  monkeypatch.setattr(watchdog, "FIRST_TIME", 1.0)
  monkeypatch.setattr(watchdog, "LINGER", 0.1)
  monkeypatch.setattr(watchdog, "LISTEN", 0.05)
  ended: list[int] = []
  monkeypatch.setattr(watchdog.os, "_exit", ended.append)
  store, names = Store(), {0: "a", 1: "b"}
  found = [Watchdog(store, host, names, 0.6) for host in names]
  for each in found:
    each.silent = 60.0  # on a busy machine a thread may have to wait
  yield *found, ended
  for each in found:
    each.stop()
  for thread in threading.enumerate():
    if thread.name == "watchdog":
      thread.join(5)  # before os._exit is the real one again


def test_no_thread_is_left_when_the_run_has_ended_well(pair):
  """One that is inside JAX while Python ends aborts the process."""
  first, second, ended = pair
  second.stop()
  first.stop()
  assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"] and not ended


def test_a_moment_without_network_silences_nobody(pair, monkeypatch):
  first, second, ended = pair
  store, failed = first.client, []
  whole = store.key_value_set

  def unavailable(*args, **more):
    if len(failed) < 4:
      failed.append(args)
      raise RuntimeError("UNAVAILABLE: failed to connect")
    return whole(*args, **more)

  monkeypatch.setattr(store, "key_value_set", unavailable)
  first.at("transformer: step", 1)
  second.at("transformer: step", 1)
  wait_for(lambda: len(failed) == 4)
  beats = lambda: [post.beat for post in first._posts.values()]
  before = beats()
  wait_for(lambda: len(beats()) == 2 and min(beats()) > max(before, default=0) + 2)
  assert not ended


def wait_for(ready, seconds: float = 5.0) -> None:
  limit = time.monotonic() + seconds
  while not ready():
    assert time.monotonic() < limit
    time.sleep(0.01)


def test_a_stuck_host_ends_both_and_is_named(pair, capfd):
  first, second, ended = pair
  for step in range(1, 30):
    first.at("training", step)
    second.at("training", min(step, 12))
  wait_for(lambda: len(ended) == 2)
  assert ended == [1, 1]
  assert capfd.readouterr().err.count("sora: host 1 (b) in training 12 for") == 2


def test_the_others_see_that_the_first_answers_no_more(pair, capfd, monkeypatch):
  """It was stopped, say: no connection breaks."""
  first, second, ended = pair
  second.at("training", 7)
  second.silent = 0.2
  with monkeypatch.context() as stopped:
    stopped.setattr(second.client, "key_value_set", lambda *_, **__: time.sleep(0.3))
    wait_for(lambda: ended)
  assert "sora: host 0 (a): nothing heard for 0.2 s, when this one was in training 7" in capfd.readouterr().err


def test_a_pause_of_the_judge_is_nobody_s_silence(pair):
  first, second, ended = pair
  wait_for(lambda: len(first._posts) == 2)
  second.stop()
  first.silent = 0.5
  for _ in range(3):
    first._judged = time.monotonic() - 100.0
    assert not first._judge()
  assert first._quiet[1] < 0.5


def test_waiting_has_its_own_limit_and_then_the_step_goes_on(pair):
  first, second, ended = pair
  for each in (first, second):
    each.at("training", 1)
    each.at("training", 2)
  with first.waiting("the tokenizer"), second.waiting("the tokenizer"):
    time.sleep(0.9)
    assert not ended
  wait_for(lambda: len(ended) == 2)


def test_a_host_that_leaves_a_phase_out_is_not_taken_for_the_one_behind(pair, capfd):
  first, second, ended = pair
  first.at("encoding unit", 1)
  for each in (first, second):
    with each.waiting("encoding latents"):
      pass
    each.at("data", 9)
  second.at("step", 9)
  wait_for(lambda: len(ended) == 2)
  assert capfd.readouterr().err.count("sora: host 0 (a) in data 9 for") == 2


def test_an_error_of_one_host_ends_the_other_and_is_not_said_twice(pair, capfd):
  first, second, ended = pair
  second.at("training", 5)
  second.fail("no space left", own=True)
  wait_for(lambda: ended == [1])
  assert capfd.readouterr().err == "\nsora: host 1 (b) failed in training 5: no space left\n"


def test_after_a_good_end_nobody_is_late(pair, capfd):
  first, second, ended = pair
  first.at("training", 1), second.at("training", 1)
  first.stop(), second.stop()
  time.sleep(0.9)
  assert not ended and not capfd.readouterr().err


@pytest.mark.parametrize("every", [0, 4], ids=["the only save", "the last of three"])
def test_a_save_has_as_long_as_a_phase_s_first_step(tmp_path, monkeypatch, every):
  """A bucket may be slow, and no step comes after the last save in which it could end."""
  mine, waits = Watchdog(Store(), 0, {0: "a"}, 600.0), []
  whole = CheckpointManager.wait_until_finished
  monkeypatch.setattr(
    CheckpointManager, "wait_until_finished", lambda steps: waits.append(mine._now[0]) or whole(steps)
  )
  group = Hosts()
  group.at = mine.at
  loop_test.run(tmp_path, loop_test.loop_config(checkpoint_every=every), process=Run(group))
  mine.stop()
  ends = [each for each in waits if each.stage == max(each.stage for each in waits)]
  assert ends and {each.limit for each in ends} == {6 * 600.0}
  assert {each.limit for each in waits if each.phase == "toy: checkpoint"} == {6 * 600.0}
