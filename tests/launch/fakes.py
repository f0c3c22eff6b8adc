"""Stand-ins for kubectl, Slurm, git and `sora`, which keep their state in a folder and act like the real ones.

`install` writes one small program a name, to be first on PATH; each calls the function of that name here, or that
of fake_gcloud.py. Training is a process that counts steps into its workdir, so what survives a preemption can be seen.
The standard library only: these run without site packages.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "scancel", "git", "sora", "python3.13")
STEP = 0.04  # seconds


def install(folder: pathlib.Path) -> dict[str, str]:
  """The environment in which the stand-ins are found before anything else."""
  bin_, cloud = folder / "bin", folder / "cloud"
  bin_.mkdir(parents=True)
  cloud.mkdir()
  for name in NAMES:
    write_program(bin_ / name, name)
  # The Python that is on the machines, started in half the time without its site packages.
  base = pathlib.Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
  (bin_ / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(str(base))} -IS "$@"\n')
  (bin_ / "python3").chmod(0o755)
  kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "XLA", "CUDA", "JAX"))}
  path = os.pathsep.join([str(bin_), str(pathlib.Path(sys.executable).parent), "/usr/bin", "/bin"])
  return kept | {"PATH": path, "FAKE_CLOUD": str(cloud), "SORA_STOP_SECONDS": "5", "PYTHONDONTWRITEBYTECODE": "1"}


def write_program(path: pathlib.Path, name: str) -> None:
  path.write_text(
    f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.launch import fakes\n"
    f"sys.exit(fakes.main({name!r}, sys.argv[1:]))\n"
  )
  path.chmod(0o755)


def main(name: str, argv: list[str]) -> int:
  if name not in ("sora", "python3.13"):
    with open(cloud() / "calls.jsonl", "a") as calls:
      calls.write(json.dumps([name, *argv]) + "\n")
  if name == "gcloud":
    from tests.launch import fake_gcloud

    return fake_gcloud.main(argv)
  return globals()[name.replace("python3.13", "python")](argv)


def cloud() -> pathlib.Path:
  return pathlib.Path(os.environ["FAKE_CLOUD"])


def load() -> dict:
  path = cloud() / "state.json"
  return json.loads(path.read_text()) if path.exists() else {}


@contextlib.contextmanager
def changing():
  """The state, which is saved afterwards and which nobody else changes meanwhile."""
  with open(cloud() / "lock", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    state = load()
    yield state
    save(state)


def update(**state) -> None:
  with changing() as now:
    now.update(state)


def save(state: dict) -> None:
  part = cloud() / "state.part"
  part.write_text(json.dumps(state))
  part.replace(cloud() / "state.json")


def fail(message: str, code: int = 1) -> int:
  print(message, file=sys.stderr)
  return code


def flag(argv: list[str], name: str, default: str = "") -> str:
  return next((word.split("=", 1)[1] for word in argv if word.startswith(f"--{name}=")), default)


# Training.


def sora(argv: list[str]) -> int:
  """Counts to --config.train.steps in the workdir. `faults.json` there: {step: exit code}, each once; `slow`: how many
  times longer its steps take. It leaves the account, metrics and checkpoint by which a sweep's status is told."""
  work = pathlib.Path(flag(argv, "workdir"))
  work.mkdir(parents=True, exist_ok=True)
  steps = int(flag(argv, "config.train.steps", "6"))
  names = ("TPU_WORKER_ID", "SLURM_PROCID", "JOB_COMPLETION_INDEX")
  rank = next((int(os.environ[name]) for name in names if name in os.environ), 0)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  if rank:
    return follow(work, steps)
  account = Account(work)
  try:
    code = lead(work, steps, argv, account)
  except SystemExit:
    account.end("Preempted: SIGTERM")
    raise
  account.end("done" if code == 0 else f"SoraError: fault {code}")
  if code == 0:
    (work / "logs" / "metrics.jsonl").write_text(json.dumps({"step": steps, "held_out": 1 / steps}) + "\n")
    (work / "checkpoints" / str(steps)).mkdir(parents=True, exist_ok=True)
  return code


class Account:
  """What goodput.json says of a run, written at every step; see sora_jax/runtime/goodput.py."""

  def __init__(self, work: pathlib.Path):
    self.path = work / "logs" / "goodput.json"
    before = json.loads(self.path.read_text()) if self.path.exists() else {}
    self.starts, ends = before.get("starts", 0) + 1, before.get("ends", [])
    self.ends = ends + ["killed"] * (self.starts - 1 - len(ends))
    self.seconds = before.get("models", {}).get("transformer", {}).get("seconds", 0.0)
    self.step = done(work)

  def reached(self, step: int, seconds: float) -> None:
    self.step, self.seconds = step, self.seconds + seconds
    self.write()

  def end(self, how: str) -> None:
    self.ends.append(how)
    self.write()

  def write(self) -> None:
    phases = ("init", "compile", "data", "step", "eval", "checkpoint", "other", "lost")
    content = {
      "wall_seconds": self.seconds, "starts": self.starts, "ends": self.ends, "lost_steps": 0,
      "seconds": dict.fromkeys(phases, 0.0), "models": {"transformer": {"step": self.step, "seconds": self.seconds}},
    }  # fmt: skip
    self.path.parent.mkdir(exist_ok=True)
    part = self.path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(self.path)


