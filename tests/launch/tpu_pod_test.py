"""launch/tpu_pod.py: the commands that it prints, the quoting of what users give, and what it refuses."""

import contextlib
import io
import pathlib
import shlex
import subprocess
import sys

import common
import pytest
import tpu_pod
from hypothesis import given
from hypothesis import strategies as st

from tests.launch import fakes

RESOURCE = [
  "my-pod",
  "--zone=us-central2-b",
  "--project=my-project",
  "--accelerator=v4-16",
  "--runtime=tpu-ubuntu2204-base",
]
QUICK = ["--poll=0.02", "--pause=0.02"]
WHERE = RESOURCE[:3]


class TestOneCommand:
  def test_ssh_runs_words_on_the_workers_asked_for(self, sandbox):
    sandbox.set(path=[], workers=2)
    assert sandbox.run("tpu_pod.py", "create", *RESOURCE, *QUICK).returncode == 0
    words = ["printf", "%s|", "a b", "$HOME", "it's"]
    assert sandbox.run("tpu_pod.py", "ssh", *WHERE, "--", *words).stdout == "a b|$HOME|it's|"
    assert sandbox.run("tpu_pod.py", "ssh", *WHERE, "--worker=all", "--", "echo", "on").stdout == "on\non\n"
    assert sandbox.run("tpu_pod.py", "ssh", *WHERE, "--", "false").returncode == 1

  def test_delete_removes_it(self, sandbox):
    sandbox.set(path=[])
    assert sandbox.run("tpu_pod.py", "create", *RESOURCE, *QUICK).returncode == 0
    assert sandbox.run("tpu_pod.py", "delete", *WHERE).returncode == 0
    assert sandbox.run("tpu_pod.py", "status", *WHERE).stdout == "my-pod: ABSENT\n"

  def test_without_gcloud_it_says_so(self, sandbox):
    sandbox.env["PATH"] = str(sandbox.folder)
    done = sandbox.run("tpu_pod.py", "delete", *WHERE)
    assert done.returncode == 127
    assert done.stderr == "tpu_pod.py: gcloud can't be run (No such file or directory): install it, or put it on PATH\n"


class TestDryRun:
  def test_the_commands_are_those_of_the_golden_files(self, sandbox, golden, tmp_path):
    training = [
      "--config=configs/dit.py:variant=XL",
      "--workdir=gs://my-bucket/xl",
      "--set=data.source=gs://my-bucket/clips",
    ]
    nasty = ['--set=data.source=it\'s "a b"; $HOME `id`', "--env=LIBTPU_INIT_ARGS=--a=1 --b=2"]
    for name, words in {
      "run": ["run", *RESOURCE, "--spot", "--valid_until=12h", *training],
      "run_quoted": ["run", *RESOURCE[:2], *RESOURCE[3:], "--reserved", "--internal_ip", "--keep", *training, *nasty],
      "create": ["create", *RESOURCE, "--startup_script=launch/single_gpu.py"],
      "status": ["status", *WHERE],
      "ssh": ["ssh", *WHERE, "--worker=3", "--", "tail", "-n", "100", "sora_jax/build/run/log"],
      "stop": ["stop", *WHERE],
      "delete": ["delete", *WHERE],
    }.items():
      own, rest = common.split_rest(words)
      done = sandbox.run("tpu_pod.py", *own, "--dry_run", *(["--", *rest] if rest else []))
      assert (done.returncode, done.stderr) == (0, "")
      golden(f"tpu_pod_{name}.txt", done.stdout)
    assert sandbox.calls() == []

  @given(st.lists(st.text(st.characters(exclude_categories=["C"], exclude_characters="\u2028\u2029")), max_size=4))
  def test_printed_lines_split_into_the_words_that_would_be_run(self, values):
    sets = [f"--set=data.source={value}" for value in values]
    text = printed("run", *RESOURCE, "--config=c.py", "--workdir=gs://b/r", *sets)
    assert len(text.splitlines()) == len(text.split("\n")) - 1 == 12
    (start,) = [words for words in map(shlex.split, text.splitlines()) if " start " in words[-1]]
    remote = shlex.split(fakes.flag(start, "command"))
    assert remote[:4] == ["python3", "sora_jax/launch/worker.py", "start", "--"]
    assert remote[8:-1] == [f"--config.data.source={value}" for value in values]

  def test_a_shell_reads_the_printed_lines_as_we_do(self, sandbox):
    value = 'it\'s "a b"; $HOME `id` $(id) \\ * ~ é\u3000!#'
    done = sandbox.run(
      "tpu_pod.py", "run", *RESOURCE, "--config=c.py", "--workdir=/run", f"--set=x={value}", "--dry_run"
    )
    script = "gcloud() { printf '%s\\0' \"$@\"; }; git() { :; }\n" + done.stdout
    read = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
    ours = [word for line in done.stdout.splitlines() for word in shlex.split(line) if line.startswith("gcloud")]
    assert read[:-1] == [word for word in ours if word != "gcloud"]


