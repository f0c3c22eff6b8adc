"""The gcloud commands for one queued resource and its TPU VMs, and what they answer. Decides nothing."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import common
import worker

ABSENT = "ABSENT"
UNKNOWN = "UNKNOWN"  # gcloud gave no answer
ACTIVE = "ACTIVE"
GONE = ("FAILED", "SUSPENDED")  # nothing comes of these any more: delete and create
DELETING, SUSPENDING = "DELETING", "SUSPENDING"
HERE = "sora_jax"  # the code's folder on a worker, in its user's home

QUICK = 180  # seconds for a call that should answer at once
SLOW = 3600  # seconds for an installation, or for a resource to be deleted


class Seen(NamedTuple):
  """A queued resource as it is."""

  state: str
  accelerator: str = ""
  runtime: str = ""
  error: str = ""


@dataclasses.dataclass(frozen=True)
class Pod:
  """A queued resource with one node of the same name."""

  name: str
  zone: str
  project: str | None = None
  accelerator: str = ""
  runtime: str = ""
  tier: str = ""  # "spot", "reserved" or "" for on demand
  valid_until: str | None = None
  startup_script: str | None = None
  internal_ip: bool = False

  def _tpus(self, *words: str) -> list[str]:
    where = [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])
    return ["gcloud", "compute", "tpus", *words, *where, "--quiet"]

  def create(self) -> list[str]:
    words = self._tpus("queued-resources", "create", self.name, f"--node-id={self.name}")
    words += [f"--accelerator-type={self.accelerator}", f"--runtime-version={self.runtime}"]
    words += [f"--{self.tier}"] if self.tier else []
    words += [f"--valid-until-duration={self.valid_until}"] if self.valid_until else []
    words += [f"--metadata-from-file=startup-script={self.startup_script}"] if self.startup_script else []
    return words + (["--internal-ips"] if self.internal_ip else [])

  def again(self, verb: str) -> str:
    """The launcher's own command for it, to be typed."""
    project = [f"--project={self.project}"] if self.project else []
    return shlex.join(["python", "launch/tpu_pod.py", verb, self.name, f"--zone={self.zone}", *project])

  def describe(self) -> list[str]:
    return [*self._tpus("queued-resources", "describe", self.name), "--format=json"]

  def delete(self) -> list[str]:
    return [*self._tpus("queued-resources", "delete", self.name), "--force"]

  def _connect(self, verb: str, *words: str, worker: str) -> list[str]:
    inside = ["--internal-ip"] if self.internal_ip else []
    return [*self._tpus("tpu-vm", verb, *words), f"--worker={worker}", *inside]

  def ssh(self, words: Sequence[str] = (), worker: str = "all") -> list[str]:
    # gcloud hands this to the remote shell as it is, so it is quoted here, once.
    return [*self._connect("ssh", self.name, worker=worker), *([f"--command={shlex.join(words)}"] if words else [])]

  def upload(self, path: str, name: str) -> list[str]:
    return self._connect("scp", path, f"{self.name}:{name}", worker="all")

  def on_workers(self, *words: str) -> list[str]:
    """A command of launch/worker.py on every worker."""
    return self.ssh(["python3", f"{HERE}/launch/worker.py", *words])


def see(pod: Pod) -> Seen:
  """The resource as it is."""
  result = common.capture(pod.describe(), QUICK)
  if result.code:
    return Seen(ABSENT) if "NOT_FOUND" in result.err else Seen(UNKNOWN, error=result.reason)
  try:
    found = json.loads(result.out)
    state, node = found["state"], found["tpu"]["nodeSpec"][0]["node"]
    error = state.get("failedData", {}).get("error", {}).get("message", "")
    return Seen(state["state"], node["acceleratorType"], node["runtimeVersion"], error)
  except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
    return Seen(UNKNOWN, error=f"its answer can't be read: {type(error).__name__} {error}")


def reports(result: common.Result) -> list[dict] | None:
  """What worker.py says on every worker, among the lines that gcloud and ssh write; None if one of them is missing."""
  found = []
  for line in result.out.splitlines():
    if line.startswith(f'{{"{worker.MARK}"'):
      try:
        found.append(json.loads(line))
      except ValueError:
        return None
  complete = not result.code and len(found) == result.out.count(f'"{worker.MARK}"')
  return sorted(found, key=lambda report: report[worker.MARK]) if found and complete else None
