"""launch/single_gpu.py with a stand-in for `sora`: restarted after a crash, signals passed on, words quoted."""

import json
import signal

import pytest
import single_gpu

TRAINING = ["--config=configs/dit.py:variant=S", "--pause=0.02"]


def words(sandbox, *more: str, steps: int = 6) -> list[str]:
  sora = f"--sora={sandbox.folder / 'bin' / 'sora'}"
  return [*TRAINING, f"--workdir={sandbox.workdir}", f"--set=train.steps={steps}", sora, *more]


def test_a_run_ends_with_the_status_of_training(sandbox):
  assert sandbox.run("single_gpu.py", *words(sandbox)).returncode == 0
  assert [start["step"] for start in sandbox.starts()] == [0]


def test_a_crash_and_a_requeue_resume_from_the_workdir(sandbox):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 75, "3": 5, "5": 75}))
  done = sandbox.run("single_gpu.py", *words(sandbox, "--max_restarts=1"))
  assert done.returncode == 0, done.stderr
  assert [start["step"] for start in sandbox.starts()] == [0, 2, 3, 5]
  assert "step 6 of 6" in done.stdout


def test_too_many_crashes_end_with_the_status_of_the_last(sandbox):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"1": 5, "2": 6}))
  done = sandbox.run("single_gpu.py", *words(sandbox, "--max_restarts=1"))
  assert done.returncode == 6
  assert done.stderr.splitlines()[-1] == "single_gpu.py: training ended with exit status 6: given up after 1 restarts"


def test_sigterm_reaches_training_whose_75_is_passed_on_and_the_same_command_resumes(sandbox):
  child = sandbox.start("single_gpu.py", *words(sandbox, steps=1000))
  sandbox.wait_for_step(2)
  child.send_signal(signal.SIGTERM)
  child.communicate(timeout=60)
  assert child.returncode == 75 and len(sandbox.starts()) == 1
  step = sandbox.step()
  assert sandbox.run("single_gpu.py", *words(sandbox, steps=step + 2)).returncode == 0
  assert [start["step"] for start in sandbox.starts()] == [0, step]


def test_a_sora_that_is_not_there_is_said_once(sandbox):
  done = sandbox.run("single_gpu.py", *TRAINING, "--workdir=x", "--sora=/no/sora")
  assert done.returncode == 127
  assert "/no/sora" in done.stderr and "training could not be started" in done.stderr.splitlines()[-1]


def test_nasty_values_reach_training(sandbox):
  values = ["data.source=a 'b' \"c\"; $(id) $HOME", "data.x="]
  sets = [f"--set={each}" for each in values]
  assert sandbox.run("single_gpu.py", *words(sandbox, *sets, "--env=FAKE_MARK=$x y")).returncode == 0
  (start,) = sandbox.starts()
  assert start["argv"][4:-1] == [f"--config.{each}" for each in values] and start["mark"] == "$x y"


def test_the_command_is_that_of_the_golden_file(sandbox, golden):
  base = [*TRAINING, "--workdir=runs/small", "--sora=/opt/sora/bin/sora"]
  lines = ""
  for more in ([], ["--gpu=1", "--set=data.source=my clips"], ["--gpu=0", "--env=XLA_PYTHON_CLIENT_MEM_FRACTION=.5"]):
    done = sandbox.run("single_gpu.py", *base, *more, "--dry_run")
    assert (done.returncode, done.stderr) == (0, "")
    lines += done.stdout
  golden("single_gpu.txt", lines)


def test_a_share_of_memory_that_the_user_has_set_stays(sandbox, lines):
  sandbox.env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.4"
  (command,) = lines(sandbox.run("single_gpu.py", *TRAINING, "--workdir=w", "--dry_run").stdout)
  assert not any("MEM_FRACTION" in word for word in command)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("--gpu=0,1", "argument --gpu: '0,1' is not a whole number"),
    ("--gpu=-1", "argument --gpu: '-1' is not a whole number"),
    ("--config=", "argument --config: '' is empty or has control characters"),
    ("extra", "unrecognized arguments: extra"),
  ],
)
def test_a_wrong_value_is_refused(change, message):
  with pytest.raises(single_gpu.common.LaunchError, match=message):
    single_gpu.program([*TRAINING, "--workdir=w", change, "--dry_run"])
