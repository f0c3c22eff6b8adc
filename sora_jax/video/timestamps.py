"""Timestamps of frames -> the times that they stand for.

Most files count milliseconds, or were copied from one that did, so the frames of 30 a second lie at 33, 67, 100 ms. A
reader that asks for frame 2 by its true time, 66.67 ms, would get frame 1. Where a constant rate explains the first
timestamps, each timestamp therefore means the time that this rate gives its frame. Where none does, the rate varies and
timestamps are taken as they are.
"""

import fractions
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import av

MILLISECOND = 0.001
HEAD = 64  # timestamps that a clock is found by
MAX_WALK_PACKETS = 5_000_000
SURE = 0.4  # of a frame's time: the coarsest count that still tells a constant rate from a varying one
ENOUGH = 8  # timestamps from which on a rate is believed that the file does not claim
_NTSC = 1000 / 1001
COMMON = (24.0, 25.0, 30.0, 50.0, 60.0, 24 * _NTSC, 30 * _NTSC, 60 * _NTSC, 12.0, 15.0, 20.0, 48.0, 100.0, 120.0)
_FLOAT = 1e-6  # seconds that sums of floats may be off


class Clock(NamedTuple):
  """The times of timestamps, in seconds since the timestamp `first`.

  Attributes:
    tick: seconds.
    period: seconds of a frame, where the rate is constant and known; else 0.
    low, high: how far from its true time a timestamp of that rate may lie.
    tolerance: by how much a time may be late because it was rounded.
  """

  tick: float
  first: int = 0
  period: float = 0.0
  low: float = 0.0
  high: float = 0.0
  tolerance: float = _FLOAT

  def __call__(self, timestamp: int) -> float:
    time = (timestamp - self.first) * self.tick
    if self.period:
      meant = round(time / self.period) * self.period
      if self.low <= time - meant <= self.high:
        return meant
    return time


def find_clock(timestamps: Iterable[int], tick: float, rates: Iterable[float] = (), coarse: float = 0.0) -> Clock:
  """The clock that explains `timestamps`, the first ones of a file, in any order.

  Args:
    tick: seconds.
    rates: frames a second that the file claims, the likeliest first. They are believed as far as the timestamps agree.
    coarse: seconds by which timestamps may be off in a container that stores few: most are sums of rounded durations.
  """
  ordered = sorted(set(timestamps))
  if len(ordered) < 2:
    return Clock(tick, min(ordered, default=0))
  first = ordered[0]
  times = [(timestamp - first) * tick for timestamp in ordered]
  in_milliseconds = all(abs(time - round(time / MILLISECOND) * MILLISECOND) <= tick / 2 + _FLOAT for time in times)
  grain = max(tick, MILLISECOND) if in_milliseconds else max(tick, coarse)
  for rate in _candidates(rates, COMMON if len(times) >= ENOUGH else ()):
    off = [time - round(time * rate) / rate for time in times] if 0 < rate * grain <= SURE else []
    # Rounding moves no two timestamps further apart than a grain.
    if off and max(off) - min(off) <= grain + _FLOAT:
      tolerance = _FLOAT if rate in COMMON else _FLOAT + grain / 2  # many a claim is a mean of rounded timestamps
      return Clock(tick, first, 1 / rate, max(off) - grain - _FLOAT, min(off) + grain + _FLOAT, tolerance)
  return Clock(tick, first, tolerance=_FLOAT + (grain / 2 if _is_rounded(times, grain) else 0.0))


def _candidates(claimed: Iterable[float], likely: Sequence[float]) -> list[float]:
  """Claims that are common, then the common ones, then other claims."""
  known = {round(rate, 4): rate for rate in COMMON}
  claims = [known.get(round(rate, 4), rate) for rate in claimed]
  return [*(rate for rate in claims if rate in COMMON), *likely, *(rate for rate in claims if rate not in COMMON)]


