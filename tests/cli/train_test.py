"""`sora train` and `sora precompute`: what they read, before any work."""

import pytest

from tests.cli.runs import complaint, run

TINY = ("--config", "configs/dit.py:runlocal=1")


@pytest.fixture
def sora(capsys):
  return lambda *words: run(capsys, *words)


@pytest.mark.parametrize(
  ("words", "parts"),
  [
    (("train",), ("--config", "--workdir")),
    (("precompute", *TINY), ("--workdir",)),
    (("train", *TINY, "--guidance", "3"), ("--guidance", "--config.sample.guidance=3")),
    (("train", *TINY, "--seed", "5"), ("--seed", "--config.seed=5")),
    (("train", "--seed", "5"), ("--seed", "--config.seed=5")),
    (("train", *TINY, "--workers", "2"), ("--workers", "--config.data.workers=2")),
    (("train", *TINY, "--config.train.stepz=3"), ("stepz", "'steps'")),
    (("train", *TINY, "--config.model.widht=3"), ("widht", "width")),
    (("train", *TINY, "--config.train.steps=many"), ("config.train.steps", "many")),
    (("train", "--config", "configs/dit.py:variant=XXL"), ("XXL", "S, B, L, XL, 8B")),
    (("train", "--config", "configs/absent.py"), ("configs/absent.py",)),
    (("train", "configs/dit.py"), ("'configs/dit.py'",)),
  ],
  ids=str,
)
def test_a_mistake_is_named_in_one_line_and_nothing_is_written(sora, tmp_path, words, parts):
  there = ("--workdir", tmp_path / "w") if len(words) > 1 and words != ("precompute", *TINY) else ()
  said = complaint(sora(*words, *there), 2)
  assert all(part in said for part in parts), said
  assert not (tmp_path / "w").exists()
