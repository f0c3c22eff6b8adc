"""What the README and docs tell a reader to type: every command exists, parses and, in the slow run, works in order."""

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from sora_jax.cli.command import defined
from sora_jax.cli.main import COMMANDS, find
from sora_jax.video import io as video_io

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (
  "README.md",
  "docs/data.md",
  "docs/prompting.md",
  "docs/checkpoints.md",
  "docs/plan.md",
  "docs/scale.md",
  "docs/worlds.md",
  "docs/scaling.md",
)
# What makes a training command of the README end in seconds; everything else is run as it stands there.
SMALL = (
  "--config.autoencoder.steps=2 --config.autoencoder.stages=(((2,4,4),16,1),) --config.autoencoder.channels=8 "
  "--config.autoencoder.crop=(3,16,16) --config.autoencoder.batch=2 "
  "--config.train.steps=2 --config.train.rows=2 --config.train.ranks=1 "
  "--config.model.width=32 --config.model.depth=1 --config.model.heads=2 --config.model.text_width=16 "
  "--config.model.text_depth=1 --config.model.text_heads=1 --config.data.max_tokens=64 --config.data.max_frames=5 "
  "--config.data.clips=4 --config.data.sizes=('32x32',) --config.data.frames=(1,5) --config.train.row_tokens=128 "
  "--config.train.row_text=128 --config.train.preview_every=0 --config.sample.steps=2 --config.diffusion.base_tokens=64"
).split()


def fenced(language: str, page: str = "README.md") -> list[str]:
  """The fenced blocks of one language."""
  return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str = "README.md") -> list[list[str]]:
  """Every command of the bash blocks, as words; a line that ends with a backslash goes on."""
  lines = (line for block in fenced("bash", page) for line in block.replace("\\\n", " ").splitlines())
  return [words for line in lines if (words := shlex.split(line, comments=True))]


def sora_commands(*pages: str) -> list[list[str]]:
  return [words for page in pages or PAGES for words in commands(page) if words[0] == "sora"]


def test_the_first_commands_make_clips_and_then_everything_from_nothing():
  first = commands()
  assert first[0] == ["make", "install"] and first[2][:4] == ["sora", "sample", "--checkpoint", "pretrained:worlds"]
  assert first.index(["make", "demo"]) == 3 and first[4] == ["make", "test"]


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "make"], ids=" ".join)
def test_make_knows_its_targets(words):
  assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("words", sora_commands(), ids=lambda words: " ".join(words[:4]))
def test_flags_and_configs_of_every_command_are_known(words, monkeypatch):
  monkeypatch.chdir(ROOT)
  name, rest = find(words[1:])
  flags = defined(COMMANDS[name])
  for word in rest:
    flag = word.removeprefix("--").split("=")[0].split(".")[0]
    assert not word.startswith("--") or flag in flags, word
  for word in words:
    if word.startswith("configs/"):
      assert (ROOT / word.split(":")[0]).is_file()


def test_the_captions_example_is_json_with_the_keys_that_folders_need():
  (line,) = fenced("json")[0].strip().splitlines()
  assert {"file", "short", "long"} <= json.loads(line).keys()


@pytest.mark.slow
def test_the_commands_work_in_the_order_in_which_they_stand(tmp_path):
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  clips = tmp_path / "clips"
  clips.mkdir()
  rng = np.random.default_rng(0)
  video_io.write(clips / "dog.mp4", rng.uniform(-1, 1, (9, 64, 80, 3)).astype(np.float32), 8.0)
  video_io.write(clips / "dog.png", rng.uniform(-1, 1, (1, 64, 80, 3)).astype(np.float32), 8.0)
  rows = [{"file": name, "short": "a dog", "long": "a dog runs"} for name in ("dog.mp4", "dog.png")]
  (clips / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  beam = importlib.util.find_spec("apache_beam")
  made = sora_commands("README.md", "docs/data.md")
  prompting = [[*words, "--overwrite"] for words in sora_commands("docs/prompting.md")]
  for words in [*made, *prompting]:
    if not beam and any(word.startswith("--beam") for word in words):
      continue
    small = SMALL if words[1] in ("train", "precompute") else []
    done = subprocess.run(
      [sys.executable, "-m", "sora_jax.cli", *words[1:], *small],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-2000:]}"
  assert (tmp_path / "dog.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
  assert all((tmp_path / f"{name}.mp4").is_file() for name in ("alive", "longer", "turning", "wider", "both", "keys"))
