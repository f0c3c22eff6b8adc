"""Training on a TPU pod by queued resources: no Kubernetes, no Pathways, and it comes back after a preemption.

    python launch/tpu_pod.py run NAME --zone Z --accelerator v5litepod-16 --runtime R --spot --config ... --workdir gs://...
    python launch/tpu_pod.py create|status|ssh|stop|delete NAME --zone Z

`run` creates the resource, waits for it, uploads the committed code (`git archive`), installs it on every worker,
starts `sora train` there and watches. Training goes on by itself: `run` may be interrupted, and the same command
resumes watching.

    the resource is preempted or fails    it is deleted and created again; training resumes from its workdir
    exit code 75                          training is started again at once
    any other exit code                   it is started again, at most --max_restarts times with growing pauses
    exit code 0                           the resource is deleted, unless --keep
"""

import argparse
import os
import shlex
import signal

import common
import gcloud
from gcloud import ACTIVE, UNKNOWN, Pod
from pod_run import Run

ZONE = common.checked(r"[a-z]+-[a-z]+[0-9]{1,2}-[a-z]", "a zone such as us-central2-b")
PROJECT = common.checked(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project's id")
ACCELERATOR = common.checked(r"v[0-9]{1,2}[a-z]*-[1-9][0-9]{0,5}", "an accelerator type such as v4-32 or v5litepod-16")
RUNTIME = common.checked(r"[a-z0-9][a-z0-9.-]*", "a runtime version such as v2-alpha-tpuv5-lite")
DURATION = common.checked(r"[1-9][0-9]{0,5}[smhd]", "a duration such as 6h")
WORKER = common.checked(r"all|[0-9]{1,4}", "a worker's number, or all")
REF = common.checked(r"[A-Za-z0-9][\w./^~-]*", "a commit, branch or tag")


def script(text: str) -> str:
  if "," in common.plain(text):  # gcloud takes a list there
    raise argparse.ArgumentTypeError(f"{text!r} has a comma: rename the file")
  if not os.path.isfile(text):
    raise argparse.ArgumentTypeError(f"{text!r} is not a file")
  return text


def run(args: argparse.Namespace, argv: list[str]) -> int:
  if not args.workdir.startswith(("gs://", "/")):
    raise common.LaunchError(
      f"--workdir {args.workdir}: a pod's disks go with it; give gs://BUCKET/RUN, or the full path of a mounted bucket",
      2,
    )
  job = Run(pod_of(args), args)
  if args.dry_run:
    common.show(job.plan())
    return 0
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    return job.go()
  except KeyboardInterrupt:
    same = shlex.join(["python", "launch/tpu_pod.py", *argv])
    raise common.LaunchError(
      f"interrupted; {args.name} and what trains on it go on. Take it up: `{same}`. Remove it: "
      f"`{job.pod.again('delete')}`",
      130,
    ) from None


def create(args: argparse.Namespace) -> int:
  job = Run(
    pod_of(args), argparse.Namespace(**vars(args), config="", workdir="", set=[], env=[], keep=True, ref="HEAD")
  )
  if args.dry_run:
    common.show(job.plan()[:3])
    return 0
  job.get_active()
  return 0


def status(args: argparse.Namespace) -> int:
  pod = pod_of(args)
  if args.dry_run:
    common.show([pod.describe(), pod.on_workers("status")])
    return 0
  seen = gcloud.see(pod)
  if seen.state == UNKNOWN:
    raise common.LaunchError(f"gcloud tells nothing of {pod.name}: {seen.error}")
  print(f"{pod.name}: {seen.state} {seen.accelerator} {seen.error}".rstrip())
  if seen.state == ACTIVE:
    result = common.capture(pod.on_workers("status"), gcloud.QUICK)
    found = gcloud.reports(result)
    if found is None:
      print(f"the workers don't tell: {result.reason}")
    for report in found or ():
      ended = "" if report["code"] is None else f" with exit status {report['code']}"
      print(f"{report['sora_worker']}: {report['state']}{ended}  {(report['tail'] or [''])[-1]}")
  return 0


def one(args: argparse.Namespace, words: list[str]) -> int:
  """A command that is one command of gcloud."""
  if args.dry_run:
    common.show([words])
    return 0
  return common.call(words)


def pod_of(args: argparse.Namespace) -> Pod:
  given = vars(args)
  names = ("accelerator", "runtime", "tier", "valid_until", "startup_script")
  kept = {name: given[name] for name in names if given.get(name)}
  return Pod(args.name, args.zone, args.project, internal_ip=args.internal_ip, **kept)


def add_resource(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--accelerator", type=ACCELERATOR, required=True)
  parser.add_argument("--runtime", type=RUNTIME, required=True, help="the TPU software version")
  tier = parser.add_mutually_exclusive_group()
  tier.add_argument("--spot", dest="tier", action="store_const", const="spot", default="")
  tier.add_argument("--reserved", dest="tier", action="store_const", const="reserved")
  parser.add_argument("--valid_until", type=DURATION, help="the request fails if it has waited for so long")
  parser.add_argument("--startup_script", type=script, help="run by root on each worker when it boots")
  parser.add_argument("--wait_minutes", type=common.seconds, default=1440.0, help="for the resource to become active")
  parser.add_argument("--poll", type=common.seconds, default=60.0, help="seconds between looks")
  parser.add_argument(
    "--silence_minutes", type=common.seconds, default=360.0, help="without an answer, before it is left alone"
  )
  common.add_restarts(parser)


def parse(argv: list[str]) -> argparse.Namespace:
  where = common.Parser(add_help=False)
  where.add_argument("name", type=common.NAME, help="of the queued resource and its node")
  where.add_argument("--zone", type=ZONE, required=True)
  where.add_argument("--project", type=PROJECT, help="gcloud's own setting by default")
  where.add_argument("--internal_ip", action="store_true", help="no external addresses")
  parser = common.Parser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True, metavar="run|create|status|ssh|stop|delete")
  runs = commands.add_parser("run", parents=[where], help="create, install, train, watch, and again after a preemption")
  add_resource(runs)
  common.add_training(runs)
  runs.add_argument("--ref", type=REF, default="HEAD", help="the commit that the workers get")
  runs.add_argument("--keep", action="store_true", help="leave the resource when training is done")
  creates = commands.add_parser("create", parents=[where], help="create the resource and wait for it")
  add_resource(creates)
  ssh = commands.add_parser("ssh", parents=[where], help="a shell on a worker, or `-- WORDS` there")
  ssh.add_argument("--worker", type=WORKER, default="0")
  helps = {
    "status": "the resource and training on it",
    "stop": "end training, which saves; a `run` that watches starts it again, so end that first",
    "delete": "remove the resource; what is in the workdir stays",
  }
  others = [commands.add_parser(name, parents=[where], help=text) for name, text in helps.items()]
  for each in (creates, ssh, *others):
    common.add_dry_run(each)
  return parser.parse_args(argv)


def program(argv: list[str]) -> int:
  own, rest = common.split_rest(argv)
  args = parse(own)
  if rest and args.command != "ssh":
    raise common.LaunchError(f"{rest[0]}: nothing is expected after --", 2)
  if args.command == "run":
    return run(args, argv)
  if args.command == "create":
    return create(args)
  if args.command == "status":
    return status(args)
  pod = pod_of(args)
  words = {
    "ssh": lambda: pod.ssh(rest, args.worker),
    "stop": lambda: pod.on_workers("stop"),
    "delete": pod.delete,
  }[args.command]()
  return one(args, words)


if __name__ == "__main__":
  common.main(program)
