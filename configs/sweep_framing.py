"""Training at native size beside training on square crops and on buckets: the same model, clips, compute and seeds.

All are measured on the same held-out clips at native size.

sora sweep run --config configs/sweep_framing.py --workdir runs/framing
sora evaluate --suite framing --checkpoint runs/framing/framing=native_seed=0     and the others

configs/sweep_framing.py:buckets has one of the three alone.
"""

import pathlib

import ml_collections

FRAMINGS = ("native", "square", "buckets")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", *FRAMINGS):
    raise ValueError(f"{arg!r}: it is one of {', '.join(FRAMINGS)}, or left out for all")
  sweep = ml_collections.ConfigDict()
  sweep.config = str(pathlib.Path(__file__).with_name("scaling.py"))
  sweep.settings = (("data.clips", 12_000), ("flops", 9e12))
  sweep.grid = (("data.framing", (arg,) if arg else FRAMINGS), ("seed", (0, 1, 2)))
  sweep.sealed = ()
  return sweep
