"""The `sora` command: what is listed, which mistake gets one line, which error its traceback; and whole processes."""

import json
import runpy
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from sora_jax.cli import doctor, main
from sora_jax.cli.command import Command
from sora_jax.errors import InputError
from sora_jax.runtime import preemption
from sora_jax.settings import leaves
from sora_jax.video import io as video_io
from tests.cli.runs import ROOT, complaint, process, result, run


@pytest.fixture
def sora(capsys):
  return lambda *words: run(capsys, *words)


@pytest.fixture
def failing(monkeypatch):
  """A command `fail` that raises an error."""

  def failing(error: BaseException) -> None:
    def fail(given: Any) -> dict:
      raise error

    monkeypatch.setitem(main.COMMANDS, "fail", Command(fail, doctor.define_nothing, "fails"))

  return failing


def changed(config: dict) -> list[tuple[str, Any]]:
  """(key, value) for what a config changes of configs/dit.py:runlocal=1."""
  tuples = lambda value: tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value
  before = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"]("runlocal=1").to_dict()
  old, new = leaves(before), leaves(config)
  return [(key, tuples(value)) for key, value in new.items() if tuples(old[key]) != tuples(value)]


class TestUsage:
  def test_no_words_print_the_commands_and_are_a_mistake(self, sora):
    done = sora()
    assert done.returncode == 2
    for command in ("demo", "train", "sample", "animate", "data check", "checkpoint pin", "plan", "doctor"):
      assert f"\n  {command}" in done.stdout

  @pytest.mark.parametrize("word", ["help", "--help", "-h"])
  def test_help_is_no_mistake(self, sora, word):
    done = sora(word)
    assert done.returncode == 0 and done.stdout.startswith("usage: sora COMMAND")

  @pytest.mark.parametrize("name", main.COMMANDS)
  def test_a_command_s_help_has_its_own_flags_alone(self, sora, name):
    done = sora(*name.split(), "--help")
    assert done.returncode == 0 and not done.stderr and f"usage: sora {name}" in done.stdout
    assert "--json" in done.stdout
    assert ("--guidance" in done.stdout) == (name in ("sample", "animate", "extend", "loop", "edit", "connect"))
    assert ("--workdir" in done.stdout) == (name in ("train", "precompute") or name.startswith("sweep "))
    assert max(map(len, done.stdout.splitlines())) <= 120

  def test_a_group_s_help_lists_its_commands(self, sora):
    done = sora("data", "--help")
    assert done.returncode == 0 and "usage: sora data check|show|build SRC" in done.stdout
    assert "data build SRC --out DIR" in done.stdout and "checkpoint" not in done.stdout

  @pytest.mark.parametrize(("word", "meant"), [("trian", "'train'"), ("smaple", "'sample'"), ("dta", "'data'")])
  def test_an_unknown_command_is_answered_with_the_nearest(self, sora, word, meant):
    said = complaint(sora(word), 2)
    assert word in said and meant in said

  @pytest.mark.parametrize(
    ("words", "parts"),
    [
      (("data", "tidy", "clips"), ("'tidy'", "check|show|build")),
      (("data", "chekc", "clips"), ("'check'",)),
      (("data",), ("check|show|build",)),
      (("data", "build"), ("needs SRC", "usage: sora data build SRC")),
      (("checkpoint", "verify"), ("needs DIR", "usage: sora checkpoint verify DIR")),
      (("compare",), ("needs RUN_A", "usage: sora compare RUN_A RUN_B")),
    ],
  )
  def test_missing_or_unknown_words_are_named(self, sora, words, parts):
    said = complaint(sora(*words), 2)
    assert all(part in said for part in parts)


