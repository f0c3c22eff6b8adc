"""The part of a stored picture that is shown, where a container says so: `clap` of MP4 and MOV, PixelCrop of Matroska.

FFmpeg reads both and PyAV passes on neither. Damaged numbers count as none.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_INDEX = 64 * 2**20  # bytes of an MP4's index that are looked at
MAX_TRACKS = 2**20  # bytes from the head of a Matroska file in which its tracks are looked for
_SAMPLE_ENTRY = 86  # bytes of a video's description before the boxes in it
_TRACKS, _TRACK, _VIDEO = b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
_CROPS = (b"\x54\xbb", b"\x54\xaa", b"\x54\xcc", b"\x54\xdd")  # top, bottom, left, right


class Crop(NamedTuple):
  """Lines and columns of the stored picture that are not shown."""

  top: int = 0
  bottom: int = 0
  left: int = 0
  right: int = 0

  def of(self, height: int, width: int) -> "Crop":
    """This crop where something is left of a picture, else none."""
    fits = min(self) >= 0 and self.top + self.bottom < height and self.left + self.right < width
    return self if fits else Crop()


def crop_of(path: str | os.PathLike, kind: str, track: int, height: int, width: int) -> Crop:
  """The crop of a track of a file.

  Args:
    kind: see `containers.kind_of`.
    track: the number that an MP4 gives it.
    height, width: of the stored picture.
  """
  try:
    with open(path, "rb") as file:
      if kind == "mov":
        crop = _clean_aperture(_moov(file), track, height, width)
      else:
        crop = _pixel_crop(file.read(MAX_TRACKS)) if kind == "matroska" else Crop()
  except (struct.error, ValueError, ZeroDivisionError, OverflowError):
    return Crop()
  return crop.of(height, width)


def _moov(file: BinaryIO) -> bytes:
  """The index of an MP4; empty where there is none."""
  while len(head := file.read(8)) == 8:
    size, kind = struct.unpack(">I4s", head)
    skipped = 8
    if size == 1:
      size, skipped = int.from_bytes(file.read(8)), 16
    if kind == b"moov":
      return file.read(min(size - skipped, MAX_INDEX)) if size else file.read(MAX_INDEX)
    if size < skipped:
      return b""
    file.seek(size - skipped, os.SEEK_CUR)
  return b""


def _boxes(data: bytes, wanted: bytes) -> Iterator[bytes]:
  """The bodies of the boxes of a kind."""
  at = 0
  while at + 8 <= len(data):
    size, kind = struct.unpack_from(">I4s", data, at)
    if size < 8:
      return
    if kind == wanted:
      yield data[at + 8 : at + size]
    at += size


def _clean_aperture(moov: bytes, track: int, height: int, width: int) -> Crop:
  for trak in _boxes(moov, b"trak"):
    header = next(_boxes(trak, b"tkhd"), b"")
    number = struct.unpack_from(">I", header, 20 if header[:1] == b"\1" else 12)[0]
    if number != track:
      continue
    inner = trak
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
      inner = next(_boxes(inner, name), b"")
    entry = inner[8 : 8 + int.from_bytes(inner[8:12])]
    for clap in _boxes(entry[_SAMPLE_ENTRY:], b"clap"):
      across, across_by, down, down_by, x, x_by, y, y_by = struct.unpack_from(">IIIIiIiI", clap)
      w, h = across / across_by, down / down_by
      left, top = round((width - w) / 2 + x / x_by), round((height - h) / 2 + y / y_by)
      return Crop(top, height - top - round(h), left, width - left - round(w))
  return Crop()


def _elements(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """(identifier, body) of the elements of Matroska in a body."""
  at = 0
  while at < len(data) and data[at]:
    length = 9 - data[at].bit_length()
    identifier, at = data[at : at + length], at + length
    if at >= len(data) or not data[at]:
      return
    length = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + length]) & (1 << 7 * length) - 1
    at += length
    yield identifier, data[at : at + size]
    at += size


def _pixel_crop(head: bytes) -> Crop:
  """That of the only video track; none where there are several."""
  at = head.find(_TRACKS)
  tracks = next(_elements(head[at:]), (b"", b""))[1] if at >= 0 else b""
  inner = [found for name, track in _elements(tracks) if name == _TRACK for found in _elements(track)]
  videos = [body for name, body in inner if name == _VIDEO]
  if len(videos) != 1:
    return Crop()
  values = {name: int.from_bytes(body) for name, body in _elements(videos[0])}
  return Crop(*(values.get(name, 0) for name in _CROPS))
