"""The world of moving shapes: motion, drawing, words, and the ceiling of its examiner."""

import dataclasses
import itertools
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sora_jax.evaluation import marks
from sora_jax.worlds import shapes
from tests.worlds import exams

WORLD = shapes.Shapes()
SIZES = ((32, 32), (24, 40), (40, 24), (48, 48), (36, 64), (64, 36), (32, 56), (32, 32), (50, 33), (128, 128))


def _state(**changes) -> shapes.ShapesState:
  state = shapes.ShapesState("red", "circle", "small", "dark", "right", "slow", 0.2, 0.5)
  return dataclasses.replace(state, **changes)


def _blur(frames_THWC: np.ndarray, sigma: float) -> np.ndarray:
  """Gaussian blur in space."""
  kernel = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
  kernel /= kernel.sum()
  for axis in (1, 2):
    pad = [(0, 0)] * 4
    pad[axis] = (3, 3)
    padded, length = np.pad(frames_THWC, pad, mode="edge"), frames_THWC.shape[axis]
    frames_THWC = sum(weight * np.take(padded, np.arange(i, i + length), axis=axis) for i, weight in enumerate(kernel))
  return frames_THWC


def _spoil(frames_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """What lossy models do: blur, noise, a colour shift, faint blotches and one broken frame."""
  spoilt = _blur(frames_THWC, 0.7) + rng.normal(0, 0.08, frames_THWC.shape) + rng.uniform(-0.08, 0.08, 3)
  height, width = frames_THWC.shape[1:3]
  rows, columns = np.mgrid[:height, :width]
  for _ in range(3):
    square = (rows - rng.uniform(0, height)) ** 2 + (columns - rng.uniform(0, width)) ** 2
    spoilt += np.exp(-square / (0.02 * min(height, width) ** 2))[..., None] * rng.normal(0, 0.12, 3)
  spoilt[rng.integers(len(spoilt))] = rng.uniform(-1, 1, frames_THWC.shape[1:])
  return np.clip(spoilt, -1, 1).astype(np.float32)


def _clips(count: int, seed: int, held_out: bool = False, spoil: bool = False):
  """States and clips of mixed sizes, rates and durations."""
  rng = np.random.default_rng(seed)
  states, clips = [], []
  for index in range(count):
    height, width = SIZES[index % len(SIZES)]
    state, fps = WORLD.sample(rng, held_out), float(rng.uniform(8, 12))
    frames_THWC = WORLD.render(state, height, width, int(rng.integers(9, 34)), fps)
    states.append(state)
    clips.append((_spoil(frames_THWC, rng) if spoil else frames_THWC, fps))
  return states, clips


@pytest.mark.parametrize("held_out", [False, True])
def test_examiner_reads_real_renders(held_out):
  states, clips = _clips(100, seed=0, held_out=held_out)
  scores = marks.exam(WORLD, states, clips)
  assert set(scores) == set(WORLD.attributes)
  assert min(scores.values()) >= 0.98, scores


def test_examiner_reads_spoilt_clips():
  states, clips = _clips(100, seed=1, spoil=True)
  scores = marks.exam(WORLD, states, clips)
  assert min(scores.values()) >= 0.95, scores


def test_examiner_shown_the_wrong_clip_scores_chance():
  states, clips = _clips(100, seed=2)
  scores = marks.exam(WORLD, states[1:] + states[:1], clips)
  for attribute, expected in marks.chance(WORLD, states, np.random.default_rng(0)).items():
    assert scores[attribute] == pytest.approx(expected, abs=0.15), attribute


@pytest.mark.parametrize("kind", ["plain", "noise on grey", "noise", "nan"])
def test_nothing_to_see_scores_zero(kind):
  rng = np.random.default_rng(0)
  shape = (9, 32, 32, 3)
  frames_THWC = {
    "plain": np.full(shape, shapes.BACKGROUNDS["dark"][0]),
    "noise on grey": 0.7 + rng.normal(0, 0.1, shape),
    "noise": rng.uniform(-1, 1, shape),
    "nan": np.full(shape, np.nan),
  }[kind]
  answer = WORLD.examine(frames_THWC, 8.0, _state())
  assert answer == dict.fromkeys(WORLD.attributes, 0.0)


def test_motion_is_judged_on_its_own():
  state = _state()
  still_THWC = np.repeat(WORLD.render(state, 32, 32, 1, 8), 17, axis=0)
  answer = WORLD.examine(still_THWC, 8.0, state)
  assert answer["colour"] == answer["shape"] == answer["size"] == 1.0
  assert answer["direction"] == answer["speed"] == 0.0
  # Frames in disorder move in no direction.
  order = np.random.default_rng(0).permutation(17)
  assert WORLD.examine(WORLD.render(state, 32, 32, 17, 8)[order], 8.0, state)["direction"] == 0.0


def test_an_image_has_no_direction():
  state = _state(shape="cross", background="light")
  answer = WORLD.examine(WORLD.render(state, 40, 24, 1, 8), 8.0, state)
  assert answer == {"colour": 1.0, "shape": 1.0, "size": 1.0, "background": 1.0}


def test_colours_off_the_palette_have_no_name():
  frames_THWC = WORLD.render(_state(colour="yellow"), 32, 32, 5, 8)
  white_THWC = np.maximum(frames_THWC, frames_THWC[..., :1])
  assert WORLD.read(white_THWC, 8.0)["colour"] == "none"


@pytest.mark.parametrize("height, width, frames", [(32, 32, 1), (17, 31, 3), (5, 64, 2), (90, 7, 4)])
def test_render_has_its_shape_type_and_range(height, width, frames):
  frames_THWC = WORLD.render(_state(size="large"), height, width, frames, 7.5)
  assert frames_THWC.shape == (frames, height, width, 3)
  assert frames_THWC.dtype == np.float32
  assert frames_THWC.min() >= -1 and frames_THWC.max() <= 1


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.integers(8, 40), st.integers(8, 40))
def test_same_seed_same_clip_and_longer_or_faster_clips_agree(seed, height, width):
  state = WORLD.sample(np.random.default_rng(seed))
  assert state == WORLD.sample(np.random.default_rng(seed))
  short_THWC = WORLD.render(state, height, width, 5, 8.0)
  np.testing.assert_array_equal(WORLD.render(state, height, width, 9, 8.0)[:5], short_THWC)
  np.testing.assert_array_equal(WORLD.render(state, height, width, 9, 16.0)[::2], short_THWC)


