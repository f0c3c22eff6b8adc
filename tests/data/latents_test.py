"""The store of encoded clips: what goes in comes out, and it is made again when, and only when, its parts change."""

import numpy as np
import pytest

from sora_jax.data.latents import LatentClip, build, key_of

PARTS = {"autoencoder": "a", "source": "s"}


def clips(count: int = 3, seed: int = 0) -> list[LatentClip]:
  rng = np.random.default_rng(seed)
  return [
    LatentClip(
      rng.normal(size=(1 + i, 2, 3 + i, 4)).astype(np.float32),
      (0.5 + i, 8.0, 12.0 + i, 8.0),
      1 + 2 * i,
      {"short": f"clip {i}", "long": f"clip {i}, \N{FOX FACE}"},
      f"id-{i}",
    )
    for i in range(count)
  ]


def never():
  raise AssertionError("the store was made again")


def assert_holds(store, expected):
  assert len(store) == len(expected)
  for number, wanted in enumerate(expected):
    found = store[number]
    np.testing.assert_array_equal(found.latent_thwC, wanted.latent_thwC)
    assert found[1:] == wanted[1:]


def test_what_goes_in_comes_out(tmp_path):
  store = build(tmp_path / "store", PARTS, clips)
  assert_holds(store, clips())
  assert store.channels == 4


def test_the_same_parts_read_the_store_that_is_there(tmp_path):
  build(tmp_path, PARTS, clips)
  assert_holds(build(tmp_path, dict(reversed(PARTS.items())), never), clips())


@pytest.mark.parametrize("parts", [PARTS | {"source": "t"}, PARTS | {"more": "x"}, {"source": "s"}])
def test_other_parts_make_it_again(tmp_path, parts):
  build(tmp_path, PARTS, clips)
  assert_holds(build(tmp_path, parts, lambda: clips(2, seed=1)), clips(2, seed=1))
  assert_holds(build(tmp_path, parts, never), clips(2, seed=1))


def test_a_store_without_its_index_is_made_again(tmp_path):
  build(tmp_path, PARTS, clips)
  (tmp_path / "index.json").unlink()
  assert_holds(build(tmp_path, PARTS, lambda: clips(2, seed=1)), clips(2, seed=1))


def test_a_store_whose_making_was_stopped_is_not_read(tmp_path):
  build(tmp_path, PARTS, clips)

  def stopped():
    yield clips()[0]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    build(tmp_path, PARTS | {"source": "t"}, stopped)
  for parts in (PARTS | {"source": "t"}, PARTS):
    assert_holds(build(tmp_path, parts, lambda: clips(1)), clips(1))


def test_a_key_depends_on_every_part_and_not_on_their_order():
  assert key_of(PARTS) == key_of(dict(reversed(PARTS.items())))
  assert len({key_of(PARTS), key_of(PARTS | {"source": "t"}), key_of({"source": "s"})}) == 3
