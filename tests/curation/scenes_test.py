"""Cuts at their exact frame, in made and real videos; and none where a picture only moves, flickers or fades."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax import clips
from sora_jax.curation import scenes
from sora_jax.data.folder import FolderSource
from sora_jax.data.sources import small_frames
from sora_jax.data.world_source import WorldSource
from sora_jax.video import io as video_io

SIZE = (36, 64)

# Real clips with cuts, and where; all others have none. Of airliner_flypast.mp4, which its caption says is cut, the
# camera tilts down. These were told by looking at every frame.
CUTS = {
  "bbb_square_vp9.webm": [6],
  "bbb_opening_30s.webm": [283, 376, 551],
  "tears_of_steel_battle.mp4": [
    *(52, 122, 158, 221, 309, 715, 788, 872, 901, 987, 1127, 1157, 1203, 1234, 1246, 1284, 1345, 1378, 1430, 1472),
    *(1525, 1571, 1618, 1650, 1689),
  ],
}


def flat(count: int, colour: tuple[int, int, int]) -> np.ndarray:
  return np.full((count, *SIZE, 3), colour, np.uint8)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
  """uint8 (H, W, 3) with soft shapes of all colours."""
  coarse = (
    np.random.default_rng(seed).integers(0, 256, (max(size[0] // 6, 2), max(size[1] // 6, 2), 3)).astype(np.uint8)
  )
  return video_io.resize(coarse, size)


def still(count: int, seed: int) -> np.ndarray:
  return np.repeat(picture(seed)[None], count, 0)


def pan(count: int, seed: int, step: tuple[int, int]) -> np.ndarray:
  """A camera that moves over a large picture, `step` pixels (rows, columns) a frame."""
  height, width = SIZE
  large = picture(seed, (height + count * abs(step[0]), width + count * abs(step[1])))
  return np.stack(
    [large[t * abs(step[0]) :, t * abs(step[1]) :][:height, :width] for t in range(count)][
      :: -1 if sum(step) < 0 else 1
    ]
  )


def noisy(frames_THWC: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).normal(0, amount, frames_THWC.shape)
  return np.clip(frames_THWC + noise, 0, 255).astype(np.uint8)


def world(name: str, count: int, size: tuple[int, int], fps: float, seconds: float = 1.5) -> list[np.ndarray]:
  source = WorldSource(name, count, (size,), (round(fps * seconds) + 1,), fps, seed=0)
  return [clips.to_uint8(source[index].frames_THWC) for index in range(count)]


class TestCuts:
  @pytest.mark.parametrize("at", [1, 2, 3, 9, 18, 19])
  @pytest.mark.parametrize(
    "make",
    [
      lambda: (flat(20, (200, 30, 30)), flat(20, (30, 30, 200))),
      lambda: (flat(20, (0, 0, 0)), flat(20, (255, 255, 255))),
      lambda: (flat(20, (0, 0, 0)), still(20, 1)),
      lambda: (still(20, 1), still(20, 2)),
      lambda: (pan(20, 1, (0, 2)), pan(20, 2, (1, 0))),
      lambda: (pan(20, 1, (0, 4)), pan(20, 2, (0, -4))),
      lambda: (noisy(still(20, 1), 20), noisy(still(20, 2), 20)),
    ],
    ids=["colours", "dark to light", "out of black", "pictures", "pans", "fast pans", "noise"],
  )
  def test_a_cut_is_found_at_its_frame(self, make, at: int):
    one, other = make()
    assert scenes.scene_starts(np.concatenate([one[:at], other[: 20 - at]])) == [0, at]

  def test_every_scene_of_a_fast_montage_is_found(self):
    lengths = [7, 3, 5, 12, 4, 3, 9]
    parts = [pan(length, seed, (0, seed % 3)) for seed, length in enumerate(lengths)]
    assert scenes.scene_starts(np.concatenate(parts)) == [0, *np.cumsum(lengths)[:-1]]

  def test_one_and_two_frames(self):
    assert scenes.scene_starts(still(1, 1)) == [0]
    assert scenes.scene_starts(still(2, 1)) == [0]
    assert scenes.scene_starts(np.stack([picture(1), picture(2)])) == [0, 1]
    assert len(scenes.changes(still(1, 1))) == 0 and scenes.changes(still(3, 1)).tolist() == [0, 0]

  @pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 2), (7, 5), (15, 64), (33, 64), (64, 64)])
  def test_frames_of_any_shape(self, size: tuple[int, int]):
    red, blue = (np.full((8, *size, 3), colour, np.uint8) for colour in ((200, 20, 20), (20, 20, 200)))
    assert scenes.scene_starts(red) == [0]
    assert scenes.scene_starts(np.concatenate([red, blue])) == [0, 8]

  def test_changes_are_the_mean_over_the_pixels(self):
    frames_THWC = np.zeros((3, 2, 2, 3), np.uint8)
    frames_THWC[1, 0, 0] = 255
    assert scenes.changes(frames_THWC).tolist() == [0.25, 0.25]


class TestNoCuts:
  @pytest.mark.parametrize("step", [(0, 1), (0, 3), (2, 3), (0, 8), (0, 24)])
  def test_a_moving_camera(self, step: tuple[int, int]):
    assert scenes.scene_starts(pan(24, 3, step)) == [0]

  def test_a_camera_that_starts_and_stops(self):
    moving = pan(12, 3, (0, 5))
    frames_THWC = np.concatenate([np.repeat(moving[:1], 12, 0), moving, np.repeat(moving[-1:], 12, 0)])
    assert scenes.scene_starts(frames_THWC) == [0]

  @pytest.mark.parametrize("frames", [12, 24])
  def test_fades(self, frames: int):
    one, other = picture(1).astype(np.float32), picture(2).astype(np.float32)
    for end in (np.zeros_like(one), np.full_like(one, 255), other):
      steps = np.linspace(0, 1, frames)[:, None, None, None]
      fade = ((1 - steps) * one + steps * end).astype(np.uint8)
      frames_THWC = np.concatenate([still(12, 1), fade, np.repeat(fade[-1:], 12, 0)])
      assert scenes.scene_starts(frames_THWC) == [0]
      assert scenes.scene_starts(frames_THWC[::-1]) == [0]

  @pytest.mark.parametrize("frames", [1, 2])
  @pytest.mark.parametrize("at", [1, 2, 10, 17])
  def test_a_flash(self, frames: int, at: int):
    for flash in (flat(frames, (255, 255, 255)), flat(frames, (0, 0, 0)), still(frames, 9)):
      for under in (still(20, 1), pan(20, 1, (0, 2)), flat(20, (90, 90, 160))):
        frames_THWC = under.copy()
        frames_THWC[at : at + frames] = flash
        assert scenes.scene_starts(frames_THWC) == [0]

  def test_a_light_that_goes_on_and_stays_on(self):
    dark = noisy(still(20, 1) // 2, 2)
    assert scenes.scene_starts(np.concatenate([dark[:10], dark[10:] * 2])) == [0]

  @pytest.mark.parametrize("amount", [2, 20, 60, 200])
  def test_noise(self, amount: int):
    for frames_THWC in (still(20, 1), flat(20, (128, 128, 128)), pan(20, 1, (0, 2))):
      assert scenes.scene_starts(noisy(frames_THWC, amount)) == [0]

  def test_frames_that_all_differ(self):
    assert scenes.scene_starts(np.stack([picture(seed) for seed in range(20)])) == [0]

  @settings(max_examples=30, deadline=None)
  @given(st.integers(1, 30), st.integers(0, 2**31), st.integers(0, 255))
  def test_a_still(self, count: int, seed: int, level: int):
    assert scenes.scene_starts(still(count, seed)) == [0]
    assert scenes.scene_starts(flat(count, (level, level, level))) == [0]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_video_in_pieces_has_the_cuts_and_changes_of_the_whole(data):
  lengths = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=4), label="scenes")
  parts = [pan(length, seed, (0, seed % 4)) for seed, length in enumerate(lengths)]
  whole = noisy(np.concatenate(parts), data.draw(st.sampled_from([0, 5, 80]), label="noise"))
  places = data.draw(st.lists(st.integers(1, max(len(whole) - 1, 1)), unique=True, max_size=9), label="pieces")
  starts, changes = scenes.follow(np.split(whole, [place for place in sorted(places) if place < len(whole)]))
  assert starts == scenes.scene_starts(whole)
  np.testing.assert_array_equal(changes, scenes.changes(whole))


class TestWorlds:
  @pytest.mark.parametrize("fps", [4, 24])
  def test_joins_of_shapes(self, fps: int):
    """All joins to another background are found, most to the same one, and hardly anything else."""
    source = WorldSource("shapes", 80, (SIZE,), (1,), fps, seed=0)
    backgrounds = [source.state(index).background for index in range(len(source))]
    found: dict[bool, list[bool]] = {True: [], False: []}
    wrong = 0
    for size, first in (((64, 64), 0), (SIZE, 40)):
      parts = world("shapes", 80, size, fps)
      for index in range(first, first + 39):
        starts = scenes.scene_starts(np.concatenate(parts[index : index + 2]))
        cut = len(parts[index])
        found[backgrounds[index] == backgrounds[index + 1]].append(cut in starts)
        wrong += len(set(starts) - {0, cut})
    assert all(found[False]) and len(found[False]) > 30
    assert np.mean(found[True]) >= 0.6 and len(found[True]) > 30
    assert wrong == 0

  @pytest.mark.parametrize("name", ["shapes", "uniform", "parabola", "collision"])
  def test_a_clip_is_one_scene(self, name: str):
    for fps in (2, 8, 24):
      for frames_THWC in world(name, 15, SIZE, fps, seconds=2.0):
        assert scenes.scene_starts(frames_THWC) == [0]


@pytest.fixture(scope="module")
def real(corpus) -> dict[str, np.ndarray]:
  """The frames of some real videos, small."""
  source = FolderSource(corpus, fps=0.0, max_frames=2**31)
  slow = ("rooftop_portrait_hdr10.mp4", "rooftop_portrait_rot90_10bit.mp4")  # to decode
  videos = [index for index in range(len(source)) if source.shape(index)[0] > 1 and source.where(index)[0] not in slow]
  return {source.where(index)[0]: small_frames(source, index, scenes.SIDE, 2**31) for index in videos}


@pytest.mark.slow
class TestRealVideos:
  def test_the_cuts_of_each_are_found_and_nothing_else(self, real, corpus):
    named = {json.loads(line)["file"] for line in (corpus / "captions.jsonl").read_text().splitlines()}
    assert named >= set(CUTS)
    found = {file: scenes.scene_starts(frames_THWC)[1:] for file, frames_THWC in real.items()}
    assert found == {file: CUTS.get(file, []) for file in real}

  def test_joins_are_found(self, real):
    rng = np.random.default_rng(1)
    files = [file for file in real if file not in CUTS]
    pairs = [tuple(rng.choice(files, 2, replace=False)) for _ in range(200)]
    pairs = [pair for pair in pairs if pair[0][:4] != pair[1][:4]]  # of the same place
    found, wrong = 0, 0
    for one, other in pairs:
      before, after = (real[file][:: rng.integers(1, 4)] for file in (one, other))
      first, second = (int(rng.integers(0, len(frames) - 8)) for frames in (before, after))
      before = before[first : first + 12]
      after = np.stack([video_io.resize(frame, before.shape[1:3]) for frame in after[second : second + 12]])
      starts = scenes.scene_starts(np.concatenate([before, after]))
      found += len(before) in starts
      wrong += len(set(starts) - {0, len(before)})
    assert len(pairs) > 150 and found >= 0.98 * len(pairs) and wrong <= 0.02 * len(pairs)
