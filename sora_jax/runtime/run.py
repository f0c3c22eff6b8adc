"""What a process knows of the run that it is a process of; made by a command and passed to all that asks."""

import dataclasses
import time

from sora_jax.runtime.goodput import Clock
from sora_jax.runtime.hosts import ALONE, Hosts
from sora_jax.runtime.preemption import Preemption
from sora_jax.runtime.stopping import Stopping


@dataclasses.dataclass(frozen=True)
class Run:
  """The defaults are those of a library's user: one host, which nothing preempts, and time that no file accounts for.

  Attributes:
    started: time.monotonic() when the process began.
  """

  hosts: Hosts = ALONE
  preemption: Preemption = dataclasses.field(default_factory=Preemption)
  clock: Clock = dataclasses.field(default_factory=Clock)
  started: float = dataclasses.field(default_factory=time.monotonic)

  def stopping(self) -> Stopping:
    """For one loop or phase."""
    return Stopping(self.hosts, self.preemption)
