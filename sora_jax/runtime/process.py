"""Settings of this process on its host: its memory allocator, its compiler, its compiled programs.

Called once by programs, never by the library.
"""

import atexit
import contextlib
import ctypes
import gc
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import resource
import signal
import stat
import sys
import time
from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGHUP)
# Parameter numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
_LEVEL = "xla_backend_optimization_level"
_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
THREADS = 4  # of XLA's pool for each device that a CPU stands for
MADE_HERE = "made-here"  # a file in a folder of programs that this user's process has made
MAX_COMPILED = 2**32  # bytes of compiled programs kept on disk
# glibc reads its tunables when a process starts and never again. With this one it asks the kernel for pages of 2 MiB.
TUNABLE, WANTED = "glibc.malloc.hugetlb", "1"
LEAST_GLIBC = (2, 35)  # the first that knows the tunable
RESTARTED = "SORA_MALLOC_RESTARTED"  # the id of the process that has restarted itself, so that it does so once
PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")  # in the names of libraries that take malloc's place


class Ended(BaseException):
  """This process was asked to end by a signal, whose number `code` is."""

  def __init__(self, code: int):
    super().__init__(f"ended by {signal.Signals(code).name}")
    self.code = code


def end_tidily() -> None:
  """From now on SIGTERM and SIGHUP end the program as an exception does, so that what is half-written is removed."""

  def end(number: int, _: object) -> None:
    for other in ENDING:
      signal.signal(other, signal.SIG_IGN)  # the first one is enough
    raise Ended(number)

  for number in ENDING:
    if signal.getsignal(number) == signal.SIG_DFL:
      signal.signal(number, end)


def restart_with_large_pages() -> None:
  """Starts this command again, once, in this same process, with memory in pages of 2 MiB; call it before all else.

  On the CPU each step's large buffers come fresh from the kernel. In pages of 4 KiB that takes a fault for each page,
  which can be half of the step's time (benchmarks/memory.py). Process id, start time, files and signals that are
  ignored stay as they are, and processes that this one starts inherit the setting.

  It returns where there is nothing to do: `SORA_MALLOC=0`, another system than Linux with a recent glibc, an
  accelerator, another allocator, a tunable that is set already, a kernel that gives no large pages, or a caller that
  is not the command of this process.
  """
  if not _can_restart() or _why_not():
    return
  tunables = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES", ""), f"{TUNABLE}={WANTED}"]))
  for stream in (sys.stdout, sys.stderr):
    if stream is not None:
      stream.flush()
  with contextlib.suppress(OSError):  # the command then runs as it is
    environment = {**os.environ, "GLIBC_TUNABLES": tunables, RESTARTED: str(os.getpid())}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def allocator() -> str:
  """What gives this process its memory, in words."""
  if library := _other_allocator():
    return library
  version = _glibc()
  if version is None:
    return "the system's"
  name = f"glibc {version[0]}.{version[1]}"
  if f"{TUNABLE}={WANTED}" in _started_with("GLIBC_TUNABLES").split(":"):
    return f"{name} with pages of 2 MiB ({TUNABLE}={WANTED})"
  return f"{name} as it is" + (f" ({why})" if (why := _why_not()) else "")


def _can_restart() -> bool:
  """Whether running the command line of this process again does what it does now."""
  words = sys.orig_argv[1:]
  ours = sys.argv[1:] == words[len(words) - len(sys.argv) + 1 :]  # else another program has called with its own words
  ours = ours and len(sys.argv) > 1  # without a word there is nothing to do, and any program would seem to be ours
  readable = bool(sys.executable and words) and words[0] != "-" and not sys.flags.interactive
  return ours and readable and "jax" not in sys.modules and os.environ.get(RESTARTED) != str(os.getpid())


def _why_not() -> str | None:
  """Why this process does without large pages; None where they would help."""
  if os.environ.get("SORA_MALLOC") == "0":
    return "SORA_MALLOC=0"
  if (_glibc() or (0, 0)) < LEAST_GLIBC:
    return f"large pages need glibc {LEAST_GLIBC[0]}.{LEAST_GLIBC[1]}"
  if f"{TUNABLE}=" in os.environ.get("GLIBC_TUNABLES", ""):
    return f"GLIBC_TUNABLES={os.environ['GLIBC_TUNABLES']}"
  if _other_allocator():
    return "another allocator"
  if not _cpu_alone():
    return "JAX has an accelerator"
  with contextlib.suppress(OSError):
    if "[never]" in PAGES.read_text():
      return f"{PAGES} is never"
  return None


def _glibc() -> tuple[int, int] | None:
  """The version of the C library; None where it is another."""
  if not sys.platform.startswith("linux"):
    return None
  try:
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) if name == "glibc" else None
  except (OSError, ValueError):
    return None


def _other_allocator() -> str | None:
  """The file name of an allocator that was loaded in glibc's place."""
  try:
    maps = pathlib.Path("/proc/self/maps").read_text()
  except OSError:
    return None
  names = {line.rpartition("/")[2] for line in maps.splitlines() if "/" in line}
  return next((name for name in sorted(names) if any(each in name for each in ALLOCATORS)), None)


