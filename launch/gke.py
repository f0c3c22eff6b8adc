"""Training on a TPU slice of a GKE cluster, as a JobSet.

    python launch/gke.py run --name xl --accelerator tpu-v5-lite-podslice --topology 4x4 --image IMAGE --config ... ...
    python launch/gke.py status|logs|delete --name xl

`run` writes the manifest (JSON, which is YAML too) and gives it to kubectl. The cluster then restarts training:

    exit code 75, or a pod that is evicted    all hosts start again, as often as it takes
    any other failure                         all hosts start again, at most --max_restarts times

A slice runs as a whole, so no host is ever restarted by itself. The image holds sora_jax, installed.
"""

import argparse
import json
import math

import common

WORKERS = "workers"
COORDINATOR_PORT = 8482
PORTS = (COORDINATOR_PORT, 8471)  # JAX's coordinator, and the TPU runtime's own
GRACE = 120  # seconds between TERM and KILL: time to save
SECONDS = 300  # for kubectl
NAMESPACE = common.checked(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a namespace")
CONTEXT = common.checked(r"[\w.:@/-]+", "a context of kubectl")
ACCOUNT = common.checked(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a service account")
ACCELERATOR = common.checked(r"tpu[a-z0-9-]*[a-z0-9]", "a GKE accelerator such as tpu-v5-lite-podslice")
TOPOLOGY = common.checked(r"[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}", "a topology such as 4x4 or 2x2x4")
IMAGE = common.checked(r"[a-z0-9][\w./:@-]*", "a container image")


def hosts(topology: str, chips: int) -> int:
  total = math.prod(map(int, topology.split("x")))
  if total % chips:
    raise common.LaunchError(f"topology {topology} has {total} chips: --chips {chips} does not divide that", 2)
  return total // chips


def literal(text: str) -> str:
  """Kubernetes replaces $(NAME) in commands and values; $$ is how it spells a $."""
  return text.replace("$", "$$")


def manifest(args: argparse.Namespace) -> dict:
  number = hosts(args.topology, args.chips)
  selector = {
    "cloud.google.com/gke-tpu-accelerator": args.accelerator,
    "cloud.google.com/gke-tpu-topology": args.topology,
  }
  pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE, "nodeSelector": selector}
  if args.spot:
    selector["cloud.google.com/gke-spot"] = "true"
    pod["tolerations"] = [{"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}]
  if args.service_account:
    pod["serviceAccountName"] = args.service_account
  pod["containers"] = [container(args)]
  # Preemptions and evictions get the reason PodFailurePolicy, which the JobSet does not count as restarts.
  forgiven = [
    {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [common.REQUEUE]}},
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
  ]
  job = {
    "completionMode": "Indexed",
    "completions": number,
    "parallelism": number,
    "backoffLimit": 0,
    "podFailurePolicy": {"rules": forgiven},
    "template": {"spec": pod},
  }
  again = {
    "name": "again",
    "action": "RestartJobSetAndIgnoreMaxRestarts",
    "onJobFailureReasons": ["PodFailurePolicy"],
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": args.name,
      # One slice a job: the hosts of one job never land on two node pools.
      "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    },
    "spec": {
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      "failurePolicy": {"maxRestarts": args.max_restarts, "rules": [again]},
      "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": job}}],
    },
  }


def container(args: argparse.Namespace) -> dict:
  # The first host by the name that the JobSet's headless service gives it. GKE itself tells each host its number
  # and its peers (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES), which JAX reads.
  address = f"{args.name}-{WORKERS}-0-0.{args.name}:{COORDINATOR_PORT}"
  given = dict(each.split("=", 1) for each in args.env)
  env = {"JAX_COORDINATOR_ADDRESS": address} | {name: literal(value) for name, value in given.items()}
  chips = {"google.com/tpu": args.chips}
  bare = argparse.Namespace(**vars(args) | {"env": []})
  return {
    "name": "train",
    "image": args.image,
    "command": [literal(word) for word in common.training(bare, "sora")],
    "env": [{"name": name, "value": value} for name, value in env.items()],
    "ports": [{"containerPort": port} for port in PORTS],
    "resources": {"requests": chips, "limits": chips},
  }


def kubectl(args: argparse.Namespace, *words: str) -> list[str]:
  context = [f"--context={args.context}"] if args.context else []
  return ["kubectl", *context, f"--namespace={args.namespace}", *words]


def run(args: argparse.Namespace) -> int:
  text = json.dumps(manifest(args), indent=1) + "\n"
  path = common.FILES / f"{args.name}.json"
  # Not `apply`: a JobSet can't be changed, and one that is there may be another run.
  words = kubectl(args, "create", f"--filename={path}")
  if args.dry_run:
    print(text, end="")
    common.show([words])
    return 0
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding="utf-8")
  result = common.capture(words, SECONDS)
  if result.code and "AlreadyExists" in result.err + result.out:
    raise common.LaunchError(f"JobSet {args.name} is there already: delete it (gke.py delete), or take another --name")
  if result.code:
    raise common.LaunchError(f"kubectl refused {path}: {result.reason}")
  print(result.out.strip())
  return 0


def simple(args: argparse.Namespace) -> int:
  of_this = f"--selector=jobset.sigs.k8s.io/jobset-name={args.name}"
  words = {
    "status": kubectl(args, "get", "jobset", args.name),
    "logs": kubectl(args, "logs", of_this, "--prefix", "--tail=50", "--max-log-requests=1000"),
    "delete": kubectl(args, "delete", "jobset", args.name),
  }[args.command]
  if args.dry_run:
    common.show([words])
    return 0
  return common.call(words)


def program(argv: list[str]) -> int:
  where = common.Parser(add_help=False)
  where.add_argument("--name", type=common.NAME, default="sora")
  where.add_argument("--namespace", type=NAMESPACE, default="default")
  where.add_argument("--context", type=CONTEXT, help="the cluster, by its name in kubectl's settings")
  parser = common.Parser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True, metavar="run|status|logs|delete")
  training = commands.add_parser("run", parents=[where], help="create the JobSet")
  training.add_argument("--accelerator", type=ACCELERATOR, required=True)
  training.add_argument("--topology", type=TOPOLOGY, required=True)
  training.add_argument("--chips", type=common.positive, default=4, help="TPU chips of a host")
  training.add_argument("--image", type=IMAGE, required=True)
  training.add_argument("--spot", action="store_true")
  training.add_argument("--service_account", type=ACCOUNT, help="of Kubernetes, with a right to the bucket")
  training.add_argument("--max_restarts", type=common.count, default=3)
  common.add_training(training)
  for name in ("status", "logs", "delete"):
    common.add_dry_run(commands.add_parser(name, parents=[where]))
  args = parser.parse_args(argv)
  return run(args) if args.command == "run" else simple(args)


if __name__ == "__main__":
  common.main(program)
