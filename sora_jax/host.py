"""Settings of this process on its host. Called once by programs, never by the library."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# Parameter numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
_LEVEL = "xla_backend_optimization_level"


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
