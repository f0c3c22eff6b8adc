"""The folder of a run: which run claims it, and that all hosts share it and start the same run."""

import functools
import hashlib
import json
import os
import pathlib
import sys
import uuid
from typing import Any

import jax
from etils import epath

from sora_jax import __version__
from sora_jax.checkpoints import manifest
from sora_jax.errors import InputError
from sora_jax.jobs import initial
from sora_jax.runtime import storage
from sora_jax.runtime.cluster import HostsError
from sora_jax.runtime.hosts import ALONE, LONG, Hosts
from sora_jax.settings import leaves

LENGTHS = ("train.steps", "autoencoder.steps")  # may change, as long as the run is not past the new end
# What may change when a run is resumed; anything else would be another run.
RESUMABLE = (
  "train.checkpoint_every",
  "train.keep",
  "data.max_bad",
  "data.on_mismatch",
  "data.workers",
  "train.log_every",
  "train.preview_every",
  "train.max_minutes",
  "train.accumulation",
  "model.remat",
  "autoencoder.remat",
  "model.attention",
  "sample.",
  "mesh.",
)


class ConfigMismatch(InputError):
  """The workdir was made by another config."""


def open_workdir(workdir: epath.Path, config: Any, fingerprint: str, hosts: Hosts = ALONE) -> None:
  """Claims the workdir for this run, on all hosts.

  Args:
    fingerprint: of the data.

  Raises:
    ConfigMismatch: it is another run's.
    HostsError: the hosts differ in config, code or data, or don't share the workdir; names what and where.
  """
  mine = {"config": json.loads(config.to_json()), "data": fingerprint, **code()}
  hosts.same("comparing config, data and code", mine, LONG)  # other hosts may take longer to open the data
  hosts.decide("claiming the workdir", functools.partial(claim, workdir, config))
  if hosts.count > 1:
    _must_be_shared(workdir, hosts)


def claim(workdir: str | os.PathLike, config: Any) -> None:
  """Writes the resolved config, or checks that the one that is there is the same run's.

  A run may be made longer or shorter: see `_check_length`. Old and new length are printed.

  Raises:
    ConfigMismatch: names the first key that differs, and both values.
  """
  path = epath.Path(workdir) / "config.json"
  new = json.loads(config.to_json())
  if path.exists():
    try:
      old, now = leaves(json.loads(path.read_text())), leaves(new)
    except (ValueError, AttributeError) as error:
      raise ConfigMismatch(f"{path} is no config of a run: use another --workdir") from error
    free = RESUMABLE if config.data.on_mismatch == "error" else (*RESUMABLE, "data.")
    changed = [key for key in sorted(old.keys() | now.keys()) if old.get(key) != now.get(key)]
    for key in changed:
      if key not in LENGTHS and not key.startswith(free):
        raise ConfigMismatch(
          f"{workdir} holds a run with config.{key}={old.get(key)!r}, not {now.get(key)!r}: "
          "use that value, or another --workdir (and --config.train.init to start it from that run's weights)"
        )
    said = [_check_length(workdir, config, key, old[key]) for key in LENGTHS if key in changed]
    print("".join(f"{line}\n" for line in said if line), end="", file=sys.stderr)
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_text(path, json.dumps(new, indent=1, sort_keys=True) + "\n")


def _check_length(workdir: str | os.PathLike, config: Any, key: str, before: int) -> str:
  """What another number of steps does to the run in `workdir`, in one line.

  Raises:
    ConfigMismatch: the run is past the new end, or its transformer was trained on what a shorter autoencoder made.
  """
  alone = config.task == "autoencoder"
  if alone and key == "autoencoder.steps":
    return ""  # train.steps says how long an autoencoder by itself is trained
  steps = config.train.steps if key == "train.steps" else config.autoencoder.steps
  inner = key == "autoencoder.steps"
  given = config.autoencoder.checkpoint or config.data.prepared
  if inner and (given or initial.inherits_autoencoder(workdir)):
    return ""  # it is not trained here
  if inner and _newest(workdir):
    raise ConfigMismatch(
      f"{workdir} holds a transformer trained on the latents of an autoencoder of {key}={before}, not {steps}: use "
      "that value, or train the autoencoder in a --workdir of its own and a transformer on it in another"
    )
  done = _newest(epath.Path(workdir) / "autoencoder" if inner else workdir)
  if done and steps <= done:
    raise ConfigMismatch(
      f"{workdir} holds step {done} of {before}: config.{key}={steps} must be more than {done}, or {before} as it was"
    )
  decay = round(steps * config.train.decay_share)
  begun = done > before - round(before * config.train.decay_share)
  return (
    f"{key} is {steps} and was {before}: the run goes on after step {done}, its learning rates fall from step "
    f"{steps - decay} to {steps}"
    + (f"; what they fell by until step {done} stays in the weights, and they are whole again" if begun else "")
  )


def _newest(folder: str | os.PathLike) -> int:
  """The newest step that is saved under `folder`; 0 where there is none."""
  root = manifest.root(folder)
  return max(manifest.committed(root), default=0) if root.is_dir() else 0


def code() -> dict[str, str]:
  """The code that runs: versions, and the digest of this package's sources."""
  package, total = pathlib.Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    total.update(f"{path.relative_to(package).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
  return {"sora_jax": __version__, "jax": jax.__version__, "sources": total.hexdigest()}


def _must_be_shared(workdir: epath.Path, hosts: Hosts) -> None:
  # A new name, which no host has looked for: network file systems cache that a file was absent.
  mark = workdir / hosts.agree("naming a mark", f"shared-{uuid.uuid4().hex}")
  hosts.decide("marking the workdir", functools.partial(storage.write_text, mark, ""))
  seen = hosts.gather("looking for the mark", mark.exists())
  if hosts.is_first:
    mark.unlink()
  if blind := [host for host, sees in enumerate(seen) if not sees]:
    raise HostsError(
      f"{hosts.named(blind)}: no sight of what {hosts.named([0])} writes in {workdir}. Hosts share one --workdir, in a "
      "bucket or on a file system that all have"
    )
