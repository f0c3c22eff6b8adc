"""Where a preempted run stops: at the same place on all hosts, whichever of them was asked to."""

import math
import time

from sora_jax.runtime.hosts import Hosts
from sora_jax.runtime.preemption import ELSEWHERE, Preempted, Preemption, message

SECONDS = 5.0  # of steps after which the hosts ask each other
MOST_STEPS = 1000  # and steps


class Stopping:
  """The decision of one loop or phase, which all hosts take at the same places."""

  def __init__(self, hosts: Hosts, preemption: Preemption):
    self.hosts, self.preemption = hosts, preemption
    # The last step and time at which the hosts asked each other, and the step at which they do so next.
    self._step: float = math.inf
    self._time = 0.0
    self._next: float = math.inf

  def reason(self, step: int) -> int:
    """Why the run stops after `step`, as `Preemption.reason`: 0 on all hosts or on none.

    Called after every step. Several hosts ask each other every few seconds only: host 0 measures how long a step takes
    and sets the next time, so that all know it. A host that is preempted while they ask is noticed the next time.
    """
    own = self.preemption.reason()
    if self.hosts.count == 1:
      return own
    if self._step < step < self._next:
      return 0
    known = self.preempted()  # always: it tells the other hosts too
    own = self.preemption.reason()
    now, steps = time.monotonic(), step - self._step
    every = 1
    if 0 < steps < math.inf:
      every = int(SECONDS * steps / max(now - self._time, 1e-3))
      every = int(
        min(max(every, 1), 2 * steps, MOST_STEPS)
      )  # a host runs ahead of its first steps, which seem to be fast
    reason, every = self.hosts.agree("whether the run ends", [own or (ELSEWHERE if known else 0), every])
    self._step, self._time, self._next = step, now, step + every
    return reason and (self.preemption.reason() or reason)

  def preempted(self) -> bool:
    """Whether some host was asked to stop, as far as this one knows. Others may know more, or less."""
    return self.hosts.raised(bool(self.preemption.reason()))

  def end_here(self, what: str) -> None:
    """Ends a preempted run; all hosts call it at the same places.

    Args:
      what: is on disk, for the message.

    Raises:
      Preempted: on all hosts.
    """
    reason = self.preemption.reason()
    if any(self.hosts.gather("whether a host was preempted", reason)):
      raise Preempted(message(reason or ELSEWHERE, what))
