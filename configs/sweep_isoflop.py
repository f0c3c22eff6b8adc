"""Five widths at four budgets, three seeds each, and three models at ten times the largest, predicted first.

sora sweep run --config configs/sweep_isoflop.py --workdir runs/isoflop             the grid
sora sweep fit --config configs/sweep_isoflop.py --workdir runs/isoflop             the law; seals its predictions
sora sweep run --config configs/sweep_isoflop.py --workdir runs/isoflop --sealed    the large ones
sora sweep fit ...; sora sweep report --workdir runs/isoflop                        docs/report/scaling.json
"""

import pathlib

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  sweep = ml_collections.ConfigDict()
  sweep.config = str(pathlib.Path(__file__).with_name("scaling.py"))  # what each run trains
  sweep.settings = ()  # (key, value) of all runs
  # (key, values), or several keys whose values go together; flops is a run's budget, from which its steps follow
  sweep.grid = (
    ("model.width,model.heads", ((16, 1), (32, 2), (48, 3), (64, 4), (80, 5))),
    ("flops", (1.2e12, 2e12, 3.4e12, 5.6e12)),
    ("seed", (0, 1, 2)),
  )
  large = ("model.width,model.heads", ((48, 3), (64, 4), (96, 6)))
  sweep.sealed = (("seed", (0, 1, 2)), large, ("flops", (5.6e13,)))  # one of each model first
  return sweep
