"""Encoding a source: every clip once, again only when weights or clips change, bad files skipped and named."""

import json
import pickle

import ml_collections
import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.data import quarantine
from sora_jax.data.files import Dropped
from sora_jax.data.sources import Mixture
from sora_jax.data.world_source import WorldSource
from sora_jax.inference.codec import Codec
from sora_jax.jobs import precompute
from sora_jax.jobs.precompute import encode_source
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.video.io import UnreadableFile

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


def make_source(broken=(), seed=0) -> DamagedSource:
  return DamagedSource("shapes", 8, [(8, 8), (8, 12)], (1, 3), 8.0, seed, broken=broken)


def test_every_clip_is_there_with_its_size_rate_and_captions(tmp_path):
  source = make_source()
  store = encode_source(FakeCodec(), source, tmp_path)
  found = {store[i].id: store[i] for i in range(len(store))}
  assert len(store) == len(found) == len(source)
  for index in range(len(source)):
    clip, entry = source[index], found[source[index].id]
    frames, height, width = source.shape(index)
    np.testing.assert_array_equal(entry.latent_thwC, clip.frames_THWC * 2)
    assert entry.size_4 == (frames / 8, height, width, 8.0)
    assert (entry.frames, entry.captions) == (frames, source.captions(index))


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
  np.testing.assert_array_equal(store[ids.index(source[5].id)].latent_thwC, source[5].frames_THWC * weight)


@pytest.mark.parametrize(
  ("field", "change"),
  [
    ("autoencoder", {"weight": 3.0}),
    ("clips or captions", {"seed": 1}),
    ("sizes, durations or rates", {"fps": 4.0}),
    ("version of sora_jax", {"version": "0.0.1"}),
  ],
)
def test_a_store_of_anything_else_is_not_used_and_the_field_is_named(tmp_path, monkeypatch, capsys, field, change):
  """F30: each field of the key."""
  encode_source(FakeCodec(), make_source(), tmp_path)
  monkeypatch.setattr(precompute, "__version__", change.get("version", precompute.__version__))
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


def test_encoding_that_was_stopped_goes_on_with_what_is_missing(tmp_path, monkeypatch):
  monkeypatch.setattr(precompute, "BATCH", 1)
  monkeypatch.setattr(precompute, "UNIT", 3)

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
  assert codec.encoded == 5 and store.entries == whole.entries
  for number in range(8):
    np.testing.assert_array_equal(store[number].latent_thwC, whole[number].latent_thwC)


def test_a_mixture_s_clips_keep_their_part(tmp_path):
  source = Mixture([make_source(), make_source(seed=1)])
  store = encode_source(FakeCodec(), source, tmp_path)
  assert {(entry["id"].split("-")[1], entry["part"]) for entry in store.entries} == {("0", 0), ("1", 1)}


def test_a_whole_size_that_can_t_be_read_is_left_out(tmp_path):
  source = make_source(broken=(0, 4))
  assert len({source.shape(0), source.shape(4)}) == 1
  assert len(encode_source(FakeCodec(), source, tmp_path)) == 6


def test_nothing_readable_is_an_error_with_the_count(tmp_path):
  with pytest.raises(ValueError, match="8 clips.*damaged-0"):
    encode_source(FakeCodec(), make_source(broken=range(8)), tmp_path)


def assert_same_store(found, wanted):
  assert found.entries == wanted.entries and found.key == wanted.key
  for number in range(len(wanted)):
    np.testing.assert_array_equal(found[number].latent_thwC, wanted[number].latent_thwC)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"workers": 2}, {"beam": BEAM}], ids=["processes", "beam"])
def test_others_encode_the_same_from_where_the_weights_are(trained, tmp_path, how, monkeypatch):
  if "beam" in how:
    pytest.importorskip("apache_beam")
  # Two units, so that there is something to share; both are planned here, and done by others.
  monkeypatch.setattr(precompute, "UNIT", 4)
  section = ml_collections.ConfigDict(json.loads((trained / "config.json").read_text())["autoencoder"])
  codec = Codec.load(trained / "autoencoder", section)
  wanted = encode_source(codec, make_source(), tmp_path / "here")
  assert len({entry["unit"] for entry in wanted.entries}) == 2
  assert_same_store(encode_source(codec, make_source(), tmp_path / "there", **how), wanted)


def test_a_codec_that_was_not_loaded_can_t_be_sent(tiny_config):
  config = AutoencoderConfig.of(tiny_config.autoencoder)
  with pytest.raises(TypeError, match="loaded"):
    pickle.dumps(Codec(config, {}))
