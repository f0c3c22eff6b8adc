"""launch/worker.py as it runs on a host of a pod: it outlives its caller, tells how training goes, and ends it."""

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch import fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Host:
  """A checkout with nothing but the worker."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.env = folder / "sora_jax", fakes.install(folder)
    (self.folder / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "worker.py", self.folder / "launch")
    (self.folder / "constraints.txt").write_text("")

  def __call__(self, *words: str) -> dict | int:
    """The report of a command, or its exit status where that is not 0."""
    done = self.process(*words)
    return json.loads(done.stdout) if done.returncode == 0 else done.returncode

  def process(self, *words: str) -> subprocess.CompletedProcess:
    # From elsewhere: paths are relative to the checkout, not to the caller.
    command = [sys.executable, "-IS", str(self.folder / "launch" / "worker.py"), *words]
    return subprocess.run(command, env=self.env, cwd="/", capture_output=True, text=True, timeout=60)

  def wait(self, state: str) -> dict:
    limit = time.monotonic() + 30
    while (report := self("status"))["state"] != state:
      assert time.monotonic() < limit, report
      time.sleep(0.02)
    return report

  def group(self) -> int:
    return json.loads((self.folder / "build" / "run" / "run.json").read_text())["group"]


@pytest.fixture
def host(tmp_path):
  made = Host(tmp_path)
  yield made
  made("stop")


def bash(script: str) -> list[str]:
  return ["start", "--", "bash", "-c", script]


def test_before_the_first_start_there_is_nothing(host):
  report = host("status")
  assert (report["state"], report["code"], report["words"], report["tail"]) == ("none", None, [], [])


def test_start_returns_at_once_and_training_goes_on_without_it(host):
  report = host(*bash("pwd; echo working; sleep 600"))
  assert report["state"] == "running" and report["words"] == ["bash", "-c", "pwd; echo working; sleep 600"]
  report = host.wait("running")
  while "working" not in report["tail"]:
    report = host("status")
  assert report["tail"][1:] == [str(host.folder), "working"]
  assert os.getsid(host.group()) == host.group() != os.getsid(0)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", 137)])
def test_the_exit_status_is_kept(host, script, code):
  host(*bash(script))
  report = host.wait("ended")
  assert report["code"] == code
  assert host("status") == report


def test_a_command_that_is_not_there_ends_with_127_and_its_name(host):
  host("start", "--", "no-such-program")
  report = host.wait("ended")
  assert report["code"] == 127 and "no-such-program: No such file or directory" in report["tail"]


def test_starting_the_same_twice_leaves_the_first_running_and_another_is_refused(host):
  host(*bash("sleep 600"))
  first = host.group()
  assert host(*bash("sleep 600"))["state"] == "running"
  assert host(*bash("sleep 601")) == 3
  assert host.group() == first and fakes.running(first)


def test_what_has_ended_can_be_started_again_and_the_log_goes_on(host):
  for _ in range(2):
    host(*bash("echo one; exit 3"))
    report = host.wait("ended")
  assert report["tail"].count("one") == 2 and sum(line.startswith("--- ") for line in report["tail"]) == 2


def test_stop_gives_training_time_to_save(host):
  host(*bash("trap 'sleep 0.3; echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done"))
  while "ready" not in host("status")["tail"]:
    pass
  report = host("stop")
  assert (report["state"], report["code"], report["tail"][-1], report["by_itself"]) == ("ended", 75, "saved", False)


def test_stop_kills_what_does_not_end_and_all_that_it_started(host):
  host.env["SORA_STOP_SECONDS"] = "0.5"
  host(*bash("trap '' TERM; sleep 600 & echo $!; while :; do sleep 0.05; done"))
  while not (lines := host("status")["tail"][1:]):
    pass
  report = host("stop")
  assert (report["state"], report["code"]) == ("ended", 137)
  assert not fakes.running(int(lines[0]))


def test_stop_with_nothing_running_changes_nothing(host):
  assert host("stop")["state"] == "none"
  host(*bash("exit 4"))
  assert host.wait("ended") | {"by_itself": True} == host("stop")


def test_a_machine_that_was_restarted_reads_as_killed_even_where_the_number_is_anothers_now(host):
  host(*bash("sleep 600"))
  os.killpg(host.group(), signal.SIGKILL)
  assert host.wait("ended")["code"] == 137
  bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
  (host.folder / "build" / "run" / "run.json").write_text(json.dumps({"words": ["x"], "group": bystander.pid}))
  assert host("stop")["code"] == 137
  host(*bash("exit 0"))
  assert bystander.poll() is None
  bystander.kill()
  bystander.wait()


def test_training_whose_holder_was_killed_still_runs_and_can_be_ended(host):
  host(*bash("echo $$; exec sleep 600"))
  while not (lines := host("status")["tail"][1:]):
    pass
  os.kill(host.group(), signal.SIGKILL)
  while fakes.running(host.group()):
    pass
  assert host("status")["state"] == "running" and fakes.running(int(lines[0]))
  assert host("stop")["code"] == 137
  assert not fakes.running(int(lines[0]))


def test_another_that_looks_is_not_taken_for_training(host):
  host("status")
  with open(host.folder / "build" / "run" / "lock", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_SH)
    assert host("status")["state"] == "none"


def test_a_report_is_short_enough_for_one_write_whatever_the_log_holds(host):
  host(*bash("head -c 100000 /dev/zero | tr '\\0' 'x'; printf '\\xff\\xfe\\n'; exit 0"))
  host.wait("ended")
  out = host.process("status").stdout
  assert out.count("\n") == 1 and len(out) < 4096
  assert json.loads(out)["tail"][-1].endswith("x\ufffd\ufffd")


def test_install_makes_an_environment_once_and_installs_the_pinned_versions(host):
  assert host.process("install", "tpu,gcs").returncode == 0
  assert (host.folder / ".venv" / "bin" / "sora").exists()
  made = (host.folder / ".venv" / "bin" / "python").stat().st_mtime_ns
  assert host.process("install", "tpu,gcs").returncode == 0
  assert (host.folder / ".venv" / "bin" / "python").stat().st_mtime_ns == made


def test_install_without_a_suitable_python_asks_uv_for_one(host, tmp_path):
  for path in (tmp_path / "bin").iterdir():
    path.unlink()
  # The image's own Python, which has neither venv nor the right version: it notes what it is asked for.
  own = tmp_path / "bin" / "python3"
  own.write_text(
    f"#!{sys.executable} -IS\nimport runpy, subprocess, sys\nsys.executable = __file__\n"
    "if sys.argv[1].endswith('worker.py'):\n  del sys.argv[0]\n  runpy.run_path(sys.argv[0], run_name='__main__')\n"
    f"open({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
  )
  own.chmod(0o755)
  host.env["PATH"] = str(tmp_path / "bin")
  worker = str(host.folder / "launch" / "worker.py")
  subprocess.run([str(own), worker, "install", "tpu,gcs"], env=host.env, check=True)
  assert (tmp_path / "asked").read_text().splitlines() == [
    "-m pip install --quiet --user uv",
    "-m uv venv --quiet --python=3.12 .venv",
    "-m uv pip install --quiet -c constraints.txt -e .[tpu,gcs]",
  ]


def test_a_failed_installation_is_a_failure(host, tmp_path):
  (host.folder / "constraints.txt").unlink()
  assert host.process("install", "tpu").returncode != 0


def test_other_words_are_answered_by_the_usage(host):
  done = host.process("starts")
  assert done.returncode == 2 and "worker.py install EXTRAS" in done.stderr


def test_it_compiles_for_the_oldest_python_that_images_have():
  import ast

  ast.parse((ROOT / "launch" / "worker.py").read_text(), feature_version=(3, 8))