def printed(*words: str) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    assert tpu_pod.program([*words, "--dry_run"]) == 0
  return out.getvalue()


class TestValidation:
  @pytest.mark.parametrize(
    ("change", "message"),
    [
      ("name:My-Pod", "name: 'My-Pod' is not a name"),
      ("name:a;reboot", "name: 'a;reboot' is not a name"),
      ("name:" + "a" * 41, "is not a name"),
      ("--zone=us-central2", "argument --zone: 'us-central2' is not a zone such as us-central2-b"),
      ("--zone=us-central2-b\n", "is not a zone"),
      ("--project=$(id)", "argument --project: '$(id)' is not a project's id"),
      ("--accelerator=v4 32", "argument --accelerator: 'v4 32' is not an accelerator type such as v4-32"),
      ("--runtime=--help", "argument --runtime: '--help' is not a runtime version"),
      ("--valid_until=6", "argument --valid_until: '6' is not a duration such as 6h"),
      ("--startup_script=a,b", "'a,b' has a comma"),
      ("--startup_script=nowhere.sh", "'nowhere.sh' is not a file"),
      ("--ref=-x", "argument --ref: '-x' is not a commit"),
      ("--set=steps", "'steps' is not KEY=VALUE with a config's key"),
      ("--set=a;b=1", "'a;b=1' is not KEY=VALUE"),
      ("--set=a=1\n2", "on one line"),
      ("--env=A B=1", "'A B=1' is not NAME=VALUE of an environment variable"),
      ("--max_restarts=-1", "'-1' is not a whole number"),
      ("--poll=nan", "'nan' is not a time"),
      ("--workdir=runs/xl", "--workdir runs/xl: a pod's disks go with it; give gs://BUCKET/RUN"),
      ("--workdi=gs://b/r", "unrecognized arguments: --workdi=gs://b/r"),
      ("--reserved", "argument --reserved: not allowed with argument --spot"),
    ],
  )
  def test_a_wrong_value_is_one_line_and_status_2_before_anything_is_run(self, change, message, monkeypatch, capsys):
    base = ["run", *RESOURCE, "--spot", "--config=c.py", "--workdir=gs://b/r"]
    words = [base[0], change[5:], *base[2:]] if change.startswith("name:") else [*base, change]
    monkeypatch.setattr(sys, "argv", ["launch/tpu_pod.py", *words, "--dry_run"])
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(SystemExit) as ended:
      common.main(tpu_pod.program)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert message in err and err.count("\n") == 1 and err.startswith("tpu_pod.py: ")

  def test_words_after_two_dashes_belong_to_ssh_alone(self):
    with pytest.raises(common.LaunchError, match="nothing is expected after --"):
      tpu_pod.program(["delete", *WHERE, "--", "x"])


def test_the_launchers_use_no_shell_and_the_standard_library_only():
  for path in sorted((pathlib.Path(tpu_pod.__file__).parent).glob("*.py")):
    text = path.read_text()
    assert "shell=" not in text and "os.system" not in text and "eval(" not in text
    modules = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    own = {other.stem for other in path.parent.glob("*.py")}
    assert modules <= own | set(sys.stdlib_module_names), path
