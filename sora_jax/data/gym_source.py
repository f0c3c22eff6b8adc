"""Episodes of a Gymnasium environment as clips: `gym:NAME`, played at random; the extra "gym".

Pictures are what the environment draws, at its own size and rate. Captions are its name, the mission of an episode
where there is one (MiniGrid), and what the player has achieved (Crafter, which keeps to an older interface). In Python
a source may be given who plays.

Shape letters: T frames, H height, W width, C colours.
"""

import contextlib
import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax.clips import Clip, from_uint8
from sora_jax.data.files import MAX_CAPTION, Dropped, View, is_clean
from sora_jax.errors import InputError
from sora_jax.video import io as video_io

FPS = 10.0  # of an environment that doesn't say
TRIES = 8  # episodes begun for one that lasts as long as its clip
PACKAGES = ("minigrid", "ale_py")  # which add environments when they are imported
CRAFTER = {"CrafterReward-v1": True, "CrafterNoReward-v1": False}  # by their names in the older Gym
Policy = Callable[[Any, np.random.Generator], Any]  # (observation, randomness of the episode) -> action
_NAME = re.compile(r"[A-Za-z0-9_/.-]{1,80}")  # no colon: gymnasium would import what stands before it


class GymSource:
  """Clips of an environment: number i is always the same episode, played by the same actions.

  Durations take turns. An episode that ends too early is begun again with another seed; where all end, its last frame
  stays.
  """

  dropped: Sequence[Dropped] = ()

  def __init__(self, name: str, clips: int, frames: Sequence[int], view: View, seed: int, policy: Policy | None = None):
    """
    Args:
      name: of the environment, as `gymnasium.make` takes it.
      frames: durations; 1 is an image.
      view: how clips are seen; its rate of 0 keeps the environment's.
      policy: a function with a name, which captions tell; None plays at random.

    Raises:
      InputError: no such environment, or it draws nothing.
    """
    view.check()
    if clips < 1 or not frames or not all(isinstance(each, int) and each > 0 for each in frames):
      raise InputError(f"gym:{name} needs clips and frames above 0, as numbers: got {clips} and {tuple(frames)}")
    self.name, self.clips, self.view, self.seed, self.policy = name, clips, view, seed, policy
    self.frames = [min(each, view.max_frames) for each in frames]
    self._words: dict[int, dict[str, str]] = {}
    with contextlib.closing(_open(name)) as env:
      try:
        env.reset(seed=seed)
        picture = _picture(env, name)
      except InputError:
        raise
      except Exception as error:  # such as a library for drawing that is missing
        raise InputError(f"gym:{name} can't be drawn: {' '.join(str(error).split())[:300]}") from error
      self.native = picture.shape[:2]
      version = getattr(importlib.import_module("gymnasium"), "__version__", "")
      rate = env.metadata.get("render_fps")
    self.own_fps = float(rate) if rate and 0 < float(rate) < 1000 else FPS
    drawn = hashlib.sha256(picture.tobytes()).hexdigest()  # another version of the environment draws something else
    played = f"{policy.__module__}.{policy.__qualname__}" if policy else ""
    key = f"gym {name} {version} {clips} {self.frames} {view.fps} {self.native} {seed} {drawn} {played}"
    self.fingerprint = self.media_fingerprint = self.captions_fingerprint = hashlib.sha256(key.encode()).hexdigest()

  def __len__(self) -> int:
    return self.clips

  def shape(self, index: int) -> tuple[int, int, int]:
    frames = self.frames[index % len(self.frames)]
    return frames, *(self.view.fit(frames, *self.native) if self.view.fit else self.native)

  def fps(self, index: int) -> float:
    return float(self.view.fps or self.own_fps)

  def where(self, index: int) -> tuple[str, int]:
    return f"gym:{self.name}-{index}", 0

  def captions(self, index: int) -> dict[str, str]:
    """An episode's words are known when it is played."""
    if index not in self._words:
      self._play(index, self.shape(index)[0])
    return self._words[index]

  def __getitem__(self, index: int) -> Clip:
    frames, height, width = self.shape(index)
    pictures = self._play(index, frames)
    frames_THWC = from_uint8(np.stack([video_io.resize(picture, (height, width)) for picture in pictures]))
    return Clip(frames_THWC, self.fps(index), self._words[index]["long"], self.where(index)[0])

  def _play(self, index: int, frames: int) -> list[np.ndarray]:
    """The pictures of an episode at the source's rate, uint8 (H, W, C) each; notes its captions."""
    if not 0 <= index < self.clips:
      raise IndexError(index)
    steps = 1 + int(round((frames - 1) * self.own_fps / self.fps(index)))
    with contextlib.closing(_open(self.name)) as env:
      for turn in range(TRIES):
        seed = int(np.random.default_rng([self.seed, index, turn]).integers(2**31))
        pictures, words = _episode(env, self.name, seed, steps, self.policy)
        if len(pictures) == steps:
          break
    self._words[index] = words
    picks = np.round(np.arange(frames) * self.own_fps / self.fps(index)).astype(int)
    return [pictures[min(pick, len(pictures) - 1)] for pick in picks.tolist()]


