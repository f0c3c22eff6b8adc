"""Host settings are accepted where the machine has them, leave others alone, and asking twice does no harm."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sora_jax.runtime import process


def test_asking_twice_gives_the_same_answer():
  code = "from sora_jax.runtime import process; print(process.keep_freed_memory(), process.keep_freed_memory())"
  first, second = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  ).stdout.split()
  assert first == second


def test_other_systems_are_left_alone(monkeypatch):
  monkeypatch.setattr(sys, "platform", "darwin")
  assert process.keep_freed_memory() is False


def test_cores_and_the_peak_of_memory_are_known_on_other_systems_too(monkeypatch):
  cores, peak = process.cores(), process.peak_memory()
  assert cores >= 1 and 2**24 < peak < 2**44
  monkeypatch.delattr(os, "sched_getaffinity", raising=False)
  assert process.cores() >= cores
  monkeypatch.setattr(sys, "platform", "darwin")
  assert process.peak_memory() < peak / 500  # bytes there, and kibibytes here


def test_a_process_knows_when_it_began():
  code = (
    "import time; time.sleep(0.5); from sora_jax.runtime import process; print(time.monotonic() - process.started())"
  )
  begin = time.monotonic()
  age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
  assert age < time.monotonic() - begin + 0.02
  if sys.platform.startswith("linux"):
    assert age > 0.5


def test_what_is_imported_is_never_looked_through_again_and_later_garbage_is():
  code = """
import gc, weakref
from sora_jax.runtime import process
with process.importing():
  during = gc.isenabled()
  import json.tool
class Ring: pass
ring = Ring(); ring.self = ring; gone = weakref.ref(ring); del ring
gc.collect()
print(during, gc.isenabled(), gc.get_freeze_count() > 1000, gone() is None)
"""
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  assert found.split() == ["False", "True", "True", "True"]


COMPILES = """
from sora_jax.runtime import process
process.keep_compiled({folder!r})
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x @ x)))(jnp.ones((50, 50)))
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def compiles(folder, **more: str) -> int:
  """Programs that a process found compiled; it keeps its own in `folder`."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **more}
  words = [sys.executable, "-c", COMPILES.format(folder=str(folder))]
  return int(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout)


def test_the_next_process_finds_what_this_one_compiled(tmp_path):
  assert compiles(tmp_path / "kept") == 0
  assert compiles(tmp_path / "other", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "kept")) >= 1
  assert not (tmp_path / "other").exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
  monkeypatch.setattr(process, "MAX_COMPILED", 25)
  for age, name in enumerate(("new", "middle", "old", "oldest")):
    path = tmp_path / f"{name}-cache"
    path.write_bytes(bytes(10))
    os.utime(path, (1e9 - age, 1e9 - age))
  (tmp_path / "another").write_bytes(bytes(100))
  (tmp_path / "gone-cache").symlink_to(tmp_path / "nowhere")  # as one that another process has just removed
  process.keep_compiled(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "gone-cache", "middle-cache", "new-cache"]
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


# A program as the command is: it starts again with large pages, then says what has become of it.
RESTARTS = """
import json, os, signal, sys, time
from sora_jax.runtime import process
process.restart_with_large_pages()
with open(sys.argv[1], "a") as log:
  log.write("begun\\n")
