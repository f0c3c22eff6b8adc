"""Rows B03 to B07 of the bad-input table, from outside: odd and wrong lines, sizes, rates, settings and pictures."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from sora_jax.curation.check import check
from sora_jax.data.sources import open_source
from sora_jax.inference.conditions import Condition
from sora_jax.inference.generator import Request, Sampling
from sora_jax.jobs.modes import Media
from sora_jax.models.autoencoder import grid
from tests.faults.folders import section, sora

KEPT = ""  # in the place of the reason why a line is dropped
LONG = "x" * 2**20
CAPTIONS = {  # what a caption may be, and why it is dropped
  "": "caption empty",
  " \t\u2003": "caption empty",
  LONG: f"caption too long: {2**20} characters, at most 10000",
  "a\0b": "caption has NUL or broken characters",
  "\ud83d": "caption has NUL or broken characters",
  "\u0645\u0631\u062d\u0628\u0627 \u202eabc": KEPT,
  "\N{CAT FACE}\N{ZERO WIDTH JOINER}\N{BLACK LARGE SQUARE} jumps": KEPT,
  "=cmd|'/c calc'!A0": KEPT,
  "@SUM(1+1)": KEPT,
  "{config.data} %s %n ${HOME} `id`": KEPT,
  "<script>alert(1)</script>": KEPT,
  "x" * 10_000: KEPT,
}


class TestB03:
  """Captions that are empty, a megabyte long, or of odd characters: flagged, or kept as the text that they are."""

  def test_each_is_dropped_with_its_line_or_kept_to_the_letter(self, tmp_path):
    for number in range(len(CAPTIONS)):
      Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [{"file": f"{number}.png", "caption": caption} for number, caption in enumerate(CAPTIONS)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(section(tmp_path), 0)
    assert {each.line: each.reason for each in source.dropped} == {
      line: reason for line, reason in enumerate(CAPTIONS.values(), 1) if reason
    }
    assert [source.captions(k)["long"] for k in range(len(source))] == [
      c for c, reason in CAPTIONS.items() if not reason
    ]
    found = check(tmp_path)
    assert (found["kept"], found["caption_characters"][-1]) == (len(source), 10_000)
    assert all(len(each["reason"]) < 200 for each in found["dropped"])  # a reason doesn't repeat the caption


class TestB04:
  """Bad rows of a list, by their line; nothing outside the folder is touched."""

  ROWS = [
    ('{"file": "a.png", "caption": "first"}', KEPT),
    ('{"file": "a.png", "caption": "again"}', "duplicate file"),
    ('{"file": "./a.png", "caption": "again"}', "duplicate file"),
    ('{"file": "b.png", "caption": NaN}', "caption is not text"),
    ('{"file": "b.png", "width": NaN, "height": -1, "fps": Infinity, "caption": "sizes are not believed"}', KEPT),
    ('{"file": "b.png", "caption": "cut', "bad JSON"),
    ('["b.png", "list"]', "not a JSON object"),
    ('{"caption": "no file"}', 'no "file" key'),
    ('{"file": "%(outside)s/c.png", "caption": "absolute"}', "absolute path"),
    ('{"file": "../%(beside)s/c.png", "caption": "above"}', "outside the folder"),
    ('{"file": "link.png", "caption": "link out"}', "outside the folder"),
    ('{"file": "linked/c.png", "caption": "folder out"}', "outside the folder"),
    ('{"file": "gone.png", "caption": "gone"}', "file missing"),
  ]

  @pytest.mark.parametrize("kind", ["jsonl", "csv"])
  def test_each_row_has_its_line_and_reason(self, tmp_path_factory, kind):
    own, outside = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("outside")
    for path in (own / "a.png", own / "b.png", outside / "c.png"):
      Image.new("RGB", (8, 8)).save(path)
    (own / "link.png").symlink_to(outside / "c.png")
    (own / "linked").symlink_to(outside)
    rows = [(text % {"outside": outside, "beside": outside.name}, reason) for text, reason in self.ROWS]
    if kind == "csv":  # what a table can say of it
      kept = [(json.loads(text), reason) for text, reason in rows if "bad JSON" not in reason and text[0] == "{"]
      rows = [("file,caption", KEPT), *((f"{row.get('file', '')},{row['caption']}", why) for row, why in kept)]
      rows = [(text, why) for text, why in rows if not text.endswith(",nan")]
      rows = [(text, "bad file name" if text[0] == "," else why) for text, why in rows]
    (own / f"captions.{kind}").write_text("\n".join(text for text, _ in rows))
    found = [each for each in check(own)["dropped"] if each["line"]]
    wanted = [(line, reason) for line, (_, reason) in enumerate(rows, 1) if reason]
    assert [each["line"] for each in found] == [line for line, _ in wanted]
    assert all(each["reason"].startswith(reason) for each, (_, reason) in zip(found, wanted, strict=True))


class TestB05:
  """Sizes, lengths and rates at the edges: a legal clip, or an error that names what would be."""

  SIDES = [(1, 1), (1, 4000), (4000, 1), (2, 3), (127, 61), (16_000, 2), (2, 16_000), (13, 8191)]

  @pytest.mark.parametrize("max_tokens", [0, 64])
  def test_images_of_any_size_become_what_was_planned(self, tmp_path, tiny_config, max_tokens):
    for width, height in self.SIDES:
      Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / f"{width}x{height}.png")
    Image.new("L", (8200, 4200)).save(tmp_path / "too_large.png")
    names = [*(f"{width}x{height}.png" for width, height in self.SIDES), "too_large.png"]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps({"file": n, "caption": "x"}) for n in names))
    tiny_config.data.update(source=str(tmp_path), max_tokens=max_tokens)
    source = open_source(tiny_config.data, 0, grid(tiny_config))
    (dropped,) = source.dropped
    assert dropped.file == "too_large.png" and "make it smaller" in dropped.reason
    for index, (width, height) in enumerate(self.SIDES):
      frames, rows, columns = source.shape(index)
      assert (frames, rows, columns) == (1, height, width) or max_tokens
      assert min(rows, columns) >= 1 and source[index].frames_THWC.shape == (1, rows, columns, 3)
      assert np.abs(source[index].frames_THWC[0, 0, 0] - (np.array([200, 100, 50]) / 127.5 - 1)).max() < 0.02

  @pytest.mark.parametrize("size", ["0x16", "16x0", "-1x16", "16", "16x16x16", "1.5x2", "16384x16", "axb", ""])
  def test_a_size_of_a_world_that_is_none_is_named(self, tmp_path, size):
    with pytest.raises(ValueError, match=r"size .* is not WIDTHxHEIGHT.*sides from 1 to 8192"):
      open_source(section("worlds:shapes", sizes=(size,), fps=8.0), 0)

  @pytest.mark.parametrize(
    ("changes", "message"),
    [
      ({"fps": -1.0}, "fps >= 0"),
      ({"fps": float("nan")}, "fps >= 0"),
      ({"fps": float("inf")}, "fps >= 0"),
      ({"max_frames": 0}, "max_frames >= 1"),
    ],
  )
  def test_rates_and_lengths_that_are_none_are_named(self, tmp_path, changes, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "x"}')
    with pytest.raises(ValueError, match=message):
      open_source(section(tmp_path, **changes), 0)

  @pytest.mark.parametrize("change", [{"width": 0}, {"height": 16_384}, {"frames": 0}, {"fps": 0.0}, {"fps": -1.0}])
  def test_a_request_at_no_size_length_or_rate_is_refused_by_name(self, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} {value} is not "):
      Request(**({"prompt": "x", "width": 1, "height": 4000, "frames": 1, "fps": 8.0, "seed": 0} | change))


class TestB06:
  """Mistakes in a config or on the command line: a status that isn't 0, and what was meant."""

  @pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
      (["--config.model.widht=3"], 2, ["widht", "width"]),
      (["--config.train.steps=many"], 2, ["config.train.steps", "many"]),
      (["--config.data.source=worlds:shapes,worlds:uniform", "--config.data.weights=(1,)"], 1, ["2 sources", "(1,)"]),
    ],
  )
  def test_the_mistake_is_named_in_one_line_and_nothing_is_written(self, tmp_path, words, status, parts):
    done = sora("train", "--config", "configs/dit.py:runlocal=1", "--workdir", tmp_path / "w", *words)
    assert done.returncode == status and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in parts) and not (tmp_path / "w").exists()


