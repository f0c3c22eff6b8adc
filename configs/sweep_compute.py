"""The showcase with a 32nd and with an eighth of its compute: base and 4x beside 32x.

sora sweep run --config configs/sweep_compute.py --workdir runs/compute
sora evaluate --suite worlds --checkpoint runs/compute/flops=2.72697e+13     and the other, and the showcase
sora compare runs/compute/flops=2.72697e+13 SHOWCASE
"""

import pathlib

import ml_collections

SHOWCASE = 8.7263e14  # FLOPs of configs/showcase.py


def get_config() -> ml_collections.ConfigDict:
  sweep = ml_collections.ConfigDict()
  sweep.config = str(pathlib.Path(__file__).with_name("showcase.py"))
  # The weights that come along have the autoencoder that the showcase was trained on.
  sweep.settings = (("autoencoder.checkpoint", "pretrained:worlds"), ("train.preview_every", 0))
  sweep.grid = (("flops", (SHOWCASE / 32, SHOWCASE / 8)),)
  sweep.sealed = ()
  return sweep
