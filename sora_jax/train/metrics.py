"""What a run reports: JSON lines and TensorBoard on disk, a progress bar on the terminal."""

import json
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsLog:
  """Writes `metrics.jsonl`, TensorBoard events and preview pictures under a folder.

  A resumed run cuts lines of steps that it will take again, so every step stands once.
  """

  def __init__(self, folder: pathlib.Path, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self.folder = folder
    self.path = folder / "metrics.jsonl"
    if self.path.exists():
      kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= first_step]
      self.path.write_text("".join(line + "\n" for line in kept))
    self.board = SummaryWriter(str(folder), purge_step=first_step + 1)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    with self.path.open("a") as file:
      file.write(json.dumps({"step": step, **values}) + "\n")
    for name, value in values.items():
      self.board.add_scalar(name, value, step)

  def picture(self, step: int, image_HWC: np.ndarray) -> None:
    Image.fromarray(image_HWC).save(self.folder / f"preview_{step:07d}.png")
    self.board.add_image("preview", image_HWC, step, dataformats="HWC")

  def close(self) -> None:
    self.board.close()


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a run's `metrics.jsonl`; empty when there is none."""
  path = pathlib.Path(folder) / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _step_of(line: str) -> float:
  """The step of one line; a line that a killed run left half written counts as past everything."""
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return float("inf")


def progress(name: str, total: int, done: int) -> tqdm:
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
  )
