"""One ball that rolls on: does a model learn its law, in the ranges of training and beyond? After Kang et al. (2024).

sora train --config configs/balls.py --workdir W
sora evaluate --suite physics --clips 48 --checkpoint W

configs/balls.py:parabola and configs/balls.py:collision train on the other two of their worlds.
"""

import pathlib
import runpy

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("dit.py")))["get_config"](arg)
  world = f"worlds:{arg or 'uniform'}"
  # Three frames are given, as theirs: they are two latent ones, of nine.
  config.data.update(source=world, clips=16_000, sizes=("64x64",), frames=(17,), fps=10.0, max_frames=17)
  config.data.update(held_out=world, held_out_clips=64)  # new states in the ranges of training
  config.autoencoder.update(channels=16, stages=(((1, 4, 4), 64, 1), ((2, 2, 2), 96, 2)), crop=(9, 64, 64), batch=8)
  config.autoencoder.update(steps=2500, learning_rate=3e-3, kl_weight=1e-6, dtype="float32", remat="none")
  config.model.update(width=128, depth=6, heads=2, base_width=64, patch=(1, 2, 2))
  config.model.update(text_width=32, text_depth=1, text_heads=1, vocabulary=512)
  config.model.update(seconds=(0.3, 4.0), pixels=(16.0, 128.0), dtype="float32", remat="none")
  # First frames alone, and no words: what is to happen is in the frames.
  config.diffusion.update(base_tokens=64, caption_drop=1.0, condition_share=1.0, condition_kinds=(0, 1, 0, 0, 0))
  config.diffusion.update(condition_noise=(0.0, 0.0))
  config.train.update(steps=8000, rows=1, ranks=1, row_tokens=1056, row_text=128, row_segments=16)
  config.train.update(learning_rate=8e-3, adam_learning_rate=5e-3, warmup=100, decay_share=0.8, ema_decay=0.995)
  config.train.update(weight_decay=0.01, checkpoint_every=500, log_every=50, preview_every=0, eval_every=1000)
  config.sample.update(steps=16, guidance=1.0, condition_guidance=1.0)
  return config
