"""What a run reports: JSON lines and TensorBoard on disk, a progress bar on the terminal.

A log that can't be written never stops training: it is said once, and training goes on.
"""

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from sora_jax.runtime import storage

FILE = "metrics.jsonl"
KINDS = LINES, BOARD, PICTURES = "lines of metrics", "TensorBoard events", "previews"
REMOTE_EVERY = 60.0  # seconds between writes to a bucket, where a file is written whole


class MetricsLog:
  """Writes `metrics.jsonl`, TensorBoard events and preview pictures under a folder.

  A resumed run cuts lines of steps that it will take again, so every step stands once, unless an earlier run still
  writes: until that one ends, at its next save, it adds lines of its own. On this machine a line is in the file when
  `scalars` returns, whatever happens to the process then; in a bucket when `flush` does.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int, writes: bool = True):
    """
    Args:
      writes: one host of a run writes the files.
    """
    self.folder, self.remote = epath.Path(folder), storage.is_remote(folder)
    self.lines: list[str] = []  # all of the file, of one in a bucket
    self.silent = set() if writes else set(KINDS)
    self.flushed = time.monotonic()
    self._try(KINDS, self._open, first_step)
    self._try((BOARD,), self._open_board, first_step)

  def _open(self, first_step: int) -> None:
    self.folder.mkdir(parents=True, exist_ok=True)
    path = self.folder / FILE
    if path.exists():
      rows = [(line, _row_of(line)) for line in path.read_text().splitlines()]
      self.lines = [line for line, row in rows if row and row["step"] <= first_step]
      self._write_lines()

  def _open_board(self, first_step: int) -> None:
    self.board = Board(self.folder, first_step + 1)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    self._try((LINES,), self._add_line, json.dumps({"step": step, **values}))
    self._try((BOARD,), self._add_events, step, values)
    if not self.remote or time.monotonic() - self.flushed > REMOTE_EVERY:
      self.flush()

  def _add_line(self, line: str) -> None:
    if self.remote:
      self.lines.append(line)
    else:
      with open(self.folder / FILE, "a") as file:
        file.write(line + "\n")

  def _add_events(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self.board.add(summary.scalar(name, value), step)

  def picture(self, step: int, image_HWC: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, "png")
    path = self.folder / f"preview_{step:07d}.png"
    self._try((PICTURES,), path.write_bytes, content.getvalue())
    self._try((BOARD,), lambda: self.board.add(summary.image("preview", image_HWC, dataformats="HWC"), step))

  def flush(self) -> None:
    """Everything is on disk or in the bucket afterwards."""
    self.flushed = time.monotonic()
    if self.remote:
      self._try((LINES,), self._write_lines)
    self._try((BOARD,), lambda: self.board.flush())

  def close(self) -> None:
    self.flush()
    self._try((BOARD,), lambda: self.board.close())

  def _write_lines(self) -> None:
    storage.write_text(self.folder / FILE, "".join(line + "\n" for line in self.lines))

  def _try(self, kinds: Sequence[str], write: Callable, *args: Any) -> None:
    """After an error these kinds are written no more: a log with holes would be taken for a whole one."""
    if self.silent.issuperset(kinds):
      return
    try:
      write(*args)
    except Exception as error:  # of any file system, or of TensorBoard
      self.silent.update(kinds)
      what = " and ".join(kinds)
      print(f"warning: {self.folder}: no {what} from here on ({error}); training goes on", file=sys.stderr)


class Board:
  """A file of TensorBoard events, written by who adds them.

  SummaryWriter leaves that to a thread, and training waits for ever for one that has ended, say on a full disk. A
  bucket gets copies of a file on this machine.
  """

  def __init__(self, folder: epath.Path, first_step: int):
    """Events of a killed run from `first_step` on are hidden."""
    self.folder = folder
    self.here = tempfile.TemporaryDirectory(prefix="sora-") if storage.is_remote(folder) else None
    self.events = EventsWriter(os.path.join(self.here.name if self.here else folder, "events"))
    start = SessionLog(status=SessionLog.START)
    self.events.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

  def add(self, what: Any, step: int) -> None:
    """Adds a Summary."""
    self.events.write_event(Event(wall_time=time.time(), step=step, summary=what))

  def flush(self) -> None:
    self.events.flush()
    for file in epath.Path(self.here.name).iterdir() if self.here else ():
      (self.folder / file.name).write_bytes(file.read_bytes())

  def close(self) -> None:
    self.events.close()
    if self.here:
      self.here.cleanup()


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a run's `metrics.jsonl`, without one that a killed run left half written; empty when there is none."""
  path = epath.Path(folder) / FILE
  lines = path.read_text().splitlines() if path.exists() else []
  return [row for line in lines if (row := _row_of(line))]


def _row_of(line: str) -> dict[str, Any] | None:
  """One line's values, `step` among them; None of a line that a killed run left half written."""
  try:
    row = json.loads(line)
  except ValueError:
    return None
  return row if isinstance(row, dict) and "step" in row else None


def progress(name: str, total: int, done: int, shown: bool = True) -> tqdm:
  """A bar with ETA on stderr; a line every half minute where stderr is no terminal."""
  interactive = sys.stderr.isatty()
  return tqdm(
    desc=name,
    total=total,
    initial=done,
    file=sys.stderr,
    mininterval=0.3 if interactive else 30.0,
    dynamic_ncols=interactive,
    ascii=not interactive,
    disable=not shown,
  )
