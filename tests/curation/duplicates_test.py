"""Copies are found however they are stored, in whatever order; clips that differ are not taken for copies."""

import fractions
import io
import pathlib

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax import clips
from sora_jax.curation import duplicates
from sora_jax.data.folder import FolderSource
from sora_jax.data.sources import small_frames
from sora_jax.data.world_source import WorldSource
from sora_jax.video import io as video_io

VALUES = 3 * duplicates.THUMBNAIL**2 * 3 + 1


def reference(signatures_ND: np.ndarray, tolerance: int) -> np.ndarray:
  """Each with each."""
  first = np.full(len(signatures_ND), -1)
  for clip, values_D in enumerate(signatures_ND.astype(int)):
    for other in range(clip):
      if first[other] < 0 and np.abs(values_D - signatures_ND[other]).max() <= tolerance:
        first[clip] = other
        break
  return first


def moving(seed: int, frames: int = 8, size: tuple[int, int] = (192, 256)) -> np.ndarray:
  """uint8 (T, H, W, 3): soft shapes that slide."""
  coarse = np.random.default_rng(seed).integers(0, 256, (6, 12, 3)).astype(np.uint8)
  large = video_io.resize(coarse, (size[0], 2 * size[1]))
  return np.stack([large[:, 3 * t : 3 * t + size[1]] for t in range(frames)])


def stored(path: pathlib.Path, frames_THWC: np.ndarray, crf: int) -> np.ndarray:
  """The frames as they come back, small, from a file of this quality (51 is the worst)."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fractions.Fraction(24), options={"crf": str(crf)})
    stream.height, stream.width, stream.pix_fmt = *(side // 2 * 2 for side in frames_THWC.shape[1:3]), "yuv420p"
    for pixels in frames_THWC:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
    container.mux(stream.encode(None))
  path.write_bytes(buffer.getvalue())
  height, width = frames_THWC.shape[1:3]
  scale = 64 / max(height, width)
  return video_io.read(path, fps=24, max_frames=99, size=(round(height * scale), round(width * scale)))


def copies(path: pathlib.Path, frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
  height, width = frames_THWC.shape[1:3]
  half = np.stack([video_io.resize(frame, (height // 4 * 2, width // 4 * 2)) for frame in frames_THWC])
  lighter = np.clip(frames_THWC.astype(int) + 8, 0, 255).astype(np.uint8)
  more = np.clip(frames_THWC * 1.04, 0, 255).astype(np.uint8)
  return {
    "encoded again": stored(path, frames_THWC, 23),
    "encoded badly": stored(path, frames_THWC, 36),
    "half the size": stored(path, half, 28),
    "lighter": stored(path, lighter, 23),
    "more contrast": stored(path, more, 23),
  }


class TestSignature:
  def test_values_and_type(self):
    frames_THWC = moving(1)
    signature_D = duplicates.signature(frames_THWC)
    assert signature_D.shape == (VALUES,) and signature_D.dtype == np.uint8
    assert signature_D[-1] == 255 and duplicates.signature(frames_THWC[:1])[-1] == 0

  @pytest.mark.parametrize("frames", [1, 2, 3, 8])
  def test_thumbnails_give_the_same_as_frames(self, frames: int):
    frames_THWC = moving(2, frames)
    thumbnails = [duplicates.thumbnail(frame) for frame in frames_THWC]
    np.testing.assert_array_equal(duplicates.signature(thumbnails), duplicates.signature(frames_THWC))

  @pytest.mark.parametrize("size", [(1, 1), (3, 200), (12, 12), (700, 5)])
  def test_frames_of_any_size(self, size: tuple[int, int]):
    frames_THWC = np.full((4, *size, 3), 77, np.uint8)
    assert (duplicates.signature(frames_THWC)[:-1] == 77).all()


class TestDuplicateOf:
  @settings(max_examples=60, deadline=None)
  @given(st.data())
  def test_equals_comparing_each_with_each(self, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count, values = data.draw(st.integers(0, 120)), data.draw(st.integers(1, 6))
    tolerance = data.draw(st.sampled_from([0, 1, 16, 60]))
    signatures_ND = rng.integers(0, 256, (count, values)).astype(np.uint8)
    if data.draw(st.booleans()):
      signatures_ND = (signatures_ND // 128 * 200).astype(np.uint8)  # many that are the same
    for clip in range(1, count, 2):  # near-copies, some beyond the tolerance
      near = signatures_ND[rng.integers(0, clip)].astype(int) + rng.integers(-tolerance - 1, tolerance + 2, values)
      signatures_ND[clip] = np.clip(near, 0, 255)
    leaf = data.draw(st.sampled_from([1, 3, 64]))
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(duplicates, "LEAF", leaf)
      found = duplicates.duplicate_of(signatures_ND, tolerance)
    np.testing.assert_array_equal(found, reference(signatures_ND, tolerance))

  def test_every_planted_copy_is_found_among_thousands(self):
    """Each value off by up to the tolerance, which no rounding of values may hide."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(0, 12, (4000, 20)) @ rng.normal(0, 1, (20, VALUES))
    originals = np.clip(128 + smooth, 0, 239).astype(np.uint8)
    for offsets in (rng.integers(-16, 17, (4000, 1)), rng.integers(-16, 17, (4000, VALUES))):
      planted = np.clip(originals + offsets, 0, 255).astype(np.uint8)
      found = duplicates.duplicate_of(np.concatenate([originals, planted]))
      assert found.tolist() == [-1] * 4000 + list(range(4000))

  def test_a_repetition_of_a_repetition_names_the_first(self):
    one, other = (np.full(VALUES, level, np.uint8) for level in (50, 150))
    assert duplicates.duplicate_of(np.stack([one, other, one, one + 9, other, one])).tolist() == [-1, -1, 0, 0, 1, 0]

  def test_a_chain_of_small_steps_stays_near_its_first(self):
    """What is kept differs from all else that is kept; what is dropped is like something that is kept."""
    chain = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[:, None], VALUES, 1)
    found = duplicates.duplicate_of(chain)
    assert found.tolist() == [clip - clip % 2 if clip % 2 else -1 for clip in range(25)]

  def test_clips_that_nothing_tells_apart_are_still_compared(self):
    """More of them than a leaf holds, within twice the tolerance in every value, and no two alike."""
    signatures_ND = np.full((9, 300), 100, np.uint8)
    signatures_ND = np.repeat(signatures_ND, 33, 0)
    signatures_ND[np.arange(297), np.arange(297)] += 30
    assert (duplicates.duplicate_of(signatures_ND) == -1).all()
    twice = np.concatenate([signatures_ND, signatures_ND[::-1]])
    assert duplicates.duplicate_of(twice)[297:].tolist() == list(range(296, -1, -1))

  def test_no_clips(self):
    assert duplicates.duplicate_of(np.zeros((0, VALUES), np.uint8)).tolist() == []

  def test_an_image_is_no_copy_of_a_still_video(self):
    frames_THWC = np.repeat(moving(1, 1), 5, 0)
    signatures_ND = np.stack([duplicates.signature(frames_THWC[:1]), duplicates.signature(frames_THWC)])
    assert duplicates.duplicate_of(signatures_ND).tolist() == [-1, -1]


