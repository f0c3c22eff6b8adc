"""launch/sweep.py: grids, names of runs, and each of the launchers called for every run."""

import json
import shlex
import signal
import time

import common
import pytest
import sweep
from hypothesis import given
from hypothesis import strategies as st

from tests.launch import fakes

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"))
GRID = ["--config=configs/dit.py:variant=S", "--set=train.learning_rate=1e-3,2e-3", "--set=seed=0,1"]


class TestValues:
  @pytest.mark.parametrize(
    ("text", "parts"),
    [
      ("1e-3", ["1e-3"]),
      ("1,2,3", ["1", "2", "3"]),
      ("(1,2),(3,4)", ["(1,2)", "(3,4)"]),
      ("('a,b',),('c)',)", ["('a,b',)", "('c)',)"]),
      ('"a,b",c', ['"a,b"', "c"]),
      ("", [""]),
    ],
  )
  def test_commas_split_outside_of_brackets_and_quotes(self, text, parts):
    assert sweep.values(text) == parts

  @pytest.mark.parametrize(
    ("text", "message"), [("1,,2", "empty value"), ("1,", "empty value"), ("(1,2", r"\) is missing")]
  )
  def test_what_is_not_whole_is_refused(self, text, message):
    with pytest.raises(common.LaunchError, match=message):
      sweep.values(text)

  @given(st.lists(st.text("ab1.-e", min_size=1), min_size=1, max_size=5))
  def test_joined_values_come_apart_again(self, parts):
    assert sweep.values(",".join(parts)) == parts


class TestGrid:
  def test_every_combination_has_a_name_of_its_own(self):
    assert sweep.grid(["train.learning_rate=1e-3,2e-3", "seed=0,1", "data.clips=8"]) == {
      "learning_rate=1e-3_seed=0": ["train.learning_rate=1e-3", "seed=0", "data.clips=8"],
      "learning_rate=1e-3_seed=1": ["train.learning_rate=1e-3", "seed=1", "data.clips=8"],
      "learning_rate=2e-3_seed=0": ["train.learning_rate=2e-3", "seed=0", "data.clips=8"],
      "learning_rate=2e-3_seed=1": ["train.learning_rate=2e-3", "seed=1", "data.clips=8"],
    }

  def test_one_run_has_a_name_too(self):
    assert sweep.grid([]) == {"run": []}

  def test_keys_with_the_same_last_word_are_told_apart(self):
    assert list(sweep.grid(["train.steps=1,2", "sample.steps=3,4"]))[0] == "train.steps=1_sample.steps=3"

  def test_the_same_key_or_value_twice_is_refused(self):
    with pytest.raises(common.LaunchError, match="seed is given twice"):
      sweep.grid(["seed=0", "seed=1"])
    with pytest.raises(common.LaunchError, match="the run seed=0 is there twice"):
      sweep.grid(["seed=0,1,0"])

  @given(st.lists(TEXT, min_size=2, max_size=2, unique=True))
  def test_names_are_safe_in_paths_and_differ(self, values):
    names = [sweep.folder_name([f"x={value}"]) for value in values]
    assert len(set(names)) == 2
    for name in names:
      assert name.startswith("x=") and "/" not in name and shlex.quote(name) in (name, f"'{name}'") and len(name) < 140
      assert name.isascii() and name not in (".", "..")


