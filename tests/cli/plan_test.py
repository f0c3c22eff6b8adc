"""`sora plan`: what it reads; what it answers is in tests/plan."""

import pytest

from tests.cli.runs import complaint, run


@pytest.mark.parametrize(
  ("words", "parts"),
  [
    ((), ("--config",)),
    (("--config", "configs/dit.py", "--price", "-1"), ("--price",)),
    (("--config", "configs/dit.py", "--topolgy", "v5p-128"), ("--topology",)),
    (("--config", "configs/dit.py", "--workdir", "w"), ("--workdir",)),
    (("--config", "configs/dit.py", "--sample", "64x64x1", "--price", "2"), ("--sample", "--price")),
    (("--config", "configs/dit.py", "--sample", "64x64x1", "--tokens", "0"), ("--sample", "--tokens")),
    (("--config", "configs/sweep_isoflop.py", "--tokens", "9"), ("a sweep", "--tokens")),
  ],
  ids=str,
)
def test_a_wrong_command_line_is_named_in_one_line(capsys, words, parts):
  said = complaint(run(capsys, "plan", *words), 2)
  assert all(part in said for part in parts), said


def test_chips_that_are_unknown_are_named(capsys):
  assert "v9z-8" in complaint(run(capsys, "plan", "--config", "configs/dit.py", "--topology", "v9z-8"), 1)


@pytest.mark.parametrize("clip", ["64x64", "9000x64x1", "64x64x9999"])
def test_a_clip_that_can_not_be_sampled_is_named_in_one_line(capsys, clip):
  assert clip in complaint(run(capsys, "plan", "--config", "configs/dit.py", "--sample", clip), 1)
