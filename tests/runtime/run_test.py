"""What a library's user gets who passes nothing: a process alone, which nothing preempts, and time of its own."""

from sora_jax.runtime import run
from sora_jax.runtime.hosts import ALONE


def test_the_defaults_are_a_process_alone():
  mine = run.Run()
  assert mine.hosts is ALONE and mine.preemption.reason() == 0 and mine.clock.path is None


def test_nothing_is_shared_by_two_runs_of_one_process():
  first, second = run.Run(), run.Run()
  first.preemption.signals.append(15)
  first.clock.take_up("model", 3, None)
  assert first.stopping().reason(1) == 15 and second.stopping().reason(1) == 0
  assert not second.clock.summary()["models"]
