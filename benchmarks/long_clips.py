"""Does a long clip need more memory than a short one, and how long does a minute take?

    python benchmarks/long_clips.py --workdir out/demo/run [--seconds 60] [--out out/long] [--json]

`sora sample` of one prompt, each in a process of its own: as long as training saw, and a minute. The last line is one
JSON object: {short: {frames, seconds, peak_mib}, long: {...}, memory_ratio, seconds_per_frame}; the clips stay in
--out.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys

PROMPT = "A small red circle in the centre of a dark background moves slowly rightwards and bounces off the walls."


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="of a trained transformer, or an exported folder")
  parser.add_argument("--seconds", type=float, default=60.0, help="of the long clip")
  parser.add_argument("--size", default="32x32", help="WIDTHxHEIGHT")
  parser.add_argument("--fps", type=float, default=10.0)
  parser.add_argument("--short", type=int, default=7, help="frames of the short clip")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/long"))
  parser.add_argument("--json", action="store_true", help="print the JSON object alone")
  given = parser.parse_args()
  given.out.mkdir(parents=True, exist_ok=True)
  short, long = sample(given, "short", given.short), sample(given, "long", round(given.seconds * given.fps))
  found = {
    "short": short,
    "long": long,
    "memory_ratio": round(long["peak_mib"] / short["peak_mib"], 4),
    "seconds_per_frame": round((long["seconds"] - short["seconds"]) / (long["frames"] - short["frames"]), 4),
  }
  if not given.json:
    for name in ("short", "long"):
      print(
        f"{name}: {found[name]['frames']} frames in {found[name]['seconds']} s, {found[name]['peak_mib']} MiB at most"
      )
  print(json.dumps(found))


def sample(given: argparse.Namespace, name: str, frames: int) -> dict:
  """One `sora sample`, in a process whose memory is its own."""
  words = ["--checkpoint", given.workdir, "--prompt", PROMPT, "--size", given.size, "--frames", str(frames)]
  words += ["--fps", str(given.fps), "--seed", "0", "--out", str(given.out / f"{name}.mp4"), "--overwrite", "--json"]
  reader, writer = os.pipe()
  child = os.fork()
  if not child:  # so that the largest process among the children is this one's
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "sora_jax.cli", "sample", *words], stdout=subprocess.PIPE, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with os.fdopen(writer, "w") as stream:
      json.dump({"status": done.returncode, "said": done.stdout, "peak_mib": round(peak / 1024, 1)}, stream)
    os._exit(0)
  os.close(writer)
  with os.fdopen(reader) as stream:
    told = json.load(stream)
  os.waitpid(child, 0)
  if told["status"]:
    raise SystemExit(f"sora sample ended with exit status {told['status']}")
  made = json.loads(told["said"].splitlines()[-1])
  return {"frames": made["frames"], "seconds": made["seconds"], "peak_mib": told["peak_mib"]}


if __name__ == "__main__":
  main()
