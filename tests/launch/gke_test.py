"""launch/gke.py with a stand-in for kubectl and the controllers: restarts that count and that don't, quoting."""

import json
import pathlib

import gke
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.launch import fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"))
SLICE = ["--accelerator=tpu-v5-lite-podslice", "--topology=2x4", "--image=gcr.io/my-project/sora:1"]


@pytest.fixture
def name(sandbox):
  """A name whose files are removed afterwards."""
  yield "set-of-a-test"
  for path in (ROOT / "build" / "launch").glob("set-of-a-test*"):
    path.unlink()


def words(sandbox, name: str, *more: str, steps: int = 6) -> list[str]:
  training = ["--config=configs/dit.py", f"--workdir={sandbox.workdir}", f"--set=train.steps={steps}"]
  return ["run", f"--name={name}", *SLICE, *training, *more]


def create(sandbox, *args, **kwargs) -> None:
  done = sandbox.run("gke.py", *words(sandbox, *args, **kwargs))
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith(" created\n")


def test_a_jobset_trains_on_every_host_of_the_slice(sandbox, name):
  create(sandbox, name)
  assert fakes.run_jobset(sandbox.env) == {"ended": "Completed", "attempts": 1, "counted": 0}
  assert sandbox.step() == 6
  file = ROOT / "build" / "launch" / f"{name}.json"
  assert sandbox.calls() == [["kubectl", "--namespace=default", "create", f"--filename={file}"]]


def test_requeues_and_evictions_resume_without_counting(sandbox, name):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"3": 75}))
  create(sandbox, name, "--max_restarts=0", steps=20)
  ended = fakes.run_jobset(sandbox.env, [8, 14], sandbox.workdir)
  assert ended == {"ended": "Completed", "attempts": 4, "counted": 0}
  steps = [start["step"] for start in sandbox.starts()]
  assert steps[:2] == [0, 3] and 8 <= steps[2] < 14 <= steps[3] < 20
  assert sandbox.step() == 20


def test_crashes_count(sandbox, name):
  (sandbox.workdir / "faults.json").write_text(json.dumps({"1": 9, "2": 75, "3": 9}))
  create(sandbox, name, "--max_restarts=2")
  assert fakes.run_jobset(sandbox.env) == {"ended": "Completed", "attempts": 4, "counted": 2}
  (sandbox.workdir / "faults.json").write_text(json.dumps({"7": 9, "8": 9}))
  sandbox.set(jobset=None)
  create(sandbox, name, "--max_restarts=1", steps=10)
  assert fakes.run_jobset(sandbox.env) == {"ended": "Failed", "attempts": 2, "counted": 2}


def test_a_jobset_that_is_there_is_not_touched(sandbox, name):
  create(sandbox, name)
  done = sandbox.run("gke.py", *words(sandbox, name, steps=9))
  assert done.returncode == 1
  assert done.stderr == (f"gke.py: JobSet {name} is there already: delete it (gke.py delete), or take another --name\n")
  assert sandbox.run("gke.py", "delete", f"--name={name}").returncode == 0
  create(sandbox, name, steps=9)


def test_nasty_values_reach_training_though_kubernetes_replaces_some(sandbox, name):
  values = ["data.source=$(JAX_COORDINATOR_ADDRESS) $$(x) $HOME 'a' \"b\"; `id`", "data.x=$$"]
  create(sandbox, name, *[f"--set={each}" for each in values], "--env=FAKE_MARK=$(JAX_COORDINATOR_ADDRESS)")
  assert fakes.run_jobset(sandbox.env)["ended"] == "Completed"
  (start,) = sandbox.starts()
  assert start["argv"][4:-1] == [f"--config.{each}" for each in values]
  assert start["mark"] == "$(JAX_COORDINATOR_ADDRESS)"


@given(TEXT)
def test_any_text_is_read_by_kubernetes_as_it_is(text):
  assert fakes.expand(gke.literal(text), {"HOME": "replaced", "x": "replaced"}) == text


@pytest.mark.parametrize(("topology", "chips", "hosts"), [("4x4", 4, 4), ("2x2", 4, 1), ("2x2x4", 4, 4), ("2x4", 8, 1)])
def test_hosts_follow_from_the_topology(topology, chips, hosts):
  assert gke.hosts(topology, chips) == hosts


def test_manifests_are_those_of_the_golden_files(sandbox, golden):
  training = ["--config=configs/dit.py:variant=XL", "--workdir=gs://my-bucket/xl"]
  more = [
    "--spot",
    "--service_account=sora",
    "--namespace=lab",
    "--context=gke_p_z_c",
    "--env=A=b c",
    "--set=data.x=$(A)",
  ]
  for file, given_ in {"run": [*SLICE, *training], "run_spot": ["--name=xl", *SLICE, *training, *more]}.items():
    done = sandbox.run("gke.py", "run", *given_, "--dry_run")
    assert (done.returncode, done.stderr) == (0, "")
    golden(f"gke_{file}.txt", done.stdout)
    manifest = json.loads(done.stdout[: done.stdout.rindex("kubectl")])
    assert manifest["kind"] == "JobSet"
  others = [sandbox.run("gke.py", verb, "--name=xl", "--dry_run").stdout for verb in ("status", "logs", "delete")]
  golden("gke_others.txt", "".join(others))
  assert sandbox.calls() == []


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("--topology=4", "argument --topology: '4' is not a topology such as 4x4"),
    ("--topology=3x3", "topology 3x3 has 9 chips: --chips 4 does not divide that"),
    ("--chips=0", "argument --chips: 0 is too few"),
    ("--accelerator=nvidia-l4", "is not a GKE accelerator such as tpu-v5-lite-podslice"),
    ("--image=-x", "'-x' is not a container image"),
    ("--namespace=A", "'A' is not a namespace"),
    ("--context=a b", "is not a context of kubectl"),
    ("--name=x/y", "'x/y' is not a name"),
  ],
)
def test_a_wrong_value_is_refused(change, message):
  with pytest.raises(gke.common.LaunchError, match=message):
    gke.program(["run", *SLICE, "--config=c.py", "--workdir=gs://b/r", change, "--dry_run"])
