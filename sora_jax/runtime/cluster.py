"""What the environment says of the other processes of a run: how many there are, which this is, where the first one is.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID    who starts the processes says it
    Slurm, GKE, TPU VMs                                           JAX finds it out

In every other place a process is alone.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sora_jax.errors import SoraError

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
SECONDS = 300  # for the first host's name to be known to the network


class HostsError(SoraError, RuntimeError):
  """Hosts are missing, late or not of one mind; the message names them."""


class Place(NamedTuple):
  """This process among those of its run.

  Attributes:
    address: HOST:PORT of process 0.
    devices: numbers of the GPUs that it uses; None: all that it sees.
  """

  address: str
  count: int  # type: ignore[assignment]  # hides the tuple's method, as `index` does
  index: int  # type: ignore[assignment]
  devices: Sequence[int] | None = None


def place(env: Mapping[str, str]) -> Place | None:
  """Where the environment puts this process; None where it is alone.

  Raises:
    HostsError: the environment says half of it, or nonsense.
  """
  given = {name: env[name] for name in EXPLICIT if env.get(name)}
  listed = ", ".join(f"{name}={value}" for name, value in given.items())
  numbers = env.get("JAX_LOCAL_DEVICE_IDS", "")
  whole = {"JAX_LOCAL_DEVICE_IDS": numbers.split(",") if numbers else []}
  whole |= {name: [env[name]] for name in ("SLURM_NTASKS", "MEGASCALE_NUM_SLICES") if env.get(name)}
  for name, values in whole.items():
    if not all(value.strip().isdecimal() for value in values):
      raise HostsError(f"{name}={env[name]}: needed are whole numbers")
  devices = [int(number) for number in numbers.split(",")] if numbers else None
  in_slurm = all(name in env for name in SLURM)
  if len(given) == len(EXPLICIT):
    address, count, index = given.values()
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and count.isdecimal() and index.isdecimal() and int(index) < int(count)):
      raise HostsError(f"{listed}: needed are HOST:PORT, how many processes there are, and which this is, from 0")
    found = Place(address, int(count), int(index), devices)
  elif given.keys() & EXPLICIT[1:] or (given and not in_slurm and "TPU_WORKER_HOSTNAMES" not in env):
    lacking = ", ".join(name for name in EXPLICIT if name not in given)
    raise HostsError(f"{listed}, but no {lacking}: several processes need all three, one needs none")
  elif in_slurm and int(env["SLURM_NTASKS"]) > 1 or not in_slurm and _in_pod(env):
    found = ask_jax(env.get(EXPLICIT[0]), devices)
  else:
    return None
  return found if found.count > 1 else None


def _in_pod(env: Mapping[str, str]) -> bool:
  """Whether this is a TPU host with, perhaps, others. GKE tells; a TPU VM's metadata server tells JAX."""
  if "TPU_WORKER_HOSTNAMES" in env:
    return "," in env["TPU_WORKER_HOSTNAMES"] or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
  if importlib.util.find_spec("libtpu") is None or "tpu" not in env.get("JAX_PLATFORMS", "tpu"):
    return False
  import jax  # noqa: F401  which sets this variable where it finds no chips

  return "TPU_SKIP_MDS_QUERY" not in env


def ask_jax(address: str | None, devices: Sequence[int] | None) -> Place:
  """The place that JAX finds; what is given stays."""
  from jax._src import clusters  # what `jax.distributed.initialize` asks; it has no public name

  detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
  found = detect(address, None, None, devices, None, SECONDS)
  found_address, count, index, its_devices = found
  if found_address is None or count is None or index is None:
    raise HostsError(f"JAX can't tell the processes of this run: set {', '.join(EXPLICIT)}")
  return Place(found_address, count, index, its_devices)