def _open(name: str) -> Any:
  """The environment, which draws into arrays.

  Raises:
    InputError: gymnasium is not installed, or there is no such environment here.
  """
  if not _NAME.fullmatch(name):
    raise InputError(f"gym:{name}: the name of an environment has letters, digits and _ / . - alone")
  try:
    gymnasium = importlib.import_module("gymnasium")
  except ImportError as error:
    raise InputError(f"gym:{name} needs Gymnasium: pip install -e '.[gym]'") from error
  if name in CRAFTER:
    return _Crafter(CRAFTER[name], gymnasium)
  for package in PACKAGES:
    with contextlib.suppress(Exception):  # a broken one adds none
      importlib.import_module(package)
  try:
    return gymnasium.make(name, render_mode="rgb_array").unwrapped
  except Exception as error:  # gymnasium's own errors, and those of what an environment imports
    raise InputError(f"gym:{name} can't be opened: {' '.join(str(error).split())[:300]}") from error


class _Crafter:
  """Crafter (Hafner 2021) as Gymnasium has environments; it takes its seed when it is made."""

  metadata: dict[str, Any] = {}

  def __init__(self, reward: bool, gymnasium: Any):
    """
    Raises:
      InputError: Crafter is not installed.
    """
    try:
      self.package = importlib.import_module("crafter")
    except ImportError as error:
      raise InputError("gym:Crafter... needs Crafter: pip install crafter") from error
    self.reward = reward
    self.env: Any = None
    self.action_space = gymnasium.spaces.Discrete(len(self.package.constants.actions))

  def reset(self, seed: int) -> tuple[Any, dict]:
    self.env = self.package.Env(reward=self.reward, seed=seed)
    return self.env.reset(), {}

  def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
    observation, reward, done, info = self.env.step(int(action))
    return observation, reward, done, False, info

  def render(self) -> np.ndarray:
    return self.env.render()

  def close(self) -> None:
    self.env = None


def _picture(env: Any, name: str) -> np.ndarray:
  """
  Raises:
    InputError: the environment draws no picture.
  """
  picture = np.asarray(env.render())
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
    raise InputError(f"gym:{name} draws {picture.dtype} of {picture.shape}, not uint8 pictures (H, W, 3)")
  return picture


def _episode(
  env: Any, name: str, seed: int, steps: int, policy: Policy | None
) -> tuple[list[np.ndarray], dict[str, str]]:
  """At most so many pictures of an episode, and its captions."""
  observation, info = env.reset(seed=seed)
  env.action_space.seed(seed)
  rng = np.random.default_rng(seed)
  pictures = [_picture(env, name)]
  while len(pictures) < steps:
    action = policy(observation, rng) if policy else env.action_space.sample()
    observation, _, ended, cut, info = env.step(action)
    pictures.append(_picture(env, name))
    if ended or cut:
      break
  return pictures, _words_of(name, observation, info, policy.__name__ if policy else "random")


def _words_of(name: str, observation: Any, info: Any, player: str) -> dict[str, str]:
  """Captions by what an environment tells of itself, and who plays."""
  title = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"-v\d+$", "", name.split("/")[-1])).replace("-", " ").lower()
  short, more = f"the game {title}", []
  mission = observation.get("mission") if isinstance(observation, dict) else None
  if isinstance(mission, str) and mission.strip() and is_clean(mission):
    more.append(f"the mission is to {mission.strip()}")
  achieved = info.get("achievements") if isinstance(info, dict) else None
  done = sorted(str(each) for each, count in achieved.items() if count) if isinstance(achieved, dict) else []
  if done:
    more.append(f"the player did {', '.join(done).replace('_', ' ')}")
  played = "at random" if player == "random" else f"by {player.replace('_', ' ')}"
  long = "; ".join([f"{short}, played {played}", *more])
  return {"short": short, "long": f"{long[0].upper()}{long[1:]}."[:MAX_CAPTION]}
