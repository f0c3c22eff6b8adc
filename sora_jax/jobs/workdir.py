"""The folder of a run: whose it is, that all hosts share it, and that all of them mean the same run."""

import functools
import hashlib
import json
import os
import pathlib
import uuid
from typing import Any

import jax
from etils import epath

from sora_jax import __version__
from sora_jax.errors import InputError
from sora_jax.runtime import storage
from sora_jax.runtime.cluster import HostsError
from sora_jax.runtime.hosts import ALONE, LONG, Hosts

# What may change when a run is taken up again; anything else would be another run.
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
  "model.attention",
  "sample.",
  "mesh.",
)


class ConfigMismatch(InputError):
  """The workdir was made by another config."""


def open_workdir(workdir: epath.Path, config: Any, fingerprint: str, hosts: Hosts = ALONE) -> None:
  """Makes the workdir this run's own, on all hosts.

  Args:
    fingerprint: of the data.

  Raises:
    ConfigMismatch: it is another run's.
    HostsError: the hosts differ in config, code or data, or don't share the workdir; names what and where.
  """
  mine = {"config": json.loads(config.to_json()), "data": fingerprint, **code()}
  hosts.same("comparing config, data and code", mine, LONG)  # others may be longer at opening the data
  hosts.decide("claiming the workdir", functools.partial(claim, workdir, config))
  if hosts.count > 1:
    _must_be_shared(workdir, hosts)


def claim(workdir: str | os.PathLike, config: Any) -> None:
  """Writes the resolved config, or checks that the one that is there is the same run's.

  Raises:
    ConfigMismatch: names the first key that differs, and both values.
  """
  path = epath.Path(workdir) / "config.json"
  new = json.loads(config.to_json())
  if path.exists():
    try:
      old, now = flatten(json.loads(path.read_text())), flatten(new)
    except (ValueError, AttributeError) as error:
      raise ConfigMismatch(f"{path} is no config of a run: use another --workdir") from error
    free = RESUMABLE if config.data.on_mismatch == "error" else (*RESUMABLE, "data.")
    for key in sorted(old.keys() | now.keys()):
      if old.get(key) != now.get(key) and not key.startswith(free):
        raise ConfigMismatch(
          f"{workdir} holds a run with config.{key}={old.get(key)!r}, not {now.get(key)!r}: "
          "use that value or another --workdir"
        )
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_text(path, json.dumps(new, indent=1, sort_keys=True) + "\n")


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  parts: dict[str, Any] = {}
  for key, value in tree.items():
    parts |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return parts


def code() -> dict[str, str]:
  """What computes: versions, and the digest of this package's sources."""
  package, total = pathlib.Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    total.update(f"{path.relative_to(package).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
  return {"sora_jax": __version__, "jax": jax.__version__, "sources": total.hexdigest()}


def _must_be_shared(workdir: epath.Path, hosts: Hosts) -> None:
  # A name that no host has looked for: network file systems remember what was not there.
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
