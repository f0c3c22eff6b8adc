"""Training on this machine under supervision: restarted after a crash, at once after a preemption; signals passed on.

    python launch/single_gpu.py --config configs/dit.py:variant=S --workdir runs/small [--set KEY=VALUE ...] [--gpu 0]

SIGTERM, Ctrl-C and the end of the terminal are passed on to training, which saves and is waited for; its exit status is
this program's.
"""

import argparse
import os

import common

# JAX takes three quarters of a GPU's memory by itself; nothing else needs the rest here.
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92"


def command(args: argparse.Namespace) -> list[str]:
  name, share = MEMORY
  env = [] if name in os.environ else [f"{name}={share}"]
  if args.gpu is not None:
    # Named platform: a driver that is broken is then an error, not a run on the CPU.
    env += [f"CUDA_VISIBLE_DEVICES={args.gpu}", "JAX_PLATFORMS=cuda"]
  return common.training(args, args.sora, env)


def program(argv: list[str]) -> int:
  parser = common.Parser(description=__doc__.splitlines()[0])
  common.add_training(parser)
  common.add_restarts(parser)
  parser.add_argument("--gpu", type=common.count, help="the number of the GPU; without it JAX chooses the devices")
  parser.add_argument("--sora", type=common.plain, default=common.sora_path(), help="the command to run")
  args = parser.parse_args(argv)
  words = command(args)
  if args.dry_run:
    common.show([words])
    return 0
  return common.Supervisor(words, common.Restarts(args.max_restarts, args.pause)).run()


if __name__ == "__main__":
  common.main(program)
