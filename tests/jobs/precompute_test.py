"""Encoding a source: every clip once, again only when weights or clips change, bad files skipped and named."""

import json
import os
import pickle
import shutil
import types

import ml_collections
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from sora_jax.clips import Clip
from sora_jax.data import latents, quarantine
from sora_jax.data.files import Dropped
from sora_jax.data.folder import FolderSource
from sora_jax.data.loops import Loops, there_and_back
from sora_jax.data.sources import Mixture
from sora_jax.data.world_source import WorldSource
from sora_jax.inference.codec import Codec
from sora_jax.jobs import precompute
from sora_jax.jobs.precompute import Extras, encode_source
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.patches import Grid
from sora_jax.video import io as video_io
from sora_jax.video.io import UnreadableFile
from sora_jax.worlds.world import get_world

BEAM = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")


class FakeCodec:
  """Its latents are the frames times its one weight; it counts the clips it encodes."""

  def __init__(self, weight: float = 2.0):
    self.params = {"kernel": np.array([weight], np.float32)}
    self.encoded = 0

  def encode(self, frames_BTHWC):
    self.encoded += len(frames_BTHWC)
    return np.asarray(frames_BTHWC) * self.params["kernel"][0]


class DamagedSource(WorldSource):
  """A world of which some clips can't be read."""

  def __init__(self, *args, broken=(), **more):
    super().__init__(*args, **more)
    self.broken = broken

  def __getitem__(self, index: int) -> Clip:
    if index in self.broken:
      raise UnreadableFile(f"damaged-{index}")
    return super().__getitem__(index)


def rounded(values: np.ndarray) -> np.ndarray:
  """As bfloat16 keeps them."""
  return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def make_source(broken=(), seed=0) -> DamagedSource:
  return DamagedSource("shapes", 8, [(8, 8), (8, 12)], (1, 3), 8.0, seed, broken=broken)


def test_every_clip_is_there_with_its_size_rate_and_captions(tmp_path):
  source = make_source()
  store = encode_source(FakeCodec(), source, tmp_path)
  found = {store[i].id: store[i] for i in range(len(store))}
  captions = {store.id(i): store.captions(i) for i in range(len(store))}
  assert len(store) == len(found) == len(source)
  for index in range(len(source)):
    clip, entry = source[index], found[source[index].id]
    frames, height, width = source.shape(index)
    np.testing.assert_array_equal(entry.latent_thwC, rounded(clip.frames_THWC * 2))
    assert entry.size_4 == (frames / 8, height, width, 8.0)
    assert (entry.frames, captions[entry.id]) == (frames, source.captions(index))


def test_the_same_weights_and_clips_are_not_encoded_again(tmp_path):
  first = encode_source(FakeCodec(), make_source(), tmp_path)
  codec = FakeCodec()
  second = encode_source(codec, make_source(), tmp_path)
  assert codec.encoded == 0
  np.testing.assert_array_equal(first[3].latent_thwC, second[3].latent_thwC)


@pytest.mark.parametrize(("weight", "seed"), [(3.0, 0), (2.0, 1)], ids=["weights", "clips"])
def test_other_weights_or_clips_are_encoded(tmp_path, weight, seed):
  encode_source(FakeCodec(), make_source(), tmp_path)
  codec = FakeCodec(weight)
  store = encode_source(codec, make_source(seed=seed), tmp_path)
  assert codec.encoded == 8
  ids = [store[i].id for i in range(8)]
  source = make_source(seed=seed)
  np.testing.assert_array_equal(store[ids.index(source[5].id)].latent_thwC, rounded(source[5].frames_THWC * weight))


