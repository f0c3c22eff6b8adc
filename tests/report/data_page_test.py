"""The page of a source: clips with captions, sizes and tokens, what is left out and why, and nothing to load."""

import base64
import html.parser
import io
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from sora_jax.data.files import Dropped
from sora_jax.data.folder import FolderSource
from sora_jax.data.sources import Mixture, open_native
from sora_jax.data.world_source import WorldSource
from sora_jax.report import data_page
from sora_jax.video import io as video_io

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(1)> & "quotes" \''


class Reader(html.parser.HTMLParser):
  """Every tag with its attributes, and the text without the style."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.text, self.style = "", False
    self.feed(text)
    self.close()
    self.text = re.sub(r"\s+", " ", self.text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self.style = tag == "style"

  def handle_endtag(self, tag):
    self.style = self.style and tag != "style"

  def handle_data(self, data):
    if not self.style:
      self.text += data

  def all(self, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path: pathlib.Path, source, name: str = "own", tokens=None) -> tuple[dict, Reader]:
  path = tmp_path / "pages" / "data.html"
  said = data_page.show(source, name, path, tokens)
  assert [each.name for each in path.parent.iterdir()] == ["data.html"] and said["page"] == str(path)
  return said, Reader(path.read_text(encoding="utf-8"))


def tokens_of(frames: int, height: int, width: int) -> int:
  return frames * height * width // 64


def moving(frames: int, height: int, width: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("own")
  video_io.write(root / "fade.mp4", moving(12, 48, 64), 12)
  video_io.write(root / "wide.mp4", moving(20, 45, 320), 10)
  video_io.write(root / "still.png", moving(1, 33, 47), 1)
  (root / "text.mp4").write_text("not a video")
  lines = [
    {"file": "still.png", "caption": "A grey wall."},
    {"file": "fade.mp4", "short": "Fade.", "long": f"Light {HOSTILE} comes on."},
    {"file": "text.mp4", "caption": "Words."},
    {"file": "gone<b>.mp4", "caption": "Nothing."},
    {"file": "wide.mp4", "caption": "A strip."},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (root / "captions.jsonl").write_text(text + "{\n", encoding="utf-8")
  return root


@pytest.fixture
def own(tmp_path: pathlib.Path, whole: pathlib.Path) -> pathlib.Path:
  """A folder of two videos and an image that can be used, and lines that can't: the test's own."""
  return pathlib.Path(shutil.copytree(whole, tmp_path / "own"))


class TestFolder:
  def test_clips_have_captions_sizes_frames_and_tokens(self, tmp_path, own):
    said, page = page_of(tmp_path, FolderSource(own, max_frames=100), tokens=tokens_of)
    assert said == {"clips": 3, "shown": 3, "dropped": 3, "page": said["page"]}
    for words in (
      "Clips of own",
      "3 of 3 clips",
      "Videos2",
      "Images1",
      "47 × 33 (1), 64 × 48 (1), 320 × 45 (1)",
      "still.png: 47 × 33, 24 tokens",
      "fade.mp4: 64 × 48, 12 frames at 12 a second, 576 tokens",
      "wide.mp4: 320 × 45, 20 frames at 10 a second, 4,500 tokens",
      "24 to 4,500, 1,700 in the mean",
    ):
      assert words in page.text
    assert page.text.count("A grey wall.") == 1  # one caption fills both styles
    assert f"Fade. — Light {HOSTILE} comes on." in page.text

  def test_without_a_model_no_tokens_are_told(self, tmp_path, own):
    assert "tokens" not in page_of(tmp_path, FolderSource(own, max_frames=100))[1].text.lower()

  def test_what_is_left_out_has_its_line_and_reason(self, tmp_path, own):
    page = page_of(tmp_path, FolderSource(own, max_frames=100))[1]
    assert "3 dropped (1 bad JSON, 1 file missing, 1 unreadable)" in page.text
    assert "Line 3text.mp4: unreadable: " in page.text
    assert "Line 4gone<b>.mp4: file missing" in page.text and not page.all("b")
    assert "Line 6bad JSON: " in page.text

  def test_a_file_that_no_line_names_is_left_out_without_a_line(self, tmp_path, own):
    video_io.write(own / "more.png", moving(1, 8, 8), 1)
    page = page_of(tmp_path, FolderSource(own, max_frames=100))[1]
    assert "No linemore.png: no caption" in page.text and "Line 0" not in page.text

  def test_a_file_that_breaks_later_is_left_out_and_the_others_shown(self, tmp_path, own):
    source = FolderSource(own, max_frames=100)
    (own / "fade.mp4").write_bytes(b"\0" * 100)
    (own / "still.png").unlink()
    said, page = page_of(tmp_path, source)
    assert (said["shown"], said["dropped"]) == (1, 5) and "1 of 3 clips" in page.text
    assert re.search(r"Line 1still\.png: unreadable: (?!still\.png)\w", page.text)
    assert re.search(r"Line 2fade\.mp4: unreadable: (?!fade\.mp4)\w", page.text)
    assert [image["alt"] for image in page.all("img")] == ["Video: A strip."]

  def test_captions_do_nothing_and_the_page_loads_nothing(self, tmp_path, own):
    page = page_of(tmp_path, FolderSource(own, max_frames=100), name=HOSTILE)[1]
    assert not page.all("script") and len(page.all("img")) == 3
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    addresses = [v for _, a in page.tags for k, v in a.items() if k in ("src", "srcset", "href", "data", "action")]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert page.text.count(HOSTILE) == 3  # title, heading and caption

  def test_large_clips_are_shown_small_and_small_ones_by_whole_pixels(self, tmp_path, own):
    page = page_of(tmp_path, FolderSource(own, max_frames=100))[1]
    sizes = {image["alt"].split(": ")[1][:6]: (image["width"], image["height"]) for image in page.all("img")}
    assert sizes == {"A grey": ("141", "99"), "Fade. ": ("128", "96"), "A stri": ("160", "22")}

  def test_a_long_clip_is_shown_in_part_and_said_to_be_long(self, tmp_path, own, monkeypatch):
    monkeypatch.setattr(data_page, "FRAMES", 7)
    page = page_of(tmp_path, FolderSource(own, max_frames=100))[1]
    (image,) = (image for image in page.all("img") if image["alt"] == "Video: A strip.")
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
      assert picture.n_frames == 7
    assert "20 frames at 10 a second" in page.text and "at most 160 pixels a side and 7 frames" in page.text

  def test_a_clip_is_shown_as_it_is_fitted_and_cut(self, tmp_path, own):
    source = FolderSource(own, fps=6.0, max_frames=4, fit=lambda frames, height, width: (16, 24))
    page = page_of(tmp_path, source)[1]
    assert "24 × 16 (3)" in page.text and "fade.mp4: 24 × 16, 4 frames at 6 a second" in page.text
    assert {(image["width"], image["height"]) for image in page.all("img")} == {("144", "96")}


class TestWorld:
  def test_clips_of_a_world_are_spread_over_it(self, tmp_path, monkeypatch):
    monkeypatch.setattr(data_page, "CLIPS", 10)
    source = open_native("worlds:shapes")
    said, page = page_of(tmp_path, source, "worlds:shapes", tokens_of)
    assert (said["clips"], said["shown"], said["dropped"]) == (900, 10, 0)
    assert len(page.all("img")) == 10
    for index in np.linspace(0, 899, 10).astype(int).tolist():
      assert source.captions(index)["long"] in page.text and f"{source.where(index)[0]}: " in page.text
    assert "64 × 64 (300), 112 × 64 (300), 64 × 112 (300)" in page.text

  def test_no_heading_is_without_content(self, tmp_path):
    page = page_of(tmp_path, WorldSource("shapes", 3, [(16, 16)], [1], 8.0, 0))[1]
    headings = re.findall(r"What it holds|Clips(?! of)|Left out(?=none dropped)|Machine|Training|Numbers", page.text)
    assert headings == ["What it holds", "Left out", "Clips"] and len(page.all("h2")) == 2
    assert not page.all("table") and "none dropped" in page.text

  def test_parts_of_a_mixture_are_shown_by_their_own_names(self, tmp_path, own):
    mixture = Mixture([WorldSource("shapes", 2, [(16, 24)], [1, 5], 8.0, 0), FolderSource(own, max_frames=100)])
    (own / "wide.mp4").write_bytes(b"\0" * 100)
    said, page = page_of(tmp_path, mixture)
    assert said["shown"] == 4 and "Line 3text.mp4: unreadable" in page.text
    assert re.search(r"Line 5wide\.mp4: unreadable: (?!wide\.mp4)\w", page.text)
    for name in ("shapes-0-0: 24 × 16", "shapes-0-1: 24 × 16, 5 frames", "fade.mp4: 64 × 48"):
      assert name in page.text


def test_long_lists_are_cut_and_say_so(tmp_path):
  sizes = [(16, 16 + 2 * k) for k in range(data_page.SIZES + 3)]
  source = WorldSource("shapes", len(sizes), sizes, [1], 8.0, 0)
  source.dropped = [Dropped(f"x{line}.mp4", line, "file missing") for line in range(1, data_page.LOSSES + 8)]
  page = page_of(tmp_path, source)[1]
  assert "3 more" in page.text and "And7 more" in page.text
  assert f"Line {data_page.LOSSES}x{data_page.LOSSES}.mp4" in page.text
  assert f"Line {data_page.LOSSES + 1}x" not in page.text
