"""`sora doctor`: versions, devices, and what is known to go wrong on a machine like this one."""

import glob
import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sys
from collections.abc import Iterator

from absl import flags

from sora_jax.cli.command import Command, Given
from sora_jax.runtime import process

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "sentencepiece",
  "ml-collections",
  "numpy",
  "av",
)
SETTINGS = (
  "JAX_PLATFORMS",
  "JAX_COMPILATION_CACHE_DIR",
  "XLA_FLAGS",
  "XLA_PYTHON_CLIENT_MEM_FRACTION",
  "GLIBC_TUNABLES",
  "LD_PRELOAD",
)
# What the kernel shows of an accelerator, and the plugins by which JAX uses it.
ACCELERATORS = (
  ("an NVIDIA GPU", ("/dev/nvidia[0-9]*",), ("jax_cuda12_plugin", "jax_cuda13_plugin"), "pip install -e '.[gpu]'"),
  ("a TPU", ("/dev/accel[0-9]*",), ("libtpu",), "pip install -e '.[tpu]'"),
)
LITTLE_SHARED = 256 * 2**20  # bytes of /dev/shm: workers hand their batches over there
LITTLE_DISK = 2 * 2**30  # bytes
FEW_FILES = 1024  # open at a time: shards and workers take some each


def define_nothing(values: flags.FlagValues) -> None:
  """`doctor` reads no flags."""


def doctor(given: Given) -> dict:
  del given
  import av

  versions, problems = {}, list(machine_problems())
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      problems.append(f"{name} is not installed: pip install {name}")
  devices, processes, trouble = find_devices()
  problems += [*version_problems(versions), *trouble, *accelerator_problems({name.split(":")[0] for name in devices})]
  for codec in ("libx264", "h264"):
    if codec not in av.codecs_available:
      problems.append(f"the FFmpeg of av {av.__version__} lacks {codec}, so mp4 files can't be handled: reinstall av")
  return {
    "python": sys.version.split()[0],
    "versions": versions,
    "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
    "devices": devices,
    "processes": processes,
    "allocator": process.allocator(),
    "settings": {name: os.environ[name] for name in SETTINGS if os.environ.get(name)},
    "problems": problems,
  }


def find_devices() -> tuple[list[str], int, list[str]]:
  """JAX's devices, its number of processes, and what hinders it."""
  try:
    import jax

    found = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
    return found, jax.process_count(), []
  except (ImportError, RuntimeError) as error:
    reason = str(error).partition("\n")[0]
    return [], 0, [f"JAX finds no devices ({reason}): check JAX_PLATFORMS and the accelerator's driver"]


def version_problems(versions: dict[str, str]) -> Iterator[str]:
  """Packages that don't fit each other."""
  jax, jaxlib = versions.get("jax", ""), versions.get("jaxlib", "")
  minor = lambda version: version.split(".")[:2]
  if jax and jaxlib and minor(jax) != minor(jaxlib):
    yield f"jax {jax} and jaxlib {jaxlib} don't belong together: pip install --upgrade jax jaxlib"


def accelerator_problems(platforms: set[str]) -> Iterator[str]:
  """Accelerators that are here and that JAX does not use."""
  if platforms - {"cpu"}:
    return
  for what, devices, plugins, install in ACCELERATORS:
    if not any(glob.glob(pattern) for pattern in devices):
      continue
    if not any(importlib.util.find_spec(plugin) for plugin in plugins):
      yield f"this machine has {what} and JAX's plugin for it is not installed: {install}"
    elif os.environ.get("JAX_PLATFORMS"):
      yield f"this machine has {what} and JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} keeps JAX from it: unset it"
    else:
      yield f"this machine has {what} and JAX does not find it: see whether its driver works"


def machine_problems() -> Iterator[str]:
  """Limits of the system that end long runs."""
  if os.path.isdir("/dev/shm") and (free := shutil.disk_usage("/dev/shm").free) < LITTLE_SHARED:
    yield (
      f"/dev/shm has {free / 2**20:.0f} MiB free, too little for data.workers: give a container --shm-size=1g, "
      "or leave data.workers at 0"
    )
  if (free := shutil.disk_usage(".").free) < LITTLE_DISK:
    yield f"{os.getcwd()} has {free / 2**30:.1f} GiB free, little for checkpoints and latents: use another disk"
  if 0 < (most := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < FEW_FILES:
    yield f"a process may open only {most} files: ulimit -n 4096"
  if importlib.util.find_spec("torch") and "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ and _nvidia():
    yield (
      "PyTorch is installed here too: JAX takes three quarters of a GPU's memory when it starts; where both run, set "
      "XLA_PYTHON_CLIENT_PREALLOCATE=false"
    )


def _nvidia() -> bool:
  return bool(glob.glob("/dev/nvidia[0-9]*"))


COMMANDS = {"doctor": Command(doctor, define_nothing, "versions, devices and known problems")}
