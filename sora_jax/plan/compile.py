"""Examines programs in a separate process, for TPUs that this machine need not have or for its own devices.

libtpu reads its environment when JAX starts, takes gigabytes of memory, and may abort its process.

  python -m sora_jax.plan.compile < request.json      a request of `_asked`; the last line answers it
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from typing import Any

from sora_jax.errors import SoraError
from sora_jax.plan import chips

MINUTES = 60  # most that one compilation may take
# Settings of libtpu where there is no TPU: it asks the machine for nothing, and several processes may load it.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}
# libtpu would read these too, with other effects; its own flags are in LIBTPU_INIT_ARGS, which stays.
FOREIGN = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")


class CompileError(SoraError, RuntimeError):
  """A program does not compile; says why."""


def missing() -> str | None:
  """What to install before TPUs can be compiled for; None where nothing is missing."""
  return None if importlib.util.find_spec("libtpu") else "pip install -c constraints.txt -e '.[plan]'"


def examine(config: Any, row_clip: float, where: chips.Slices | None) -> dict[str, Any]:
  """`step.examine` as a dict; without `where` for this machine's devices, and not compiled where libtpu is missing.

  Args:
    row_clip: see `flops.Rows.clip`.

  Raises:
    CompileError: one line.
  """
  return _asked("the train step", config, where, {"row_clip": row_clip})


def examine_sampling(config: Any, shape_THW: tuple[int, int, int], where: chips.Slices | None) -> dict[str, Any]:
  """`calls.examine`, in the same way.

  Raises:
    CompileError: one line.
  """
  return _asked("sampling", config, where, {"clip": shape_THW})


def _asked(program: str, config: Any, where: chips.Slices | None, about: dict[str, Any]) -> dict[str, Any]:
  """The answer to a request, whose keys say what is examined."""
  environment = dict(os.environ)
  if where:
    environment = {key: value for key, value in environment.items() if key not in FOREIGN} | ENVIRONMENT
    if missing():  # as many devices, only to lay arrays over
      environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={where.chips}"
  topology = [where.chip.name, where.sides, where.count] if where else None
  request = json.dumps({"config": json.loads(config.to_json()), "topology": topology} | about)
  target = where.topology if where else "this machine's devices"
  command = [sys.executable, "-m", "sora_jax.plan.compile"]
  try:
    done = subprocess.run(
      command, input=request, env=environment, capture_output=True, text=True, timeout=60 * MINUTES, check=False
    )
  except subprocess.TimeoutExpired as error:
    raise CompileError(f"compiling {program} for {target} took more than {MINUTES} minutes") from error
  last = done.stdout.splitlines()[-1] if done.stdout else ""
  answer = json.loads(last) if last.startswith("{") else {}
  if "error" in answer or not answer:
    raise CompileError(f"{program} does not compile for {target}: {answer.get('error') or _reason(done)}")
  return answer


def _reason(done: subprocess.CompletedProcess) -> str:
  """Why a process ended without an answer, in one line."""
  if done.returncode == -signal.SIGKILL:
    return "SIGKILL ended the compiler: this machine has too little memory for it"
  if done.returncode < 0:
    return f"{signal.Signals(-done.returncode).name} ended the compiler"
  said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
  return said[-1].strip()[:500]


def main() -> None:
  try:
    answer = _answer(json.load(sys.stdin))
  except Exception as error:  # of any kind: the calling process reports it in one line
    if os.environ.get("SORA_TRACEBACK"):
      raise
    answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"}
  print(json.dumps(answer))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
  import jax
  import ml_collections

  from sora_jax.packing.batch import RowShape
  from sora_jax.plan import calls, step
  from sora_jax.plan.flops import Rows

  config = ml_collections.ConfigDict(request["config"])
  where: chips.Slices | None
  if request["topology"]:
    name, sides, count = request["topology"]
    where = chips.Slices(chips.CHIPS[name], tuple(sides), count)
    devices = jax.devices() if missing() else described(where)
  else:
    devices = jax.devices()
    chip = chips.chip_of(devices[0].device_kind)
    where = chips.Slices(chip, (len(devices),)) if chip and not chip.sides else None
  compiles = not (request["topology"] and missing())
  if "clip" in request:
    return calls.examine(config, tuple(request["clip"]), devices, where, compiles)
  rows = Rows(config.train.rows, RowShape.of(config), request["row_clip"])
  found = step.examine(config, rows, devices, where, compiles)
  answer = found._asdict()
  if found.compiled:
    answer["compiled"] = found.compiled._asdict()
  return answer


def described(where: chips.Slices) -> list[Any]:
  """The devices of slices that this machine need not have."""
  from jax.experimental import topologies

  several = {"num_slices": where.count} if where.count > 1 else {}
  return topologies.get_topology_desc(topology_name=where.topology, platform="tpu", **several).devices


if __name__ == "__main__":
  main()
