"""Episodes of Gymnasium environments as clips."""

import pickle
import sys
import types

import gymnasium
import numpy as np
import pytest

from sora_jax.data import sources
from sora_jax.data.files import View
from sora_jax.data.gym_source import GymSource
from sora_jax.errors import InputError
from tests.conftest import make_tiny_config

ENDS = 7  # steps of an episode of the short environment


class Counter(gymnasium.Env):
  """Draws how many steps it has made and what it was told to do; it moves to the left or to the right."""

  metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
  action_space = gymnasium.spaces.Discrete(2)
  observation_space = gymnasium.spaces.Dict({})

  def __init__(self, render_mode=None, ends=10**6, wrong=False):
    self.ends, self.wrong = ends, wrong

  def reset(self, seed=None, options=None):
    super().reset(seed=seed)
    self.steps, self.place = 0, int(self.np_random.integers(4, 12))
    return {"mission": "reach the end"}, {}

  def step(self, action):
    self.steps += 1
    self.place = (self.place + 2 * int(action) - 1) % 16
    achieved = {"achievements": {"make_a_step": self.steps, "fly": 0}}
    return {"mission": "reach the end"}, 0.0, self.steps >= self.ends, False, achieved

  def render(self):
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[:, self.place] = 255
    picture[0, :, 0] = min(self.steps, 255)
    return picture.astype(np.float32) if self.wrong else picture


@pytest.fixture(scope="module", autouse=True)
def registered():
  names = {"CountUp-v0": {}, "CountShort-v0": {"ends": ENDS}, "CountWrong-v0": {"wrong": True}}
  for name, kwargs in names.items():
    gymnasium.register(name, entry_point=Counter, kwargs=kwargs, disable_env_checker=True)
  yield
  for name in names:
    gymnasium.registry.pop(name)


def source(name="CountUp-v0", clips=6, frames=(1, 5), view=None, seed=3) -> GymSource:
  return GymSource(name, clips, frames, view or View(), seed)


def steps_of(clip) -> list[int]:
  return np.round((clip.frames_THWC[:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def test_durations_take_turns_at_the_environment_s_size_and_rate():
  found = source()
  assert len(found) == 6 and [found.shape(index) for index in range(3)] == [(1, 12, 16), (5, 12, 16), (1, 12, 16)]
  assert found.fps(1) == 20.0
  assert steps_of(found[1]) == [0, 1, 2, 3, 4] and found[1].frames_THWC.dtype == np.float32


def test_a_number_is_always_the_same_episode_and_another_another():
  first, again = source(), pickle.loads(pickle.dumps(source()))
  np.testing.assert_array_equal(first[1].frames_THWC, again[1].frames_THWC)
  assert any((first[1].frames_THWC != first[number].frames_THWC).any() for number in (3, 5))
  assert first.fingerprint == again.fingerprint != source(seed=4).fingerprint


def test_another_rate_and_size_are_seen_of_the_same_episode():
  view = View(fps=10.0, max_frames=4, fit=lambda frames, height, width: (height // 2, width // 2))
  found = source(view=view)
  assert (
    found.shape(1) == (4, 6, 8) and found.fps(1) == 10.0 and steps_of(source(view=View(fps=10.0))[1]) == [0, 2, 4, 6, 8]
  )
  assert found[1].frames_THWC.shape == (4, 6, 8, 3)


def test_an_episode_that_ends_keeps_its_last_frame():
  assert steps_of(source("CountShort-v0", frames=(10,))[0]) == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


def test_captions_are_what_the_environment_tells():
  short, long = (source().captions(1)[style] for style in ("short", "long"))
  assert short == "the game count up"
  assert long == "The game count up, played at random; the mission is to reach the end; the player did make a step."


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("NoSuch-v9", "gym:NoSuch-v9 can't be opened"),
    ("os:CountUp-v0", "letters, digits"),
    ("", "letters, digits"),
    ("CountWrong-v0", "draws float32 of"),
  ],
)
def test_what_is_no_environment_is_told_in_one_line(name, message):
  with pytest.raises(InputError, match=message) as error:
    source(name)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"clips": 0}, {"frames": ()}, {"frames": (0,)}, {"frames": ("5..9",)}])
def test_clips_and_frames_must_be_above_none(changes):
  with pytest.raises(InputError, match="needs clips and frames above 0"):
    source(**changes)


def to_the_right(observation, rng) -> int:
  return int(rng.random() >= 0.0)


def test_a_policy_may_be_given_which_captions_name():
  played = GymSource("CountUp-v0", 4, (5,), View(), 3, to_the_right)
  clip = played[1]
  places = [int(np.argmax(frame[5, :, 1])) for frame in clip.frames_THWC]
  assert np.all(np.diff(places) % 16 == 1)
  assert clip.caption.startswith("The game count up, played by to the right; the mission")
  np.testing.assert_array_equal(played[1].frames_THWC, clip.frames_THWC)
  assert played.fingerprint != GymSource("CountUp-v0", 4, (5,), View(), 3).fingerprint


class OldEnv:
  """As Crafter's environments are: the seed is given first, steps have four values."""

  def __init__(self, reward, seed):
    self.rng, self.steps = np.random.default_rng(seed), 0

  def reset(self):
    self.colour = self.rng.integers(256, size=3, dtype=np.uint8)
    return self.render()

  def step(self, action):
    self.steps += 1
    done = {"collect_wood": self.steps > 2, "fly": 0}
    return self.render(), 0.0, False, {"achievements": done}

  def render(self):
    return np.broadcast_to(self.colour, (8, 8, 3)) // (1 + self.steps)


def test_crafter_is_played_by_its_older_interface(monkeypatch):
  crafter = types.SimpleNamespace(Env=OldEnv, constants=types.SimpleNamespace(actions=["noop", "left"]))
  monkeypatch.setitem(sys.modules, "crafter", crafter)
  played = source("CrafterReward-v1", clips=2, frames=(5,))
  first, second = played[0], played[1]
  assert first.frames_THWC.shape == (5, 8, 8, 3) and (first.frames_THWC != second.frames_THWC).any()
  assert first.caption == "The game crafter reward, played at random; the player did collect wood."
  np.testing.assert_array_equal(played[0].frames_THWC, first.frames_THWC)
  monkeypatch.setitem(sys.modules, "crafter", None)
  with pytest.raises(InputError, match="needs Crafter: pip install crafter"):
    source("CrafterReward-v1")


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
  with pytest.raises(InputError, match="needs Gymnasium: pip install"):
    source()


def test_it_is_a_source_like_others():
  section = make_tiny_config().data
  section.update(source="gym:CountUp-v0,worlds:shapes", clips=4, fps=0.0, max_tokens=0)
  section.fps = 8.0
  mixed = sources.open_source(section, 0)
  assert len(mixed) == 8 and mixed[1].frames_THWC.shape == (5, 12, 16, 3) and mixed.fps(1) == 8.0
  assert sources.open_native("gym:CountUp-v0").shape(1)[1:] == (12, 16)
