"""Given frames come back as they are, and their detail where nothing moves; all else stays as it was decoded."""

import numpy as np

from sora_jax.inference.detail import Given, restored

RNG = np.random.default_rng(0)


def blurred(frames: int = 6) -> tuple[np.ndarray, np.ndarray]:
  """A still clip with detail, and the same without it."""
  detail = RNG.uniform(-0.1, 0.1, (1, 8, 8, 3)).astype(np.float32)
  flat = np.zeros((frames, 8, 8, 3), np.float32)
  return flat + detail, flat


def test_given_frames_are_as_they_are_and_the_others_of_a_still_clip_have_their_detail():
  real, decoded = blurred()
  found = restored(decoded, [Given(0, real[:2])])
  np.testing.assert_array_equal(found[:2], real[:2])
  np.testing.assert_allclose(found, real, atol=1e-6)


def test_what_moves_stays_as_it_was_decoded():
  real, decoded = blurred()
  decoded[3:, :4] = 0.9
  found = restored(decoded, [Given(0, real[:1])])
  np.testing.assert_allclose(found[3:, :4], decoded[3:, :4], atol=1e-6)
  np.testing.assert_allclose(found[3:, 4:], real[3:, 4:], atol=1e-6)


def test_detail_takes_no_pixel_out_of_its_range():
  decoded = np.full((2, 2, 2, 3), 0.95, np.float32)
  assert restored(decoded, [Given(0, np.ones((1, 2, 2, 3), np.float32))]).max() == 1.0


def test_between_two_frames_the_detail_of_one_fades_into_that_of_the_other():
  decoded = np.zeros((5, 2, 2, 3), np.float32)
  given = [Given(0, decoded[:1] + 0.1), Given(4, decoded[:1] - 0.1)]
  np.testing.assert_allclose(restored(decoded, given)[:, 0, 0, 0], [0.1, 0.05, 0.0, -0.05, -0.1], atol=1e-6)


def test_after_the_last_frame_of_a_loop_comes_the_first():
  decoded = np.zeros((4, 2, 2, 3), np.float32)
  given = [Given(0, decoded[:1] + 0.1), Given(1, decoded[:1] - 0.2)]
  found = restored(decoded, given, loop=True)[:, 0, 0, 0]
  np.testing.assert_allclose(found, [0.1, -0.2, -0.1, 0.0], atol=1e-6)
  np.testing.assert_allclose(restored(decoded, given)[:, 0, 0, 0], [0.1, -0.2, -0.2, -0.2], atol=1e-6)


def test_without_given_frames_a_clip_is_as_it_was_decoded():
  _, decoded = blurred()
  assert restored(decoded, []) is decoded
