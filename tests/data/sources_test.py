"""One interface over folders, records, data sets, worlds and mixtures of them: opened by name, they look alike."""

import json
import math
import pathlib
import pickle

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from etils.epath import backend

from sora_jax import clips
from sora_jax.data import records, tfds_worlds, world_source
from sora_jax.data.files import Dropped
from sora_jax.data.folder import FolderSource
from sora_jax.data.records import RecordSource
from sora_jax.data.sources import Mixture, component_of, open_native, open_source, small_frames
from sora_jax.data.tfds_source import TfdsSource
from sora_jax.data.world_source import WorldSource
from sora_jax.patches import Grid
from sora_jax.video import io as video_io
from sora_jax.video.io import UnreadableFile

PIXELS = Grid((1, 1, 1), (1, 1, 1))  # a token of each pixel


def section(**changes) -> ml_collections.ConfigDict:
  given = {"source": "worlds:shapes", "weights": (), "clips": 7, "sizes": ("20x12",), "frames": (1, 3)}
  given |= {"fps": 8.0, "max_frames": 4}
  return ml_collections.ConfigDict(given | changes)


def write_folder(root: pathlib.Path, count: int = 2) -> pathlib.Path:
  """Videos, and an image as the last of `count` files; then a line for a file that is not there."""
  root.mkdir()
  rng = np.random.default_rng(count)
  for k in range(count):
    frames = rng.integers(0, 256, (1 if k == count - 1 else 8 + k, 16 + 8 * k, 24, 3)).astype(np.uint8)
    video_io.write(root / f"{k}.{'png' if len(frames) == 1 else 'mp4'}", frames, 8)
  rows = [{"file": path.name, "caption": f"{root.name} {path.stem}."} for path in sorted(root.iterdir())]
  (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"file": "gone.mp4"}]))
  return root


