"""HDR video (PQ or HLG, BT.2020 colours) -> the SDR pixels that training and screens expect. Pure numpy.

Signals become light in cd/m2 (ITU-R BT.2100-2, tables 4 and 5), clipped as the screen that it was made on clips it.
BT.2020 primaries become those of BT.709 (the inverse of BT.2087-0), and a colour that these can't make is mixed with
grey of its own luminance until they can. Then what is brighter than SDR white is rolled off (BT.2390-8, section 5.4.1),
and light becomes a BT.709 signal for a BT.1886 screen. Without this, HDR frames come out grey and flat.

An SDR picture that is wrongly tagged as PQ is shown by its tags, as a screen would: harsh and far too colourful.

Shape letters: H height, W width, C colours (red, green, blue).
"""

import functools

import numpy as np

PQ, HLG = 16, 18  # transfer characteristics by their numbers in ITU-T H.273
WHITE = 203.0  # cd/m2 of HDR reference white (BT.2408), which is SDR white
PEAK = 1000.0  # cd/m2 that masters are commonly made for; what is brighter clips
GAMMA = 2.4  # of a BT.1886 screen
BLOCK = 2**18  # pixels worked on at once

# BT.2020 to BT.709 in linear light.
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020 primaries
_LUMINANCE_709 = np.array([0.2126, 0.7152, 0.0722], np.float32)
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073


def pq_to_light(signal: np.ndarray) -> np.ndarray:
  """PQ signal in [0, 1] -> cd/m2 (BT.2100-2, table 4)."""
  power = np.power(signal, 1 / _M2)
  return 10_000.0 * np.power(np.maximum(power - _C1, 0.0) / (_C2 - _C3 * power), 1 / _M1)


def light_to_pq(light: np.ndarray | float) -> np.ndarray:
  """The inverse: cd/m2 -> PQ signal."""
  power = np.power(np.asarray(light) / 10_000.0, _M1)
  return np.power((_C1 + _C2 * power) / (1.0 + _C3 * power), _M2)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
  """HLG signal in [0, 1] -> scene light in [0, 1] (BT.2100-2, table 5, the inverse of its OETF)."""
  bright = (np.exp((np.maximum(signal, 0.5) - _C) / _A) + _B) / 12.0
  return np.where(signal <= 0.5, np.square(signal) / 3.0, bright)


def roll_off(light: np.ndarray | float) -> np.ndarray:
  """cd/m2 up to PEAK -> cd/m2 up to WHITE; dark and middle tones stay (BT.2390-8, section 5.4.1, black level 0)."""
  top = float(light_to_pq(PEAK))
  signal = np.minimum(light_to_pq(light) / top, 1.0)
  most = float(light_to_pq(WHITE)) / top
  knee = 1.5 * most - 0.5
  t = np.maximum(signal - knee, 0.0) / (1.0 - knee)
  spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
  return pq_to_light(np.where(signal < knee, signal, spline) * top)


def to_sdr(signal_HWC: np.ndarray, transfer: int) -> np.ndarray:
  """16-bit R'G'B' of BT.2020 -> uint8 R'G'B' of BT.709.

  Args:
    signal_HWC: uint16, full range.
    transfer: PQ or HLG.

  Raises:
    ValueError: another transfer.
  """
  if transfer not in (PQ, HLG):
    raise ValueError(f"transfer {transfer} is neither PQ ({PQ}) nor HLG ({HLG})")
  shown = np.empty(signal_HWC.shape, np.uint8)
  rows = max(BLOCK // signal_HWC.shape[1], 1)  # floats of a whole 8K picture would fill gigabytes
  for top in range(0, len(signal_HWC), rows):
    shown[top : top + rows] = _block_to_sdr(signal_HWC[top : top + rows], transfer)
  return shown


def _block_to_sdr(signal_HWC: np.ndarray, transfer: int) -> np.ndarray:
  light = _light(transfer)[signal_HWC]
  if transfer == HLG:  # the screen's gamma of 1.2, at 1,000 cd/m2
    light *= PEAK * np.power(np.maximum(light @ _LUMINANCE, 1e-9), 0.2)[..., None]
  # Clipped first: a signal beyond the screen's peak would leave the others of its pixel behind, as too much colour.
  light = _into_gamut(np.minimum(light, PEAK) @ _TO_709.T)
  # One gain for the three colours, from the brightest of them, keeps the hue.
  gain = np.interp(_over_colours(np.maximum, light), *_gains()).astype(np.float32)
  return np.rint(255.0 * np.power(np.minimum(light * gain[..., None], 1.0), 1 / GAMMA)).astype(np.uint8)


def _into_gamut(light: np.ndarray) -> np.ndarray:
  """Light of BT.709 primaries, some of it below 0 -> mixed with grey until none is; luminance and hue stay."""
  luminance = np.maximum(light @ _LUMINANCE_709, 0.0)[..., None]
  least = _over_colours(np.minimum, light)[..., None]
  share = np.where(least < 0, luminance / np.maximum(luminance - least, 1e-9), 1.0)
  return np.maximum(luminance + share * (light - luminance), 0.0)


def _over_colours(least_or_most: np.ufunc, light: np.ndarray) -> np.ndarray:
  """light.min(-1) or light.max(-1), which over three numbers are ten times as slow."""
  return least_or_most(least_or_most(light[..., 0], light[..., 1]), light[..., 2])


@functools.cache
def _light(transfer: int) -> np.ndarray:
  """The light of every 16-bit signal: cd/m2 of PQ, scene light of HLG."""
  signal = np.arange(65536) / 65535
  return (pq_to_light(signal) if transfer == PQ else hlg_to_scene(signal)).astype(np.float32)


@functools.cache
def _gains() -> tuple[np.ndarray, np.ndarray]:
  """Light in cd/m2, finely, and by how much it is scaled so that 1 is SDR white."""
  light = np.geomspace(0.01, 20_000.0, 4096)
  return light, roll_off(light) / light / WHITE
