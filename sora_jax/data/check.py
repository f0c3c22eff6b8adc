"""What a source would give to training, and what it would lose: each file is decoded once, small.

The lines and files that can't be used are those of `folder.py`, and those that a decoder only finds out about.
"""

import collections
import os
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax.data import isolated
from sora_jax.data.folder import Dropped, Entry, NothingUsable, scan
from sora_jax.data.video_io import UnreadableFile, frame_count

SIDE = 64  # pixels of the longer side that is decoded to
FRAMES = 4096  # most frames that are looked at in one file
PERCENTILES = (0, 50, 100)


def check(folder: str | os.PathLike) -> dict[str, Any]:
  """Statistics of a folder with captions.jsonl, and everything that training would drop.

  Returns:
    `clips` (lines and files that no line names), `kept`, `dropped` ([{file, line, reason}], in the order of the lines);
    and of what is kept `images`, `videos`, `seconds` and `frames` of all videos, the commonest `sizes` with their
    counts, and the least, middle and greatest of `width`, `height`, `fps` and `caption_characters`.

  Raises:
    ValueError: no such folder, or no captions.jsonl in it.
  """
  try:
    entries, dropped = scan(folder)
  except NothingUsable as nothing:
    entries, dropped = [], nothing.dropped
  kept, damaged = [], []
  for entry in tqdm(entries, desc="check", file=sys.stderr, disable=not entries):
    reason = damage(os.path.join(folder, entry.file), entry)
    if reason is None:
      kept.append(entry)
    else:
      damaged.append(Dropped(entry.file, entry.line, f"unreadable: {reason}"))
  lines = sorted([each for each in [*dropped, *damaged] if each.line], key=lambda each: each.line)
  dropped = [*lines, *(each for each in dropped if not each.line)]
  found = {"clips": len(kept) + len(dropped), "kept": len(kept)}
  return found | statistics(kept) | {"dropped": [vars(each) for each in dropped]}


def damage(path: str, entry: Entry) -> str | None:
  """Why a file that could be probed can't be decoded, or None."""
  probe = entry.probe
  fps = probe.fps or 1.0
  promised = frame_count(probe.seconds, fps, FRAMES) if probe.seconds else 1
  scale = min(SIDE / max(probe.height, probe.width), 1.0)
  size = tuple(max(round(side * scale), 1) for side in (probe.height, probe.width))
  try:
    frames = isolated.shared().read(path, fps=fps, max_frames=FRAMES, size=size)
  except UnreadableFile as error:
    return str(error)
  if abs(promised - len(frames)) > 2:
    return f"gives {len(frames)} frames where {promised} were promised"
  return None


def statistics(entries: list[Entry]) -> dict[str, Any]:
  if not entries:
    return {"images": 0, "videos": 0, "seconds": 0.0, "frames": 0}
  probes = [entry.probe for entry in entries]
  videos = [probe for probe in probes if probe.seconds > 0]
  sizes = collections.Counter(f"{probe.width}x{probe.height}" for probe in probes)
  values = {
    "width": [probe.width for probe in probes],
    "height": [probe.height for probe in probes],
    "fps": [probe.fps for probe in videos],
    "caption_characters": [len(text) for entry in entries for text in set(entry.captions.values())],
  }
  return {
    "images": len(probes) - len(videos),
    "videos": len(videos),
    "seconds": round(sum(probe.seconds for probe in videos), 2),
    "frames": sum(probe.frames for probe in videos),
    "sizes": dict(sizes.most_common(20)),
    **{name: [round(float(x), 2) for x in np.percentile(v, PERCENTILES)] for name, v in values.items() if v},
  }
