"""The autoencoder by itself; a transformer takes it by `--config.autoencoder.checkpoint=W`.

sora train --config configs/autoencoder.py --config.data.source=DIR --workdir W
"""

import pathlib
import runpy

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = runpy.run_path(str(pathlib.Path(__file__).with_name("dit.py")))["get_config"](arg)
  config.task = "autoencoder"
  config.train.steps = config.autoencoder.get_ref("steps")  # one number, by either name
  return config
