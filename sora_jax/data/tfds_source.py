"""Any data set of `tensorflow-datasets` with videos or images and words for them, read without TensorFlow.

Its pictures are the feature "video" or "image", or the only one of their kind: uint8 tensors (T, H, W, C) or (H, W, C).
Its captions are "short" and "long", or the first of the texts "caption", "text" and "captions", or the names of a class
"label". A feature "fps" is the rate of a video.

Shape letters: T frames, H height, W width, C colours.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from sora_jax import clips
from sora_jax.data.files import MAX_CAPTION, Dropped, View, describe_dropped, fingerprint_of, is_clean, reopened
from sora_jax.errors import InputError
from sora_jax.runtime import process, storage
from sora_jax.video import io as video_io

PICTURES = ("video", "image")
TEXTS = ("caption", "text", "captions")
VIDEO_FPS = 8.0  # of a data set that doesn't say
RATES = (0.001, 1000.0)  # least and most frames per second that are taken at their word
VERSION = 1  # of what is kept in the cache


class Keys(NamedTuple):
  """Which features of a data set are used."""

  pictures: str
  short: str
  long: str
  fps: str | None


class TfdsSource:
  """The clips of one split, in its order; those that don't decode, or have no words, are dropped.

  What a clip's size and captions are is looked up once for a prepared data set and kept in the user's cache folder.
  """

  def __init__(self, spec: str, view: View):
    """
    Args:
      spec: NAME[/CONFIG][:VERSION], or the folder of a prepared data set; then @SPLIT, of which "train" is the default.
      view: how clips are seen.

    Raises:
      ValueError: no such data set or split, not prepared on this machine, or no pictures or captions in it.
    """
    view.check()
    self.spec, self.view = spec, view
    name, _, split = spec.partition("@")
    split = split or "train"
    builder = _builder(name)
    self.data = _data(builder, split, spec)
    self.features = builder.info.features
    self.keys = find_keys(self.features, spec)
    self.name = builder.info.full_name
    rows = _index(self, _state(builder, split))
    self.places = [place for place, row in enumerate(rows) if "reason" not in row]
    self.index = [rows[place] for place in self.places]
    seen, named = ("size", "fps", "digest"), [self.name, split]
    media = ((place, [rows[place][name] for name in seen]) for place in self.places)
    self.media_fingerprint = fingerprint_of([*named, *media])
    self.captions_fingerprint = fingerprint_of([*named, *((place, rows[place]["captions"]) for place in self.places)])
    self.fingerprint = fingerprint_of([self.media_fingerprint, self.captions_fingerprint])
    bad = [(place, row["reason"]) for place, row in enumerate(rows) if "reason" in row]
    self.dropped: Sequence[Dropped] = [Dropped(f"{self.name}-{place}", 0, reason) for place, reason in bad]
    if not self.index:
      raise InputError(f"tfds:{spec}: nothing usable: {describe_dropped(self.dropped)}")

  def __reduce__(self):
    return reopened, (TfdsSource, {"spec": self.spec, "view": self.view}, self.fingerprint)

  def __len__(self) -> int:
    return len(self.index)

  def shape(self, index: int) -> tuple[int, int, int]:
    return self.view.shape(self._probe(index))

  def fps(self, index: int) -> float:
    return self.view.rate(self._probe(index).fps)

  def captions(self, index: int) -> dict[str, str]:
    return dict(self.index[index]["captions"])

  def where(self, index: int) -> tuple[str, int]:
    return f"{self.name}-{self.places[index]}", 0

  def __getitem__(self, index: int) -> clips.Clip:
    """
    Raises:
      UnreadableFile: the example doesn't decode.
      IndexError: no such clip.
    """
    if not 0 <= index < len(self):
      raise IndexError(index)
    try:
      _, frames_THWC = self._read(self.places[index])
    except video_io.UnreadableFile as error:
      raise video_io.UnreadableFile(f"{self.where(index)[0]}: {error}") from error
    probe = self._probe(index)
    count, height, width = self.shape(index)
    fps = self.fps(index)
    # As `video_io.read` picks them: what is on screen at k / fps seconds.
    picked = np.floor(np.arange(count) * (probe.fps / fps) + 1e-6).astype(int).clip(0, len(frames_THWC) - 1)
    shown = np.stack([video_io.resize(frame, (height, width)) for frame in frames_THWC[picked]])
    return clips.Clip(clips.from_uint8(shown), fps, self.captions(index)["long"], self.where(index)[0])

  def describe(self, place: int) -> dict[str, Any]:
    """What the index keeps of an example of the data set: its `size`, `fps`, `captions` and `digest`, or a `reason`."""
    try:
      example, frames_THWC = self._read(place)
      fps = float(example[self.keys.fps]) if self.keys.fps else VIDEO_FPS
      captions = {style: self._text(getattr(self.keys, style), example) for style in ("short", "long")}
    except ImportError as error:
      raise InputError(f"tfds:{self.spec}: its features can't be decoded: {error}") from error
    except video_io.UnreadableFile as error:
      return {"reason": f"unreadable: {error}"}
    frames, height, width = frames_THWC.shape[:3]
    if frames > 1 and not RATES[0] <= fps <= RATES[1]:
      return {"reason": f"bad rate: {fps:g} frames per second"}
    if not all(captions.values()):
      return {"reason": "caption empty"}
    digest = hashlib.sha256(np.ascontiguousarray(frames_THWC).data).hexdigest()
    size = [frames, height, width]
    return {"size": size, "fps": fps if frames > 1 else 0.0, "captions": captions, "digest": digest}

  def _probe(self, index: int) -> video_io.Probe:
    row = self.index[index]
    frames, height, width = row["size"]
    return video_io.Probe(height, width, frames / row["fps"] if row["fps"] else 0.0, row["fps"], frames)

  def _read(self, place: int) -> tuple[dict[str, Any], np.ndarray]:
    """An example, and its pictures: uint8 (T, H, W, 3); grey becomes colour, transparency is left out."""
    try:
      example = self.data[place]
      frames = np.asarray(example[self.keys.pictures], np.uint8)
    except ImportError:
      raise
    except Exception as error:  # as many kinds as there are ways for bytes to be wrong
      raise video_io.UnreadableFile(str(error).strip().partition("\n")[0] or type(error).__name__) from error
    frames_THWC = frames[None] if frames.ndim == 3 else frames
    if frames_THWC.ndim != 4 or not frames_THWC.size:
      raise video_io.UnreadableFile("no pictures")
    return example, frames_THWC.repeat(3, -1) if frames_THWC.shape[-1] == 1 else frames_THWC[..., :3]

  def _text(self, key: str, example: dict[str, Any]) -> str:
    """Words for a clip; empty where there are none."""
    value = example[key]
    if hasattr(self.features[key], "int2str"):
      number = int(value)  # -1 where there is no label
      return self.features[key].int2str(number).replace("_", " ") if number >= 0 else ""
    while isinstance(value, (dict, list, tuple, np.ndarray)):  # several for a clip: the English one, or the first
      if not len(value):
        return ""
      value = value.get("en", next(iter(value.values()))) if isinstance(value, dict) else value[0]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:MAX_CAPTION].strip() if is_clean(text) else ""


def _builder(name: str) -> Any:
  """The builder of a prepared data set; `sora_worlds` is our own."""
  import tensorflow_datasets as tfds

  from sora_jax.data import tfds_worlds  # noqa: F401  (registers the data set)

  here = os.path.isdir(name)
  try:
    builder = tfds.builder_from_directory(name) if here else tfds.builder(name, file_format="array_record")
  except Exception as error:  # of any kind, where a file of the folder is damaged
    what = "not a prepared data set" if here else "no such data set, and no folder of one"
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise InputError(f"tfds:{name}: {what}: {reason}") from error
  if not builder.is_prepared():
    ours = "import sora_jax.data.tfds_worlds; " if name.startswith("sora_worlds") else ""
    raise InputError(
      f"tfds:{name}: not prepared under {builder.data_dir}: {ours}tfds.builder({name!r}, file_format='array_record')"
      ".download_and_prepare() does it, and $TFDS_DATA_DIR says where"
    )
  if storage.is_remote(builder.data_dir):
    raise InputError(f"tfds:{name}: {builder.data_dir} is in a bucket: copy it to this machine, and name the folder")
  return builder


def _data(builder: Any, split: str, spec: str) -> Any:
  """The examples of a split by number."""
  try:
    return builder.as_data_source(split=split)
  except NotImplementedError as error:
    stored = getattr(builder.info.file_format, "value", "another format")
    raise InputError(f"tfds:{spec}: stored as {stored}: prepare it with file_format='array_record'") from error
  except Exception as error:  # of any kind, as above
    splits = ", ".join(builder.info.splits)
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise InputError(f"tfds:{spec}: no split {split!r} of {splits}: {reason}") from error


def find_keys(features: Any, spec: str) -> Keys:
  """Which features hold the pictures, captions and rate.

  Raises:
    ValueError: none does; the message lists the features.
  """
  known = dict(features.items())
  shapes = {name: getattr(feature, "shape", None) for name, feature in known.items()}
  pictures = [name for name, shape in shapes.items() if _is_picture(shape, known[name])]
  pictures = [name for name in PICTURES if name in pictures] or (pictures if len(pictures) == 1 else [])
  texts = [name for name in TEXTS if name in known]
  texts += [name for name in ("label",) if hasattr(known.get(name), "int2str")]
  short, long = (([name] if name in known else []) or texts for name in ("short", "long"))
  short, long = short or long, long or short
  if not pictures or not short:
    what = "captions" if pictures else "pictures"
    raise InputError(f"tfds:{spec}: no {what} among its features {', '.join(sorted(known))}")
  timed = shapes.get("fps") == () and np.issubdtype(known["fps"].np_dtype, np.number)
  return Keys(pictures[0], short[0], long[0], "fps" if timed else None)


def _is_picture(shape: Any, feature: Any) -> bool:
  tensor = isinstance(shape, tuple) and len(shape) in (3, 4)
  return tensor and shape[-1] in (1, 3, 4) and feature.np_dtype == np.uint8


def _state(builder: Any, split: str) -> str:
  """Changes with the files of a data set: the name of its index in the cache."""
  files = sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in os.scandir(builder.data_dir))
  return hashlib.sha256(json.dumps([VERSION, builder.info.full_name, split, files]).encode()).hexdigest()


def _index(source: TfdsSource, state: str) -> list[dict[str, Any]]:
  """What `describe` says of every example, from the cache where it is of these data."""
  path = process.caches() / "tfds" / f"{state}.json"
  try:
    kept = json.loads(path.read_bytes())
    if kept["digest"] == _digest(kept["rows"]) and len(kept["rows"]) == len(source.data):
      return kept["rows"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    pass  # none yet, or damaged
  places = tqdm(range(len(source.data)), desc="index", file=sys.stderr, mininterval=5.0)
  rows = [source.describe(place) for place in places]
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, json.dumps({"digest": _digest(rows), "rows": rows}))
  except OSError as error:
    print(f"{path}: {error.strerror}: the index of tfds:{source.spec} is made again next time", file=sys.stderr)
  return rows


def _digest(rows: list[dict[str, Any]]) -> str:
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