def lead(work: pathlib.Path, steps: int, argv: list[str], account: Account) -> int:
  (work / "pid").write_text(str(os.getpid()))
  at = done(work)
  with open(work / "starts.jsonl", "a") as starts:
    starts.write(json.dumps({"step": at, "argv": argv, "mark": os.environ.get("FAKE_MARK")}) + "\n")
  took = STEP * (int((work / "slow").read_text()) if (work / "slow").exists() else 1)
  while at < steps:
    time.sleep(took)
    if at >= min(load().get("preempt") or [steps]) or at >= load().get("taken", {}).get(str(work), steps):
      continue  # the machine is taken away at this step, however late gcloud is asked
    at += 1
    account.reached(at, took)  # as long as it sleeps: what a loaded machine adds is not the run's
    (work / "step.part").write_text(str(at))
    (work / "step.part").replace(work / "step")
    print(f"step {at} of {steps}", flush=True)
    faults = json.loads((work / "faults.json").read_text()) if (work / "faults.json").exists() else {}
    if code := faults.pop(str(at), 0):
      (work / "faults.json").write_text(json.dumps(faults))
      print(f"fault {code} at step {at}", file=sys.stderr, flush=True)
      return code
  return 0


def follow(work: pathlib.Path, steps: int) -> int:
  """The other processes end when the first one has, as those of JAX do."""
  seen = False
  while done(work) < steps:
    time.sleep(STEP / 2)
    alive = (work / "pid").exists() and running(int((work / "pid").read_text() or 0))
    if seen and not alive and done(work) < steps:
      return 134
    seen = alive
  return 0


def done(work: pathlib.Path) -> int:
  return int((work / "step").read_text()) if (work / "step").exists() else 0


