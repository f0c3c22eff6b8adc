"""Row B01 of the bad-input table, from outside: hundreds of broken files, those of `broken_files.py`.

Row B02, frames by time, is `frame_counter_test.py`; the others are `bad_input_test.py`.
"""

import itertools
import json
import os
import pathlib
import re
import socket
from typing import NamedTuple

import numpy as np
import pytest

from sora_jax.curation.check import check
from sora_jax.data import quarantine
from sora_jax.data.files import Dropped
from sora_jax.data.folder import FolderSource
from sora_jax.data.sources import open_source
from sora_jax.jobs import train
from sora_jax.jobs.precompute import encode_source
from sora_jax.video import io as video_io
from sora_jax.video import isolated
from tests.faults import broken_files
from tests.faults.broken_files import DROPPED, EITHER, KEPT, Kinds
from tests.faults.folders import section, sora

SECONDS = 60.0  # for one file: none comes near
GOOD = 6
NAMES = [
  "new\nline.mp4",
  "\N{SLIGHTLY SMILING FACE}.mp4",
  "\u0645\u0631\u062d\u0628\u0627.mp4",
  "\u202egnp.mp4",
  "-",
  "-i.mp4",
  "--help",
  "%s%d%n.mp4",
  "%03d.png",
  "file:a.mp4",
  "concat:a.mp4|b.mp4",
  "subfile,,start,0,end,0,,:a.mp4",
  "pipe:0",
  "data:video.mp4;base64,AAAA",
  "http:a.mp4",
  "a.mp4?query#part",
  "|id",
  "`id`.mp4",
  "$HOME.mp4",
  "~",
  "~root",
  "...",
  " spaces .mp4 ",
  "no_extension",
  "a.tar.gz",
  "*.mp4",
  "[a-z].mp4",
  "back\\slash.mp4",
  "quote\"'.mp4",
  "x" * 251 + ".mp4",
]
EDITS = {b"mdhd": 16, b"elst": 16}  # where an mp4 has its ticks a second, and the stamp that its first edit begins at


class Result(NamedTuple):
  folder: pathlib.Path
  groups: dict[str, Kinds]
  outcome: dict[str, str]  # why a file is dropped, KEPT where it is not
  frames: dict[str, np.ndarray]  # of the good files and of those with odd names
  order: list[str]  # of what is kept
  checked: dict
  pids: set[int]  # of the decoder, after each file
  peak: int  # bytes that it held at most
  calls: int  # that came to the address some files point to


def good_frames(number: int) -> np.ndarray:
  return np.full((5, 24, 32, 3), 40 * number, np.uint8) + 8 * np.arange(5, dtype=np.uint8)[:, None, None, None]


