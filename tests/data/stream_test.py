"""Streams: a position is one number, the same on every host; a position in other data is noticed."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data.stream import DataChanged, Extent, Reading, Stream

EXTENT = Extent("a" * 64, 100, 30)


def element(number: int) -> np.int64:
  return np.int64(number * number)


def open_stream(index=0, count=1, batch=4, extent=EXTENT, on_mismatch="error", workers=0) -> Stream:
  return Stream(element, batch, extent, Reading(grain.sharding.ShardOptions(index, count), workers, on_mismatch))


def take(stream: Stream, steps: int) -> list[int]:
  return [int(value) for _ in range(steps) for value in next(stream)]


def squares(start: int, count: int) -> list[int]:
  return [number * number for number in range(start, start + count)]


def test_elements_come_in_their_order():
  assert take(open_stream(), 3) == squares(0, 12)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 3), st.integers(0, 3))
def test_hosts_pieces_in_turn_are_the_batch_and_their_states_are_equal(hosts, each, steps):
  batch = hosts * each
  streams = [open_stream(index, hosts, batch) for index in range(hosts)]
  for step in range(steps):
    assert [value for stream in streams for value in take(stream, 1)] == squares(step * batch, batch)
  states = [stream.get_state() for stream in streams]
  assert all(state == states[0] for state in states)
  assert states[0]["global_next_index"] == steps * batch
  whole = open_stream(batch=batch)
  whole.set_state(states[-1])
  assert take(whole, 2) == squares(steps * batch, 2 * batch)


def test_a_batch_that_hosts_can_t_share_is_refused():
  with pytest.raises(ValueError, match="4 elements a step.*3 hosts"):
    open_stream(0, 3)


def test_an_unknown_answer_to_other_data_is_refused():
  with pytest.raises(ValueError, match="'ignore'.*error, restart, remap"):
    open_stream(on_mismatch="ignore")


def test_a_position_in_other_data_is_an_error_that_says_what_to_do():
  """F27."""
  stream = open_stream()
  take(stream, 2)
  other = open_stream(extent=Extent("b" * 64, 101, 31))
  with pytest.raises(DataChanged, match=r"100 clips \(aaaaaaaa\).*101 \(bbbbbbbb\).*on_mismatch=restart.*remap"):
    other.set_state(stream.get_state())
  assert take(other, 1) == squares(0, 4)


def test_restart_begins_the_new_data(capsys):
  stream = open_stream()
  take(stream, 2)
  other = open_stream(extent=Extent("b" * 64, 101, 31), on_mismatch="restart")
  other.set_state(stream.get_state())
  assert take(other, 1) == squares(0, 4)
  assert "100 clips" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "wanted"), [(0, 0), (1, 8), (6, 48), (8, 64), (15, 120)])
def test_remap_goes_on_at_the_same_share_of_the_pass_at_a_whole_step(steps, wanted):
  """A pass of 30 elements becomes one of 60."""
  stream = open_stream()
  take(stream, steps)
  other = open_stream(extent=Extent("b" * 64, 200, 60), on_mismatch="remap")
  other.set_state(stream.get_state())
  assert take(other, 1) == squares(wanted, 4)


@pytest.mark.parametrize("on_mismatch", ["restart", "remap"])
def test_the_same_data_are_taken_up_where_they_were_left(on_mismatch, capsys):
  stream = open_stream()
  take(stream, 2)
  other = open_stream(on_mismatch=on_mismatch)
  other.set_state(stream.get_state())
  assert take(other, 1) == squares(8, 4)
  assert not capsys.readouterr().err
