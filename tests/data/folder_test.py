"""captions.jsonl and captions.csv line by line, what is dropped and why, and clips of the promised shape."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from sora_jax.data import folder
from sora_jax.data.files import IMAGE_FPS, Dropped, describe_dropped
from sora_jax.data.folder import FolderSource
from sora_jax.video import io as video_io


def frames(count: int, height: int, width: int) -> np.ndarray:
  """uint8 (count, height, width, 3), lighter with each frame."""
  shades = np.linspace(40, 220, count).astype(np.uint8)
  return np.broadcast_to(shades[:, None, None, None], (count, height, width, 3))


def write_lines(path: pathlib.Path, lines: list) -> None:
  """Rows as JSON; text and bytes as they are."""
  whole = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
  (path / folder.CAPTIONS[0]).write_bytes(
    b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in whole)
  )


@pytest.fixture
def own(tmp_path: pathlib.Path) -> pathlib.Path:
  """A folder of three usable files and their captions, with a file outside beside it."""
  root = tmp_path / "own"
  (root / "more").mkdir(parents=True)
  video_io.write(root / "fade.mp4", frames(12, 48, 64), 12)
  video_io.write(root / "more" / "wide.gif", frames(5, 20, 90), 10)
  video_io.write(root / "still.png", frames(1, 33, 47), 1)
  video_io.write(tmp_path / "secret.png", frames(1, 8, 8), 1)
  write_lines(
    root,
    [
      {"file": "still.png", "caption": " A grey wall. "},
      {"file": "more/wide.gif", "short": "Fade.", "long": "A strip fades from dark to light.", "other": [1]},
      {"file": "fade.mp4", "caption": "Light comes on."},
    ],
  )
  return root


def reasons(root: pathlib.Path, lines: list) -> list[tuple[str, int, str]]:
  """What is dropped when these lines follow one that can be used."""
  write_lines(root, [{"file": "still.png", "caption": "A wall."}, *lines])
  entries, dropped = folder.scan(root)
  assert [entry.file for entry in entries] == ["still.png"]
  return [(each.file, each.line, each.reason) for each in dropped if each.line]


class TestScan:
  def test_entries_in_the_order_of_the_file(self, own: pathlib.Path):
    entries, dropped = folder.scan(own)
    assert [entry.file for entry in entries] == ["still.png", "more/wide.gif", "fade.mp4"]
    assert entries[0].captions == {"short": "A grey wall.", "long": "A grey wall."}
    assert entries[1].captions == {"short": "Fade.", "long": "A strip fades from dark to light."}
    assert (entries[2].probe.height, entries[2].probe.width, entries[2].probe.frames) == (48, 64, 12)
    assert dropped == []
    assert folder.scan(own) == (entries, dropped)

  @pytest.mark.parametrize(
    ("line", "file", "reason"),
    [
      ("{", "", "bad JSON"),
      ('{"file": "fade.mp4", "caption": "x"', "", "bad JSON"),
      ("[" * 100_000, "", "bad JSON"),
      ('{"file": ' + "9" * 5000 + "}", "", "bad JSON"),
      (b'{"file": "fade.mp4", "caption": "\xff"}', "", "not UTF-8"),
      ("[1]", "", "not a JSON object"),
      ('"fade.mp4"', "", "not a JSON object"),
      ("null", "", "not a JSON object"),
      ({"caption": "x"}, "", 'no "file" key'),
      ({"file": "", "caption": "x"}, "", "bad file name"),
      ({"file": 3, "caption": "x"}, "", "bad file name"),
      ({"file": "a\0.mp4", "caption": "x"}, "a\0.mp4", "bad file name"),
      ({"file": "\ud800.mp4", "caption": "x"}, "\ud800.mp4", "bad file name"),
      ({"file": "a" * 5000, "caption": "x"}, "a" * 5000, "bad file name"),
      ({"file": "gone.mp4", "caption": "x"}, "gone.mp4", "file missing"),
      ({"file": "more", "caption": "x"}, "more", "file missing"),
      ({"file": "../secret.png", "caption": "x"}, "../secret.png", "outside the folder"),
      ({"file": "more/../../secret.png", "caption": "x"}, "more/../../secret.png", "outside the folder"),
      ({"file": "/etc/hostname", "caption": "x"}, "/etc/hostname", "absolute path"),
      ({"file": "link.png", "caption": "x"}, "link.png", "outside the folder"),
      ({"file": "linked/secret.png", "caption": "x"}, "linked/secret.png", "outside the folder"),
      ({"file": "loop.png", "caption": "x"}, "loop.png", ("bad file name", "file missing")),
      ({"file": "still.png", "caption": "x"}, "still.png", "duplicate file"),
      ({"file": "./more/../still.png", "caption": "x"}, "./more/../still.png", "duplicate file"),
      ({"file": "fade.mp4"}, "fade.mp4", "caption missing"),
      ({"file": "fade.mp4", "caption": " \n"}, "fade.mp4", "caption empty"),
      ({"file": "fade.mp4", "short": "x", "long": ""}, "fade.mp4", "caption empty"),
      ({"file": "fade.mp4", "caption": None}, "fade.mp4", "caption is not text"),
      ({"file": "fade.mp4", "caption": ["x"]}, "fade.mp4", "caption is not text"),
      ('{"file": "fade.mp4", "caption": NaN}', "fade.mp4", "caption is not text"),
      ({"file": "fade.mp4", "caption": "a\0b"}, "fade.mp4", "caption has NUL or broken characters"),
      ({"file": "fade.mp4", "caption": "\udc00"}, "fade.mp4", "caption has NUL or broken characters"),
      ({"file": "fade.mp4", "caption": "x" * 10_001}, "fade.mp4", "caption too long"),
      ({"file": "text.mp4", "caption": "x"}, "text.mp4", "unreadable"),
    ],
  )
  def test_bad_lines(self, own: pathlib.Path, line, file: str, reason: str | tuple[str, ...]):
    (own / "text.mp4").write_text("not a video")
    (own / "link.png").symlink_to(own.parent / "secret.png")
    (own / "linked").symlink_to(own.parent)
    (own / "loop.png").symlink_to(own / "loop.png")
    ((got_file, number, got_reason),) = reasons(own, ["", line])
    assert (got_file, number) == (file, 3)
    assert got_reason.startswith(reason) and "\n" not in got_reason and str(own) not in got_reason

  @pytest.mark.parametrize(
    "caption", ["x" * 10_000, "شخص يمشي", "🐈‍⬛ jumps", "=cmd|'/c calc'!A0", "two\nlines", "<script>"]
  )
  def test_captions_are_kept_as_text(self, own: pathlib.Path, caption: str):
    write_lines(own, [{"file": "still.png", "caption": caption}])
    assert folder.scan(own)[0][0].captions == {"short": caption, "long": caption}

  def test_a_link_inside_and_a_byte_order_mark(self, own: pathlib.Path):
    (own / "same.mp4").symlink_to("fade.mp4")
    write_lines(own, [b'\xef\xbb\xbf{"file": "same.mp4", "caption": "x"}\r'])
    assert [entry.file for entry in folder.scan(own)[0]] == ["same.mp4"]

  def test_files_without_a_caption(self, own: pathlib.Path):
    (own / "notes.txt").write_text("not media")
    shutil.copytree(own, own / "another")  # has its own captions.jsonl
    write_lines(own, [{"file": "still.png", "caption": "A wall."}])
    assert folder.scan(own)[1] == [Dropped(name, 0, "no caption") for name in ("fade.mp4", "more/wide.gif")]

  def test_a_pipe_in_the_place_of_the_captions_is_none(self, tmp_path: pathlib.Path):
    os.mkfifo(tmp_path / folder.CAPTIONS[0])
    with pytest.raises(ValueError, match="no captions"):
      folder.scan(tmp_path)

  def test_no_source(self, own: pathlib.Path):
    with pytest.raises(ValueError, match="no such folder"):
      folder.scan(own / "nowhere")
    with pytest.raises(ValueError, match=r'no captions.jsonl or captions.csv in it: write .*"file": .*"caption"'):
      folder.scan(own / "more")

  def test_nothing_usable_says_why(self, own: pathlib.Path):
    write_lines(own, ["{", "[]", {"file": "gone.mp4", "caption": "x"}, "{{"])
    with pytest.raises(folder.NothingUsable) as caught:
      folder.scan(own)
    text = "7 dropped (3 no caption, 2 bad JSON, 1 file missing, 1 not a JSON object)"
    assert text in str(caught.value) and describe_dropped(caught.value.dropped) == text
    assert describe_dropped([]) == "none dropped"


def read_csv(root: pathlib.Path, content: str | bytes) -> tuple[list[tuple], list[tuple]]:
  """(file, line, short, long) of what is usable of a table, and (file, line, reason) of what is not."""
  (root / folder.CAPTIONS[0]).unlink(missing_ok=True)
  (root / folder.CAPTIONS[1]).write_bytes(content.encode() if isinstance(content, str) else content)
  entries, dropped = folder.scan(root)
  used = [(each.file, each.line, each.captions["short"], each.captions["long"]) for each in entries]
  return used, [(each.file, each.line, each.reason) for each in dropped if each.line]


class TestTables:
  def test_a_table_gives_what_the_same_lines_of_json_give(self, own: pathlib.Path):
    wanted = folder.scan(own)
    table = (
      "short,file,long,other\nA grey wall.,still.png, A grey wall. ,\n"
      "Fade.,more/wide.gif,A strip fades from dark to light.,7\nLight comes on.,fade.mp4,Light comes on.,\n"
    )
    read_csv(own, table)
    entries, dropped = folder.scan(own)
    assert [(each.file, each.captions, each.probe) for each in entries] == [
      (each.file, each.captions, each.probe) for each in wanted[0]
    ]
    assert [each.line for each in entries] == [2, 3, 4] and dropped == wanted[1]

  def test_lines_of_json_are_read_where_there_are_both(self, own: pathlib.Path):
    (own / folder.CAPTIONS[1]).write_text("file,caption\nstill.png,x\n")
    assert [each.file for each in folder.scan(own)[0]] == ["still.png", "more/wide.gif", "fade.mp4"]

  @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
  @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
  def test_ends_of_lines_and_a_byte_order_mark(self, own: pathlib.Path, end: str, mark: bytes):
    lines = ['file ,"caption"', "still.png,A wall.", "", "fade.mp4,Light."]  # the last has no end
    used, bad = read_csv(own, mark + end.join(lines).encode())
    assert used == [("still.png", 2, "A wall.", "A wall."), ("fade.mp4", 4, "Light.", "Light.")] and not bad

  @pytest.mark.parametrize(
    ("field", "caption"),
    [
      ('"Snow, rain."', "Snow, rain."),
      ('"He says ""no""."', 'He says "no".'),
      ('"Two\nlines."', "Two\nlines."),
      ('"Three\r\n\r\nlines."', "Three\r\n\r\nlines."),
      ("\N{FOX FACE}é", "\N{FOX FACE}é"),
      ("=cmd|'/c calc'!A0", "=cmd|'/c calc'!A0"),
      (f'"{"x" * 10_000}"', "x" * 10_000),
    ],
    ids=["comma", "quotes", "lines", "empty line", "characters", "formula", "long"],
  )
  def test_fields_are_kept_as_text(self, own: pathlib.Path, field: str, caption: str):
    assert read_csv(own, f"file,caption\nstill.png,{field}\n") == ([("still.png", 2, caption, caption)], [])

  def test_a_row_of_several_lines_has_the_number_of_its_first(self, own: pathlib.Path):
    table = 'file,caption\n\nstill.png,"a\nb\r\n\nc"\ngone.mp4,"x\ny"\nfade.mp4,Light.\nmore/wide.gif\n'
    used, bad = read_csv(own, table)
    assert [row[:2] for row in used] == [("still.png", 3), ("fade.mp4", 9)]
    assert bad == [("gone.mp4", 7, "file missing"), ("more/wide.gif", 10, "bad CSV: 1 values for 2 columns")]

  @pytest.mark.parametrize(
    ("row", "file", "reason"),
    [
      (b"fade.mp4", "fade.mp4", "bad CSV: 1 values for 2 columns"),
      (b"fade.mp4,a,b", "fade.mp4", "bad CSV: 3 values for 2 columns"),
      (b'fade.mp4,"a" b', "fade.mp4", "bad CSV: "),
      (b'fade.mp4,"a', "fade.mp4", "bad CSV: "),
      (b'"fade.mp4,a', "", "bad CSV: "),
      (b"fade.mp4," + b"x" * 200_000, "", "bad CSV: field larger than field limit"),
      (b"fade.mp4," + b"x" * 10_001, "fade.mp4", "caption too long: 10001 characters"),
      (b"fade.mp4,caf\xe9", "", "not UTF-8"),
      (b"fade.mp4,\xed\xa0\x80", "", "not UTF-8"),
      (b"\xff.mp4,a", "", "not UTF-8"),
      (b"fade.mp4,a\0b", "fade.mp4", "caption has NUL"),
      (b"fade.mp4,", "fade.mp4", "caption empty"),
      (b",a", "", "bad file name"),
      (b"../secret.png,a", "../secret.png", "outside the folder"),
      (b"still.png,a", "still.png", "duplicate file"),
    ],
    ids=lambda value: str(value)[:30],
  )
  def test_a_bad_row_costs_itself_alone(self, own: pathlib.Path, row: bytes, file: str, reason: str):
    table = b"file,caption\nstill.png,A wall.\n" + row + b"\nmore/wide.gif,A strip.\n"
    used, bad = read_csv(own, table)
    assert [entry[:2] for entry in used] == [("still.png", 2), ("more/wide.gif", 4)]
    ((got_file, number, got_reason),) = bad
    assert (got_file, number) == (file, 3) and got_reason.startswith(reason) and "\n" not in got_reason

  def test_a_file_of_a_bad_row_is_lost_once(self, own: pathlib.Path):
    read_csv(own, 'file,caption\nstill.png,A wall.\nfade.mp4,"a\nmore/wide.gif,A strip.\n')
    assert [(each.file, each.line) for each in folder.scan(own)[1]] == [("fade.mp4", 3)]

  def test_an_open_quote_is_given_up_after_lines_beyond_reason(self, own: pathlib.Path):
    rows = "".join(f"gone{k}.mp4,x\n" for k in range(20_000))
    used, bad = read_csv(own, f'file,caption\nstill.png,A wall.\nfade.mp4,"a\n{rows}more/wide.gif,A strip.\n')
    assert [row[:2] for row in used] == [("still.png", 2), ("more/wide.gif", 20_004)]
    assert bad[0][1] == 3 and bad[0][2].endswith("in a quote that is not closed")
    assert {reason for _, _, reason in bad[1:]} == {"file missing"} and bad[-1][:2] == ("gone19999.mp4", 20_003)

  @pytest.mark.parametrize(
    ("table", "reason"),
    [
      ("", "3 no caption"),
      ("file,caption\n", "3 no caption"),
      (
        "name,words\nstill.png,A wall.\n",
        r'no "file" key in the header \(name, words\), which needs file and caption, or',
      ),
      ("name;words;c\nstill.png;A;b\n", r'no "file" key in the header \(name, words, c\), which needs'),
      (
        "file,words\nstill.png,A wall.\n",
        r"caption missing in the header \(file, words\), which needs file and caption",
      ),
      ("still.png,A wall.\nfade.mp4,Light.\n", r'no "file" key in the header \(still.png, A wall.\)'),
      (b"\xff\xfef\0i\0l\0e\0", "3 no caption"),
    ],
    ids=["empty", "header", "names", "semicolons", "no words", "no header", "UTF-16"],
  )
  def test_a_table_of_another_kind_has_nothing_usable(self, own: pathlib.Path, table: str | bytes, reason: str):
    with pytest.raises(folder.NothingUsable, match=reason):
      read_csv(own, table)


def half(frames: int, height: int, width: int) -> tuple[int, int]:
  return height // 2, width // 2


class TestFolderSource:
  def test_clips_keep_what_shape_promises(self, own: pathlib.Path):
    for fps in (0.0, 3.0, 12.0, 29.97):
      for max_frames in (1, 7, 100):
        for fit in (None, half):
          source = FolderSource(own, fps=fps, max_frames=max_frames, fit=fit)
          for index in range(len(source)):
            clip = source[index]
            assert clip.frames_THWC.shape == (*source.shape(index), 3)
            assert clip.frames_THWC.dtype == np.float32 and np.abs(clip.frames_THWC).max() <= 1
            assert clip.fps == source.fps(index) > 0
            assert clip.caption == source.captions(index)["long"]

  def test_shapes_rates_and_ids(self, own: pathlib.Path):
    source = FolderSource(own, fps=0.0, max_frames=100)
    assert [source.shape(k) for k in range(3)] == [(1, 33, 47), (5, 20, 90), (12, 48, 64)]
    assert [source[k].fps for k in range(3)] == pytest.approx([IMAGE_FPS, 10, 12])
    assert [source[k].id for k in range(3)] == ["still.png", "more/wide.gif", "fade.mp4"]
    small = FolderSource(own, fps=6.0, max_frames=4, fit=half)
    assert [small.shape(k) for k in range(3)] == [(1, 16, 23), (3, 10, 45), (4, 24, 32)]
    assert source.dropped == [] and len(source) == 3
    with pytest.raises(IndexError):
      source[3]

  def test_times_and_values(self, own: pathlib.Path):
    """Half the rate takes every other frame; shrinking a flat picture keeps its shade."""
    clip = FolderSource(own, fps=6.0, max_frames=100, fit=half)[2]
    shades = frames(12, 1, 1)[::2, 0, 0, 0].astype(np.float32) / 127.5 - 1
    assert clip.frames_THWC.mean(axis=(1, 2, 3)) == pytest.approx(shades, abs=0.02)

  def test_fingerprint(self, own: pathlib.Path):
    def fingerprint() -> str:
      return FolderSource(own, fps=8, max_frames=9).fingerprint

    first = fingerprint()
    lines = (own / folder.CAPTIONS[0]).read_text().splitlines()
    write_lines(own, lines[::-1])
    assert fingerprint() == first and len(first) == 64
    write_lines(own, [lines[0].replace("wall", "door"), *lines[1:]])
    assert fingerprint() != first
    write_lines(own, lines)
    video_io.write(own / "still.png", frames(1, 200, 300), 1)
    assert fingerprint() != first

  def test_fewer_frames_than_promised(self, own: pathlib.Path):
    source = FolderSource(own, fps=12.0, max_frames=100)
    video_io.write(own / "fade.mp4", frames(11, 48, 64), 12)
    clip = source[2]
    assert len(clip.frames_THWC) == 12 and (clip.frames_THWC[10] == clip.frames_THWC[11]).all()
    video_io.write(own / "fade.mp4", frames(14, 48, 64), 12)
    assert len(source[2].frames_THWC) == 12
    video_io.write(own / "fade.mp4", frames(6, 48, 64), 12)
    with pytest.raises(video_io.UnreadableFile, match=r"^fade.mp4: gives 6 frames where 12"):
      source[2]
    (own / "fade.mp4").write_bytes(b"")
    with pytest.raises(video_io.UnreadableFile, match=r"^fade.mp4: the file is empty"):
      source[2]

  def test_a_file_that_became_a_link_out_of_the_folder(self, own: pathlib.Path, tmp_path_factory):
    source = FolderSource(own, fps=12.0, max_frames=100)
    other = tmp_path_factory.mktemp("outside") / "fade.mp4"
    (own / "fade.mp4").rename(other)
    (own / "fade.mp4").symlink_to(other)
    with pytest.raises(video_io.UnreadableFile, match=r"^fade.mp4: outside the folder"):
      source[2]

  @pytest.mark.parametrize("bad", [{"fps": -1}, {"fps": float("nan")}, {"max_frames": 0}])
  def test_arguments(self, own: pathlib.Path, bad: dict):
    with pytest.raises(ValueError, match="max_frames >= 1"):
      FolderSource(own, **({"fps": 8.0, "max_frames": 9} | bad))


class TestRealFiles:
  def test_every_clip_has_its_shape(self, corpus):
    for place, max_frames in ((corpus, 3), (corpus / "broken", 40)):
      source = FolderSource(place, fps=8.0, max_frames=max_frames, fit=lambda t, h, w: (48, 64))
      lines = (place / folder.CAPTIONS[0]).read_text().splitlines()
      assert len(source) == len(lines)
      assert all(each.reason == "no caption" for each in source.dropped)
      for index in range(0, len(source), 4 if place == corpus else 1):
        count, height, width = source.shape(index)
        assert source[index].frames_THWC.shape == (count, height, width, 3)
        assert (height, width) == (48, 64)
