"""The rules of the world of blocks, and how they are read from pixels."""

import dataclasses

import numpy as np
import pytest

from sora_jax.worlds import game
from tests.worlds import exams

WORLD = game.Game()
STATE = game.GameState("Ada", "walks", "hill", "right", 9)
ME = game.BRICK + 1


def test_real_renders_get_full_marks():
  assert min(exams.ceilings(WORLD, 2).values()) == 1.0


def test_a_spoiled_clip_is_read_too():
  assert min(exams.spoiled_marks(WORLD, 8).values()) >= 0.8


def test_training_never_shows_what_is_held_out():
  seen, unseen = exams.held_out_states(WORLD)
  assert not any((state.player, state.policy) in game.HELD_OUT for state in seen)
  assert all((state.player, state.policy) in game.HELD_OUT for state in unseen)


@pytest.mark.parametrize("terrain", game.TERRAINS)
@pytest.mark.parametrize("policy", game.POLICIES)
@pytest.mark.parametrize(("direction", "column"), [("right", game.LEFT), ("left", game.RIGHT)])
def test_every_policy_keeps_the_rules_and_stays_in_every_frame(terrain, policy, direction, column):
  state = game.GameState("Ada", policy, terrain, direction, column)
  grids_KRC, places_K2 = game.history(state, 60)
  looks = grids_KRC.copy()
  looks[np.arange(61), places_K2[:, 0], places_K2[:, 1]] = ME
  assert all(game.lawful(*pair, 1) for pair in zip(looks, looks[1:], strict=False))
  assert all(game.lawful(*pair, 3) for pair in zip(looks[::3], looks[3::3], strict=False))
  half = game.VISIBLE // 2
  assert (np.abs(places_K2 + 0.5 - game.SIDE / 2) < half).all()  # within the middle square


def test_policies_do_as_they_are_called():
  end = lambda policy, terrain="flat": game.history(dataclasses.replace(STATE, policy=policy, terrain=terrain), 40)
  start = game.land("flat")
  count = lambda grids_KRC: int((grids_KRC[-1] != start).sum())
  assert count(end("walks")[0]) == 0 and np.ptp(end("walks")[1][:, 1]) == game.RIGHT - game.LEFT
  grids_KRC, places_K2 = end("digs")
  assert count(grids_KRC) == 3 and np.ptp(places_K2[:, 0]) == 3
  assert (end("builds")[0][-1] == game.BRICK).sum() == 2
  assert count(end("tunnels")[0]) >= 5


def land(**changes: int) -> np.ndarray:
  """Four rows of level land with the player on it; `changes` are cells by name, such as r1c2."""
  cells = np.zeros((4, 5), int)
  cells[2], cells[3] = game.GRASS, game.DIRT
  cells[1, 1] = ME
  for name, kind in changes.items():
    cells[int(name[1]), int(name[3])] = kind
  return cells


@pytest.mark.parametrize(
  ("after", "fine"),
  [
    (land(), True),
    (land(r1c1=game.AIR, r1c2=ME), True),  # a step
    (land(r1c1=game.AIR, r1c3=ME), False),  # two at once
    (land(r1c1=game.AIR, r0c1=ME), False),  # a jump
    (land(r1c1=game.AIR, r0c2=ME), False),  # up without a block to step on
    (land(r2c1=game.AIR), True),  # taken from beneath
    (land(r2c4=game.AIR), False),  # out of reach
    (land(r1c2=game.BRICK), True),
    (land(r1c2=game.DIRT), False),  # only bricks are laid
    (land(r2c1=game.AIR, r2c2=game.AIR), False),  # two blocks at once
    (land(r1c3=ME), False),  # two players
    (land(r1c1=game.AIR), False),  # none
    (land(r1c1=ME + 1), False),  # another
    (land(r2c2=game.STONE), False),  # a block becomes another
    (land(r1c1=game.AIR, r1c2=ME, r2c1=game.AIR), False),  # a step and a block in one tick
  ],
)
def test_a_transition_is_lawful_or_not(after, fine):
  assert game.lawful(land(), after, 1) == fine


def test_who_stands_on_nothing_falls():
  before = land(r2c1=game.AIR)
  assert game.lawful(before, land(r1c1=game.AIR, r2c1=ME), 1)
  assert not game.lawful(before, before, 1)


def test_a_player_that_jumps_about_is_unlawful_and_out_of_place():
  frames_THWC = WORLD.render(STATE, 64, 64, 33, 8.0)
  marks = WORLD.examine(frames_THWC[np.random.default_rng(0).permutation(33)], 8.0, STATE)
  assert marks["lawful"] < 0.7 and marks["place"] == 0.0 and marks["player"] == 1.0


@pytest.mark.parametrize(
  ("change", "wrong"), [({"player": "Bo"}, "player"), ({"terrain": "pit"}, "terrain"), ({"policy": "digs"}, "policy")]
)
def test_another_state_is_marked_wrong(change, wrong):
  frames_THWC = WORLD.render(dataclasses.replace(STATE, **change), 64, 64, 33, 8.0)
  assert WORLD.examine(frames_THWC, 8.0, STATE)[wrong] == 0.0


def test_any_aspect_is_drawn_whole():
  wide = WORLD.render(STATE, 20, 100, 1, 8.0)
  assert np.isfinite(wide).all() and wide.shape == (1, 20, 100, 3)
  np.testing.assert_allclose(wide[0, 0], np.broadcast_to(game._COLOURS[game.AIR], (100, 3)), atol=1e-5)


@pytest.mark.parametrize("policy", ["walks", "digs", "builds"])
def test_a_player_that_does_nothing_does_not_follow_its_policy(policy):
  state = dataclasses.replace(STATE, policy=policy, terrain="flat")
  for frames in (3, 5, 17):
    frames_THWC = WORLD.render(state, 64, 64, frames, 8.0)
    assert WORLD.examine(frames_THWC, 8.0, state)["policy"] == 1.0
    assert WORLD.examine(np.repeat(frames_THWC[:1], frames, axis=0), 8.0, state)["policy"] == 0.0


def test_what_changes_within_a_tick_is_not_lawful():
  frames_THWC = WORLD.render(STATE, 96, 96, 33, 16.0)
  ticks_T = np.arange(33) // 4
  for frame in np.flatnonzero(np.append(ticks_T[1:] == ticks_T[:-1], False))[1:]:  # all but the last of each tick
    frames_THWC[frame] = frames_THWC[frame, ::-1]
  assert WORLD.examine(frames_THWC, 16.0, STATE)["lawful"] == 0.0
