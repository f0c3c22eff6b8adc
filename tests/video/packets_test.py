"""Packets as a container gives them: joined clocks, a start that is looked for, and cut files."""

import dataclasses
import pathlib

import av
import pytest

from sora_jax.video import packets
from tests.video.containers_test import write


@dataclasses.dataclass
class Packet:
  dts: int | None
  pts: int | None = None
  duration: int = 4
  size: int = 9
  is_keyframe: bool = False


def marks(given: list[Packet]) -> list[int | None]:
  return [packet.dts for packet in packets.continuous(iter(given), 0.01)]


def test_a_clock_that_goes_on_is_left_alone():
  given = [0, 4, 8, 900, 904, 899, 903]  # a pause, and a step back that rounding explains
  assert marks([Packet(dts) for dts in given]) == given


def test_after_a_jump_the_next_packet_follows_the_last():
  assert marks([Packet(dts) for dts in (100, 104, 108, 0, 4, 8)]) == [100, 104, 108, 112, 116, 120]
  assert marks([Packet(dts) for dts in (0, 4, 90_000, 90_004, 8)]) == [0, 4, 8, 12, 16]


def test_both_times_of_a_packet_move_alike():
  given = [Packet(100, 104), Packet(104, 112), Packet(None, None), Packet(0, 4), Packet(None, None, size=0)]
  assert [(each.dts, each.pts) for each in packets.continuous(iter(given), 0.01)] == [
    (100, 104),
    (104, 112),
    (None, None),
    (108, 112),
    (None, None),
  ]


def test_decoding_begins_at_the_last_key_frame_before_a_time():
  given = [Packet(dts, dts, is_keyframe=dts % 40 == 0) for dts in range(0, 160, 4)]
  found = lambda until: [each.dts for each in packets.from_key_frame(iter(given), until)]
  assert found(99) == list(range(80, 160, 4))
  assert found(120) == list(range(120, 160, 4))
  assert found(-1) == list(range(0, 160, 4))
  assert found(9999) == list(range(120, 160, 4))


def test_a_group_that_is_too_large_is_not_held(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(packets, "MAX_GROUP_BYTES", 20)
  given = [Packet(dts, dts, is_keyframe=dts == 0) for dts in range(0, 160, 4)]
  assert [each.dts for each in packets.from_key_frame(iter(given), 99)] == list(range(0, 160, 4))


def test_what_is_shown_ends_in_an_error_where_the_file_is_cut(tmp_path: pathlib.Path):
  path = write(tmp_path / "a.avi", "mpeg4")
  path.write_bytes(path.read_bytes()[:-3000])
  with av.open(str(path)) as container, pytest.raises(EOFError):
    list(packets.shown(container, container.streams.video[0], 2**30))
  with av.open(str(path)) as container, pytest.raises(packets.TooLongError):
    list(packets.shown(container, container.streams.video[0], 99))


def test_frames_of_mpeg_2_are_due_one_duration_after_another():
  """FFmpeg's times of small frames repeat and leap; a gap of more than some frames is one."""
  given = [Packet(dts) for dts in (0, 4, 8, 4, 8, 12, 24, 28, None, 90, 94)]
  assert [(each.dts, each.pts) for each in packets.steady(iter(given), 0.01)] == [
    (dts, dts) for dts in (0, 4, 8, 12, 16, 20, 24, 28, 32, 90, 94)
  ]
