"""What is known of a clip in a file without decoding it, and that the clip then keeps to it."""

import contextlib
import dataclasses
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax import clips
from sora_jax.data import files
from sora_jax.data.files import Dropped, Entry, FileSource, View, printable
from sora_jax.video import io as video_io
from sora_jax.video.io import Probe, UnreadableFile


def half(frames: int, height: int, width: int) -> tuple[int, int]:
  return max(height // 2, 1), max(width // 2, 1)


def pixels(count: int, height: int = 8, width: int = 12) -> np.ndarray:
  return np.random.default_rng(count).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


class Files(FileSource):
  """The files of a folder, by name."""

  def __init__(self, root: pathlib.Path, view: View):
    self.paths = sorted(root.iterdir())
    probes = [video_io.probe(path) for path in self.paths]
    texts = [{"short": path.stem, "long": f"{path.stem}!"} for path in self.paths]
    named = enumerate(zip(self.paths, texts, probes, strict=True), 5)
    super().__init__([Entry(path.name, line, text, probe) for line, (path, text, probe) in named], (), "print", view)
    self.opened = 0

  @contextlib.contextmanager
  def open_file(self, index: int):
    self.opened += 1
    yield self.paths[index]
    self.opened -= 1


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
  """A video, an image and an animation."""
  (tmp_path / "files").mkdir()
  (tmp_path / "files" / "a.mp4").write_bytes(video_io.encode(pixels(9), 12, "mp4", lossless=True))
  (tmp_path / "files" / "b.png").write_bytes(video_io.encode(pixels(1), 1, "png"))
  (tmp_path / "files" / "c.gif").write_bytes(video_io.encode(pixels(4), 10, "gif"))
  return tmp_path / "files"


class TestDescribeDropped:
  def test_reasons_are_counted_by_kind_most_first_then_by_name(self):
    reasons = ["bad JSON: x", "file missing", "unreadable: a: b", "bad JSON: y", "unreadable: c", "caption empty"]
    text = "6 dropped (2 bad JSON, 2 unreadable, 1 caption empty, 1 file missing)"
    assert files.describe_dropped([Dropped("", k, reason) for k, reason in enumerate(reasons)]) == text
    assert files.describe_dropped([]) == "none dropped"


class TestIsClean:
  @given(st.text())
  def test_a_text_is_clean_when_it_has_no_nul_and_can_be_written(self, text: str):
    assert files.is_clean(text) == ("\0" not in text and _encodes(text))

  @pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\udfff", "\ud800", "\0"])
  def test_halves_of_pairs_and_nul_are_not(self, text: str):
    assert not files.is_clean(text)

  @pytest.mark.parametrize("text", ["", "\ud7ff\ue000", "\U0010ffff", "\N{FOX FACE}", "\n\t"])
  def test_their_neighbours_are(self, text: str):
    assert files.is_clean(text)


def _encodes(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


class TestView:
  @pytest.mark.parametrize("bad", [{"fps": -1.0}, {"fps": math.nan}, {"fps": math.inf}, {"max_frames": 0}], ids=str)
  def test_values_out_of_range_are_told(self, bad: dict):
    View().check()
    with pytest.raises(ValueError, match=r"fps >= 0 and max_frames >= 1 are needed: got"):
      View(**bad).check()

  def test_the_rate_is_the_wanted_one_or_the_files_own_or_that_of_images(self):
    assert [View(6.0).rate(native) for native in (30.0, 0.0)] == [6.0, 6.0]
    assert [View().rate(native) for native in (30.0, 0.0)] == [30.0, files.IMAGE_FPS]

  @given(
    st.integers(1, 500), st.floats(0.5, 240.0), st.floats(0.5, 240.0) | st.just(0.0), st.integers(1, 300), st.booleans()
  )
  def test_a_shape_has_a_frame_for_each_tick_that_the_clip_lasts(self, frames, native, fps, most, fitted):
    view = View(fps, most, half if fitted else None)
    count, height, width = view.shape(Probe(21, 30, frames / native, native, frames))
    assert (height, width) == ((10, 15) if fitted else (21, 30))
    assert 1 <= count <= most
    if not fps:
      assert count == min(frames, most)
    elif count < most:  # the last frame begins before the end of the clip, and one more would not
      assert count == 1 or (count - 1) / fps < frames / native
      assert count / fps >= frames / native - 0.0051

  def test_an_image_has_one_frame_at_any_rate(self):
    assert [View(fps, 9).shape(Probe(5, 7, 0.0, 0.0, 1)) for fps in (0.0, 0.1, 500.0)] == [(1, 5, 7)] * 3


class TestFileSource:
  def test_clips_are_what_their_entries_promise(self, root):
    for view in (View(), View(5.0, 3, half), View(60.0, 30)):
      source = Files(root, view)
      assert len(source) == 3
      for index in range(3):
        clip = source[index]
        assert clip.frames_THWC.shape == (*source.shape(index), 3) and clip.frames_THWC.dtype == np.float32
        assert clip.fps == source.fps(index) == view.rate(source.entries[index].probe.fps)
        assert (clip.id, clip.caption) == (source.where(index)[0], source.captions(index)["long"])
        assert source.where(index) == (source.paths[index].name, 5 + index)
      assert source.opened == 0

  def test_pixels_are_those_of_the_file(self, root):
    source = Files(root, View())
    np.testing.assert_array_equal(source[0].frames_THWC, clips.from_uint8(pixels(9)))
    np.testing.assert_array_equal(source[1].frames_THWC, clips.from_uint8(pixels(1)))
    assert [source.fps(index) for index in range(3)] == pytest.approx([12.0, files.IMAGE_FPS, 10.0])

  def test_captions_that_are_changed_stay_those_of_the_source(self, root):
    source = Files(root, View())
    source.captions(0)["long"] = "other"
    assert source.captions(0) == {"short": "a", "long": "a!"}

  @pytest.mark.parametrize(
    ("missing", "told"), [(0, False), (1, False), (2, False), (3, True), (-2, False), (-3, True)]
  )
  def test_a_frame_or_two_that_is_missing_is_held_and_more_are_told(self, root, missing: int, told: bool):
    source = Files(root, View())
    probe = source.entries[0].probe
    promised = dataclasses.replace(probe, frames=9 + missing, seconds=(9 + missing) / 12)
    source.entries = [dataclasses.replace(source.entries[0], probe=promised)]
    if told:
      with pytest.raises(UnreadableFile, match=rf"^a.mp4: gives 9 frames where {9 + missing} were promised$"):
        source[0]
      return
    shown = source[0].frames_THWC
    held = np.minimum(np.arange(9 + missing), 8)
    np.testing.assert_array_equal(shown, clips.from_uint8(pixels(9)[held]))

  def test_a_file_that_does_not_decode_or_open_is_named(self, root):
    source = Files(root, View())
    (root / "a.mp4").write_bytes(b"torn")
    (root / "b.png").unlink()
    with pytest.raises(UnreadableFile, match=r"^a.mp4: not one of mp4"):
      source[0]
    with pytest.raises(UnreadableFile, match=r"^b.png: .*No such file"):
      source[1]
    assert source[2].frames_THWC.shape[0] == 4
    with pytest.raises(IndexError):
      source[3]

  def test_a_source_says_where_its_files_are(self):
    with pytest.raises(TypeError, match="open_file"):
      FileSource([], (), "", View())


class TestReopened:
  def test_a_source_is_opened_with_the_same_arguments(self, root):
    fingerprint = Files(root, View()).fingerprint
    source = files.reopened(Files, {"root": root, "view": View(5.0)}, fingerprint)
    assert type(source) is Files and source.view == View(5.0)

  def test_one_that_changed_is_not_given_out(self, root):
    with pytest.raises(ValueError, match=rf"^{root}: changed since it was opened: start again$"):
      files.reopened(Files, {"root": root, "view": View()}, "another")


def test_names_are_printed_on_one_line_and_otherwise_as_they_are():
  assert printable("a\nb\x1b[31m.mp4") == "a\\nb\\x1b[31m.mp4"
  assert printable("شخص 🐈.mp4") == "شخص 🐈.mp4"
