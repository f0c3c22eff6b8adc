"""What a file is by its first bytes, and which containers and codecs are opened at all.

A file's name never counts. The lists hold what data sets of video are made of; each entry is one more parser that
untrusted bytes reach, so a format that nobody trains on stays out.
"""

import os
import stat

from sora_jax.errors import InputError


class UnreadableFile(InputError):
  """A file that gives no frames; the message is the reason, in one line, without the file's name."""


IMAGE = "image"  # read by Pillow; every other kind is the name of a demuxer of FFmpeg
UNKNOWN = (
  "not one of mp4, mov, m4v, 3gp, webm, mkv, avi, mpg, ts, m2ts, flv, wmv, ogv, mxf, dv, rm, ivf, y4m, gif, png, jpeg, "
  "webp"
)
EXTENSIONS = frozenset(
  ".mp4 .m4v .mov .qt .3gp .3g2 .f4v .webm .mkv .avi .divx .mpg .mpeg .mpe .m1v .m2v .vob .dat .ts .m2ts .mts .flv"
  " .wmv .asf .ogv .ogg .ogm .mxf .dv .rm .rmvb .ivf .y4m .gif .png .jpg .jpeg .webp".split()
)
# Names of decoders, and of the codecs where these are called otherwise.
CODECS = frozenset(
  "h264 hevc vp8 vp9 av1 mpeg4 mjpeg prores ffv1 rawvideo png gif"
  " mpeg1video mpeg2video h261 h263 h263p h263i msmpeg4v1 msmpeg4v2 msmpeg4v3 msmpeg4 wmv1 wmv2 wmv3 vc1"
  " theora vp3 vp5 vp6 vp6f vp6a vp7 flv1 flv rv10 rv20 rv30 rv40 svq1 svq3 mjpegb"
  " indeo2 indeo3 indeo4 indeo5 cinepak dvvideo dnxhd cfhd jpeg2000"
  " huffyuv ffvhuff utvideo lagarith v210 v410 r210 fraps cscd camstudio tscc camtasia zmbv msvideo1 msrle".split()
)
ELEMENTARY = frozenset(("mpegvideo", "m4v"))  # a codec's bytes alone: their timestamps are the demuxer's guesses
DISCONTINUOUS = frozenset(("mpeg", "mpegts"))  # broadcasts and recordings, whose clock may start anew midway
UNSEEKABLE = ELEMENTARY | DISCONTINUOUS  # no index, and a search by timestamps finds the wrong one of two

_STILLS = frozenset((b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"miaf"))  # brands of HEIF
_HEADS = (
  (b"GIF87a", "gif"),
  (b"GIF89a", "gif"),
  (b"\x89PNG\r\n\x1a\n", IMAGE),
  (b"\xff\xd8\xff", IMAGE),
  (b"\x1aE\xdf\xa3", "matroska"),
  (b"FLV\x01", "flv"),
  (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
  (b"OggS\x00", "ogg"),
  (b"\x00\x00\x01\xba", "mpeg"),
  (b"\x00\x00\x01\xb3", "mpegvideo"),
  (b"\x00\x00\x01\xb0", "m4v"),
  (b"\x00\x00\x01\xb5\x89", "m4v"),
  (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01", "mxf"),
  (b".RMF\x00\x00", "rm"),
  (b"DKIF\x00\x00", "ivf"),
  (b"YUV4MPEG2 ", "yuv4mpegpipe"),
)
_RIFFS = {b"AVI ": "avi", b"AVI\x19": "avi", b"CDXA": "mpeg", b"WEBP": IMAGE}
_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid"))
_HEAD = 2048  # bytes that are looked at
_TS_PACKETS, _TS_SYNC, _TS_SURE = (188, 192, 204), 0x47, 5  # sizes of a packet, its first byte, how many in a row


def kind_of(path: str | os.PathLike) -> str:
  """The kind of a file by its first bytes: the name of its demuxer, or IMAGE.

  Raises:
    UnreadableFile: it is empty, no regular file, or of no kind that is read.
  """
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):  # a pipe would hang, a device would never end
    raise UnreadableFile("not a regular file")
  if not status.st_size:
    raise UnreadableFile("the file is empty")
  with open(path, "rb") as file:
    head = file.read(_HEAD)
  for start, kind in _HEADS:
    if head.startswith(start):
      return kind
  if head[:4] == b"RIFF" and head[8:12] in _RIFFS:
    return _RIFFS[head[8:12]]
  if head[4:8] in _BOXES and not _is_heif(head):
    return "mov"
  if head[:3] == b"\x1f\x07\x00" and head[80:81] == b"\x3f":  # the header and first subcode block of a DV frame
    return "dv"
  if _is_transport_stream(head):
    return "mpegts"
  raise UnreadableFile(UNKNOWN)


def _is_heif(head: bytes) -> bool:
  brands = head[8 : min(int.from_bytes(head[:4]), 64)] if head[4:8] == b"ftyp" else b""
  return not _STILLS.isdisjoint(brands[at : at + 4] for at in range(0, len(brands), 4))


def _is_transport_stream(head: bytes) -> bool:
  """Whether packets follow one another, from wherever a recording began."""
  return any(
    all(head[at] == _TS_SYNC for at in range(first, first + size * _TS_SURE, size))
    for size in _TS_PACKETS
    for first in range(min(size, len(head) - size * (_TS_SURE - 1)))
  )
