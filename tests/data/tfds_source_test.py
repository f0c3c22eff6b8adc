"""Data sets of tensorflow-datasets, made here without TensorFlow: pictures, words, what is dropped, and the cache."""

import io
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sora_jax import clips
from sora_jax.data import tfds_source
from sora_jax.data.files import IMAGE_FPS, Dropped, View
from sora_jax.data.tfds_source import TfdsSource
from sora_jax.video import io as video_io
from sora_jax.video.io import UnreadableFile

FEATURES = tfds.features
PICTURE = FEATURES.Image(shape=(None, None, 3))
VIDEO = FEATURES.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="zlib")
TEXT = FEATURES.Text()
IMAGES, VIDEOS = {"image": PICTURE, "text": TEXT}, {"video": VIDEO, "caption": TEXT}


class Tiny(tfds.core.GeneratorBasedBuilder):
  """A data set of the features and examples that a test gives."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # to find it takes a package that tfds does not require

  def __init__(self, features: dict, splits: dict, **more):
    self.given, self.splits = features, splits
    super().__init__(file_format="array_record", **more)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=FEATURES.FeaturesDict(self.given), disable_shuffling=True)

  def _split_generators(self, dl_manager) -> dict:
    return {split: iter(enumerate(examples)) for split, examples in self.splits.items()}

  def _generate_examples(self):
    raise NotImplementedError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  """The folder of what is kept, of its own for each test."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "sora_jax" / "tfds"


def prepare(root: pathlib.Path, features: dict, examples: list[dict], **splits: list[dict]) -> str:
  """The folder of a data set that is made now."""
  builder = Tiny(features, {"train": examples, **splits}, data_dir=root / "data")
  builder.download_and_prepare()
  return builder.data_dir


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> io.BytesIO:
  """tfds takes files as they are, and needs TensorFlow to encode an array."""
  content = io.BytesIO()
  Image.fromarray(pixels).save(content, "PNG")
  content.seek(0)
  return content


def image(side: int, **words: str) -> dict:
  return {"image": png(frames(1, side, side, side)[0]), **words}


def videos(*shapes: tuple[int, int, int], caption: str = "Clip") -> list[dict]:
  return [{"video": frames(*shape, seed), "caption": f"{caption} {seed}."} for seed, shape in enumerate(shapes)]


