"""The demo's parts without training; the whole of it, shrunk, among the slow tests."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from sora_jax.clips import Clip
from sora_jax.jobs import demo
from sora_jax.report.demo_page import Section, Shown
from sora_jax.video import io as video_io
from sora_jax.worlds.shapes import HELD_OUT

CONFIG = """
import pathlib
import runpy


def get_config(arg=""):
  config = runpy.run_path({path!r})["get_config"]("runlocal=1")
  config.data.update(clips=48, sizes=("32x32", "40x24"), frames=(1, 5), max_frames=5, max_tokens=64)
  config.autoencoder.update(channels=4, stages=(((2, 4, 4), 16, 1),), crop=(5, 24, 24), batch=4, steps=6)
  config.model.update(width=32, depth=1, heads=2, text_width=16, text_depth=1, text_heads=1)
  config.train.update(steps=6, rows=2, row_tokens=128, checkpoint_every=3, log_every=2, preview_every=6)
  config.sample.steps = 2
  return config
"""


class FakeCodec:
  """Hands frames on; with a value it hands on that value instead."""

  def __init__(self, value=None):
    self.value = value

  def encode(self, frames):
    return frames if self.value is None else np.full_like(frames, self.value)

  def decode(self, latent, shape):
    return latent


def test_the_exam_is_of_held_out_videos_at_every_training_size(tiny_config):
  source = demo.exam_source(tiny_config, 96)
  shapes = [source.shape(i) for i in range(len(source))]
  assert set(shapes) == {(5, 16, 16), (5, 16, 24)}
  assert shapes.count((5, 16, 16)) == len(source) / 2
  states = [source.state(i) for i in range(0, len(source), 7)]
  assert {(state.colour, state.shape) for state in states} <= set(HELD_OUT)


def test_reconstruction_measures_the_codec_against_a_linear_code(tiny_config):
  exact, linear = demo.reconstruction(tiny_config, FakeCodec())
  grey, same_linear = demo.reconstruction(tiny_config, FakeCodec(0.0))
  assert exact > 100
  assert grey < linear < exact
  assert linear == same_linear


def test_every_shown_clip_is_a_file_and_a_sheet_shows_each_section(tmp_path: pathlib.Path):
  rng = np.random.default_rng(0)
  clips = [Clip(rng.uniform(-1, 1, (t, 16, 24, 3)).astype(np.float32), 8.0, "a", "") for t in (1, 5, 9)]
  sections = [
    Section("Text to video", "", [Shown("a", clips[1], {}), Shown("b", clips[2], {})]),
    Section("Images", "", [Shown("c", clips[0], {})]),
  ]
  demo.write_clips(tmp_path / "clips", sections)
  assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [
    "images.png",
    "images_0.png",
    "text_to_video.png",
    "text_to_video_0.mp4",
    "text_to_video_1.mp4",
  ]
  assert len(video_io.read(tmp_path / "clips" / "text_to_video_1.mp4", fps=8, max_frames=99)) == 9
  width, height = Image.open(tmp_path / "clips" / "text_to_video.png").size
  assert height >= 2 * 16 * 4 and width >= 9 * 24 * 4


def test_a_checkout_without_the_config_is_told_so(tmp_path, monkeypatch):
  monkeypatch.setattr(demo, "CONFIG", tmp_path / "absent.py")
  with pytest.raises(ValueError, match="absent.py"):
    demo.run(tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_demo_writes_its_page_and_goes_on_where_it_was(tmp_path, monkeypatch):
  config = tmp_path / "config.py"
  config.write_text(CONFIG.format(path=str(demo.CONFIG.with_name("dit.py"))))
  monkeypatch.setattr(demo, "CONFIG", config)
  result = demo.run(tmp_path / "out")
  assert set(result) >= {
    "seconds",
    "peak_rss_gb",
    "psnr_db",
    "psnr_linear_db",
    "alignment",
    "alignment_short_captions",
    "ceiling",
    "chance",
    "useful_tokens",
    "tokens_per_second",
    "page",
  }
  for name in ("alignment", "alignment_short_captions", "ceiling", "chance"):
    assert set(result[name]) == {"colour", "shape", "direction"}
    assert all(0 <= value <= 1 for value in result[name].values())
  assert all(result["ceiling"][name] > result["chance"][name] for name in result["ceiling"])
  assert json.loads(json.dumps(result)) == result
  assert 0 < result["useful_tokens"] <= 1
  assert 0 < result["peak_rss_gb"] < 16
  page = pathlib.Path(result["page"]).read_text()
  assert page.lower().startswith("<!doctype html")
  assert page.count("data:image/webp") >= 12
  assert (tmp_path / "out" / "clips" / "text_to_video.png").is_file()
  assert (
    "The weights that come along" in page and len(list((tmp_path / "out" / "clips").glob("*come_along*.mp4"))) == 10
  )
  assert sorted(path.name for path in (tmp_path / "out" / "run" / "logs").glob("preview_*")) == ["preview_0000006.png"]
  again = demo.run(tmp_path / "out")
  kept = ("alignment", "alignment_short_captions", "psnr_db", "useful_tokens", "tokens_per_second")
  assert {name: again[name] for name in kept} == {name: result[name] for name in kept}
