"""What the sweeps train: transformers of small clips of all worlds, on the latents of the autoencoder that comes along.

sora train --config configs/scaling.py --workdir W

Rates are those of width 64, and change with the width (muP). They fall from the first step on: long
runs whose rates stayed for half of their steps went wrong at times.
"""

import pathlib
import runpy

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("showcase.py")))["get_config"](arg)
  config.data.update(sizes=("64..96x64..96",), frames=(1, 1, 9, 17), rates=("8..12",), max_frames=17, max_tokens=256)
  config.data.update(clips=1600, held_out_clips=160)
  config.data.held_out = config.data.source  # new states of what training has: a law is of one distribution
  config.autoencoder.checkpoint = "pretrained:worlds"
  config.model.update(width=64, depth=4, heads=4, base_width=64, text_width=64, text_depth=1, text_heads=2)
  config.diffusion.update(condition_share=0.2, prediction="filtered")
  config.train.update(rows=2, row_tokens=512, row_text=400, row_segments=16, warmup=100, decay_share=1.0)
  config.train.update(preview_every=0, checkpoint_every=1000, keep=1)
  return config
