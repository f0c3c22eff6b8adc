"""The demo: text to video on a laptop's CPU in minutes. `make demo` runs it; so does

sora train --config configs/demo.py --workdir W                              the shapes world
sora train --config configs/demo.py --config.data.source=DIR --workdir W     own clips, shrunk to its token budget
"""

import pathlib
import runpy

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("dit.py")))["get_config"](arg)
  config.data.update(clips=4096, sizes=("24x24", "40x24", "24x40"), frames=(1, 9, 17), fps=16.0)
  config.data.update(max_frames=17, max_tokens=90)
  config.autoencoder.update(channels=16, stages=(((4, 4, 4), 64, 6),), crop=(17, 24, 24), batch=8)
  config.autoencoder.update(steps=1500, learning_rate=1e-2, kl_weight=1e-6)
  config.model.update(width=96, depth=5, heads=3, text_width=64, text_depth=1, text_heads=2, vocabulary=512)
  config.model.update(seconds=(0.5, 4.0), pixels=(16.0, 128.0), dtype="float32", remat=False)
  config.diffusion.update(base_tokens=20, condition_share=0.2)
  config.train.update(steps=2800, rows=12, row_tokens=90, row_text=64, row_segments=4)
  config.train.update(learning_rate=1e-2, adam_learning_rate=6e-3, warmup=50, decay_share=0.6, ema_decay=0.99)
  config.train.update(checkpoint_every=1000, log_every=100, preview_every=1000)
  config.sample.update(steps=25, guidance=2.5)
  return config
