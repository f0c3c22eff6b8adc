"""What `sora plan` answers: does a config's train step fit these chips, how long does it take, what does a run cost."""

import copy
from typing import Any

from sora_jax import settings
from sora_jax.data.sources import names_of
from sora_jax.data.world_shapes import WorldShapes
from sora_jax.errors import InputError
from sora_jax.models.autoencoder import grid as grid_of
from sora_jax.packing.batch import RowShape
from sora_jax.plan import chips, compile
from sora_jax.plan.flops import Rows, clip_length

GIB = chips.GIB
FULL = 0.9  # of a chip's memory: a step that takes more is not sure to run


def plan(config: Any, topology: str | None, dollars: float | None, tokens: float | None) -> dict[str, Any]:
  """The answer, ready to be printed.

  Args:
    topology: chips to plan for (`chips.parse`); None plans for this machine's devices.
    dollars: of a chip, an hour; None takes the list price, if there is one.
    tokens: to train on; None takes the config's steps.

  Raises:
    ValueError: the topology is unknown, or the config does not fit the mesh.
    CompileError: the step does not compile for a reason other than memory.
  """
  settings.check(config)
  if config.task != "dit":
    raise InputError(f"config.task is {config.task!r}: a plan is of a transformer, 'dit'")
  where = chips.parse(topology) if topology else None
  rows = rows_of(config)
  found = compile.examine(config, rows.clip, where)
  chip = where.chip if where else chips.chip_of(found["kind"])
  answer = _step(found, chip, rows)
  answer |= _run(answer, tokens or float(config.train.steps) * rows.tokens, dollars, chip)
  answer |= {"topology": where.name if where else found["kind"], "mesh": found["mesh"]}
  answer["knobs"] = _knobs(config, where, rows, found["ranks"]) if answer["fits"] is False else []
  if where and (what := compile.missing()):
    answer["missing"] = f"the compiled figures need libtpu: {what}"
  return answer


def rows_of(config: Any) -> Rows:
  """The rows of a config's step. Clips of a world have its sizes; of other data, which isn't read, the longest."""
  train, data = config.train, config.data
  grid = grid_of(config)
  longest = min(data.max_tokens or train.row_tokens, train.row_tokens)
  lengths, shares = [longest], [1.0]
  if all(name.startswith("worlds:") for name in names_of(data)):
    known = list(WorldShapes.of(data, grid).shares())
    lengths = [grid.tokens(min(n, data.max_frames), high, wide) for (n, high, wide), _ in known]
    shares = [share for _, share in known]
  clip = clip_length(lengths, shares, longest) * (1.0 - data.token_drop)
  return Rows(train.rows, RowShape.of(config), clip)


def _step(found: dict, chip: chips.Chip | None, rows: Rows) -> dict[str, Any]:
  """Parameters, operations, memory and time of one step."""
  compiled, flops = found["compiled"] or {}, found["flops"]
  model = flops["forward"] + flops["backward"]
  seconds = seconds_of(found, chip)
  step, peak = seconds.get("step"), compiled.get("peak_bytes")
  return {
    "params": found["params"],
    "chips": found["devices"],
    "tokens_per_step": rows.tokens,
    "tokens_per_device": rows.tokens / found["devices"],
    "clip_tokens": figures(rows.clip),
    "flops": {name: figures(value) for name, value in flops.items()},
    "gib_per_device": {name: figures(value / GIB) for name, value in found["bytes"].items()},
    "peak_hbm_gib": figures(peak / GIB) if peak else None,
    "hbm_gib": figures(chip.hbm_bytes / GIB) if chip else None,
    "fits": _fits(compiled, found["bytes"], chip),
    "compiled_flops_per_device": figures(compiled["flops"]) if compiled.get("flops") else None,
    "hbm_traffic_gib": figures(compiled["hbm_bytes"] / GIB) if compiled.get("hbm_bytes") else None,
    "seconds": {name: figures(value) for name, value in seconds.items()},
    "step_seconds": figures(step) if step else None,
    "mfu": figures(model / (step * found["devices"] * chip.flops)) if step and chip else None,
    "collectives": {kind: _collective(each) for kind, each in compiled.get("collectives", {}).items()},
    "collective_share": figures(seconds["communication"] / step) if step and "communication" in seconds else None,
    "silent_kernels": compiled.get("silent"),
    "warning": found["warning"],
  }


def seconds_of(found: dict, chip: chips.Chip | None) -> dict[str, float]:
  """Of one step, by what it goes to; they sum to `step`. Nothing for a chip that isn't in the table.

  The arithmetic of kernels is not in the program's text: the formulas give it, all of it attention.
  """
  compiled, flops = found["compiled"], found["flops"]
  if chip is None or compiled and not compiled["compiles"]:
    return {}
  share = {name: value / found["devices"] / chip.flops for name, value in flops.items()}
  model, again = share["forward"] + share["backward"], share["recompute"]
  seconds = {"model": model, "recompute": again, "other_arithmetic": share["optimizer"]}
  if compiled:
    told = compiled["seconds"]
    compute = max(sum(seconds.values()), told["compute"] + (share["attention"] if compiled["silent"] else 0.0))
    seconds["other_arithmetic"] = compute - model - again
    seconds["memory_bound"] = told["operations"] - told["compute"]
    seconds["communication"] = told["communication"]
  return seconds | {"step": sum(seconds.values())}