@pytest.mark.parametrize(
  ("field", "change"),
  [
    ("autoencoder", {"weight": 3.0}),
    ("clips", {"seed": 1}),
    ("clips", {"world": 2}),
    ("sizes, durations or rates", {"fps": 4.0}),
    ("format of latents", {"format": latents.LATENT_FORMAT + 1}),
  ],
)
def test_a_store_of_anything_else_is_not_used_and_the_field_is_named(tmp_path, monkeypatch, capsys, field, change):
  """F30: each field of the key."""
  encode_source(FakeCodec(), make_source(), tmp_path)
  monkeypatch.setattr(latents, "LATENT_FORMAT", change.get("format", latents.LATENT_FORMAT))
  monkeypatch.setattr(type(get_world("shapes")), "version", change.get("world", 1))
  source = DamagedSource("shapes", 8, [(8, 8), (8, 12)], (1, 3), change.get("fps", 8.0), change.get("seed", 0))
  codec = FakeCodec(change.get("weight", 2.0))
  encode_source(codec, source, tmp_path)
  assert codec.encoded == 8
  said = capsys.readouterr().err
  assert "encoding again: other " in said and field in said


def test_a_clip_that_can_t_be_read_is_left_out_and_named(tmp_path, capsys):
  source = make_source(broken=(1, 6))
  store = encode_source(FakeCodec(), source, tmp_path)
  assert {store[i].id for i in range(len(store))} == {source[i].id for i in range(8) if i not in (1, 6)}
  said = capsys.readouterr().err
  assert "skipped 2" in said and "damaged-1" in said and "damaged-6" in said


def test_bad_clips_are_listed_with_those_the_source_dropped(tmp_path):
  source = make_source(broken=(6,))
  source.dropped = [Dropped("lost.mp4", 4, "file missing")]
  encode_source(FakeCodec(), source, tmp_path, max_bad=0.25)
  lines = map(json.loads, (tmp_path / quarantine.FILE).read_text().splitlines())
  assert [Dropped(**line) for line in lines] == [
    Dropped("lost.mp4", 4, "file missing"),
    Dropped("shapes-0-6", 0, "unreadable: damaged-6"),
  ]


def test_more_bad_clips_than_the_limit_stop_the_run_and_leave_no_store(tmp_path):
  with pytest.raises(quarantine.TooManyBad, match="3 of 8"):
    encode_source(FakeCodec(), make_source(broken=(1, 2, 6)), tmp_path, max_bad=0.3)
  assert not (tmp_path / "index.json").exists() and (tmp_path / quarantine.FILE).exists()
  assert len(encode_source(FakeCodec(), make_source(broken=(1, 2, 6)), tmp_path, max_bad=0.5)) == 5


def test_pieces_for_conditions_are_encoded_as_clips_of_their_own(tmp_path):
  """Of two frames a latent frame: by a codec whose latents tell how a clip began."""

  class Causal(FakeCodec):
    config = types.SimpleNamespace(compression=(2, 1, 1))

    def encode(self, frames_BTHWC):
      started = np.asarray(frames_BTHWC)[:, :1] + 0 * np.asarray(frames_BTHWC)[:, ::2]
      return np.asarray(frames_BTHWC)[:, ::2] + 10 * started

  source, codec = WorldSource("shapes", 12, [(8, 12)], (1, 7, 6), 8.0, 0), Causal()
  store = encode_source(codec, source, tmp_path, extras=Extras(pieces=True))
  for number in range(12):
    clip = source[int(store.number_N[number])]
    spans, frames = store.pieces(number), len(clip.frames_THWC)
    assert [span.latent_frames for span in spans] == {1: [], 6: [1, 2, 1], 7: [1, 2, 1]}[frames]
    for which, span in enumerate(spans):
      piece = clip.frames_THWC[span.start : span.start + 2 * span.latent_frames - 1]
      np.testing.assert_array_equal(store.piece(number, which), rounded(codec.encode(piece[None])[0]))
    np.testing.assert_array_equal(store[number].latent_thwC, rounded(codec.encode(clip.frames_THWC[None])[0]))


