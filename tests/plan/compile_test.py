"""Steps examined in a process of their own: several devices, chips that are not here, and what goes wrong there."""

import json
import math
import sys

import pytest

from sora_jax.plan import chips, compile


@pytest.fixture
def devices(monkeypatch):
  """This machine's CPU as four devices."""
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")


@pytest.mark.slow
def test_several_devices_share_parameters_and_talk(tiny_config, devices):
  tiny_config.train.rows = 4
  found = compile.examine(tiny_config, 24.0, None)
  assert (found["devices"], found["ranks"], math.prod(found["mesh"].values())) == (4, 4, 4)
  collectives = found["compiled"]["collectives"]
  # Each device has a part of each weight, so all are gathered, and gradients are summed.
  assert collectives["all-gather"]["bytes"] > 4 * found["params"] / 2
  assert {"all-reduce", "reduce-scatter"} & collectives.keys()
  assert found["bytes"]["params"] < 4 * found["params"] / 2


def test_rows_that_devices_can_t_share_are_said_in_one_line(tiny_config, devices):
  tiny_config.train.rows = 6
  with pytest.raises(compile.CompileError, match=r"train.rows=6 is no multiple of the 4 devices .* mesh.context"):
    compile.examine(tiny_config, 24.0, None)


def test_the_environment_of_a_compilation_for_tpus_is_its_own(tiny_config, monkeypatch, tmp_path):
  """What steers XLA on this machine would steer libtpu too, and JAX must not look for a TPU."""
  answers = tmp_path / "answers.py"
  answers.write_text("#!/bin/sh\necho '{\"devices\": 8}'\n")
  answers.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(answers))
  monkeypatch.setattr(compile, "missing", lambda: None)
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
  seen = []
  run = compile.subprocess.run
  monkeypatch.setattr(compile.subprocess, "run", lambda *a, **k: seen.append(k) or run(*a, **k))
  assert compile.examine(tiny_config, 24.0, chips.parse("v5e-8")) == {"devices": 8}
  environment, request = seen[0]["env"], json.loads(seen[0]["input"])
  assert "XLA_FLAGS" not in environment and environment["JAX_PLATFORMS"] == "cpu"
  assert request["topology"] == ["v5e", [2, 4], 1]


@pytest.mark.parametrize(
  ("script", "said"),
  [
    ("echo 'Traceback' >&2; echo 'ValueError: no such axis' >&2; exit 1", "ValueError: no such axis"),
    ("echo W0000 >&2; kill -9 $$", "SIGKILL ended the compiler: this machine has too little memory for it"),
    ("echo hello", "exit status 0"),
  ],
)
def test_a_process_that_ends_badly_is_told_in_one_line(tiny_config, monkeypatch, tmp_path, script, said):
  fails = tmp_path / "fails"
  fails.write_text(f"#!/bin/sh\n{script}\n")
  fails.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(fails))
  with pytest.raises(compile.CompileError, match=f"does not compile for this machine's devices: {said}") as error:
    compile.examine(tiny_config, 24.0, None)
  assert "\n" not in str(error.value)