def running(pid: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except OSError:
    return False
  return state not in "ZX"


def python(argv: list[str]) -> int:
  """Python with venv and pip, as far as installing needs them."""
  if argv[:1] == ["-c"]:
    return 0
  if argv[:2] == ["-m", "venv"]:
    folder = pathlib.Path(argv[2]) / "bin"
    folder.mkdir(parents=True)
    write_program(folder / "python", "python3.13")
    return 0
  assert argv[:2] == ["-m", "pip"] and "constraints.txt" in argv and pathlib.Path("constraints.txt").exists()
  write_program(pathlib.Path(".venv/bin/sora"), "sora")
  return 0


def git(argv: list[str]) -> int:
  if "status" in argv:
    print(load().get("changes", ""), end="")
    return 0
  import tarfile  # here, because it takes longer than all the rest

  with tarfile.open(flag(argv, "output"), "w:gz") as archive:
    for name in ("launch/worker.py", "constraints.txt"):
      archive.add(ROOT / name, flag(argv, "prefix") + name)
  return 0


# Slurm: `sbatch` keeps the script, and `run_job` plays the scheduler.


def sbatch(argv: list[str]) -> int:
  state = load()
  if state.get("refuse"):
    return fail("sbatch: error: invalid partition specified: gold")
  queue = [*state.get("queue", []), argv[-1]]
  update(script=argv[-1], chdir=flag(argv, "chdir"), output=flag(argv, "output"), again=True, queue=queue)
  print("77;cluster")
  return 0


def run_job(
  env: dict[str, str], warn_at: list[int] = (), workdir: pathlib.Path | None = None, dies_at: int | None = None
) -> list[int]:
  """Runs the submitted job, again each time it is requeued, and warns it at those steps; gives its exit codes.

  Args:
    dies_at: the step at which its node is lost with all that runs there.
  """
  os.environ["FAKE_CLOUD"] = env["FAKE_CLOUD"]
  state, codes, warnings = load(), [], list(warn_at)
  options = [line.split()[1] for line in pathlib.Path(state["script"]).read_text().splitlines() if "#SBATCH" in line]
  tasks = int(flag(options, "nodes")) * int(flag(options, "ntasks-per-node"))
  number = getattr(signal, "SIG" + flag(options, "signal").removeprefix("B:").split("@")[0])
  while load()["again"]:
    update(again=False, tasks=[])
    job = subprocess.Popen(
      ["bash", state["script"]],
      cwd=state["chdir"],
      env=env | {"SLURM_JOB_ID": "77", "SLURM_NTASKS": str(tasks)},
      stderr=subprocess.DEVNULL,
      start_new_session=dies_at is not None,
    )
    while job.poll() is None:
      time.sleep(0.01)
      if warnings and done(workdir) >= warnings[0]:
        warnings.pop(0)
        job.send_signal(number)
      if dies_at is not None and done(workdir) >= dies_at:
        os.killpg(job.pid, signal.SIGKILL)
        for task in load()["tasks"]:
          os.kill(task, signal.SIGKILL)
        job.wait()
    codes.append(job.returncode)
  return codes


def srun(argv: list[str]) -> int:
  words = argv[next(i for i, word in enumerate(argv) if not word.startswith("--")) :]
  count = int(os.environ["SLURM_NTASKS"])
  tasks = [subprocess.Popen(words, env=os.environ | {"SLURM_PROCID": str(rank)}) for rank in range(count)]

  def forced(*_):
    for task in tasks:
      task.kill()

  signal.signal(signal.SIGTERM, forced)
  update(tasks=[task.pid for task in tasks])
  codes = [task.wait() for task in tasks]
  return max(code if code >= 0 else 128 - code for code in codes)


def scancel(argv: list[str]) -> int:
  assert argv == ["--signal=TERM", "77"]
  for pid in load()["tasks"]:
    if running(pid):
      os.kill(pid, signal.SIGTERM)
  return 0


def scontrol(argv: list[str]) -> int:
  if load().get("no_requeue"):
    return fail("slurm_requeue error: Access/permission denied")
  assert argv == ["requeue", "77"]
  update(again=True)
  return 0


# GKE: `kubectl create` keeps the JobSet, and `run_jobset` plays the controllers.


def kubectl(argv: list[str]) -> int:
  state = load()
  if "create" in argv:
    with open(flag(argv, "filename")) as file:
      jobset = json.load(file)
    if state.get("jobset"):
      return fail('Error from server (AlreadyExists): error when creating: jobsets "x" already exists')
    update(jobset=jobset)
    print(f"jobset.jobset.x-k8s.io/{jobset['metadata']['name']} created")
  elif "delete" in argv:
    update(jobset=None)
  return 0


def expand(text: str, env: dict[str, str]) -> str:
  """$(NAME) as Kubernetes replaces it, and $$ as it reads it."""
  out, rest = "", text
  while rest:
    if rest.startswith("$$"):
      out, rest = out + "$", rest[2:]
    elif rest.startswith("$(") and ")" in rest:
      name, _, rest = rest[2:].partition(")")
      out += env.get(name, f"$({name})")
    else:
      out, rest = out + rest[0], rest[1:]
  return out


def run_jobset(env: dict[str, str], evict_at: list[int] = (), workdir: pathlib.Path | None = None) -> dict:
  """Runs the JobSet to its end; pods are evicted when training is at those steps."""
  os.environ["FAKE_CLOUD"] = env["FAKE_CLOUD"]
  jobset, evictions = load()["jobset"], list(evict_at)
  policy, (replicated,) = jobset["spec"]["failurePolicy"], jobset["spec"]["replicatedJobs"]
  attempts, counted = 0, 0
  while True:
    attempts += 1
    reason = run_pods(replicated["template"]["spec"], env, evictions, workdir)
    if reason is None:
      return {"ended": "Completed", "attempts": attempts, "counted": counted}
    action = next((r["action"] for r in policy["rules"] if reason in r["onJobFailureReasons"]), "RestartJobSet")
    counted += action == "RestartJobSet"
    if counted > policy["maxRestarts"]:
      return {"ended": "Failed", "attempts": attempts, "counted": counted}


def run_pods(job: dict, env: dict[str, str], evictions: list[int], workdir: pathlib.Path | None) -> str | None:
  """One attempt: None where all pods succeed, else why the job failed."""
  (container,) = job["template"]["spec"]["containers"]
  own = {}
  for each in container["env"]:
    own[each["name"]] = expand(each["value"], own)
  words = [expand(word, own) for word in container["command"]]
  assert job["completions"] == job["parallelism"] and job["template"]["spec"]["restartPolicy"] == "Never"
  pods = [
    subprocess.Popen(words, env=env | own | {"JOB_COMPLETION_INDEX": str(rank)}, stderr=subprocess.DEVNULL)
    for rank in range(job["parallelism"])
  ]
  evicted = False
  while any(pod.poll() is None for pod in pods) and not any(pod.returncode for pod in pods):
    time.sleep(0.005)
    if evictions and done(workdir) >= evictions[0]:
      evictions.pop(0)
      evicted = True
      pods[0].kill()
      pods[0].wait()
  failed = [pod.returncode for pod in pods if pod.returncode]
  for pod in pods:
    pod.kill()
    pod.wait()
  if not failed:
    return None
  for rule in job["podFailurePolicy"]["rules"]:
    exits = rule.get("onExitCodes", {"values": []})
    assert rule["action"] == "FailJob" and exits.get("operator", "In") == "In"
    if set(failed) & set(exits["values"]) or evicted and "onPodConditions" in rule:
      return "PodFailurePolicy"
  return "BackoffLimitExceeded"