class TestPictures:
  def test_videos_with_captions_and_rates(self, tmp_path):
    features = {"video": VIDEO, "short": TEXT, "long": TEXT, "fps": np.float32, "other": np.int64}
    shapes = [(6, 8, 12), (1, 10, 6), (9, 6, 6)]
    examples = [
      {"video": frames(*shape, k), "short": f" é {k} ", "long": f"Clip {k}.", "fps": 4.0 + k, "other": k}
      for k, shape in enumerate(shapes)
    ]
    source = TfdsSource(prepare(tmp_path, features, examples), View())
    assert len(source) == 3 and source.dropped == []
    assert [source.shape(k) for k in range(3)] == shapes
    assert [source.fps(k) for k in range(3)] == [4.0, IMAGE_FPS, 6.0]
    for k, example in enumerate(examples):
      clip = source[k]
      np.testing.assert_array_equal(clip.frames_THWC, clips.from_uint8(example["video"]))
      assert (clip.fps, clip.caption, clip.id) == (source.fps(k), f"Clip {k}.", f"tiny/1.0.0-{k}")
      assert source.captions(k) == {"short": f"é {k}", "long": f"Clip {k}."}
      assert source.where(k) == (clip.id, 0)
    for k in (3, -1):
      with pytest.raises(IndexError):
        source[k]

  def test_images_with_labels(self, tmp_path):
    features = {"image": PICTURE, "label": FEATURES.ClassLabel(names=["house_cat", "dog"])}
    pixels = [frames(1, 5 + k, 9, k)[0] for k in range(3)]
    examples = [{"image": png(pixels[k]), "label": label} for k, label in enumerate(("dog", "house_cat", -1))]
    source = TfdsSource(prepare(tmp_path, features, examples), View())
    assert [source.captions(k)["long"] for k in range(len(source))] == ["dog", "house cat"]
    assert source.dropped == [Dropped("tiny/1.0.0-2", 0, "caption empty")]
    for k in range(2):
      np.testing.assert_array_equal(source[k].frames_THWC, clips.from_uint8(pixels[k][None]))

  @pytest.mark.parametrize("mode", ["L", "RGBA"])
  def test_grey_becomes_colour_and_transparency_is_left_out(self, tmp_path, mode):
    channels = {"L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, channels)).astype(np.uint8)
    features = {"photo": FEATURES.Image(shape=(None, None, channels)), "text": TEXT}
    folder = prepare(tmp_path, features, [{"photo": png(pixels.squeeze()), "text": "a"}])
    colour = np.repeat(pixels, 3, -1) if mode == "L" else pixels[..., :3]
    np.testing.assert_array_equal(TfdsSource(folder, View())[0].frames_THWC[0], clips.from_uint8(colour))

  def test_a_view_is_that_of_the_same_clip_in_a_file(self, tmp_path):
    """Frames are picked and scaled as those of a file are."""
    video = frames(20, 16, 24)
    examples = [{"video": video, "caption": "a", "fps": 8.0}]
    folder = prepare(tmp_path, VIDEOS | {"fps": np.float32}, examples)
    path = tmp_path / "clip.mp4"
    path.write_bytes(video_io.encode(video, 8, "mp4", lossless=True))
    half = lambda count, height, width: (height // 2, width // 2)
    for fps, max_frames, fit in itertools.product((0.0, 3.0, 8.0, 12.5, 30.0), (1, 7, 100), (None, half)):
      view = View(fps, max_frames, fit)
      source = TfdsSource(folder, view)
      wanted = video_io.read(path, fps=source.fps(0), max_frames=max_frames, size=source.shape(0)[1:])
      assert source.shape(0) == view.shape(video_io.probe(path))
      np.testing.assert_array_equal(source[0].frames_THWC, clips.from_uint8(wanted))

  def test_a_rate_that_is_not_stated_is_the_usual_one(self, tmp_path):
    folder = prepare(tmp_path, VIDEOS, videos((6, 4, 4)))
    assert TfdsSource(folder, View()).fps(0) == tfds_source.VIDEO_FPS


class TestWords:
  @pytest.mark.parametrize(
    ("feature", "value", "caption"),
    [
      (FEATURES.Sequence(TEXT), ["first", "second"], "first"),
      (FEATURES.Sequence({"raw": TEXT}), {"raw": ["first", "second"]}, "first"),
      (FEATURES.Translation(languages=["en", "de"]), {"en": "dog", "de": "Hund"}, "dog"),
      (TEXT, "\N{FOX FACE} \n", "\N{FOX FACE}"),
      (TEXT, "x" * 20_000, "x" * 10_000),
      (TEXT, b"torn \xff", "torn \N{REPLACEMENT CHARACTER}"),
    ],
    ids=["list", "dicts", "languages", "characters", "long", "torn"],
  )
  def test_the_first_words_are_the_caption(self, tmp_path, feature, value, caption):
    folder = prepare(tmp_path, {"image": PICTURE, "captions": feature}, [image(4) | {"captions": value}])
    assert TfdsSource(folder, View()).captions(0) == {"short": caption, "long": caption}

  @pytest.mark.parametrize(
    ("feature", "value"), [(TEXT, ""), (TEXT, " \n"), (TEXT, "a\0b"), (FEATURES.Sequence(TEXT), [])], ids=str
  )
  def test_a_clip_without_words_is_dropped(self, tmp_path, feature, value):
    good = "good" if feature is TEXT else ["good"]
    examples = [image(4 + k) | {"caption": text} for k, text in enumerate((good, value, good))]
    source = TfdsSource(prepare(tmp_path, {"image": PICTURE, "caption": feature}, examples), View())
    assert [source[k].id for k in range(len(source))] == ["tiny/1.0.0-0", "tiny/1.0.0-2"]
    for k, side in enumerate((4, 6)):
      assert source.shape(k) == (1, side, side)
      np.testing.assert_array_equal(source[k].frames_THWC, clips.from_uint8(frames(1, side, side, side)))
    assert source.dropped == [Dropped("tiny/1.0.0-1", 0, "caption empty")]

  def test_nothing_usable_and_a_view_out_of_range_are_told(self, tmp_path):
    with pytest.raises(ValueError, match="max_frames >= 1"):
      TfdsSource("name", View(max_frames=0))
    made = [("", 8.0, 3), ("a", 0.0, 3), ("a", float("nan"), 3), ("a", 1e9, 3), ("a", 8.0, 0)]
    examples = [{"video": frames(count, 4, 4), "caption": text, "fps": fps} for text, fps, count in made]
    with pytest.raises(ValueError, match=r"nothing usable: 5 dropped \(3 bad rate, 1 caption empty, 1 unreadable\)"):
      TfdsSource(prepare(tmp_path, VIDEOS | {"fps": np.float32}, examples), View())


class TestFindKeys:
  def keys(self, **features) -> tuple:
    return tuple(tfds_source.find_keys(FEATURES.FeaturesDict(features), "name"))

  def test_which_features_are_used(self):
    label = FEATURES.ClassLabel(names=["a"])
    grey = FEATURES.Image(shape=(8, 8, 1))
    assert self.keys(image=PICTURE, video=VIDEO, mask=grey, text=TEXT) == ("video", "text", "text", None)
    assert self.keys(image=PICTURE, mask=grey, label=label, text=TEXT, caption=TEXT)[:2] == ("image", "caption")
    assert self.keys(photo=PICTURE, label=label, fps=np.int32) == ("photo", "label", "label", "fps")
    assert self.keys(photo=PICTURE, short=TEXT, fps=TEXT) == ("photo", "short", "short", None)
    assert self.keys(photo=PICTURE, long=TEXT, caption=TEXT) == ("photo", "caption", "long", None)
    assert self.keys(photo=PICTURE, long=TEXT, caption=TEXT, short=TEXT) == ("photo", "short", "long", None)

  def test_features_without_pictures_are_listed(self):
    tensors = [((8, 8, 3), np.float32), ((8, 8, 2), np.uint8), ((8, 8), np.uint8), ((2, 2, 8, 8, 3), np.uint8)]
    others = [{"image": FEATURES.Tensor(shape=shape, dtype=dtype)} for shape, dtype in tensors]
    for features in (*others, {"sound": np.float32}, {"left": PICTURE, "right": PICTURE}, {"image": {"left": PICTURE}}):
      names = ", ".join(sorted([*features, "text"]))
      with pytest.raises(ValueError, match=rf"^tfds:name: no pictures among its features {names}$"):
        self.keys(**features, text=TEXT)

  def test_features_without_words_are_listed(self):
    with pytest.raises(ValueError, match=r"^tfds:name: no captions among its features image, label, words$"):
      self.keys(image=PICTURE, label=np.int64, words=TEXT)


class TestOpening:
  def test_splits_and_parts_of_them(self, tmp_path):
    folder = prepare(tmp_path, VIDEOS, videos(*[(2, 4, 4)] * 5), test=videos((3, 6, 6), caption="Test"))
    lengths = {"": 5, "@train": 5, "@train[:2]": 2, "@train[40%:]": 3, "@test": 1, "@train+test": 6}
    opened = {split: TfdsSource(folder + split, View()) for split in lengths}
    assert {split: len(source) for split, source in opened.items()} == lengths
    assert opened["@test"].captions(0)["long"] == "Test 0."
    assert opened["@train[40%:]"][0].caption == "Clip 2."
    prints = {split: source.fingerprint for split, source in opened.items()}
    assert prints[""] == prints["@train"] and len(set(prints.values())) == 5

  @pytest.mark.parametrize("split", ["nope", "train[", "train[:-", "../x"])
  def test_an_unknown_split_is_answered_with_those_there_are(self, tmp_path, split):
    folder = prepare(tmp_path, IMAGES, [image(4, text="a")])
    with pytest.raises(ValueError, match=r"no split '.*' of train: ") as caught:
      TfdsSource(f"{folder}@{split}", View())
    assert repr(split) in str(caught.value) and "\n" not in str(caught.value)

  @pytest.mark.parametrize("name", ["no_such_set", "sora_worlds/no_such_world", "gs://bucket/a", "/no/such/folder", ""])
  def test_an_unknown_data_set_is_told_in_one_line(self, name):
    with pytest.raises(ValueError, match=r"no such data set, and no folder of one: .") as caught:
      TfdsSource(name, View())
    assert str(caught.value).startswith(f"tfds:{name}: ") and "\n" not in str(caught.value)

  def test_a_folder_of_something_else_is_told(self, tmp_path):
    for name in ("empty", "damaged"):
      (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "dataset_info.json").write_text("{")
    for name in ("empty", "damaged"):
      with pytest.raises(ValueError, match=rf"^tfds:{tmp_path / name}: not a prepared data set: .") as caught:
        TfdsSource(str(tmp_path / name), View())
      assert "\n" not in str(caught.value)

  def test_a_data_set_that_is_not_prepared_says_how(self, tmp_path):
    code = """
from sora_jax.data.files import View
from sora_jax.data.tfds_source import TfdsSource
for name in ("sora_worlds/shapes", "mnist"):
  try:
    TfdsSource(name, View())
  except ValueError as error:
    print(error)
"""
    env = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "sets")}
    ours, others = subprocess.check_output([sys.executable, "-c", code], text=True, env=env).splitlines()
    how = "tfds.builder('{}', file_format='array_record').download_and_prepare() does it, and $TFDS_DATA_DIR says where"
    at = f"not prepared under {tmp_path / 'sets'}"
    ours_how = "import sora_jax.data.tfds_worlds; " + how.format("sora_worlds/shapes")
    assert ours == f"tfds:sora_worlds/shapes: {at}/sora_worlds/shapes/1.0.0: {ours_how}"
    assert others.startswith(f"tfds:mnist: {at}/mnist/") and others.endswith(f": {how.format('mnist')}")

  def test_a_data_set_of_another_format_says_which_is_needed(self, tmp_path):
    folder = prepare(tmp_path, IMAGES, [image(4, text="a")])
    info = pathlib.Path(folder) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"stored as tfrecord: prepare it with file_format='array_record'$"):
      TfdsSource(folder, View())


