"""Training at native size beside training on square crops and on buckets: the same model, clips, compute and seeds.

All are measured on the same held-out clips at native size.

sora sweep run --config configs/sweep_framing.py --workdir runs/framing
sora evaluate --suite framing --checkpoint runs/framing/framing=native_seed=0     and the others
"""

import pathlib

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  sweep = ml_collections.ConfigDict()
  sweep.config = str(pathlib.Path(__file__).with_name("scaling.py"))
  sweep.settings = (("data.clips", 12_000), ("flops", 9e12))
  sweep.grid = (("data.framing", ("native", "square", "buckets")), ("seed", (0, 1, 2)))
  sweep.sealed = ()
  return sweep
