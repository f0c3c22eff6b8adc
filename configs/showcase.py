"""The showcase: one model for all worlds, images to clips of 33 frames at 64 to 176 pixels a side.

sora train --config configs/showcase.py --workdir W

A run that was stopped goes on with the same command.
"""

import pathlib
import runpy

import ml_collections

WORLDS = ("shapes", "groups", "camera3d", "occlusion", "painter", "bites", "game", "uniform", "parabola", "collision")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("dit.py")))["get_config"](arg)
  config.data.update(source=",".join(f"worlds:{name}" for name in WORLDS), clips=2000, weights=(1.0,) * len(WORLDS))
  # What counts is how many clips are seen: frames of at most 66 tokens (176x96, 128x128), mostly images. Rates and
  # sizes from ranges, so that those between hold too.
  config.data.update(sizes=("64..176x64..176",), frames=(1,) * 6 + (9, 9, 17, 33), rates=("6..16",))
  config.data.update(max_frames=33, max_tokens=594, long_captions=0.8, loops=0.0)
  config.data.update(held_out_clips=80)
  # 32 values in one: 4 frames of 8x8 pixels in 3 colours are 24 values. On held-out renders of all worlds: 33.7 dB,
  # the linear code 28.1 (benchmarks/worlds_autoencoder.py --clips 9; 54 minutes on two cores beside other work). With a
  # rate of 6e-3 it only moved away from its linear start.
  config.autoencoder.update(channels=24, stages=(((1, 4, 4), 64, 2), ((2, 2, 2), 128, 2), ((2, 1, 1), 128, 1)))
  config.autoencoder.update(crop=(9, 64, 64), batch=8, steps=5000, learning_rate=1e-3, kl_weight=1e-6)
  config.autoencoder.update(dtype="float32", remat="none", motion_weight=0.3)
  config.model.update(patch=(1, 2, 2), width=128, depth=6, heads=2, base_width=64)
  config.model.update(text_width=96, text_depth=2, text_heads=2, vocabulary=2048)
  config.model.update(seconds=(0.25, 8.0), pixels=(32.0, 512.0), dtype="float32", remat="none")
  config.diffusion.update(base_tokens=64, condition_share=0.5, condition_kinds=(0.6, 0.15, 0.05, 0.1, 0.1))
  config.diffusion.update(condition_noise=(0.3, 0.3))
  # On a budget of five minutes width 128 ends lower than 192, and the loss on held-out clips is .69 with rates of 1e-2
  # and 6e-3, .76 with twice and .74 with half of these; a longer run gets a little less.
  config.train.update(steps=13_000, rows=4, ranks=1, row_tokens=1200, row_text=640, row_segments=32)
  config.train.update(learning_rate=8e-3, adam_learning_rate=5e-3, warmup=100, decay_share=0.8, ema_decay=0.998)
  config.train.update(weight_decay=0.01, checkpoint_every=500, log_every=50, preview_every=2000, eval_every=1000)
  config.sample.update(steps=16, guidance=4.0, condition_guidance=1.5, interval=(0.3, 1.0), first_frame=True)
  return config
