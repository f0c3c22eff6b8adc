"""launch/slurm.py with stand-ins for sbatch, srun, scancel and scontrol: queued, warned, requeued, resumed, done."""

import json
import pathlib
import shlex
import signal
import subprocess
import time

import pytest
import slurm
from hypothesis import given
from hypothesis import strategies as st

from tests.launch import fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"))


@pytest.fixture
def name(sandbox):
  """A job's name whose files are removed afterwards."""
  yield "job-of-a-test"
  for path in (ROOT / "build" / "launch").glob("job-of-a-test*"):
    path.unlink()


def words(sandbox, name: str, *more: str, steps: int = 6) -> list[str]:
  where = [f"--name={name}", "--nodes=2", "--gpus=2", "--time=1:00:00", f"--sora={sandbox.folder / 'bin' / 'sora'}"]
  training = ["--config=configs/dit.py", f"--workdir={sandbox.workdir}", f"--set=train.steps={steps}", "--pause=0.02"]
  return ["submit", *where, *training, *more]


def submit(sandbox, *args, **kwargs) -> subprocess.CompletedProcess:
  done = sandbox.run("slurm.py", *words(sandbox, *args, **kwargs))
  assert done.returncode == 0, done.stderr
  return done


def test_a_submitted_job_trains_on_every_task_of_every_node(sandbox, name):
  done = submit(sandbox, name)
  log = ROOT / "build" / "launch" / f"{name}-77.log"
  assert done.stdout == f"job 77: squeue --job=77 shows it, scancel 77 ends it; log {log}\n"
  assert fakes.run_job(sandbox.env) == [0]
  assert sandbox.step() == 6 and len(sandbox.state()["tasks"]) == 4
  assert [call[0] for call in sandbox.calls()] == ["sbatch", "srun"]


def test_a_job_that_is_warned_of_its_time_limit_saves_requeues_itself_and_resumes(sandbox, name):
  submit(sandbox, name, "--max_restarts=0", steps=20)
  assert fakes.run_job(sandbox.env, [4, 12], sandbox.workdir) == [75, 75, 0]
  steps = [start["step"] for start in sandbox.starts()]
  assert len(steps) == 3 and 0 == steps[0] < 4 <= steps[1] < 12 <= steps[2] < 20
  assert sandbox.step() == 20
  round_ = ["srun", "scancel", "scontrol"]
  assert [call[0] for call in sandbox.calls()] == ["sbatch", *round_, *round_, "srun"]
  assert sandbox.calls("scancel")[0] == ["scancel", "--signal=TERM", "77"]


def test_training_that_asks_for_it_is_requeued_and_one_that_crashes_is_started_in_the_same_job(sandbox, name):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 9, "4": 9}))
  submit(sandbox, name, "--max_restarts=2", "--nodes=1", "--gpus=1")
  assert fakes.run_job(sandbox.env) == [0]
  assert [call[0] for call in sandbox.calls()] == ["sbatch", "srun", "srun", "srun"]
  (sandbox.workdir / "faults.json").write_text(json.dumps({"8": 75}))
  submit(sandbox, name, "--max_restarts=0", "--nodes=1", "--gpus=1", steps=10)
  assert fakes.run_job(sandbox.env) == [75, 0]
  assert [start["step"] for start in sandbox.starts()] == [0, 2, 4, 6, 8]


def test_a_job_that_crashes_too_often_fails(sandbox, name):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 9, "3": 9}))
  submit(sandbox, name, "--max_restarts=1", "--nodes=1", "--gpus=1")
  assert fakes.run_job(sandbox.env) == [9]
  assert sandbox.calls("scontrol") == []


