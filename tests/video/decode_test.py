"""What is opened and what is refused; sizes, rates and pixels of real, odd and broken files."""

import fractions
import json
import os
import pathlib
import struct
import subprocess
import sys
import time
import zlib

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from sora_jax.video import decode, timestamps, tonemap
from sora_jax.video import io as video_io
from sora_jax.video.decode import Probe, UnreadableFile


def listed(path: pathlib.Path) -> list[dict]:
  """Lines of a list of real files."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows, f"{path} lists no file"
  return rows


def picture(height: int = 48, width: int = 64) -> np.ndarray:
  """uint8 (H, W, 3): red grows to the right, green downwards; the top left corner is blue."""
  y, x = np.mgrid[:height, :width]
  pixels = np.stack([x * 255 // width, y * 255 // height, np.zeros_like(x)], -1).astype(np.uint8)
  pixels[: height // 4, : width // 4] = [0, 0, 255]
  return pixels


def write_video(path: pathlib.Path, pixels: np.ndarray, codec="ffv1", pix_fmt="bgr0", rotation=None) -> None:
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=fractions.Fraction(10))
    stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], pix_fmt
    if rotation is not None:
      stream.set_display_rotation(rotation)
    kind = "rgba" if pixels.shape[-1] == 4 else "rgb24"
    for frame in pixels:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=kind)))
    container.mux(stream.encode(None))


def still(path: pathlib.Path) -> np.ndarray:
  (frame,) = video_io.read(path, fps=24, max_frames=9)
  return frame


def first_frame(path: pathlib.Path) -> np.ndarray:
  return video_io.read(path, fps=1, max_frames=1)[0]


def close(a: np.ndarray, b: np.ndarray) -> float:
  """Mean absolute difference."""
  return float(np.abs(a.astype(np.float32) - b).mean())


class TestRefused:
  @pytest.mark.parametrize(
    "content",
    [
      b"",
      b"\0",
      b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n",
      b"ffconcat version 1.0\nfile '/etc/hostname'\n",
      b"<svg xmlns='http://www.w3.org/2000/svg'/>",
      b"%!PS-Adobe-3.0 EPSF-3.0\n",
      b"RIFF\x10\0\0\0AVI LIST",
      b"\0\0\0\x1cftypavif\0\0\0\0avif",
      b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
      b"\x1aE\xdf\xa3" + bytes(64),
      b"GIF89a",
      b"\x89PNG\r\n\x1a\n" + bytes(40),
      b"\xff\xd8\xff\xe0" + bytes(40),
      b"RIFF\x10\0\0\0WEBPVP8 ",
    ],
  )
  def test_not_media(self, tmp_path: pathlib.Path, content: bytes):
    """Playlists, scripts and damaged heads, under a name that promises a video."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for use in (decode.probe, still):
      with pytest.raises(UnreadableFile) as caught:
        use(path)
      assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)

  def test_not_files(self, tmp_path: pathlib.Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4", tmp_path / "missing.mp4"):
      with pytest.raises(UnreadableFile):
        decode.probe(path)
    with pytest.raises(UnreadableFile):
      decode.probe("http://127.0.0.1:9/clip.mp4")

  def test_a_declared_bomb(self, tmp_path: pathlib.Path):
    """A PNG head of 100000 x 100000, and one just above our own limit: refused before any pixel."""
    for side in (100_000, 5_900):
      head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
      data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
      path = tmp_path / "bomb.png"
      path.write_bytes(data + b"\0\0\0\0IDAT\x35\xaf\x06\x1e")
      begun = time.monotonic()
      for use in (decode.probe, still):
        with pytest.raises(UnreadableFile, match="pixels"):
          use(path)
      assert time.monotonic() - begun < 1

  def test_limits(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "clip.mkv"
    write_video(path, np.stack([picture()] * 12))
    monkeypatch.setattr(decode, "MAX_FRAMES", 5)
    assert len(video_io.read(path, fps=10, max_frames=3)) == 3
    with pytest.raises(UnreadableFile, match="more than 5 frames"):
      video_io.read(path, fps=10, max_frames=12)
    video_io.write(tmp_path / "clip.webp", np.stack([picture(), picture()[::-1]] * 6), 10)
    assert len(video_io.read(tmp_path / "clip.webp", fps=10, max_frames=3)) == 3
    with pytest.raises(UnreadableFile, match="more than 5 frames"):
      video_io.read(tmp_path / "clip.webp", fps=10, max_frames=12)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadableFile, match="64x48"):
      decode.probe(path)

  def test_codecs_outside_the_list(self, tmp_path: pathlib.Path):
    path = tmp_path / "clip.mov"
    write_video(path, np.stack([picture()] * 2), codec="qtrle", pix_fmt="rgb24")
    for use in (decode.probe, still):
      with pytest.raises(UnreadableFile, match="codec qtrle"):
        use(path)


class TestStills:
  def test_modes(self, tmp_path: pathlib.Path):
    """Every mode becomes three channels with the colours it shows."""
    pixels = picture()
    image, grey = Image.fromarray(pixels), np.asarray(Image.fromarray(pixels).convert("L"))
    image.save(tmp_path / "rgb.png")
    assert (still(tmp_path / "rgb.png") == pixels).all()
    image.convert("L").save(tmp_path / "grey.png")
    assert (still(tmp_path / "grey.png") == grey[..., None]).all()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    assert (still(tmp_path / "grey16.png") == grey[..., None]).all()
    image.quantize(64).save(tmp_path / "palette.png")
    assert close(still(tmp_path / "palette.png"), pixels) < 12
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert close(still(tmp_path / "cmyk.jpg"), pixels) < 6
    image.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(still(tmp_path / "bits.png"))) == {0, 255}
    image.save(tmp_path / "one.gif")
    assert decode.probe(tmp_path / "one.gif") == Probe(48, 64, 0.0, 0.0, 1)
    assert close(still(tmp_path / "one.gif"), pixels) < 12

  @pytest.mark.parametrize("name", ["soft.png", "soft.webp"])
  def test_alpha_lies_on_black(self, tmp_path: pathlib.Path, name: str):
    rgba = np.full((8, 8, 4), 200, np.uint8)
    rgba[:, :4, 3], rgba[:, 4:, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / name, lossless=True)
    assert (still(tmp_path / name)[:, :4] == 0).all()
    assert (still(tmp_path / name)[:, 4:] == 100).all()

  @pytest.mark.parametrize("orientation", range(1, 9))
  def test_exif_orientation(self, tmp_path: pathlib.Path, orientation: int):
    upright = picture()
    turned = {
      1: upright,
      2: upright[:, ::-1],
      3: upright[::-1, ::-1],
      4: upright[::-1],
      5: upright.swapaxes(0, 1),
      6: np.rot90(upright),
      7: np.rot90(upright, 2).swapaxes(0, 1),
      8: np.rot90(upright, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.ascontiguousarray(turned)).save(path, exif=exif, quality=95)
    assert decode.probe(path) == Probe(48, 64, 0.0, 0.0, 1)
    assert still(path).shape == upright.shape and close(still(path), upright) < 6

  def test_a_file_larger_than_any_picture_is_refused(self, tmp_path: pathlib.Path):
    """Zeros after a picture, which take no room on the disk and minutes to look through."""
    for kind in ("PNG", "JPEG", "WEBP"):
      path = tmp_path / kind
      Image.fromarray(picture()).save(path, kind)
      os.truncate(path, 2**40)
      for refused in (decode.probe, first_frame):
        with pytest.raises(UnreadableFile, match="an image of more than 268435456 bytes"):
          refused(path)

  def test_a_cut_image_is_refused(self, tmp_path: pathlib.Path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(picture(480, 640)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UnreadableFile):
      still(path)

  def test_an_animation_that_was_cut_gives_what_is_whole(self, tmp_path: pathlib.Path):
    path = tmp_path / "clip.webp"
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3)).astype(np.uint8)
    first, *rest = map(Image.fromarray, noise)
    first.save(path, save_all=True, append_images=rest, duration=100, lossless=True)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"VP8L"]
    data[starts[6] + 20 : starts[6] + 60] = b"\xff" * 40
    path.write_bytes(data)
    assert decode.probe(path).frames == 10
    assert len(video_io.read(path, fps=10, max_frames=99)) == 6

  def test_content_and_not_the_name_decides(self, tmp_path: pathlib.Path):
    Image.fromarray(picture()).save(tmp_path / "photo.mp4", "PNG")
    assert (still(tmp_path / "photo.mp4") == picture()).all()
    video_io.write(tmp_path / "clip.mp4", np.stack([picture()] * 5), 5)
    os.rename(tmp_path / "clip.mp4", tmp_path / "clip.png")
    assert decode.probe(tmp_path / "clip.png").frames == 5