def _started_with(name: str) -> str:
  """An environment variable as this process was started with it, whatever it was set to since."""
  try:
    words = pathlib.Path("/proc/self/environ").read_bytes().split(b"\0")
  except OSError:
    return os.environ.get(name, "")
  return next((os.fsdecode(word.partition(b"=")[2]) for word in words if word.startswith(name.encode() + b"=")), "")


def _cpu_alone() -> bool:
  """Whether the CPU is all that JAX has here, by what is installed or JAX_PLATFORMS."""
  if named := os.environ.get("JAX_PLATFORMS"):
    return named == "cpu"
  return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


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
  flags = os.environ.get("XLA_FLAGS", "")
  if _LEVEL in flags or not _cpu_alone():
    return False
  os.environ["XLA_FLAGS"] = f"{flags} --{_LEVEL}=1".strip()
  return True


def enough_threads() -> bool:
  """Gives XLA's pool THREADS threads a device where one CPU stands for several; call it before any JAX code.

  A collective holds its thread until all devices have come to it. In a pool of as many threads as there are cores, each
  device can hold one at another collective, and none is left on which they would meet.
  True where it was set; a number of threads that NPROC names already stays.
  """
  devices = max((int(count) for count in _DEVICES.findall(os.environ.get("XLA_FLAGS", ""))), default=1)
  if devices == 1 or os.environ.get("NPROC") or THREADS * devices <= (os.cpu_count() or 1):
    return False
  os.environ["NPROC"] = str(THREADS * devices)
  return True


def cores() -> int:
  """How many this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
  """Bytes that this process has held at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_compiled(folder: str | os.PathLike | None) -> None:
  """Keeps compiled programs in `folder`, so that the next start loads what this one compiles; call it before any JAX.

  On this machine those that were not used for longest go first where they take more than MAX_COMPILED together. A
  folder that JAX_COMPILATION_CACHE_DIR names already stays, and everything about it. Programs that lie there are run:
  write access to the folder is as good as an account. None keeps nothing.
  """
  if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(folder)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
  if "://" in os.fspath(folder):
    return
  here = pathlib.Path(folder)
  if not here.exists():
    atexit.register(_note, here)
  # Not JAX's own limit: it needs filelock, and a lock can't be had in a bucket.
  programs = []
  for program in here.glob("*-cache"):
    with contextlib.suppress(FileNotFoundError):  # another process may begin at the same time
      programs.append((program, program.stat()))
  total = 0
  for program, status in sorted(programs, key=lambda each: -max(each[1].st_atime, each[1].st_mtime)):
    total += status.st_size
    if total > MAX_COMPILED:
      program.unlink(missing_ok=True)


def trusted_programs(workdir: str | os.PathLike | None = None) -> pathlib.Path | None:
  """A folder whose compiled programs may be run: that of `workdir` if this user's training made it, else the user's.

  A workdir is read as data: it may be somebody else's, or come from elsewhere with programs in it. So its folder is
  used only where a process of this user made it on this machine, and nobody else can write to it.
  None where the user has no folder that is safe.
  """
  if workdir is not None and "://" not in os.fspath(workdir):
    folder = pathlib.Path(workdir) / "compiled"
    with contextlib.suppress(OSError):
      if _note_of(folder).read_text() == _identity(folder) and _is_safe(folder) and os.access(folder, os.W_OK):
        return folder
  folder = caches() / "compiled" / _processor()
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if _is_safe(folder) else None
  except OSError:
    return None


def _note(folder: pathlib.Path) -> None:
  """Notes that this user's process made a folder of programs, on this machine."""
  with contextlib.suppress(OSError):  # it made none, or the user has no folder for notes
    (folder / MADE_HERE).touch()
    identity, note = _identity(folder), _note_of(folder)
    note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    note.write_text(identity)


def _note_of(folder: pathlib.Path) -> pathlib.Path:
  name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
  return caches() / "compiled" / "folders" / name


def _identity(folder: pathlib.Path) -> str:
  # A copy of the folder may get its inode, but nobody can choose when a file's status changed.
  status = (folder / MADE_HERE).stat()
  return f"{status.st_dev}:{status.st_ino}:{status.st_ctime_ns}"


def caches() -> pathlib.Path:
  """This user's folder for what can be made again."""
  named = os.environ.get("XDG_CACHE_HOME", "")
  base = pathlib.Path(named) if os.path.isabs(named) else pathlib.Path(os.path.expanduser("~")) / ".cache"
  return base / "sora_jax"


def _is_safe(folder: pathlib.Path) -> bool:
  """Whether this user alone, beside root, can put files into a folder or another folder in its place."""
  folder = folder.resolve()
  for path in (folder, *folder.parents):
    status = path.stat()
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a folder with the sticky bit, such as /tmp, others can't rename what is not theirs.
    if status.st_uid not in (0, os.geteuid()) or others_write and (path == folder or not status.st_mode & stat.S_ISVTX):
      return False
  return folder.stat().st_uid == os.geteuid()


def _processor() -> str:
  """A name of this machine's kind of processor: a home folder may serve several, and programs are for one."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
  except OSError:
    lines = []
  kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
  return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


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
