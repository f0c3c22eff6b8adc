"""Hundreds of broken media files, each made here from a few bytes, and what is to become of each."""

import functools
import io
import itertools
import os
import pathlib
import struct
import tempfile
import zlib

import av
import numpy as np
from PIL import Image

from sora_jax.video import containers
from sora_jax.video import io as video_io

# What is expected of a file, in the place of the reason why it is dropped; DROPPED is for any reason.
KEPT, DROPPED, EITHER = "", "DROPPED", "EITHER"
UNKNOWN = f"unreadable: {containers.UNKNOWN}"
SIZE = (48, 64)
CIPHER = f"encryption_scheme=cenc-aes-ctr encryption_key={7:032x} encryption_kid={9:032x}"  # a muxer's options
ENDLESS = ("webm", "mpg", "ts", "flv", "wmv", "ogv", "m2v", "mxf", "rm")  # what follows may be more of the video
Kinds = dict[str, tuple[bytes, str]]  # name: (content, what is expected)


def moving(count: int, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
  y, x = np.mgrid[:height, :width]
  return np.stack(
    [np.stack([(x * 3 + t * 9) % 256, y * 4 % 256, x * 0 + t * 20 % 256], -1) for t in range(count)]
  ).astype(np.uint8)


def encoded(
  name: str, codec: str, pix_fmt: str = "yuv420p", options: str = "", muxer: str = "", rate: int = 12
) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, name)
    pairs = [dict(each.split("=", 1) for each in text.split()) for text in (options, muxer)]
    with av.open(path, "w", options=pairs[1]) as container:
      stream = container.add_stream(codec, rate=rate, options=pairs[0])
      stream.height, stream.width, stream.pix_fmt = *SIZE, pix_fmt
      for pixels in moving(12):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)))
      container.mux(stream.encode(None))
    return pathlib.Path(path).read_bytes()


def image(kind: str, pixels: np.ndarray | Image.Image | None = None, **options) -> bytes:
  shown = moving(1)[0] if pixels is None else pixels
  buffer = io.BytesIO()
  (shown if isinstance(shown, Image.Image) else Image.fromarray(shown)).save(buffer, kind, **options)
  return buffer.getvalue()


@functools.cache
def whole() -> dict[str, bytes]:
  """Sound files of every container."""
  return {
    "mp4": video_io.encode(moving(12), 12, "mp4"),
    "first.mp4": encoded("a.mp4", "libx264", muxer="movflags=faststart"),
    "parts.mp4": encoded("a.mp4", "libx264", options="g=4", muxer="movflags=frag_keyframe+empty_moov"),
    "hevc.mp4": encoded("a.mp4", "libx265", options="x265-params=log-level=none"),
    "mov": encoded("a.mov", "mjpeg", "yuvj420p"),
    "mkv": encoded("a.mkv", "libx264"),
    "webm": encoded("a.webm", "libvpx-vp9", options="deadline=realtime cpu-used=8"),
    "avi": encoded("a.avi", "mpeg4"),
    "mpg": encoded("a.mpg", "mpeg1video", options="b=1000000 bf=2", rate=25),
    "ts": encoded("a.ts", "libx264"),
    "flv": encoded("a.flv", "flv"),
    "wmv": encoded("a.wmv", "wmv2"),
    "ogv": encoded("a.ogv", "libvpx"),
    "m2v": encoded("a.m2v", "mpeg2video", rate=25),
    "mxf": encoded("a.mxf", "mpeg2video", rate=25),
    "rm": encoded("a.rm", "rv20"),
    "gif": video_io.encode(moving(12), 12, "gif"),
    "webp": video_io.encode(moving(12), 12, "webp"),
    "png": image("PNG"),
    "jpg": image("JPEG"),
  }


# What containers are made of.


def box(kind: bytes, *content: bytes) -> bytes:
  return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def four(*numbers: int) -> bytes:
  return struct.pack(f">{len(numbers)}I", *numbers)


