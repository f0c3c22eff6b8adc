"""Where wall time went: every second in one phase, over any number of starts and kills, and lost steps told apart."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from sora_jax.runtime import goodput
from sora_jax.runtime.goodput import Clock


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test turns."""

  class Turned:
    now = 1000.0

    def __call__(self) -> float:
      return self.now

    def wait(self, seconds: float) -> None:
      self.now += seconds

  clock = Turned()
  monkeypatch.setattr(goodput.time, "monotonic", clock)
  return clock


def spent(account: Clock) -> dict[str, float]:
  """What is not zero."""
  found = account.summary()
  assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"])
  return {name: pytest.approx(seconds) for name, seconds in found["seconds"].items() if abs(seconds) > 1e-9}


def train(account: Clock, clock, first: int, last: int, model: str = "m") -> None:
  """Steps of 2 s, each with 1 s of waiting for data."""
  for step in range(first, last + 1):
    account.spend("data")
    clock.wait(1.0)
    account.spend("step")
    clock.wait(2.0)
    account.reached(step)
  account.spend("other")


def test_every_second_is_in_the_phase_it_was_spent_on(clock):
  account = Clock(started=clock.now - 5)
  account.take_up("m", 0, 0.0)
  train(account, clock, 1, 3)
  account.spend("eval")
  clock.wait(7.0)
  assert spent(account) == {"init": 5, "data": 3, "step": 6, "eval": 7}
  assert account.summary()["models"] == {"m": {"step": 3, "seconds": 6.0}}


def test_what_xla_compiled_is_taken_out_of_the_phase_that_waited(clock):
  account = Clock(started=clock.now)
  account.spend("eval")
  clock.wait(10.0)
  account.compiled(goodput.COMPILED, 8.0, fun_name="sample")
  account.compiled("/jax/core/compile/jaxpr_trace_duration", 1.0)
  assert spent(account) == {"eval": 2, "compile": 8}


def test_two_kills_in_one_run_and_what_they_threw_away(clock, tmp_path):
  first = Clock(tmp_path, clock.now)
  first.take_up("m", 0, 0.0)
  train(first, clock, 1, 10)
  saved = first.step_seconds()
  train(first, clock, 11, 14)
  first.write()
  clock.wait(100)  # the machine was away: no time of any process

  second = Clock(tmp_path, clock.now)
  clock.wait(3.0)
  second.take_up("m", 10, saved)
  assert spent(second) == {"init": 3, "data": 14, "step": 20, "lost": 8}
  train(second, clock, 11, 13)
  second.write()

  third = Clock(tmp_path, clock.now)
  third.take_up("m", 10, saved)  # of the same checkpoint again
  train(third, clock, 11, 20)
  found = third.summary()
  assert spent(third) == {"init": 3, "data": 27, "step": 40, "lost": 14}
  assert (found["starts"], found["lost_steps"]) == (3, 4 + 3)
  assert found["models"]["m"] == {"step": 20, "seconds": 40.0}


def test_a_preempted_run_loses_nothing(clock, tmp_path):
  first = Clock(tmp_path, clock.now)
  first.take_up("m", 0, 0.0)
  train(first, clock, 1, 5)
  first.write()
  second = Clock(tmp_path, clock.now)
  second.take_up("m", 5, first.step_seconds())
  assert second.summary()["lost_steps"] == 0 and "lost" not in spent(second)


def test_another_model_s_steps_are_not_lost_when_the_first_is_found_finished(clock, tmp_path):
  first = Clock(tmp_path, clock.now)
  first.take_up("autoencoder", 0, 0.0)
  train(first, clock, 1, 4)
  trained = first.step_seconds()
  first.take_up("transformer", 0, 0.0)
  train(first, clock, 1, 6)
  first.write()
  second = Clock(tmp_path, clock.now)
  second.take_up("autoencoder", 4, trained)
  assert second.summary()["lost_steps"] == 0
  second.take_up("transformer", 0, 0.0)
  assert spent(second) == {"data": 10, "step": 8, "lost": 12}


def test_a_checkpoint_of_which_nobody_noted_the_time_loses_none(clock, tmp_path):
  first = Clock(tmp_path, clock.now)
  first.take_up("m", 0, 0.0)
  train(first, clock, 1, 6)
  first.write()
  second = Clock(tmp_path, clock.now)
  second.take_up("m", 4, None)
  assert second.summary()["lost_steps"] == 2 and "lost" not in spent(second)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"seconds": {"step": 1}}', '{"seconds": 3}', "\0\1"])
def test_an_account_that_can_t_be_read_begins_anew(tmp_path, content):
  (tmp_path / goodput.FILE).write_text(content)
  assert goodput.read(tmp_path) == {}
  assert Clock(tmp_path).summary()["starts"] == 1


def test_a_run_s_account_is_on_disk_as_it_goes_and_true_to_the_clock(tmp_path):
  begin = time.monotonic()
  with goodput.accounted(tmp_path / "logs", begin) as account:
    account.take_up("m", 0, 0.0)
    account.spend("step")
    time.sleep(0.5)
    seen = goodput.read(tmp_path / "logs")  # what a kill would leave now
    assert 0.2 < seen["seconds"]["step"] <= 0.6 and seen["phase"] == "step"
    account.spend("eval")
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((5, 5))).block_until_ready()
    wall = time.monotonic() - begin
  found = goodput.read(tmp_path / "logs")
  assert found["wall_seconds"] == pytest.approx(wall, abs=0.05)
  assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"], rel=1e-6)
  assert found["seconds"]["compile"] > 0 and found["seconds"]["step"] == pytest.approx(0.5, abs=0.1)
  assert found.keys() == {"wall_seconds", "starts", "ends", "phase", "seconds", "lost_steps", "models"}
  time.sleep(0.3)
  assert goodput.read(tmp_path / "logs") == found  # nobody writes any more


def test_how_each_start_ended_is_told(tmp_path):
  """One that is killed can't say so; the next one does."""
  with pytest.raises(ValueError), goodput.accounted(tmp_path):
    raise ValueError("no\nmemory")
  Clock(tmp_path).write()  # and no more of it
  with goodput.accounted(tmp_path):
    pass
  found = goodput.read(tmp_path)
  assert (found["starts"], found["ends"]) == (3, ["ValueError: no memory", goodput.KILLED, goodput.DONE])


def test_a_folder_that_can_t_be_written_is_said_once(tmp_path, capsys):
  (tmp_path / "logs").write_text("no folder")
  with goodput.accounted(tmp_path / "logs") as account:
    time.sleep(0.5)
  said = capsys.readouterr().err
  assert said.count("can't be written") == 1 and "training goes on" in said
  assert account.summary()["wall_seconds"] > 0.4


def test_the_file_is_json_that_people_can_read(tmp_path):
  account = Clock(tmp_path)
  account.write()
  assert list(json.loads((tmp_path / goodput.FILE).read_text())["seconds"]) == list(goodput.PHASES)