def test_without_conditions_no_pieces_are_kept_and_asking_for_them_encodes_again(tmp_path, capfd):
  codec = FakeCodec()
  codec.config = types.SimpleNamespace(compression=(1, 1, 1))
  assert not any(map(encode_source(codec, make_source(), tmp_path).pieces, range(8)))
  whole = codec.encoded
  assert any(map(encode_source(codec, make_source(), tmp_path, extras=Extras(pieces=True)).pieces, range(8)))
  assert codec.encoded > 2 * whole and "pieces for conditions" in capfd.readouterr().err


def test_some_videos_are_loops_besides_and_share_their_captions(tmp_path, capfd):
  class Turning(FakeCodec):
    config = types.SimpleNamespace(compression=(1, 1, 1))

    def encode_loop(self, frames_BTHWC):
      return -np.asarray(frames_BTHWC)

  source, codec = WorldSource("shapes", 12, [(8, 12)], (1, 7), 8.0, 0), Turning()
  assert len(encode_source(codec, source, tmp_path)) == 12
  loops = Loops(1.0, Grid((1, 1, 1), (1, 4, 4)), 50)  # tokens: four frames there, four back
  store = encode_source(codec, source, tmp_path, extras=Extras(loops=loops))
  assert "encoding again: other loops" in capfd.readouterr().err
  assert store.loop_N.sum() == 6 and len(store) == 18
  for number in np.flatnonzero(store.loop_N).tolist():
    stored, clip = store[number], source[int(store.number_N[number])]
    assert stored.id == clip.id and stored.frames == 8 and stored.size_4 == (1.0, 8.0, 12.0, 8.0)
    turn = clip.frames_THWC[there_and_back(5)]
    np.testing.assert_array_equal(stored.latent_thwC, rounded(-turn))
    assert store.captions(number) == source.captions(int(store.number_N[number]))


def test_encoding_that_was_stopped_goes_on_with_what_is_missing(tmp_path, monkeypatch):
  monkeypatch.setattr(precompute, "UNIT_BYTES", 12 * 3 * 8 * 12)  # a clip of the largest shape

  class Stopped(FakeCodec):
    def encode(self, frames_BTHWC):
      if self.encoded == 4:
        raise KeyboardInterrupt
      return super().encode(frames_BTHWC)

  with pytest.raises(KeyboardInterrupt):
    encode_source(Stopped(), make_source(), tmp_path / "stopped")
  codec = FakeCodec()
  store = encode_source(codec, make_source(), tmp_path / "stopped")
  whole = encode_source(FakeCodec(), make_source(), tmp_path / "whole")
  assert 4 <= codec.encoded < 8
  assert_same_store(store, whole)


def test_a_mixture_s_clips_keep_their_component(tmp_path):
  source = Mixture([make_source(), make_source(seed=1)])
  store = encode_source(FakeCodec(), source, tmp_path)
  assert {(clip.id.split("-")[1], clip.component) for clip in clips_of(store)} == {("0", 0), ("1", 1)}


def test_a_whole_size_that_can_t_be_read_is_left_out(tmp_path):
  source = make_source(broken=(0, 4))
  assert len({source.shape(0), source.shape(4)}) == 1
  assert len(encode_source(FakeCodec(), source, tmp_path)) == 6


def test_nothing_readable_is_an_error_with_the_count(tmp_path):
  with pytest.raises(ValueError, match="8 clips.*damaged-0"):
    encode_source(FakeCodec(), make_source(broken=range(8)), tmp_path)


def assert_same_store(found, wanted):
  assert found.fingerprint == wanted.fingerprint and found.key == wanted.key
  for mine, its in zip(clips_of(found), clips_of(wanted), strict=True):
    np.testing.assert_array_equal(mine.latent_thwC, its.latent_thwC)
    assert mine[1:] == its[1:]


def clips_of(store):
  return [store[number] for number in range(len(store))]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"workers": 2}, {"beam": BEAM}], ids=["processes", "beam"])
