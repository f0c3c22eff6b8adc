"""launch/pod_run.py with a stand-in for gcloud: create, wait, install, train, preempted, create again, resume, done."""

import json
import shlex
import signal

import pytest

from tests.launch import fake_gcloud, fakes

RESOURCE = [
  "my-pod",
  "--zone=us-central2-b",
  "--project=my-project",
  "--accelerator=v4-16",
  "--runtime=tpu-ubuntu2204-base",
]
QUICK = ["--poll=0.02", "--pause=0.02", "--silence_minutes=0"]
WHERE = RESOURCE[:3]


def run_words(sandbox, *more: str, steps: int = 6) -> list[str]:
  training = ["--config=configs/dit.py:variant=S", f"--workdir={sandbox.workdir}", f"--set=train.steps={steps}"]
  return ["run", *RESOURCE, *QUICK, *training, *more]


def kinds(calls: list[list[str]]) -> list[str]:
  """The calls in short, a row of the same ones as one."""
  found = []
  for call in calls:
    if call[0] == "gcloud":
      kind = call[4]
      command = fakes.flag(call, "command")
      kind += (
        ":" + next((w for w in ("install", "start", "status", "stop", "tar") if w in command.split()), "")
        if command
        else ""
      )
    else:
      kind = f"git {call[3]}"
    if kind not in found[-1:]:
      found.append(kind)
  return found


def kinds_without_status(calls: list[list[str]]) -> list[str]:
  """How often training's status is asked for depends on the machine's speed."""
  return kinds([call for call in calls if not fakes.flag(call, "command").endswith(" status")])


BEGIN = ["describe", "create", "describe"]
SET_UP = ["git status", "git archive", "scp", "ssh:tar", "ssh:install"]
TRAIN = ["ssh:start", "describe"]