def test_a_job_that_its_owner_cancels_is_not_put_back(sandbox, name):
  submit(sandbox, name, steps=1000)
  job = subprocess.Popen(
    ["bash", sandbox.state()["script"]],
    env=sandbox.env | {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"},
    stderr=subprocess.DEVNULL,
  )
  sandbox.wait_for_step(2)
  job.send_signal(signal.SIGTERM)
  assert job.wait(timeout=60) == 75
  assert [call[0] for call in sandbox.calls()] == ["sbatch", "srun", "scancel"]


def test_a_job_that_is_warned_between_two_starts_is_requeued(sandbox, name):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 9}))
  submit(sandbox, name, "--pause=500", "--nodes=1", "--gpus=1")
  job = subprocess.Popen(
    ["bash", sandbox.state()["script"]],
    env=sandbox.env | {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1"},
    stderr=subprocess.PIPE,
    text=True,
  )
  while "starting it again in 500 s" not in job.stderr.readline():
    pass
  time.sleep(0.1)
  job.send_signal(signal.SIGUSR1)
  assert job.wait(timeout=60) == 9
  job.stderr.close()
  assert [call[0] for call in sandbox.calls()] == ["sbatch", "srun", "scontrol"]


def test_a_refusal_is_one_line(sandbox, name):
  sandbox.set(refuse=True)
  done = sandbox.run("slurm.py", *words(sandbox, name))
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("slurm.py: sbatch refused ") and line.endswith(
    "sbatch: error: invalid partition specified: gold"
  )


def test_a_requeue_that_is_refused_says_so(sandbox, name):
  sandbox.set(no_requeue=True)
  (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 75}))
  submit(sandbox, name, "--nodes=1", "--gpus=1")
  env = sandbox.env | {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1"}
  done = subprocess.run(["bash", sandbox.state()["script"]], env=env, capture_output=True, text=True, timeout=60)
  assert done.returncode == 75
  assert "scontrol did not requeue: slurm_requeue error" in done.stderr.splitlines()[-1]


def test_nasty_values_reach_training(sandbox, name):
  values = ["data.source=a 'b' \"c\"; $(id) $HOME `id`\\", "data.x=#SBATCH --nodes=9"]
  submit(sandbox, name, *[f"--set={each}" for each in values], "--nodes=1", "--gpus=1")
  assert fakes.run_job(sandbox.env) == [0]
  (start,) = sandbox.starts()
  assert start["argv"][4:-1] == [f"--config.{each}" for each in values]


def test_scripts_are_those_of_the_golden_files(sandbox, golden):
  base = ["submit", "--sora=/opt/sora/bin/sora", "--config=configs/dit.py:variant=XL", "--workdir=/shared/runs/xl"]
  for file, more in {
    "gpu": ["--name=xl", "--nodes=4", "--gpus=8", "--time=1-00:00:00", "--set=data.source=/shared/it's clips"],
    "node": [
      "--nodes=2",
      "--tasks=node",
      "--gpus=4",
      "--cpus=12",
      "--time=30",
      "--partition=a100",
      "--account=lab",
      "--sbatch=--mem=0",
    ],
  }.items():
    done = sandbox.run("slurm.py", *base, *more, "--dry_run")
    assert (done.returncode, done.stderr) == (0, "")
    golden(f"slurm_{file}.txt", done.stdout)
  assert sandbox.calls() == []


@given(TEXT)
def test_the_script_runs_the_words_whatever_the_value(value):
  text = slurm.script(parsed(f"--set=data.source={value}"))
  last = text.split("\n")[-2]
  words_ = shlex.split(last)
  assert f"--config.data.source={value}" in words_ and words_[0] == "exec"
  assert sum(line.startswith("#SBATCH") for line in text.split("\n")) == 8


def parsed(*more: str):
  kept = []
  program, slurm.submit = slurm.submit, lambda args: kept.append(args) or 0
  try:
    slurm.program(["submit", "--time=10", "--config=c.py", "--workdir=w", *more])
  finally:
    slurm.submit = program
  return kept[0]


def test_bash_reads_the_script(sandbox):
  text = slurm.script(parsed("--set=x=it's; $(id) \\"))
  assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("--time=tomorrow", "argument --time: 'tomorrow' is not a time limit such as 24:00:00"),
    ("--nodes=0", "argument --nodes: 0 is too few"),
    ("--partition=a b", "argument --partition: 'a b' is not a plain word"),
    ("--partition=a\n#SBATCH --x", "is not a plain word"),
    ("--sbatch=mem=0", "'mem=0' is not an option of sbatch such as --mem=0"),
    ("--sbatch=--wrap=a;b", "is not an option of sbatch"),
    ("--name=A", "'A' is not a name"),
    ("--tasks=core", "invalid choice: 'core'"),
  ],
)
def test_a_wrong_value_is_refused(change, message):
  with pytest.raises(slurm.common.LaunchError, match=message):
    slurm.program(["submit", "--time=10", "--config=c.py", "--workdir=w", change, "--dry_run"])


@pytest.mark.parametrize("more", [[], ["--", "srun", "x"]])
def test_the_inner_command_runs_in_a_job_only(monkeypatch, more):
  monkeypatch.delenv("SLURM_JOB_ID", raising=False)
  with pytest.raises(slurm.common.LaunchError, match="runs inside a Slurm job"):
    slurm.program(["job", *more])
