"""Shards of clips: what goes in comes out, as from a folder; every kind of damage is told, with the file's name."""

import dataclasses
import hashlib
import json
import multiprocessing
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import folder, records
from sora_jax.data.folder import FolderSource
from sora_jax.data.records import BadRecords, Record, RecordSource
from sora_jax.video import io as video_io
from sora_jax.video.io import Probe, UnreadableFile

SHARDS = (2, 0, 3)  # an empty one may lie between others
PROBE = Probe(height=20, width=30, seconds=1.5, fps=8.0, frames=12)


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
  """A folder of five clips with captions."""
  root = tmp_path_factory.mktemp("files")
  names = ("a.mp4", "b.png", "c.gif", "d.webp", "e.mp4")
  for seed, name in enumerate(names):
    count = 1 if name == "b.png" else 5 + seed
    video_io.write(root / name, frames(count, 16 + 2 * seed, 24, seed), 8 + seed)
  rows = [{"file": name, "short": f"Short {name}.", "long": f"Long, \N{FOX FACE}\n{name}."} for name in names]
  (root / folder.CAPTIONS[0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def write(root: pathlib.Path, source: FolderSource) -> None:
  """The clips of a folder in SHARDS."""
  made = []
  for index, entry in enumerate(source.entries):
    with source.open_file(index) as path:
      made.append(Record(entry.file, entry.captions, entry.probe, pathlib.Path(path).read_bytes()))
  lines, start = [], 0
  for number, count in enumerate(SHARDS):
    path = root / records.shard_name(number, len(SHARDS))
    lines.append(records.write_shard(path, iter(made[start : start + count])))
    start += count
  records.finish(root, lines)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("whole")
  write(root, FolderSource(files, max_frames=100))
  return root


@pytest.fixture
def root(whole, tmp_path) -> pathlib.Path:
  """A copy to be damaged."""
  return shutil.copytree(whole, tmp_path / "records")


def shard(root: pathlib.Path, number: int) -> pathlib.Path:
  return root / records.shard_name(number, len(SHARDS))


def open_(root: pathlib.Path) -> RecordSource:
  return RecordSource(root, max_frames=100)


def half(count: int, height: int, width: int) -> tuple[int, int]:
  return height // 2, width // 2


def assert_same_clips(first, second) -> None:
  assert len(first) == len(second) == sum(SHARDS)
  for index in range(len(first)):
    assert first.shape(index) == second.shape(index) and first.fps(index) == second.fps(index)
    assert first.captions(index) == second.captions(index) and first.where(index) == second.where(index)
    one, other = first[index], second[index]
    assert (one.fps, one.caption, one.id) == (other.fps, other.caption, other.id)
    np.testing.assert_array_equal(one.frames_THWC, other.frames_THWC)


UNWRITABLE = [
  *({"id": name} for name in ("", "x" * 5001)),
  *({"captions": given} for given in ({"short": " ", "long": "a"}, {"short": "a"}, {"short": "a", "long": "\ud800"})),
  *({"probe": dataclasses.replace(PROBE, **change)} for change in ({"width": 0}, {"fps": float("nan")})),
]


class TestRoundTrip:
  @pytest.mark.parametrize("how", [{"max_frames": 100}, {"fps": 5.0, "max_frames": 3, "fit": half}], ids=["all", "few"])
  def test_records_give_the_clips_of_the_folder_that_they_were_made_from(self, files, whole, how):
    assert_same_clips(FolderSource(files, **how), RecordSource(whole, **how))
    assert RecordSource(whole, **how).dropped == ()

  def test_the_media_come_back_byte_for_byte(self, files, whole):
    source = open_(whole)
    for index, entry in enumerate(source.entries):
      with source.open_file(index) as path:
        assert pathlib.Path(path).read_bytes() == (files / entry.file).read_bytes()

  def test_the_same_records_give_the_same_bytes(self, files, whole, tmp_path):
    write(tmp_path, FolderSource(files, max_frames=1))
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    assert {path.name: digest(path) for path in tmp_path.iterdir()} == {
      path.name: digest(path) for path in whole.iterdir()
    }

  @settings(max_examples=25, deadline=None)
  @given(
    media=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip),
  )
  def test_any_bytes_and_words_come_back(self, tmp_path_factory, media, text):
    root = tmp_path_factory.mktemp("any")
    made = [Record(f"{text}{k}", {"short": text, "long": text + "!"}, PROBE, media[k]) for k in range(len(media))]
    records.finish(root, [records.write_shard(root / records.shard_name(0, 1), made)])
    source = open_(root)
    for index, record in enumerate(made):
      with source.open_file(index) as path:
        assert pathlib.Path(path).read_bytes() == record.media
      assert source.captions(index) == record.captions and source.entries[index].probe == PROBE
      assert source.where(index) == (record.id, index + 1)

  def test_a_shard_is_written_whole_or_not_at_all(self, tmp_path):
    def stopped():
      yield Record("a", {"short": "a", "long": "a"}, PROBE, b"a")
      raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      records.write_shard(tmp_path / "shard", stopped())
    assert not list(tmp_path.iterdir())

  @pytest.mark.parametrize("change", UNWRITABLE, ids=lambda change: str(change)[:30])
  def test_a_record_that_could_not_be_read_back_is_not_written(self, tmp_path, change):
    record = dataclasses.replace(Record("a", {"short": "a", "long": "a"}, PROBE, b"a"), **change)
    with pytest.raises(BadRecords, match="shard line 1: "):
      records.write_shard(tmp_path / "shard", [record])
    assert not list(tmp_path.iterdir())

  def test_a_folder_is_a_source_when_records_json_is_written(self, root):
    assert records.is_records(root)
    (root / records.META).unlink()
    assert not records.is_records(root)

  def test_an_index_out_of_range_is_no_clip(self, whole):
    source = open_(whole)
    for index in (5, 100):
      with pytest.raises(IndexError):
        source[index]
    with pytest.raises(IndexError), source.open_file(-1):
      pass

  def test_arguments_out_of_range(self, whole):
    with pytest.raises(ValueError, match="max_frames >= 1"):
      RecordSource(whole, max_frames=0)


def use(source, index: int, answers) -> None:
  answers.put(source[index].frames_THWC)


class TestOtherProcesses:
  @pytest.mark.parametrize("how", [{"max_frames": 100}, {"fps": 5.0, "max_frames": 3, "fit": half}], ids=["all", "few"])
  def test_sources_can_be_sent(self, files, whole, how):
    for source in (FolderSource(files, **how), RecordSource(whole, **how)):
      _ = source[4]  # with a shard open
      sent = pickle.loads(pickle.dumps(source))
      assert sent.fingerprint == source.fingerprint and sent.view == source.view
      assert_same_clips(source, sent)

  def test_records_are_sent_without_their_index(self, whole):
    assert len(pickle.dumps(open_(whole))) < 600 + len(str(whole))

  def test_a_spawned_process_reads_the_same_clip(self, whole):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    source = open_(whole)
    wanted = source[3].frames_THWC
    process = context.Process(target=use, args=(source, 3, answers))
    process.start()
    np.testing.assert_array_equal(answers.get(timeout=60), wanted)
    process.join()
    assert process.exitcode == 0

  def test_records_that_were_built_again_meanwhile_are_not_taken_for_the_same(self, files, root, tmp_path):
    sent = pickle.dumps(open_(root))
    write(root, FolderSource(files, max_frames=100))
    pickle.loads(sent)  # the same records
    lines = (root / records.INDEX).read_text().replace("Short", "Other").splitlines()
    records.finish(root, [lines[:2], [], lines[2:]])
    with pytest.raises(ValueError, match=f"{root}: changed since it was opened"):
      pickle.loads(sent)

  def test_a_shard_that_is_written_again_is_read_again(self, root):
    record = lambda k: Record("a", {"short": "a", "long": "a"}, PROBE, b"%d" % k)
    for k in range(3):
      records.finish(root, [records.write_shard(root / records.shard_name(0, 1), [record(k)])])
      with open_(root).open_file(0) as path:
        assert pathlib.Path(path).read_bytes() == b"%d" % k


NO_META = [b"", b"{", b"[]", b"3", b'"version"', b"\xff\xfe{}", b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}"]
NO_META += [b'{"version": 1, "shards": [5]}', b'{"shards": [5], "index": ""}']
NO_COUNTS = [[], [-1, 6], [True, 4], [2.0, 3], "5", {"0": 5}, None, [0] * 100_001]


class TestDamagedMeta:
  @pytest.mark.parametrize("content", NO_META, ids=lambda content: str(content[:20]))
  def test_what_is_not_a_records_json_is_told(self, root, content):
    (root / records.META).write_bytes(content)
    with pytest.raises(BadRecords, match=r"records.json: not the records.json of a folder of records"):
      open_(root)

  def test_a_missing_one_is_told(self, tmp_path):
    with pytest.raises(BadRecords, match=rf"{tmp_path}/records.json: not the .*FileNotFoundError"):
      open_(tmp_path)

  @pytest.mark.parametrize("version", [0, 2, "1", None])
  def test_another_version_is_told_with_what_to_do(self, root, version):
    change_meta(root, version=version)
    with pytest.raises(BadRecords, match=rf"records.json: version {version!r}; .* reads 1: build the records again"):
      open_(root)

  @pytest.mark.parametrize(
    "change", [*({"shards": counts} for counts in NO_COUNTS), {"index": 7}], ids=lambda change: str(change)[:30]
  )
  def test_counts_and_digests_of_other_kinds_are_told(self, root, change):
    change_meta(root, **change)
    with pytest.raises(BadRecords, match=r"records.json: needs the count of each of 1 to 100000 shards"):
      open_(root)


def change_meta(root: pathlib.Path, **change) -> None:
  path = root / records.META
  path.write_text(json.dumps(json.loads(path.read_text()) | change))


def change_index(root: pathlib.Path, content: bytes) -> None:
  """An index with its own digest in records.json, as whoever made it would give it."""
  (root / records.INDEX).write_bytes(content)
  change_meta(root, index=hashlib.sha256(content).hexdigest())


BAD_LINES = [
  *((line, "not a clip with") for line in (b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000)),
  *(({key: ...}, "not a clip with") for key in ("id", "short", "long", "frames", "fps", "sha256")),  # without it
  *(({"sha256": value}, "not a clip with") for value in (7, "xy", None)),
  *(({"height": value}, "whole numbers above 0") for value in (0, -5, 1.0, True, "16", None, 2**31)),
  *(({"frames": value}, "whole numbers above 0") for value in (0, 2.5)),
  *(({"fps": value}, "numbers from 0") for value in (-1, float("nan"), float("inf"), None, True, 1e308)),
  *(({"seconds": value}, "numbers from 0") for value in (-0.1, "1", 2**31)),
  *(({"id": value}, "id and captions are texts") for value in ("", 5, "x" * 5001, None)),
  *(({"long": value}, "id and captions are texts") for value in (" ", ["a"], "x" * 10_001, "a\0b", "\ud800")),
]


class TestDamagedIndex:
  def test_a_missing_index_is_told(self, root):
    (root / records.INDEX).unlink()
    with pytest.raises(BadRecords, match=r"index.jsonl: No such file"):
      open_(root)

  def test_a_cut_or_flipped_index_is_told(self, root):
    whole = (root / records.INDEX).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", whole[:-1], whole[: len(whole) // 2], bytes(flipped), whole + b"\n"):
      (root / records.INDEX).write_bytes(content)
      with pytest.raises(BadRecords, match=r"index.jsonl: not the index that records.json names"):
        open_(root)

  def test_another_number_of_lines_is_told(self, root):
    lines = (root / records.INDEX).read_bytes().splitlines(keepends=True)
    change_index(root, b"".join(lines[:-1]))
    with pytest.raises(BadRecords, match=r"index.jsonl: 4 lines for 5 records"):
      open_(root)
    change_meta(root, shards=[0])
    change_index(root, b"")
    with pytest.raises(BadRecords, match=r"index.jsonl: no clips"):
      open_(root)

  @pytest.mark.parametrize(("change", "reason"), BAD_LINES, ids=lambda value: str(value)[:30])
  def test_a_line_of_another_kind_is_told_with_its_number(self, root, change, reason):
    lines = (root / records.INDEX).read_bytes().splitlines()
    if isinstance(change, bytes):
      lines[1] = change
    else:
      row = json.loads(lines[1]) | change
      lines[1] = json.dumps({key: value for key, value in row.items() if value is not ...}).encode()
    change_index(root, b"\n".join(lines) + b"\n")
    with pytest.raises(BadRecords, match=rf"index.jsonl line 2: .*{reason}") as caught:
      open_(root)
    assert "\n" not in str(caught.value)


class TestDamagedShards:
  """What a shard lacks costs its clips alone."""

  def test_a_missing_shard(self, root):
    shard(root, 0).unlink()
    source = open_(root)
    for index, name in ((0, "a.mp4"), (1, "b.png")):
      with pytest.raises(UnreadableFile, match=rf"^{name}: record {index} of clips-00000-of-00003.array_record is dam"):
        source[index]
    assert source[2].frames_THWC.shape == (*source.shape(2), 3)

  @pytest.mark.parametrize("keep", [0, 1, 1000, 65_535, 65_536, -65_536, -1])
  def test_a_cut_shard(self, root, keep):
    path = shard(root, 2)
    path.write_bytes(path.read_bytes()[:keep])
    source = open_(root)
    for index in (2, 3, 4):
      with pytest.raises(
        UnreadableFile, match=r"record . of clips-00002-of-00003.array_record is damaged: ."
      ) as caught:
        source[index]
      assert "\n" not in str(caught.value)
    assert len(source[0].frames_THWC) == source.shape(0)[0]

  @pytest.mark.parametrize("content", [b"x" * 200_000, b"\0" * 200_000, b"{}\n"], ids=["text", "zeros", "json"])
  def test_what_is_no_shard(self, root, content):
    shard(root, 0).write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"^a.mp4: record 0 of clips-00000-of-00003.array_record is damaged"):
      open_(root)[0]

  def test_a_folder_in_the_place_of_a_shard(self, root):
    shard(root, 0).unlink()
    shard(root, 0).mkdir()
    with pytest.raises(UnreadableFile, match=r"^a.mp4: record 0 of clips-00000-of-00003.array_record is damaged"):
      open_(root)[0]

  def test_flipped_bits_never_give_other_clips(self, root):
    path, rng = shard(root, 2), np.random.default_rng(0)
    whole, source = path.read_bytes(), open_(root)
    wanted = [source[index].frames_THWC for index in (2, 3, 4)]
    used, told = max(k for k, byte in enumerate(whole) if byte), 0  # the rest of the last block is padding
    for place in rng.integers(0, used + 1, 25):
      flipped = bytearray(whole)
      flipped[place] ^= 1 << int(rng.integers(8))
      path.write_bytes(flipped)
      source = open_(root)
      for index in (2, 3, 4):
        try:
          np.testing.assert_array_equal(source[index].frames_THWC, wanted[index - 2])
        except UnreadableFile as error:
          told += "of clips-00002-of-00003.array_record" in str(error)
    assert told

  def test_shards_in_the_place_of_others(self, root):
    first, last = shard(root, 0), shard(root, 2)
    content = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(content)
    source = open_(root)
    with pytest.raises(UnreadableFile, match=r"^a.mp4: record 0 of clips-00000.* is of 'c.gif': the index is of other"):
      source[0]
    with pytest.raises(UnreadableFile, match=r"^e.mp4: record 2 of clips-00002.* is damaged: index 2 out of bound 2"):
      source[4]

  def test_another_file_under_the_same_id(self, root):
    entries = open_(root).entries[:2]
    other = [Record(entry.file, entry.captions, entry.probe, b"other") for entry in entries]
    records.write_shard(shard(root, 0), other)
    with pytest.raises(UnreadableFile, match=r"^b.png: record 1 of clips-00000.* holds another file than the index"):
      open_(root)[1]

  @pytest.mark.parametrize("content", [b"7\nx", b"[]\nx", b"no line", b'{"id": 7}\nx', b"[" * 100_000, b"\xff\nx"])
  def test_a_record_that_does_not_begin_with_its_line(self, root, content):
    writer = records.ArrayRecordWriter(str(shard(root, 0)), "group_size:1")
    writer.write(content)
    writer.close()
    with pytest.raises(UnreadableFile, match=r"^a.mp4: record 0 of clips-00000-of-00003.array_record is ") as caught:
      open_(root)[0]
    assert "\n" not in str(caught.value)


class TestRealFiles:
  def test_records_of_real_files_give_the_same_clips(self, corpus, tmp_path):
    how = {"fps": 8.0, "max_frames": 3, "fit": lambda count, height, width: (48, 64)}
    source = FolderSource(corpus, **how)
    made = [
      Record(entry.file, entry.captions, entry.probe, (corpus / entry.file).read_bytes()) for entry in source.entries
    ][::6]
    records.finish(tmp_path, [records.write_shard(tmp_path / records.shard_name(0, 1), made)])
    found = RecordSource(tmp_path, **how)
    assert len(found) == len(made) > 0
    for index in range(len(found)):
      np.testing.assert_array_equal(found[index].frames_THWC, source[6 * index].frames_THWC)
