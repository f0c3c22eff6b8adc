"""Does the best learning rate stay where it is when a model becomes eight times as wide? Four widths at six rates.

sora sweep run --config configs/sweep_rates.py:part=muon --workdir runs/rates_muon               with muP
sora sweep run --config configs/sweep_rates.py:part=muon,mup=0 --workdir runs/rates_muon_plain   without
sora sweep fit --workdir runs/rates_muon

part is muon (the matrices of blocks) or adam (everything else), whose rates change while the other part keeps its own:
AdamW that of the config, Muon the best of its own sweep, as with less width 32 learns too little in 200 steps to tell
one rate of AdamW from another.
"""

import pathlib

import ml_collections

BASE = 32  # the width that the rates are of
HEAD = 16  # the width of a head


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = {"part": "muon", "mup": "1"} | dict(part.partition("=")[::2] for part in arg.split(",") if part)
  if set(given) != {"part", "mup"} or given["part"] not in ("muon", "adam") or given["mup"] not in ("0", "1"):
    raise ValueError(f"{arg!r}: it is part=muon or part=adam, and mup=0 for standard parametrisation")
  sweep = ml_collections.ConfigDict()
  sweep.config = str(pathlib.Path(__file__).with_name("scaling.py"))
  sweep.settings = (("train.steps", 200), ("train.eval_every", 200), ("train.ema_decay", 0.9))
  # Standard parametrisation: each width's rates are its own, the same for all.
  base = lambda width: BASE if given["mup"] == "1" else width
  models = tuple((width, width // HEAD, base(width)) for width in (BASE, 2 * BASE, 4 * BASE, 8 * BASE))
  if given["part"] == "muon":
    name, middle = "learning_rate", 8e-3
  else:
    name, middle = "adam_learning_rate", 4e-3
    sweep.settings += (("train.learning_rate", 16e-3),)
  sweep.grid = (
    ("model.width,model.heads,model.base_width", models),
    (f"train.{name}", tuple(middle * 2.0**power for power in (-3, -2, -1, 0, 1, 2))),
    ("seed", (0,)),
  )
  sweep.sealed = ()
  return sweep
