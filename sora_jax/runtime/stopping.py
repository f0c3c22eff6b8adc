"""When a run that was told to end ends: at the same place on all hosts, whichever of them was told."""

import math
import time

from sora_jax.runtime import hosts, preemption

SECONDS = 5.0  # of steps after which the hosts ask each other
MOST_STEPS = 1000  # and steps


def agreed(step: int) -> int:
  """Why the run ends here, as `preemption.asked`: 0 on all hosts or on none; they call it at the same steps.

  Args:
    step: of a loop that asks after every one; several hosts then speak to each other every few seconds only, and a host
      that is told while they speak is heard the next time.
  """
  return preemption.asked() if hosts.count() == 1 else _talks.ask(step)


def heard() -> bool:
  """Whether some host was told to end, as far as this one knows. Others may know more, or less."""
  return hosts.raised(bool(preemption.asked()))


def end_here(what: str) -> None:
  """Ends a run that was told to end; all hosts call it at the same places.

  Args:
    what: is on disk, for the message.

  Raises:
    Preempted: on all hosts.
  """
  reason = preemption.asked()
  if any(hosts.gather("whether a host was told to end", reason)):
    raise preemption.Preempted(preemption.message(reason or preemption.ELSEWHERE, what))


class _Talks:
  """After which steps the hosts speak to each other: host 0 says how long a step takes, so that all know the next."""

  def __init__(self):
    self.step, self.next, self.time = math.inf, math.inf, 0.0

  def ask(self, step: int) -> int:
    if self.step < step < self.next:
      return 0
    somebody = heard()  # always: it tells the others too
    reason = preemption.asked() or (preemption.ELSEWHERE if somebody else 0)
    now, steps, every = time.monotonic(), step - self.step, 1
    if 0 < steps < math.inf:
      every = int(SECONDS * steps / max(now - self.time, 1e-3))
      every = min(max(every, 1), 2 * steps, MOST_STEPS)  # a host runs ahead of its first steps, which seem to be fast
    reason, every = hosts.agree("whether the run ends", [reason, every])
    self.step, self.next, self.time = step, step + every, now
    return reason and (preemption.asked() or reason)


_talks = _Talks()
