"""What each setting of a config may be: checked when a command starts, before anything is opened or made.

RULES has an entry for every setting of `configs/dit.py`; a test asserts it. A new setting is one more line there. What
depends on the data or on the devices is checked where they are opened.
"""

import difflib
import hashlib
import json
import numbers
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sora_jax.errors import InputError

SEED = 2**31 - 1  # the largest
HUGE = 2**40  # steps, and other counts that only time limits
SIDE = 8192  # pixels


class Rule(NamedTuple):
  """Which values a setting may have, as a test and in words: "... it is WORDS"."""

  accepts: Callable[[Any], bool]
  words: str
  names: tuple[str, ...] = ()  # all there are, where they are few


def whole(low: int, high: int = HUGE) -> Rule:
  """A whole number from `low` to `high`, both included."""
  words = f"a whole number of {low} or more" if high == HUGE else f"a whole number from {low} to {high}"
  return Rule(lambda x: _is(x, numbers.Integral) and low <= x <= high, words)


def number(low: float, high: float) -> Rule:
  """A number from `low` to `high`, both included."""
  return Rule(lambda x: _is(x, numbers.Real) and low <= x <= high, f"a number from {low:g} to {high:g}")


def above(low: float, high: float) -> Rule:
  """A number from `low`, which is not included, to `high`."""
  return Rule(lambda x: _is(x, numbers.Real) and low < x <= high, f"a number above {low:g}, at most {high:g}")


def below(low: float, high: float) -> Rule:
  """A number from `low` to `high`, which is not included."""
  return Rule(lambda x: _is(x, numbers.Real) and low <= x < high, f"a number from {low:g} to less than {high:g}")


def choice(*names: str) -> Rule:
  return Rule(lambda x: x in names, f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}", names)


def text() -> Rule:
  return Rule(lambda x: isinstance(x, str) and bool(x.strip()), "a text that is not empty")


def optional(rule: Rule) -> Rule:
  return rule._replace(accepts=lambda x: x is None or rule.accepts(x), words=f"{rule.words}, or unset")


def several(rule: Rule, least: int = 1) -> Rule:
  """A list of any length from `least` on, each of `rule`."""
  return Rule(
    lambda x: _is_list(x) and len(x) >= least and all(map(rule.accepts, x)),
    f"a list{' that may be empty' if not least else ''}, each in it {rule.words}",
  )


def exactly(rule: Rule, count: int) -> Rule:
  """A list of `count`, each of `rule`."""
  return Rule(lambda x: _is_list(x) and len(x) == count and all(map(rule.accepts, x)), f"{count} of {rule.words}")


def rising(rule: Rule, equal: bool = False) -> Rule:
  """Two values of `rule`, the first below the second, or not above it where they may be `equal`."""
  ordered = lambda x: x[0] <= x[1] if equal else x[0] < x[1]
  pair = exactly(rule, 2)
  return Rule(lambda x: pair.accepts(x) and ordered(x), f"{pair.words}, the lower one first")


def _is(value: Any, kind: type) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, str)


def _is_stage(value: Any) -> bool:
  """(shrink of time, rows, columns), width, depth."""
  return _is_list(value) and len(value) == 3 and exactly(whole(1), 3).accepts(value[0]) and _positive(value[1:])


def _positive(values: Sequence[Any]) -> bool:
  return all(map(whole(1).accepts, values))


def _is_size(value: Any) -> bool:
  """WIDTHxHEIGHT, or a range of each."""
  found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?[xX](\d+)(?:\.\.(\d+))?", value) if isinstance(value, str) else None
  return found is not None and all(len(side) <= 4 and 1 <= int(side) <= SIDE for side in found.groups() if side)


def _is_range(value: Any, low: float, high: float, whole: bool = False) -> bool:
  """LOW..HIGH, both from `low` to `high`."""
  side = r"(\d{1,9})" if whole else r"(\d{1,9}(?:\.\d{1,9})?)"
  found = re.fullmatch(rf"{side}\.\.{side}", value) if isinstance(value, str) else None
  return found is not None and low <= float(found[1]) <= float(found[2]) <= high


