"""Solid objects before a camera: geometry of the pictures, and what is read of them."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import camera3d, hues
from tests.worlds import exams

WORLD = camera3d.Camera3d()
SOLIDS = (
  camera3d.Solid("red", "sphere", "left", 0.0, 0.0, 0.0),
  camera3d.Solid("blue", "box", "right", 0.0, 0.0, 0.5),
)
ONE_MORE = camera3d.Solid("green", "cone", "middle", 0.0, 0.0, 0.0)
STATE = camera3d.Camera3dState(SOLIDS, "orbits right")


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD).values()) >= 0.98


def test_a_spoiled_clip_is_read_too():
  assert min(exams.spoiled_marks(WORLD, 5, noise=0.03).values()) >= 0.7


def test_training_never_shows_what_is_held_out():
  pairs = lambda state: [(solid.colour, solid.solid) for solid in state.solids]
  seen, unseen = exams.held_out_states(WORLD)
  assert not any(set(pairs(state)) & set(camera3d.HELD_OUT) for state in seen)
  assert all(pairs(state)[0] in camera3d.HELD_OUT for state in unseen)


@pytest.mark.parametrize("move", camera3d.MOVES)
def test_a_sphere_is_where_the_camera_projects_it(move):
  times_T = np.arange(9) / 4
  state = camera3d.Camera3dState(SOLIDS[:1], move)
  frames_THWC = WORLD.render(state, 96, 160, 9, 4.0)
  centres_T2 = hues.track(hues.shares(frames_THWC)[0], 0.4, 0.01)
  turns_T33, places_T3 = camera3d.poses(move, times_T)
  centre_3 = np.array([*camera3d.SLOTS["left"], 0.42])
  camera_T3 = np.einsum("tij,tj->ti", turns_T33, centre_3 - places_T3)
  expected_T2 = camera3d.FOCAL * camera_T3[:, 1::-1] / camera_T3[:, 2:] + np.array([0.5, 160 / 96 / 2])
  np.testing.assert_allclose(centres_T2, expected_T2, atol=0.03)


@pytest.mark.parametrize("move", camera3d.MOVES)
def test_poses_are_rotations_from_one_start(move):
  turns_T33, places_T3 = camera3d.poses(move, np.linspace(0, 20, 50))
  np.testing.assert_allclose(
    turns_T33 @ turns_T33.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12
  )
  np.testing.assert_allclose(np.linalg.det(turns_T33), 1)
  np.testing.assert_allclose(places_T3[0], [0, 0.2 - camera3d.DISTANCE, camera3d.HEIGHT])
  assert (places_T3[:, 2] > 0.5).all()


@pytest.mark.parametrize("solid", camera3d.SOLIDS)
def test_each_solid_is_lit_and_told_from_the_others(solid):
  state = camera3d.Camera3dState((camera3d.Solid("green", solid, "middle", 0.05, -0.05, 0.7),), "stands still")
  frames_THWC = WORLD.render(state, 96, 96, 1, 8.0)
  assert WORLD.read(frames_THWC, 8.0).solids == {"middle": ("green", solid)}
  inside = hues.shares(frames_THWC)[list(hues.HUES).index("green"), 0] > 0.5
  assert np.ptp(frames_THWC[0][inside][:, 1]) > 0.3  # light and shade


@pytest.mark.parametrize("move", [move for move in camera3d.MOVES if move != STATE.move])
def test_another_move_is_marked_wrong(move):
  marks = WORLD.examine(WORLD.render(dataclasses.replace(STATE, move=move), 64, 64, 17, 8.0), 8.0, STATE)
  assert marks["camera"] == 0.0 and marks["solid"] == 1.0


@pytest.mark.parametrize("wrong", ["other colours", "nothing left", "one more"])
def test_later_frames_must_show_the_same_colours(wrong):
  frames_THWC = WORLD.render(STATE, 64, 64, 17, 8.0)
  solids = {"other colours": SOLIDS, "nothing left": (), "one more": (*SOLIDS, ONE_MORE)}[wrong]
  frames_THWC[1:] = WORLD.render(dataclasses.replace(STATE, solids=solids), 64, 64, 17, 8.0)[1:]
  if wrong == "other colours":
    frames_THWC[1:] = frames_THWC[1:, ..., [2, 0, 1]]
  assert WORLD.examine(frames_THWC, 8.0, STATE)["colour"] == 0.0


def test_a_picture_that_wobbles_is_not_rigid():
  """Every row slides to and fro by itself: no camera does that."""
  frames_THWC = WORLD.render(STATE, 96, 96, 17, 8.0)
  for frame in range(17):
    for row in range(96):
      frames_THWC[frame, row] = np.roll(frames_THWC[frame, row], round(5 * np.sin(row / 6 + 1.3 * frame)), axis=0)
  assert WORLD.examine(frames_THWC, 8.0, STATE)["rigid"] == 0.0
  assert WORLD.errors(frames_THWC, 8.0, STATE)["reprojection_px"] > 2.0


def test_errors_are_pixels_before_the_best_camera_and_before_that_of_the_caption():
  frames_THWC, other = WORLD.render(STATE, 96, 160, 17, 8.0), dataclasses.replace(STATE, move="pans right")
  right, wrong = (WORLD.errors(frames_THWC, 8.0, state) for state in (STATE, other))
  assert right["reprojection_px"] == wrong["reprojection_px"] < 2.0
  assert right["caption_camera_px"] < 3.0 < wrong["caption_camera_px"]
  assert WORLD.errors(frames_THWC[:1], 8.0, STATE) == {}
  assert set(WORLD.errors(np.zeros((9, 64, 64, 3)), 8.0, STATE).values()) == {np.inf}


def test_a_clip_without_anything_to_follow_is_not_rigid():
  assert WORLD.examine(np.zeros((9, 64, 64, 3)), 8.0, STATE) == {
    "colour": 0.0,
    "solid": 0.0,
    "camera": 0.0,
    "rigid": 0.0,
  }


@pytest.mark.parametrize("move", camera3d.MOVES)
def test_the_camera_of_three_frames_is_read(move):
  for seed in range(3):
    state = dataclasses.replace(WORLD.sample(np.random.default_rng(seed)), move=move)
    assert WORLD.examine(WORLD.render(state, 96, 96, 3, 16.0), 16.0, state)["camera"] == 1.0


def test_an_orbit_that_turns_back_or_stops_is_another_one():
  solids = tuple(
    camera3d.Solid(colour, solid, slot, 0.0, 0.0, 0.3)
    for colour, solid, slot in (("red", "box", "left"), ("yellow", "sphere", "middle"), ("blue", "cone", "right"))
  )
  state = camera3d.Camera3dState(solids, "orbits left")
  frames_THWC = WORLD.render(state, 96, 96, 33, 8.0)
  back_THWC = np.concatenate([frames_THWC[:17], frames_THWC[15::-1]])
  stopped_THWC = np.concatenate([frames_THWC[:14], np.repeat(frames_THWC[14:15], 19, axis=0)])
  for wrong_THWC in (back_THWC, stopped_THWC):
    assert WORLD.examine(wrong_THWC, 8.0, state)["camera"] == 0.0
