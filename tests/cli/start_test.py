"""The command decides about its memory before it imports anything large."""

import os
import pathlib
import subprocess
import sys

CODE = """
import sys
from sora_jax.cli import start
from sora_jax.runtime import process
process.restart_with_large_pages = lambda: print(sorted(LARGE & sys.modules.keys()))
LARGE = {"absl", "jax", "numpy", "ml_collections"}
sys.argv = ["sora", "help"]
start.main()
"""


def test_nothing_large_is_imported_before_the_command_may_start_again():
  done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[0] == "[]"
  assert "usage: sora COMMAND" in done.stdout


def test_the_installed_command_begins_here():
  setup = pathlib.Path(__file__).parents[2] / "setup.py"
  assert "sora = sora_jax.cli.start:main" in setup.read_text()


def test_the_command_keeps_its_exit_status_and_its_streams():
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "", "SORA_MALLOC": ""}
  words = [sys.executable, "-c", "from sora_jax.cli import start; start.main()", "train", "--no_such_flag"]
  done = subprocess.run(words, capture_output=True, text=True, env=environment)
  assert done.returncode == 2 and done.stdout == ""
  assert "no_such_flag" in done.stderr and len(done.stderr.splitlines()) == 1