def test_large_clips_drawn_in_blocks_agree_with_single_frames():
  whole_THWC = WORLD.render(_state(), 512, 600, 3, 4.0)
  np.testing.assert_array_equal(whole_THWC[:1], WORLD.render(_state(), 512, 600, 1, 4.0))


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(0, 2**32), st.integers(24, 80), st.integers(24, 80))
def test_the_shape_never_leaves_the_box(seed, height, width):
  state = WORLD.sample(np.random.default_rng(seed))
  short = min(height, width)
  low_2, length_2 = shapes.free_range(state.shape, state.size, (height / short, width / short))
  centres_T2 = shapes.track(state, height, width, np.linspace(0, 10, 200))
  assert (centres_T2 >= low_2 - 1e-9).all() and (centres_T2 <= low_2 + length_2 + 1e-9).all()
  areas = [
    np.abs(frame - np.array(shapes.BACKGROUNDS[state.background])).sum()
    for frame in WORLD.render(state, height, width, 20, 3.0)
  ]
  assert np.ptp(areas) < 0.03 * np.mean(areas)  # nothing is cut off at a wall


def test_the_first_direction_shows_for_some_frames_and_some_clips_bounce():
  rng = np.random.default_rng(0)
  bounced = 0
  for _ in range(200):
    state = WORLD.sample(rng)
    step_T2 = np.diff(shapes.track(state, 32, 32, np.arange(17) / 8), axis=0)
    along_T = step_T2 @ np.array(shapes.DIRECTIONS[state.direction])
    assert (along_T[:2] > 0.9 * shapes.SPEEDS[state.speed] / 8).all()
    bounced += along_T.min() < 0
  assert 40 < bounced < 190


def test_pairs_for_validation_are_seen_in_no_training_and_no_exam_of_theirs():
  world, rng = shapes.Shapes("shapes_validation", shapes.VALIDATION), np.random.default_rng(0)
  trained = {(s.colour, s.shape) for s in (world.sample(rng) for _ in range(2000))}
  examined = {(s.colour, s.shape) for s in (world.sample(rng, held_out=True) for _ in range(200))}
  assert examined == set(shapes.VALIDATION) and not examined & set(shapes.HELD_OUT)
  assert trained == set(itertools.product(shapes.COLOURS, shapes.SHAPES)) - examined - set(shapes.HELD_OUT)
  assert {c for c, _ in trained} == set(shapes.COLOURS) and {s for _, s in trained} == set(shapes.SHAPES)


def test_held_out_pairs_never_occur_in_training():
  rng = np.random.default_rng(0)
  trained = {(s.colour, s.shape) for s in (WORLD.sample(rng) for _ in range(2000))}
  held_out = {(s.colour, s.shape) for s in (WORLD.sample(rng, held_out=True) for _ in range(200))}
  assert held_out == set(shapes.HELD_OUT)
  assert trained == set(itertools.product(shapes.COLOURS, shapes.SHAPES)) - held_out
  assert {c for c, _ in trained} == set(shapes.COLOURS) and {s for _, s in trained} == set(shapes.SHAPES)


def test_every_value_is_drawn_and_states_are_json():
  rng = np.random.default_rng(0)
  states = [WORLD.sample(rng) for _ in range(300)]
  for attribute in ("size", "background", "direction", "speed"):
    assert len({getattr(state, attribute) for state in states}) == (4 if attribute == "direction" else 2)
  assert shapes.ShapesState(**json.loads(json.dumps(dataclasses.asdict(states[0])))) == states[0]


