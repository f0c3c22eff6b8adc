"""One training run on one queued resource: created, installed, started, watched, and again after a preemption.

No step relies on what an earlier one did: it asks gcloud for the state of the resource and the workers for the state of
training. So a run that was interrupted at any point resumes from what is there.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator

import common
import gcloud
from gcloud import ABSENT, ACTIVE, DELETING, GONE, HERE, SUSPENDING, UNKNOWN, Pod

PATIENCE = 10  # tries at least
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SORA = ".venv/bin/sora"


class Preempted(Exception):
  """The resource is not active any more."""


class Run:
  """One training run on one queued resource, from nothing to its end."""

  def __init__(self, pod: Pod, args: argparse.Namespace):
    self.args, self.pod = args, pod
    self.words = common.training(args, SORA)
    self.restarts = common.Restarts(args.max_restarts, args.pause)
    self.archive = common.FILES / f"{pod.name}.tar.gz"
    self.alone = False  # training has begun: the user may not be watching any more
    self.asked = 0.0  # time.monotonic() when this run made its last request
    self.ready = False  # the code is installed on the present workers
    self.last_line = ""

  def plan(self) -> list[list[str]]:
    """Every command of a run without failures, in order; the two before the last repeat while it trains."""
    pod = self.pod
    return [
      *(pod.describe(), pod.create(), pod.describe()),
      *([words for words, _ in self.set_up_steps()]),
      pod.on_workers("start", "--", *self.words),
      *(pod.describe(), pod.on_workers("status")),
      *([] if self.args.keep else [pod.delete()]),
    ]

  def set_up_steps(self) -> list[tuple[list[str], str]]:
    git = ["git", "-C", str(common.ROOT)]
    return [
      ([*git, "status", "--porcelain", "--untracked-files=no"], "looking for changes that are not committed"),
      ([*git, "archive", "--format=tar.gz", f"--prefix={HERE}/", f"--output={self.archive}", self.args.ref], "packing"),
      (self.pod.upload(str(self.archive), f"{HERE}.tar.gz"), "uploading"),
      (self.pod.ssh(["tar", "-xzf", f"{HERE}.tar.gz"]), "unpacking"),
      (self.pod.on_workers("install", "tpu,gcs"), "installing (minutes)"),
    ]

  # The resource.

  def get_active(self) -> None:
    """Creates the resource, or takes the one that is there, and waits until it is active."""
    begin = told = time.monotonic()
    limit, before, waiting = begin + self.args.wait_minutes * 60, "", False
    while (seen := self.see()).state != ACTIVE:
      now = time.monotonic()
      if waiting and seen.state in (ABSENT, DELETING):
        raise self.deleted(seen.state)
      if now > limit:
        raise self.withdrawn(f"is {seen.state} after {self.args.wait_minutes:g} minutes", "--wait_minutes allows more")
      if seen.state == ABSENT:
        self.create()
        waiting = True
        continue
      if seen.state in GONE:
        self.replace(seen)
        waiting = False
        continue
      if seen.state != before or now - told > 600:
        common.say(f"{self.pod.name} is {seen.state}, {(now - begin) / 60:.0f} minutes so far")
        before, told = seen.state, now
      time.sleep(self.args.poll)
    self.must_match(seen)
    common.say(f"{self.pod.name} is {ACTIVE}")

  def must_be_active(self) -> None:
    """Raises Preempted where it is not, or LaunchError where someone deleted it: that is not undone."""
    state = self.see().state
    if state in (ABSENT, DELETING):
      raise self.deleted(state)
    if state != ACTIVE:
      raise Preempted(state)

  def deleted(self, state: str) -> common.LaunchError:
    return common.LaunchError(f"{self.pod.name} is {state}: someone deleted it; the same command creates it again")

  def withdrawn(self, why: str, more: str) -> common.LaunchError:
    """Deletes a request that this run no longer waits for: granted later, it would cost money unused."""
    self.until(True, self.pod.delete(), f"withdrawing {self.pod.name}, which {why}")
    return common.LaunchError(f"{self.pod.name} {why} and is withdrawn: the same command asks again, {more}")

  def create(self) -> None:
    what = f"creating {self.pod.name} ({self.pod.accelerator}, {self.pod.tier or 'on demand'})"
    if self.alone:
      self.until(False, self.pod.create(), what)
    else:
      self.must(self.pod.create(), what)
    self.asked = time.monotonic()

  def expired(self) -> bool:
    """Whether the last request has waited for as long as it was to be valid."""
    valid = self.args.valid_until
    return bool(valid and self.asked) and time.monotonic() - self.asked >= int(valid[:-1]) * UNITS[valid[-1]]

  def replace(self, seen: gcloud.Seen) -> None:
    if seen.state == "FAILED":
      common.say(f"{self.pod.name} failed: {seen.error or 'no reason given'}")
      if self.expired():
        raise self.withdrawn(f"failed after {self.args.valid_until}", "--valid_until allows more")
      try:
        pause = self.restarts.after(1)
      except common.LaunchError:
        raise common.LaunchError(f"{self.pod.name} failed again: {seen.error or 'no reason given'}") from None
    else:
      pause = (
        self.args.poll
      )  # wait: a resource that is preempted before it was active would else be requested again at once
    time.sleep(pause)
    self.until(True, self.pod.delete(), f"deleting {self.pod.name}, which is {seen.state}")

  def tries(self, alone: bool = True) -> Iterator[int]:
    """1, 2, 3 ... with pauses: PATIENCE times; for --silence_minutes once training has begun (`alone`)."""
    limit = time.monotonic() + (60 * self.args.silence_minutes if alone else 0.0)
    number = 0
    while number < PATIENCE or time.monotonic() < limit:
      time.sleep(self.args.poll if number else 0)
      number += 1
      yield number

  def see(self) -> gcloud.Seen:
    """The state of the resource; where gcloud does not answer, it is asked again for a while."""
    seen = gcloud.Seen(UNKNOWN)
    for number in self.tries():
      seen = gcloud.see(self.pod)
      if seen.state != UNKNOWN:
        return seen
      common.say(f"no answer from gcloud ({seen.error}), try {number}")
    raise self.no_answer(seen)

  def no_answer(self, seen: gcloud.Seen) -> common.LaunchError:
    return common.LaunchError(f"gcloud tells nothing of {self.pod.name}: {seen.error}; the same command asks again")

  def until(self, gone: bool, words: list[str], what: str) -> None:
    """Repeats a command until it succeeds, or until the resource is absent (`gone`) or present as it should be."""
    reason = ""
    common.say(what)
    for number in self.tries():
      result = common.capture(words, gcloud.SLOW)
      if not result.code or (self.see().state == ABSENT) == gone:
        return
      reason = result.reason
      common.say(f"{what} failed ({reason}), try {number}")
    raise common.LaunchError(
      f"{what} failed: {reason}; while it is there it costs: `{self.pod.again('delete')}` removes it"
    )

  def must(self, words: list[str], what: str) -> None:
    common.say(what)
    result = common.capture(words, gcloud.SLOW)
    if result.code:
      raise common.LaunchError(f"{what} failed: {result.reason}")

  def must_match(self, seen: gcloud.Seen) -> None:
    for name, there, asked in (
      ("accelerator", seen.accelerator, self.pod.accelerator),
      ("runtime", seen.runtime, self.pod.runtime),
    ):
      if there and there != asked:
        raise common.LaunchError(
          f"{self.pod.name} is there already with {name} {there}, not {asked}: take another name, or remove it "
          f"(`{self.pod.again('delete')}`)"
        )

  # Training on it.

  def take_up(self) -> bool:
    """Whether this run trains there already.

    Raises:
      LaunchError: the resource is of another kind, or trains another run.
    """
    seen = gcloud.see(
      self.pod
    )  # asked once: the user has just typed this command and should see at once that gcloud does not answer
    if seen.state == UNKNOWN:
      raise self.no_answer(seen)
    if seen.state not in (ABSENT, DELETING, SUSPENDING, *GONE):
      self.must_match(seen)
    if seen.state != ACTIVE:
      return False
    common.say(f"{self.pod.name} is there already and {ACTIVE}")
    found = self.ask(new=True)
    running = [report["words"] for report in found if report["state"] == "running"]
    others = [words for words in running if words != self.words]
    if others:
      raise common.LaunchError(
        f"{self.pod.name} trains another run ({shlex.join(others[0])}): wait for it, or end it "
        f"(`{self.pod.again('stop')}`)"
      )
    self.ready = len(running) == len(found) > 0
    return self.ready

  def ask(self, new: bool = False) -> list[dict]:
    """What every worker reports; nothing while a `new` one has no code yet."""
    reason = ""
    for number in self.tries(alone=not new):
      result = common.capture(self.pod.on_workers("status"), gcloud.QUICK)
      if (found := gcloud.reports(result)) is not None:
        return found
      if new and "No such file" in result.err:
        return []
      self.must_be_active()
      reason = result.reason
      common.say(f"no answer from the workers ({reason}), try {number}")
    raise common.LaunchError(
      f"{self.pod.name} is {ACTIVE}, but its workers don't answer ({reason}): the same command looks again, "
      f"`{self.pod.again('delete')}` removes it"
    )

  def set_up(self) -> None:
    (changed, _), (pack, _), *remote = self.set_up_steps()
    common.FILES.mkdir(parents=True, exist_ok=True)
    result = common.capture(changed, gcloud.QUICK)
    if result.out.strip():
      common.say(f"warning: changes that are not committed stay here; the workers get {self.args.ref}")
    self.must(pack, f"packing {self.args.ref}")
    for words, what in remote:
      self.on_all(words, what)
    self.archive.unlink(missing_ok=True)
    self.ready = True

  def on_all(self, words: list[str], what: str) -> common.Result:
    """A step on all workers that is safe to repeat: ssh fails at times, above all on new machines."""
    reason = ""
    common.say(f"{what} on {self.pod.name}")
    for number in self.tries(self.alone):
      result = common.capture(words, gcloud.SLOW)
      if not result.code:
        return result
      reason = result.reason
      self.must_be_active()
      common.say(f"{what} failed ({reason}), try {number}")
    raise common.LaunchError(
      f"{what} failed on {self.pod.name}: {reason}; the same command tries again, "
      f"`{self.pod.again('delete')}` removes it"
    )

  def watch(self) -> int:
    """The exit code of training, when it has ended on all workers or failed on one."""
    while True:
      time.sleep(self.args.poll)
      self.must_be_active()
      found = self.ask()
      if any(report["state"] != "running" and report["code"] != 0 for report in found):
        return self.failed(found)
      if all(report["code"] == 0 for report in found):
        return 0
      self.progress(found[0])

  def progress(self, report: dict) -> None:
    line = report["tail"][-1] if report["tail"] else ""
    if line and line != self.last_line:
      common.say(f"{report['sora_worker']}: {line}")
      self.last_line = line

  def failed(self, found: list[dict]) -> int:
    """Ends training on the other workers and says what the failing ones wrote; gives the exit code that counts."""
    bad = [report for report in found if report["state"] != "running" and report["code"] != 0]
    ended = gcloud.reports(self.on_all(self.pod.on_workers("stop"), "ending training")) or []
    # A worker that failed while the others were being asked shows up only now.
    bad = [report for report in ended if report["by_itself"] and report["code"] != 0] or bad
    codes = [1 if report["code"] is None else report["code"] for report in bad]
    # When one host leaves, the others are aborted: a host that asks to be run again explains their exit codes.
    if common.REQUEUE in codes:
      return common.REQUEUE
    for report in bad:
      for line in report["tail"]:
        print(f"  {report['sora_worker']}: {line}", file=sys.stderr)
    return min(codes)  # aborted ones have 134

  def go(self) -> int:
    first = True
    while True:
      try:
        running = first and self.take_up()
        first = False
        if not running:
          self.get_active()
          if not self.ready:
            self.set_up()
          self.on_all(self.pod.on_workers("start", "--", *self.words), "starting training")
        self.alone = True
        code = self.watch()
      except Preempted as gone:
        common.say(f"{self.pod.name} is {gone}: it is created again, and training resumes from {self.args.workdir}")
        self.ready = False
        continue
      if code == 0:
        break
      pause = self.pause_after(code)
      common.say(f"training ended with exit status {code}: starting it again" + (f" in {pause:g} s" if pause else ""))
      time.sleep(pause)
    common.say("training is done")
    if not self.args.keep:
      self.until(True, self.pod.delete(), f"deleting {self.pod.name}")
    return 0

  def pause_after(self, code: int) -> float:
    try:
      return self.restarts.after(code)
    except common.LaunchError as error:
      left = f"{self.pod.name} is still there: `{self.pod.again('delete')}` removes it"
      raise common.LaunchError(f"{error}; {left}", error.status) from None
