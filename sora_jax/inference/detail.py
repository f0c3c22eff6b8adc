"""What the autoencoder loses of given frames is given back, to them and to what stands still beside them.

A decoded frame lacks fine detail of the real one. Where made frames join given ones that shows as a jump: detail goes
from one frame to the next, in places where nothing moves.

Shape letters: T frames, H height, W width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STILL = 0.15  # a pixel that changes by less, of the range from -1 to 1, still shows what it showed
FINE = 0.5  # a pixel that is off by more shows something else, and not the same with less detail


class Given(NamedTuple):
  """Frames (T, H, W, 3) that a clip was made from, the first of which is its frame `start`."""

  start: int
  frames_THWC: np.ndarray


def restored(frames_THWC: np.ndarray, given: Sequence[Given], loop: bool = False) -> np.ndarray:
  """A clip with its given frames as they are, and with their detail in others where these show the same.

  Between two given frames the detail of one fades into that of the other.

  Args:
    frames_THWC: as decoded, float32 in [-1, 1]; so is what comes back.
    given: frames at its size.
    loop: the clip's end runs into its start.
  """
  known = {each.start + number: frame for each in given for number, frame in enumerate(each.frames_THWC)}
  if not known:
    return frames_THWC
  length, places = len(frames_THWC), sorted(known)
  found = frames_THWC.copy()
  for frame in range(length):
    if frame in known:
      found[frame] = known[frame]
      continue
    before = [place for place in places if place < frame] or ([places[-1] - length] if loop else [])
    after = [place for place in places if place > frame] or ([places[0] + length] if loop else [])
    ends = [*before[-1:], *after[:1]]
    for place in ends:
      share = 1.0 if len(ends) == 1 else 1.0 - abs(frame - place) / (ends[1] - ends[0])
      decoded_HWC = frames_THWC[place % length]
      lost_HWC = known[place % length] - decoded_HWC
      change_HW1 = np.abs(frames_THWC[frame] - decoded_HWC).max(-1, keepdims=True)
      fine_HW1 = np.abs(lost_HWC).max(-1, keepdims=True) < FINE
      found[frame] += share * fine_HW1 * np.exp(-np.square(change_HW1 / STILL)) * lost_HWC
  return np.clip(found, -1.0, 1.0)