class TestClips:
  def test_copies_of_made_videos(self, tmp_path: pathlib.Path):
    originals = [moving(seed) for seed in range(5)]
    found = [duplicates.signature(frames) for frames in originals]
    for clip, frames_THWC in enumerate(originals):
      for kind, copy in copies(tmp_path / "copy.mp4", frames_THWC).items():
        again = duplicates.duplicate_of(np.stack([*found, duplicates.signature(copy)]))
        assert again[-1] == clip, kind
    assert (duplicates.duplicate_of(np.stack(found)) == -1).all()

  @pytest.mark.parametrize("world", ["shapes", "collision"])
  def test_other_states_of_a_world_are_no_copies(self, world: str):
    """Worlds hold images that are all but the same; those are few, and the pixels of all others differ."""
    source = WorldSource(world, 1200, ((48, 48), (36, 64)), (1, 9), 6.0, seed=0)
    frames = [clips.to_uint8(source[index].frames_THWC) for index in range(len(source))]
    found = duplicates.duplicate_of(np.stack([duplicates.signature(each) for each in frames]))
    again = np.flatnonzero(found >= 0)
    assert len(again) <= 0.01 * len(source)
    for clip in again:
      one, other = (frames[index].astype(int) for index in (clip, found[clip]))
      assert one.shape[1:] != other.shape[1:] or (np.abs(one - other).max(-1) > 64).mean() < 0.03

  @pytest.mark.slow
  def test_copies_of_real_videos(self, corpus, tmp_path: pathlib.Path):
    source = FolderSource(corpus, fps=0.0, max_frames=24)
    usable = [index for index in range(len(source)) if source.shape(index)[0] > 1]
    usable = [index for index in usable if max(source.shape(index)[1:]) <= 512]
    found = [duplicates.signature(small_frames(source, index, 64, 24)) for index in usable]
    again = duplicates.duplicate_of(np.stack(found))
    missed = []
    for place, index in enumerate(usable):
      for kind, copy in copies(tmp_path / "copy.mp4", clips.to_uint8(source[index].frames_THWC)).items():
        same = duplicates.duplicate_of(np.stack([*found, duplicates.signature(copy)]))[-1]
        if same != place:
          missed.append((source.where(index)[0], kind))
    assert len(usable) > 10 and (again == -1).all()
    assert missed == []
