"""Liveness: every host says what it is at, and host 0 ends the run when one is silent or makes no progress.

JAX's own heartbeats abort all processes when one is gone, but tell neither which host is late nor in which phase, and a
host that waits in a collective can't notice that itself. So a thread of each host posts its phase and step, and host
0's thread reads all posts. Its verdict, one line with the name of the late host, ends every process before JAX would.
Where host 0 itself dies, JAX ends the others.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

BEAT = 1.0  # seconds between posts
SILENT = 60.0  # seconds without a post: the process is gone, or its machine; JAX aborts all after 100
RECENT = 5  # beats without a post, after which nobody is said to make no progress: it may be the silent one's fault
FIRST_TIME = 6.0  # times as long may a host be in a phase that it enters for the first time: it compiles, or reads
LINGER = 3.0  # seconds that host 0, which serves the verdict, stays after it
ROUND = 1000  # more phases than lie between two places where all hosts wait for each other
NAMED = 8  # hosts in a message
LISTEN = 5.0  # seconds of one wait for the verdict
POSTS, VERDICT = "sora/at/", "sora/verdict"


@dataclasses.dataclass(frozen=True)
class Post:
  """Where a host is.

  Attributes:
    beat: goes up with every post.
    stage: goes up with every phase, and to the next ROUND where hosts wait for each other: all enter the same phases,
      but one that, say, has nothing to encode leaves one out.
    age: seconds since the step of the phase began, or since the error.
    limit: seconds that it may take.
    error: what ended the host, or "".
    own: whether the error began there; where another host is gone or late, all that wait for it get one.
  """

  beat: int
  stage: int
  phase: str
  step: int
  age: float
  limit: float
  error: str = ""
  own: bool = True

  @property
  def where(self) -> str:
    return f"{self.phase} {self.step}" if self.step else self.phase


def verdict(posts: Mapping[int, Post], quiet: Mapping[int, float], names: Mapping[int, str], silent: float) -> str:
  """Why the run ends, or "".

  Args:
    posts: the last one of every host that has posted.
    quiet: seconds since it came, or since the start, in which host 0 looked.
    names: of all hosts.
    silent: seconds after which a host that posts nothing is lost.
  """
  failed = {host: post for host, post in posts.items() if post.error}
  waited = {host for host, post in failed.items() if post.age + quiet[host] > silent + LINGER}
  for host in [host for host, post in failed.items() if post.own]:
    return f"{named([host], names)} failed in {posts[host].where}: {posts[host].error}"
  last = lambda host: f"last in {posts[host].where if host in posts else 'the start'}"
  if lost := [host for host in names if quiet[host] > silent]:
    return f"{named(lost, names)}: nothing heard for {silent:g} s, {last(lost[0])}"
  if posts.keys() >= names.keys() and max(quiet.values()) < RECENT * BEAT:
    behind = min((post.stage, post.step) for post in posts.values())
    late = {host: post for host, post in posts.items() if (post.stage, post.step) == behind}
    if all(post.age > post.limit for post in late.values()):  # the last to come there frees the others
      post = next(iter(late.values()))
      return f"{named(late, names)} in {post.where} for {post.age:.0f} s: no progress"
  for host in waited:  # nobody is gone, so it was the network, or a device
    return f"{named([host], names)} failed in {posts[host].where}: {posts[host].error}"
  return ""


def named(hosts: Iterable[int], names: Mapping[int, str]) -> str:
  """ "host 1 (b)", or "hosts 1 (b), 2 (c) and 5 more"."""
  hosts = sorted(hosts)
  listed = ", ".join(f"{host} ({names.get(host, 'unknown')})" for host in hosts[:NAMED])
  more = f" and {len(hosts) - NAMED} more" if len(hosts) > NAMED else ""
  return f"host{'s' if len(hosts) > 1 else ''} {listed}{more}"


class Watchdog:
  """The threads of one host."""

  def __init__(self, client: Any, index: int, names: Mapping[int, str], seconds: float):
    """
    Args:
      client: of JAX's distributed runtime.
      seconds: that a host may be in one step.
    """
    self.client, self.index, self.names, self.seconds = client, index, names, seconds
    self.silent = min(SILENT, seconds)
    self.status = 1  # of this process, where the run is ended
    self._now = Post(0, 0, "the start", 0, 0.0, math.inf), time.monotonic()
    self._entered: set[str] = set()
    self._posts: dict[int, Post] = {}
    self._quiet, self._judged = dict.fromkeys(names, 0.0), time.monotonic()
    self._unheard = 0.0  # seconds since host 0 took a post of this one
    self._verdict, self._leaving = "", False
    self._ended, self._stop = threading.Event(), threading.Event()
    self._threads = [threading.Thread(target=each, name="watchdog", daemon=True) for each in (self._post, self._listen)]
    for thread in self._threads:
      thread.start()

  def at(self, phase: str, step: int = 0, seconds: float | None = None) -> None:
    """This host begins a phase, or a step of one, which may take `seconds`."""
    before = self._now[0]
    if seconds is None:
      seconds = self.seconds * (1.0 if step and phase in self._entered else FIRST_TIME)
    self._entered.add(phase)
    stage = before.stage + (phase != before.phase)
    self._now = dataclasses.replace(before, stage=stage, phase=phase, step=step, limit=seconds), time.monotonic()

  @contextlib.contextmanager
  def waiting(self, phase: str) -> Iterator[None]:
    """This host waits for others, or they for it, with a limit of their own; then it goes on with what it was at."""
    before = self._now[0]
    met = dataclasses.replace(before, stage=(before.stage // ROUND + 1) * ROUND, phase=phase, step=0, limit=math.inf)
    self._now = met, time.monotonic()
    yield
    self.at(before.phase, before.step, before.limit)

  def fail(self, error: str, own: bool) -> None:
    """Reports an error that ends this host, and waits for the verdict."""
    self._leaving = True
    self._now = dataclasses.replace(self._now[0], error=error, own=own), time.monotonic()
    self._ended.wait(2 * LINGER if own else self.silent + 4 * LINGER)

  def stop(self) -> None:
    """The run has ended well. A thread that is inside JAX while Python ends would abort the process."""
    self._stop.set()
    self.client.key_value_set(VERDICT, "", allow_overwrite=True)
    for thread in self._threads:
      thread.join(2 * LISTEN)

  def _post(self) -> None:
    """The thread that tells where this host is; the first host's judges."""
    beat = 0
    while not self._stop.wait(BEAT):
      post, since = self._now
      post = dataclasses.replace(post, beat=beat, age=time.monotonic() - since)
      beat += 1
      try:
        self.client.key_value_set(f"{POSTS}{self.index}", json.dumps(dataclasses.astuple(post)), allow_overwrite=True)
        self._unheard = 0.0
        if not self.index and (found := self._judge()):
          self.client.key_value_set(VERDICT, found)
          return
      except Exception:  # the network failed for a moment, or for good, which `_listen` sees
        continue

  def _judge(self) -> str:
    found = {
      int(key.rpartition("/")[2]): Post(*json.loads(content)) for key, content in self.client.key_value_dir_get(POSTS)
    }
    now = time.monotonic()
    passed, self._judged = min(now - self._judged, 2 * BEAT), now  # a pause of this host is nobody else's silence
    beats = lambda posts, host: posts[host].beat if host in posts else -1
    for host in self.names:
      self._quiet[host] = 0.0 if beats(found, host) > beats(self._posts, host) else self._quiet[host] + passed
    self._posts = found
    return verdict(found, self._quiet, self.names, self.silent)

  def _listen(self) -> None:
    """The thread that waits for the verdict and ends the process, unless the main thread is at that."""
    while not self._verdict:
      began = time.monotonic()
      try:
        self._verdict = self.client.blocking_key_value_get(VERDICT, int(LISTEN * 1000))
        if not self._verdict:
          return  # all has ended well
      except Exception:  # there is none yet, or host 0 does not answer
        if self._stop.wait(0 if time.monotonic() - began > BEAT else BEAT):
          return
      self._unheard += min(time.monotonic() - began, 2 * LISTEN)  # a pause of this host is not host 0's silence
      if self.index and self._unheard > self.silent and not self._verdict:
        where = self._now[0].where
        self._verdict = f"{named([0], self.names)}: nothing heard for {self.silent:g} s, when this one was in {where}"
    if not (self._leaving and self._now[0].own):  # the main thread says the same
      _say(self._verdict)
    if not self.index:
      time.sleep(LINGER)
    self._ended.set()
    if not self._leaving:
      os._exit(self.status)


def _say(text: str) -> None:
  print(f"\nsora: {text}", file=sys.stderr, flush=True)  # a progress bar may stand there