def lay_out(folder: pathlib.Path, kinds: Kinds) -> list[str]:
  """The kinds, with good files between them, and a caption for each; returns the names in order."""
  names = list(kinds)
  for name, (content, _) in kinds.items():
    (folder / name).write_bytes(content)
  for number in range(GOOD):
    video_io.write(folder / f"good_{number}.gif", good_frames(number), 10)
    names.insert(number + number * len(kinds) // (GOOD - 1), f"good_{number}.gif")
  lines = [json.dumps({"file": name, "caption": f"what {name} shows"}) for name in names]
  (folder / "captions.jsonl").write_text("\n".join(lines))
  return names


def status_of(decoder: isolated.Decoder) -> tuple[int, int]:
  """(pid, bytes that it held at most)."""
  pid = decoder._process.pid
  found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
  return pid, 1024 * int(found[1])


def groups(secret: str, address: str) -> dict[str, Kinds]:
  return {
    "cut": broken_files.cut_files(),
    "damaged": broken_files.damaged_files(),
    "foreign": broken_files.foreign_files(secret, address),
    "renamed": broken_files.renamed_files(),
    "images": broken_files.lying_images(),
    "animations": broken_files.lying_animations(),
    "mp4": broken_files.lying_mp4(),
    "matroska": broken_files.lying_matroska(),
    "names": {name: (broken_files.whole()["png"], KEPT) for name in NAMES},
  }


def decode_all(source: FolderSource, decoder: isolated.Decoder) -> tuple[dict, dict, set[int], int]:
  """(outcome, frames, pids, peak) as in `Result`."""
  outcome = {each.file: each.reason for each in source.dropped}
  frames, pids, peaks = {}, set(), []
  for index in range(len(source)):
    name = source.where(index)[0]
    try:
      clip = source[index]
    except video_io.UnreadableFile as error:
      outcome[name] = str(error)
    else:
      sane = clip.frames_THWC.shape == (*source.shape(index), 3) and np.abs(clip.frames_THWC).max() <= 1
      outcome[name] = KEPT if sane and 0 < clip.fps <= 1000 else "not what was promised"
      if name.startswith("good") or name in NAMES:
        frames[name] = clip.frames_THWC
    pid, peak = status_of(decoder)
    pids.add(pid)
    peaks.append(peak)
  return outcome, frames, pids, max(peaks)


def count_calls(listener: socket.socket) -> int:
  listener.setblocking(False)
  for count in itertools.count():
    try:
      listener.accept()
    except BlockingIOError:
      return count


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
  """Every kind in one folder, opened, decoded and checked once."""
  outside, folder = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("own")
  os.mkfifo(outside / "secret.mov")  # whoever opens it hangs
  decoder = isolated.shared()
  decoder.close()  # a fresh process, which is to read them all
  before, decoder.seconds = decoder.seconds, SECONDS
  with socket.create_server(("127.0.0.1", 0)) as listener:
    found = groups(str(outside / "secret.mov"), f"http://127.0.0.1:{listener.getsockname()[1]}")
    lay_out(folder, {name: kind for kinds in found.values() for name, kind in kinds.items()})
    source = FolderSource(folder, fps=0.0, max_frames=4096)
    outcome, frames, pids, peak = decode_all(source, decoder)
    checked = check(folder)
    calls = count_calls(listener)
  decoder.seconds = before
  order = [source.where(index)[0] for index in range(len(source))]
  return Result(folder, found, outcome, frames, order, checked, pids | {status_of(decoder)[0]}, peak, calls)


class PlainCodec:
  """Latents that are the frames."""

  params = {"kernel": np.ones(1, np.float32)}

  def encode(self, frames_BTHWC):
    return np.asarray(frames_BTHWC)


class TestB01:
  """Bad files are quarantined with a reason; the others keep their order and content."""

  @pytest.mark.parametrize(
    "group", ["cut", "damaged", "foreign", "renamed", "images", "animations", "mp4", "matroska", "names"]
  )
  def test_every_kind_is_kept_or_dropped_as_it_should_be(self, result, group):
    wrong = []
    for name, (_, expected) in result.groups[group].items():
      got = result.outcome[name]
      fits = {KEPT: got == KEPT, DROPPED: got not in (KEPT, "not what was promised"), EITHER: got[:3] != "not"}
      if not fits.get(expected, expected in got):
        wrong.append((name, expected, got))
    assert not wrong

  def test_there_are_hundreds_of_kinds(self, result):
    assert sum(map(len, result.groups.values())) > 400
    assert sum(reason != KEPT for reason in result.outcome.values()) > 200

  def test_no_file_crashes_hangs_or_fills_the_decoder(self, result):
    assert len(result.pids) == 1  # one process read them all
    assert result.peak < 2 * 2**30

  def test_no_other_file_or_address_is_opened(self, result):
    assert result.calls == 0  # and who opens the pipe outside hangs, which the test before would see

  def test_a_reason_is_a_line_without_the_place_of_the_folder(self, result):
    reasons = [each for each in result.outcome.values() if each] + [
      each["reason"] for each in result.checked["dropped"]
    ]
    assert all("\n" not in each and len(each) < 250 and str(result.folder) not in each for each in reasons)

  def test_good_files_keep_their_order_and_content(self, result, tmp_path):
    lay_out(tmp_path, {})
    clean = FolderSource(tmp_path, max_frames=4096)
    assert [name for name in result.order if name.startswith("good")] == [f"good_{k}.gif" for k in range(GOOD)]
    for number in range(GOOD):
      np.testing.assert_array_equal(result.frames[f"good_{number}.gif"], clean[number].frames_THWC)
    listed = [json.loads(line)["file"] for line in (result.folder / "captions.jsonl").read_text().splitlines()]
    assert result.order == [name for name in listed if name in set(result.order)]

  def test_odd_names_are_files_like_others(self, result):
    wanted = broken_files.moving(1).astype(np.float32) / 127.5 - 1
    for name in NAMES:
      np.testing.assert_allclose(result.frames[name], wanted, atol=1e-6, err_msg=repr(name))

  @pytest.mark.parametrize("halves", [(0, 0), (1, 0), (1,), (0, 1, 1)])
  def test_an_edit_list_repeats_leaves_out_and_reorders(self, tmp_path, halves):
    data, path = broken_files.encoded("plain.mp4", "libx264", options="bf=0"), tmp_path / "edited.mp4"
    ticks, start = (int.from_bytes(data[(at := data.index(name) + skip) : at + 4]) for name, skip in EDITS.items())
    entries = [broken_files.four(500, start + ticks // 2 * half, 65536) for half in halves]
    edits = broken_files.box(b"elst", broken_files.four(0, len(halves)), *entries)
    path.write_bytes(broken_files.replaced(data, [b"moov", b"trak", b"edts", b"elst"], edits))
    got, plain = video_io.read(path, fps=12, max_frames=99).astype(int), broken_files.moving(12)
    nearest = [int(np.abs(frame - plain).mean((1, 2, 3)).argmin()) for frame in got]
    assert nearest == [6 * half + k for half in halves for k in range(6)]

  def test_a_check_finds_what_decoding_finds(self, result):
    dropped = {each["file"] for each in result.checked["dropped"]}
    assert dropped == {name for name, reason in result.outcome.items() if reason}
    lines = [each["line"] for each in result.checked["dropped"]]
    assert lines == sorted(lines) and result.checked["kept"] == len(result.outcome) - len(dropped)

  def test_things_that_are_no_files_cost_a_line_each(self, tmp_path):
    """None of them may be opened: a pipe without a writer waits for one, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "to_pipe.mp4").symlink_to("pipe.mp4")
    for device in ("zero", "random", "stdin"):
      (tmp_path / f"{device}.mp4").symlink_to(f"/dev/{device}")
    (tmp_path / "dangling.mp4").symlink_to("nothing.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with socket.socket(socket.AF_UNIX) as made:
      made.bind(os.path.relpath(tmp_path / "socket.mp4"))  # an absolute name may be too long
    names = sorted(path.name for path in tmp_path.iterdir())
    names += [
      "http://127.0.0.1/a.mp4",
      "/dev/zero",
      "file:///dev/zero",
      "..",
      ".",
      "subfile,,start,0,end,0,,:/etc/passwd",
    ]
    video_io.write(tmp_path / "good.png", np.zeros((1, 8, 8, 3), np.uint8), 1)
    names.append("good.png")
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps({"file": n, "caption": "x"}) for n in names))
    source = FolderSource(tmp_path, max_frames=9)
    assert [source.where(k)[0] for k in range(len(source))] == ["good.png"]
    assert [each.file for each in source.dropped if each.line] == names[:-1]
    for name in names[:-1]:
      with pytest.raises(video_io.UnreadableFile):
        isolated.shared().probe(tmp_path / name)

  @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
  def test_a_file_that_may_not_be_read_is_dropped(self, tmp_path):
    lay_out(tmp_path, {"locked.mp4": (broken_files.whole()["mp4"], DROPPED)})
    (tmp_path / "locked.mp4").chmod(0)
    (dropped,) = FolderSource(tmp_path, max_frames=9).dropped
    assert (dropped.file, dropped.reason) == ("locked.mp4", "unreadable: Permission denied")

  def test_the_quarantine_lists_all_and_training_reads_the_rest_in_order(self, tmp_path):
    """Twenty bad files, some of which only a decoder finds out about."""
    kinds = dict(itertools.islice(broken_files.cut_files().items(), 1, 21))
    names = lay_out(tmp_path, kinds)
    source = open_source(section(tmp_path), 0)
    store = encode_source(PlainCodec(), source, tmp_path / "latents")
    lines = (tmp_path / "latents" / quarantine.FILE).read_text().splitlines()
    bad = [Dropped(**json.loads(line)) for line in lines]
    assert len(bad) >= 15 and all(names[each.line - 1] == each.file and each.reason for each in bad)
    assert sorted([*(each.file for each in bad), *map(store.id, range(len(store)))]) == sorted(names)
    kept = {store.id(index): index for index in range(len(store))}
    for number in range(GOOD):
      latent = store[kept[f"good_{number}.gif"]].latent_thwC
      assert np.abs((latent + 1) * 127.5 - good_frames(number)).max() <= 2
    good = [name for name in kept if name.startswith("good")]
    assert good == sorted(good)
    with pytest.raises(quarantine.TooManyBad, match=f"{len(bad)} of {len(names)} clips.*max_bad=0.25"):
      encode_source(PlainCodec(), source, tmp_path / "latents", max_bad=0.25)

  def test_the_command_names_each_and_succeeds(self, tmp_path):
    kinds = dict(itertools.islice(broken_files.foreign_files("/nowhere", "http://127.0.0.1:9").items(), 20))
    names = lay_out(tmp_path, kinds)
    done = sora("data", "check", tmp_path, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and found["kept"] == GOOD
    assert [each["file"] for each in found["dropped"]] == [name for name in names if name in kinds]
    assert all(f"dropped {name} (line {names.index(name) + 1}): unreadable: " in done.stderr for name in kinds)

  def test_a_run_on_a_folder_of_which_too_much_is_bad_ends_before_training(self, tmp_path, tiny_config):
    lay_out(tmp_path, broken_files.foreign_files("/nowhere", "http://127.0.0.1:9"))
    tiny_config.data.source = str(tmp_path)
    with pytest.raises(
      quarantine.TooManyBad, match=r"49 of 55 clips can't be used, .*max_bad=0.25 .*; sora data check"
    ):
      train.train(tiny_config, tmp_path / "w")
    assert not (tmp_path / "w" / "latents").exists() and not (tmp_path / "w" / "autoencoder").exists()
