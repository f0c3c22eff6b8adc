"""How long a run takes from the command to its transformer's first step: in a new workdir, and taken up again.

A transformer as deep as DiT-S, but narrow, so that steps on a CPU are short and compiling is what takes time. The first
start trains the autoencoder for a few steps, encodes 24 clips, trains until a step is logged, and is preempted. The
second, by the same command, finds autoencoder, latents, a checkpoint and, in the workdir's compile cache, its programs.
Both find Python's modules compiled.

    python benchmarks/restart.py [--pairs N] [--json] [--set KEY=VALUE ...]
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ("init", "compile", "data", "step", "checkpoint", "other")
LONGEST = 1800.0  # seconds to a first step
SHAPE = {"width": 128, "depth": 12, "heads": 2, "remat": "full", "text_width": 64, "text_depth": 4, "text_heads": 1}
CHANGES = {
  "data.clips": 24,
  "autoencoder.steps": 4,
  **{f"model.{key}": value for key, value in SHAPE.items()},
  "train.rows": 1,
  "train.steps": 1000,
  "train.log_every": 1,
  "train.checkpoint_every": 0,
}


def sora(command: str, workdir: pathlib.Path, settings: list[str]) -> list[str]:
  config = f"--config={ROOT / 'configs' / 'dit.py'}:runlocal=1"
  return [sys.executable, "-m", "sora_jax.cli.main", command, config, f"--workdir={workdir}", "--json", *settings]


def environment(folder: pathlib.Path) -> dict[str, str]:
  """With caches in `folder` instead of the caller's."""
  left_out = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
  kept = {name: value for name, value in os.environ.items() if name not in left_out}
  path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
  return {**kept, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(folder / "modules")}


def start(workdir: pathlib.Path, settings: list[str]) -> dict[str, float]:
  """Trains until a step is logged, and ends the run: seconds until that step, and what phases took them."""
  log, before = workdir / "logs" / "metrics.jsonl", spent(workdir)
  lines, begin, words = count(log), time.monotonic(), sora("train", workdir, settings)
  environ = environment(workdir.parent)
  with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ) as run:
    try:
      while count(log) <= lines:
        if run.poll() is not None or time.monotonic() - begin > LONGEST:
          raise RuntimeError(f"no first step: {run.stderr.read()[-2000:] if run.stderr else run.returncode}")
        time.sleep(0.01)
      seconds, after = time.monotonic() - begin, spent(workdir)
      run.send_signal(signal.SIGTERM)
      run.communicate(timeout=300)
    finally:
      run.kill()
  return {"seconds": seconds, **{name: after[name] - before.get(name, 0.0) for name in PHASES}}


def count(log: pathlib.Path) -> int:
  return len(log.read_text().splitlines()) if log.exists() else 0


def spent(workdir: pathlib.Path) -> dict[str, float]:
  path = workdir / "logs" / "goodput.json"
  return json.loads(path.read_text())["seconds"] if path.exists() else {}


def pair(folder: pathlib.Path, settings: list[str]) -> dict[str, Any]:
  """Both starts of a run in a new workdir."""
  found: dict[str, Any] = {name: start(folder / "run", settings) for name in ("first", "second")}
  ratio = found["second"]["seconds"] / found["first"]["seconds"]
  for name, seconds in found.items():
    print(f"{name:<7}" + "".join(f"{key} {value:>6.2f}   " for key, value in seconds.items()), flush=True)
  return {**found, "second_over_first": ratio}


def rounded(found: Any) -> Any:
  if isinstance(found, dict):
    return {key: rounded(value) for key, value in found.items()}
  return [rounded(value) for value in found] if isinstance(found, list) else round(found, 3)


def main() -> None:
  parser = argparse.ArgumentParser(description="time to the first step, at the first start and at the second")
  parser.add_argument("--pairs", type=int, default=5, metavar="N", help="of starts; their median ratio is reported")
  parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config value")
  arguments = parser.parse_args()
  settings = [f"--config.{key}={value}" for key, value in CHANGES.items()]
  settings += [f"--config.{each}" for each in arguments.set]
  pairs = []
  for _ in range(arguments.pairs):
    with tempfile.TemporaryDirectory(prefix="sora-restart-") as folder:
      compile_modules = [sys.executable, "-c", "import sora_jax.cli.main, sora_jax.jobs.train"]
      subprocess.run(compile_modules, check=True, env=environment(pathlib.Path(folder)))
      pairs.append(pair(pathlib.Path(folder), settings))
  ratio = statistics.median(each["second_over_first"] for each in pairs)
  print(f"the second start takes {ratio:.1%} of the first one's time (median of {len(pairs)})")
  if arguments.json:
    print(json.dumps(rounded({"second_over_first": ratio, "pairs": pairs})))


if __name__ == "__main__":
  main()