def _collective(each: dict[str, float]) -> dict[str, float]:
  seconds = {"seconds": figures(each["seconds"])} if "seconds" in each else {}
  return {"count": each["count"], "gib": figures(each["bytes"] / GIB)} | seconds


def _fits(compiled: dict, held: dict[str, int], chip: chips.Chip | None) -> bool | None:
  """Whether a step fits; None where that is not known: what it holds fits, its temporaries were not compiled."""
  if compiled:
    return compiled["compiles"] and (chip is None or compiled["peak_bytes"] <= FULL * chip.hbm_bytes)
  return False if chip and sum(held.values()) > FULL * chip.hbm_bytes else None


def _run(answer: dict[str, Any], tokens: float, dollars: float | None, chip: chips.Chip | None) -> dict[str, Any]:
  """Time and money of a whole run."""
  steps, seconds = tokens / answer["tokens_per_step"], answer["step_seconds"]
  hours = seconds * steps * answer["chips"] / 3600 if seconds else None
  price = dollars if dollars is not None else chip.dollars if chip else None
  return {
    "tokens": tokens,
    "steps": round(steps),
    "days": figures(seconds * steps / 86400) if seconds else None,
    "chip_hours": figures(hours) if hours else None,
    "usd_per_chip_hour": price,
    "usd": figures(hours * price) if hours and price is not None else None,
  }


def _knobs(config: Any, where: chips.Slices | None, rows: Rows, ranks: int) -> list[dict[str, Any]]:
  """Ways to make a step smaller, each compiled: what it needs then, and how long it takes."""
  found = []
  for flags, changed, there in knobs(config, where, ranks):
    try:
      examined = compile.examine(changed, rows.clip, there)
    except compile.CompileError as error:  # one way less
      found.append({"set": flags, "error": str(error)})
      continue
    chip = there.chip if there else chips.chip_of(examined["kind"])
    answer = _step(examined, chip, rows_of(changed))
    kept = ("peak_hbm_gib", "fits", "step_seconds", "mfu", "collective_share")
    found.append({"set": flags} | {name: answer[name] for name in kept})
  return found


def knobs(config: Any, where: chips.Slices | None, ranks: int) -> list[tuple[str, Any, chips.Slices | None]]:
  """(flags, config, chips): blocks made again in the backward pass, half the tokens at a time, twice the chips.

  Args:
    ranks: devices that the rows are split over. A row that one device holds alone is then shared by two.
  """
  found = []
  if config.model.remat != "full":
    found.append((*_changed(config, "model", remat="full"), where))
  flags, halved = _changed(config, "train", accumulation=2 * config.train.accumulation)
  if config.train.rows % (ranks * halved.train.accumulation):
    data, fsdp, context = config.mesh.data, config.mesh.fsdp, config.mesh.context
    if -1 not in (data, fsdp):  # which is what is left
      data, fsdp = (data // 2, fsdp) if data > 1 else (data, max(fsdp // 2, 1))
    more, halved = _changed(halved, "mesh", data=data, fsdp=fsdp, context=2 * context)
    flags = f"{flags} {more}"
  if ranks > 1 or halved.mesh.context == config.mesh.context:
    found.append((flags, halved, where))
  if where:
    more, changed = _spread(config, where, ranks)
    found.append((f"--topology={where.doubled().name} {more}".rstrip(), changed, where.doubled()))
  return found


def _spread(config: Any, where: chips.Slices, ranks: int) -> tuple[str, Any]:
  """The flags, and the config with them, that lay the same rows over twice the chips."""
  mesh, doubled = config.mesh, where.doubled()
  if config.train.rows % (2 * ranks * config.train.accumulation):  # each by twice as many devices
    return _changed(config, "mesh", context=2 * mesh.context)
  if -1 in (mesh.data, mesh.fsdp, mesh.context, mesh.tensor):
    return "", config  # that axis takes them
  if doubled.count > where.count:
    return _changed(config, "mesh", data=2 * mesh.data)
  return _changed(config, "mesh", fsdp=2 * mesh.fsdp)


def _changed(config: Any, section: str, **values: Any) -> tuple[str, Any]:
  """The flags that set these values, and the config with them."""
  changed = copy.deepcopy(config)
  with changed.unlocked():
    changed[section].update(values)
  return " ".join(f"--config.{section}.{name}={value}" for name, value in values.items()), changed


def figures(value: float, count: int = 4) -> float:
  """`count` significant figures."""
  return float(f"{value:.{count}g}")