FLAG = Rule(lambda x: isinstance(x, bool), "True or False")
SHARE = number(0, 1)
RATE = above(0, 10)
DEVICES = Rule(lambda x: whole(1).accepts(x) or (whole(-1).accepts(x) and x == -1), "1 or more, or -1 for the rest")

RULES: dict[str, Rule] = {
  "task": choice("dit", "autoencoder"),
  "seed": whole(0, SEED),
  "data.source": text(),
  "data.weights": several(above(0, 1e9), least=0),
  "data.clips": whole(1),
  "data.seed": optional(whole(0, SEED)),
  "data.prepared": optional(text()),
  "data.sizes": several(Rule(_is_size, f"WIDTHxHEIGHT, or a range of both, with sides from 1 to {SIDE}")),
  "data.frames": several(
    Rule(lambda x: whole(1).accepts(x) or _is_range(x, 1, HUGE, whole=True), "a whole number of 1 or more, or a range")
  ),
  "data.rates": several(
    Rule(lambda x: above(0, 1000).accepts(x) or _is_range(x, 1e-9, 1000), "a number above 0, at most 1000, or a range"),
    least=0,
  ),
  "data.fps": number(0, 1000),
  "data.max_frames": whole(1),
  "data.max_tokens": whole(0),
  "data.framing": choice("native", "square", "buckets"),
  "data.max_bad": SHARE,
  "data.token_drop": below(0, 1),
  "data.loops": number(0, 1),
  "data.held_out": optional(text()),
  "data.held_out_clips": whole(1),
  "data.on_mismatch": choice("error", "restart", "remap"),
  "data.workers": whole(0, 1024),
  "data.long_captions": SHARE,
  "autoencoder.checkpoint": optional(text()),
  "autoencoder.channels": whole(1, 4096),
  "autoencoder.stages": several(Rule(_is_stage, "((time, rows, columns), width, depth), each 1 or more")),
  "autoencoder.crop": exactly(whole(1), 3),
  "autoencoder.batch": whole(1),
  "autoencoder.steps": whole(1),
  "autoencoder.learning_rate": RATE,
  "autoencoder.kl_weight": number(0, 1e3),
  "autoencoder.motion_weight": number(0, 1e3),
  "autoencoder.dtype": choice("float32", "bfloat16"),
  "autoencoder.remat": choice("none", "full"),
  "model.width": whole(1),
  "model.base_width": optional(whole(1)),
  "model.depth": whole(1),
  "model.heads": whole(1),
  "model.patch": exactly(whole(1), 3),
  "model.text_width": whole(1),
  "model.text_depth": whole(1),
  "model.text_heads": whole(1),
  "model.vocabulary": whole(261, 2**20),  # 256 bytes, 3 marks of the tokenizer, and room for characters
  "model.seconds": rising(above(0, 1e6)),
  "model.pixels": rising(above(0, 1e6)),
  "model.dtype": choice("float32", "bfloat16"),
  "model.remat": choice("none", "full", "attention", "offload"),
  "model.attention": choice("auto", "dense", "blocks", "flash"),
  "diffusion.prediction": choice("x", "v", "filtered"),
  "diffusion.weighting": choice("clip", "token"),
  "diffusion.time_logit": Rule(
    lambda x: exactly(number(-20, 20), 2).accepts(x) and x[1] > 0, "a mean from -20 to 20 and a std above 0, at most 20"
  ),
  "diffusion.base_tokens": whole(1),
  "diffusion.uniform_share": SHARE,
  "diffusion.caption_drop": SHARE,
  "diffusion.condition_share": SHARE,
  "diffusion.condition_kinds": Rule(
    lambda x: exactly(SHARE, 5).accepts(x) and sum(x) > 0, "5 of a number from 0 to 1, not all of them 0"
  ),
  "diffusion.condition_noise": exactly(SHARE, 2),
  "train.init": optional(text()),
  "train.steps": whole(1),
  "train.rows": whole(1),
  "train.ranks": whole(1),
  "train.accumulation": whole(1),
  "train.row_tokens": whole(1),
  "train.row_text": whole(1),
  "train.row_segments": whole(1),
  "train.learning_rate": RATE,
  "train.adam_learning_rate": RATE,
  "train.weight_decay": number(0, 10),
  "train.warmup": whole(0),
  "train.decay_share": SHARE,
  "train.clip_norm": above(0, 1e9),
  "train.ema_decay": below(0, 1),
  "train.checkpoint_every": whole(0),
  "train.keep": whole(1),
  "train.keep_every": whole(0),
  "train.log_every": whole(0),
  "train.preview_every": whole(0),
  "train.eval_every": whole(0),
  "train.max_minutes": number(0, 1e7),
  "sample.steps": whole(1, 10_000),
  "sample.method": choice("euler", "heun"),
  "sample.guidance": number(0, 1000),
  "sample.condition_guidance": number(0, 1000),
  "sample.interval": rising(SHARE, equal=True),
  "sample.history_level": SHARE,
  "sample.first_frame": FLAG,
  "sample.tile_pixels": whole(1),
  "mesh.data": DEVICES,
  "mesh.fsdp": DEVICES,
  "mesh.context": DEVICES,
  "mesh.tensor": DEVICES,
  "mesh.ulysses": whole(1),
}


