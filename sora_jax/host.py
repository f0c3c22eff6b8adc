"""What makes programs faster on this host."""

import ctypes
import functools
import sys

import jax

# Parameter numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> bool:
  """Lets the allocator keep what XLA frees, so that each step's temporaries do not come fresh from the kernel.

  For programs to call, never the library. On the CPU a train step allocates and frees hundreds of megabytes; handing
  them back costs about a seventh of the step in page faults. True where the C library knows how (glibc); call it before
  the first large allocation.
  """
  if not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
  taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
  return all(taken)


@functools.cache
def step_compiler_options() -> dict[str, bool]:
  """Options for `jax.jit` of a train step; empty where the backend needs or knows none.

  On the CPU, XLA's older code for fused operations leaves more of the cores to the matrix products beside it: a step of
  the demo's transformer takes a fifth less on two cores, and 10 seconds longer to compile.
  """
  options = {"xla_cpu_use_fusion_emitters": False}
  if jax.default_backend() != "cpu":
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except jax.errors.JaxRuntimeError:  # a release of XLA without that code
    return {}
  return options
