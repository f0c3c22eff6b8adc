"""Settings of this process on its host. Called once by programs, never by the library."""

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Iterator

# Parameter numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
_LEVEL = "xla_backend_optimization_level"
MAX_COMPILED = 2**32  # bytes of compiled programs kept on disk


def keep_freed_memory() -> bool:
  """Lets the allocator keep what XLA frees, so that each step's temporaries do not come fresh from the kernel.

  On the CPU a train step allocates and frees hundreds of megabytes; handing them back costs about a seventh of the
  step in page faults. True where the C library knows how (glibc); call it before the first large allocation.
  """
  if not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
  taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
  return all(taken)


def compile_sooner() -> bool:
  """Lets XLA spend less on optimising code for the CPU, where that is all that JAX has; call it before any JAX code.

  Coding a clip compiles in a third of the time and a train step in two to nine tenths less, and they run as fast:
  the time goes into library calls and into loops that are vectorised all the same (benchmarks/compile_level.py).
  An accelerator's compiler reads the same setting, so it is left alone beside one.
  True where it was set; a level that XLA_FLAGS names already stays.
  """
  named = os.environ.get("JAX_PLATFORMS")
  flags = os.environ.get("XLA_FLAGS", "")
  accelerator = bool(importlib.metadata.entry_points(group="jax_plugins")) or importlib.util.find_spec("libtpu")
  if (named != "cpu" if named else accelerator) or _LEVEL in flags:
    return False
  os.environ["XLA_FLAGS"] = f"{flags} --{_LEVEL}=1".strip()
  return True


def keep_compiled(folder: str | os.PathLike) -> None:
  """Keeps compiled programs in `folder`, so that the next start loads what this one compiles; call it before any JAX.

  On this machine those that were not used for longest go first where they take more than MAX_COMPILED together. A
  folder that JAX_COMPILATION_CACHE_DIR names already stays, and everything about it. Programs that lie there are run:
  write access to the folder is as good as an account.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(folder)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
  # Not JAX's own limit: it needs filelock, and a lock can't be had in a bucket.
  programs = [(path, path.stat()) for path in pathlib.Path(folder).glob("*-cache")]
  total = 0
  for path, status in sorted(programs, key=lambda each: -max(each[1].st_atime, each[1].st_mtime)):
    total += status.st_size
    if total > MAX_COMPILED:
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """Modules that are imported inside stay to the end, so the garbage collector is told never to look through them.

  It looks many times while JAX traces a step, which takes a tenth of the time to a restart's first step
  (benchmarks/restart.py).
  """
  gc.disable()
  try:
    yield
  finally:
    gc.freeze()
    gc.enable()


def started() -> float:
  """When this process began, as time.monotonic() counts: before Python's own start, where the system tells."""
  try:
    # Field 22 of proc(5), in ticks since the machine began; the name in field 2 may hold spaces.
    ticks = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
  except (OSError, ValueError, IndexError, AttributeError):
    age = 0.0
  return time.monotonic() - age
