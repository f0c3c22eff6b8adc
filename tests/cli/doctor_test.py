"""`sora doctor`: versions and devices, and each known problem on a machine that has it."""

import collections

import pytest

from sora_jax.cli import doctor
from tests.cli.runs import process, result, run

Disk = collections.namedtuple("Disk", "total used free")


def test_versions_devices_and_problems_are_told():
  found = result(process("doctor", "--json"))
  assert {"jax", "jaxlib", "flax", "orbax-checkpoint", "av"} <= found["versions"].keys()
  assert found["ffmpeg"] and found["devices"][0].startswith("cpu") and found["processes"] == 1
  assert isinstance(found["problems"], list) and found["settings"]["JAX_PLATFORMS"] == "cpu"


def test_problems_are_lines_for_people(capsys, monkeypatch):
  monkeypatch.setattr(doctor, "machine_problems", lambda: iter(["the disk is full"]))
  assert "the disk is full" in run(capsys, "doctor").stdout


def test_jax_without_devices_is_a_problem_and_no_error(monkeypatch):
  import jax

  def fail() -> None:
    raise RuntimeError("Unable to initialize backend 'tpu'\nmore")

  monkeypatch.setattr(jax, "devices", fail)
  devices, processes, (problem,) = doctor.find_devices()
  assert devices == [] and processes == 0 and "backend 'tpu'" in problem and "\n" not in problem


def test_versions_that_do_not_belong_together_are_named():
  assert not list(doctor.version_problems({"jax": "0.10.2", "jaxlib": "0.10.1"}))
  (problem,) = doctor.version_problems({"jax": "0.10.2", "jaxlib": "0.9.0"})
  assert "0.10.2" in problem and "0.9.0" in problem


@pytest.mark.parametrize(
  ("plugin", "platforms", "setting", "said"),
  [
    (False, {"cpu"}, "", "plugin for it is not installed"),
    (True, {"cpu"}, "cpu", "JAX_PLATFORMS=cpu keeps JAX from it"),
    (True, {"cpu"}, "", "does not find it"),
    (True, {"gpu"}, "", None),
  ],
)
def test_an_accelerator_that_is_not_used_is_a_problem(monkeypatch, plugin, platforms, setting, said):
  monkeypatch.setattr(doctor.glob, "glob", lambda pattern: ["/dev/nvidia0"] if "nvidia" in pattern else [])
  monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object() if plugin else None)
  monkeypatch.setenv("JAX_PLATFORMS", setting)
  problems = list(doctor.accelerator_problems(platforms))
  assert len(problems) == (said is not None) and all("NVIDIA GPU" in each and said in each for each in problems)


@pytest.mark.parametrize("free", [2**20, 2**40])
def test_little_room_and_few_files_are_problems(monkeypatch, free):
  monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Disk(2**41, 0, free))
  monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
  monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256 if free < 2**30 else 2**20, 2**20))
  problems = " ".join(doctor.machine_problems())
  assert all((word in problems) == (free < 2**30) for word in ("/dev/shm", "checkpoints and latents", "ulimit"))