def write_records(root: pathlib.Path, source: FolderSource) -> pathlib.Path:
  root.mkdir()
  made = []
  for index, entry in enumerate(source.entries):
    with source.open_file(index) as path:
      made.append(records.Record(entry.file, entry.captions, entry.probe, pathlib.Path(path).read_bytes()))
  records.finish(root, [records.write_shard(root / records.shard_name(0, 1), made)])
  return root


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, str]:
  """The name of a source of each kind."""
  root = tmp_path_factory.mktemp("sources")
  own = write_folder(root / "own")
  built = write_records(root / "built", FolderSource(own, max_frames=100))
  config = tfds_worlds.WorldConfig("four", "shapes", {"train": 4})
  builder = tfds.builder("sora_worlds", config=config, data_dir=root / "sets", file_format="array_record")
  builder.download_and_prepare()
  return {"folder": str(own), "records": str(built), "tfds": f"tfds:{builder.data_dir}", "world": "worlds:shapes"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


TYPES = {"folder": FolderSource, "records": RecordSource, "tfds": TfdsSource, "world": WorldSource}


class TestOpenSource:
  def test_a_world(self):
    source = open_source(section(), seed=5)
    assert len(source) == 7
    assert {source.shape(index) for index in range(7)} == {(1, 12, 20), (3, 12, 20)}
    assert source.fingerprint == WorldSource("shapes", 7, [(12, 20)], (1, 3), 8.0, 5).fingerprint

  def test_held_out_states_of_a_world(self):
    assert open_source(section(), 5, held_out=True).held_out

  def test_an_unknown_world_is_answered_with_the_nearest(self):
    with pytest.raises(ValueError, match="'shaped'.*'shapes'"):
      open_source(section(source="worlds:shaped"), 0)

  def test_a_folder(self, tmp_path: pathlib.Path):
    rng = np.random.default_rng(0)
    video_io.write(tmp_path / "a.mp4", rng.integers(0, 255, (8, 16, 24, 3), np.uint8), 8)
    video_io.write(tmp_path / "b.png", rng.integers(0, 255, (1, 40, 20, 3), np.uint8), 1)
    rows = [{"file": "a.mp4", "caption": "Snow."}, {"file": "b.png", "short": "Rain.", "long": "Rain falls."}]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(section(source=str(tmp_path), max_tokens=800), 0, PIXELS)
    cut = (4, *PIXELS.fit(4, 16, 24, 800))
    assert [source.shape(0), source.shape(1)] == [cut, (1, 40, 20)]  # cut to 4 frames, then fitted
    assert math.prod(cut) <= 800 < 4 * 16 * 24
    assert source.captions(1) == {"short": "Rain.", "long": "Rain falls."}
    for index in range(2):
      assert source[index].frames_THWC.shape == (*source.shape(index), 3)

  def test_a_missing_folder_is_named(self, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="nowhere"):
      open_source(section(source=str(tmp_path / "nowhere")), 0)

  def test_a_source_of_each_kind_keeps_its_promises(self, kinds):
    for kind, name in kinds.items():
      source = open_source(section(source=name, max_tokens=240), 0, PIXELS)
      assert type(source) is TYPES[kind] and len(source) > 1
      for index in range(len(source)):
        clip = source[index]
        assert clip.frames_THWC.shape == (*source.shape(index), 3) and source.shape(index)[0] <= 4
        assert source.shape(index)[1:] == (12, 20) if kind == "world" else math.prod(source.shape(index)) <= 240
        assert (clip.fps, clip.caption) == (source.fps(index), source.captions(index)["long"])
        assert clip.id == source.where(index)[0] and component_of(source, index) == 0

  def test_records_give_what_their_folder_gives(self, kinds):
    own, built = (open_source(section(source=kinds[kind]), 0) for kind in ("folder", "records"))
    for index in range(len(own)):
      np.testing.assert_array_equal(own[index].frames_THWC, built[index].frames_THWC)
    assert own.dropped == [Dropped("gone.mp4", 3, "file missing")] and built.dropped == ()

  def test_names_with_commas_between_them_are_a_mixture(self, kinds):
    weights = (3, 0.5, 1, 1)
    source = open_source(section(source=" , ".join(kinds.values()), weights=weights), seed=5)
    assert [type(part) for part in source.sources] == [TYPES[kind] for kind in kinds]
    assert source.sources[-1].seed == 5 and len(source) == sum(map(len, source.sources))

  @pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (1, 0), (1, -1), (1, math.nan), (1, math.inf)], ids=str)
  def test_weights_that_do_not_fit_are_told(self, kinds, weights):
    with pytest.raises(ValueError, match=r"config.data.weights=\(1.*one above 0 for each of the 2 sources"):
      open_source(section(source=f"{kinds['folder']},worlds:shapes", weights=weights), 0)

  @pytest.mark.parametrize("name", ["", " ", ",", "worlds:shapes,", "worlds:shapes,,worlds:uniform"])
  def test_an_empty_name_is_not_this_folder(self, name):
    with pytest.raises(ValueError, match="config.data.source=.*a source without a name"):
      open_source(section(source=name), 0)

  @pytest.mark.parametrize("name", ["http://host/data", "file:///data", "world://shapes"])
  def test_an_address_of_an_unknown_kind_is_told_with_those_that_are_known(self, name):
    with pytest.raises(ValueError, match=f"^{name}: not a kind of address that is known: gs://"):
      open_source(section(source=name), 0)

  def test_a_bucket_whose_client_is_not_installed_says_which_is_needed(self, monkeypatch):
    def no_client(name: str):
      raise ImportError(f"Please install the client of {name}")

    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", no_client)
    with pytest.raises(ValueError, match=r"^gs://bucket/data: Please install the client of gcs$"):
      open_source(section(source="gs://bucket/data"), 0)

  def test_a_data_set_that_is_not_there_is_named(self):
    with pytest.raises(ValueError, match="tfds:no_such_set"):
      open_source(section(source="tfds:no_such_set@test"), 0)


class TestOpenNative:
  def test_clips_have_their_own_size_rate_and_length(self, kinds):
    for kind in ("folder", "records"):
      source = open_native(kinds[kind])
      assert type(source) is TYPES[kind]
      assert [source.shape(index) for index in range(2)] == [(8, 16, 24), (1, 24, 24)] and source.fps(0) == 8
    rendered, stored = open_native(kinds["world"]), open_native(kinds["tfds"])
    assert (len(rendered), len(stored)) == (world_source.CLIPS, 4)
    for index in range(4):
      assert stored.shape(index) == rendered.shape(index) and stored.captions(index) == rendered.captions(index)

  def test_an_unknown_world_is_answered_with_the_nearest(self):
    with pytest.raises(ValueError, match="'shaped'.*'shapes'"):
      open_native("worlds:shaped")


