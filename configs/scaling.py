"""What the sweeps train: transformers of small images and clips of the shapes world.

sora train --config configs/scaling.py --workdir W

Rates are those of width 64, and change with the width (muP). They fall from the first step on, without a warm-up: long
runs whose rates stayed for half of their steps went wrong at times. With twice these rates losses at 2e12 FLOPs are the
same (.44 at width 64, .40 at width 32); with four times AdamW's they are worse (.44 at width 32). Seeds of width 32
differ by up to 8 % at either.

Of one world losses are further down their curve than of all, but still fall faster than a power law at 5.6e12
(`backtest` in docs/scaling.md).
"""

import pathlib
import runpy

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("demo.py")))["get_config"](arg)
  config.data.update(clips=4096, held_out_clips=192, loops=0.0)
  config.data.held_out = config.data.source  # new states of what training has: a law is of one distribution
  config.model.update(width=64, depth=4, heads=4, base_width=64, text_width=64, text_depth=1, text_heads=2)
  config.diffusion.update(condition_share=0.2, prediction="filtered")
  config.train.update(rows=2, row_tokens=330, row_text=225, row_segments=9, warmup=0, decay_share=1.0)
  config.train.update(learning_rate=4e-3, adam_learning_rate=2.5e-3, preview_every=0, checkpoint_every=1000, keep=1)
  return config
