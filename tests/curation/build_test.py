"""What a build keeps and drops, that the shards hold it, and that it is taken up again with the same bytes."""

import errno
import fractions
import json
import pathlib
import shutil

import av
import numpy as np
import pytest

from sora_jax import clips
from sora_jax.curation import build, scenes
from sora_jax.curation.build import Settings
from sora_jax.data import records
from sora_jax.data.folder import FolderSource
from sora_jax.data.records import RecordSource
from sora_jax.data.world_source import WorldSource
from sora_jax.runtime import work_units
from sora_jax.video import io as video_io
from sora_jax.video import isolated

FPS = 12.0
KEEP = Settings(min_side=24, min_motion=0.002, shard_clips=2)


def pan(seed: int, frames: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
  """uint8 (T, H, W, 3): soft shapes that slide."""
  coarse = np.random.default_rng(seed).integers(0, 256, (6, 14, 3)).astype(np.uint8)
  large = video_io.resize(coarse, (size[0], 3 * size[1]))
  return np.stack([large[:, 2 * t : 2 * t + size[1]] for t in range(frames)])


def write_captions(folder: pathlib.Path) -> None:
  """One line a file, by name; the caption tells the name."""
  files = sorted(path.name for path in folder.iterdir() if path.suffix != ".jsonl")
  lines = [{"file": name, "short": f"Short of {name}.", "long": f"Long of {name}."} for name in files]
  (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def damage(path: pathlib.Path) -> None:
  """Leaves the index and the first frames of a video."""
  content = bytearray(path.read_bytes())
  begin = content.index(b"mdat") + 4
  end = content.index(b"moov", begin) - 4
  content[begin + (end - begin) // 3 : end] = bytes(end - begin - (end - begin) // 3)
  path.write_bytes(content)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
  """A folder with something of everything; not to be changed."""
  folder = tmp_path_factory.mktemp("source") / "own"
  folder.mkdir()
  video_io.write(folder / "animated.gif", pan(1, 10), 10)
  video_io.write(folder / "broken.mp4", pan(2, 24), FPS)
  damage(folder / "broken.mp4")
  video_io.write(folder / "image.png", pan(3, 1, (60, 40)), 1)
  video_io.write(folder / "one.mp4", pan(4, 16), FPS)
  video_io.write(folder / "one-again.mp4", np.stack([video_io.resize(f, (96, 128)) for f in pan(4, 16)]), FPS)
  video_io.write(folder / "same-image.png", np.clip(pan(3, 1, (60, 40)).astype(int) + 6, 0, 255).astype(np.uint8), 1)
  video_io.write(folder / "short.mp4", pan(5, 3), FPS)
  video_io.write(folder / "still.mp4", np.repeat(pan(6, 1), 12, 0), FPS)
  video_io.write(folder / "three.mp4", np.concatenate([pan(7, 10), pan(8, 4), pan(9, 9)]), FPS)
  video_io.write(folder / "tiny.mp4", pan(10, 12, (20, 40)), FPS)
  write_captions(folder)
  video_io.write(folder / "unnamed.png", pan(11, 1), 1)
  return folder


def opened(folder: pathlib.Path) -> FolderSource:
  return FolderSource(folder, fps=0.0, max_frames=2**31)


def content(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder: pathlib.Path) -> RecordSource:
  return RecordSource(folder, fps=0.0, max_frames=2**31)


@pytest.fixture(scope="module")
def built(made, tmp_path_factory) -> pathlib.Path:
  """A build of `made` that nothing disturbed; not to be changed."""
  out = tmp_path_factory.mktemp("built") / "out"
  build.build(opened(made), out, KEEP)
  return out


KEPT = ["animated.gif", "image.png", "one-again.mp4", "three.mp4#0.000-0.833", "three.mp4#1.167-1.917"]


class TestKept:
  def test_what_is_kept_and_dropped_and_why(self, made, built):
    result = json.loads((built / "build.json").read_text())["result"]
    assert (result["clips"], result["kept"], result["shards"]) == (11, 5, 3)
    dropped = {each["file"]: each["reason"] for each in result["dropped"]}
    broken = dropped.pop("broken.mp4")
    assert broken.startswith("unreadable: gives ") and broken.endswith("frames where 24 were promised")
    assert dropped.pop("still.mp4").startswith("too little motion: 0.000")
    assert dropped == {
      "one.mp4": "repeats: one-again.mp4",
      "same-image.png": "repeats: image.png",
      "short.mp4": "too short: 0.25 s",
      "three.mp4#0.833-1.167": "too short: 0.33 s",
      "tiny.mp4": "too small: 40x20",
      "unnamed.png": "no caption",
    }
    lines = [json.loads(line)["file"] for line in (made / "captions.jsonl").read_text().splitlines()]
    for each in result["dropped"]:
      name = each["file"].partition("#")[0]
      assert each["line"] == (lines.index(name) + 1 if name in lines else 0)

  def test_the_shards_hold_it_with_its_captions(self, built):
    source = read(built)
    assert [source.where(index)[0] for index in range(len(source))] == KEPT
    for index, name in enumerate(KEPT):
      file = name.partition("#")[0]
      assert source.captions(index) == {"short": f"Short of {file}.", "long": f"Long of {file}."}
      assert source[index].frames_THWC.shape == (*source.shape(index), 3)
    assert sorted(path.name for path in built.iterdir()) == sorted(
      [*(records.shard_name(shard, 3) for shard in range(3)), "build.json", "index.jsonl", "records.json"]
    )

  def test_a_file_of_one_scene_is_copied(self, made, built):
    source = read(built)
    for name in KEPT[:3]:
      with source.open_file(KEPT.index(name)) as path:
        assert pathlib.Path(path).read_bytes() == (made / name).read_bytes()
      assert source.entries[KEPT.index(name)].probe == video_io.probe(made / name)

  def test_a_scene_has_the_frames_of_its_time(self, made, built):
    source = read(built)
    whole = video_io.read(made / "three.mp4", fps=FPS, max_frames=99)
    for index, (begin, end) in ((3, (0, 10)), (4, (14, 23))):
      assert source.fps(index) == FPS
      frames_THWC = clips.to_uint8(source[index].frames_THWC)
      assert frames_THWC.shape == whole[begin:end].shape
      assert np.abs(frames_THWC.astype(int) - whole[begin:end]).mean((1, 2, 3)).max() < 3
      with source.open_file(index) as path:
        assert video_io.probe(path) == source.entries[index].probe

  def test_settings_that_keep_all(self, made, tmp_path: pathlib.Path):
    settings = Settings(min_seconds=0.0, dedup=False, cut=False)
    result = build.build(opened(made), tmp_path / "out", settings)
    assert (result["kept"], result["shards"]) == (9, 1)
    assert {each["file"] for each in result["dropped"]} == {"broken.mp4", "unnamed.png"}
    assert "three.mp4" in [read(tmp_path / "out").where(index)[0] for index in range(9)]

  def test_nothing_to_keep(self, made, tmp_path: pathlib.Path):
    for _ in range(2):
      with pytest.raises(ValueError, match=r"nothing of 10 clips is kept: 1\d dropped \(.*8 too short|too small"):
        build.build(opened(made), tmp_path / "out", Settings(min_side=9999))
    assert not records.is_records(tmp_path / "out")


class TestOtherSources:
  def test_a_world_is_kept_to_the_bit(self, tmp_path: pathlib.Path):
    source = WorldSource("shapes", 8, ((24, 24), (32, 20)), (1, 6), 8.0, seed=0)
    build.build(source, tmp_path / "out", Settings(shard_clips=3))
    kept = read(tmp_path / "out")
    assert [kept.where(index)[0] for index in range(len(kept))] == [source.where(index)[0] for index in range(8)]
    for index in range(8):
      np.testing.assert_array_equal(clips.to_uint8(kept[index].frames_THWC), clips.to_uint8(source[index].frames_THWC))
      assert kept.shape(index) == source.shape(index) and kept.captions(index) == source.captions(index)

  def test_a_build_of_a_build_is_the_same_clips(self, built, tmp_path: pathlib.Path):
    result = build.build(read(built), tmp_path / "out", KEEP)
    assert result["dropped"] == [] and result["kept"] == 5
    index = (tmp_path / "out" / "index.jsonl").read_bytes()
    assert index == (built / "index.jsonl").read_bytes()


def variable_rate(path: pathlib.Path, parts: list[tuple[np.ndarray, list[int]]]) -> None:
  """A video whose frames are shown from these milliseconds on, sorted."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "9"})
    stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for frames_THWC, timestamps in parts:
      for pixels, timestamp in zip(frames_THWC, timestamps, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = timestamp, fractions.Fraction(1, 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


class TestTimes:
  @pytest.mark.parametrize("seed", range(2))
  @pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
  def test_no_frame_of_another_scene_leaks_in_at_a_variable_rate(self, tmp_path: pathlib.Path, seed: int, name: str):
    """Scenes of one colour each, with frames from 15 to 150 ms long, past where reading begins to seek."""
    rng = np.random.default_rng(seed)
    counts = [40, 25, 30, 18]
    timestamps = np.cumsum(rng.integers(15, 150, sum(counts))) - 15
    parts, at = [], 0
    for scene, count in enumerate(counts):
      frames_THWC = pan(seed * 9 + scene, count) // 3
      frames_THWC[..., scene % 3] += 150
      parts.append((frames_THWC, timestamps[at : at + count].tolist()))
      at += count
    folder = tmp_path / "own"
    folder.mkdir()
    variable_rate(folder / name, parts)
    write_captions(folder)
    source = opened(folder)
    result = build.build(source, tmp_path / "out", Settings(min_seconds=0.0))
    kept = read(tmp_path / "out")
    assert (result["kept"], result["dropped"]) == (4, [])
    whole = video_io.read(folder / name, fps=source.fps(0), max_frames=9999)
    begin = 0
    for scene in range(4):
      frames_THWC = clips.to_uint8(kept[scene].frames_THWC)
      assert (frames_THWC.mean((1, 2)).argmax(1) == scene % 3).all()
      end = begin + len(frames_THWC)
      assert np.abs(frames_THWC.astype(int) - whole[begin:end]).mean((1, 2, 3)).max() < 3
      begin = end
    assert begin == len(whole)

  @pytest.mark.parametrize("piece", [1, 7, 64])
  def test_pieces_of_any_length_give_the_same_scenes(self, made, piece: int, monkeypatch):
    source = opened(made)
    names = [source.where(clip)[0] for clip in range(len(source))]
    for name in ("three.mp4", "animated.gif", "image.png"):
      monkeypatch.setattr(build, "PIECE", 512)
      expected = list(build._scenes(source, names.index(name), KEEP))
      monkeypatch.setattr(build, "PIECE", piece)
      found = list(build._scenes(source, names.index(name), KEEP))
      assert [scene for scene, _ in found] == [scene for scene, _ in expected]
      for (_, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)

  def test_the_second_pass_reads_in_pieces_too(self, made, built, tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(build, "PIECE", 3)
    build.build(opened(made), tmp_path / "out", KEEP)
    # build.json tells how many frames of the broken file decode, which depends on where reading begins.
    assert {**content(tmp_path / "out"), "build.json": b""} == {**content(built), "build.json": b""}

  def test_a_scene_too_long_for_memory_is_cut(self, made, tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(build, "SCENE_BYTES", 48 * 64 * 3 * 6)
    build.build(opened(made), tmp_path / "out", Settings(min_seconds=0.3))
    kept = read(tmp_path / "out")
    names = [kept.where(index)[0] for index in range(len(kept))]
    parts = [(0, 5), (5, 10), (10, 14), (14, 18), (18, 23)]
    assert [name for name in names if "#" in name] == [f"three.mp4#{b / 12:.3f}-{e / 12:.3f}" for b, e in parts]
    whole = video_io.read(made / "three.mp4", fps=FPS, max_frames=99)
    for begin, end in parts:
      frames_THWC = clips.to_uint8(kept[names.index(f"three.mp4#{begin / 12:.3f}-{end / 12:.3f}")].frames_THWC)
      assert np.abs(frames_THWC.astype(int) - whole[begin:end]).mean() < 3

  def test_units_cover_every_clip_once_and_hold_few_long_ones(self, monkeypatch):
    class Lengths:
      def __init__(self, lengths: list[int]):
        self.lengths = lengths

      def __len__(self) -> int:
        return len(self.lengths)

      def shape(self, index: int) -> tuple[int, int, int]:
        return self.lengths[index], 8, 8

    monkeypatch.setattr(build, "UNIT_FRAMES", 100)
    for lengths, firsts in (([1] * 70, [0, 32, 64]), ([60, 60, 200, 1, 1], [0, 2, 3]), ([], []), ([500], [0])):
      source = Lengths(lengths)
      assert build._firsts(source) == firsts
      covered = [clip for first in firsts for clip in range(first, build._end(source, first))]
      assert covered == list(range(len(lengths)))


class TestTakenUp:
  def test_two_workers_give_the_same_bytes(self, made, built, tmp_path: pathlib.Path):
    build.build(opened(made), tmp_path / "out", KEEP, workers=2)
    assert content(tmp_path / "out") == content(built)

  def test_a_finished_build_is_not_done_again(self, made, built, tmp_path: pathlib.Path, monkeypatch):
    shutil.copytree(built, tmp_path / "out")
    (tmp_path / "out" / "work").mkdir()  # it was killed just before these went
    (tmp_path / "out" / "build.json.0.part").write_text("{")
    monkeypatch.setattr(work_units, "run", lambda *_: pytest.fail("work was done"))
    result = build.build(opened(made), tmp_path / "out", KEEP)
    assert result == json.loads((built / "build.json").read_text())["result"]
    assert content(tmp_path / "out") == content(built) and not (tmp_path / "out" / "work").exists()

  @pytest.mark.parametrize(
    ("other", "named"),
    [
      ({"min_seconds": 0.6}, r"another min_seconds \(0.5, not 0.6\)"),
      ({"dedup": False}, r"another dedup \(True, not False\)"),
      ({"shard_clips": 3}, r"another shard_clips \(2, not 3\)"),
    ],
  )
  @pytest.mark.parametrize("finished", [True, False])
  def test_other_settings_are_refused(
    self, made, built, tmp_path: pathlib.Path, other: dict, named: str, finished: bool
  ):
    shutil.copytree(built, tmp_path / "out")
    if not finished:
      begun = json.loads((built / "build.json").read_text())
      (tmp_path / "out" / "build.json").write_text(json.dumps({"key": begun["key"]}))
    before = content(tmp_path / "out")
    settings = Settings(**(vars(KEEP) | other))
    with pytest.raises(ValueError, match=named + ": use another --out"):
      build.build(opened(made), tmp_path / "out", settings)
    assert content(tmp_path / "out") == before

  def test_a_source_that_changed_is_refused(self, made, tmp_path: pathlib.Path, monkeypatch):
    shutil.copytree(made, tmp_path / "own")
    monkeypatch.setattr(records, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
      build.build(opened(tmp_path / "own"), tmp_path / "out", KEEP)
    monkeypatch.undo()
    video_io.write(tmp_path / "own" / "image.png", pan(99, 1), 1)
    with pytest.raises(ValueError, match=r"holds a build with another source \('\w{64}', not '\w{64}'\)"):
      build.build(opened(tmp_path / "own"), tmp_path / "out", KEEP)

  @pytest.mark.parametrize("name", ["notes.txt", "records.json", "work"])
  def test_a_folder_with_something_else_is_refused(self, made, tmp_path: pathlib.Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no build: use another --out"):
      build.build(opened(made), tmp_path, KEEP)
    assert content(tmp_path) == {name: b"mine"}

  @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 3}', '{"key": {"source": "x"}}'])
  def test_a_foreign_build_file_is_refused(self, made, tmp_path: pathlib.Path, text: str):
    (tmp_path / "build.json").write_text(text)
    with pytest.raises(ValueError, match="build.json is not of a build: use another --out"):
      build.build(opened(made), tmp_path, KEEP)
    assert content(tmp_path) == {"build.json": text.encode()}

  @pytest.mark.parametrize(
    ("file", "workers"),
    [("three.mp4", 0), ("image.png", 0), pytest.param("three.mp4", 2, marks=pytest.mark.slow)],
  )
  def test_a_file_that_is_gone_in_the_second_pass(self, made, built, tmp_path: pathlib.Path, file: str, workers: int):
    """The error names it in one line; when it is back, the build ends as if nothing had been."""
    shutil.copytree(made, tmp_path / "own")
    source = opened(tmp_path / "own")
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(build, "_choose", choose_after(lambda: (tmp_path / "own" / file).unlink()))
      with pytest.raises(video_io.UnreadableFile) as caught:
        build.build(source, tmp_path / "out", KEEP, workers)
    assert str(caught.value) == f"{file}: was looked at before, and now: No such file or directory"
    assert not records.is_records(tmp_path / "out")
    shutil.copy(made / file, tmp_path / "own" / file)
    build.build(source, tmp_path / "out", KEEP, workers)
    assert {**content(tmp_path / "out"), "build.json": b""} == {**content(built), "build.json": b""}

  def test_a_file_that_is_gone_in_the_first_pass_is_dropped(self, made, tmp_path: pathlib.Path):
    shutil.copytree(made, tmp_path / "own")
    source = opened(tmp_path / "own")
    (tmp_path / "own" / "one.mp4").unlink()
    dropped = {each["file"]: each["reason"] for each in build.build(source, tmp_path / "out", KEEP)["dropped"]}
    assert dropped["one.mp4"] == "unreadable: No such file or directory"

  def test_a_full_disk_ends_the_build_and_drops_nothing(self, made, built, tmp_path: pathlib.Path, monkeypatch):
    def open_file(*_):
      raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FolderSource, "open_file", open_file)
    with pytest.raises(OSError, match="No space left"):
      build.build(opened(made), tmp_path / "out", KEEP)
    monkeypatch.undo()
    build.build(opened(made), tmp_path / "out", KEEP)
    assert content(tmp_path / "out") == content(built)


def interrupt(*_) -> None:
  raise KeyboardInterrupt


def choose_after(change):
  original = build._choose

  def choose(*arguments):
    chosen = original(*arguments)
    change()
    return chosen

  return choose


@pytest.mark.slow
def test_real_videos(corpus, tmp_path: pathlib.Path):
  """The cuts of a montage, and the frames between them, from a file that is sought in."""
  folder = tmp_path / "own"
  folder.mkdir()
  for name in ("bbb_opening_30s.webm", "bbb_square_vp9.webm", "sim_acrobot_vfr.gif", "img_surfer_240x200.jpg"):
    shutil.copy(corpus / name, folder / name)
  write_captions(folder)
  build.build(opened(folder), tmp_path / "out", Settings(min_seconds=1.0))
  kept = read(tmp_path / "out")
  names = [kept.where(index)[0] for index in range(len(kept))]
  assert [name.partition("#")[0] for name in names].count("bbb_opening_30s.webm") == 4
  whole = isolated.shared().read(folder / "bbb_opening_30s.webm", fps=kept.fps(1), max_frames=720, size=(36, 64))
  for index, (begin, end) in enumerate([(0, 283), (283, 376), (376, 551), (551, 720)]):
    assert kept.shape(index) == (end - begin, 720, 1280)
    with kept.open_file(index) as path:
      frames_THWC = isolated.shared().read(path, fps=kept.fps(index), max_frames=999, size=(36, 64))
    assert np.abs(frames_THWC.astype(int) - whole[begin:end]).mean((1, 2, 3)).max() < 3
    assert scenes.scene_starts(frames_THWC) == [0]