class TestB07:
  """What a clip is made from: pictures of any kind are shown as a viewer shows them, others are refused by name."""

  def test_a_picture_to_begin_with_has_the_colours_and_the_way_up_that_it_shows(self, tmp_path):
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:12], pixels[12:] = (200, 60, 40), (30, 90, 180)
    shown = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    soft = shown.convert("RGBA")
    soft.putalpha(Image.fromarray(np.repeat([[255] * 8 + [0] * 8], 24, 0).astype(np.uint8)))
    shown.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    shown.rotate(90, expand=True).save(tmp_path / "turned.jpg", quality=98, exif=exif)
    shown.quantize(8).save(tmp_path / "palette.png")
    soft.save(tmp_path / "soft.png")
    shown.save(tmp_path / "photo.mp4", "JPEG", quality=98)
    for path in sorted(tmp_path.iterdir()):
      (frame,) = Media.open("image", str(path)).read("image", 1.0, 1)
      found = (frame + 1) * 127.5
      assert found.shape == pixels.shape, path.name
      part = np.s_[2:10, 2:6], np.s_[14:22, 2:6]
      assert all(np.abs(found[area] - pixels[area]).max() < 12 for area in part), path.name
      assert path.name != "soft.png" or not found[:, 8:].any()  # on black

  def test_what_is_no_picture_is_refused_by_name(self, tmp_path):
    (tmp_path / "words.png").write_text("words")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("words.png", "pipe.png", "gone.png", "http://127.0.0.1:9/a.png"):
      path = str(tmp_path / name)
      with pytest.raises(ValueError, match=re.escape(f"--image {path} can't be read: ")):
        Media.open("image", path)

  def test_frames_of_another_size_than_the_clip_are_refused_with_both(self):
    given = np.zeros((1, 8, 12, 3), np.float32)
    with pytest.raises(ValueError, match="a condition is 12x8 and the clip 16x16"):
      Request("x", 16, 16, 5, 8.0, 0, (Condition(given),))

  @pytest.mark.slow
  def test_an_empty_prompt_and_one_of_ten_thousand_words_give_clips(self, generator):
    sampling = Sampling.of(generator.config)
    requests = [Request(prompt, 16, 16, 1, 8.0, 0) for prompt in ("", "word " * 10_000)]
    for clip in generator.sample(requests, sampling):
      assert clip.frames_THWC.shape == (1, 16, 16, 3) and np.isfinite(clip.frames_THWC).all()
