"""Every setting has its range, and a config that leaves one is refused with name, value and range."""

import math
import pathlib
import runpy

import ml_collections
import pytest

from sora_jax import settings
from sora_jax.data.stream import ON_MISMATCH
from sora_jax.diffusion.samplers import METHODS
from sora_jax.errors import InputError
from sora_jax.models.attention.attention import BACKENDS
from sora_jax.models.layers import REMAT
from sora_jax.plan.plan import plan

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
CONFIGS = [path for path in FILES if not path.name.startswith("sweep_")]  # which are files of another kind
ARGUMENTS = [(path, arg) for path in CONFIGS for arg in ("", "runlocal=1", "variant=8B")]
NUMBERS = [name for name, rule in settings.RULES.items() if rule.accepts(1) or rule.accepts(0.5)]


def load(path: pathlib.Path, arg: str = "") -> ml_collections.ConfigDict:
  return runpy.run_path(str(path))["get_config"](arg)


def put(config: ml_collections.ConfigDict, name: str, value: object) -> ml_collections.ConfigDict:
  section, _, key = name.rpartition(".")
  inner = config[section] if section else config
  with inner.ignore_type():
    inner[key] = value
  return config


@pytest.mark.parametrize(("path", "arg"), ARGUMENTS, ids=lambda x: x.stem if isinstance(x, pathlib.Path) else x)
def test_every_setting_of_every_config_has_a_rule_and_keeps_it(path, arg):
  config = load(path, arg)
  assert settings.leaves(config.to_dict()).keys() == settings.RULES.keys()
  settings.check(config)
  settings.check(ml_collections.ConfigDict(config.to_dict()))


def test_sizes_durations_and_rates_may_be_ranges(tiny_config):
  put(tiny_config, "data.sizes", ("20..43x20..43", "64x64"))
  put(tiny_config, "data.frames", (1, 1, "3..13"))
  put(tiny_config, "data.rates", (8, 29.97, "5..20", "7.5..7.5"))
  settings.check(tiny_config)


def test_configs_of_equal_values_have_one_digest_whatever_their_order():
  one, other, third = ({"a": 1, "b": (2, 3)}, {"b": (2, 3), "a": 1}, {"a": 1, "b": (2, 4)})
  digests = [settings.digest_of(ml_collections.ConfigDict(values)) for values in (one, other, third)]
  assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64


def test_an_autoencoder_alone_has_one_number_of_steps_by_two_names():
  config = load(CONFIGS[0])
  assert CONFIGS[0].name == "autoencoder.py"
  config.autoencoder.steps = 7
  assert config.train.steps == 7
  config.train.steps = 9
  assert config.autoencoder.steps == 9 and '"steps": 9' in config.to_json()


def test_the_names_that_a_setting_may_have_are_those_that_the_code_knows():
  known = {"data.on_mismatch": ON_MISMATCH, "sample.method": METHODS, "model.remat": REMAT, "model.attention": BACKENDS}
  for name, names in known.items():
    assert set(settings.RULES[name].names) == set(names), name


