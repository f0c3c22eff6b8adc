#!/usr/bin/env bash
# All of benchmarks/gpu.py on this machine's NVIDIA GPU, in one call of at most 9 minutes; no network is needed.
#
#   benchmarks/gpu.sh [OUT.json] [WHEELS] [--tiny]     PYTHON=python3 names the interpreter, which has JAX for the GPU
#
# Packages that the interpreter lacks come from wheels in the folder WHEELS (wheels/), and are installed beside it, in a
# folder that is removed again. PyTorch is measured where it is installed.
set -euo pipefail

out=$(realpath -m "${1:-gpu.json}")
wheels=$(realpath -m "${2:-wheels}")
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=$("$python" benchmarks/gpu.py --missing)
if [ -n "$missing" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # shellcheck disable=SC2086  # the names are words
  "$python" -m pip install -q --no-index --find-links "$wheels" --no-deps --no-compile --target "$site" $missing
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
timeout --kill-after=5 535 "$python" benchmarks/gpu.py --out "$out" --seconds 500 "${@:3}"