def check(config: Any) -> None:
  """Refuses a config with a setting that is missing, unknown or out of its range.

  Raises:
    InputError: one line with each wrong setting, its value and its range.
  """
  found = leaves(config.to_dict())
  named = [_fault(name, found[name]) if name in found else f"config.{name} is missing" for name in RULES]
  wrong = [fault for fault in named if fault] + [_unknown(name) for name in found if name not in RULES]
  if not wrong:
    wrong = list(_disagreements(found))
  if wrong:
    raise InputError("; ".join(wrong))


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  found: dict[str, Any] = {}
  for key, value in tree.items():
    found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return found


def digest_of(config: Any) -> str:
  """The sha256 of a config's values, whatever their order."""
  return hashlib.sha256(json.dumps(json.loads(config.to_json()), sort_keys=True).encode()).hexdigest()


def _fault(name: str, value: Any) -> str:
  """What is wrong with one setting; "" where nothing is."""
  rule = RULES[name]
  if rule.accepts(value):
    return ""
  nearest = f"; did you mean {_nearest(value, rule.names)!r}?" if rule.names and isinstance(value, str) else ""
  return f"config.{name}={value!r}: it is {rule.words}{nearest}"


def _unknown(name: str) -> str:
  return f"config.{name} is no setting: did you mean config.{nearest(name)}?"


def nearest(name: str) -> str:
  """The setting whose name is nearest."""
  return _nearest(name, tuple(RULES))


def _nearest(name: str, names: tuple[str, ...]) -> str:
  return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _disagreements(found: dict[str, Any]) -> Iterator[str]:
  """Settings that are right by themselves and can't be together."""
  for width, heads, least in (("model.width", "model.heads", 6), ("model.text_width", "model.text_heads", 2)):
    size, left = divmod(found[width], found[heads])
    if left or size % 2 or size < least:  # rotary positions turn pairs, one at least along each axis
      both = " and ".join(f"config.{name}={found[name]}" for name in (width, heads))
      yield f"{both}: the width of a head must be an even number of {least} or more"
  head, base = found["model.width"] // found["model.heads"], found["model.base_width"]
  if base is not None and base % head:
    yield (
      f"config.model.base_width={base}: heads are {head} wide at config.model.width={found['model.width']}: make it a "
      f"multiple of {head}, or change config.model.heads"
    )
  if found["task"] == "dit" and found["train.rows"] % found["train.ranks"]:
    both = f"config.train.rows={found['train.rows']} can't be shared by config.train.ranks={found['train.ranks']}"
    yield f"{both}: make it a multiple of them"
  if found["data.loops"] and found["model.patch"][0] > 1:
    yield f"config.data.loops={found['data.loops']}: loops need a model.patch that begins with 1"
  rest = [f"config.{name}=-1" for name, value in found.items() if name.startswith("mesh.") and value == -1]
  if len(rest) > 1:
    yield f"{' and '.join(rest)}: one axis at most takes the rest of the devices"
