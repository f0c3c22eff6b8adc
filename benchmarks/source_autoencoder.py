"""What does an autoencoder leave of clips from any source: PSNR beside the best linear code of its size.

    python benchmarks/source_autoencoder.py --workdir W [--source NAME] [--json]

W is the workdir of an autoencoder, or of a transformer with its own in it. The clips are those that it was trained on,
at the sizes and rates that training saw them; of `--source` (as `data.source`) instead, which is then held out. The
linear code is fitted on training's clips. A line a clip; the last line is one JSON object: {values_in_one, psnr_db,
psnr_linear_db, clips: [{file, line, frames, height, width, psnr_db, psnr_linear_db}]}.
"""

import argparse
import json
import pathlib

import numpy as np
from worlds_autoencoder import loaded

from sora_jax.data.sources import open_source, seed_of
from sora_jax.evaluation import fidelity
from sora_jax.evaluation.simulation import through
from sora_jax.runtime import process


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--source", help="other clips than those of training")
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  process.keep_freed_memory()
  process.compile_sooner()
  found = measured(given.workdir, given.source)
  if not given.json:
    for row in found["clips"]:
      size = f"{row['width']}x{row['height']} x {row['frames']}"
      print(f"{row['psnr_db']:6.2f} dB, linear {row['psnr_linear_db']:6.2f} dB   {size:13s} {row['file']}")
  print(json.dumps(found))


def measured(workdir: pathlib.Path, other: str | None) -> dict:
  config, codec = loaded(workdir)
  grid = codec.grid(config.model.patch)
  seen = open_source(config.data, seed_of(config), grid)
  fitted = [seen[index].frames_THWC for index in range(len(seen))]
  linear = fidelity.LinearCode(fitted, codec.config.compression, codec.config.channels)
  source, rows = seen, []
  if other is not None:
    config.data.update(source=other, weights=())
    source = open_source(config.data, seed_of(config), grid, held_out=True)
  for index in range(len(source)):
    real = source[index].frames_THWC
    file, line = source.where(index)
    frames, height, width = real.shape[:3]
    row = {"file": file, "line": line, "frames": frames, "height": height, "width": width}
    row["psnr_db"] = round(fidelity.psnr(through(codec, [real]), [real]), 2)
    rows.append(row | {"psnr_linear_db": round(fidelity.psnr([linear(real)], [real]), 2)})
  mean = {name: round(float(np.mean([row[name] for row in rows])), 2) for name in ("psnr_db", "psnr_linear_db")}
  values = 3 * int(np.prod(codec.config.compression)) / codec.config.channels
  return {"values_in_one": round(values, 2), **mean, "clips": rows}


if __name__ == "__main__":
  main()
