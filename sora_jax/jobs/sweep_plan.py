"""`sora plan` of a sweep's file: what all its runs take, before the first begins."""

from typing import Any

from sora_jax.jobs.sweep_runs import changed, planned
from sora_jax.plan import plan as planning

SUMS = ("days", "chip_hours", "usd")


def plan(sweep: Any, base: Any, topology: str | None, dollars: float | None) -> dict[str, Any]:
  """Budgets of all runs, and their time and money one after another; runs of one model share its plan.

  Args:
    sweep, base: see `sora_jax.jobs.sweep_runs.planned`.
    topology, dollars: see `sora_jax.plan.plan.plan`.

  Returns:
    {runs, sealed_runs, flops, tokens, topology, days, chip_hours, usd, models: [{params, runs, flops, tokens, steps,
    step_seconds, peak_hbm_gib, fits, days, chip_hours, usd}]}; sums are None where a model's own figure is, and
    `missing` says why a step was not compiled.

  Raises:
    InputError: a run can't be planned.
    ValueError: the topology is unknown, or a model does not fit the mesh.
    CompileError: a step does not compile for a reason other than memory.
  """
  runs = planned(sweep, base)
  groups: dict[tuple[int, float], list[str]] = {}
  for name, each in runs.items():
    groups.setdefault((each.params, float(f"{each.flops / each.steps:.9g}")), []).append(name)
  models = []
  missing: dict[str, str] = {}
  for (params, _), names in groups.items():
    mine = [runs[name] for name in names]
    tokens = sum(each.tokens for each in mine)
    answer = planning.plan(changed(base, mine[0].settings), topology, dollars, tokens)
    kept = {name: answer[name] for name in ("step_seconds", "peak_hbm_gib", "fits", *SUMS)}
    missing |= {"missing": answer["missing"]} if "missing" in answer else {}
    flops = sum(each.flops for each in mine)
    models.append(
      {"params": params, "runs": len(mine), "flops": flops, "tokens": tokens, "steps": answer["steps"]} | kept
    )
  sealed = sum(each.sealed for each in runs.values())
  sums: dict[str, Any] = {"runs": len(runs) - sealed, "sealed_runs": sealed}
  sums |= {name: float(sum(each[name] for each in models)) for name in ("flops", "tokens")}
  sums["topology"] = answer["topology"]
  for name in SUMS:
    known = [each[name] for each in models]
    sums[name] = None if None in known else planning.figures(sum(known))
  return sums | {"models": models} | missing
