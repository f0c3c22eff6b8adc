"""The store of encoded clips: what goes in comes out, and it is made again when, and only when, its parts change."""

import numpy as np
import pytest

from sora_jax.data import latents
from sora_jax.data.files import Dropped
from sora_jax.data.latents import LatentClip, LatentStore

KEY = {"autoencoder": "a", "source": "s"}
BAD = Dropped("bad.mp4", 3, "unreadable: torn")


def clips(count: int = 3, seed: int = 0) -> list[LatentClip]:
  rng = np.random.default_rng(seed)
  return [
    LatentClip(
      rng.normal(size=(1 + i, 2, 3 + i, 4)).astype(np.float32),
      (0.5 + i, 8.0, 12.0 + i, 8.0),
      1 + 2 * i,
      {"short": f"clip {i}", "long": f"clip {i}, \N{FOX FACE}"},
      f"id-{i}",
      part=i % 2,
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


def assert_holds(store, seed=0):
  expected = [*clips(3, seed), *clips(2, seed + 1)]
  assert len(store) == len(expected)
  for number, wanted in enumerate(expected):
    found = store[number]
    np.testing.assert_array_equal(found.latent_thwC, wanted.latent_thwC)
    assert found[1:] == wanted[1:]


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
