"""Settings of this process on its host. Called once by programs, never by the library."""

import ctypes
import sys

# Parameter numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


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
