"""A command line as a command reads it: every word is read, or named with what was probably meant."""

import ml_collections
import pytest
from absl import flags

from sora_jax.cli import main
from sora_jax.cli.command import Command, Given, define_config, help_of, parse, printed
from sora_jax.cli.config import UsageError

CONFIG = """
import ml_collections

def get_config(arg="4"):
  train = dict(steps=int(arg), rate=1e-3, sizes=("8x8",), remat=False)
  return ml_collections.ConfigDict(dict(seed=0, train=train, sample=dict(steps=5, guidance=2.5)))
"""


def define(values: flags.FlagValues) -> None:
  define_config(values)
  flags.DEFINE_string("workdir", None, "a folder", flag_values=values)
  flags.DEFINE_multi_string("note", None, "a note", flag_values=values)
  flags.DEFINE_bool("fast", False, "whether", flag_values=values)
  flags.DEFINE_integer("count", 1, "how many", lower_bound=1, flag_values=values)


COMMAND = Command(lambda given: {}, define, "does it", "SRC", words=("SRC",))


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(CONFIG)
  return path


def read(*words: object) -> Given:
  return parse("run", COMMAND, [str(word) for word in words])


class TestParse:
  def test_flags_and_words_come_in_any_order(self, config):
    given = read("--count", 3, "clips", "--fast", "--note=a b", "--note", "c")
    assert (given.count, given.SRC, given.fast, given.note) == (3, "clips", True, ["a b", "c"])
    assert given.config is None and given.workdir is None and not given.json

  def test_what_follows_two_dashes_is_a_word(self):
    assert read("--fast", "--", "--odd").SRC == "--odd"

  def test_values_of_the_config_are_set_and_locked(self, config):
    words = (
      "--config.train.steps=9",
      "--config.train.sizes=('4x4', '2x2')",
      "--config.train.remat",
      "--config.seed",
      5,
    )
    given = read("clips", f"--config={config}", *words)
    assert isinstance(given.config, ml_collections.ConfigDict) and given.config.is_locked
    assert given.config.train.to_dict() == {"steps": 9, "rate": 1e-3, "sizes": ("4x4", "2x2"), "remat": True}
    assert given.config.seed == 5

  def test_a_config_has_an_argument_and_overrides_may_come_before_it(self, config):
    given = read("--config.seed=7", "clips", "--config", f"{config}:6", "--noconfig.train.remat")
    assert (given.config.train.steps, given.config.seed, given.config.train.remat) == (6, 7, False)

  def test_each_command_line_begins_anew(self, config):
    assert read("clips", f"--config={config}", "--config.seed=3", "--count=2").config.seed == 3
    again = read("clips", f"--config={config}")
    assert (again.config.seed, again.count) == (0, 1)

  def test_two_commands_know_nothing_of_each_other(self):
    other = Command(lambda given: {}, lambda values: None, "other")
    with pytest.raises(UsageError, match="--count"):
      parse("other", other, ["--count=3"])

  @pytest.mark.parametrize(
    ("words", "parts"),
    [
      (("clips", "--cuont=3"), ("sora run", "--cuont", "did you mean --count?")),
      (("clips", "--nofats"), ("--fast",)),
      (("clips", "--config.seed=3"), ("--config.seed=3", "--config FILE")),
      (("clips", "more", "and more"), ("'more' 'and more'", "quotes")),
      ((), ("needs SRC",)),
      (("clips", "--undefok=seed", "--seed=3"), ("--undefok",)),
      (("clips", "--nojson=3"), ("--nojson=3",)),
      (("clips", "--seed", 5), ("--seed", "--config.seed=5")),
    ],
    ids=str,
  )
  def test_what_is_not_read_is_named_with_the_nearest(self, words, parts):
    with pytest.raises(UsageError) as caught:
      read(*words)
    assert all(part in str(caught.value) for part in parts), str(caught.value)

  @pytest.mark.parametrize(
    ("flag", "meant"),
    [
      (("--seed", 5), "--config.seed=5?"),
      (("--guidance=3",), "--config.sample.guidance=3?"),
      (("--steps=3",), "--config.sample.steps=3 or --config.train.steps=3?"),
      (("--guidence=3",), "--config.sample.guidance=3?"),
    ],
    ids=str,
  )
  def test_a_value_of_the_config_is_found_by_its_name(self, config, flag, meant):
    with pytest.raises(UsageError) as caught:
      read("clips", f"--config={config}", *flag)
    assert meant in str(caught.value)

  @pytest.mark.parametrize("words", [("--count=0",), ("--count=many",), ("--count",), ("--flagfile=absent",)], ids=str)
  def test_bad_values_are_errors_of_the_command_line(self, words):
    with pytest.raises(flags.Error, match=r"count|absent"):
      read("clips", *words)

  def test_a_value_of_the_wrong_type_is_named(self, config):
    with pytest.raises(flags.Error, match="config.train.steps=many"):
      read("clips", f"--config={config}", "--config.train.steps=many")

  def test_flags_that_a_command_can_t_do_without_are_named_together(self):
    with pytest.raises(UsageError, match="sora run needs --config and --workdir"):
      parse("run", Command(lambda given: {}, define, "", needs=("config", "workdir")), [])


def test_help_shows_usage_flags_and_defaults():
  text = help_of("run", COMMAND)
  assert text.startswith("usage: sora run SRC\n\ndoes it\n")
  for part in ("--config ", "--[no]fast", "--count", "how many (default: 1)", "--json"):
    assert part in text


def test_a_result_is_a_line_for_each_value_and_for_each_row_of_a_table():
  table = {"a": {"state": "done", "ends": ["done"]}, "b": {"state": "waiting", "ends": []}}
  shown = printed({"runs": table, "counts": {"done": 1}, "empty": {}})
  assert shown.splitlines() == [
    "runs:",
    "  a: state=done, ends=['done']",
    "  b: state=waiting, ends=[]",
    "counts: {'done': 1}",
    "empty: {}",
  ]


def test_no_flag_of_any_command_hides_in_another_s_usage():
  for name, command in main.COMMANDS.items():
    text = help_of(name, command)
    flags_of = text.partition("\nflags:\n")[2]
    used = [word.strip("[]").partition("=")[0] for word in command.usage.split() if word.strip("[]").startswith("--")]
    for word in used:
      assert word == "--config.KEY" or f"{word} " in flags_of or f"{word.replace('--', '--[no]')} " in flags_of, word
