"""Training as a Slurm job on one or more nodes with GPUs.

    python launch/slurm.py submit --name xl --nodes 4 --gpus 8 --time 24:00:00 --config ... --workdir ... [--set ...]

`submit` writes a batch script and hands it to sbatch. The script runs `slurm.py job`, which starts training by srun on
all nodes, and

    two minutes before the time limit   asks training to save and stop, and puts the job back in the queue
    exit code 75                        puts the job back in the queue
    any other code                      starts it again in the same job, at most --max_restarts times

JAX reads its place among the processes from Slurm's variables: one task a GPU, or one a node that names its GPUs.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys

import common

NOTICE = 120  # seconds
# Not TERM: `scancel JOB` may send that to the script too, and a job that its owner ends must not come back.
WARNING = signal.SIGUSR1
WORD = common.checked(r"[\w.,:@+/\[\]&|*-]+", "a plain word")
OPTION = common.checked(r"--[a-z][a-z-]*(=[\w.,:@+/\[\]&|*-]+)?", "an option of sbatch such as --mem=0")
TIME = common.checked(r"([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}", "a time limit such as 24:00:00 or 2-12:00:00")
# A task that ends must not have the others killed while they save: srun's exit code would be theirs.
SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=60"]


def script(args: argparse.Namespace) -> str:
  per_gpu = args.tasks == "gpu"
  options = {
    "job-name": args.name,
    "nodes": args.nodes,
    "ntasks-per-node": args.gpus if per_gpu else 1,
    "gpus-per-node": args.gpus,
    "cpus-per-task": args.cpus,
    "time": args.time,
    "partition": args.partition,
    "account": args.account,
    "qos": args.qos,
    "constraint": args.constraint,
    "signal": f"B:{WARNING.name.removeprefix('SIG')}@{NOTICE}",
    "open-mode": "append",
  }
  lines = [f"--{name}={value}" for name, value in options.items() if value is not None] + ["--requeue", *args.sbatch]
  # JAX gives each process the GPU of its rank on the node, which leaves the others idle where it is the only one.
  env = [] if per_gpu else [f"JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(args.gpus)))}"]
  job = [sys.executable, str(common.ROOT / "launch" / "slurm.py"), "job"]
  job += [f"--max_restarts={args.max_restarts}", f"--pause={args.pause:g}", "--"]
  # srun does not inherit it since Slurm 22.05.
  cpus = [f"--cpus-per-task={args.cpus}"] if args.cpus else []
  words = [*job, *SRUN, *cpus, *common.training(args, args.sora, env)]
  return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), f"exec {shlex.join(words)}", ""])


def submit(args: argparse.Namespace) -> int:
  text = script(args)
  path = common.FILES / f"{args.name}.sbatch"
  log = f"{common.FILES / args.name}".replace("%", "%%") + "-%j.log"
  # Relative paths mean there what they mean here.
  words = ["sbatch", "--parsable", f"--chdir={os.getcwd()}", f"--output={log}", str(path)]
  if args.dry_run:
    print(text, end="")
    common.show([words])
    return 0
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding="utf-8")
  result = common.capture(words, 120)
  if result.code:
    raise common.LaunchError(f"sbatch refused {path}: {result.reason}")
  job = result.out.strip().split(";")[0]
  print(f"job {job}: squeue --job={job} shows it, scancel {job} ends it; log {log.replace('%j', job)}")
  return 0


class Job(common.Supervisor):
  """Supervises srun inside the job."""

  def __init__(self, words: list[str], restarts: common.Restarts, number: str):
    super().__init__(words, restarts, (signal.SIGTERM, signal.SIGINT, WARNING))
    self.number = number

  def pass_on(self, child: subprocess.Popen, number: int) -> None:
    # srun kills its tasks when it gets TERM itself; this reaches the tasks alone.
    common.capture(["scancel", "--signal=TERM", self.number], 60)

  def ask_again(self, code: int) -> float | None:
    if code and self.received == WARNING or code == common.REQUEUE and self.received is None:
      self.requeue()
      return None
    return super().ask_again(code)

  def requeue(self) -> None:
    common.say(f"putting job {self.number} back in the queue")
    result = common.capture(["scontrol", "requeue", self.number], 60)
    if result.code:
      raise common.LaunchError(f"scontrol did not requeue: {result.reason}; submit the job again", common.REQUEUE)


def job(argv: list[str], words: list[str]) -> int:
  parser = common.Parser(prog="slurm.py job")
  common.add_restarts(parser)
  args = parser.parse_args(argv)
  number = os.environ.get("SLURM_JOB_ID", "")
  if not number.isdecimal() or not words:
    raise common.LaunchError("slurm.py job runs inside a Slurm job: use slurm.py submit", 2)
  return Job(words, common.Restarts(args.max_restarts, args.pause), number).run()


def program(argv: list[str]) -> int:
  own, rest = common.split_rest(argv)
  if own[:1] == ["job"]:
    return job(own[1:], rest)
  parser = common.Parser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(required=True, metavar="submit")
  submits = commands.add_parser("submit", help="write the batch script and submit it")
  submits.add_argument("--name", type=common.NAME, default="sora", help="of the job and its files")
  submits.add_argument("--nodes", type=common.positive, default=1)
  submits.add_argument("--gpus", type=common.positive, default=8, help="of a node")
  submits.add_argument("--tasks", choices=("gpu", "node"), default="gpu", help="one process a GPU, or one a node")
  submits.add_argument("--cpus", type=common.positive, help="of a task")
  submits.add_argument("--time", type=TIME, required=True, help="limit of the job; it is requeued before that")
  for name in ("partition", "account", "qos", "constraint"):
    submits.add_argument(f"--{name}", type=WORD)
  submits.add_argument(
    "--sbatch", action="append", default=[], type=OPTION, help="any other option, say --sbatch=--mem=0"
  )
  submits.add_argument("--sora", type=common.plain, default=common.sora_path(), help="the command, on every node")
  common.add_training(submits)
  common.add_restarts(submits)
  return submit(parser.parse_args(argv))


if __name__ == "__main__":
  common.main(program)
