"""What the tests of the launchers share: the scripts' folder, stand-ins for the clouds, and golden files.

SORA_GOLDEN=write remakes the golden files; look at what changed before you commit it.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

import pytest

from tests.launch import fake_gcloud, fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden"
sys.path.insert(0, str(ROOT / "launch"))  # as it is for a script that is run from there


class Sandbox:
  """A folder in which launchers find stand-ins instead of gcloud and the rest."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.workdir = folder, folder / "bucket" / "run"
    self.env = fakes.install(folder)
    self.workdir.mkdir(parents=True)
    self.set(workdir=str(self.workdir))

  def set(self, **state) -> None:
    """What is to happen; see fakes.py."""
    os.environ["FAKE_CLOUD"] = self.env["FAKE_CLOUD"]
    fakes.update(**state)

  def state(self) -> dict:
    os.environ["FAKE_CLOUD"] = self.env["FAKE_CLOUD"]
    return fakes.load()

  def start(self, script: str, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, "-S", str(ROOT / "launch" / script), *words],  # no site packages: none are needed
      cwd=ROOT,
      env=self.env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script: str, *words: str) -> subprocess.CompletedProcess:
    child = self.start(script, *words)
    out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(words, child.returncode, out, err)

  def calls(self, *names: str) -> list[list[str]]:
    """Every call of the stand-ins so far, in order."""
    path = self.folder / "cloud" / "calls.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [call for call in found if not names or call[0] in names]

  def starts(self, workdir: pathlib.Path | None = None) -> list[dict]:
    """Every start of training: the step that it found, and its words."""
    return [json.loads(line) for line in ((workdir or self.workdir) / "starts.jsonl").read_text().splitlines()]

  def step(self) -> int:
    return fakes.done(self.workdir)

  def wait_for_step(self, step: int) -> None:
    limit = time.monotonic() + 30
    while self.step() < step:
      assert time.monotonic() < limit, f"training is at step {self.step()}"
      time.sleep(0.01)


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
  monkeypatch.setenv("FAKE_CLOUD", str(tmp_path / "cloud"))  # set by hand below; restored after the test
  made = Sandbox(tmp_path)
  yield made
  fake_gcloud.wipe()  # what still trains on a stand-in of a machine


@pytest.fixture
def golden():
  """Compares text with a golden file, byte for byte; what differs by machine is named instead."""

  def check(name: str, text: str) -> None:
    text = text.replace(sys.executable, "PYTHON").replace(str(ROOT), "REPO")
    path = GOLDEN / name
    if os.environ.get("SORA_GOLDEN") == "write":
      path.write_bytes(text.encode())
    assert path.read_bytes() == text.encode(), f"{path} differs: SORA_GOLDEN=write remakes it"

  return check


@pytest.fixture
def lines():
  """The commands that a launcher prints with --dry_run, as words."""

  def read(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines()]

  return read