def test_others_encode_the_same_from_where_the_weights_are(trained, tmp_path, how, monkeypatch):
  if "beam" in how:
    pytest.importorskip("apache_beam")
  # Several units, so that there is something to share; all are planned here, and done by others.
  monkeypatch.setattr(precompute, "UNIT_BYTES", 12 * 3 * 8 * 12 * 2)
  section = ml_collections.ConfigDict(json.loads((trained / "config.json").read_text())["autoencoder"])
  codec = Codec.load(trained / "autoencoder", section)
  wanted = encode_source(codec, make_source(), tmp_path / "here")
  assert len(set(wanted.unit_N.tolist())) > 1
  assert_same_store(encode_source(codec, make_source(), tmp_path / "there", **how), wanted)


def test_a_codec_that_was_not_loaded_can_t_be_sent(tiny_config):
  config = AutoencoderConfig.of(tiny_config.autoencoder)
  with pytest.raises(TypeError, match="loaded"):
    pickle.dumps(Codec(config, {}))


class Recaptioned(DamagedSource):
  """The same clips in other words."""

  def __init__(self, *args, word="", **more):
    super().__init__(*args, **more)
    self.word, self.captions_fingerprint = word, self.captions_fingerprint + word

  def captions(self, index):
    return {style: f"{self.word} {text}" for style, text in super().captions(index).items()}


def recaptioned(word: str) -> Recaptioned:
  return Recaptioned("shapes", 8, [(8, 8), (8, 12)], (1, 3), 8.0, 0, word=word)