class TestVideos:
  @pytest.mark.parametrize("rotation", [0, 90, 180, -90])
  def test_rotation(self, tmp_path: pathlib.Path, rotation: int):
    """The angle is counter-clockwise, as in the container's own words."""
    stored = picture()
    write_video(tmp_path / "turned.mov", stored[None], "png", "rgb24", rotation)
    shown = np.rot90(stored, rotation // 90)
    probe = decode.probe(tmp_path / "turned.mov")
    assert (probe.height, probe.width) == shown.shape[:2]
    assert (first_frame(tmp_path / "turned.mov") == shown).all()

  @pytest.mark.parametrize(
    ("matrix", "show"),
    [
      ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
      ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
      ((0, 1, 1, 0), lambda pixels: pixels.swapaxes(0, 1)),
      ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1)),
    ],
    ids=["across", "down", "one corner", "the other"],
  )
  def test_mirrors(self, tmp_path: pathlib.Path, matrix, show):
    path = tmp_path / "mirrored.mov"
    write_video(path, picture()[None], "png", "rgb24", 90)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * each for each in matrix)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30) + data[at + 36 :])
    assert (first_frame(path) == show(picture())).all()

  def test_frames_are_freed(self, tmp_path: pathlib.Path):
    """Hundreds of megabytes of frames pass through a few."""
    path = tmp_path / "clip.mkv"
    write_video(path, np.broadcast_to(picture(960, 1280), (40, 960, 1280, 3)), "mjpeg", "yuvj444p")
    code = (
      "import sys, resource; from sora_jax.video import io as video_io; "
      "peak = lambda: resource.getrusage(0).ru_maxrss; "
      "read = lambda n: video_io.read(sys.argv[1], fps=10, max_frames=n, size=(6, 8)); read(8); before = peak(); "
      "[read(40) for _ in range(2)]; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # KiB; the frames are 4 MB each

  def test_a_rate_that_no_clip_has_is_refused(self, tmp_path: pathlib.Path):
    path = tmp_path / "clip.mov"
    write_video(path, np.stack([picture()] * 5), "mjpeg", "yuvj420p")
    data = path.read_bytes()
    at = data.index(b"mdhd") + 16
    path.write_bytes(data[:at] + struct.pack(">I", 10**9) + data[at + 4 :])
    with pytest.raises(UnreadableFile, match="frames a second, more than 1000: its timestamps are damaged"):
      decode.probe(path)

  def test_alpha_lies_on_black(self, tmp_path: pathlib.Path):
    rgba = np.full((1, 16, 16, 4), 200, np.uint8)
    rgba[:, :, :8, 3], rgba[:, :, 8:, 3] = 0, 128
    write_video(tmp_path / "soft.mkv", rgba, "ffv1", "bgra")
    assert (first_frame(tmp_path / "soft.mkv")[:, :8] == 0).all()
    assert (first_frame(tmp_path / "soft.mkv")[:, 8:] == 100).all()

  @pytest.mark.parametrize(("codec", "kind"), [("libvpx", "webm"), ("libvpx-vp9", "webm"), ("libvpx-vp9", "mkv")])
  def test_a_second_layer_of_alpha_is_seen_after_any_seek(self, tmp_path: pathlib.Path, codec: str, kind: str):
    """FFmpeg's own decoders of these show what lies beneath what is transparent."""
    path, rgba = tmp_path / f"soft.{kind}", np.full((48, 16, 16, 4), 200, np.uint8)
    rgba[:24, :, 8:, 3], rgba[24:, :, 8:, 3], rgba[:, :, :8, 3] = 255, 100, 0
    with av.open(str(path), "w") as container:
      stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0", "g": "8", "crf": "4"})
      stream.height, stream.width, stream.pix_fmt = 16, 16, "yuva420p"
      for pixels in rgba:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
      container.mux(stream.encode(None))
    for start, wanted in ((0, 200), (2.3, 200), (2.4, 200 * 100 / 255), (4.2, 200 * 100 / 255)):
      (frame,) = video_io.read(path, fps=10, max_frames=1, start=start)
      assert np.abs(frame[:, :6].astype(int)).max() <= 3, start
      assert np.abs(frame[:, 10:].astype(int) - wanted).max() <= 4, start

  @pytest.mark.parametrize("kind", ["thumbnail", "empty", "cover"])
  def test_the_clip_is_found_behind_another_picture_track(self, tmp_path: pathlib.Path, kind: str):
    path = tmp_path / ("clip.mp4" if kind == "cover" else "clip.mkv")
    with av.open(str(path), "w") as container:
      first, clip = container.add_stream("mjpeg", rate=10), container.add_stream("libx264", rate=10)
      first.height, first.width, first.pix_fmt = 24, 32, "yuvj420p"
      clip.height, clip.width, clip.pix_fmt = 48, 64, "yuv420p"
      if kind == "cover":
        first.disposition = Disposition.attached_pic
      for stream, count in ((first, 0 if kind == "empty" else 1), (clip, 12)):
        for _ in range(count):
          pixels = np.ascontiguousarray(picture(stream.height, stream.width))
          container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert (decode.probe(path).height, decode.probe(path).frames) == (48, 12)
    assert video_io.read(path, fps=10, max_frames=99).shape == (12, 48, 64, 3)

  @pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p10le", "yuv444p16le", "gray", "bgr0"])
  @pytest.mark.parametrize("size", [(48, 64), (47, 61)])
  def test_pixel_formats_and_odd_sizes(self, tmp_path: pathlib.Path, pix_fmt: str, size: tuple[int, int]):
    pixels = picture(*size)
    if pix_fmt == "gray":
      pixels = np.repeat(pixels[..., :1], 3, -1)
    write_video(tmp_path / "clip.mkv", pixels[None], "ffv1", pix_fmt)
    assert first_frame(tmp_path / "clip.mkv").shape == pixels.shape
    assert close(first_frame(tmp_path / "clip.mkv"), pixels) < 4

  def test_damage_midway_keeps_both_ends(self, tmp_path: pathlib.Path):
    """Each frame is a flat grey of its own; the timestamps of the damaged ones stay with the one before."""
    path = tmp_path / "clip.mkv"
    shades = np.arange(30, dtype=np.uint8) * 8
    write_video(path, np.broadcast_to(shades[:, None, None, None], (30, 48, 64, 3)), "mjpeg", "yuvj420p")
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    for begin, end in zip(starts[12:15], starts[13:16], strict=True):  # an encoder with one thread writes small frames
      middle = (begin + end) // 2
      data[begin:middle] = bytes(middle - begin)
    path.write_bytes(data)
    got = video_io.read(path, fps=10, max_frames=99)[:, 24, 32, 0].astype(int)
    wanted = shades.astype(int)
    assert len(got) == 30
    assert np.abs(got[:12] - wanted[:12]).max() < 4 and np.abs(got[15:] - wanted[15:]).max() < 4

  def test_a_cut_file_counts_what_decodes(self, tmp_path: pathlib.Path):
    path = tmp_path / "clip.mkv"
    write_video(path, np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = decode.probe(path).frames
    assert 5 < frames < 15
    assert abs(len(video_io.read(path, fps=10, max_frames=99)) - frames) <= 1

  def test_tags_that_are_not_utf8(self, tmp_path: pathlib.Path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
      container.metadata["title"] = "caf\u00e9"
      stream = container.add_stream("ffv1", rate=10)
      stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")))
      container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.count("caf\u00e9".encode()) == 1
    path.write_bytes(data.replace("caf\u00e9".encode(), b"caf\xe9 "))
    assert (first_frame(path) == picture()).all()

  def test_a_long_file_is_taken_at_its_word(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("clip.mp4", "clip.mkv"):
      write_video(tmp_path / name, np.stack([picture()] * 20), "libx264", "yuv420p")
      walked = decode.probe(tmp_path / name)
      for module, limit in ((decode, "MAX_WALK_BYTES"), (timestamps, "MAX_WALK_PACKETS")):
        with monkeypatch.context() as patch:
          patch.setattr(module, limit, 10)
          told = decode.probe(tmp_path / name)
        assert told.frames == walked.frames == 20
        assert told.seconds == pytest.approx(walked.seconds, abs=0.02) == pytest.approx(2, abs=0.02)


class TestHighDynamicRange:
  @pytest.mark.parametrize("transfer", [tonemap.PQ, tonemap.HLG])
  def test_a_grey_of_50_candelas_is_shown_as_one_of_sdr(self, tmp_path: pathlib.Path, transfer: int):
    """203 cd/m2 is SDR white, so 50 is (50 / 203)^(1 / 2.4) of the signal; HLG for a screen of 1,000 cd/m2."""
    scene = (50 / 1000) ** (1 / 1.2)
    signal = float(tonemap.light_to_pq(50.0)) if transfer == tonemap.PQ else (3 * scene) ** 0.5
    grey = np.full((32, 32, 3), round(signal * 65535), np.uint16)
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
      stream = container.add_stream("ffv1", rate=fractions.Fraction(10))
      stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p10le"
      codec = stream.codec_context
      codec.color_trc, codec.color_primaries, codec.colorspace, codec.color_range = transfer, 9, 9, 1
      frame = av.VideoFrame.from_ndarray(grey, format="rgb48le")
      container.mux(stream.encode(frame.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range=1)))
      container.mux(stream.encode(None))
    wanted = 255 * (50 / 203) ** (1 / 2.4)
    np.testing.assert_allclose(first_frame(path).reshape(-1, 3).mean(0), wanted, atol=2.0)

  def test_real_hdr_loses_its_grey_veil(self, corpus: pathlib.Path):
    """Untreated, a PQ or HLG frame uses the middle of the range alone."""
    for file in ("rooftop_portrait_hdr10.mp4", "rooftop_portrait_rot90_10bit.mp4"):
      with av.open(str(corpus / file)) as container:
        flat = next(container.decode(video=0)).to_ndarray(format="rgb24")
      shown = first_frame(corpus / file)
      assert shown.std() > 1.1 * flat.std()
      assert (shown > 252).mean() < 0.05  # bright parts roll off, they don't clip


class TestRealFiles:
  def test_sizes_rates_and_first_frames(self, corpus):
    wrong = []
    for row in listed(corpus / "captions.jsonl"):
      path = corpus / row["file"]
      probe = decode.probe(path)
      frames = video_io.read(path, fps=8, max_frames=2)
      size = row["height"], row["width"]
      if (probe.height, probe.width) != size or frames.shape[1:3] != size:
        wrong.append((row["file"], probe, frames.shape))
      if probe.frames != row["frames"] or abs(probe.fps - row["fps"]) > 1e-3 * row["fps"]:
        wrong.append((row["file"], probe, row["frames"], row["fps"]))
    assert not wrong

  def test_broken_files_read_or_are_refused_in_time(self, corpus):
    refused = {"truncated_moov_missing.mp4", "zero_byte.mp4", "audio_only.mp4"}
    refused.add("bomb_declared_100000x100000.png")
    for row in listed(corpus / "broken" / "expected.jsonl"):
      path, begun = corpus / "broken" / row["file"], time.monotonic()
      try:
        probe = decode.probe(path)
        frames = video_io.read(path, fps=10, max_frames=8)
      except UnreadableFile as error:
        assert row["file"] in refused, (row["file"], str(error))
      else:
        assert row["file"] not in refused
        assert frames.shape[1:3] == (probe.height, probe.width), row["file"]
        assert len(frames) == (video_io.frame_count(probe.seconds, 10, 8) if probe.fps else 1), row["file"]
      assert time.monotonic() - begun < 20, row["file"]

  def test_an_sdr_picture_tagged_as_hdr_keeps_its_light_and_shade(self, corpus):
    """Its tags ask for far too much light and colour, and get it; nothing wraps around."""
    shown = first_frame(corpus / "broken" / "hdr10_pq_10bit.mp4")
    source = video_io.resize(first_frame(corpus / "flower_bloom.mp4"), shown.shape[:2])
    ranks = [np.argsort(np.argsort((each @ [0.21, 0.72, 0.07]).ravel())) for each in (shown, source)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9

  def test_what_the_makers_say(self, corpus):
    """Upright where a display matrix turns; half of the promised frames in a cut file; damage skipped."""
    folder = corpus / "broken"
    turned = first_frame(folder / "rotated_90_display_matrix.mp4")
    source = video_io.resize(first_frame(corpus / "flower_bloom.mp4"), turned.shape[:2])
    assert close(turned, source) < 5 < 20 < close(turned[::-1, ::-1], source)
    cut = decode.probe(folder / "truncated_faststart.mp4")
    left = video_io.read(folder / "truncated_faststart.mp4", fps=cut.fps, max_frames=99)
    assert 30 < cut.frames == len(left) < 45
    damaged = video_io.read(folder / "corrupt_middle.mp4", fps=30, max_frames=99)
    assert len(damaged) == 72
    sound = video_io.read(corpus / "bee_thistle.mp4", fps=30, max_frames=72, size=damaged.shape[1:3])
    assert close(damaged[5], sound[5]) < 8
    upright = decode.probe(folder / "uhd_portrait_60fps.mp4")
    assert (upright.height, upright.width) == (3840, 2160)
