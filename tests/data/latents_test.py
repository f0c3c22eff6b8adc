"""The store of encoded clips: what goes in comes out, and it is made again when, and only when, its makings change."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest

from sora_jax.data import latents
from sora_jax.data.captions import write_captions
from sora_jax.data.files import Dropped
from sora_jax.data.latents import LatentClip, LatentStore
from sora_jax.errors import SoraError

KEY = {"autoencoder": "a", "source": "s"}
BAD = Dropped("bad.mp4", 3, "unreadable: torn")


def clips(count: int = 3, seed: int = 0) -> list[LatentClip]:
  rng = np.random.default_rng(seed)
  return [
    LatentClip(
      rng.normal(size=(1 + i, 2, 3 + i, 4)).astype(np.float32),
      (0.5 + i, 8.0, 12.0 + i, 8.0),
      1 + 2 * i,
      f"id-{i}-\N{FOX FACE}",
      component=i % 2,
      number=7 * i,
    )
    for i in range(count)
  ]


def build(folder, key=KEY, seed=0) -> LatentStore:
  """Five clips in two units, the second with a bad one."""
  if not latents.begin(folder, key):
    for unit in latents.missing_units(folder, 2):
      latents.write_unit(folder, unit, clips(3 - unit, seed + unit), [BAD] * unit)
    latents.finish(folder, 2)
  return LatentStore(folder)


def rounded(latent: np.ndarray) -> np.ndarray:
  return latent.astype(ml_dtypes.bfloat16).astype(np.float32)


def assert_holds(store, seed=0):
  expected = [*clips(3, seed), *clips(2, seed + 1)]
  assert len(store) == len(expected)
  for number, wanted in enumerate(expected):
    found = store[number]
    assert found.latent_thwC.dtype == np.float32
    np.testing.assert_array_equal(found.latent_thwC, rounded(wanted.latent_thwC))
    assert found[1:] == wanted[1:] and store.id(number) == wanted.id


def test_what_goes_in_comes_out(tmp_path):
  store = build(tmp_path / "store")
  assert_holds(store)
  assert (store.channels, store.dropped, store.key) == (4, [BAD], KEY)


def test_the_same_key_reads_the_store_that_is_there(tmp_path):
  build(tmp_path)
  assert_holds(build(tmp_path, dict(reversed(KEY.items())), seed=9))


@pytest.mark.parametrize(
  ("key", "changed"),
  [(KEY | {"source": "t"}, "source"), (KEY | {"more": "x"}, "more"), ({"source": "s"}, "autoencoder")],
)
def test_another_key_makes_it_again_and_names_what_differs(tmp_path, capsys, key, changed):
  """F30."""
  build(tmp_path)
  assert_holds(build(tmp_path, key, seed=4), seed=4)
  assert f"encoding again: other {changed}\n" in capsys.readouterr().err
  assert_holds(build(tmp_path, key, seed=9), seed=4)
  assert not capsys.readouterr().err


def test_a_store_whose_making_was_stopped_goes_on_with_the_units_that_are_missing(tmp_path):
  assert not latents.begin(tmp_path, KEY)
  latents.write_unit(tmp_path, 1, clips(2, 1), [])

  def stopped():
    yield clips()[0]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    latents.write_unit(tmp_path, 0, stopped(), [])
  assert latents.missing_units(tmp_path, 2) == [0]
  assert_holds(build(tmp_path))
  assert latents.missing_units(tmp_path, 2) == []


def test_units_with_bad_clips_are_forgotten_and_others_kept(tmp_path):
  build(tmp_path)
  latents.forget_bad(tmp_path)
  assert latents.missing_units(tmp_path, 2) == [1]
  assert not latents.begin(tmp_path, KEY)
  assert_holds(build(tmp_path))


def test_a_digest_is_that_of_its_texts_in_order():
  assert latents.digest(["a", "b"]) == latents.digest(iter(["a", "b"]))
  assert len({latents.digest(texts) for texts in (["a", "b"], ["b", "a"], ["ab"], ["a,b"], [])}) == 5


def test_a_file_of_values_says_that_they_are_bfloat16(tmp_path):
  build(tmp_path)
  found = np.load(tmp_path / "unit-00000.npy", allow_pickle=False)
  assert found.dtype.names == ("bfloat16",) and found.dtype.itemsize == 2
  assert len(found) == sum(clip.latent_thwC.size for clip in clips())


def test_a_store_that_is_sent_to_another_process_maps_its_files_there(tmp_path):
  store = build(tmp_path)
  sent = pickle.dumps(store)
  assert len(sent) < 500
  assert_holds(pickle.loads(sent))


def test_the_index_is_mapped_and_not_read(tmp_path):
  store = build(tmp_path)
  for column in (store.unit_N, store.start_N, store.shape_N4, store.size_N4, store.frames_N, store.component_N):
    assert isinstance(column, np.memmap) and not column.flags.writeable


def test_units_of_another_division_make_a_store_of_the_same_clips(tmp_path):
  whole = build(tmp_path / "two")
  latents.begin(tmp_path / "one", KEY)
  latents.write_unit(tmp_path / "one", 0, [*clips(3, 0), *clips(2, 1)], [BAD])
  assert latents.finish(tmp_path / "one", 1).media_fingerprint == whole.media_fingerprint
  assert build(tmp_path / "other", seed=1).media_fingerprint == whole.media_fingerprint  # other values, the same clips


def test_captions_change_the_fingerprint_and_nothing_else(tmp_path):
  store = build(tmp_path)
  prints = []
  for word in ("red", "blue", "red"):
    write_captions(tmp_path, [{"short": f"{word} {i}", "long": f"a {word} ball {i}"} for i in range(5)], word)
    store = LatentStore(tmp_path)
    assert store.captions(3) == {"short": f"{word} 3", "long": f"a {word} ball 3"}
    assert_holds(store)
    prints.append(store.fingerprint)
  assert prints[0] == prints[2] != prints[1]


def damaged(folder, name: str, content: bytes) -> str:
  build(folder)
  (folder / name).write_bytes(content)
  with pytest.raises(SoraError) as caught:
    LatentStore(folder)
  message = str(caught.value)
  assert "\n" not in message and str(folder) in message
  return message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_damaged_index_is_one_line_that_says_what_to_do(tmp_path, content):
  assert "and the latents are made again" in damaged(tmp_path, "index.json", content)


@pytest.mark.parametrize("name", ["unit", "shape", "size", "id_end", "ids"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"nonsense" * 40])
def test_a_damaged_column_is_one_line_that_names_it(tmp_path, name, content):
  found = damaged(tmp_path, f"index/{name}.npy", content)
  assert f"{name}.npy" in found and "and the latents are made again" in found


def test_a_column_of_other_clips_or_of_pickles_is_refused(tmp_path):
  build(tmp_path)
  for values in (np.zeros(4, np.int32), np.zeros(5, np.int64), np.array([1, "x", None, 2, 3], object)):
    np.save(tmp_path / "index" / "frames.npy", values, allow_pickle=True)
    with pytest.raises(SoraError, match=r"frames.npy.*made again"):
      LatentStore(tmp_path)


def test_a_store_of_before_is_one_line(tmp_path):
  """An index as it was once: JSON of all clips."""
  old = json.dumps({"key": KEY, "clips": [{"unit": 0, "start": 0}], "dropped": []}).encode()
  assert "latents of an older version" in damaged(tmp_path, "index.json", old)
  newer = json.dumps({"format": latents.LATENT_FORMAT + 1}).encode()
  assert f"format {latents.LATENT_FORMAT + 1}" in damaged(tmp_path / "newer", "index.json", newer)


def test_a_store_that_is_not_complete_says_so(tmp_path):
  latents.begin(tmp_path, KEY)
  with pytest.raises(SoraError, match="not all of them"):
    LatentStore(tmp_path)