class TestDamage:
  def test_an_example_that_does_not_decode_is_dropped(self, tmp_path):
    torn = png(frames(1, 40, 40)[0]).getvalue()[:200]
    bad = [{"image": io.BytesIO(content), "text": "a"} for content in (torn, b"text")]
    examples = [image(4, text="a"), *bad, image(6, text="a")]
    source = TfdsSource(prepare(tmp_path, IMAGES, examples), View())
    assert [source.shape(k) for k in range(len(source))] == [(1, 4, 4), (1, 6, 6)]
    assert [(each.file, each.line) for each in source.dropped] == [("tiny/1.0.0-1", 0), ("tiny/1.0.0-2", 0)]
    assert all(each.reason.startswith("unreadable: ") and "\n" not in each.reason for each in source.dropped)

  def test_an_example_that_is_damaged_later_is_an_unreadable_file(self, tmp_path):
    folder = prepare(tmp_path, VIDEOS, videos((3, 40, 40), (3, 40, 40)))
    source = TfdsSource(folder, View())
    (shard,) = pathlib.Path(folder).glob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[10_000:10_064] = bytes(64)
    shard.write_bytes(content)
    told = []
    for k in range(2):
      try:
        source[k]
      except UnreadableFile as error:
        told.append(str(error))
    assert told and all(each.startswith("tiny/1.0.0-") and "\n" not in each for each in told)


