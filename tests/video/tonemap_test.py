"""HDR to SDR: published values of the curves, greys stay grey, order is kept, mid-tones keep their light."""

import numpy as np
import pytest

from sora_jax.video import tonemap


@pytest.mark.parametrize(
  ("signal", "light"), [(0.0, 0.0), (0.5081, 100.0), (0.5807, 203.0), (0.7518, 1000.0), (1.0, 10_000.0)]
)
def test_pq_has_the_published_values(signal, light):
  """BT.2408-7, table 1 and BT.2100-2."""
  assert float(tonemap.pq_to_light(np.array(signal))) == pytest.approx(light, rel=2e-3, abs=1e-6)
  if light:
    assert float(tonemap.light_to_pq(light)) == pytest.approx(signal, abs=2e-4)


def test_hlg_has_the_published_values():
  """75 % of the signal is reference white, 203 cd/m2 on a screen of 1,000 (BT.2408-7, table 1)."""
  scene = tonemap.hlg_to_scene(np.array([0.0, 0.5, 0.75, 1.0]))
  np.testing.assert_allclose(scene, [0.0, 1 / 12, 0.265, 1.0], atol=1e-3)
  assert 1000 * scene[2] ** 1.2 == pytest.approx(203, rel=0.01)


def test_light_is_kept_up_to_the_knee_and_rolls_off_to_white():
  light = np.geomspace(0.1, 1000, 400)
  found = tonemap.roll_off(light)
  assert (np.diff(found) > 0).all() and found[-1] == pytest.approx(tonemap.WHITE, rel=1e-3)
  np.testing.assert_allclose(found[light < 80], light[light < 80], rtol=1e-6)
  assert float(tonemap.roll_off(5000.0)) == pytest.approx(tonemap.WHITE, rel=1e-3)


@pytest.mark.parametrize("transfer", [tonemap.PQ, tonemap.HLG])
def test_greys_stay_grey_and_in_order(transfer):
  ramp = np.broadcast_to(np.linspace(0, 65535, 300).astype(np.uint16)[None, :, None], (1, 300, 3))
  found = tonemap.to_sdr(ramp, transfer)
  assert found.dtype == np.uint8 and found.shape == ramp.shape
  assert int(found.max(-1).astype(int).__sub__(found.min(-1)).max()) <= 1
  assert (np.diff(found[0, :, 0].astype(int)) >= 0).all()
  assert found[0, 0, 0] == 0 and found[0, -1, 0] == 255


def test_a_middle_grey_of_a_pq_master_is_that_of_sdr():
  """50 cd/m2 of a white of 203 is what an SDR screen of that white shows for (50 / 203)^(1 / 2.4)."""
  signal = np.full((2, 2, 3), round(float(tonemap.light_to_pq(50.0)) * 65535), np.uint16)
  assert int(tonemap.to_sdr(signal, tonemap.PQ)[0, 0, 0]) == round(255 * (50 / 203) ** (1 / 2.4))


def test_a_bt709_red_comes_back_red():
  """The BT.2020 mixture that makes BT.709 red has no green or blue left after the change of primaries."""
  mixture = np.linalg.inv(tonemap._TO_709) @ np.array([60.0, 0.0, 0.0])
  signal = np.rint(tonemap.light_to_pq(np.maximum(mixture, 0)) * 65535).astype(np.uint16).reshape(1, 1, 3)
  red, green, blue = map(int, tonemap.to_sdr(signal, tonemap.PQ)[0, 0])
  assert red == pytest.approx(255 * (60 / 203) ** (1 / 2.4), abs=2) and max(green, blue) < 40


@pytest.mark.parametrize("primary", range(3))
def test_a_colour_outside_bt709_keeps_its_luminance_and_hue(primary):
  """A primary of BT.2020 at 60 cd/m2, mixed with grey of its luminance: some channel is 0, none was cut off."""
  light = np.zeros(3)
  light[primary] = 60.0
  signal = np.rint(tonemap.light_to_pq(light) * 65535).astype(np.uint16).reshape(1, 1, 3)
  shown = 203 * (tonemap.to_sdr(signal, tonemap.PQ)[0, 0] / 255.0) ** 2.4
  luminance = [0.2627, 0.6780, 0.0593][primary] * 60
  assert shown @ [0.2126, 0.7152, 0.0722] == pytest.approx(luminance, rel=0.03)
  assert shown.argmax() == primary and shown.min() < 0.05
  wide = tonemap._TO_709 @ light
  off_grey, wanted = shown - luminance, wide - luminance
  assert off_grey @ wanted / np.linalg.norm(off_grey) / np.linalg.norm(wanted) > 0.999


def test_what_is_beyond_the_peak_is_clipped_before_colours_are_mixed():
  """A screen of 1,000 cd/m2 shows 4,000 as 1,000, and with it the colours of 1,000."""
  signals = [[4000.0, 1000.0, 500.0], [1000.0, 1000.0, 500.0], [10_000.0, 10_000.0, 10_000.0]]
  found = tonemap.to_sdr(np.rint(tonemap.light_to_pq(np.array([signals])) * 65535).astype(np.uint16), tonemap.PQ)[0]
  assert np.abs(found[0].astype(int) - found[1]).max() <= 1
  assert found[2].tolist() == [255, 255, 255]


def test_a_picture_worked_on_in_blocks_is_the_same(monkeypatch):
  signal = np.random.default_rng(0).integers(0, 65536, (33, 17, 3)).astype(np.uint16)
  whole = tonemap.to_sdr(signal, tonemap.HLG)
  for block in (1, 50, 17 * 33 - 1):
    monkeypatch.setattr(tonemap, "BLOCK", block)
    np.testing.assert_array_equal(tonemap.to_sdr(signal, tonemap.HLG), whole)


def test_another_transfer_is_refused():
  with pytest.raises(ValueError, match="transfer 1 "):
    tonemap.to_sdr(np.zeros((1, 1, 3), np.uint16), 1)