class TestRun:
  def test_a_run_without_accidents_makes_the_calls_that_the_dry_run_prints(self, sandbox, lines):
    sandbox.set(workers=2)
    words = run_words(sandbox, "--spot")
    plan = lines(sandbox.run("tpu_pod.py", *words, "--dry_run").stdout)
    assert sandbox.calls() == []
    done = sandbox.run("tpu_pod.py", *words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    made = sandbox.calls()
    assert kinds_without_status(made) == [*BEGIN, *SET_UP, *TRAIN, "delete"] == kinds_without_status(plan)
    assert {tuple(call) for call in made} == {tuple(call) for call in plan}
    assert sandbox.step() == 6 and len(sandbox.starts()) == 1
    assert sandbox.state()["resource"] is None
    for message in ("my-pod is WAITING_FOR_RESOURCES", "my-pod is ACTIVE", "training is done"):
      assert message in done.stderr

  def test_a_preempted_resource_is_deleted_and_created_again_and_training_resumes(self, sandbox):
    sandbox.set(workers=2, preempt=[3, 9])
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, "--spot", "--max_restarts=0", steps=16))
    assert done.returncode == 0, done.stderr
    again = ["delete", *BEGIN, *SET_UP, *TRAIN]
    found = kinds_without_status(sandbox.calls())
    assert found == [*BEGIN, *SET_UP, *TRAIN, *again, *again, "delete"]
    steps = [start["step"] for start in sandbox.starts()]
    assert len(steps) == 3 and 0 == steps[0] < 3 <= steps[1] < 9 <= steps[2] < 16
    assert sandbox.step() == 16
    assert "my-pod is SUSPENDING: it is created again" in done.stderr

  def test_exit_code_75_starts_training_again_and_does_not_count(self, sandbox):
    (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 75, "4": 75}))
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, "--max_restarts=0", "--pause=500"))
    assert done.returncode == 0, done.stderr
    assert [start["step"] for start in sandbox.starts()] == [0, 2, 4]
    assert kinds(sandbox.calls()).count("ssh:install") == 1
    assert kinds(sandbox.calls()).count("create") == 1

  def test_a_crash_on_one_worker_ends_the_others_and_starts_all_again(self, sandbox):
    sandbox.set(workers=2)
    (sandbox.workdir / "faults.json").write_text(json.dumps({"3": 9}))
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, "--max_restarts=1"))
    assert done.returncode == 0, done.stderr
    assert [start["step"] for start in sandbox.starts()] == [0, 3]
    found = kinds_without_status(sandbox.calls())
    assert found == [*BEGIN, *SET_UP, *TRAIN, "ssh:stop", "describe", *TRAIN, "delete"]
    assert "fault 9 at step 3" in done.stderr and "exit status 9: starting it again in 0.02 s" in done.stderr

  def test_too_many_crashes_stop_it_with_the_last_lines_of_the_log_and_leave_the_resource(self, sandbox):
    (sandbox.workdir / "faults.json").write_text(json.dumps({"2": 7, "3": 7}))
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, "--max_restarts=1"))
    assert done.returncode == 7
    assert done.stderr.count("fault 7 at step 3") >= 1
    assert done.stderr.splitlines()[-1] == (
      "tpu_pod.py: training ended with exit status 7: given up after 1 restarts; my-pod is still there: "
      "`python launch/tpu_pod.py delete my-pod --zone=us-central2-b --project=my-project` removes it"
    )
    assert sandbox.state()["resource"]

  def test_keep_leaves_the_resource_and_the_next_run_uses_it(self, sandbox):
    assert sandbox.run("tpu_pod.py", *run_words(sandbox, "--keep")).returncode == 0
    sandbox.set(changes=" M sora_jax/cli.py\n")
    first = len(sandbox.calls())
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, steps=8))
    assert done.returncode == 0, done.stderr
    found = kinds_without_status(sandbox.calls()[first:])
    assert found == ["describe", *SET_UP, *TRAIN, "delete"]
    assert [start["step"] for start in sandbox.starts()] == [0, 6]
    assert "warning: changes that are not committed stay here; the workers get HEAD" in done.stderr
    assert not list((fakes.ROOT / "build" / "launch").glob("my-pod*"))  # what was uploaded is not left behind

  def test_values_with_quotes_blanks_and_dollars_reach_training_as_they_are(self, sandbox):
    nasty = ["data.source=a b'c\"d", "data.x=$(touch pwned); `id` && $HOME \\ * ~ | > < # %s !", "data.y=", "z=é  ü"]
    more = [f"--set={each}" for each in nasty] + ['--env=FAKE_MARK=it\'s $HOME; "x"']
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, *more))
    assert done.returncode == 0, done.stderr
    (start,) = sandbox.starts()
    assert [f"--config.{each}" for each in nasty] == start["argv"][4:-1]
    assert start["argv"][0] == "train" and start["argv"][-1] == "--json"
    assert start["mark"] == 'it\'s $HOME; "x"'
    assert not list(sandbox.folder.rglob("pwned"))


