"""Video prediction on moving glyphs: ten frames are given, what follows is generated. No captions.

sora train --config configs/glyphs.py --workdir W
python benchmarks/moving_glyphs.py --workdir W      the same, then the table beside a ConvLSTM with as much time
"""

import pathlib
import runpy

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("dit.py")))["get_config"](arg)
  # 22 frames are 8 latent ones, and the 10 that are given are 4: one and three a latent frame each.
  config.data.update(source="worlds:glyphs", clips=8000, sizes=("64x64",), frames=(22,), fps=10.0, max_frames=22)
  config.data.update(held_out="worlds:glyphs", held_out_clips=64)
  config.autoencoder.update(channels=16, stages=(((1, 4, 4), 64, 1), ((3, 2, 2), 96, 2)), crop=(10, 32, 32), batch=8)
  config.autoencoder.update(steps=1800, learning_rate=1e-2, kl_weight=1e-6, dtype="float32", remat="none")
  config.model.update(width=128, depth=6, heads=2, text_width=32, text_depth=1, text_heads=1, vocabulary=512)
  config.model.update(base_width=64, seconds=(0.3, 6.0), pixels=(16.0, 128.0), dtype="float32", remat="none")
  # First frames alone, up to seven latent ones of eight.
  config.diffusion.update(base_tokens=64, caption_drop=1.0, condition_share=1.0, condition_kinds=(0, 1, 0, 0, 0))
  config.diffusion.update(condition_noise=(0.0, 0.0), prediction="filtered")
  config.train.update(steps=3000, rows=1, ranks=1, row_tokens=1024, row_text=256, row_segments=8)
  config.train.update(learning_rate=1e-2, adam_learning_rate=6e-3, warmup=100, decay_share=0.8, ema_decay=0.995)
  config.train.update(weight_decay=0.01, checkpoint_every=500, log_every=50, preview_every=0, eval_every=1000)
  config.sample.update(steps=16, guidance=1.0, condition_guidance=1.0)
  return config
