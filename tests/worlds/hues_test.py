"""Saturated things on grey: shares, hues, tracks and figures."""

import numpy as np
import pytest

from sora_jax.worlds import hues, scene, shapes


def drawn(name: str, centre: tuple[float, float], radius: float, size: int = 48) -> np.ndarray:
  """Coverage of one figure in one frame, (1, H, W)."""
  rows, columns = scene.pixel_centres(size, size)
  distance = shapes.outline_distance(name, np.float32(radius), rows[:, None] - centre[0], columns[None] - centre[1])
  return scene.coverage(distance * size)[None]


@pytest.mark.parametrize("name", hues.HUES)
@pytest.mark.parametrize("grey", [-0.9, 0.0, 0.9])
def test_the_share_is_what_was_mixed_in_whatever_the_grey(name, grey):
  share = np.linspace(0, 1, 11, dtype=np.float32).reshape(1, 1, 11, 1)
  frames_THWC = grey + share * (np.asarray(hues.HUES[name], np.float32) - grey)
  found_NTHW = hues.shares(frames_THWC)
  own = list(hues.HUES).index(name)
  seen = share[0, 0, :, 0] > 0.26
  np.testing.assert_allclose(found_NTHW[own, 0, 0, seen], share[0, 0, seen, 0], atol=0.01)
  assert not np.delete(found_NTHW, own, axis=0).any() and not found_NTHW[own, 0, 0, :3].any()


def test_mass_and_track_of_a_disc():
  share_THW = drawn("circle", (0.4, 0.7), 0.15)
  assert hues.mass(share_THW)[0] == pytest.approx(np.pi * 0.15**2, rel=0.02)
  np.testing.assert_allclose(hues.track(share_THW, 0.3, 0.01), [[0.4, 0.7]], atol=0.01)
  assert np.isnan(hues.track(share_THW, 0.3, 0.2)).all()


@pytest.mark.parametrize("name", shapes.SHAPES)
@pytest.mark.parametrize("radius", [0.1, 0.16])
def test_a_figure_is_known_by_its_outline(name, radius):
  centre = (0.45, 0.52)
  share_THW = drawn(name, centre, radius)
  assert hues.figures(share_THW, np.array([centre]), (0.1, 0.16), shapes.SHAPES) == (name,)
  assert hues.figures(share_THW, np.array([[np.nan, np.nan]]), (0.1,), shapes.SHAPES) == ("none",)


def test_what_is_like_no_figure_is_none():
  line = np.zeros((1, 48, 48), np.float32)
  line[0, 24] = 1.0
  assert hues.figures(line, np.array([[0.5, 0.5]]), (0.1,), shapes.SHAPES) == ("none",)


def test_clean_takes_what_is_no_number():
  np.testing.assert_array_equal(hues.clean(np.array([np.nan, np.inf, -7.0])), np.array([0, 1, -1], np.float32))