def test_captions_name_the_state():
  rng = np.random.default_rng(0)
  speeds = {"slow": "slowly", "fast": "fast"}
  for state in (WORLD.sample(rng) for _ in range(50)):
    short, long = (WORLD.caption(state, style) for style in ("short", "long"))
    assert short == f"a {state.colour} {state.shape} moves {state.direction}wards"
    words = long.rstrip(".").split()
    named = (state.size, state.colour, state.shape, state.background, speeds[state.speed])
    assert set(named) | {f"{state.direction}wards"} <= set(words)
    assert len(set(words) & set(shapes.COLOURS)) == len(set(words) & set(shapes.SHAPES)) == 1
    assert "moves" not in WORLD.caption(state, "short", still=True) + WORLD.caption(state, "long", still=True)
  assert WORLD.caption(_state(), "short", still=True) == "a red circle"
  assert WORLD.caption(_state(), "long", still=True) == "A small red circle in the middle left of a dark background."
  with pytest.raises(ValueError, match="short, long"):
    WORLD.caption(_state(), "poem")


@pytest.mark.parametrize(
  ("y", "x", "place"),
  [(0.0, 0.0, "at the top far left"), (1.0, 1.0, "at the bottom far right"), (0.39, 0.41, "near the top centre")],
)
def test_the_long_caption_names_the_fifths_in_which_a_shape_starts(y, x, place):
  assert f" {place} of a dark background" in WORLD.caption(_state(x=x, y=y), "long")
  assert place not in WORLD.caption(_state(x=x, y=y), "short")


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_shapes_reach_as_far_as_the_walls_are_told_and_balance_at_their_centre(shape):
  grid = (np.arange(-300, 300) + 0.5) / 100
  inside = shapes.outline_distance(shape, 1.0, grid[:, None], grid[None, :]) < 0
  rows, columns = np.nonzero(inside)
  reach = (-grid[rows.min()], grid[rows.max()], -grid[columns.min()], grid[columns.max()])
  low_2, length_2 = shapes.free_range(shape, "small", (10.0, 10.0))
  up, left = low_2 / shapes.RADII["small"]
  down, right = (10.0 - low_2 - length_2) / shapes.RADII["small"]
  np.testing.assert_allclose(reach, (up, down, left, right), atol=0.02)
  np.testing.assert_allclose([grid[rows].mean(), grid[columns].mean()], 0, atol=0.01)


def test_an_unknown_shape_is_refused():
  with pytest.raises(ValueError, match="hexagon.*circle"):
    shapes.outline_distance("hexagon", 1.0, np.zeros(1), np.zeros(1))


@pytest.mark.parametrize(
  "change", [{"colour": "blue"}, {"shape": "square"}, {"size": "large"}, {"background": "light"}], ids=str
)
def test_what_changes_in_a_third_of_the_frames_is_wrong(change):
  state = _state()
  (wrong,) = change
  assert WORLD.examine(exams.changed(WORLD, state, _state(**change)), 8.0, state)[wrong] == 0.0


def test_a_second_shape_is_one_too_many():
  frames_THWC = WORLD.render(_state(), 64, 128, 17, 8.0)
  second = WORLD.render(_state(colour="blue"), 64, 128, 17, 8.0)[:, :, ::-1]
  both_THWC = np.where(second > frames_THWC, second, frames_THWC)
  marks = WORLD.examine(both_THWC, 8.0, _state())
  assert marks["colour"] == 0.0
  assert WORLD.examine(frames_THWC, 8.0, _state())["colour"] == 1.0


def test_a_shape_that_is_gone_for_a_third_of_the_time_has_no_colour():
  frames_THWC = WORLD.render(_state(), 64, 64, 18, 8.0)
  frames_THWC[6:12] = shapes.BACKGROUNDS["dark"]
  assert WORLD.examine(frames_THWC, 8.0, _state())["colour"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_a_shape_that_stops_halfway_does_not_move_on(seed):
  state = WORLD.sample(np.random.default_rng(seed))
  frames_THWC = WORLD.render(state, 96, 96, 33, 8.0)
  frames_THWC[18:] = frames_THWC[17]
  marks = WORLD.examine(frames_THWC, 8.0, state)
  assert marks["speed"] == 0.0 and marks["shape"] == 1.0


def test_a_shape_that_is_another_one_in_every_second_frame_is_wrong():
  frames_THWC, other_THWC = (WORLD.render(_state(shape=shape), 64, 64, 23, 8.0) for shape in ("circle", "square"))
  frames_THWC[1::2] = other_THWC[1::2]
  assert WORLD.examine(frames_THWC, 8.0, _state())["shape"] == 0.0


def test_a_shape_that_goes_unevenly_and_drifts_a_little_has_its_direction():
  state = _state(speed="fast")
  uneven = [0.0, 0.2, 0.3, 0.45, 0.5, 0.65, 0.7]  # seconds, where 0.1 apart would be even
  drift = [0, 0, 1, 1, 2, 2, 3]  # pixels of 32 to one side
  frames = [WORLD.render(state, 32, 32, 2, 1 / max(time, 1e-3))[-1 if time else 0] for time in uneven]
  frames_THWC = np.stack([np.roll(frame, by, axis=0) for frame, by in zip(frames, drift, strict=True)])
  assert WORLD.examine(frames_THWC, 10.0, state)["direction"] == 1.0
