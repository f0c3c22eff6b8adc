"""What one NVIDIA GPU makes of the attention kernel and of DiT-XL's train step, PyTorch beside it; one JSON file.

    benchmarks/gpu.sh [OUT.json] [WHEELS]                  all of it, in at most 9 minutes
    python benchmarks/gpu.py --out OUT.json [--seconds N] [--tiny]

Each part is a process of its own and bounded in time. One that fails or runs out of time leaves its `error`, and the
end of its `log`, beside what it had by then, and the next goes on. `--tiny` runs all of it at a small size on any
machine, for tests. `gpu_parts.py` says what the parts measure, and under which names.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

# What the parts import, and what that imports, that an environment with JAX may lack: module, and its distribution.
NEEDED = {
  "absl": "absl-py",
  "chex": "chex",
  "etils": "etils",
  "flax": "flax",
  "google.protobuf": "protobuf",
  "humanize": "humanize",
  "markdown_it": "markdown-it-py",
  "mdurl": "mdurl",
  "ml_collections": "ml-collections",
  "msgpack": "msgpack",
  "optax": "optax",
  "orbax": "orbax-checkpoint",
  "pygments": "pygments",
  "rich": "rich",
  "sentencepiece": "sentencepiece",
  "simplejson": "simplejson",
  "tensorstore": "tensorstore",
  "toolz": "toolz",
  "treescope": "treescope",
  "typing_extensions": "typing-extensions",
  "uvloop": "uvloop",
  "yaml": "pyyaml",
}
# Share of the time that a part gets, and of the GPU's memory that JAX takes at once (0: as it needs it).
PARTS = {"sweep": (0.15, 0.7), "attention": (0.2, 0.9), "train_step": (0.4, 0.92), "peer": (0.25, 0.0)}


def run_part(part: str, seconds: float, tiny: bool) -> dict[str, Any]:
  """What a part's process said last, and how it ended."""
  share = PARTS[part][1]
  memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(share)} if share else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  script = pathlib.Path(__file__).with_name("gpu_parts.py")
  command = [sys.executable, str(script), part, f"--seconds={seconds:.0f}", *(["--tiny"] if tiny else [])]
  begun = time.monotonic()
  with subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | memory,
    start_new_session=True,  # PyTorch's process ends with it
  ) as process:
    try:
      out, err = process.communicate(timeout=seconds)
      error = None if process.returncode == 0 else (err.strip().splitlines() or [f"status {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      (out, err), error = process.communicate(), f"it took more than {seconds:.0f} s"
  lines = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
  found = ({"error": error[:500]} if error else {}) | (json.loads(lines[-1]) if lines else {})
  if any(name.endswith("error") for name in found):
    found["log"] = err[-3000:]
  return {**found, "took_seconds": round(time.monotonic() - begun, 1)}


def machine() -> dict[str, Any]:
  """What this runs on, asked in a process of its own: JAX takes the GPU's memory."""
  script = (
    "import jax, json, platform; device = jax.devices()[0]; "
    "print(json.dumps({'device': device.device_kind, 'platform': device.platform, 'jax': jax.__version__, "
    "'python': platform.python_version()}))"
  )
  try:
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(found.stdout.splitlines()[-1])
  except (subprocess.SubprocessError, ValueError, IndexError) as error:
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}


def installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # not even the package that it is in
    return False


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu.json"), help="the JSON file to write")
  parser.add_argument("--seconds", type=float, default=510.0, help="for all parts (default 510)")
  parser.add_argument("--tiny", action="store_true", help="a small size, for any machine")
  parser.add_argument("--missing", action="store_true", help="print which packages this needs and lacks, and end")
  given = parser.parse_args()
  if given.missing:
    print(*(name for module, name in NEEDED.items() if not installed(module)))
    return
  end, found = time.monotonic() + given.seconds, {"machine": machine(), "tiny": given.tiny}
  left = sum(share for share, _ in PARTS.values())
  for part, (share, _) in PARTS.items():
    found[part] = run_part(part, (end - time.monotonic()) * share / left, given.tiny)
    left -= share
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{part}: {found[part].get('error', 'done')} ({found[part]['took_seconds']} s)", flush=True)


if __name__ == "__main__":
  main()
