"""The runs of a sweep's file: their settings, budgets and schedules.

Each run's schedule is matched to its own budget: its learning rates end at zero with its last step. All runs see the
same clips in the same order, and are measured on the same held-out clips with the same noise.
"""

import copy
from typing import Any, NamedTuple

from sora_jax import settings
from sora_jax.errors import InputError
from sora_jax.models.abstract import abstract
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.plan import flops as counting
from sora_jax.plan.plan import rows_of
from sora_jax.scaling import grid

FIELDS = ("config", "settings", "grid", "sealed")  # of a sweep's file
WARMUP, MEMORY = 0.05, 0.02  # shares of a run's steps: most of its warm-up, and what its averaged weights remember
LEAST_STEPS = 20


class Planned(NamedTuple):
  """A run before it begins.

  Attributes:
    settings: all that the config's own values are changed by.
    flops, tokens: of the whole run; floating-point operations of the model, forwards and backwards.
    params: of the model without its text encoder.
  """

  settings: dict[str, Any]
  sealed: bool
  flops: float
  steps: int
  params: int
  tokens: float


def planned(sweep: Any, base: Any) -> dict[str, Planned]:
  """The runs of a sweep's file by name, those of its grid first.

  Args:
    sweep: `config`, `settings`, `grid` and `sealed`; see configs/sweep_isoflop.py.
    base: the config that its runs change.

  Raises:
    InputError: a key of the grid is no setting, a value is none for it, or a budget is too small for a run.
  """
  if set(sweep) != set(FIELDS):
    raise InputError(f"a sweep's file gives {', '.join(FIELDS)}: this one gives {', '.join(sorted(sweep))}")
  found: dict[str, Planned] = {}
  for is_sealed, values in ((False, sweep.grid), (True, sweep.sealed)):
    for name, chosen in grid.combinations(values).items() if len(values) else ():
      name = f"sealed_{name}" if is_sealed else name
      found[name] = _planned(name, base, dict(sweep.settings) | chosen, is_sealed)
  if not found:
    raise InputError("a sweep's grid has no runs")
  return found


def _planned(name: str, base: Any, chosen: dict[str, Any], is_sealed: bool) -> Planned:
  budget = chosen.pop(grid.FLOPS, None)
  config = changed(base, chosen)
  settings.check(config)
  model = DiTConfig.of(config, config.model.vocabulary)
  like, rows = abstract(DiT, model)[1], rows_of(config)
  step = flops_of_step(config)
  if budget is not None:
    if isinstance(budget, str):
      raise InputError(f"the run {name}: flops={budget!r} is no number")
    steps = round(budget / step)
    if steps < LEAST_STEPS:
      raise InputError(f"the run {name}: {budget:g} FLOPs are {steps} steps of {step:.3g}: give {LEAST_STEPS} or more")
    chosen |= matched(config, steps)
  steps = changed(base, chosen).train.steps
  text = counting.size(like["text_encoder"])
  return Planned(chosen, is_sealed, steps * step, steps, counting.size(like) - text, float(steps * rows.tokens))


def flops_of_step(config: Any) -> float:
  """Of the model, forwards and backwards, in one step of a config."""
  model = DiTConfig.of(config, config.model.vocabulary)
  return counting.count(abstract(DiT, model)[1], model, rows_of(config), "none").model


def matched(config: Any, steps: int) -> dict[str, Any]:
  """The schedule of a run of so many steps; it is measured at its end."""
  return {
    "train.steps": steps,
    "train.warmup": min(config.train.warmup, max(round(WARMUP * steps), 1)),
    "train.ema_decay": round(max(1 - 1 / (MEMORY * steps), 0.0), 6) if MEMORY * steps > 1 else 0.0,
    "train.eval_every": steps,
    "train.log_every": max(steps // 10, 1),
  }


def changed(base: Any, chosen: dict[str, Any]) -> Any:
  """The config with these settings.

  Raises:
    InputError: a key is no setting.
  """
  config = copy.deepcopy(base)
  for key, value in chosen.items():
    section, _, name = key.rpartition(".")
    node = config[section] if section in config else config
    if key not in settings.RULES:
      raise InputError(f"a sweep's {key!r} is no setting: did you mean {settings.nearest(key)!r}?")
    with node.ignore_type():
      node[name] = tuple(value) if isinstance(value, list) else value
  return config


def texts(chosen: dict[str, Any]) -> list[str]:
  """Settings as KEY=VALUE of a command line."""
  return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in chosen.items()]
