"""`sora evaluate`: what is asked for reaches the job."""

import pytest

from sora_jax.cli import evaluate as command
from sora_jax.evaluation import worlds
from sora_jax.jobs import evaluate as job
from tests.cli.runs import complaint, run


def test_what_is_asked_for_is_measured(capsys, monkeypatch):
  asked = []
  monkeypatch.setattr(job, "evaluate", lambda *given: asked.append(given) or {"suite": given[1]})
  words = ("--checkpoint", "w", "--suite", "prompting", "--clips", "5", "--out", "x.json")
  assert run(capsys, "evaluate", *words).returncode == 0
  assert asked == [("w", "prompting", 5, "x.json", None, None)]
  assert run(capsys, "evaluate", "--checkpoint=w", "--suite=fidelity", "--i3d=f.safetensors").returncode == 0
  assert asked[1] == ("w", "fidelity", None, None, "f.safetensors", None)
  assert run(capsys, "evaluate", "--checkpoint=w", "--suite=worlds", "--kinds=long,given").returncode == 0
  assert asked[2] == ("w", "worlds", None, None, None, ["long", "given"])


def test_the_suites_of_the_command_are_those_of_the_job():
  assert command.SUITES == job.SUITES and command.KINDS == tuple(worlds.KINDS)


@pytest.mark.parametrize(
  ("words", "part"),
  [
    (("--suite", "worlds"), "--checkpoint"),
    (("--checkpoint", "w", "--suite", "magic"), "prompting"),
    (("--checkpoint", "w", "--suite", "worlds", "--i3d", "f"), "--i3d is of --suite fidelity"),
    (("--checkpoint", "w", "--suite", "worlds", "--kinds", "long,tall"), "some of long, short, given"),
    (("--checkpoint", "w", "--suite", "physics", "--kinds", "long"), "--kinds long: it is of --suite worlds"),
  ],
  ids=str,
)
def test_mistakes_are_named(capsys, words, part):
  assert part in complaint(run(capsys, "evaluate", *words), 2)
