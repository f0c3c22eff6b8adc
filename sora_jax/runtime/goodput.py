"""Where the wall time of a run went, over all of its starts: `goodput.json` in its log.

Every second since the process began is in one phase, as this host sees it: the loop says when it turns to another. What
XLA compiles is taken out of the phase that waited for it. The file is rewritten as time goes on, so that a killed
process leaves its own account, all but the last hundredth. Steps that a restart takes again are moved from "step" to
"lost".
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from sora_jax.runtime import storage

FILE = "goodput.json"
PHASES = ("init", "compile", "data", "step", "eval", "checkpoint", "other", "lost")
DONE, KILLED = "done", "killed"  # ends of a start: a killed one could not say so, the next one does
COMPILED = "/jax/core/compile/backend_compile_duration"  # an event of JAX's
BEAT, REMOTE_BEAT = 0.1, 15.0  # seconds between writes, at least
SHARE = 0.005  # of the time since the start between writes, where that is longer


class Clock:
  """The seconds of one run by phase; a new one goes on with what `folder` holds. One thread spends, others may look."""

  def __init__(self, folder: str | os.PathLike | None = None, started: float | None = None, writes: bool = True):
    """
    Args:
      folder: where the file is; None keeps the account in memory.
      started: time.monotonic() at the process's beginning.
      writes: one host of a run writes the file.
    """
    self.writes = writes
    self.path = None if folder is None else epath.Path(folder) / FILE
    before = read(folder) if folder is not None else {}
    self.seconds: dict[str, float] = before.get("seconds") or dict.fromkeys(PHASES, 0.0)
    self.models: dict[str, dict[str, Any]] = before.get("models", {})  # name -> its last step, and its steps' seconds
    self.starts, self.lost_steps = before.get("starts", 0) + 1, before.get("lost_steps", 0)
    ends = before.get("ends", [])
    self.ends: list[str] = ends + [KILLED] * (self.starts - 1 - len(ends))  # how each start ended, this one not yet
    self.wall_before = before.get("wall_seconds", 0.0)
    self.started = self.since = time.monotonic() if started is None else started
    self.phase, self.model = "init", ""
    self.lock, self.thread, self.failed = threading.RLock(), threading.get_ident(), False

  def spend(self, phase: str) -> None:
    with self.lock:
      self._book()
      self.phase = phase

  def take_up(self, model: str, step: int, saved: float | None) -> None:
    """Training of `model` goes on after `step`, when its steps had taken `saved` seconds; None: nobody noted it."""
    with self.lock:
      self._book()
      known = self.models.get(model, {"step": step, "seconds": 0.0})
      saved = known["seconds"] if saved is None else saved
      lost = max(known["seconds"] - saved, 0.0)
      self.seconds["step"] -= lost
      self.seconds["lost"] += lost
      self.lost_steps += max(known["step"] - step, 0)
      self.models[model] = {"step": step, "seconds": saved}
      self.model = model

  def reached(self, step: int) -> None:
    """A step of the model that trains is done."""
    self.models[self.model]["step"] = step

  def end(self, how: str) -> None:
    """This start is over: DONE, or what ended it, in a line."""
    with self.lock:
      self.ends.append(how)

  def step_seconds(self) -> float:
    """What the steps of the model that trains have taken, over all starts, lost ones left out."""
    with self.lock:
      self._book()
      return self.models[self.model]["seconds"]

  def compiled(self, event: str, duration_secs: float, **_: str | int) -> None:
    """A listener for JAX's events."""
    if event == COMPILED and threading.get_ident() == self.thread:
      with self.lock:
        self._book(duration_secs)

  def _book(self, compiled: float = 0.0) -> None:
    """Puts the time since the last look into its phase, `compiled` seconds of it into another."""
    now = time.monotonic()
    spent, self.since = now - self.since - compiled, now
    self.seconds[self.phase] += spent
    self.seconds["compile"] += compiled
    if self.phase == "step" and self.model:
      self.models[self.model]["seconds"] += spent

  def summary(self) -> dict[str, Any]:
    """What the file holds."""
    with self.lock:
      self._book()
      return {
        "wall_seconds": self.wall_before + self.since - self.started,
        "starts": self.starts,
        "ends": list(self.ends),
        "phase": self.phase,
        "seconds": dict(self.seconds),
        "lost_steps": self.lost_steps,
        "models": {name: dict(model) for name, model in self.models.items()},
      }

  def write(self) -> None:
    if self.path is None or not self.writes:
      return
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      storage.write_text(self.path, json.dumps(self.summary(), indent=1) + "\n")
    except Exception as error:  # of any file system; training does not depend on it
      if not self.failed:
        print(f"warning: {self.path} can't be written ({error}): training goes on without it", file=sys.stderr)
      self.failed = True

  def beat(self, stop: threading.Event) -> None:
    """Writes until `stop`."""
    least = REMOTE_BEAT if self.path is not None and storage.is_remote(self.path) else BEAT
    while not stop.wait(max(least, SHARE * (time.monotonic() - self.started))):
      self.write()


@contextlib.contextmanager
def accounted(folder: str | os.PathLike, started: float | None = None, writes: bool = True) -> Iterator[Clock]:
  """The clock of a run, which keeps its account in `folder` until the context ends."""
  import jax  # here: a command notes signals before it takes the seconds to import that

  clock = Clock(folder, started, writes)
  stop = threading.Event()
  beats = threading.Thread(target=clock.beat, args=(stop,), daemon=True)
  jax.monitoring.register_event_duration_secs_listener(clock.compiled)
  beats.start()
  try:
    yield clock
    clock.end(DONE)
  except BaseException as error:
    clock.end(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    raise
  finally:
    stop.set()
    beats.join()
    jax.monitoring.unregister_event_duration_listener(clock.compiled)
    clock.write()


def read(folder: str | os.PathLike) -> dict[str, Any]:
  """A run's account; empty where there is none that can be read."""
  try:
    found = json.loads((epath.Path(folder) / FILE).read_text())
    return found if found["seconds"].keys() == set(PHASES) else {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return {}