def patched(data: bytes, kind: bytes, offset: int, new: bytes) -> bytes:
  """`new` at `offset` from the name of the first box of its kind."""
  at = data.index(kind) + offset
  return data[:at] + new + data[at + len(new) :]


def replaced(data: bytes, path: list[bytes], new: bytes) -> bytes:
  """`new` in the place of the box at `path`; the sizes of those around it follow."""
  found = b""
  while data:
    size, kind = int.from_bytes(data[:4]), data[4:8]
    body = data[8:size]
    if kind != path[0]:
      found += data[:size]
    else:
      found += box(kind, replaced(body, path[1:], new)) if path[1:] else new
    data = data[size:]
  return found


def element(identifier: str, *content: bytes | int) -> bytes:
  parts = b"".join(part.to_bytes(8) if isinstance(part, int) else part for part in content)
  return bytes.fromhex(identifier) + (1 << 56 | len(parts)).to_bytes(8) + parts


def matroska(
  packets: list[bytes], codec: str = "V_MJPEG", private: bytes = b"", size=SIZE, more: bytes = b"", track: bytes = b""
) -> bytes:
  """Packets of 83 ms; `more` is put before them and `track` into their track."""
  video = element("E0", element("B0", size[1]), element("BA", size[0]))
  names = element("86", codec.encode()) + (element("63A2", private) if private else b"")
  entry = element("AE", element("D7", 1), element("73C5", 1), element("83", 1), names, track, video)
  blocks = [element("A3", b"\x81", struct.pack(">hB", 83 * k, 0x80), packet) for k, packet in enumerate(packets)]
  head = element("1549A966", element("2AD7B1", 10**6)) + element("1654AE6B", entry)
  return element("1A45DFA3", element("4282", b"matroska")) + element(
    "18538067", head, more, element("1F43B675", element("E7", 0), *blocks)
  )


def bitmap_header(code: bytes) -> bytes:
  return struct.pack("<IiiHH4sIiiII", 40, SIZE[1], SIZE[0], 1, 24, code, SIZE[0] * SIZE[1] * 3, 0, 0, 0, 0)