class TestCache:
  def counted(self, monkeypatch) -> list[int]:
    """The examples that are looked at from now on."""
    looked, describe = [], TfdsSource.describe
    monkeypatch.setattr(TfdsSource, "describe", lambda self, place: looked.append(place) or describe(self, place))
    return looked

  def test_the_index_is_made_once(self, tmp_path, cache, monkeypatch):
    folder = prepare(tmp_path, VIDEOS, [*videos((2, 4, 4), (3, 4, 6)), *videos((1, 4, 4), caption="")])
    looked = self.counted(monkeypatch)
    first = TfdsSource(folder, View())
    second = TfdsSource(folder, View(fps=4.0, max_frames=2))
    assert looked == [0, 1, 2] and len(list(cache.iterdir())) == 1
    assert (first.fingerprint, first.index, first.dropped) == (second.fingerprint, second.index, second.dropped)
    assert [second.shape(k) for k in range(2)] == [(1, 4, 4), (2, 4, 6)]

  def test_other_data_of_the_same_name_and_size_have_an_index_of_their_own(self, tmp_path, monkeypatch):
    looked, prints = self.counted(monkeypatch), []
    for caption in ("Snow", "Rain", "Rain"):
      folder = prepare(tmp_path, VIDEOS, videos((2, 4, 4), caption=caption))
      source = TfdsSource(folder, View())
      assert source.captions(0)["long"] == f"{caption} 0."
      prints.append(source.fingerprint)
      pathlib.Path(folder).rename(tmp_path / f"{len(prints)}")
    assert looked == [0, 0, 0]
    assert prints[0] != prints[1] == prints[2]  # by what is in it, not by when it was made

  def test_other_pictures_have_another_fingerprint(self, tmp_path):
    prints = set()
    for seed in range(2):
      examples = [{"video": frames(2, 4, 4, seed), "caption": "a"}]
      prints.add(TfdsSource(prepare(tmp_path / f"{seed}", VIDEOS, examples), View()).fingerprint)
    assert len(prints) == 2

  @pytest.mark.parametrize(
    "damage",
    [
      lambda content: b"",
      lambda content: content[: len(content) // 2],
      lambda content: b"\xff" + content,
      lambda content: b"[]",
      lambda content: b"[" * 100_000,
      lambda content: b'{"rows": []}',
      lambda content: content.replace(b'"size": [2', b'"size": [9'),
      lambda content: content.replace(b"Clip 0", b"Clap 0"),
      lambda content: json.dumps({"rows": [], "digest": tfds_source._digest([])}).encode(),
    ],
    ids=["empty", "cut", "not UTF-8", "list", "deep", "no digest", "size", "caption", "fewer"],
  )
  def test_a_damaged_file_is_made_again(self, tmp_path, cache, monkeypatch, damage):
    folder = prepare(tmp_path, VIDEOS, videos((2, 4, 4)))
    first = TfdsSource(folder, View())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    looked = self.counted(monkeypatch)
    again = TfdsSource(folder, View())
    assert (again.index, again.fingerprint, looked) == (first.index, first.fingerprint, [0])
    assert path.read_bytes() == whole

  def test_a_cache_that_can_not_be_written_is_done_without(self, tmp_path, monkeypatch, capsys):
    folder = prepare(tmp_path, VIDEOS, videos((2, 4, 4)))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(TfdsSource(folder, View())) == 1
    assert f"the index of tfds:{folder} is made again next time" in capsys.readouterr().err

  def test_it_is_in_the_home_folder_where_nothing_else_is_said(self, tmp_path, monkeypatch):
    folder = prepare(tmp_path, VIDEOS, videos((2, 4, 4)))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    TfdsSource(folder, View())
    assert len(list((tmp_path / "home" / ".cache" / "sora_jax" / "tfds").iterdir())) == 1


class TestOtherProcesses:
  def test_a_source_that_is_sent_is_opened_again(self, tmp_path, monkeypatch):
    folder = prepare(tmp_path, VIDEOS, videos(*[(2, 4, 4)] * 30), test=videos((2, 4, 4)))
    source = TfdsSource(f"{folder}@train[5:]", View(fps=4.0, max_frames=1))
    _ = source[0]
    content = pickle.dumps(source)
    assert len(content) < 600 + len(folder)
    monkeypatch.setattr(TfdsSource, "describe", None)  # its index comes from the cache
    sent = pickle.loads(content)
    assert sent.fingerprint == source.fingerprint and len(sent) == 25 and sent.view == source.view
    np.testing.assert_array_equal(sent[7].frames_THWC, source[7].frames_THWC)

  def test_another_process_reads_the_same_clip_and_never_asks_for_tensorflow(self, tmp_path):
    source = TfdsSource(prepare(tmp_path, VIDEOS, videos((2, 4, 4), (3, 6, 4))), View())
    (tmp_path / "source").write_bytes(pickle.dumps(source))
    code = "import pickle, sys; clip = pickle.load(open(sys.argv[1], 'rb'))[1]"
    code += "; print(clip.frames_THWC.tobytes().hex(), 'tensorflow' in sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", code, tmp_path / "source"], text=True)
    assert told == f"{source[1].frames_THWC.tobytes().hex()} False\n"

  def test_data_that_changed_meanwhile_are_not_taken_for_the_same(self, tmp_path):
    folder = prepare(tmp_path, VIDEOS, videos((2, 4, 4)))
    content = pickle.dumps(TfdsSource(folder, View()))
    pathlib.Path(folder).rename(tmp_path / "old")
    assert prepare(tmp_path, VIDEOS, videos((2, 4, 4), caption="Other")) == folder
    with pytest.raises(ValueError, match=f"{folder}: changed since it was opened"):
      pickle.loads(content)