class TestLocal:
  def words(self, sandbox, *more: str) -> list[str]:
    launcher = ["--pause=0.02", f"--sora={sandbox.folder / 'bin' / 'sora'}"]
    return [*GRID, "--set=train.steps=3", f"--workdir={sandbox.workdir}", "--on=local", *more, "--", *launcher]

  def test_every_run_trains_in_a_folder_of_its_own_and_again_takes_them_up(self, sandbox):
    for _ in range(2):
      done = sandbox.run("sweep.py", *self.words(sandbox))
      assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in sandbox.workdir.iterdir())
    assert folders == sorted(sweep.grid(GRID_SETS))
    for name in folders:
      first, second = sandbox.starts(sandbox.workdir / name)
      assert (first["step"], second["step"]) == (0, 3)
      rate, seed = name.split("_seed=")[0].split("=")[1], name.split("seed=")[1]
      assert f"--config.train.learning_rate={rate}" in first["argv"] and f"--config.seed={seed}" in first["argv"]

  def test_a_run_that_fails_does_not_keep_the_others_from_training(self, sandbox):
    bad = sandbox.workdir / "learning_rate=1e-3_seed=1"
    bad.mkdir()
    (bad / "faults.json").write_text(json.dumps({"2": 9}))
    words = self.words(sandbox)
    done = sandbox.run("sweep.py", *words, "--max_restarts=0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "sweep.py: 1 of 4 runs failed: 2 (see above)"
    assert [fakes.done(path) for path in sorted(sandbox.workdir.iterdir())] == [3, 2, 3, 3]

  def test_a_signal_ends_the_run_and_the_sweep(self, sandbox):
    words = [word.replace("steps=3", "steps=1000") for word in self.words(sandbox)]
    child = sandbox.start("sweep.py", *words)
    first = sandbox.workdir / "learning_rate=1e-3_seed=0"
    while fakes.done(first) < 2:
      pass
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "sweep.py: interrupted: the same command resumes every run"
    assert len(list(sandbox.workdir.iterdir())) == 1
    assert not fakes.running(int((first / "pid").read_text()))


GRID_SETS = [word.removeprefix("--set=") for word in GRID[1:]]


def test_a_sweep_on_a_pod_uses_one_resource_and_removes_it_after_the_last_run(sandbox):
  sandbox.set(path=[])
  pod = ["my-pod", "--zone=us-central2-b", "--accelerator=v4-8", "--runtime=r", "--poll=0.02"]
  grid = ["--config=c.py", "--set=seed=0,1", "--set=train.steps=2", f"--workdir={sandbox.workdir}"]
  done = sandbox.run("sweep.py", *grid, "--on=tpu_pod", "--", *pod)
  assert done.returncode == 0, done.stderr
  verbs = [call[4] for call in sandbox.calls("gcloud")]
  assert (verbs.count("create"), verbs.count("delete"), verbs[-1]) == (1, 1, "delete")
  assert [fakes.done(sandbox.workdir / f"seed={seed}") for seed in (0, 1)] == [2, 2]


def test_a_sweep_that_fails_on_a_pod_says_that_it_is_still_there(sandbox):
  (sandbox.workdir / "seed=1").mkdir()
  (sandbox.workdir / "seed=1" / "faults.json").write_text('{"1": 7}')
  sandbox.set(path=[])
  pod = ["my-pod", "--zone=us-central2-b", "--accelerator=v4-8", "--runtime=r", "--poll=0.02", "--max_restarts=0"]
  grid = ["--config=c.py", "--set=seed=0,1", "--set=train.steps=2", f"--workdir={sandbox.workdir}"]
  done = sandbox.run("sweep.py", *grid, "--on=tpu_pod", "--", *pod)
  assert done.returncode == 1 and sandbox.state()["resource"]
  assert done.stderr.splitlines()[-1] == (
    "sweep.py: 1 of 2 runs failed: 2 (see above); my-pod costs while it is there: "
    "`python launch/tpu_pod.py delete my-pod --zone=us-central2-b` removes it"
  )


@pytest.mark.parametrize(
  ("on", "launcher"),
  [
    ("local", []),
    ("slurm", ["--nodes=2", "--gpus=8", "--time=12:00:00"]),
    ("gke", ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--image=gcr.io/p/sora:1"]),
    ("tpu_pod", ["my-pod", "--zone=us-central2-b", "--accelerator=v4-8", "--runtime=tpu-ubuntu2204-base", "--spot"]),
  ],
)
def test_the_commands_are_those_of_the_golden_files_and_the_launchers_take_them(sandbox, golden, lines, on, launcher):
  more = [
    "--set=data.sizes=('32x32',),('64x64','it''s')",
    "--env=A=b c",
    "--workdir=gs://my-bucket/sweep/",
    f"--on={on}",
  ]
  done = sandbox.run("sweep.py", *GRID[:2], *more, "--dry_run", "--", *launcher)
  assert (done.returncode, done.stderr) == (0, "")
  golden(f"sweep_{on}.txt", done.stdout)
  for _, script, *words in lines(done.stdout):
    assert sandbox.run(script.rpartition("/")[2], *words, "--dry_run").returncode == 0
  assert sandbox.calls() == []
  # A run that is queued twice trains once at a time, unless its jobs are to wait for something else.
  assert done.stdout.count("--dependency=singleton") == (on == "slurm") * len(lines(done.stdout))
  own = sandbox.run("sweep.py", *GRID[:2], *more, "--dry_run", "--", *launcher, "--sbatch=--dependency=afterok:1")
  assert "singleton" not in own.stdout


def test_an_unknown_launcher_is_refused():
  with pytest.raises(common.LaunchError, match="invalid choice: 'ray'"):
    sweep.program([*GRID, "--workdir=w", "--on=ray"])


class TestRunsOfAFile:
  """What `sora sweep run` hands over."""

  def words(self, sandbox, runs: object, *more: str) -> list[str]:
    path = sandbox.folder / "runs.json"
    path.write_text(json.dumps(runs))
    launcher = ["--pause=0.02", f"--sora={sandbox.folder / 'bin' / 'sora'}"]
    first = ["--config=c.py", f"--runs={path}", f"--workdir={sandbox.workdir}", "--on=local", *more]
    return [*first, "--", *launcher]

  def test_each_has_its_own_settings(self, sandbox):
    runs = {"small": ["train.steps=2", "model.width=32"], "large": ["train.steps=3"]}
    done = sandbox.run("sweep.py", *self.words(sandbox, runs))
    assert done.returncode == 0, done.stderr
    assert [fakes.done(sandbox.workdir / name) for name in runs] == [2, 3]
    assert "--config.model.width=32" in sandbox.starts(sandbox.workdir / "small")[0]["argv"]

  def test_several_train_at_once_and_a_failure_is_named(self, sandbox):
    runs = {name: ["train.steps=40"] for name in "abc"}
    (sandbox.workdir / "b").mkdir()
    (sandbox.workdir / "b" / "faults.json").write_text(json.dumps({"2": 9}))
    words = self.words(sandbox, runs, "--at_once=3")
    begin = time.monotonic()
    done = sandbox.run("sweep.py", *words, "--max_restarts=0")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("1 of 3 runs failed: 2 (see above)")
    assert [fakes.done(sandbox.workdir / name) for name in runs] == [40, 2, 40]
    starts = [sandbox.starts(sandbox.workdir / name)[0] for name in runs]
    assert len(starts) == 3 and time.monotonic() - begin < 3 * 40 * fakes.STEP * 3

  def test_a_signal_ends_all_of_them(self, sandbox):
    runs = {name: ["train.steps=1000"] for name in "ab"}
    child = sandbox.start("sweep.py", *self.words(sandbox, runs, "--at_once=2"))
    while any(fakes.done(sandbox.workdir / name) < 2 for name in runs):
      pass
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert err.splitlines()[-1] == "sweep.py: interrupted: the same command resumes every run"
    assert not any(fakes.running(int((sandbox.workdir / name / "pid").read_text())) for name in runs)

  @pytest.mark.parametrize(
    ("runs", "message"),
    [
      ([], "is no JSON of"),
      ({}, "names no run"),
      ({"../up": []}, "'../up' is no name of a folder"),
      ({"a": ["x"]}, "'x' is not KEY=VALUE"),
      ({"a": 3}, "is no JSON of"),
    ],
  )
  def test_another_file_is_refused(self, sandbox, runs, message):
    done = sandbox.run("sweep.py", *self.words(sandbox, runs))
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1

  def test_a_grid_beside_it_is_refused(self, sandbox):
    done = sandbox.run("sweep.py", *self.words(sandbox, {"a": []}, "--set=seed=0"))
    assert done.returncode == 2 and "--runs and --set: give one of them" in done.stderr
    done = sandbox.run("sweep.py", "--config=c", "--set=seed=0,1", "--workdir=w", "--on=gke", "--at_once=2")
    assert done.returncode == 2 and "--at_once is of --on local" in done.stderr
