"""A model that can't learn one clip by heart can't learn anything: the whole chain on a single clip."""

import pathlib
import runpy

import numpy as np
import pytest

from sora_jax.data.sources import open_source
from sora_jax.evaluation.fidelity import psnr
from sora_jax.inference.generator import Generator, Request, Sampling
from sora_jax.jobs.train import train

DEMO = pathlib.Path(__file__).parents[2] / "configs" / "demo.py"


@pytest.mark.slow
def test_one_clip_is_learnt_by_heart(tmp_path):
  config = runpy.run_path(str(DEMO))["get_config"]()
  config.data.update(clips=1, sizes=("24x24",), frames=(7,))
  config.autoencoder.update(steps=300)
  config.train.update(steps=500, rows=4, checkpoint_every=0, preview_every=0)
  config.sample.first_frame = False  # an image: it has seen none
  train(config, tmp_path)
  clip = open_source(config.data, config.seed, None)[0]
  generator = Generator.load(tmp_path)
  frames, height, width = clip.frames_THWC.shape[:3]
  requests = [Request(clip.caption, width, height, frames, clip.fps, seed) for seed in range(4)]
  found = [psnr([sample.frames_THWC], [clip.frames_THWC]) for sample in generator.sample(requests, Sampling.of(config))]
  print(f"sample PSNR of four seeds: {np.round(found, 1)} dB")
  assert min(found) >= 30.0