def chunk(kind: bytes, data: bytes) -> bytes:
  return four(len(data)) + kind + data + four(zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
  head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def gif(width: int, height: int, *frames: bytes) -> bytes:
  return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"".join(frames) + b";"


def gif_frame(width: int = 2, height: int = 2, left: int = 0, delay: int = 4) -> bytes:
  head = b"!\xf9\x04\0" + struct.pack("<H", delay) + b"\0\0," + struct.pack("<HHHHB", left, 0, width, height, 0)
  return head + b"\x02\x02\x4c\x01\x00"


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
  body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
  return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def canvas(width: int, height: int) -> tuple[bytes, bytes]:
  return b"VP8X", b"\2\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


# The kinds of broken files.


def cut_files() -> Kinds:
  kinds = {}
  for name, data in whole().items():
    for percent in range(0, 100, 5 if name == "first.mp4" else 20):
      at_its_end = name in ("mp4", "mov", "hevc.mp4")  # the index that nothing opens without
      kinds[f"cut_at_{percent}.{name}"] = data[: len(data) * percent // 100], DROPPED if at_its_end else EITHER
  kinds["cut_at_0.mp4"] = b"", "unreadable: the file is empty"
  return kinds


def damaged_files() -> Kinds:
  kinds = {}
  for name, data in whole().items():
    third = len(data) // 3
    kinds[f"zeros_amid.{name}"] = data[:third] + bytes(third) + data[2 * third :], EITHER
    kinds[f"zeros_before.{name}"] = bytes(64) + data, EITHER if name == "ts" else UNKNOWN
    kinds[f"more_after.{name}"] = data + np.random.default_rng(0).bytes(999), EITHER if name in ENDLESS else KEPT
    kinds[f"twice.{name}"] = data + data, EITHER
    for seed, most in itertools.product(range(4), (len(data), 700)):
      rng = np.random.default_rng(seed)
      flipped = np.frombuffer(data, np.uint8).copy()
      flipped[rng.integers(16, min(most, len(data)), (1, 3, 10, 30)[seed])] = rng.integers(256)
      kinds[f"flipped_{seed}_{most == 700:d}.{name}"] = flipped.tobytes(), EITHER
  return kinds


def foreign_files(secret: str, address: str) -> Kinds:
  """Text and media of other kinds, named as ours; some ask for another file or an address."""
  texts = {
    "playlist_file.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "playlist_http.mkv": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}/a.ts\n#EXT-X-ENDLIST\n",
    "key_http.mp4": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{address}/key"\n#EXTINF:9,\na.ts\n#EXT-X-ENDLIST\n',
    "ffconcat.mp4": f"ffconcat version 1.0\nfile '{secret}'\n",
    "concat.mov": f"file '{secret}'\n",
    "dash.mp4": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{address}/</BaseURL></MPD>',
    "page.mp4": f'<!DOCTYPE html><html><video src="{address}/a.mp4"></video></html>',
    "drawing.png": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{secret}"/></svg>',
    "vector.png": f'push graphic-context\nimage over 0,0 0,0 "{address}/a.png"\n',
    "postscript.jpg": "%!PS-Adobe-3.0 EPSF-3.0\n",
    "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "windows.mp4": f'<asx version="3.0"><entry><ref href="{address}/a"/></entry></asx>',
    "winamp.mp4": f"[playlist]\nFile1={address}/a\n",
    "smil.mov": f'<smil><body><video src="file://{secret}"/></body></smil>',
    "pointer.mov": f"RTSPtext\r\n{address.replace('http', 'rtsp')}/a\r\n",
    "subtitles.webm": "WEBVTT\n\n00:00.000 --> 00:01.000\nwords\n",
    "large_file_pointer.mp4": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "words.mp4": "not a video " * 999,
    "wide.mp4": "w\0o\0r\0d\0s\0",
  }
  kinds = {name: (text.encode(), UNKNOWN) for name, text in texts.items()}
  heads = [b"RIFF\x24\0\0\0WAVEfmt ", b"ID3\4\0", b"%PDF-1.7", b"PK\3\4", b"MZ"]
  heads += [b"\x7fELF", b"8BPS\0\1", b"\xff\x0a", b"\0\0\0\x18ftypheic", b"\0\0\0\x1cftypavif", b"\x1f\x8b\x08", b"\0"]
  heads += [b"\x47" + bytes(187), b"BM", b"II*\0", b"\x30\x26\xb2\x75"]
  kinds |= {f"head_{k}.mp4": (head + bytes(300), UNKNOWN) for k, head in enumerate(heads)}
  heads = [b"RIFF\x24\0\0\0AVI LIST", b"OggS\0\2", b"FLV\1", b"\0\0\1\xba\x44", b"\0\0\1\xb3", b".RMF\0\0", b"DKIF\0\0"]
  heads += [b"YUV4MPEG2 W9999999 H9999999\n", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", (b"\x47" + bytes(187)) * 9]
  kinds |= {f"head_alone_{k}.mp4": (head + bytes(300), DROPPED) for k, head in enumerate(heads)}
  kinds["pages.mp4"] = image("TIFF", save_all=True, append_images=[Image.fromarray(moving(2)[1])]), UNKNOWN
  kinds["random.mp4"] = np.random.default_rng(0).bytes(50_000), UNKNOWN
  refers = box(b"rdrf", four(0), b"url ", four(len(address) + 7), address.encode() + b"/a.mov\0")
  kinds["refers.mov"] = box(b"moov", box(b"rmra", box(b"rmda", refers))), DROPPED
  alias = bytes(150) + struct.pack(">hh", 2, len(secret)) + secret.encode() + b"\xff\xff\0\0"
  outside = box(b"dref", four(0, 1), box(b"alis", four(0), alias))
  path = [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"]
  kinds["outside_track.mov"] = replaced(whole()["mov"], path, outside), EITHER
  return kinds


def renamed_files() -> Kinds:
  """Sound files under another kind's name: what they hold is what they are."""
  others = {"mp4": "png", "mkv": "jpg", "webm": "gif", "gif": "mp4", "webp": "mov", "png": "mp4", "jpg": "webm"}
  return {f"{kind}_named.{other}": (whole()[kind], KEPT) for kind, other in others.items()}


def lying_images() -> Kinds:
  rows, zeros = bytes((3 * 64 + 1) * 48), zlib.compress(bytes(2**24), 9)
  exif = lambda *entry: image(
    "JPEG", exif=b"Exif\0\0MM\0*" + four(8) + struct.pack(">H", 1) + b"".join(entry) + four(0)
  )
  oriented = {f"turned_{k}.jpg": (exif(struct.pack(">HHIHH", 0x0112, 3, 1, k, 0)), KEPT) for k in (*range(12), 65535)}
  start = whole()["jpg"].index(b"\xff\xc0") + 5
  sized = lambda h, w: whole()["jpg"][:start] + struct.pack(">HH", h, w) + whole()["jpg"][start + 4 :]
  scan = whole()["jpg"][whole()["jpg"].index(b"\xff\xda") : -2]
  moved = image("PNG", save_all=True, append_images=[Image.fromarray(frame) for frame in moving(4)], duration=50)
  alpha = image("PNG", Image.fromarray(moving(1)[0]).quantize(16), transparency=bytes(range(0, 256, 16)))
  return oriented | {
    "bomb.png": (png(100_000, 100_000), "more than 33554432 pixels"),
    "largest.png": (png(2**31 - 1, 2**31 - 1), DROPPED),
    "no_width.png": (png(0, 48), DROPPED),
    "no_height.png": (png(64, 0), DROPPED),
    "few_pixels.png": (png(64, 48, b"\0" * 100), DROPPED),
    "more_pixels.png": (png(64, 48, bytes(2**24)), KEPT),
    "zipped_words.png": (png(64, 48, rows, more=chunk(b"zTXt", b"a\0\0" + zeros)), DROPPED),
    "zipped_colours.png": (png(64, 48, rows, more=chunk(b"iCCP", b"a\0\0" + zeros)), DROPPED),
    "many_words.png": (png(64, 48, rows, more=chunk(b"tEXt", b"a\0b") * 50_000), KEPT),
    "depth_3.png": (png(64, 48, rows, depth=3), DROPPED),
    "colour_9.png": (png(64, 48, rows, colour=9), DROPPED),
    "no_palette.png": (png(64, 48, bytes(65 * 48), colour=3), EITHER),
    "grey_16.png": (png(64, 48, bytes(129 * 48), depth=16, colour=0), KEPT),
    "deep.png": (png(64, 48, bytes(385 * 48), depth=16), KEPT),
    "bad_sum.png": (whole()["png"][:29] + bytes(4) + whole()["png"][33:], DROPPED),
    "endless_chunk.png": (whole()["png"][:33] + b"\xff\xff\xff\xff" + whole()["png"][37:], EITHER),
    "palette_alpha.png": (alpha, KEPT),
    "animated.png": (moved, KEPT),
    "animated_forever.png": (patched(moved, b"acTL", 4, b"\xff\xff\xff\xff"), EITHER),
    "cmyk.jpg": (image("JPEG", Image.fromarray(moving(1)[0]).convert("CMYK")), KEPT),
    "exif_text.jpg": (exif(struct.pack(">HHI4s", 0x0112, 2, 4, b"six\0")), KEPT),
    "exif_loop.jpg": (exif(struct.pack(">HHII", 0x8769, 4, 1, 8)), KEPT),
    "exif_many.jpg": (exif(struct.pack(">HHII", 0x0112, 3, 2**32 - 1, 8)), EITHER),
    "exif_cut.jpg": (image("JPEG", exif=b"Exif\0\0MM\0*\0"), EITHER),
    "colours.jpg": (image("JPEG", icc_profile=np.random.default_rng(0).bytes(70_000)), KEPT),
    "progressive_cut.jpg": (image("JPEG", progressive=True)[:-300], DROPPED),
    "largest.jpg": (sized(65535, 65535), "more than 33554432 pixels"),
    "larger.jpg": (sized(2000, 3000), EITHER),
    "no_height.jpg": (sized(0, 64), DROPPED),
    "many_scans.jpg": (whole()["jpg"][:-2] + scan * 500 + b"\xff\xd9", EITHER),
    "two.jpg": (image("MPO", save_all=True, append_images=[Image.fromarray(moving(1)[0])]), EITHER),
  }


def lying_animations() -> Kinds:
  still = image("WEBP")[12:]
  frame = lambda delay, size=SIZE, left=0: (
    b"ANMF",
    left.to_bytes(3, "little")
    + bytes(3)
    + (size[1] - 1).to_bytes(3, "little")
    + (size[0] - 1).to_bytes(3, "little")
    + delay.to_bytes(3, "little")
    + b"\0"
    + still,
  )
  moves = (b"ANIM", bytes(6))
  return {
    "no_screen.gif": (gif(0, 0, gif_frame()), DROPPED),
    "no_frame.gif": (gif(4, 4), DROPPED),
    "empty_frame.gif": (gif(4, 4, gif_frame(0, 0), gif_frame()), EITHER),
    "empty_frames.gif": (gif(4, 4, *[gif_frame(0, 0)] * 5), EITHER),
    "largest.gif": (gif(65535, 65535, gif_frame()), DROPPED),
    "largest_frame.gif": (gif(4, 4, gif_frame(65535, 65535)), EITHER),
    "outside.gif": (gif(4, 4, *[gif_frame(left=60_000)] * 3), EITHER),
    "long.gif": (gif(2, 2, *[gif_frame()] * 100_000), KEPT),
    "no_delay.gif": (gif(2, 2, *[gif_frame(delay=0)] * 9), KEPT),
    "longest_delay.gif": (gif(2, 2, *[gif_frame(delay=65535)] * 3), KEPT),
    "comments.gif": (gif(2, 2, *[b"!\xfe\x01a\0"] * 50_000, gif_frame()), KEPT),
    "no_end.gif": (gif(2, 2, gif_frame())[:-1], KEPT),
    "animated.webp": (webp(canvas(64, 48), moves, frame(40), frame(40)), KEPT),
    "largest.webp": (webp(canvas(2**24, 2**24), moves, frame(40), frame(40)), DROPPED),
    "no_frames.webp": (webp(canvas(64, 48), moves), EITHER),
    "no_delay.webp": (webp(canvas(64, 48), moves, *[frame(0)] * 5), KEPT),
    "longest_delay.webp": (webp(canvas(64, 48), moves, *[frame(2**24 - 1)] * 3), KEPT),
    "outside.webp": (webp(canvas(64, 48), moves, frame(40, left=1000), frame(40)), EITHER),
    "larger_frame.webp": (webp(canvas(64, 48), moves, frame(40, (1000, 1000)), frame(40)), EITHER),
    "empty_chunks.webp": (webp(canvas(64, 48), *[(b"XXXX", b"")] * 100_000), EITHER),
    "endless.webp": (whole()["webp"][:4] + b"\xff\xff\xff\xff" + whole()["webp"][8:], EITHER),
  }


def lying_mp4() -> Kinds:
  data, parts = whole()["mp4"], whole()["parts.mp4"]
  kinds = {
    "wide_track.mp4": (patched(data, b"tkhd", 80, four(0xFFFF0000, 0xFFFF0000)), KEPT),
    "wide_codec.mp4": (patched(data, b"avc1", 28, b"\xff" * 4), EITHER),
    "huge_duration.mp4": (patched(data, b"mdhd", 20, four(2**32 - 1)), KEPT),
    "no_duration.mp4": (patched(data, b"mdhd", 20, four(0)), KEPT),
    "fast_clock.mp4": (patched(data, b"mdhd", 16, four(2**31 - 1)), "frames a second, more than 1000"),
    "billion_samples.mp4": (patched(data, b"stts", 12, four(10**9)), EITHER),
    "long_last_frame.mp4": (patched(data, b"stts", 16, four(2**31 - 1)), EITHER),
    "no_time.mp4": (patched(data, b"stts", 16, four(0)), EITHER),
    "samples_of_a_gigabyte.mp4": (patched(data, b"stsz", 8, four(10**9)), EITHER),
    "samples_beyond.mp4": (patched(data, b"stco", 12, four(2**31 - 1)), DROPPED),
    "many_in_a_part.mp4": (patched(parts, b"trun", 8, four(2**32 - 1)), EITHER),
    "head_alone.mp4": (box(b"ftyp", b"isom", four(0)), DROPPED),
    "deep.mp4": (b"".join(four(8 * (9999 - depth)) + b"moov" for depth in range(9999)), DROPPED),
    "many_boxes.mp4": (box(b"free") * 100_000 + data, EITHER),
    "zipped_index.mp4": (
      box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", four(2**31 - 16), zlib.compress(bytes(2**24), 9)))),
      DROPPED,
    ),
    "cut_moof.mp4": (parts[: parts.rindex(b"moof") + 20], EITHER),
    "encrypted.mp4": (encoded("a.mp4", "libx264", muxer=CIPHER), "unreadable: the track is encrypted"),
    "encrypted_parts.mp4": (
      encoded("a.mp4", "libx264", muxer=f"{CIPHER} movflags=frag_keyframe+empty_moov"),
      "unreadable: the track is encrypted",
    ),
    "still_too.mp4": (patched(data, b"ftyp", 12, b"avif"), UNKNOWN),  # HEIF: its tiles would pass for a video
    "no_clock.mp4": (patched(data, b"mvhd", 16, four(0)), KEPT),
    "of_another_matrix.mp4": (
      encoded("a.mp4", "libx264", "yuv444p", options="x264-params=colormatrix=YCgCo"),
      "unreadable: pixels of yuv444p with colour matrix 8 can't be made RGB",
    ),
    "no_turn.mov": (patched(whole()["mov"], b"tkhd", 44, bytes(36)), KEPT),
    "half_turn.mov": (patched(whole()["mov"], b"tkhd", 44, four(46341, 46341, 0, 2**32 - 46341, 46341, 0)), KEPT),
  }
  track = data[data.index(b"trak") - 4 :]
  kinds["many_tracks.mp4"] = data[:32] + box(b"moov", track[: int.from_bytes(track[:4])] * 500), EITHER
  for name in (b"stts", b"stsc", b"stco", b"stss", b"ctts", b"elst", b"stsd", b"stsz"):
    offset = 12 if name == b"stsz" else 8
    for count in (0, 2**28, 2**32 - 1):
      kinds[f"{name.decode()}_{count:x}.mp4"] = patched(data, name, offset, four(count)), EITHER
    kinds[f"{name.decode()}_missing.mp4"] = data.replace(name, b"free"), EITHER
  for name, size in itertools.product((b"moov", b"trak", b"stbl", b"mdat"), (0, 1, 7, 2**31 - 1)):
    kinds[f"{name.decode()}_of_{size}.mp4"] = patched(data, name, -4, four(size)), EITHER
  for code in (b"encv", b"M8RG", b"rle ", b"SVQ3", b"m2v1", b"text", b"mp4a", b"hvc1", b"\0\0\0\0"):
    kinds[f"codec_{code.hex()}.mp4"] = data.replace(b"avc1", code), EITHER
  for handler in (b"soun", b"text", b"hint", b"\0\0\0\0"):
    kinds[f"track_of_{handler.hex()}.mp4"] = data.replace(b"vide", handler), EITHER
  return kinds


def lying_matroska() -> Kinds:
  noise = [np.random.default_rng(k).bytes(500) for k in range(12)]
  photos = [image("JPEG", moving(12)[k]) for k in range(12)]
  start = photos[0].index(b"\xff\xc0") + 5
  palettes = [image("PNG", Image.fromarray(pixels).quantize(16)) for pixels in moving(12)]
  kinds = {
    "sizes_change.mkv": ([image("JPEG", moving(1, 48 + 16 * (k % 3), 64)[0]) for k in range(12)], {}, KEPT),
    "grows_huge.mkv": ([*photos[:4], photos[4][:start] + b"\xff" * 4 + photos[4][start + 4 :]], {}, EITHER),
    "huge.mkv": (photos, {"size": (10**6, 10**6)}, EITHER),
    "huge_raw.mkv": ([b"x" * 99] * 3, {"codec": "V_UNCOMPRESSED", "size": (60_000, 60_000)}, DROPPED),
    "huge_vp8.mkv": ([b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(500)] * 3, {"codec": "V_VP8"}, DROPPED),
    "no_size.mkv": (photos, {"size": (0, 0)}, EITHER),
    "no_codec.mkv": (photos, {"codec": ""}, DROPPED),
    "palettes.mkv": (palettes, {"codec": "V_MS/VFW/FOURCC", "private": bitmap_header(b"MPNG")}, KEPT),
    "subtitles_alone.mkv": (photos, {"codec": "S_TEXT/UTF8"}, DROPPED),
    "no_blocks.mkv": ([], {}, DROPPED),
    "empty_blocks.mkv": ([b""] * 12, {}, DROPPED),
    "claims_a_nanosecond.mkv": (photos, {"track": element("23E383", 1)}, KEPT),
    "claims_an_hour.mkv": (photos, {"track": element("23E383", 3600 * 10**9)}, KEPT),
    "voids.mkv": (photos, {"more": element("EC") * 50_000}, KEPT),
    "huge_void.mkv": (photos, {"more": b"\xec\x01\x0f\xff\xff\xff\xff\xff\xff"}, EITHER),
    "loops.mkv": (photos, {"more": element("114D9B74", element("4DBB", element("53AC", 0))) * 99}, EITHER),
    "encrypted.mkv": (photos, {"track": element("6D80", element("6240", element("5035", element("47E1", 5))))}, EITHER),
    "magic_yuv.mkv": (noise, {"codec": "V_MS/VFW/FOURCC", "private": bitmap_header(b"M8RG")}, "codec magicyuv is not"),
  }
  live, unknown = matroska(photos), b"\x01" + b"\xff" * 7
  for identifier in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
    live = patched(live, identifier, 4, unknown)
  zipped = element("6D80", element("6240", element("5034", element("4254", 0))))
  kinds["zipped.mkv"] = [zlib.compress(bytes(2**24), 9)] * 12, {"track": zipped}, EITHER
  for codec in ("V_MPEG4/ISO/AVC", "V_MPEGH/ISO/HEVC", "V_MPEG4/ISO/ASP", "V_VP9", "V_AV1", "V_FFV1", "V_PRORES"):
    kinds[f"noise_{codec[2:].replace('/', '_')}.mkv"] = noise, {"codec": codec, "private": noise[0][:40]}, EITHER
  made = {name: (matroska(packets, **options), expected) for name, (packets, options, expected) in kinds.items()}
  clusters = {"late.mkv": 2**40, "latest.mkv": 2**63 - 1000, "before_zero.mkv": 2**64 - 400}
  made |= {name: (patched(live, b"\xe7\x01", 9, time.to_bytes(8)), KEPT) for name, time in clusters.items()}
  return made | {"live.mkv": (live, KEPT)}