class TestMixture:
  def parts(self, tmp_path: pathlib.Path) -> list:
    own = FolderSource(write_folder(tmp_path / "own"), fps=4.0, max_frames=3)
    other = FolderSource(write_folder(tmp_path / "other", 3), fps=8.0, max_frames=9)
    return [own, WorldSource("shapes", 3, [(12, 20)], (1, 3), 8.0, 5), other]

  def test_the_clips_of_its_sources_come_one_source_after_another(self, tmp_path):
    parts = self.parts(tmp_path)
    mixture = Mixture(parts)
    wanted = [(part, source, place) for part, source in enumerate(parts) for place in range(len(source))]
    assert len(mixture) == len(wanted) == 8
    for index, (part, source, place) in enumerate(wanted):
      assert component_of(mixture, index) == mixture.component(index) == part
      assert mixture.shape(index) == source.shape(place) and mixture.fps(index) == source.fps(place)
      assert mixture.captions(index) == source.captions(place) and mixture.where(index) == source.where(place)
      found, clip = mixture[index], source[place]
      assert (found.id, found.fps, found.caption) == (clip.id, clip.fps, clip.caption)
      np.testing.assert_array_equal(found.frames_THWC, clip.frames_THWC)
    for index in (8, -1):
      for ask in (mixture.__getitem__, mixture.shape, mixture.fps, mixture.captions, mixture.where):
        with pytest.raises(IndexError):
          ask(index)

  def test_what_its_sources_dropped_is_dropped(self, tmp_path):
    assert Mixture(self.parts(tmp_path)).dropped == [Dropped("gone.mp4", line, "file missing") for line in (3, 4)]

  def test_the_fingerprint_is_of_all_its_sources_in_order(self, tmp_path):
    parts = self.parts(tmp_path)
    first, again = Mixture(parts).fingerprint, Mixture(list(parts)).fingerprint
    others = [Mixture(parts[:2]).fingerprint, Mixture(parts[::-1]).fingerprint, parts[0].fingerprint]
    assert first == again and len({first, *others}) == 4

  def test_it_can_be_sent_to_another_process(self, kinds):
    mixture = open_source(section(source=",".join(kinds.values())), 0)
    sent = pickle.loads(pickle.dumps(mixture))
    assert sent.fingerprint == mixture.fingerprint and len(sent) == len(mixture)
    for index in (0, 3, 5, len(mixture) - 1):
      np.testing.assert_array_equal(sent[index].frames_THWC, mixture[index].frames_THWC)


class TestSmallFrames:
  def test_a_clip_of_any_kind_is_scaled_to_the_longer_side_and_cut(self, kinds):
    for name in kinds.values():
      source = open_native(name)
      for index in range(2):
        count, height, width = source.shape(index)
        for side, most in ((12, 100), (1000, 3), (1, 1)):
          found = small_frames(source, index, side, most)
          scale = min(side / max(height, width), 1)
          assert found.shape == (min(count, most), max(round(height * scale), 1), max(round(width * scale), 1), 3)
          assert found.dtype == np.uint8

  def test_a_clip_that_is_small_enough_is_as_it_is(self, kinds):
    for name in kinds.values():
      source = open_native(name)
      np.testing.assert_array_equal(small_frames(source, 0, 1000, 1000), clips.to_uint8(source[0].frames_THWC))

  def test_pictures_are_those_of_the_clip_only_smaller(self, kinds):
    source = open_native(kinds["world"])
    found = small_frames(source, 3, 32, 5)
    whole = clips.to_uint8(source[3].frames_THWC[:5])
    np.testing.assert_array_equal(found, [video_io.resize(frame, (32, 32)) for frame in whole])

  def test_what_does_not_decode_or_gives_too_little_is_unreadable(self, tmp_path):
    root = write_folder(tmp_path / "own")
    source = open_native(str(root))
    video_io.write(root / "0.mp4", np.zeros((5, 16, 24, 3), np.uint8), 8)
    with pytest.raises(UnreadableFile, match="^gives 5 frames where 8 were promised$"):
      small_frames(source, 0, 64, 100)
    assert len(small_frames(source, 0, 64, 7)) == 5
    (root / "0.mp4").write_bytes(b"torn")
    with pytest.raises(UnreadableFile, match="^not one of mp4"):
      small_frames(source, 0, 64, 100)

  def test_a_file_that_can_not_be_had_is_unreadable(self, kinds, monkeypatch):
    source = open_native(kinds["folder"])
    with monkeypatch.context() as patched:
      patched.setattr("sora_jax.runtime.storage.local_file", lambda path: epath.Path("/no/such/file").open())
      with pytest.raises(UnreadableFile, match="^No such file or directory$"):
        small_frames(source, 0, 64, 100)
    for index in (2, 100):
      with pytest.raises(IndexError):
        small_frames(source, index, 64, 100)