def _is_rounded(times: Sequence[float], grain: float) -> bool:
  """Whether the times are those of a constant rate, counted in grains."""
  steps = [after - before for before, after in zip(times, times[1:], strict=False)]
  uneven = max(steps) - min(steps)
  mean = times[-1] / len(steps)
  off = [time - index * mean for index, time in enumerate(times)]
  return _FLOAT < uneven <= grain + _FLOAT and grain <= SURE * mean and max(off) - min(off) <= 1.5 * grain


def last_duration(claimed: float, claims: Collection[float], mean: float) -> float:
  """How long a clip's last frame is shown.

  Args:
    claimed: what the file says, 0 where it says nothing.
    claims: those of all frames. One for all, and far from the truth, is a header's mistake.
    mean: how long a frame of the clip is shown.
  """
  mistaken = len(claims) == 1 and claimed > 4 * mean > 0
  return mean if mistaken or not claimed else claimed


# Streams of PyAV.


def rate_of(stream: av.VideoStream) -> float:
  """Frames a second that the file claims, or what is likely."""
  claimed = float(stream.average_rate or stream.guessed_rate or 0)
  return claimed if 0 < claimed < 1 / MILLISECOND else 25.0


def tick_of(stream: av.VideoStream) -> fractions.Fraction:
  """Seconds that a timestamp counts."""
  assert stream.time_base is not None  # every demuxer sets one
  return stream.time_base


def clock_of(stream: av.VideoStream, timestamps: Iterable[int]) -> Clock:
  if stream.codec_context.name == "gif":  # it claims none: the demuxer makes one up from the first delays
    return find_clock(timestamps, float(tick_of(stream)))
  rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
  coarse = MILLISECOND if stream.container.format.name == "mpeg" else 0.0
  return find_clock(timestamps, float(tick_of(stream)), [float(rate) for rate in rates if rate], coarse)


def timed(
  frames: Iterator[av.VideoFrame], stream: av.VideoStream, clock: Clock, origin: int | None
) -> Iterator[tuple[float, float, av.VideoFrame]]:
  """Adds times: by timestamp, and one frame after the last where it is missing; never backwards."""
  tick, step = float(tick_of(stream)), 1 / rate_of(stream)
  time, offset = -step, 0.0
  for frame in frames:
    if frame.pts is None:
      time += step
    else:
      if origin is None:  # the first timestamp, which may come after frames without
        origin, offset = frame.pts, time + step
      time = max(time, offset + clock(frame.pts) - clock(origin))
    yield time, (frame.duration or 0) * tick, frame


def walk(
  items: Iterator[av.Packet | av.VideoFrame], stream: av.VideoStream, origin: int | None
) -> tuple[float, float, int] | None:
  """(seconds, fps, frames) by the timestamps of packets, cheaply, or of frames, from the first picture; None above the
  limit.

  Headers are often wrong: cut files, edit lists, variable rates.
  """
  count, before, after = 0, 0, 0  # all, and those without a timestamp before the first and after the last that has one
  counted, first, last = 0, (math.inf, 0), (-math.inf, 0)
  head: list[int] = []
  claims: set[int] = set()
  for item in items:
    if item.pts is not None and len(head) < HEAD:
      head.append(item.pts)
    if item.pts is not None and origin is not None and item.pts < origin:
      continue  # what leans on pictures before the file's first
    count += 1
    if count > MAX_WALK_PACKETS:
      return None
    if item.pts is None:
      before, after = (before, after + 1) if counted else (before + 1, 0)
      continue
    timestamp = item.pts, item.duration or 0
    counted, after = counted + 1, 0
    first, last = min(first, timestamp), max(last, timestamp)
    if len(claims) < 2:
      claims.add(timestamp[1])
  rate, tick = rate_of(stream), float(tick_of(stream))
  if not counted:
    return max(count, 1) / rate, rate, max(count, 1)
  clock = clock_of(stream, head)
  lasts = clock(int(last[0])) - clock(int(first[0]))
  fps = (count - before - after - 1) / lasts if lasts > 0 else rate if count == 1 else math.inf
  claimed = last_duration(last[1] * tick, {claim * tick for claim in claims}, 1 / fps)
  return (before + after) / rate + lasts + claimed, fps, count
