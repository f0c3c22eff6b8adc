"""The list of clips a run does without, and the share at which it stops."""

import json

import pytest

from sora_jax.data import quarantine
from sora_jax.data.files import Dropped
from sora_jax.data.folder import UNNAMED

BAD = [Dropped("a.mp4", 2, "file missing"), Dropped("", 3, "bad JSON: here"), Dropped("b.png", 0, UNNAMED)]


def test_the_list_reads_back_and_is_replaced_whole(tmp_path):
  for bad in (BAD, BAD[:1]):
    quarantine.write(tmp_path / "run", bad)
    lines = (tmp_path / "run" / quarantine.FILE).read_text().splitlines()
    assert [Dropped(**json.loads(line)) for line in lines] == bad
  assert [path.name for path in (tmp_path / "run").iterdir()] == [quarantine.FILE]


def test_the_share_counts_lines_and_not_files_that_no_line_names():
  quarantine.stop_at(0.2, BAD, good=8)  # two of ten
  with pytest.raises(quarantine.TooManyBad, match=r"2 of 9 .*max_bad=0.2.*1 bad JSON, 1 file missing"):
    quarantine.stop_at(0.2, BAD, good=7)
  quarantine.stop_at(0.0, BAD[2:], good=1)