def test_new_captions_are_written_beside_the_latents_and_nothing_is_encoded(tmp_path, capsys):
  first = encode_source(FakeCodec(), recaptioned("a"), tmp_path)
  before = first.fingerprint
  files = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
  codec, source = FakeCodec(), recaptioned("b")
  assert not capsys.readouterr().err.count("captions changed")
  second = encode_source(codec, source, tmp_path)
  assert "captions changed: written again; latents stay" in capsys.readouterr().err
  assert codec.encoded == 0 and {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == files
  ids = [source[index].id for index in range(8)]
  for number in range(8):
    assert second.captions(number) == source.captions(ids.index(second.id(number)))
  assert first.media_fingerprint == second.media_fingerprint and before != second.fingerprint
  encode_source(codec, source, tmp_path)
  assert codec.encoded == 0 and not capsys.readouterr().err


def test_another_version_of_the_package_encodes_nothing(tmp_path, monkeypatch, capsys):
  encode_source(FakeCodec(), make_source(), tmp_path)
  monkeypatch.setattr("sora_jax.__version__", "99.0")
  capsys.readouterr()
  codec = FakeCodec()
  encode_source(codec, make_source(), tmp_path)
  assert codec.encoded == 0 and not capsys.readouterr().err


def lay_out(folder, order=1, words="") -> FolderSource:
  """Pictures of one size and their captions, in one order or the other."""
  folder.mkdir(exist_ok=True)
  lines = []
  for number in range(6):
    if not (folder / f"{number}.png").exists():
      video_io.write(folder / f"{number}.png", np.full((1, 8, 8, 3), 40 * number, np.uint8), 1)
    lines.append(json.dumps({"file": f"{number}.png", "caption": f"number {number}{words}"}))
  (folder / "captions.jsonl").write_text("\n".join(lines[::order]))
  return FolderSource(folder, max_frames=1)


def test_captions_in_another_order_and_words_find_their_clips(tmp_path):
  encode_source(FakeCodec(), lay_out(tmp_path / "in"), tmp_path / "out")
  codec = FakeCodec()
  store = encode_source(codec, lay_out(tmp_path / "in", -1, " anew"), tmp_path / "out")
  assert codec.encoded == 0 and len(store) == 6
  for number in range(6):
    assert store.captions(number)["short"] == f"number {store.id(number)[0]} anew"


def test_encoding_that_was_stopped_goes_on_after_captions_were_sorted(tmp_path, monkeypatch):
  monkeypatch.setattr(precompute, "UNIT_BYTES", 12 * 8 * 8 * 2)

  class Stopped(FakeCodec):
    def encode(self, frames_BTHWC):
      if self.encoded == 2:
        raise KeyboardInterrupt
      return super().encode(frames_BTHWC)

  with pytest.raises(KeyboardInterrupt):
    encode_source(Stopped(), lay_out(tmp_path / "in"), tmp_path / "out")
  codec = FakeCodec()
  store = encode_source(codec, lay_out(tmp_path / "in", -1), tmp_path / "out")
  assert codec.encoded == 4 and sorted(map(store.id, range(6))) == [f"{number}.png" for number in range(6)]
  for clip in clips_of(store):
    assert clip.latent_thwC.flat[0] == pytest.approx(2 * (int(clip.id[0]) * 40 / 127.5 - 1), abs=0.02)


def test_a_picture_that_is_turned_by_one_byte_is_encoded_again(tmp_path, capsys):
  """Its size stays; its time of change is put back."""
  folder = tmp_path / "in"
  lay_out(folder)
  picture = Image.new("RGB", (12, 8), (200, 30, 30))
  exif = Image.Exif()
  exif[0x0112] = 1
  picture.save(folder / "0.jpg", exif=exif)
  (folder / "captions.jsonl").write_text(json.dumps({"file": "0.jpg", "caption": "red"}))
  opened = lambda: FolderSource(folder, max_frames=1)
  before = encode_source(FakeCodec(), opened(), tmp_path / "out")
  content, times = (folder / "0.jpg").read_bytes(), (folder / "0.jpg").stat()
  exif[0x0112] = 3  # upside down: the shape stays too
  picture.save(folder / "0.jpg", exif=exif)
  assert len((folder / "0.jpg").read_bytes()) == len(content) and (folder / "0.jpg").read_bytes() != content
  os.utime(folder / "0.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
  codec = FakeCodec()
  after = encode_source(codec, opened(), tmp_path / "out")
  assert codec.encoded == 1 and "encoding again: other clips\n" in capsys.readouterr().err
  assert before.key["clips"] != after.key["clips"]


def test_a_folder_that_is_copied_or_touched_is_not_encoded_again(tmp_path):
  lay_out(tmp_path / "in")
  encode_source(FakeCodec(), FolderSource(tmp_path / "in", max_frames=1), tmp_path / "out")
  shutil.copytree(tmp_path / "in", tmp_path / "copy", copy_function=shutil.copyfile)
  os.utime(tmp_path / "in" / "3.png")
  codec = FakeCodec()
  for name in ("in", "copy"):
    encode_source(codec, FolderSource(tmp_path / name, max_frames=1), tmp_path / "out")
  assert codec.encoded == 0


@pytest.mark.parametrize("clips", [3, 40])
def test_a_unit_is_bounded_in_bytes_of_pixels(monkeypatch, clips):
  source = DamagedSource("shapes", clips, [(8, 8), (16, 24)], (1, 9), 8.0, 0)
  monkeypatch.setattr(precompute, "UNIT_BYTES", 20_000)
  monkeypatch.setattr(precompute, "BATCH_BYTES", 9_000)
  units = precompute.plan_units(source)
  size = lambda indices: sum(12 * int(np.prod(source.shape(index))) for index in indices)
  assert sorted(index for unit in units for batch in unit for index in batch) == list(range(clips))
  for unit in units:
    each = [index for batch in unit for index in batch]
    assert size(each) <= 20_000 or len(each) == 1  # a clip that is larger by itself
    assert all(size(batch) <= 9_000 or len(batch) == 1 for batch in unit)
    assert all(len({source.shape(index) for index in batch}) == 1 for batch in unit)
  if clips == 40:
    assert max(size([index for batch in unit for index in batch]) for unit in units[:2]) > 12_000  # and well filled