age = time.monotonic() - process.started()
ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
tunables = os.environ.get("GLIBC_TUNABLES")
found = [os.getpid(), process.allocator(), tunables, sys.argv[2:], sys.stdin.read(), age, ignored]
print(json.dumps(found), flush=True)
sys.exit(7)
"""
LARGE = f"{process.TUNABLE}={process.WANTED}"


def restarted(tmp_path, code: str = RESTARTS, **more: str):
  """(what the program found, its process id): run with two words and something to read."""
  environment = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "SORA_MALLOC")}
  environment |= {"JAX_PLATFORMS": "cpu", **more}
  words = [sys.executable, "-c", code, str(tmp_path / "log"), "--a=1 2", ""]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with subprocess.Popen(words, env=environment, preexec_fn=ignore, **pipes) as run:
    said = run.communicate("something to read", timeout=60)[0]
  assert run.returncode == 7
  assert (tmp_path / "log").read_text() == "begun\n"  # what comes after the restart is run once
  return json.loads(said), run.pid


@pytest.fixture
def large_pages(monkeypatch):
  for name, value in (("JAX_PLATFORMS", "cpu"), ("GLIBC_TUNABLES", ""), ("SORA_MALLOC", "")):
    monkeypatch.setenv(name, value)
  if why := process._why_not():
    pytest.skip(f"no large pages here: {why}")


def test_a_command_starts_again_in_its_own_process_with_large_pages(tmp_path, large_pages):
  begin = time.monotonic()
  (number, allocator, tunables, words, read, age, ignored), pid = restarted(tmp_path)
  assert (number, tunables, words, read, ignored) == (pid, LARGE, ["--a=1 2", ""], "something to read", True)
  assert "pages of 2 MiB" in allocator and 0 < age < time.monotonic() - begin + 0.02


def test_tunables_of_the_user_stay_and_the_one_in_question_is_the_user_s(tmp_path, large_pages):
  assert restarted(tmp_path, GLIBC_TUNABLES="glibc.malloc.perturb=0")[0][2] == f"glibc.malloc.perturb=0:{LARGE}"
  (tmp_path / "log").unlink()
  set_already = restarted(tmp_path, GLIBC_TUNABLES=f"{process.TUNABLE}=0")[0]
  assert set_already[2] == f"{process.TUNABLE}=0" and "as it is" in set_already[1]


@pytest.mark.parametrize(
  ("more", "said"),
  [({"SORA_MALLOC": "0"}, "SORA_MALLOC=0"), ({"JAX_PLATFORMS": "cuda,cpu"}, "accelerator")],
)
def test_a_command_goes_on_as_it_is_where_it_is_told_to_or_has_an_accelerator(tmp_path, large_pages, more, said):
  found = restarted(tmp_path, **more)[0]
  assert found[2] is None and said in found[1]


def test_what_a_command_starts_has_large_pages_and_does_not_start_again(tmp_path, large_pages):
  code = "import subprocess, sys, os\n" + RESTARTS.replace(
    "process.restart_with_large_pages()",
    "process.restart_with_large_pages()\nos.execve = None\nif 'CHILD' not in os.environ:\n"
    "  sys.exit(subprocess.run([sys.executable, *sys.orig_argv[1:]], env={**os.environ, 'CHILD': '1'}).returncode)",
  )
  (number, allocator, *_), pid = restarted(tmp_path, code)
  assert number != pid and "pages of 2 MiB" in allocator


@pytest.fixture
def executed(monkeypatch, large_pages):
  """Notes restarts instead of doing them; this process counts as a command with two words."""
  found = []
  monkeypatch.setattr(os, "execve", lambda *call: found.append(call))
  monkeypatch.setattr(sys, "orig_argv", [sys.executable, "sora", "train", "--x"])
  monkeypatch.setattr(sys, "argv", ["sora", "train", "--x"])
  monkeypatch.setattr(sys, "modules", {name: each for name, each in sys.modules.items() if name != "jax"})
  monkeypatch.delenv(process.RESTARTED, raising=False)
  return found


def test_a_restart_runs_the_same_words(executed):
  process.restart_with_large_pages()
  ((program, words, environment),) = executed
  assert (program, words) == (sys.executable, [sys.executable, "sora", "train", "--x"])
  assert environment["GLIBC_TUNABLES"] == LARGE and environment[process.RESTARTED] == str(os.getpid())


@pytest.mark.parametrize(
  "case", ["restarted before", "another program", "no words", "a program from a pipe", "jax is there", "no pages"]
)
def test_no_restart_where_it_would_not_end_or_would_do_something_else(executed, monkeypatch, tmp_path, case):
  if case == "restarted before":  # by something that takes GLIBC_TUNABLES away
    monkeypatch.setenv(process.RESTARTED, str(os.getpid()))
  elif case == "another program":
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "pytest", "tests"])
  elif case == "no words":
    monkeypatch.setattr(sys, "argv", ["sora"])
  elif case == "a program from a pipe":
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-", "train", "--x"])
  elif case == "jax is there":
    monkeypatch.setitem(sys.modules, "jax", sys)
  else:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(process, "PAGES", tmp_path / "enabled")
  process.restart_with_large_pages()
  assert not executed


def test_a_restart_that_the_system_refuses_is_no_error(executed, monkeypatch):
  def refuse(*_):
    raise PermissionError(1, "no")

  monkeypatch.setattr(os, "execve", refuse)
  process.restart_with_large_pages()


class TestTrustedPrograms:
  """Compiled programs are run, so they come from folders that this user's own processes made on this machine."""

  @pytest.fixture(autouse=True)
  def caches(self, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "sora_jax" / "compiled"

  @pytest.fixture
  def workdir(self, tmp_path):
    """With a folder of programs that a process like training has made."""
    folder = tmp_path / "run" / "compiled"
    code = "import sys; from sora_jax.runtime import process; process.keep_compiled(sys.argv[1]); "
    code += "import pathlib; pathlib.Path(sys.argv[1]).mkdir(parents=True)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    subprocess.run([sys.executable, "-c", code, folder], check=True, env=environment)
    assert process.trusted_programs(folder.parent) == folder
    return folder.parent

  def test_those_of_a_training_of_this_user_are_run(self, tmp_path):
    (tmp_path / "run").mkdir()
    assert compiles(tmp_path / "run" / "compiled", XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"]) == 0
    assert process.trusted_programs(tmp_path / "run") == tmp_path / "run" / "compiled"
    assert compiles(process.trusted_programs(tmp_path / "run")) >= 1

  def test_those_of_a_workdir_that_came_from_elsewhere_are_not(self, workdir, tmp_path, caches):
    shutil.copytree(workdir, tmp_path / "copy")
    assert process.trusted_programs(tmp_path / "copy").parent == caches
    shutil.rmtree(workdir / "compiled")
    shutil.copytree(tmp_path / "copy" / "compiled", workdir / "compiled")  # at the same place, but another folder
    assert process.trusted_programs(workdir).parent == caches

  @pytest.mark.parametrize("path", ["", "compiled"])
  @pytest.mark.parametrize("mode", [0o775, 0o757])
  def test_those_that_others_can_write_are_not(self, workdir, caches, path, mode):
    (workdir / path).chmod(mode)
    assert process.trusted_programs(workdir).parent == caches

  def test_those_that_another_user_owns_are_not(self, workdir, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert process.trusted_programs(workdir) is None  # nor are the user's, which are somebody else's as well

  def test_a_workdir_that_can_t_be_written_has_the_user_s_programs(self, workdir, caches, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert process.trusted_programs(workdir).parent == caches

  @pytest.mark.parametrize("workdir", [None, "gs://bucket/run", "nowhere"])
  def test_without_a_workdir_here_the_user_s_own_are(self, workdir, caches):
    folder = process.trusted_programs(workdir)
    assert folder.parent == caches and folder.stat().st_mode & 0o777 == 0o700
    assert process.trusted_programs(workdir) == folder

  def test_where_the_user_has_no_folder_nothing_is_kept(self, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert process.trusted_programs() is None
    process.keep_compiled(None)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


LEVEL = "--xla_backend_optimization_level"


@pytest.fixture
def environment(monkeypatch):
  """Sets (platforms, flags) and says which plugins of accelerators are installed."""

  def put(platforms: str | None, flags: str | None, plugins: tuple[str, ...] = ()):
    for name, value in (("JAX_PLATFORMS", platforms), ("XLA_FLAGS", flags)):
      monkeypatch.delenv(name, raising=False)
      if value is not None:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)

  return put


@pytest.mark.parametrize("platforms", [None, "cpu"])
def test_a_machine_with_a_cpu_alone_compiles_sooner_and_keeps_its_other_flags(environment, platforms):
  environment(platforms, "--xla_force_host_platform_device_count=2")
  assert process.compile_sooner() is True
  assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {LEVEL}=1"
  assert process.compile_sooner() is False  # it is set already


@pytest.mark.parametrize(
  ("platforms", "flags", "plugins"),
  [(None, None, ("xla_cuda12",)), ("cuda,cpu", None, ("xla_cuda12",)), ("tpu", None, ()), (None, f"{LEVEL}=3", ())],
)
def test_an_accelerator_and_a_level_that_is_named_are_left_alone(environment, platforms, flags, plugins):
  environment(platforms, flags, plugins)
  assert process.compile_sooner() is False
  assert os.environ.get("XLA_FLAGS") == flags


def test_the_cpu_is_asked_for_beside_an_accelerator(environment):
  environment("cpu", None, ("xla_cuda12",))
  assert process.compile_sooner() is True


def test_xla_takes_the_flag():
  code = "from sora_jax.runtime import process; print(process.compile_sooner()); "
  code += "import jax; print(jax.jit(lambda x: x + 1)(1))"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
  assert found.stdout.split() == ["True", "2"]


@pytest.mark.parametrize(
  ("flags", "given", "threads"),
  [
    ("--xla_force_host_platform_device_count=2", None, "8"),
    ("--a=1 --xla_force_host_platform_device_count=8 --b", None, "32"),
    ("--xla_force_host_platform_device_count=2", "3", "3"),
    ("--xla_force_host_platform_device_count=1", None, None),
    ("", None, None),
  ],
)
def test_several_devices_of_one_cpu_have_threads_for_their_collectives(environment, monkeypatch, flags, given, threads):
  environment("cpu", flags)
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  monkeypatch.setenv("NPROC", given or "")
  assert process.enough_threads() is (threads is not None and given is None)
  assert (os.environ["NPROC"] or None) == threads


def test_a_machine_with_enough_cores_is_left_as_it_is(environment, monkeypatch):
  environment("cpu", "--xla_force_host_platform_device_count=2")
  monkeypatch.setattr(os, "cpu_count", lambda: 64)
  monkeypatch.setenv("NPROC", "")
  assert not process.enough_threads() and not os.environ["NPROC"]