@pytest.mark.parametrize(
  ("name", "value", "words"),
  [
    ("diffusion.caption_drop", 10.0, "from 0 to 1"),
    ("data.long_captions", 80.0, "from 0 to 1"),
    ("diffusion.condition_share", -1.0, "from 0 to 1"),
    ("train.ema_decay", 1.5, "from 0 to less than 1"),
    ("data.max_bad", 25.0, "from 0 to 1"),
    ("data.token_drop", 1.5, "from 0 to less than 1"),
    ("train.steps", 0, "1 or more"),
    ("train.rows", -2, "1 or more"),
    ("model.depth", 0, "1 or more"),
    ("model.seconds", (240.0, 0.5), "the lower one first"),
    ("sample.interval", (0.9, 0.1), "the lower one first"),
    ("train.learning_rate", 0.0, "above 0"),
    ("train.adam_learning_rate", -1e-3, "above 0"),
    ("model.patch", (1, 0, 2), "3 of a whole number of 1 or more"),
    ("model.patch", (2, 2), "3 of"),
    ("autoencoder.stages", (((1, 2, 2), 0, 2),), "each 1 or more"),
    ("autoencoder.stages", (), "a list"),
    ("autoencoder.crop", (17, 128, -1), "1 or more"),
    ("data.sizes", ("256",), "WIDTHxHEIGHT"),
    ("data.sizes", ("0x16",), "WIDTHxHEIGHT"),
    ("data.frames", (), "a list"),
    ("data.frames", (1, "7..3"), "or a range"),
    ("data.frames", ("0..3",), "or a range"),
    ("data.frames", ("5",), "or a range"),
    ("data.frames", "3..7", "a list"),
    ("data.rates", ("0..3",), "or a range"),
    ("data.rates", ("20..5",), "or a range"),
    ("data.rates", (0.0,), "above 0"),
    ("data.rates", 8.0, "a list that may be empty"),
    ("data.weights", (1.0, -1.0), "above 0"),
    ("diffusion.time_logit", (0.8, 0.0), "a std above 0"),
    ("train.steps", "many", "a whole number"),
    ("train.steps", True, "a whole number"),
    ("train.clip_norm", "1", "a number"),
    ("model.dtype", 32, "'float32' or 'bfloat16'"),
    ("data.source", " ", "not empty"),
    ("sample.first_frame", 1, "True or False"),
    ("mesh.data", 0, "-1 for the rest"),
    ("autoencoder.checkpoint", 3, "or unset"),
    ("seed", -1, "from 0 to"),
  ],
)
def test_a_value_out_of_its_range_is_refused_with_name_value_and_range(tiny_config, name, value, words):
  with pytest.raises(InputError) as caught:
    settings.check(put(tiny_config, name, value))
  said = str(caught.value)
  assert said.startswith(f"config.{name}={value!r}: it is ") and words in said and "\n" not in said


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e30, "1"])
def test_no_number_takes_what_is_none(tiny_config, name, value):
  with pytest.raises(InputError, match=f"^config.{name}="):
    settings.check(put(tiny_config, name, value))


@pytest.mark.parametrize("name", [name for name, rule in settings.RULES.items() if rule.names])
def test_of_a_wrong_name_the_nearest_is_told(tiny_config, name):
  right = settings.RULES[name].names[-1]
  with pytest.raises(InputError, match=f"^config.{name}='{right}s': .*{right!r}; did you mean {right!r}\\?$"):
    settings.check(put(tiny_config, name, f"{right}s"))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"model.heads": 3}, "config.model.width=32 and config.model.heads=3: the width of a head must be an even number"),
    ({"model.heads": 8}, "6 or more"),
    ({"model.text_heads": 16}, "config.model.text_width=16 and config.model.text_heads=16"),
    ({"mesh.data": -1}, "config.mesh.data=-1 and config.mesh.fsdp=-1: one axis at most"),
    ({"train.rows": 3, "train.ranks": 2}, "config.train.rows=3 can't be shared by config.train.ranks=2"),
    ({"model.base_width": 100}, "config.model.base_width=100: heads are 16 wide at config.model.width=32"),
    (
      {"data.loops": 0.5, "model.patch": (2, 1, 1)},
      "config.data.loops=0.5: loops need a model.patch that begins with 1",
    ),
    ({"train.rows": 0, "model.remat": "all"}, "config.model.remat='all': .*; config.train.rows=0: "),
  ],
)
def test_settings_that_are_wrong_together_are_told_together(tiny_config, changes, said):
  for name, value in changes.items():
    put(tiny_config, name, value)
  with pytest.raises(InputError) as caught:
    settings.check(tiny_config)
  for part in said.split(".*"):
    assert part in str(caught.value)


def test_what_is_no_setting_or_is_missing_is_named(tiny_config):
  with tiny_config.unlocked():
    tiny_config.train.ema_decays = 0.9
    del tiny_config.model.depth
  with pytest.raises(InputError) as caught:
    settings.check(tiny_config)
  assert "config.model.depth is missing" in str(caught.value)
  assert "config.train.ema_decays is no setting: did you mean config.train.ema_decay?" in str(caught.value)


def test_a_plan_is_of_a_config_that_may_be(tiny_config):
  with pytest.raises(InputError, match=r"^config.train.rows=0: "):
    plan(put(tiny_config, "train.rows", 0), None, None, None)


def test_leaves_join_their_keys():
  assert settings.leaves({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
