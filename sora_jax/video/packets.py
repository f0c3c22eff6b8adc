"""The packets of a track, their timestamps mended where containers are known to break them."""

from collections.abc import Iterator

import av
from av.container import InputContainer

from sora_jax.errors import SoraError
from sora_jax.video.containers import DISCONTINUOUS, ELEMENTARY
from sora_jax.video.timestamps import tick_of

MAX_GROUP_BYTES = 256 * 2**20  # of the packets since a key frame that are held while a start is looked for
MAX_DRIFT = 0.2  # seconds between when a frame is due and its time, that are put right
MAX_GAP, MAX_STEP_BACK = 10.0, 0.1  # seconds between two decoding times; beyond, a clock has started anew


class TooLongError(SoraError):
  """A track has more bytes than are to be read of it."""


def demuxed(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
  """The packets in the order of decoding, and an empty one that ends them."""
  packets = container.demux(stream)
  name = container.format.name
  if name == "avi" or name in ELEMENTARY:
    return map(_decoded_in_order, packets)
  tick = float(tick_of(stream))
  if name == "mpeg" and stream.codec_context.name in ("mpeg1video", "mpeg2video"):
    packets = steady(packets, tick)
  return continuous(packets, tick) if name in DISCONTINUOUS else packets


def _decoded_in_order(packet: av.Packet) -> av.Packet:
  """AVI and bare codecs say when a packet is decoded. FFmpeg's guess when it is shown fails for some codecs."""
  packet.pts = packet.dts
  return packet


def steady(packets: Iterator[av.Packet], tick: float) -> Iterator[av.Packet]:
  """MPEG-1 and MPEG-2 frames one duration after another, timed by decoding; a true gap stays.

  A program stream states a time for every 2 kB or so. Where several small frames lie between, FFmpeg gives the time to
  the wrong one now and then. The durations are right: they are the codec's own.
  """
  last, step = None, 0
  for packet in packets:
    if packet.size:
      if last is not None and (packet.dts is None or abs(packet.dts - last - step) * tick <= MAX_DRIFT):
        packet.dts = last + step
      packet.pts, last = packet.dts, packet.dts
      step = packet.duration or step
    yield packet


def continuous(packets: Iterator[av.Packet], tick: float) -> Iterator[av.Packet]:
  """Recordings joined end to end, or with a clock that jumps, as one: after a jump the next packet follows the last."""
  shift, last, step = 0, None, 0
  for packet in packets:
    if packet.dts is not None:
      dts = packet.dts + shift
      if last is not None and not -MAX_STEP_BACK <= (dts - last) * tick <= MAX_GAP:
        shift += last + step - dts
        dts = last + step
      elif last is not None and packet.duration:
        step = packet.duration
      last = dts
    if shift and packet.size:
      packet.pts = None if packet.pts is None else packet.pts + shift
      packet.dts = None if packet.dts is None else packet.dts + shift
    yield packet


def from_key_frame(packets: Iterator[av.Packet], until: int) -> Iterator[av.Packet]:
  """All packets from the last key frame that is shown no later than the timestamp `until`."""
  group: list[av.Packet] = []
  size = 0
  for packet in packets:
    timestamp = packet.dts if packet.pts is None else packet.pts
    late = packet.is_keyframe and timestamp is not None and timestamp > until
    if packet.is_keyframe and timestamp is not None and not late:
      group, size = [], 0
    group.append(packet)
    size += packet.size
    if not packet.size or size > MAX_GROUP_BYTES or late:
      break
  yield from group
  yield from packets


def shown(container: InputContainer, stream: av.VideoStream, most: int) -> Iterator[av.Packet]:
  """The packets that are shown.

  Args:
    most: bytes.

  Raises:
    TooLongError: there are more bytes.
    EOFError: the file is cut: it has fewer packets than its index or header lists.
  """
  listed = len(stream.index_entries) if container.format.name.startswith("mov") else 0
  listed = listed or stream.frames  # an edit list leaves out some of those that the header counts
  count = size = 0
  for packet in demuxed(container, stream):
    count += bool(packet.size or packet.dts is not None)  # an empty one lets the picture before it stay
    size += packet.size
    if size > most:
      raise TooLongError
    if packet.size and not packet.is_discard:
      yield packet
  if count < listed:
    raise EOFError("fewer packets than are listed")