class TestWaiting:
  def test_a_resource_that_never_becomes_active_times_out_and_names_its_state(self, sandbox):
    sandbox.set(path=["WAITING_FOR_RESOURCES"] * 1000)
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, "--wait_minutes=0.005"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tpu_pod.py: my-pod is WAITING_FOR_RESOURCES after 0.005 minutes and is withdrawn: ")
    assert kinds(sandbox.calls()) == [*BEGIN, "delete"] and sandbox.state()["resource"] is None

  def test_one_that_is_taken_away_again_and_again_times_out_as_well(self, sandbox):
    sandbox.set(path=["CREATING", "SUSPENDED"])
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, "--wait_minutes=0.02"))
    assert done.returncode == 1 and " after 0.02 minutes and is withdrawn: " in done.stderr.splitlines()[-1]
    assert kinds(sandbox.calls()).count("create") >= 1

  def test_a_resource_that_fails_is_created_again_a_limited_number_of_times(self, sandbox):
    sandbox.set(failures=1)
    assert sandbox.run("tpu_pod.py", "create", *RESOURCE, *QUICK, "--max_restarts=1").returncode == 0
    assert kinds(sandbox.calls()) == [*BEGIN, "delete", *BEGIN]
    sandbox.set(failures=5, resource=None)
    done = sandbox.run("tpu_pod.py", "create", *RESOURCE, *QUICK, "--max_restarts=1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tpu_pod.py: my-pod failed again: no capacity"

  def test_a_request_that_was_valid_for_so_long_is_not_made_again(self, sandbox):
    sandbox.set(failures=5)
    done = sandbox.run("tpu_pod.py", "create", *RESOURCE, "--poll=1.1", "--valid_until=1s")
    assert done.returncode == 1
    assert "my-pod failed after 1s and is withdrawn" in done.stderr.splitlines()[-1]
    assert kinds(sandbox.calls()) == [*BEGIN, "delete"]

  def test_a_refused_creation_is_one_line_with_the_reason(self, sandbox):
    sandbox.set(forbidden=True)
    done = sandbox.run("tpu_pod.py", *run_words(sandbox))
    assert done.returncode == 1
    assert "PERMISSION_DENIED" in done.stderr.splitlines()[-1]
    assert "creating my-pod" in done.stderr.splitlines()[-1]

  def test_ssh_and_gcloud_that_fail_for_a_while_are_asked_again(self, sandbox):
    sandbox.set(path=[], broken=3)
    child = sandbox.start("tpu_pod.py", *run_words(sandbox, steps=40))
    sandbox.wait_for_step(2)
    sandbox.set(mute=4)
    sandbox.wait_for_step(20)
    sandbox.set(broken=4)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert len(sandbox.starts()) == 1
    assert "unpacking failed (ssh: connect to host" in err
    assert ": step " in err  # the last line of the log, now and then

  def test_a_pod_that_is_left_alone_is_patient_with_gcloud(self, sandbox):
    sandbox.set(path=[], preempt=[12])
    child = sandbox.start("tpu_pod.py", *run_words(sandbox, "--silence_minutes=5", steps=24))
    sandbox.wait_for_step(2)
    sandbox.set(mute=25, unavailable={"create": 12, "delete": 24})
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert [start["step"] >= 12 for start in sandbox.starts()] == [False, True]
    assert sandbox.state()["resource"] is None
    for message in ("no answer from gcloud (ERROR: gcloud crashed", "creating my-pod (v4-16, on demand) failed (ERROR"):
      assert message in err

  def test_a_finished_pod_that_can_not_be_deleted_is_named_with_what_to_do(self, sandbox):
    sandbox.set(path=[], unavailable={"delete": 10**6})
    done = sandbox.run("tpu_pod.py", *run_words(sandbox))
    assert done.returncode == 1 and "training is done" in done.stderr
    assert done.stderr.splitlines()[-1] == (
      "tpu_pod.py: deleting my-pod failed: ERROR: (gcloud.compute.tpus.queued-resources.delete) UNAVAILABLE: for now.; "
      "while it is there it costs: "
      "`python launch/tpu_pod.py delete my-pod --zone=us-central2-b --project=my-project` removes it"
    )

  def test_workers_that_never_answer_stop_the_watch_but_not_the_resource(self, sandbox):
    sandbox.set(path=[])
    child = sandbox.start("tpu_pod.py", *run_words(sandbox, "--poll=0.01", steps=1000))
    sandbox.wait_for_step(2)
    sandbox.set(broken=10**6)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "my-pod is ACTIVE, but its workers don't answer (ssh: connect to host" in err.splitlines()[-1]
    assert sandbox.state()["resource"]

  def test_a_gcloud_without_an_answer_at_the_start_is_an_error_at_once(self, sandbox):
    sandbox.set(mute=10**6)
    done = sandbox.run("tpu_pod.py", *run_words(sandbox))
    assert done.returncode == 1 and len(sandbox.calls()) == 1
    assert "no network" in done.stderr.splitlines()[-1]


class TestTakingUp:
  def test_ctrl_c_leaves_training_running_and_says_how_to_go_on_and_the_same_command_does(self, sandbox):
    sandbox.set(path=[])
    words = run_words(sandbox, steps=40)
    child = sandbox.start("tpu_pod.py", *words)
    sandbox.wait_for_step(2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith("tpu_pod.py: interrupted; my-pod and what trains on it go on. Take it up: `")
    assert shlex.split(last.split("`")[1]) == ["python", "launch/tpu_pod.py", *words]
    assert last.split("`")[3] == "python launch/tpu_pod.py delete my-pod --zone=us-central2-b --project=my-project"
    first, step = len(sandbox.calls()), sandbox.step()
    sandbox.wait_for_step(step + 2)
    done = sandbox.run("tpu_pod.py", *words)
    assert done.returncode == 0, done.stderr
    assert kinds_without_status(sandbox.calls()[first:]) == ["describe", "delete"]
    assert len(sandbox.starts()) == 1

  def test_a_resource_that_trains_another_run_is_refused(self, sandbox):
    sandbox.set(path=[])
    child = sandbox.start("tpu_pod.py", *run_words(sandbox, steps=1000))
    sandbox.wait_for_step(1)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    done = sandbox.run("tpu_pod.py", *run_words(sandbox, steps=7))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "my-pod trains another run" in last and "train.steps=1000" in last and "tpu_pod.py stop my-pod" in last
    sandbox.set(workdir=str(sandbox.workdir))
    assert sandbox.run("tpu_pod.py", "stop", *WHERE).returncode == 0
    done = sandbox.run("tpu_pod.py", "status", *WHERE)
    assert done.stdout.startswith("my-pod: ACTIVE v4-16\n") and "ended with exit status 75" in done.stdout

  def test_a_resource_of_another_kind_is_refused(self, sandbox):
    sandbox.set(resource={"path": ["ACTIVE"], "accelerator": "v4-8", "runtime": "tpu-ubuntu2204-base"})
    done = sandbox.run("tpu_pod.py", *run_words(sandbox))
    assert done.returncode == 1
    assert "my-pod is there already with accelerator v4-8, not v4-16: take another name" in done.stderr.splitlines()[-1]
    assert kinds(sandbox.calls()) == ["describe"]

  @pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
  def test_a_leftover_that_is_dead_is_replaced(self, sandbox, state):
    sandbox.set(resource={"path": [state], "accelerator": "v4-16", "runtime": "tpu-ubuntu2204-base"})
    assert sandbox.run("tpu_pod.py", "create", *RESOURCE, *QUICK).returncode == 0
    assert kinds(sandbox.calls()) == ["describe", "delete", *BEGIN]

  def test_a_leftover_that_still_waits_is_waited_for(self, sandbox):
    path = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "ACTIVE"]
    sandbox.set(resource={"path": path, "accelerator": "v4-16", "runtime": "tpu-ubuntu2204-base"})
    assert sandbox.run("tpu_pod.py", "create", *RESOURCE, *QUICK).returncode == 0
    assert kinds(sandbox.calls()) == ["describe"] and len(sandbox.calls()) == 3

  def test_a_resource_that_someone_deletes_is_not_created_again(self, sandbox):
    sandbox.set(path=[])
    child = sandbox.start("tpu_pod.py", *run_words(sandbox, steps=1000))
    sandbox.wait_for_step(2)
    fake_gcloud.wipe()
    sandbox.set(resource=None)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert err.splitlines()[-1] == "tpu_pod.py: my-pod is ABSENT: someone deleted it; the same command creates it again"
    assert kinds(sandbox.calls()).count("create") == 1

  def test_a_request_that_someone_withdraws_is_not_made_again(self, sandbox):
    sandbox.set(path=["WAITING_FOR_RESOURCES"] * 1000)
    child = sandbox.start("tpu_pod.py", "create", *RESOURCE, *QUICK)
    while "WAITING_FOR_RESOURCES" not in child.stderr.readline():
      pass
    sandbox.set(resource=None)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1 and err.splitlines()[-1].startswith("tpu_pod.py: my-pod is ABSENT: someone deleted it")
    assert kinds(sandbox.calls()).count("create") == 1
