"""Training at native size beside training on square crops: the same model, clips, compute and seeds.

sora sweep run --config configs/sweep_framing.py --workdir runs/framing
sora evaluate --suite framing --checkpoint runs/framing/square=False_seed=0     and the others
"""

import pathlib

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  sweep = ml_collections.ConfigDict()
  sweep.config = str(pathlib.Path(__file__).with_name("scaling.py"))
  sweep.settings = (("data.source", "worlds:shapes"), ("data.held_out", "worlds:shapes"), ("data.weights", (1.0,)))
  sweep.settings += (("data.clips", 12_000), ("flops", 2e13))
  sweep.grid = (("data.square", (False, True)), ("seed", (0, 1, 2)))
  sweep.sealed = ()
  return sweep
