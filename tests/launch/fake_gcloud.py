"""A stand-in for gcloud: a cloud with one queued resource, whose machines are folders.

What is there is in state.json under "resource", and what is to happen under "path" (the states before ACTIVE),
"workers" (how many), "preempt" (steps of training at which it is taken away), "taken" ({workdir: step}, the same of the
runs of a sweep), "broken" (ssh calls that fail),
"failures" (times that it fails instead of becoming active), "forbidden" (it can't be created), "mute" (describe calls
without an answer) and "unavailable" ({"create": calls that fail, "delete": ...}).
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess

from tests.launch import fakes


def main(argv: list[str]) -> int:
  action = {
    ("queued-resources", "create"): create,
    ("queued-resources", "describe"): describe,
    ("queued-resources", "delete"): delete,
    ("tpu-vm", "ssh"): ssh,
    ("tpu-vm", "scp"): scp,
  }[tuple(argv[2:4])]
  with fakes.changing() as state:
    failing = state.get("unavailable", {})
    if failing.get(argv[3], 0):
      failing[argv[3]] -= 1
      return fakes.fail(f"ERROR: (gcloud.compute.tpus.{argv[2]}.{argv[3]}) UNAVAILABLE: for now.")
    return action(argv, state)


def create(argv: list[str], state: dict) -> int:
  if state.get("resource"):
    return fakes.fail("ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource already exists.")
  if state.get("forbidden"):
    return fakes.fail("ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: no.\n- '@type': detail")
  path = [*state.get("path", ["WAITING_FOR_RESOURCES", "PROVISIONING"]), "ACTIVE"]
  state["resource"] = {
    "path": path,
    "accelerator": fakes.flag(argv, "accelerator-type"),
    "runtime": fakes.flag(argv, "runtime-version"),
  }
  if state.get("failures", 0):
    state["failures"] -= 1
    state["resource"]["path"] = ["CREATING", "FAILED"]
  return 0


def describe(argv: list[str], state: dict) -> int:
  if state.get("mute", 0):
    state["mute"] -= 1
    return fakes.fail("ERROR: gcloud crashed (TransportError): no network")
  found = state.get("resource")
  if not found:
    return fakes.fail("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found.")
  if found["path"][0] == "ACTIVE" and state.get("preempt") and trained(state) >= state["preempt"][0]:
    state["preempt"].pop(0)
    wipe()
    found["path"] = ["SUSPENDING", "SUSPENDED"]
  taken = [work for work, step in state.get("taken", {}).items() if fakes.done(pathlib.Path(work)) >= step]
  if found["path"][0] == "ACTIVE" and taken:
    del state["taken"][taken[0]]
    wipe()
    found["path"] = ["SUSPENDING", "SUSPENDED"]
  now = found["path"].pop(0) if len(found["path"]) > 1 else found["path"][0]
  if now == "ACTIVE":
    for worker in range(state.get("workers", 1)):
      (fakes.cloud() / "machines" / str(worker)).mkdir(parents=True, exist_ok=True)
  node = {"acceleratorType": found["accelerator"], "runtimeVersion": found["runtime"]}
  more = {"failedData": {"error": {"message": "no capacity"}}} if now == "FAILED" else {}
  print(json.dumps({"name": argv[4], "state": {"state": now, **more}, "tpu": {"nodeSpec": [{"node": node}]}}))
  return 0


def trained(state: dict) -> int:
  return fakes.done(pathlib.Path(state["workdir"]))


def delete(argv: list[str], state: dict) -> int:
  assert "--force" in argv and "--quiet" in argv
  if not state.get("resource"):
    return fakes.fail("ERROR: (gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: Resource was not found.")
  wipe()
  state["resource"] = None
  return 0


def wipe() -> None:
  """The machines and all that is on them are gone."""
  for machine in machines():
    run = machine / "sora_jax" / "build" / "run" / "run.json"
    if run.exists():
      end_group(json.loads(run.read_text())["group"])
  shutil.rmtree(fakes.cloud() / "machines", ignore_errors=True)


def end_group(group: int) -> None:
  try:
    os.killpg(group, signal.SIGKILL)
  except ProcessLookupError:
    pass


def machines() -> list[pathlib.Path]:
  return sorted((fakes.cloud() / "machines").glob("*"))


def ssh(argv: list[str], state: dict) -> int:
  if (state.get("resource") or {"path": [""]})["path"][0] != "ACTIVE":
    return fakes.fail("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) the TPU is not READY")
  if state.get("broken", 0):
    state["broken"] -= 1
    return fakes.fail("ssh: connect to host 192.0.2.1 port 22: Connection refused", 255)
  which = fakes.flag(argv, "worker", "0")
  shells = []
  for machine in machines():
    if which not in ("all", machine.name):
      continue
    env = dict(os.environ, HOME=str(machine), TPU_WORKER_ID=machine.name)
    # sshd gives the command to the user's shell.
    shells.append(subprocess.Popen(["bash", "-c", fakes.flag(argv, "command")], cwd=machine, env=env))
  return next((code for code in [shell.wait() for shell in shells] if code), 0)


def scp(argv: list[str], state: dict) -> int:
  source, target = argv[4], argv[5].split(":")[1]
  for machine in machines():
    shutil.copy(source, machine / target)
  return 0