class TestErrors:
  def test_an_interrupted_command_says_so_in_one_line(self, sora, failing):
    failing(KeyboardInterrupt())
    assert complaint(sora("fail"), 130) == "sora: interrupted"

  def test_an_error_that_a_user_can_mend_is_one_line(self, sora, failing):
    failing(InputError("clips/a.mp4:\n  is empty"))
    assert complaint(sora("fail"), 1) == "sora: clips/a.mp4: is empty"

  @pytest.mark.parametrize(
    "error",
    [
      AttributeError("module 'config' has no attribute 'x'. Did you mean: 'y'?"),
      KeyError("config"),
      TypeError("config"),
      ValueError("of a library"),
      RuntimeError("of a library"),
      OSError("of a library"),
    ],
    ids=repr,
  )
  def test_any_other_keeps_its_traceback(self, sora, failing, error):
    failing(error)
    with pytest.raises(type(error)) as caught:
      sora("fail")
    assert caught.value is error

  def test_an_interrupted_run_ends_with_a_status_of_its_own(self, sora, failing, monkeypatch):
    monkeypatch.setattr(preemption, "ignore", lambda: None)
    failing(preemption.Preempted("ended by SIGTERM: step 3 is saved"))
    assert complaint(sora("fail"), preemption.REQUEUE) == "sora: ended by SIGTERM: step 3 is saved"

  def test_a_process_prints_the_traceback_of_a_bug(self, tmp_path):
    (tmp_path / "odd.py").write_text("def get_config():\n  return undefined\n")
    done = process("train", "--config", tmp_path / "odd.py", "--workdir", tmp_path / "w")
    assert done.returncode == 1 and "Traceback" in done.stderr and "NameError" in done.stderr.splitlines()[-1]


class TestProcesses:
  @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
  def test_one_that_is_asked_to_end_leaves_nothing_half_written(self, tmp_path, number):
    code = (
      "import sys, time\nfrom sora_jax.cli import doctor, main\nfrom sora_jax.cli.command import Command\n"
      "from sora_jax.video import io\nimport numpy as np\n"
      "def pieces():\n  yield np.zeros((1, 8, 8, 3), np.uint8)\n  print('begun', flush=True)\n  time.sleep(60)\n"
      f"make = lambda given: io.write_pieces({str(tmp_path / 'a.mp4')!r}, pieces(), 8)\n"
      "main.COMMANDS['make'] = Command(make, doctor.define_nothing, 'makes')\n"
      "sys.argv = ['sora', 'make']\nmain.main()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n" and list(tmp_path.iterdir())
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (128 + number, f"sora: ended by {signal.Signals(number).name}\n")
    assert not list(tmp_path.iterdir())

  def test_nothing_heavy_is_imported_before_a_command_needs_it(self):
    code = "import sys; import sora_jax.cli.main; print({'jax', 'numpy', 'grain', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"

  @pytest.mark.parametrize("name", ["train", "precompute"])
  def test_a_run_listens_for_signals_before_its_imports(self, tmp_path, name):
    code = (
      "import signal, sys\nfrom sora_jax.cli import main\nfrom sora_jax.runtime import preemption\n"
      "preemption.Preemption.listen = lambda self: sys.exit(f'listening {'jax' in sys.modules}')\n"
      f"main.run(['{name}', '--config', 'configs/dit.py', '--workdir', {str(tmp_path / 'w')!r}])"
    ).replace("{'jax' in sys.modules}", '{"jax" in sys.modules}')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr.strip() == "listening False"

  def test_precompute_leaves_what_training_begins_with(self, trained, tmp_path):
    shutil.copytree(trained / "autoencoder", tmp_path / "w" / "autoencoder")
    shutil.copy(trained / "config.json", tmp_path / "w")
    config = json.loads((trained / "config.json").read_text())
    words = [f"--config.{name}={value!r}" for name, value in changed(config)]
    done = process("precompute", "--config", "configs/dit.py:runlocal=1", *words, "--workdir", tmp_path / "w", "--json")
    assert result(done)["clips"] == 24
    assert (tmp_path / "w" / "latents" / "index.json").read_text() == (trained / "latents" / "index.json").read_text()
    assert (tmp_path / "w" / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()

  def test_sample_writes_the_clip_and_tells_what_it_is(self, trained, tmp_path):
    words = ("--checkpoint", trained, "--prompt", "a red circle", "--size", "24x16", "--frames", "5", "--fps", "8")
    found = result(process("sample", *words, "--seed", "3", "--out", "x.mp4", "--json", cwd=tmp_path))
    assert found.keys() >= {"out", "width", "height", "frames", "fps", "seconds"}
    assert (found["width"], found["height"], found["frames"], found["fps"]) == (24, 16, 5, 8.0)
    assert video_io.read(tmp_path / found["out"], fps=8, max_frames=99).shape == (5, 16, 24, 3)
    again = result(process("sample", "--from", "x.mp4.json", "--out", "y.mp4", "--json", cwd=tmp_path))
    assert again["out"] == "y.mp4"
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()

  def test_devices_that_are_not_here_are_told_in_one_line(self, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    words = ("--checkpoint", trained, "--prompt", "x", "--size", "16x16", "--frames", "1")
    done = process("sample", *words, "--out", tmp_path / "x.png")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "JAX can't start its devices" in done.stderr.splitlines()[-1]
